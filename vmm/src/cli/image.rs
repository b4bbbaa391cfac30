//! `yun image`.

use std::path::Path;

use hyper::Method;

use super::args::things::{Image as Command, ImageImport as Asked};
use super::confirm::{Answer, confirm};
use super::error::Failure;
use super::{Context, image_path, operation};
use crate::agent::model::{Image, ImageImport};

/// `yun image`.
pub(crate) async fn image(context: &Context, command: Command) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        Command::Ls => context.out.list(&client.get::<Vec<Image>>("/v1/images").await?),
        Command::Show(asked) => context.out.one(&client.get::<Image>(&image_path(&asked.image)).await?),
        Command::Import(asked) => {
            let waiting = asked.waiting;
            let body = import(asked)?;
            operation::begin(context, waiting, client.send(Method::POST, "/v1/images", &body)).await
        }
        Command::Verify { image, waiting } => {
            let path = format!("{}/verify", image_path(&image.image));
            operation::begin(context, waiting, client.call(Method::POST, &path)).await
        }
        Command::Rm { image, sure } => {
            if confirm(sure, &format!("remove image {}", image.image))? == Answer::Go {
                client.bytes(Method::DELETE, &image_path(&image.image), None).await?;
            }
            Ok(())
        }
    }
}

/// Paths are the agent's, who works elsewhere: absolute.
fn import(asked: Asked) -> Result<ImageImport, Failure> {
    let Asked { name, kernel, initrd, rootfs, kernel_args, ip_arg, waiting: _ } = asked;
    Ok(ImageImport {
        name,
        kernel: absolute(&kernel)?,
        initrd: initrd.as_deref().map(absolute).transpose()?,
        rootfs: rootfs.as_deref().map(absolute).transpose()?,
        kernel_args,
        wants_ip_arg: ip_arg,
    })
}

fn absolute(path: &Path) -> Result<String, Failure> {
    let whole = std::path::absolute(path).map_err(|source| Failure::File {
        what: "no directory for",
        path: path.to_owned(),
        source,
    })?;
    whole.into_os_string().into_string().map_err(|_| {
        Failure::usage(format!("{} is no text", path.display()), "file names are accepted as UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_told_absolute_paths() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("a/b")).unwrap(), here.join("a/b").to_str().unwrap());
        assert_eq!(absolute(Path::new("/a/b")).unwrap(), "/a/b");
        assert_eq!(absolute(Path::new("")).unwrap_err().exit(), 1);
    }
}
