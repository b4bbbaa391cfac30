//! The host's side of the guest's sockets: Unix sockets, as Firecracker has them, and as it has not, of records.
//!
//! ```text
//!   host process ── connect(PATH), "CONNECT 52\n" ──> port 52 of the guest ── "OK 1073742848\n" ──> host process
//!   guest ── connect(CID 2, port 52) ──> whoever listens at PATH_52
//! ```
//! Streams of the guest are Unix sockets of type SOCK_STREAM. Its records (SOCK_SEQPACKET) are Unix sockets of the same type:
//! calls come in at `PATH_seqpacket`, `CONNECT 52` and `OK 1073742848` being records of their own, with a newline or without;
//! and a guest that connects by records reaches a listener at `PATH_52` only if that is one for records. A record has 1 to
//! 65,536 bytes: an empty one can't be told from the end, and is taken for it.

mod call;
mod listen;
mod peer;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use devices::virtio::vsock::{HostEvent, HostSide, Kind, Peer};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use rustix::net::{SocketFlags, accept_with};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use call::Call;
pub use listen::VsockSockets;
use peer::UnixPeer;

/// Events taken up at a time, and calls taken up at a time.
const BATCH: usize = 64;

/// Open files that are left to the rest of the process, however many connections a guest makes.
const DESCRIPTORS_RESERVED: u64 = 256;

/// Tokens below are slots of the device.
const SLOTS: u64 = 1 << 16;
/// The listener for streams; that for records is the next.
const TOKEN_LISTENER: u64 = 1 << 32;
/// The first of those who have not said yet whom they call.
const TOKEN_CALLER: u64 = 1 << 33;

const KINDS: [Kind; 2] = [Kind::Stream, Kind::SeqPacket];

const fn sock_type(kind: Kind) -> SockType {
    match kind {
        Kind::Stream => SockType::Stream,
        Kind::SeqPacket => SockType::SeqPacket,
    }
}

const FLAGS: SockFlag = SockFlag::SOCK_NONBLOCK.union(SockFlag::SOCK_CLOEXEC);

/// `path` with `suffix` after it.
fn beside(path: &std::path::Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// See the [module](self).
pub struct UnixHost {
    sockets: Arc<VsockSockets>,
    epoll: Arc<Epoll>,
    callers: BTreeMap<u64, UnixPeer>,
    next_caller: u64,
    /// Peers and callers at a time: so many open files.
    peers_max: usize,
    /// There may be calls waiting, by [`KINDS`].
    unaccepted: [bool; 2],
}

impl UnixHost {
    /// The host's side that listens on `sockets`, in a process that may have `descriptors_max` open files: so many of them
    /// less 256 may be connections.
    ///
    /// # Errors
    /// If descriptors can't be had.
    pub fn new(sockets: Arc<VsockSockets>, descriptors_max: u64) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for (token, kind) in (TOKEN_LISTENER..).zip(KINDS) {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
            epoll.ctl(ControlOperation::Add, sockets.listener(kind).as_raw_fd(), event)?;
        }
        let epoll = Arc::new(epoll);
        let peers_max = descriptors_max.saturating_sub(DESCRIPTORS_RESERVED);
        Ok(Self {
            sockets,
            epoll,
            callers: BTreeMap::new(),
            next_caller: TOKEN_CALLER,
            peers_max: usize::try_from(peers_max).unwrap_or(usize::MAX),
            unaccepted: [false; 2],
        })
    }

    /// Whether there are as many peers as there may be: each of them has the epoll's handle, as this has.
    fn is_full(&self) -> bool {
        Arc::strong_count(&self.epoll) > self.peers_max
    }

    /// Takes up calls on the listener for `kind`; whether it took as many as it may.
    fn accept(&mut self, kind: Kind, room: usize, events: &mut Vec<HostEvent>) -> bool {
        let index = usize::from(kind == Kind::SeqPacket);
        for _ in 0..BATCH {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let fd = match accept_with(self.sockets.listener(kind), flags) {
                Ok(fd) => fd,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(rustix::io::Errno::AGAIN) => {
                    self.unaccepted[index] = false;
                    return false;
                }
                Err(error) => {
                    // No descriptor, say. They wait in the listener's backlog until something else happens.
                    log::warn!("vsock: a call could not be taken: {error}");
                    return false;
                }
            };
            let calling = events.iter().filter(|event| matches!(event, HostEvent::Call { .. })).count();
            if self.callers.len() + calling >= room || self.is_full() {
                continue; // closed
            }
            let mut peer = UnixPeer::new(fd, kind, Arc::clone(&self.epoll));
            match call::read(&peer) {
                Call::Port(port) => events.push(HostEvent::Call { peer: Box::new(peer), kind, port }),
                Call::Wait => {
                    let token = self.next_caller;
                    if peer.watch_as(token).is_ok() {
                        self.next_caller += 1;
                        self.callers.insert(token, peer);
                    }
                }
                Call::Nonsense => {}
            }
        }
        true
    }

    /// A caller has said something.
    fn hear(&mut self, token: u64, events: &mut Vec<HostEvent>) {
        let Some(peer) = self.callers.get(&token) else { return };
        let call = call::read(peer);
        if call == Call::Wait {
            return;
        }
        if let (Some(peer), Call::Port(port)) = (self.callers.remove(&token), call) {
            let kind = peer.kind();
            events.push(HostEvent::Call { peer: Box::new(peer), kind, port });
        }
    }
}

impl HostSide for UnixHost {
    fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn poll(&mut self, room: usize, events: &mut Vec<HostEvent>) -> bool {
        let mut ready = [EpollEvent::default(); BATCH];
        let count = self.epoll.wait(0, &mut ready).unwrap_or_default();
        for event in &ready[..count] {
            let set = event.event_set();
            match event.data() {
                token if token < SLOTS => {
                    let hung_up = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
                    let before_end = set.intersects(EventSet::READ_HANG_UP | EventSet::PRIORITY);
                    events.push(HostEvent::Ready {
                        slot: u16::try_from(token).expect("below 2^16"),
                        readable: hung_up || set.intersects(EventSet::IN | EventSet::READ_HANG_UP),
                        writable: hung_up || set.contains(EventSet::OUT),
                        hung_up,
                        pieces: hung_up || before_end,
                    });
                }
                token if token >= TOKEN_CALLER => self.hear(token, events),
                token => self.unaccepted[usize::from(token != TOKEN_LISTENER)] = true,
            }
        }
        let mut more = count == BATCH;
        for (index, kind) in KINDS.into_iter().enumerate() {
            more |= self.unaccepted[index] && self.accept(kind, room, events);
        }
        more
    }

    fn connect(&mut self, kind: Kind, port: u32) -> io::Result<Box<dyn Peer>> {
        if self.is_full() {
            return Err(Errno::EMFILE.into());
        }
        let address = UnixAddr::new(&beside(self.sockets.path(), &format!("_{port}")))?;
        let fd = socket(AddressFamily::Unix, sock_type(kind), FLAGS, None)?;
        // One that has too many callers waiting refuses this one (EAGAIN); it is never waited for.
        connect(fd.as_raw_fd(), &address)?;
        Ok(Box::new(UnixPeer::new(fd, kind, Arc::clone(&self.epoll))))
    }

    fn reset(&mut self) {
        self.callers.clear();
        // What a driver did not hear of any more, the next one does.
        self.unaccepted = [true; 2];
        for (token, kind) in (TOKEN_LISTENER..).zip(KINDS) {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
            let _ = self.epoll.ctl(ControlOperation::Modify, self.sockets.listener(kind).as_raw_fd(), event);
        }
    }
}
