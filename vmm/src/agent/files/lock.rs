//! The lock of a disk's file: of one writer or many readers.
//!
//! It is the VMM's own kind (`F_OFD_SETLK` of the whole file, see [`crate::host::disk`]), so it holds between agent and VMM,
//! and it belongs to the open file description. Whoever is sent the descriptor shares it: the agent takes the lock, hands the
//! descriptor to a VMM, closes its own; from then on the lock lives as long as the VMM, whatever becomes of the agent.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::FileError;

/// What a file is to be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// By many, none of which writes.
    Reading,
    /// By one alone.
    Writing,
}

/// A file that is locked until this is dropped. Closing it would not do: a child of this process that has been forked and not
/// yet executed anything has a copy of the descriptor, and would keep the lock.
#[derive(Debug)]
pub struct Held(File);

impl Held {
    /// Takes the lock of `file` as [`take`] does.
    ///
    /// # Errors
    /// As [`take`].
    pub fn take(file: File, path: &Path, how: Use) -> Result<Self, FileError> {
        take(&file, path, how)?;
        Ok(Self(file))
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(errno) = set(&self.0, libc::F_UNLCK) {
            log::warn!("can't unlock a file: {errno}");
        }
    }
}

/// Takes the lock of `file`, which was opened for that use at `path`. Does not wait. It lives as long as the open file
/// description: this is for one that is handed over.
///
/// # Errors
/// [`FileError::InUse`] if somebody uses it in a way that this excludes; [`FileError::Host`].
pub fn take(file: &File, path: &Path, how: Use) -> Result<(), FileError> {
    let kind = match how {
        Use::Reading => libc::F_RDLCK,
        Use::Writing => libc::F_WRLCK,
    };
    match set(file, kind) {
        Ok(()) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            let (wanted, needs) = match how {
                Use::Reading => ("reading", "nobody has it for writing"),
                Use::Writing => ("changing it", "nobody else has it, be it for reading"),
            };
            Err(FileError::InUse { path: path.to_owned(), wanted, needs })
        }
        Err(errno) => Err(FileError::host("lock", path)(io::Error::from(errno))),
    }
}

/// As fcntl(2): `kind` is `F_RDLCK`, `F_WRLCK` or `F_UNLCK`, of the whole file.
fn set(file: &File, kind: i32) -> Result<(), Errno> {
    let l_type = i16::try_from(kind).map_err(|_| Errno::EINVAL)?;
    let flock = libc::flock { l_type, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&flock)).map(drop)
}
