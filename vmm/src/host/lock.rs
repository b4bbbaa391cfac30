//! The lock of an image: one writer, or any number of readers.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

/// How long a lock is waited for. A process that was killed with requests in an io_uring is gone some milliseconds before its
/// files are let go of (up to 40 were seen on a busy host), and its successor opens the same image.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);
/// Between two tries, in milliseconds.
const LOCK_PAUSE: u8 = 5;

/// Takes (or, with `F_UNLCK`, gives back) the lock of the whole file for its open file description (fcntl(2), F_OFD_SETLK).
/// Whoever holds one against it is given [`LOCK_PATIENCE`] to be gone.
pub(super) fn lock(file: &File, kind: i32) -> io::Result<()> {
    let flock = libc::flock {
        l_type: i16::try_from(kind).expect("a small constant"),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLK(&flock)) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) if Instant::now() < end => {
                // Sleeps by a system call that the driver's thread has anyway.
                let _ = nix::poll::poll(&mut [], LOCK_PAUSE);
            }
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "the image is locked by another virtual machine or drive; one writer, or any number of readers, may use it",
                ));
            }
            Err(e) => return Err(e.into()),
        }
    }
}
