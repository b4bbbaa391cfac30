//! From files on the host to an image.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::digest::Hasher;
use super::manifest::check_size;
use super::{BlobRef, Digest, Image, ImageError, ImageId, Images, ImportSpec, Manifest};
use crate::agent::files::copy::{Copy, Method};
use crate::agent::files::staged::{Staged, Staging, remove};
use crate::agent::files::{FileError, source};
use crate::agent::progress::Work;

impl Images {
    /// Imports what `spec` names. The sources may change meanwhile: what is stored is what was hashed. Importing the same
    /// again finds the same image, and replaces files of it that are missing or damaged.
    ///
    /// `work` advances by the sources' sizes, in bytes, and by those of files that are there already. After an error, or a death, there is no new image.
    ///
    /// # Errors
    /// [`ImageError::Field`]; [`ImageError::Source`] with [`FileError::NotRegular`], [`FileError::Shrunk`],
    /// [`FileError::Full`] and the like; [`ImageError::NameTaken`]; [`ImageError::Cancelled`]; [`ImageError::Store`].
    pub fn import(&self, spec: &ImportSpec, work: &Work) -> Result<Image, ImageError> {
        spec.check()?;
        // All are opened before any is copied: a mistake shows at once, and the total is known.
        let kernel = Incoming::open("kernel", &spec.kernel)?;
        let initrd = spec.initrd.as_deref().map(|path| Incoming::open("initrd", path)).transpose()?;
        let rootfs = spec.rootfs.as_deref().map(|path| Incoming::open("rootfs", path)).transpose()?;
        for incoming in [Some(&kernel), initrd.as_ref(), rootfs.as_ref()].into_iter().flatten() {
            work.progress().expect(incoming.size);
        }
        let mut staged = Vec::new();
        let mut stage = |incoming: &Incoming<'_>| -> Result<BlobRef, ImageError> {
            let (file, blob) = incoming.stage(&self.staging, work)?;
            // What is there and good stays, for VMs may have it open; what is there and damaged is replaced.
            let good = self.verified.open(&self.blob(&blob.sha256), &blob, false, work);
            if let Err(ImageError::Cancelled(cancelled)) = good {
                return Err(cancelled.into());
            }
            staged.push(StagedBlob { file, digest: blob.sha256.clone(), is_there: good.is_ok() });
            Ok(blob)
        };
        let manifest = Manifest {
            version: Manifest::VERSION,
            name: spec.name.clone(),
            kernel: stage(&kernel)?,
            initrd: initrd.as_ref().map(&mut stage).transpose()?,
            rootfs: rootfs.as_ref().map(&mut stage).transpose()?,
            kernel_args: spec.kernel_args.clone(),
            wants_ip: spec.wants_ip,
            default_user: spec.default_user.clone(),
        };
        self.publish(staged, &manifest, work)
    }

    /// Gives the blobs their names, then the manifest.
    fn publish(
        &self,
        staged: Vec<StagedBlob<'_>>,
        manifest: &Manifest,
        work: &Work,
    ) -> Result<Image, ImageError> {
        let path = self.manifests.join("new");
        let bytes = serde_json::to_vec(manifest)
            .map_err(|source| ImageError::NotUnderstood { path: path.clone(), source })?;
        let id = ImageId(Digest::of(&bytes));
        let file = self.staging.create(&path)?;
        file.file().write_all(&bytes).map_err(FileError::growing(
            "write",
            &path,
            file.file(),
            bytes.len() as u64,
        ))?;
        file.seal(0o444, bytes.len() as u64)?;

        let _names = self.names();
        let has_name = |image: &Image| image.manifest.name == manifest.name && image.id != id;
        if let Some(other) = self.list()?.images.into_iter().find(has_name) {
            return Err(ImageError::NameTaken { name: manifest.name.clone(), by: other.id });
        }
        work.step("publish")?;
        let mut new = Vec::new();
        let published = self.publish_all(staged, file, &id, &mut new, work);
        if let Err(error) = published {
            // The manifest is the last: these are nobody's yet.
            for path in new {
                remove(&path).unwrap_or_else(|error| log::warn!("{error}; gc will"));
            }
            return Err(error);
        }
        work.commit("published");
        self.image(&id)
    }

    /// The part that is undone if it fails: `new` are the files that were not there before.
    fn publish_all(
        &self,
        staged: Vec<StagedBlob<'_>>,
        manifest: Staged<'_>,
        id: &ImageId,
        new: &mut Vec<PathBuf>,
        work: &Work,
    ) -> Result<(), ImageError> {
        for blob in staged {
            work.commit("publish a blob");
            let path = self.blob(&blob.digest);
            match path.exists() {
                true if blob.is_there => continue,
                true => {}
                false => new.push(path.clone()),
            }
            blob.file.publish(&path)?;
        }
        work.commit("publish the manifest");
        let path = self.manifest(id);
        if !path.exists() {
            new.push(path.clone());
        }
        Ok(manifest.publish(&path)?)
    }
}

/// A blob that has been copied.
struct StagedBlob<'a> {
    file: Staged<'a>,
    digest: Digest,
    /// Whether the store had it already when it was copied.
    is_there: bool,
}

/// A file that is to be imported.
struct Incoming<'a> {
    field: &'static str,
    path: &'a Path,
    file: File,
    size: u64,
}

impl<'a> Incoming<'a> {
    fn open(field: &'static str, path: &'a Path) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Source { field, source };
        let file = source::open(path, false).map_err(failed)?;
        let size = file.metadata().map_err(FileError::host("look at", path)).map_err(failed)?.len();
        check_size(field, size)?;
        Ok(Self { field, path, file, size })
    }

    /// Copies it; what is hashed is the copy.
    fn stage<'s>(&self, staging: &'s Staging, work: &Work) -> Result<(Staged<'s>, BlobRef), ImageError> {
        self.try_stage(staging, work).map_err(|error| match error {
            FileError::Cancelled(cancelled) => ImageError::Cancelled(cancelled),
            source => ImageError::Source { field: self.field, source },
        })
    }

    fn try_stage<'s>(&self, staging: &'s Staging, work: &Work) -> Result<(Staged<'s>, BlobRef), FileError> {
        work.step("stage a blob")?;
        let staged = staging.create(self.path)?;
        let target = staged.file();
        target.set_len(self.size).map_err(FileError::growing(
            "grow the copy of",
            self.path,
            target,
            self.size,
        ))?;
        let mut hasher = Hasher::default();
        let copy = Copy {
            source: &self.file,
            source_path: self.path,
            size: self.size,
            target,
            target_path: self.path,
            method: Method::Share,
        };
        copy.run(work, &mut |range, piece| {
            hasher.update(target, range, piece).map_err(FileError::host("read the copy of", self.path))
        })?;
        work.step("seal a blob")?;
        staged.seal(0o444, self.size)?;
        Ok((staged, BlobRef { sha256: hasher.finish(), size_bytes: self.size }))
    }
}
