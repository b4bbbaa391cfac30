//! Output that never waits for its reader: standard output, files, FIFOs. The log, the metrics and the console write here.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::lent::Named;
use crate::sandbox::descriptors::inherited;

/// Opens a file, or a FIFO whether anybody reads it or not, for appending; creates it if it isn't there.
///
/// # Errors
/// What the host says.
pub(crate) fn open_nonblocking(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    // With a reading end of its own, a FIFO can be opened before its reader is there.
    match options.clone().read(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => options.open(path),
        result => result,
    }
}

/// Where bytes go. What can't be taken at once is `WouldBlock`.
#[derive(Debug)]
pub(crate) enum Output {
    /// A descriptor that does not block: it was opened so, or is a regular file.
    File(File),
    /// A descriptor shared with others, which may block: asked before each write whether it has room. Every thread logs,
    /// and none but the API's may use a call that is for sockets only.
    Shared(File),
}

impl Output {
    /// Standard output. Its open file may be shared with others, so it is not made non-blocking: it is opened once more.
    pub(crate) fn stdout() -> io::Result<Self> {
        let own = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let kind = own.metadata()?.file_type();
        if kind.is_socket() {
            // Nothing can open it once more.
            return Ok(Self::Shared(own));
        }
        if kind.is_fifo() || kind.is_char_device() {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
            // A jail has no /proc.
            return Ok(options.open("/proc/self/fd/1").map_or(Self::Shared(own), Self::File));
        }
        Ok(Self::File(own))
    }

    /// A file or FIFO, appended to; also one that was inherited (`fd:N`).
    pub(crate) fn file(path: &Path) -> io::Result<Self> {
        match Named::parse(path.to_str().unwrap_or_default()) {
            Named::Inherited(fd) => inherited(fd).map(|fd| Self::Shared(fd.into())),
            _ => open_nonblocking(path).map(Self::File),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Shared(file) => {
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut fds, PollTimeout::ZERO)? == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                // A pipe that says so has room for this much (pipe(7)), unless another writer comes first. So has a socket
                // whose buffer is not the smallest that there is: it says so while most of that is free.
                file.write(&bytes[..bytes.len().min(libc::PIPE_BUF)])
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Shared(file) => file.as_fd(),
        }
    }
}
