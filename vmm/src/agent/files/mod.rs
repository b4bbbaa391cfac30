//! Files that appear whole or not at all: what the stores of images and volumes are made of.
//!
//! ```text
//!   source (a regular file, by descriptor) ── copy: extents, holes stay holes ──> staged (tmp/N)
//!                                                        fsync, rename, fsync of the directory ──> its place
//! ```
//! | room | one idea |
//! |---|---|
//! | [`source`] | opening a file that somebody named, without being held up or led astray |
//! | [`staged`] | files that are being made; what a killed agent left of them |
//! | [`copy`] | bytes from file to file: shared where the file system can, holes kept everywhere |
//! | [`lock`] | one writer or many readers, of the same kind as the VMM's own |
//!
//! Nothing here knows what a file is for.

pub mod copy;
pub mod lock;
pub mod source;
pub mod staged;
#[cfg(test)]
pub(in crate::agent) mod testing;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::progress::Cancelled;

/// Bytes in a unit of `st_blocks` (stat(2)).
const STAT_BLOCK: u64 = 512;

/// Why something could not be done with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It was asked to end early.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A path that depends on where the agent was started.
    #[error("{} is refused: an absolute path is accepted", .0.display())]
    Relative(PathBuf),
    /// Not a file with bytes of its own.
    #[error("{} is refused: it is {found}, a regular file is accepted", path.display())]
    NotRegular {
        /// Where.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// Someone made the file shorter while it was read.
    #[error("{} became shorter while it was read: from {expected} to {got} bytes", path.display())]
    Shrunk {
        /// Where.
        path: PathBuf,
        /// Its size when it was opened, in bytes.
        expected: u64,
        /// Its size now, in bytes.
        got: u64,
    },
    /// The file system, or the quota of whom the agent runs as, has no room. What was begun is gone again.
    #[error("no space for {}: {asked} bytes were asked for, {left} are left on its file system", path.display())]
    Full {
        /// What was to be made or grown.
        path: PathBuf,
        /// Bytes that it needs from the file system at the most.
        asked: u64,
        /// Bytes that the file system has for it.
        left: u64,
        /// What the host says, if it came to that.
        source: Option<io::Error>,
    },
    /// Someone else has the file's lock: a VMM, or a copy that is under way.
    #[error("{} is in use: {wanted} needs that {needs}", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
        /// What it was to be used for.
        wanted: &'static str,
        /// What would be accepted.
        needs: &'static str,
    },
    /// The host refuses.
    #[error("can't {doing} {}", path.display())]
    Host {
        /// To do what, a verb.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
}

impl FileError {
    /// The host refused to do `doing` with `path`.
    pub(crate) fn host(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { doing, path: path.to_owned(), source }
    }

    /// The same, where the reason may be that there is no room: `asked` is what `file`, which is at `path`, needs. What it
    /// has so far counts as left, for it is given back.
    pub(crate) fn growing(
        doing: &'static str,
        path: &Path,
        file: &File,
        asked: u64,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let full = [libc::ENOSPC, libc::EDQUOT].map(Some).contains(&source.raw_os_error());
            if !full {
                return Self::host(doing, path)(source);
            }
            let given_back = file.metadata().map_or(0, |metadata| allocated_bytes(&metadata));
            let left = left_bytes(file).unwrap_or(0).saturating_add(given_back);
            Self::Full { path: path.to_owned(), asked, left, source: Some(source) }
        }
    }

    /// Whether the host says that there is no such file.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Host { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Bytes that `metadata`'s file takes on its file system.
pub(crate) fn allocated_bytes(metadata: &std::fs::Metadata) -> u64 {
    metadata.blocks().saturating_mul(STAT_BLOCK)
}

/// Bytes that the file system of `file` has for someone without privileges.
pub(crate) fn left_bytes(file: impl AsFd) -> io::Result<u64> {
    let stat = nix::sys::statvfs::fstatvfs(file)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(FileError::host("sync", dir))
}

/// Makes `dir` and what is missing above it, durably. Only their owner may go there.
pub(crate) fn make_dir(dir: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().ok_or_else(|| FileError::Relative(dir.to_owned()))?;
    make_dir(parent)?;
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(FileError::host("make the directory", dir)(error))
        }
        _ => sync_dir(parent),
    }
}

/// The names in `dir`, sorted, of which `accept` makes something.
pub(crate) fn entries<T>(dir: &Path, accept: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, FileError> {
    let list = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    };
    Ok(list().map_err(FileError::host("list", dir))?.iter().filter_map(|name| accept(name)).collect())
}
