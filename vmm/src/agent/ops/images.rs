//! Images.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::core::{Agent, blocking};
use super::super::events::Happened;
use super::super::images::{Image as Stored, ImportSpec};
use super::super::model::{Denial, DenialCode, Image, ImageImport, Name, OperationKind};
use super::super::operations::{About, Op};
use super::super::store::Batch;
use super::image_denial;
use crate::utc::Utc;

const PREFIX: &str = "sha256:";

impl Agent {
    /// The image with an id, the unique beginning of one, or a name.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`].
    pub(super) fn image(&self, asked: &str) -> Result<Stored, Denial> {
        let asked = asked.strip_prefix(PREFIX).unwrap_or(asked);
        self.images.get(asked).map_err(|error| image_denial(&error))
    }

    /// What is shown of it.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`].
    pub fn image_view(&self, asked: &str) -> Result<Image, Denial> {
        let image = self.image(asked)?;
        Ok(self.view_of(&image))
    }

    fn view_of(&self, image: &Stored) -> Image {
        let id = image.id.as_str();
        let used_by = self.state().vms.values().filter(|vm| vm.has_image(id)).count() as u64;
        let digest = |blob: &super::super::images::BlobRef| format!("{PREFIX}{}", blob.sha256.as_str());
        let manifest = &image.manifest;
        Image {
            id: format!("{PREFIX}{id}"),
            name: Name::parse(&manifest.name).ok(),
            kernel: digest(&manifest.kernel),
            initrd: manifest.initrd.as_ref().map(digest),
            rootfs: manifest.rootfs.as_ref().map(digest),
            kernel_args: manifest.kernel_args.clone(),
            wants_ip_arg: manifest.wants_ip,
            size_bytes: image.size_bytes,
            used_by,
            created_at: Utc::from_nanos(image.imported_at_ms.saturating_mul(1_000_000)).to_rfc_3339(),
        }
    }

    /// All that are understood.
    ///
    /// # Errors
    /// What the host says.
    pub fn image_views(&self) -> Result<Vec<Image>, Denial> {
        let listing = self.images.list().map_err(|error| image_denial(&error))?;
        for damaged in &listing.damaged {
            log::error!("{damaged}");
        }
        Ok(listing.images.iter().map(|image| self.view_of(image)).collect())
    }

    /// Takes an image in.
    ///
    /// # Errors
    /// What fails at once; what fails later is in the operation.
    pub fn import_image(self: &Arc<Self>, request: ImageImport, requestor: &str) -> Result<Arc<Op>, Denial> {
        let spec = ImportSpec {
            name: request.name.to_string(),
            kernel: PathBuf::from(request.kernel),
            initrd: request.initrd.map(PathBuf::from),
            rootfs: request.rootfs.map(PathBuf::from),
            kernel_args: request.kernel_args,
            wants_ip: request.wants_ip_arg,
            default_user: None,
        };
        spec.check().map_err(|error| image_denial(&error))?;
        let op = self.begin_image(OperationKind::ImageImport, request.name.as_str(), requestor)?;
        let (agent, task_op) = (Arc::clone(self), Arc::clone(&op));
        tokio::spawn(async move {
            let (worker, work_op) = (Arc::clone(&agent), Arc::clone(&task_op));
            let turn = Arc::clone(&agent.copies).acquire_owned().await;
            let result = blocking(move || {
                let _turn = turn;
                worker.images.import(&spec, work_op.work()).map_err(|error| image_denial(&error))
            });
            let result = match result.await {
                Ok(image) => {
                    agent.tell_of_image("image.imported", &task_op, format!("{PREFIX}{}", image.id)).await
                }
                Err(denial) => Err(denial),
            };
            match result {
                Err(_) if task_op.work().cancel().is_asked() => task_op.cancelled("nothing of it is left"),
                result => task_op.end(result),
            }
        });
        Ok(op)
    }

    fn begin_image(&self, kind: OperationKind, target: &str, requestor: &str) -> Result<Arc<Op>, Denial> {
        self.operations.begin(About {
            kind,
            tenant: None,
            target: target.to_owned(),
            unit: "bytes",
            cancellable: true,
            requestor: requestor.to_owned(),
        })
    }

    async fn tell_of_image(&self, kind: &'static str, op: &Op, detail: String) -> Result<(), Denial> {
        let happened = Happened {
            kind,
            tenant: None,
            target: Some(op.about().target.clone()),
            requestor: op.about().requestor.clone(),
            detail,
        };
        self.commit(Batch::new(), [happened]).await
    }

    /// Hashes an image's files again.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`]; what is found later is in the operation.
    pub fn verify_image(self: &Arc<Self>, asked: &str, requestor: &str) -> Result<Arc<Op>, Denial> {
        let image = self.image(asked)?;
        let op = self.begin_image(OperationKind::ImageVerify, &image.manifest.name, requestor)?;
        let (agent, task_op) = (Arc::clone(self), Arc::clone(&op));
        tokio::spawn(async move {
            let work_op = Arc::clone(&task_op);
            let turn = Arc::clone(&agent.copies).acquire_owned().await;
            let result = blocking(move || {
                let _turn = turn;
                let verified = agent.images.verify(&image.id, work_op.work());
                verified.map(drop).map_err(|error| image_denial(&error))
            });
            task_op.end(result.await);
        });
        Ok(op)
    }

    /// Removes an image that no VM is to have, or has.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`], [`DenialCode::InUse`].
    pub async fn delete_image(self: &Arc<Self>, asked: &str, requestor: &str) -> Result<(), Denial> {
        let _turn = self.admission.lock().await;
        let image = self.image(asked)?;
        if let Some(vm) = self.state().vms.values().find(|vm| vm.has_image(image.id.as_str())) {
            let text = format!(
                "image {} is used by VM {}/{}",
                image.manifest.name, vm.record.tenant, vm.record.name
            );
            return Err(Denial::new(DenialCode::InUse, text)
                .hint("remove that VM, or stop it if it is to have another image"));
        }
        let agent = Arc::clone(self);
        let (id, name) = (image.id.clone(), image.manifest.name.clone());
        blocking(move || agent.images.remove(&id, &|_| false).map_err(|error| image_denial(&error))).await?;
        let happened = Happened {
            kind: "image.deleted",
            tenant: None,
            target: Some(name),
            requestor: requestor.to_owned(),
            detail: String::new(),
        };
        self.commit(Batch::new(), [happened]).await
    }
}
