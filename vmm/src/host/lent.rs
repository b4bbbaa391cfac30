//! Files that are handed over open, instead of being named by a path: what a confined VMM may not open itself.
//!
//! Where a request has the path of a file or the name of a TAP device, `fd:N` means descriptor N, which this process
//! inherited, and `received:N` the one with number N, from 0, of those that came with the request (`SCM_RIGHTS`, unix(7)). A
//! file of such a name is reached by another path, `./fd:3`.

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use crate::sandbox::descriptors::inherited;

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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

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
        // What survives an execve, as whatever is inherited has.
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        assert!(received.open(&format!("fd:{}", file.as_raw_fd())).unwrap().is_some());
        assert!(file.metadata().is_ok());
        assert_eq!(received.open("fd:9999").unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn a_descriptor_that_this_process_opened_itself_was_not_inherited() {
        // Of an image, say, which its number would give to a second drive past the first one's lock.
        let file = tempfile::tempfile().unwrap();
        let mut received = Received::from(vec![file.try_clone().unwrap().into()]);
        let taken = received.open("received:0").unwrap().unwrap();
        for own in [file, taken] {
            let error = received.open(&format!("fd:{}", own.as_raw_fd())).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
    }
}
