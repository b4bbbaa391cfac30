//! Volumes: the disks of tenants, raw files that are as sparse as what was written to them.
//!
//! ```text
//!   volumes/
//!     tenants/<tenant>/<id>.raw   mode 0600, of its owner; its size is the disk's
//!     tmp/                        what is being created or copied
//! ```
//! A volume gets its name when it is complete and on the disk.
//!
//! # Who may use one
//!
//! A file's lock says it, of the kind that a VMM takes of its drives ([`crate::host::disk`]): one writer or many readers.
//! [`Volumes::open_for_use`] takes it for the descriptor that it returns. Send that to the VMM (`received:N` as
//! `path_on_host`) and close it here: both are one open file description, so the VMM's own locking succeeds, and the lock goes
//! with the VMM and not with the agent. Where the VMM is to open a path itself, close the descriptor first. Nothing of this is
//! written down, so nothing is stale after a crash: a volume is attached while somebody has its lock.
//!
//! A copy has its source's lock for reading, so a volume that a VM may be writing is not copied; growing needs no lock.
//!
//! # Space
//!
//! A sparse volume takes what was written; the guest gets an I/O error when the disk is full. A preallocated one
//! ([`Allocation::Preallocated`]) has its blocks from the start: that the disk is full is told when it is created.

pub mod store;

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::files::FileError;
use super::progress::Cancelled;

pub use store::{Leftovers, Source, Volumes};

/// Characters of a tenant's name or a volume's id at the most: with `.raw` it must be a file's name.
pub const NAME_LEN_MAX: usize = 128;
/// Bytes of a volume at the least, and what its size is a multiple of: a sector (virtio 1.2 §5.2.4).
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of a volume at the most: 16 TiB, of which a file of ext4 has a little less.
pub const SIZE_BYTES_MAX: u64 = 16 << 40;

/// Which volume: whose, and its id among theirs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeKey {
    tenant: String,
    id: String,
}

impl VolumeKey {
    /// Accepts names of 1 to 128 ASCII letters, digits and `.`, `_`, `-`, the first a letter or digit.
    ///
    /// # Errors
    /// [`VolumeError::Name`].
    pub fn new(tenant: &str, id: &str) -> Result<Self, VolumeError> {
        for (field, name) in [("tenant", tenant), ("id", id)] {
            let may_follow = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
            if !starts_well || name.len() > NAME_LEN_MAX || !name.chars().all(may_follow) {
                return Err(VolumeError::Name { field, value: name.chars().take(NAME_LEN_MAX).collect() });
            }
        }
        Ok(Self { tenant: tenant.to_owned(), id: id.to_owned() })
    }

    /// Whose it is.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Which of theirs.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.id)
    }
}

/// When a volume takes the space that it may need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Allocation {
    /// When the guest writes.
    #[default]
    Sparse,
    /// When it is created or grows.
    Preallocated,
}

/// Whether a volume may lose its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shrink {
    /// No.
    #[default]
    Refused,
    /// Yes, and what is there with it; if nobody uses the volume.
    Forced,
}

/// How big a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Bytes of the disk that the guest sees.
    pub size_bytes: u64,
    /// Bytes that it takes on the host; what a copy shares with its source counts for both.
    pub allocated_bytes: u64,
}

/// Why something could not be done with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// It was asked to end early.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A name that can't be one.
    #[error(
        "{field} {value:?} is refused: 1 to 128 letters, digits and `.`, `_`, `-` are accepted, the first a letter or digit"
    )]
    Name {
        /// Which one.
        field: &'static str,
        /// What it was, shortened.
        value: String,
    },
    /// A size that can't be one.
    #[error(
        "size_bytes {size_bytes} is refused: a multiple of {SECTOR_BYTES} from {SECTOR_BYTES} to {SIZE_BYTES_MAX} is accepted"
    )]
    Size {
        /// What was asked for.
        size_bytes: u64,
    },
    /// A volume that is to begin with what is longer than it.
    #[error(
        "size_bytes {size_bytes} of {volume} is refused: at least the {source_bytes} of what it begins with are accepted"
    )]
    SmallerThanSource {
        /// Which volume.
        volume: VolumeKey,
        /// What was asked for.
        size_bytes: u64,
        /// What it needs, in bytes.
        source_bytes: u64,
    },
    /// A volume was to lose its end.
    #[error(
        "size_bytes {size_bytes} of {volume} is refused: its {now_bytes} or more are accepted, fewer only by force and detached"
    )]
    WouldShrink {
        /// Which one.
        volume: VolumeKey,
        /// What was asked for.
        size_bytes: u64,
        /// What it has.
        now_bytes: u64,
    },
    /// There is one already.
    #[error("volume {0} exists: another id, or its removal, is accepted")]
    Exists(VolumeKey),
    /// There is none.
    #[error("there is no volume {0}")]
    NotFound(VolumeKey),
    /// A VM has it, or it is being copied.
    #[error("volume {volume} is in use")]
    InUse {
        /// Which one.
        volume: VolumeKey,
        /// What was to be done, and what that needs.
        source: FileError,
    },
    /// The file system has no room; nothing half made is left.
    #[error("volume {volume} does not fit")]
    Full {
        /// Which one.
        volume: VolumeKey,
        /// What was asked for, and what is left.
        source: FileError,
    },
    /// The volume's file, or that of its source, can't be used.
    #[error("volume {volume} can't be used")]
    File {
        /// Which one.
        volume: VolumeKey,
        /// Why.
        source: FileError,
    },
    /// The store's own files can't be used.
    #[error("the store of volumes can't do this")]
    Store(#[source] FileError),
}

impl VolumeError {
    /// What went wrong with the file of `volume` as it was to be found.
    fn opening(volume: &VolumeKey) -> impl Fn(FileError) -> Self {
        move |source| {
            if source.is_not_found() { Self::NotFound(volume.clone()) } else { Self::of(volume)(source) }
        }
    }

    /// What went wrong with a file of `volume`.
    fn of(volume: &VolumeKey) -> impl Fn(FileError) -> Self {
        move |source| {
            let volume = volume.clone();
            match source {
                FileError::Cancelled(cancelled) => Self::Cancelled(cancelled),
                FileError::InUse { .. } => Self::InUse { volume, source },
                FileError::Full { .. } => Self::Full { volume, source },
                _ => Self::File { volume, source },
            }
        }
    }
}
