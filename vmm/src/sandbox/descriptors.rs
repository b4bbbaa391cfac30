//! Which descriptors a process has: those that its maker named or another process hands over, and no others.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

/// Standard input, output and error, which are not strays.
const STANDARD: RawFd = 3;

/// Descriptors that may come at once from another process.
pub const RECEIVED_MAX: usize = 16;

/// Why a descriptor can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// It is not there.
    #[error("descriptor {fd} can't be kept: accepted is an open one from {STANDARD} on")]
    NotOpen {
        /// Its number.
        fd: RawFd,
    },
    /// It is a directory, from which every other one can be reached.
    #[error("descriptor {fd} is refused: it is a directory, and so a way out of the jail")]
    Directory {
        /// Its number.
        fd: RawFd,
    },
}

/// Refuses a descriptor that would let whoever inherits it leave a jail. One that is not open is none.
///
/// # Errors
/// [`KeepError::Directory`].
pub fn check_harmless(fd: RawFd) -> Result<(), KeepError> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the buffer is one; the number is checked by the call.
    let open = unsafe { libc::fstat(fd, stat.as_mut_ptr()) } == 0;
    // SAFETY: a successful fstat has filled it.
    if open && unsafe { stat.assume_init() }.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(KeepError::Directory { fd });
    }
    Ok(())
}

/// Closes every descriptor from 3 on, but not those in `keep`.
///
/// Whatever owned a closed descriptor in this process must not be used or dropped afterwards: call this before there is
/// anything, or in a child that has no use for it.
///
/// # Errors
/// [`KeepError::NotOpen`] if one of `keep` is not open; then nothing is closed.
pub fn close_all_but(keep: &[RawFd]) -> Result<(), KeepError> {
    let mut sorted = keep.to_vec();
    sorted.sort_unstable();
    for fd in &sorted {
        // SAFETY: fcntl checks the number; F_GETFD changes nothing.
        let open = *fd >= STANDARD && unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0;
        if !open {
            return Err(KeepError::NotOpen { fd: *fd });
        }
    }
    let mut first = libc::c_uint::try_from(STANDARD).expect("a small number");
    for fd in sorted {
        let fd = libc::c_uint::try_from(fd).expect("checked above");
        if first < fd {
            close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    close_range(first, libc::c_uint::MAX);
    Ok(())
}

fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: the caller of close_all_but has no more use for any descriptor in between. The call fails only for an empty
    // range or unknown flags, neither of which is given.
    unsafe { libc::close_range(first, last, 0) };
}

/// `/dev/null`, open for both ways.
///
/// # Errors
/// If the host has none.
pub fn null() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/null")
}

/// A copy of standard error that an `execve` closes.
///
/// # Errors
/// If it can't be copied.
pub fn save_stderr() -> io::Result<OwnedFd> {
    io::stderr().as_fd().try_clone_to_owned()
}

/// Makes `null` standard input, output and error.
///
/// # Errors
/// If the kernel refuses.
pub fn redirect_to(null: impl AsFd) -> io::Result<()> {
    let null = null.as_fd();
    dup2_stdin(null)?;
    dup2_stdout(null)?;
    dup2_stderr(null)?;
    Ok(())
}

/// Gives back standard error.
///
/// # Errors
/// If the kernel refuses.
pub fn restore_stderr(saved: &OwnedFd) -> io::Result<()> {
    Ok(dup2_stderr(saved)?)
}

/// Lets `fd` survive an `execve`.
///
/// # Errors
/// If the kernel refuses.
pub fn keep_over_exec(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// Opens something of the host that a caller named, to be used later.
///
/// # Errors
/// What the host says.
pub fn open_path(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())?)
}

/// A descriptor of our own for the file that this process has inherited as `fd`, which stays open.
///
/// # Errors
/// EBADF if there is none. What this process opened itself, which no `execve` would leave open, is none: by its number an
/// image would become a second drive, past the lock of the first, and the log a disk.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl checks the number; F_GETFD changes nothing.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags >= 0 && flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    copy(fd)
}

/// Another descriptor, of our own, for the file that is open as `fd`.
///
/// # Errors
/// EBADF if none is.
pub fn copy(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl checks the number; nothing is assumed of it.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// Takes what has come on the socket `from`: bytes into `into`, and open files, [`RECEIVED_MAX`] at most. Those are closed by
/// `execve` from the moment they are here, so that none is ever taken for an [inherited] one.
///
/// # Errors
/// ENOBUFS if more files came at once; all are closed then. Else what recvmsg(2) says.
pub fn receive(from: impl AsFd, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RECEIVED_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(from, &mut [IoSliceMut::new(into)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(new) = message {
            files.extend(new);
        }
    }
    // What did not fit the kernel has closed itself; there is room for one more where nothing has to be aligned.
    if got.flags.contains(ReturnFlags::CTRUNC) || files.len() > RECEIVED_MAX {
        return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    Ok((got.bytes, files))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    fn send(to: &UnixStream, files: &[RawFd]) {
        let bytes = [io::IoSlice::new(b"x")];
        let rights = [ControlMessage::ScmRights(files)];
        sendmsg::<()>(to.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
    }

    #[test]
    fn what_is_received_is_closed_by_execve_and_no_inherited_descriptor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&theirs, &[file.as_raw_fd(); 2]);
        let mut bytes = [0; 8];
        let (len, files) = receive(&ours, &mut bytes).unwrap();
        assert_eq!((&bytes[..len], files.len()), (&b"x"[..], 2));
        for file in files {
            let flags = fcntl(&file, FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
            let error = inherited(file.as_raw_fd()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
    }

    #[test]
    fn of_too_many_files_none_stays_open() {
        for count in [RECEIVED_MAX + 1, RECEIVED_MAX + 2, 100] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (mut end, held) = UnixStream::pair().unwrap();
            send(&theirs, &vec![held.as_raw_fd(); count]);
            drop(held);
            let error = receive(&ours, &mut [0; 8]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS), "{count}");
            // The other end is closed once the last descriptor of it is.
            end.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            assert_eq!(end.read(&mut [0]).unwrap(), 0, "{count}");
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&theirs, &[theirs.as_raw_fd(); RECEIVED_MAX]);
        assert_eq!(receive(&ours, &mut [0; 8]).unwrap().1.len(), RECEIVED_MAX);
    }
}
