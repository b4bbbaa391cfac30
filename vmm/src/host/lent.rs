//! Files that are handed over open, instead of being named by a path: what a confined VMM may not open itself.
//!
//! Where a request has the path of a file or the name of a TAP device, `fd:N` means descriptor N, which this process
//! inherited, and `received:N` the one with number N, from 0, of those that came with the request (`SCM_RIGHTS`, unix(7)). A
//! file of such a name is reached by another path, `./fd:3`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Descriptors that one request may bring.
pub const RECEIVED_MAX: usize = 16;

/// What a request says where it could say a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// A path, or the name of a device.
    Path(&'a str),
    /// A descriptor that this process inherited.
    Inherited(RawFd),
    /// A descriptor that came with the request.
    Received(usize),
}

impl<'a> Named<'a> {
    /// Reads `name`.
    #[must_use]
    pub fn parse(name: &'a str) -> Self {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let number = |prefix| name.strip_prefix(prefix).filter(|rest| digits(rest));
        if let Some(fd) = number("fd:").and_then(|digits| digits.parse().ok()) {
            return Self::Inherited(fd);
        }
        match number("received:").and_then(|digits| digits.parse().ok()) {
            Some(index) => Self::Received(index),
            None => Self::Path(name),
        }
    }
}

/// Descriptors that came with a request. Each can be taken once; those that are not are closed with this.
#[derive(Debug, Default)]
pub struct Received(Vec<Option<OwnedFd>>);

impl From<Vec<OwnedFd>> for Received {
    fn from(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }
}

impl Received {
    /// The open file that `name` stands for, if it is not a path.
    ///
    /// # Errors
    /// If there is no such descriptor; the text says how many there are.
    pub fn open(&mut self, name: &str) -> io::Result<Option<File>> {
        match Named::parse(name) {
            Named::Path(_) => Ok(None),
            Named::Inherited(fd) => inherited(fd).map(|fd| Some(fd.into())),
            Named::Received(index) => {
                let taken = self.0.get_mut(index).and_then(Option::take);
                let count = self.0.len();
                let why =
                    || format!("{name}: this request brought {count} descriptors, each to be used once");
                let fd = taken.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, why()))?;
                Ok(Some(fd.into()))
            }
        }
    }
}

/// A descriptor of our own for the file that this process has open as `fd`, which stays open.
///
/// # Errors
/// EBADF if there is none.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl checks the number; nothing is assumed of it.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// A socket of any library's.
struct Socket(RawFd);

impl ScmSocket for Socket {
    fn socket_fd(&self) -> RawFd {
        self.0
    }
}

/// Takes what has come on the socket `from`: bytes into `into`, and open files, [`RECEIVED_MAX`] at most.
///
/// # Errors
/// ENOBUFS if more files came at once; all are closed then. Else what recvmsg(2) says.
pub fn receive(from: &impl AsRawFd, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut bytes = [libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() }];
    let mut descriptors = [-1; RECEIVED_MAX];
    // SAFETY: the one iovec describes `into`, which is borrowed for writing as long as the call takes.
    let (len, count) = unsafe { Socket(from.as_raw_fd()).recv_with_fds(&mut bytes, &mut descriptors) }?;
    // SAFETY: the kernel has just made these for this process, and nobody else has seen their numbers.
    let own = |fd: &RawFd| unsafe { OwnedFd::from_raw_fd(*fd) };
    Ok((len, descriptors[..count].iter().map(own).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_told_from_paths() {
        assert_eq!(Named::parse("fd:7"), Named::Inherited(7));
        assert_eq!(Named::parse("received:0"), Named::Received(0));
        for path in
            ["fd:", "fd:-1", "fd:7x", "received:", "received:+1", "./fd:7", "/fd:7", "fd:99999999999", ""]
        {
            assert_eq!(Named::parse(path), Named::Path(path));
        }
    }

    #[test]
    fn what_was_received_is_used_once_and_what_is_inherited_stays() {
        let file = tempfile::tempfile().unwrap();
        let mut received = Received::from(vec![file.try_clone().unwrap().into()]);
        assert!(received.open("/a/path").unwrap().is_none());
        assert!(received.open("received:0").unwrap().is_some());
        for name in ["received:0", "received:1"] {
            let error = received.open(name).unwrap_err().to_string();
            assert_eq!(error, format!("{name}: this request brought 1 descriptors, each to be used once"));
        }
        assert!(received.open(&format!("fd:{}", file.as_raw_fd())).unwrap().is_some());
        assert!(file.metadata().is_ok());
        assert_eq!(received.open("fd:9999").unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
