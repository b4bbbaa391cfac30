//! The sockets on which the host's side of the guest's sockets listens.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use devices::virtio::vsock::Kind;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, UnixAddr, bind, connect, listen, socket};

use super::{FLAGS, beside, sock_type};
use crate::host::socket::SocketFile;

/// Callers that wait to be taken up, of either type; more are refused or wait, as connect(2) says.
const BACKLOG: i32 = 128;

/// Both sockets, bound and listening; their files go when this does.
#[derive(Debug)]
pub struct VsockSockets {
    path: PathBuf,
    streams: (OwnedFd, SocketFile),
    records: (OwnedFd, SocketFile),
}

impl VsockSockets {
    /// Listens at `path` for streams, at `path` with `_seqpacket` after it for records. What a dead process left there is
    /// replaced.
    ///
    /// # Errors
    /// What the host says: `AddrInUse` if somebody listens there, or if something else is in the way. Nothing is left then.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let streams = listen_at(path, Kind::Stream)?;
        let records = listen_at(&beside(path, "_seqpacket"), Kind::SeqPacket)?;
        Ok(Self { path: path.to_owned(), streams, records })
    }

    /// Where streams come in.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn listener(&self, kind: Kind) -> BorrowedFd<'_> {
        match kind {
            Kind::Stream => self.streams.0.as_fd(),
            Kind::SeqPacket => self.records.0.as_fd(),
        }
    }
}

fn listen_at(path: &Path, kind: Kind) -> io::Result<(OwnedFd, SocketFile)> {
    let address = UnixAddr::new(path)?;
    let fd = socket(AddressFamily::Unix, sock_type(kind), FLAGS, None)?;
    match bind(fd.as_raw_fd(), &address) {
        Err(Errno::EADDRINUSE) if is_stale(path, kind, &address) => {
            fs::remove_file(path)?;
            bind(fd.as_raw_fd(), &address)?;
        }
        other => other?,
    }
    let file = SocketFile::of(path, path)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok((fd, file))
}

/// Whether there is a socket on which nobody answers.
fn is_stale(path: &Path, kind: Kind, address: &UnixAddr) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        && socket(AddressFamily::Unix, sock_type(kind), FLAGS, None)
            .is_ok_and(|fd| connect(fd.as_raw_fd(), address) == Err(Errno::ECONNREFUSED))
}
