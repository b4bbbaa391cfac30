//! Images: what VMs boot from, imported once and never changed.
//!
//! ```text
//!   images/
//!     blobs/<sha256>       a kernel, an initrd or a root file system, mode 0444; shared by the images that have it
//!     manifests/<sha256>   what an image is made of; the SHA-256 of these bytes is the image's id
//!     tmp/                 what is being imported
//! ```
//! A blob gets its name when it is complete and on the disk, its manifest after all of its blobs: the rename of the manifest
//! is the moment at which an image exists. A process that is killed before leaves files that nobody sees and
//! [`Images::leftovers`] finds. A manifest is removed before its blobs, for the same reason.
//!
//! | room | one idea |
//! |---|---|
//! | [`digest`] | SHA-256 of files, and the names that come of it |
//! | [`manifest`] | what may be asked for, and what is written down |
//! | [`import`] | from files on the host to an image |
//! | [`store`] | the directory: find, list, use, remove |
//! | [`verify`] | bytes are compared with their name before they are used, once for as long as nobody touches them |
//!
//! Nothing here marks files immutable or uses fs-verity: both need an ioctl, root, and a file system that can. That nobody
//! has changed a blob is known from its change time instead, which not even its owner can set.

pub mod digest;
pub mod import;
pub mod manifest;
pub mod store;
pub mod verify;

pub use digest::{Digest, ImageId};
pub use manifest::{BlobRef, ImportSpec, Manifest};
pub use store::{Image, Images, Listing, OpenedImage};

use std::path::PathBuf;

use super::files::FileError;
use super::progress::Cancelled;

/// Why something could not be done with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It was asked to end early.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A field of the request is not as it must be.
    #[error("{field} {value:?} is refused: {accepted} is accepted")]
    Field {
        /// Which one.
        field: &'static str,
        /// What it was, shortened.
        value: String,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// A file that is to be imported can't be.
    #[error("{field} can't be imported")]
    Source {
        /// Which field names it.
        field: &'static str,
        /// Why.
        source: FileError,
    },
    /// There is no such image.
    #[error("there is no image {asked:?}: an id, the unique beginning of one, or a name is accepted")]
    NotFound {
        /// What was asked for.
        asked: String,
    },
    /// Several images have ids that begin so.
    #[error("image {asked:?} is ambiguous: it may be {first} or {second}")]
    Ambiguous {
        /// What was asked for.
        asked: String,
        /// One.
        first: ImageId,
        /// Another.
        second: ImageId,
    },
    /// Another image has the name.
    #[error("name {name:?} is taken by image {by}: another name, or that image's removal, is accepted")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        by: ImageId,
    },
    /// An image that is used was to be removed.
    #[error("image {id} is in use: it can be removed when no VM has it")]
    InUse {
        /// Which one.
        id: ImageId,
    },
    /// Someone changed a blob or a manifest, or the disk did. It is not used.
    #[error("{} is damaged: its SHA-256 is {found}; importing the image again replaces it", path.display())]
    Damaged {
        /// The file, whose name is what the digest should be.
        path: PathBuf,
        /// What it is.
        found: Digest,
    },
    /// An image's blob is gone.
    #[error("{} is missing; importing the image again replaces it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A manifest that this version can't read, though its bytes are what they were.
    #[error("{} is not understood: a manifest of version {version} is accepted", path.display(), version = Manifest::VERSION)]
    NotUnderstood {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The store's own files can't be used.
    #[error("the store of images can't do this")]
    Store(#[source] FileError),
}

impl From<FileError> for ImageError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Store(error),
        }
    }
}
