//! `yun volume`.

use hyper::Method;

use super::args::things::Volume as Command;
use super::args::values::Which;
use super::confirm::{Answer, confirm};
use super::error::Failure;
use super::vm::settle;
use super::{Context, operation};
use crate::agent::model::{
    AttachRequest, DetachRequest, Vm, Volume, VolumeCreate, VolumeResize, VolumeSource,
};

/// `yun volume`.
pub(crate) async fn volume(context: &Context, command: Command) -> Result<(), Failure> {
    let client = &context.client;
    let path = |which: &Which| context.path("volumes", which);
    match command {
        Command::Ls => context.out.list(&context.of_tenants::<Volume>("volumes").await?),
        Command::Show(asked) => context.out.one(&client.get::<Volume>(&path(&asked.volume)?).await?),
        Command::Create(asked) => {
            let from = match (asked.from_image, asked.from_volume) {
                (Some(image), _) => Some(VolumeSource::Image(image)),
                (None, volume) => volume.map(VolumeSource::Volume),
            };
            let size_mib = asked.size.map(|size| size.0);
            let body = VolumeCreate { size_mib, from, preallocate: asked.preallocate };
            let path = path(&asked.volume)?;
            operation::begin(context, asked.waiting, client.send(Method::PUT, &path, &body)).await
        }
        Command::Resize { volume, size, waiting } => {
            let path = path(&volume.volume)?;
            let body = VolumeResize { size_mib: size.0 };
            operation::begin(context, waiting, client.send(Method::PATCH, &path, &body)).await
        }
        Command::Copy { from, to, size, waiting } => {
            let to = path(&Which { tenant: from.tenant, name: to })?;
            let source = Some(VolumeSource::Volume(from.name));
            let body = VolumeCreate { size_mib: size.map(|size| size.0), from: source, preallocate: false };
            operation::begin(context, waiting, client.send(Method::PUT, &to, &body)).await
        }
        Command::Attach { volume, vm, read_only, waiting } => {
            let path = format!("{}/attach", path(&volume.volume)?);
            let changed: Vm = client.send(Method::POST, &path, &AttachRequest { vm, read_only }).await?;
            settle(context, waiting, &changed, false).await
        }
        Command::Detach { volume, vm, waiting } => {
            let path = format!("{}/detach", path(&volume.volume)?);
            let changed: Vm = client.send(Method::POST, &path, &DetachRequest { vm }).await?;
            settle(context, waiting, &changed, false).await
        }
        Command::Rm { volume, sure } => {
            let path = path(&volume.volume)?;
            let what = format!("remove volume {} and what is on it", context.title(&volume.volume)?);
            if confirm(sure, &what)? == Answer::Go {
                client.bytes(Method::DELETE, &path, None).await?;
            }
            Ok(())
        }
    }
}
