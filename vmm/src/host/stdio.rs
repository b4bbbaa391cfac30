//! Descriptors 0, 1 and 2, before anything is opened.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, IntoRawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Opens `/dev/null` for each of the three that whoever started this process left closed: the next file opened, a disk
/// image say, would get its number, and with it what is meant for the log or the console.
///
/// # Errors
/// What the host says of `/dev/null`; going on would be that very danger.
pub fn fill_gaps() -> io::Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let none = PollFlags::empty();
    let mut fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].map(|fd| PollFd::new(fd, none));
    poll(&mut fds, PollTimeout::ZERO)?;
    for _ in fds.iter().filter(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLNVAL))) {
        // The lowest free number is one of the gaps. It stays open as long as the process lives.
        let _number = OpenOptions::new().read(true).write(true).open("/dev/null")?.into_raw_fd();
    }
    Ok(())
}
