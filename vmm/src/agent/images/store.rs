//! The directory of images.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::manifest::MANIFEST_BYTES_MAX;
use super::verify::Verified;
use super::{BlobRef, Digest, ImageError, ImageId, Manifest};
use crate::agent::files::staged::{Staging, remove};
use crate::agent::files::{FileError, entries, make_dir, source, sync_dir};
use crate::agent::progress::Work;

/// Digits of an id that say which image is meant, at the least.
const PREFIX_LEN_MIN: usize = 4;

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Which one.
    pub id: ImageId,
    /// What it is made of.
    pub manifest: Manifest,
    /// Bytes of its files together, holes counted, shared or not.
    pub size_bytes: u64,
    /// When it was imported, in milliseconds since 1970.
    pub imported_at_ms: u64,
}

/// All images.
#[derive(Debug)]
pub struct Listing {
    /// Those that are understood, by name.
    pub images: Vec<Image>,
    /// What is wrong with each of the others.
    pub damaged: Vec<ImageError>,
}

/// An image's files, open for reading, their bytes verified.
#[derive(Debug)]
pub struct OpenedImage {
    /// What it is.
    pub image: Image,
    /// The kernel.
    pub kernel: File,
    /// The initrd, if there is one.
    pub initrd: Option<File>,
    /// The root file system, if there is one.
    pub rootfs: Option<File>,
}

/// The images in a directory. One process at a time may have it open, by any number of threads. Every function blocks.
#[derive(Debug)]
pub struct Images {
    blobs: PathBuf,
    pub(super) manifests: PathBuf,
    pub(super) staging: Staging,
    pub(super) verified: Verified,
    /// Held while names in `blobs` and `manifests` change, never while bytes are copied or hashed.
    names: Mutex<()>,
}

impl Images {
    /// The images in `dir`, an absolute path; what is missing of it is made.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        // Refuses a relative path before anything is made.
        let staging = Staging::open(dir.join("tmp"))?;
        let (blobs, manifests) = (dir.join("blobs"), dir.join("manifests"));
        make_dir(&blobs)?;
        make_dir(&manifests)?;
        Ok(Self { blobs, manifests, staging, verified: Verified::default(), names: Mutex::new(()) })
    }

    /// The image that `asked` means: by id, by name, or by the first 4 or more digits of an id if only one begins so.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::Ambiguous`]; [`ImageError::Damaged`] and [`ImageError::NotUnderstood`] about
    /// its manifest; [`ImageError::Store`].
    pub fn get(&self, asked: &str) -> Result<Image, ImageError> {
        if let Ok(digest) = Digest::try_from(asked.to_owned()) {
            return self.image(&ImageId(digest));
        }
        let mut images = self.list()?.images;
        if let Some(at) = images.iter().position(|image| image.manifest.name == asked) {
            return Ok(images.swap_remove(at));
        }
        let long_enough = asked.len() >= PREFIX_LEN_MIN;
        let mut meant = self.ids()?.into_iter().filter(|id| long_enough && id.as_str().starts_with(asked));
        match (meant.next(), meant.next()) {
            (Some(id), None) => self.image(&id),
            (Some(first), Some(second)) => {
                Err(ImageError::Ambiguous { asked: asked.to_owned(), first, second })
            }
            (None, _) => Err(ImageError::NotFound { asked: asked.to_owned() }),
        }
    }

    /// All images. One that is damaged hides no other.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub fn list(&self) -> Result<Listing, ImageError> {
        let mut listing = Listing { images: Vec::new(), damaged: Vec::new() };
        for id in self.ids()? {
            match self.image(&id) {
                Ok(image) => listing.images.push(image),
                // Removed meanwhile.
                Err(ImageError::NotFound { .. }) => {}
                Err(error) => listing.damaged.push(error),
            }
        }
        listing.images.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
        Ok(listing)
    }

    /// Reads every byte of the image and compares. `work` advances by its size in bytes.
    ///
    /// # Errors
    /// As [`Images::get`] and [`Images::open_for_use`].
    pub fn verify(&self, id: &ImageId, work: &Work) -> Result<Image, ImageError> {
        Ok(self.open_all(id, true, work)?.image)
    }

    /// Opens the image's files for reading. What was not verified since this process began, or was touched since, is read
    /// first, and `work` advances by what is read, in bytes; else this takes no time.
    ///
    /// The caller says in [`Images::remove`] that it uses the image, before it calls this.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] or [`ImageError::Missing`] for the first file that is not what it should be;
    /// [`ImageError::Cancelled`]; those of [`Images::get`].
    pub fn open_for_use(&self, id: &ImageId, work: &Work) -> Result<OpenedImage, ImageError> {
        self.open_all(id, false, work)
    }

    fn open_all(&self, id: &ImageId, always: bool, work: &Work) -> Result<OpenedImage, ImageError> {
        let image = self.image(id)?;
        let open = |blob: &BlobRef| self.verified.open(&self.blob(&blob.sha256), blob, always, work);
        let kernel = open(&image.manifest.kernel)?;
        let initrd = image.manifest.initrd.as_ref().map(open).transpose()?;
        let rootfs = image.manifest.rootfs.as_ref().map(open).transpose()?;
        Ok(OpenedImage { image, kernel, initrd, rootfs })
    }

    /// Removes the image, and its blobs that no other image has. `in_use` is asked once, and must not call this store.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; [`ImageError::InUse`]; [`ImageError::Store`]: then the image may be gone, and
    /// [`Images::leftovers`] has the rest.
    pub fn remove(&self, id: &ImageId, in_use: &dyn Fn(&ImageId) -> bool) -> Result<(), ImageError> {
        let _names = self.names();
        let path = self.manifest(id);
        if !path.exists() {
            return Err(ImageError::NotFound { asked: id.to_string() });
        }
        if in_use(id) {
            return Err(ImageError::InUse { id: id.clone() });
        }
        remove(&path)?;
        sync_dir(&self.manifests)?;
        self.remove_all(&self.unreferenced()?)
    }

    /// Files that belong to no image: imports and removals that were cut short. None, as long as some manifest can't be
    /// read: what it names is not known.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub fn leftovers(&self) -> Result<Vec<PathBuf>, ImageError> {
        let _names = self.names();
        let mut found = self.staging.leftovers()?;
        found.extend(self.unreferenced()?);
        Ok(found)
    }

    /// Removes the [`Images::leftovers`]; says which.
    ///
    /// # Errors
    /// [`ImageError::Store`]; some may be gone then.
    pub fn gc(&self) -> Result<Vec<PathBuf>, ImageError> {
        let _names = self.names();
        let mut found = self.staging.remove_leftovers()?;
        let blobs = self.unreferenced()?;
        self.remove_all(&blobs)?;
        found.extend(blobs);
        Ok(found)
    }

    /// Blobs that no manifest names, as far as that can be told.
    fn unreferenced(&self) -> Result<Vec<PathBuf>, ImageError> {
        let listing = self.list()?;
        if !listing.damaged.is_empty() {
            return Ok(Vec::new());
        }
        let blobs =
            |image: &Image| image.manifest.blobs().map(|blob| blob.sha256.clone()).collect::<Vec<_>>();
        let named: BTreeSet<Digest> = listing.images.iter().flat_map(blobs).collect();
        let stray = |name: &str| {
            let digest = Digest::try_from(name.to_owned()).ok()?;
            (!named.contains(&digest)).then(|| self.blob(&digest))
        };
        Ok(entries(&self.blobs, stray)?)
    }

    fn remove_all(&self, blobs: &[PathBuf]) -> Result<(), ImageError> {
        for path in blobs {
            remove(path)?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Ok(digest) = Digest::try_from(name.to_owned()) {
                self.verified.forget(&digest);
            }
        }
        if blobs.is_empty() { Ok(()) } else { Ok(sync_dir(&self.blobs)?) }
    }

    fn ids(&self) -> Result<Vec<ImageId>, ImageError> {
        Ok(entries(&self.manifests, |name| Digest::try_from(name.to_owned()).ok().map(ImageId))?)
    }

    /// Reads a manifest and compares it with its name.
    pub(super) fn image(&self, id: &ImageId) -> Result<Image, ImageError> {
        let path = self.manifest(id);
        let file = source::open(&path, false).map_err(|error| {
            if error.is_not_found() { ImageError::NotFound { asked: id.to_string() } } else { error.into() }
        })?;
        let metadata = file.metadata().map_err(FileError::host("look at", &path))?;
        let mut bytes = Vec::new();
        file.take(MANIFEST_BYTES_MAX).read_to_end(&mut bytes).map_err(FileError::host("read", &path))?;
        let found = Digest::of(&bytes);
        if found != id.0 {
            return Err(ImageError::Damaged { path, found });
        }
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|source| ImageError::NotUnderstood { path, source })?;
        let size_bytes = manifest.size_bytes();
        // Before 1970 is 1970.
        let imported_at_ms =
            u64::try_from(metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000).unwrap_or(0);
        Ok(Image { id: id.clone(), manifest, size_bytes, imported_at_ms })
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.as_str())
    }

    pub(super) fn manifest(&self, id: &ImageId) -> PathBuf {
        self.manifests.join(id.as_str())
    }

    pub(super) fn names(&self) -> MutexGuard<'_, ()> {
        // What a panicking thread left of the names is what a killed process leaves.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "fault_tests.rs"]
mod fault_tests;
