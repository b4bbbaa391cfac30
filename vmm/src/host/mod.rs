//! What the host lends a machine: kernel and initrd files, disk images, TAP devices. All are opened when they are named,
//! before the guest runs, so that a running VMM needs neither paths nor privileges for them.

pub mod console;
pub mod cpus;
pub mod direct;
pub mod disk;
pub mod lent;
mod lock;
pub mod peer;
pub(crate) mod socket;
pub mod stdio;
pub mod tap;
pub mod vhost_net;
pub mod vsock;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the number of files that this process may have open to what it may raise it to; that number. To be called before
/// the first filter.
///
/// # Errors
/// What the kernel said.
pub fn descriptors_max() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Opens a regular file for reading; anything else (a directory, a FIFO that would block) is refused.
///
/// # Errors
/// What the host said, or `InvalidInput` with what would be accepted.
pub fn open_image(path: &Path) -> io::Result<File> {
    image(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?)
}

/// Takes `file` for an image, if it is a regular file.
///
/// # Errors
/// As [`open_image`].
pub fn image(file: File) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}
