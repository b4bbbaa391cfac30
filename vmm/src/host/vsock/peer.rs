//! The host's end of one connection: a Unix socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use devices::mem::VolatileSlice;
use devices::virtio::vsock::{Kind, Peer, RECORD_BYTES_MAX, Received};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::mem::vectored;

/// See the [module](self).
pub struct UnixPeer {
    fd: OwnedFd,
    kind: Kind,
    epoll: Arc<Epoll>,
    /// Under what it is watched.
    token: Option<u64>,
}

impl UnixPeer {
    pub(super) fn new(fd: OwnedFd, kind: Kind, epoll: Arc<Epoll>) -> Self {
        Self { fd, kind, epoll, token: None }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn watch_as(&mut self, token: u64) -> io::Result<()> {
        let how = if self.token.is_some() { ControlOperation::Modify } else { ControlOperation::Add };
        self.token = Some(token);
        self.ctl(how, EventSet::empty())
    }

    /// Edge-triggered, and made to tell again what is so already.
    fn ctl(&self, how: ControlOperation, more: EventSet) -> io::Result<()> {
        let set =
            EventSet::IN | EventSet::PRIORITY | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED | more;
        self.epoll.ctl(how, self.fd.as_raw_fd(), EpollEvent::new(set, self.token.unwrap_or_default()))
    }
}

impl Peer for UnixPeer {
    fn watch(&mut self, slot: u16) -> io::Result<()> {
        self.watch_as(slot.into())
    }

    fn want_room(&mut self, wanted: bool) -> io::Result<()> {
        self.ctl(ControlOperation::Modify, if wanted { EventSet::OUT } else { EventSet::empty() })
    }

    fn accepted(&mut self, host_port: u32) -> io::Result<()> {
        let answer = format!("OK {host_port}\n");
        let sent = send(self.fd.as_raw_fd(), answer.as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
        if sent < answer.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn send(&mut self, data: &[VolatileSlice]) -> io::Result<usize> {
        vectored::writev(self.fd(), data)
    }

    /// One that finds less than there is room for has found all, but for what comes before the end or urgent bytes, of which the epoll
    /// tells, and before descriptors, which are dropped.
    fn recv(&mut self, into: &[VolatileSlice]) -> io::Result<Received> {
        let (bytes, full, flags) = vectored::recvmsg(self.fd(), into)?;
        Ok(Received { bytes, all: !full && !flags.contains(MsgFlags::MSG_CTRUNC) })
    }

    fn recv_record(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        // How long it is, without taking it.
        let len = recv(self.fd.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC)?;
        if len > RECORD_BYTES_MAX {
            let why = format!("a record of {len} bytes: at most {RECORD_BYTES_MAX} go to a guest");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        into.resize(len, 0);
        if len == 0 {
            return Ok(0);
        }
        Ok(recv(self.fd.as_raw_fd(), into, MsgFlags::empty())?)
    }

    fn shut(&mut self, send: bool) {
        // A peer that is gone is shut both ways.
        let _ = shutdown(self.fd.as_raw_fd(), if send { Shutdown::Write } else { Shutdown::Read });
    }
}
