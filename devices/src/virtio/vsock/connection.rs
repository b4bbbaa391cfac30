//! One connection: where it is, and what becomes of what the guest sends. What the guest is sent is `outgoing`'s.
//!
//! ```text
//!   host calls ──> Asked ── OP_REQUEST sent ──> Requested ── OP_RESPONSE ──> Open
//!   guest's OP_REQUEST ──> host listens ── OP_RESPONSE owed ────────────────> Open
//!   Open ── either side resets, or the guest shuts both ways ──> gone, or Draining while the peer has yet to take bytes
//! ```
//! Half-closed is `Open` with some of the four ways shut: what the guest shut, and what the host shut and the guest was told.

use std::io::{self, ErrorKind};

use super::backlog::Backlog;
use super::credit::{Inbound, Outbound};
use super::host::Peer;
use super::metrics::VsockMetrics;
use super::packet::{Key, Kind, Op, Packet, SEQ_EOM, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND};
use crate::mem::VolatileSlice;
use crate::virtio::queue::advance;

/// Where a connection is; see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The host called; the guest does not know yet.
    Asked,
    /// The guest was asked.
    Requested,
    /// Both agree.
    Open,
    /// The guest is done with it; the peer has yet to take what the guest sent.
    Draining,
}

/// Why a connection can't go on; the guest gets OP_RST.
#[derive(Debug, thiserror::Error)]
pub enum Reset {
    /// The guest sent what does not fit its state.
    #[error("{0}")]
    Guest(&'static str),
    /// The host failed.
    #[error("the host failed: {0}")]
    Host(#[from] io::Error),
}

/// What is left of a connection after a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It goes on.
    Open,
    /// The guest ended it and waits for OP_RST.
    Ended,
}

/// See the [module](self).
pub struct Connection {
    /// Its ports.
    pub key: Key,
    /// What it carries.
    pub kind: Kind,
    /// Where it is.
    pub state: State,
    /// When it is reset, in [`crate::clock::monotonic_ns`], unless the guest does its part.
    pub deadline: Option<u64>,
    /// Whether it got one of the wide windows.
    pub wide: bool,
    pub(super) peer: Box<dyn Peer>,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) backlog: Backlog,
    /// A record of the host's, and how much of it the guest has.
    pub(super) record: Vec<u8>,
    pub(super) record_sent: usize,
    /// SHUT_ bits that the guest sent.
    pub(super) guest_shut: u32,
    /// SHUT_ bits that are true of the host's side, and those that the guest was told.
    pub(super) host_shut: u32,
    pub(super) host_told: u32,
    /// The peer may have something.
    pub(super) readable: bool,
    /// Only a receive that finds nothing shows that it has not: what it has comes in pieces.
    pub in_pieces: bool,
    pub(super) owes_response: bool,
    pub(super) owes_credit: bool,
    pub(super) asked_for_credit: bool,
}

impl Connection {
    /// A connection of ports `key` to `peer`, with `alloc` bytes set aside for it.
    pub fn new(key: Key, kind: Kind, state: State, peer: Box<dyn Peer>, alloc: u32, wide: bool) -> Self {
        Self {
            key,
            kind,
            state,
            deadline: None,
            wide,
            peer,
            inbound: Inbound::new(alloc),
            outbound: Outbound::default(),
            backlog: Backlog::default(),
            record: Vec::new(),
            record_sent: 0,
            guest_shut: 0,
            host_shut: 0,
            host_told: 0,
            readable: false,
            in_pieces: false,
            owes_response: state == State::Open,
            owes_credit: false,
            asked_for_credit: false,
        }
    }

    /// Has the host tell of its peer under `slot`.
    ///
    /// # Errors
    /// What the host says.
    pub fn watch(&mut self, slot: u16) -> io::Result<()> {
        self.peer.watch(slot)
    }

    /// `buf_alloc` and `fwd_cnt` of a packet that goes to the guest now.
    pub fn announce(&mut self) -> (u32, u32) {
        self.owes_credit = false;
        self.inbound.announce()
    }

    /// Whether the guest has heard of it.
    pub fn is_known(&self) -> bool {
        self.state != State::Asked && self.state != State::Draining
    }

    /// What `packet` says of the guest's room.
    pub fn learn(&mut self, packet: &Packet) {
        self.outbound.learn(packet.buf_alloc, packet.fwd_cnt);
        if self.outbound.free() > 0 {
            self.asked_for_credit = false;
        }
    }

    /// Takes a packet of the guest's, of this connection's kind.
    ///
    /// # Errors
    /// [`Reset`]: the connection is over.
    pub fn take(
        &mut self,
        packet: &Packet,
        payload: &[VolatileSlice],
        metrics: &VsockMetrics,
    ) -> Result<After, Reset> {
        self.learn(packet);
        match (packet.op, self.state) {
            (Op::Response, State::Requested) => {
                self.state = State::Open;
                self.deadline = None;
                self.peer.accepted(self.key.host_port)?;
                // What the peer has sent since its call.
                self.readable = true;
            }
            (Op::Rst, _) => return Ok(After::Ended),
            (Op::Rw, State::Open) => self.forward(packet, payload, metrics)?,
            (Op::Shutdown, State::Open) => return self.guest_shuts(packet.flags),
            (Op::CreditUpdate, State::Open) => {}
            (Op::CreditRequest, State::Open) => self.owes_credit = true,
            (Op::Request, _) => return Err(Reset::Guest("a request for a connection that exists")),
            (Op::Response, _) => return Err(Reset::Guest("a response that nobody waits for")),
            (_, _) => return Err(Reset::Guest("something before the connection is made")),
        }
        Ok(After::Open)
    }

    /// Payload, on its way to the peer or into the backlog.
    fn forward(
        &mut self,
        packet: &Packet,
        payload: &[VolatileSlice],
        metrics: &VsockMetrics,
    ) -> Result<(), Reset> {
        if self.guest_shut & SHUT_SEND != 0 {
            return Err(Reset::Guest("payload after the guest said that it sends no more"));
        }
        if !self.inbound.take(packet.len) {
            return Err(Reset::Guest("more payload than there was credit for"));
        }
        if self.host_shut & SHUT_RECEIVE != 0 {
            self.inbound.forward(packet.len);
            return Ok(());
        }
        let len = packet.len as usize;
        let is_record = self.kind == Kind::SeqPacket;
        let ends_record = is_record && packet.flags & SEQ_EOM != 0;
        let was_flushed = self.backlog.is_flushed(self.kind);
        let mut sent = 0;
        if len > 0 && self.backlog.is_empty() && (ends_record || !is_record) {
            match self.peer.send(payload) {
                // A record goes whole.
                Ok(n) => sent = if is_record { len } else { n.min(len) },
                Err(error) => self.send_failed(error, metrics)?,
            }
            self.forwarded(sent);
        }
        if self.host_shut & SHUT_RECEIVE == 0 {
            if sent < len {
                let mut rest = payload.to_vec();
                self.backlog.push(advance(&mut rest, sent));
            }
            if ends_record && sent == 0 {
                self.backlog.end_record();
            }
            if was_flushed && !self.backlog.is_flushed(self.kind) {
                // Told at once if there is room: for a record that came in parts there mostly is.
                self.peer.want_room(true)?;
            }
        }
        self.forget_if_deaf();
        Ok(())
    }

    /// What a peer that takes no more would have got is as good as passed on.
    fn forget_if_deaf(&mut self) {
        if self.host_shut & SHUT_RECEIVE != 0 {
            self.backlog.clear();
            self.inbound.forward(self.inbound.held());
        }
    }

    fn forwarded(&mut self, bytes: usize) {
        self.inbound.forward(u32::try_from(bytes).expect("no more than was announced"));
        if self.inbound.update_is_due() {
            self.owes_credit = true;
        }
    }

    /// A peer that takes no more makes a half-closed connection, one without room a backlog.
    fn send_failed(&mut self, error: io::Error, metrics: &VsockMetrics) -> Result<(), Reset> {
        match error.kind() {
            ErrorKind::WouldBlock => Ok(()),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                self.host_shut |= SHUT_RECEIVE;
                Ok(())
            }
            _ => {
                metrics.tx_write_failures.inc();
                Err(error.into())
            }
        }
    }

    fn guest_shuts(&mut self, flags: u32) -> Result<After, Reset> {
        let before = self.guest_shut;
        self.guest_shut |= flags & SHUT_BOTH;
        if self.guest_shut == SHUT_BOTH {
            return Ok(After::Ended);
        }
        let added = self.guest_shut & !before;
        if added & SHUT_RECEIVE != 0 {
            self.peer.shut(false);
            self.readable = false;
            self.record = Vec::new();
        }
        if added & SHUT_SEND != 0 && self.backlog.is_flushed(self.kind) {
            self.peer.shut(true);
        }
        Ok(After::Open)
    }

    /// The guest is done with it. Whether there is nothing left to do: else it is [`State::Draining`].
    pub fn end(&mut self) -> bool {
        self.record = Vec::new();
        self.deadline = None;
        self.state = State::Draining;
        let finished = self.backlog.is_flushed(self.kind);
        if !finished {
            self.peer.shut(false);
        }
        finished
    }

    /// The host says so. Whether a draining connection has nothing left to do.
    ///
    /// # Errors
    /// [`Reset`]: the connection is over.
    pub fn ready(
        &mut self,
        readable: bool,
        writable: bool,
        hung_up: bool,
        metrics: &VsockMetrics,
    ) -> Result<bool, Reset> {
        // The end of what it sent is found behind the last of it.
        self.readable |= readable || hung_up;
        if writable && !self.backlog.is_flushed(self.kind) {
            let (sent, result) = self.backlog.flush(self.kind, &mut *self.peer);
            self.forwarded(sent);
            if let Err(error) = result {
                if error.kind() != ErrorKind::WouldBlock {
                    metrics.tx_flush_failures.inc();
                }
                self.send_failed(error, metrics)?;
            }
            self.forget_if_deaf();
            if self.backlog.is_flushed(self.kind) {
                self.peer.want_room(false)?;
                if self.guest_shut & SHUT_SEND != 0 {
                    self.peer.shut(true);
                }
            }
        }
        if hung_up {
            if matches!(self.state, State::Asked | State::Requested) {
                return Err(Reset::Host(ErrorKind::BrokenPipe.into()));
            }
            self.host_shut |= SHUT_RECEIVE;
        }
        self.forget_if_deaf();
        Ok(self.state == State::Draining && self.backlog.is_flushed(self.kind))
    }
}
