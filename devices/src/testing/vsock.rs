//! The host's side of sockets, in memory.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zerocopy::IntoBytes;

use crate::mem::VolatileSlice;
use crate::virtio::queue::{copy_in, copy_out, total_len};
use crate::virtio::vsock::{Header, HostEvent, HostSide, Kind, Peer, RECORD_BYTES_MAX, Received};

/// A header as it lies in guest memory.
#[must_use]
pub fn bytes_of(header: &Header) -> Vec<u8> {
    header.as_bytes().to_vec()
}

/// The host's end of one connection, as the test sees it.
#[derive(Debug)]
pub struct End {
    /// What it carries.
    pub kind: Kind,
    /// The port of the host that the guest asked for, or that the device chose for a call that was accepted.
    pub port: Option<u32>,
    /// What the guest is to receive: each a record, or some bytes.
    pub incoming: VecDeque<Vec<u8>>,
    /// What the guest sent: each one send.
    pub received: Vec<Vec<u8>>,
    /// Bytes that may be sent before there is no room.
    pub room: usize,
    /// It sends no more after `incoming`.
    pub ended: bool,
    /// It receives no more.
    pub deaf: bool,
    /// What the next send and receive say.
    pub errors: VecDeque<io::ErrorKind>,
    /// The guest sends no more, as the device said.
    pub shut_send: bool,
    /// The guest receives no more, as the device said.
    pub shut_receive: bool,
    /// Times it was asked for bytes of a stream.
    pub receives: u32,
    /// The device has let go of it.
    pub closed: bool,
    slot: Option<u16>,
    wants_room: bool,
}

impl End {
    /// Everything that the guest sent.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.received.concat()
    }
}

/// What lies on the host; shared with the test.
#[derive(Debug, Default)]
pub struct World {
    /// Who listens.
    pub listeners: BTreeSet<(bool, u32)>,
    /// Connections, in the order in which they were made.
    pub ends: Vec<End>,
    /// Times the device forgot its callers.
    pub resets: u32,
    calls: VecDeque<(usize, u32)>,
    events: VecDeque<(usize, bool, bool, bool)>,
}

impl World {
    /// Has somebody listen on `port`.
    pub fn listen(&mut self, kind: Kind, port: u32) {
        self.listeners.insert((kind == Kind::SeqPacket, port));
    }

    fn add(&mut self, kind: Kind, port: Option<u32>) -> usize {
        self.ends.push(End {
            kind,
            port,
            incoming: VecDeque::new(),
            received: Vec::new(),
            room: usize::MAX,
            ended: false,
            deaf: false,
            errors: VecDeque::new(),
            shut_send: false,
            shut_receive: false,
            receives: 0,
            closed: false,
            slot: None,
            wants_room: false,
        });
        self.ends.len() - 1
    }

    /// Somebody calls `port` of the guest; the place of its end.
    pub fn call(&mut self, kind: Kind, port: u32) -> usize {
        let end = self.add(kind, None);
        self.calls.push_back((end, port));
        end
    }

    /// Whoever called and was not taken up yet gives up.
    pub fn give_up(&mut self) {
        for (end, _) in self.calls.drain(..) {
            self.ends[end].closed = true;
        }
    }

    /// The end at `index` sends.
    pub fn say(&mut self, index: usize, data: &[u8]) {
        self.ends[index].incoming.push_back(data.to_vec());
        self.events.push_back((index, true, false, false));
    }

    /// The end at `index` sends no more.
    pub fn finish(&mut self, index: usize) {
        self.ends[index].ended = true;
        self.events.push_back((index, true, false, false));
    }

    /// The end at `index` is closed.
    pub fn hang_up(&mut self, index: usize) {
        (self.ends[index].ended, self.ends[index].deaf) = (true, true);
        self.events.push_back((index, true, true, true));
    }

    /// The end at `index` takes `room` more bytes.
    pub fn make_room(&mut self, index: usize, room: usize) {
        self.ends[index].room = room;
        if self.ends[index].wants_room {
            self.events.push_back((index, false, true, false));
        }
    }
}

/// A host without a kernel. A clone is the same one.
#[derive(Debug, Clone, Default)]
pub struct FakeHost(Arc<Mutex<World>>);

impl FakeHost {
    /// A host where nobody listens.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What lies there.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer(&self, index: usize) -> Box<dyn Peer> {
        Box::new(FakePeer { host: self.clone(), index })
    }
}

impl HostSide for FakeHost {
    fn fd(&self) -> RawFd {
        -1
    }

    fn poll(&mut self, _room: usize, events: &mut Vec<HostEvent>) -> bool {
        let mut world = self.world();
        let calls = std::mem::take(&mut world.calls);
        for (index, readable, writable, hung_up) in std::mem::take(&mut world.events) {
            if let Some(slot) = world.ends[index].slot {
                let pieces = world.ends[index].ended;
                events.push(HostEvent::Ready { slot, readable, writable, hung_up, pieces });
            }
        }
        drop(world);
        for (index, port) in calls {
            let kind = self.world().ends[index].kind;
            events.push(HostEvent::Call { peer: self.peer(index), kind, port });
        }
        false
    }

    fn connect(&mut self, kind: Kind, port: u32) -> io::Result<Box<dyn Peer>> {
        let mut world = self.world();
        if !world.listeners.contains(&(kind == Kind::SeqPacket, port)) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let index = world.add(kind, Some(port));
        drop(world);
        Ok(self.peer(index))
    }

    fn reset(&mut self) {
        self.world().resets += 1;
    }
}

struct FakePeer {
    host: FakeHost,
    index: usize,
}

impl FakePeer {
    fn end<R>(&self, what: impl FnOnce(&mut End) -> R) -> R {
        what(&mut self.host.world().ends[self.index])
    }
}

impl Drop for FakePeer {
    fn drop(&mut self) {
        self.end(|end| (end.closed, end.slot) = (true, None));
    }
}

impl Peer for FakePeer {
    fn watch(&mut self, slot: u16) -> io::Result<()> {
        let mut world = self.host.world();
        let end = &mut world.ends[self.index];
        end.slot = Some(slot);
        let hung_up = end.ended && end.deaf;
        world.events.push_back((self.index, true, false, hung_up));
        Ok(())
    }

    fn want_room(&mut self, wanted: bool) -> io::Result<()> {
        let mut world = self.host.world();
        world.ends[self.index].wants_room = wanted;
        if wanted && world.ends[self.index].room > 0 {
            world.events.push_back((self.index, false, true, false));
        }
        Ok(())
    }

    fn accepted(&mut self, host_port: u32) -> io::Result<()> {
        self.end(|end| end.port = Some(host_port));
        Ok(())
    }

    fn send(&mut self, data: &[VolatileSlice]) -> io::Result<usize> {
        self.end(|end| {
            if let Some(kind) = end.errors.pop_front() {
                return Err(kind.into());
            }
            if end.deaf {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let len = total_len(data);
            assert!(len > 0, "nothing is never sent: it would look like the end");
            let taken = if end.kind == Kind::SeqPacket && len > end.room { 0 } else { len.min(end.room) };
            if taken == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let mut bytes = vec![0; taken];
            copy_out(data, &mut bytes);
            end.room -= if end.room == usize::MAX { 0 } else { taken };
            end.received.push(bytes);
            Ok(taken)
        })
    }

    fn recv(&mut self, into: &[VolatileSlice]) -> io::Result<Received> {
        self.end(|end| {
            end.receives += 1;
            if let Some(kind) = end.errors.pop_front() {
                return Err(kind.into());
            }
            assert!(total_len(into) > 0, "no room is no way to receive");
            let ended = end.ended;
            let Some(mut bytes) = end.incoming.pop_front() else {
                let end = Received { bytes: 0, all: false };
                return if ended { Ok(end) } else { Err(io::ErrorKind::WouldBlock.into()) };
            };
            let n = copy_in(into, 0, &bytes);
            if n < bytes.len() {
                end.incoming.push_front(bytes.split_off(n));
            }
            // As of a socket: what fills the room may not be all.
            Ok(Received { bytes: n, all: n < total_len(into) && end.incoming.is_empty() })
        })
    }

    fn recv_record(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        self.end(|end| {
            if let Some(kind) = end.errors.pop_front() {
                return Err(kind.into());
            }
            assert!(into.is_empty());
            let Some(record) = end.incoming.pop_front() else {
                return if end.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
            };
            if record.len() > RECORD_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            into.extend_from_slice(&record);
            Ok(record.len())
        })
    }

    fn shut(&mut self, send: bool) {
        self.end(|end| if send { end.shut_send = true } else { end.shut_receive = true });
    }
}
