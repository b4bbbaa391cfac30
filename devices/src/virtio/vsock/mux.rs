//! Everything between the queues and the host's side: packets of all connections, in and out, each in its turn.
//!
//! What is owed to the guest waits in two lines: answers to packets that belong to no connection, and connections that have
//! something to say, which take turns packet by packet. The first line is bounded by not taking the guest's packets while it
//! is long ([`Mux::is_choked`]), as virtio 1.2 §5.10.6.1 lets a device do; the second by the number of connections.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use log::Level;

use super::connection::{After, Connection, Reset, State};
use super::host::{HostEvent, HostSide};
use super::packet::{Header, Kind, Op, Packet, Refusal};
use super::table::{CONNECTIONS_MAX, Table, WINDOW_BYTES};
use super::{Shared, VsockMetrics, VsockOptions};
use crate::clock::monotonic_ns;
use crate::log_limit::LogLimit;
use crate::mem::VolatileSlice;

/// Answers that wait for the guest's buffers before its packets do: as many as a queue has entries.
const REPLIES_MAX: usize = 256;

/// See the [module](self). What is the device's for good lies here too: it survives resets.
pub struct Mux {
    host: Box<dyn HostSide>,
    guest_cid: u64,
    /// In nanoseconds.
    answer_timeout: u64,
    seqpacket: bool,
    table: Table,
    replies: VecDeque<Header>,
    /// Slots of those in the second line, each once.
    ready: VecDeque<u16>,
    /// Whether a slot is in `ready`, by slot: whoever has it then.
    in_line: Vec<bool>,
    events: Vec<HostEvent>,
    /// No deadline comes before this.
    next_deadline: Option<u64>,
    shared: Arc<Shared>,
    log: LogLimit,
}

impl Mux {
    pub fn new(host: Box<dyn HostSide>, options: &VsockOptions, shared: Arc<Shared>) -> Self {
        Self {
            host,
            guest_cid: options.guest_cid.into(),
            answer_timeout: u64::try_from(options.answer_timeout.as_nanos()).unwrap_or(u64::MAX),
            seqpacket: false,
            table: Table::default(),
            replies: VecDeque::new(),
            ready: VecDeque::new(),
            in_line: Vec::new(),
            events: Vec::new(),
            next_deadline: None,
            shared,
            log: LogLimit::default(),
        }
    }

    pub fn metrics(&self) -> &VsockMetrics {
        &self.shared.metrics
    }

    pub fn fd(&self) -> std::os::fd::RawFd {
        self.host.fd()
    }

    /// A driver begins, which knows records or not.
    pub fn start(&mut self, seqpacket: bool) {
        self.seqpacket = seqpacket;
    }

    /// The driver is gone: so are all connections, and what was owed to it.
    pub fn clear(&mut self) {
        let gone = self.table.clear();
        self.metrics().removed.add(gone as u64);
        self.metrics().killed.add(gone as u64);
        self.replies = VecDeque::new();
        self.ready = VecDeque::new();
        self.in_line = Vec::new();
        self.next_deadline = None;
        self.host.reset();
    }

    /// Logs within the bound of this device.
    pub fn log(&mut self, level: log::Level, what: std::fmt::Arguments) {
        if log::log_enabled!(level)
            && let Some(muted) = self.log.admit()
        {
            log::log!(level, "vsock: {what} ({muted} lines left out before)");
        }
    }

    /// Whether something waits for the guest to have a buffer.
    pub fn has_packets(&self) -> bool {
        !(self.replies.is_empty() && self.ready.is_empty())
    }

    /// Whether the guest has to take answers before its packets are looked at.
    pub fn is_choked(&self) -> bool {
        self.replies.len() >= REPLIES_MAX
    }

    /// Takes a packet of the guest's; `payload` is what follows the header, all of it.
    pub fn take(&mut self, header: &Header, payload: &[VolatileSlice], there: u32) {
        let packet = match header.parse(self.guest_cid, self.seqpacket, there) {
            Ok(packet) => packet,
            Err(refusal) => {
                // A connection of whom this claims to be is not believed to be broken: maybe it is not its packet.
                self.refuse(header, refusal);
                return;
            }
        };
        self.metrics().tx_packets.inc();
        self.metrics().tx_bytes.add(packet.len.into());
        match self.table.find(packet.key) {
            Some(slot) => self.take_for(slot, header, &packet, payload),
            None if packet.op == Op::Request => self.connect(header, &packet),
            None if packet.op == Op::Rst => {}
            None => self.refuse(header, Refusal::State("there is no such connection")),
        }
    }

    /// Counts what was turned down, and answers it if that helps anybody.
    pub fn refuse(&mut self, header: &Header, refusal: Refusal) {
        self.metrics().tx_refused.inc();
        self.log(Level::Debug, format_args!("{refusal}"));
        if refusal.is_answered()
            && let Some(reset) = header.reset()
        {
            self.replies.push_back(reset);
        }
    }

    /// A packet of a connection that there is.
    fn take_for(&mut self, slot: u16, header: &Header, packet: &Packet, payload: &[VolatileSlice]) {
        let Some(connection) = self.table.get(slot) else { return };
        let result = if connection.kind == packet.kind {
            connection.take(packet, payload, &self.shared.metrics)
        } else {
            Err(Reset::Guest("its connection is of the other type"))
        };
        match result {
            Ok(After::Open) => self.line_up(slot),
            Ok(After::Ended) => {
                self.metrics().removed.inc();
                // None to OP_RST.
                self.replies.extend(header.reset());
                self.table.forget(slot);
                if self.table.get(slot).is_none_or(Connection::end) {
                    self.table.remove(slot);
                }
            }
            Err(reset) => {
                self.table.remove(slot);
                self.metrics().removed.inc();
                self.metrics().killed.inc();
                match reset {
                    Reset::Guest(why) => self.refuse(header, Refusal::State(why)),
                    Reset::Host(error) => {
                        self.log(Level::Debug, format_args!("a connection was reset: {error}"));
                        self.replies.extend(header.reset());
                    }
                }
            }
        }
    }

    /// The guest wants to talk to the host.
    fn connect(&mut self, header: &Header, packet: &Packet) {
        let made = match self.table.room() {
            0 => Err(std::io::Error::other("there are too many connections")),
            _ => self.host.connect(packet.kind, packet.key.host_port),
        };
        let made = made.and_then(|peer| {
            let (window, wide) = self.window(packet.kind);
            let connection = Connection::new(packet.key, packet.kind, State::Open, peer, window, wide);
            self.open(connection, Some(packet))
        });
        if let Err(error) = made {
            let port = packet.key.host_port;
            self.log(Level::Debug, format_args!("the guest was refused port {port}: {error}"));
            self.metrics().turned_away.inc();
            self.replies.extend(header.reset());
        }
    }

    fn window(&self, kind: Kind) -> (u32, bool) {
        match kind {
            Kind::Stream => self.table.window(),
            // Records take memory beside their bytes.
            Kind::SeqPacket => (WINDOW_BYTES, false),
        }
    }

    fn open(&mut self, mut connection: Connection, from: Option<&Packet>) -> std::io::Result<()> {
        if let Some(packet) = from {
            connection.learn(packet);
        }
        let Some(slot) = self.table.insert(connection) else {
            return Err(std::io::Error::other("there are too many connections"));
        };
        if let Some(connection) = self.table.get(slot)
            && let Err(error) = connection.watch(slot)
        {
            self.table.remove(slot);
            return Err(error);
        }
        self.metrics().added.inc();
        self.line_up(slot);
        Ok(())
    }

    /// Has the connection in `slot` say what it has to say.
    fn line_up(&mut self, slot: u16) {
        let index = usize::from(slot);
        if self.in_line.len() <= index {
            self.in_line.resize(index + 1, false);
        }
        if !std::mem::replace(&mut self.in_line[index], true) {
            self.ready.push_back(slot);
            debug_assert!(self.ready.len() <= CONNECTIONS_MAX, "each slot stands in line once");
        }
    }

    /// Takes up what happened on the host; whether there may be more.
    pub fn host_events(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.events);
        let more = self.host.poll(self.table.room(), &mut events);
        for event in events.drain(..) {
            match event {
                HostEvent::Ready { slot, readable, writable, hung_up, pieces } => {
                    let Some(connection) = self.table.get(slot) else { continue };
                    connection.in_pieces |= pieces;
                    match connection.ready(readable, writable, hung_up, &self.shared.metrics) {
                        Ok(true) => {
                            self.table.remove(slot);
                        }
                        Ok(false) => self.line_up(slot),
                        Err(reset) => self.kill(slot, &reset),
                    }
                }
                HostEvent::Call { peer, kind, port } => {
                    let (window, wide) = self.window(kind);
                    let key = self.table.caller_key(port);
                    let state = State::Asked;
                    let known = kind == Kind::Stream || self.seqpacket;
                    let connection = Connection::new(key, kind, state, peer, window, wide);
                    if !known || self.open(connection, None).is_err() {
                        self.metrics().turned_away.inc();
                    }
                }
            }
        }
        self.events = events;
        more
    }

    /// Ends a connection for which no packet came; the guest is told if it knows of it.
    fn kill(&mut self, slot: u16, reset: &Reset) {
        let Some(connection) = self.table.remove(slot) else { return };
        let port = connection.key.guest_port;
        self.log(Level::Debug, format_args!("a connection of the guest's port {port} was reset: {reset}"));
        if connection.is_known() {
            let reset = Header::to_guest(self.guest_cid, connection.key, connection.kind, Op::Rst);
            self.replies.push_back(reset);
        }
        if connection.state != State::Draining {
            self.metrics().removed.inc();
            self.metrics().killed.inc();
        }
    }

    /// Resets what the guest has not answered or ended in time; how long until the next time.
    pub fn expire(&mut self) -> Option<Duration> {
        let due = self.next_deadline?;
        let now = monotonic_ns();
        if now >= due {
            let (expired, next) = self.table.expired(now);
            self.next_deadline = next;
            for slot in expired {
                self.kill(slot, &Reset::Guest("the guest did not answer in time"));
            }
        }
        self.next_deadline.map(|next| Duration::from_nanos(next.saturating_sub(now)))
    }

    /// The next packet for the guest, whose payload, if any, is put at the start of `into`; within its `first` bytes unless
    /// it may be cut into several packets. `may_receive` is asked, if there is somebody to ask, before bytes are taken from a
    /// peer; whoever may not keeps its place in the line.
    pub fn next<'m>(
        &mut self,
        into: &[VolatileSlice<'m>],
        first: usize,
        scratch: &mut Vec<VolatileSlice<'m>>,
        mut may_receive: Option<&mut dyn FnMut() -> bool>,
    ) -> Option<Header> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        // Each connection at most once: one that has nothing to say leaves the line.
        for _ in 0..self.ready.len() {
            let slot = self.ready.pop_front()?;
            self.in_line[usize::from(slot)] = false;
            let Some(connection) = self.table.get(slot) else { continue };
            let mut held = false;
            let mut receives = || {
                held = may_receive.as_mut().is_some_and(|may_receive| !may_receive());
                !held
            };
            match connection.next(into, first, scratch, &mut receives) {
                Ok(None) if held => self.line_up(slot),
                Ok(None) => {}
                Ok(Some(next)) => {
                    let (buf_alloc, fwd_cnt) = connection.announce();
                    let mut header =
                        Header::to_guest(self.guest_cid, connection.key, connection.kind, next.op);
                    header.flags = next.flags.into();
                    header.len = u32::try_from(next.len).expect("a payload fits into guest buffers").into();
                    header.buf_alloc = buf_alloc.into();
                    header.fwd_cnt = fwd_cnt.into();
                    if next.expects {
                        let at = monotonic_ns().saturating_add(self.answer_timeout);
                        connection.deadline = Some(at);
                        self.next_deadline = Some(self.next_deadline.map_or(at, |other| other.min(at)));
                    }
                    self.line_up(slot);
                    return Some(header);
                }
                Err(reset) => {
                    if matches!(reset, Reset::Host(_)) {
                        self.metrics().rx_read_failures.inc();
                    }
                    self.kill(slot, &reset);
                    if let Some(reply) = self.replies.pop_front() {
                        return Some(reply);
                    }
                }
            }
        }
        None
    }
}

const _: () = assert!(CONNECTIONS_MAX <= u16::MAX as usize, "a slot is a u16");
