//! The host's side of the sockets, as the device sees it.

use std::io;
use std::os::fd::RawFd;

use super::packet::Kind;
use crate::mem::VolatileSlice;

/// Bytes of the longest record that goes either way; what is longer ends its connection.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// What happened on the host.
pub enum HostEvent {
    /// Something may be done with the peer that is watched under this number. A hint: it may have been another's before.
    Ready {
        /// The number.
        slot: u16,
        /// There may be something to receive, or the end of it.
        readable: bool,
        /// There may be room to send.
        writable: bool,
        /// It takes no more and sends no more.
        hung_up: bool,
        /// What there is to receive comes in pieces, one each time, however much room there is: bytes before the end, say.
        pieces: bool,
    },
    /// Somebody wants to talk to a port of the guest.
    Call {
        /// Who: not watched yet.
        peer: Box<dyn Peer>,
        /// How.
        kind: Kind,
        /// To which port.
        port: u32,
    },
}

/// What was received of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes; none at the end.
    pub bytes: usize,
    /// That was all there was: it can be told of what comes later, unless this comes in pieces.
    pub all: bool,
}

/// Where connections of the guest end and those to the guest begin. Called by the device's thread only; never waits.
pub trait HostSide: Send {
    /// What becomes readable when [`HostSide::poll`] has something to say; the same for as long as this lives.
    fn fd(&self) -> RawFd;

    /// Appends what happened, a bounded number of events; whether there may be more. Calls that are not complete count
    /// against `room`, the number of connections that there is place for: what is beyond is turned away.
    fn poll(&mut self, room: usize, events: &mut Vec<HostEvent>) -> bool;

    /// The guest wants to talk to `port` of the host: who listens there.
    ///
    /// # Errors
    /// What the host says; the guest is refused then.
    fn connect(&mut self, kind: Kind, port: u32) -> io::Result<Box<dyn Peer>>;

    /// The guest's driver is gone: whoever began to call it is turned away, and who calls later is not forgotten.
    fn reset(&mut self);
}

/// The host's end of one connection, non-blocking. Closed when dropped.
pub trait Peer: Send {
    /// From now on [`HostEvent::Ready`] names `slot` when something comes in or this hangs up; at once if that is so already.
    ///
    /// # Errors
    /// What the host says.
    fn watch(&mut self, slot: u16) -> io::Result<()>;

    /// Whether to be told of room as well; at once if there is some.
    ///
    /// # Errors
    /// What the host says.
    fn want_room(&mut self, wanted: bool) -> io::Result<()>;

    /// The guest has accepted the call: it talks to `host_port` of the host.
    ///
    /// # Errors
    /// What the host says.
    fn accepted(&mut self, host_port: u32) -> io::Result<()>;

    /// Sends bytes, maybe fewer than these; or a record, whole.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room; `BrokenPipe` and `ConnectionReset` if nobody will receive it.
    fn send(&mut self, data: &[VolatileSlice]) -> io::Result<usize>;

    /// Receives bytes.
    ///
    /// # Errors
    /// `WouldBlock` if there are none.
    fn recv(&mut self, into: &[VolatileSlice]) -> io::Result<Received>;

    /// Receives a record into `into`, which is empty; its bytes, 0 at the end. One of more than [`RECORD_BYTES_MAX`] is lost.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; `InvalidData` if it was too long.
    fn recv_record(&mut self, into: &mut Vec<u8>) -> io::Result<usize>;

    /// The guest sends no more (`send`), or receives no more.
    fn shut(&mut self, send: bool);
}
