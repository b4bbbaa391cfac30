//! One queue of a disk in use: its ring, its share of the backing, its counters. Owned by the thread that serves it.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::backend::{Direction, Erasure, transfer};
use super::backing::Joined;
use super::flight::Flights;
use super::limits::Gate;
use super::outcome::Outcome;
use super::request::{HEADER_BYTES, Reply, Request, Status, parse};
use super::{BlockMetrics, Op, Shared, erase};
use crate::clock::monotonic_ns;
use crate::irq::Interrupt;
use crate::mem::{Ram, VolatileSlice};
use crate::virtio::queue::{Burst, Chain, Next, Ring, RingError, copy_in, resolve};
use crate::virtio::{Part, Served};

/// Requests served before the thread looks at its other sources.
const REQUESTS_PER_BATCH: u32 = 64;
/// Bytes moved before the driver is told within a batch: small requests share an interrupt, large ones don't wait for others.
const BYTES_PER_INTERRUPT: u64 = 256 * 1024;
/// Slices a batch starts with room for; chains of more are rare.
const SLICES_AT_FIRST: usize = 64;

/// What one driver granted, for all queues.
pub(super) struct Session {
    pub ram: Ram,
    pub features: u64,
    pub interrupt: Arc<dyn Interrupt>,
    /// The driver broke one of the queues: none is served any more.
    pub broken: AtomicBool,
}

pub(super) struct Lane {
    pub(super) index: u16,
    pub(super) shared: Arc<Shared>,
    pub(super) session: Arc<Session>,
    pub(super) ring: Ring,
    pub(super) chain: Chain,
    pub(super) burst: Burst,
    /// `None` until the queue is served for the first time.
    pub(super) backing: Option<Joined>,
    /// Whether writes were flushed one by one when it was last looked.
    pub(super) write_through: bool,
    /// What does several requests at a time, if the backing has such a thing and a request came.
    pub(super) flights: Option<Flights>,
    /// The backing was not yet asked for it.
    pub(super) engine_unknown: bool,
    pub(super) new_source: Option<RawFd>,
    /// There may be chains that no kick will tell of: everything was in flight when it was last looked.
    pub(super) stalled: bool,
    /// Bytes moved since the driver was told.
    pub(super) unreported: u64,
    /// The request that was carried out last was a flush.
    flushed: bool,
    /// When the request that is being looked at was taken off the queue, as [`monotonic_ns`] says. The clock is read at the first
    /// of a batch and after each that was carried out here: until then those that an engine gets do not begin either.
    pub(super) popped_ns: u64,
    gate: Gate,
    /// Somebody looks whether there is more: no kick is needed.
    polled: bool,
}

impl Lane {
    pub(super) fn new(index: u16, shared: Arc<Shared>, session: Arc<Session>, ring: Ring) -> Self {
        let chain = Chain::with_room_for(ring.size());
        let write_through = shared.writes_through(session.features);
        let gate = shared.limits.gate();
        Self {
            index,
            shared,
            session,
            ring,
            chain,
            burst: Burst::default(),
            backing: None,
            write_through,
            flights: None,
            engine_unknown: true,
            new_source: None,
            stalled: false,
            unreported: 0,
            flushed: false,
            popped_ns: 0,
            gate,
            polled: false,
        }
    }

    pub(super) fn metrics(&self) -> &BlockMetrics {
        &self.shared.metrics[usize::from(self.index)]
    }

    /// The backing that requests from now on go to.
    fn catch_up(&mut self) -> Result<(), RingError> {
        if self.backing.as_ref().is_some_and(|backing| !self.shared.backings.is_behind(backing.generation)) {
            return Ok(());
        }
        let swapped = self.backing.is_some();
        // What is in flight is the old one's.
        self.finish_flights()?;
        self.flights = None;
        self.engine_unknown = true;
        let mut joined = self.shared.backings.catch_up(self.index.into());
        if let Err(error) = std::mem::replace(&mut joined.flushed, Ok(())) {
            self.metrics().flush_failures.inc();
            self.host_failed("flush of the replaced backing", 0, &error);
        }
        self.backing = Some(joined);
        if swapped {
            self.metrics().swaps.inc();
        }
        Ok(())
    }

    pub(super) fn backing(&mut self) -> &mut Joined {
        self.backing.as_mut().expect("a batch begins by catching up")
    }

    /// One batch.
    fn batch(&mut self) -> Result<Served, RingError> {
        let ram = Ram::clone(&self.session.ram);
        let mut slices = Vec::with_capacity(SLICES_AT_FIRST);
        self.stalled = false;
        self.catch_up()?;
        self.look_at_cache_mode();
        self.ring.suppress_kicks(&ram)?;
        self.popped_ns = monotonic_ns();
        self.burst.begin(self.popped_ns);
        for _ in 0..REQUESTS_PER_BATCH {
            if self.flights.as_ref().is_some_and(Flights::is_full) {
                if self.begun_early()? && !self.flights.as_ref().is_some_and(Flights::is_full) {
                    continue;
                }
                self.stalled = true;
                return Ok(Served::Drained);
            }
            if !self.ring.pop(&ram, &mut self.chain)? {
                // What the host has in its cache is finished by this, and what the driver adds meanwhile needs no kick.
                if self.begun_early()? {
                    continue;
                }
                // While something is in flight the next answer tells of the others. Who flushes waits for that.
                if !self.flushed && self.flights.as_ref().is_none_or(Flights::is_empty) {
                    match self.burst.next(|| self.ring.has_more(&ram)) {
                        Next::Found => {
                            self.popped_ns = monotonic_ns();
                            continue;
                        }
                        Next::Late => return Ok(Served::More),
                        Next::Ended => {}
                    }
                }
                if !self.polled && self.ring.rearm(&ram)? {
                    self.ring.suppress_kicks(&ram)?;
                    continue;
                }
                if !self.burst.has_begun() {
                    self.metrics().empty_queue_events.inc();
                }
                return Ok(Served::Drained);
            }
            // After the pop: whoever was told of a new backing before making this request gets it.
            self.catch_up()?;
            if let Some(served) = self.throttle() {
                return Ok(served);
            }
            self.burst.took();
            self.one(&ram, &mut slices)?;
        }
        self.burst.goes_on();
        Ok(Served::More)
    }

    /// A driver that switched to write-through asks for no flush any more: what it wrote before is flushed now.
    fn look_at_cache_mode(&mut self) {
        let now = self.shared.writes_through(self.session.features);
        let before = std::mem::replace(&mut self.write_through, now);
        if now
            && !before
            && let Err(error) = self.flush()
        {
            self.metrics().flush_failures.inc();
            self.host_failed("flush", 0, &error);
        }
    }

    /// Puts the popped chain back if a rate limit holds it.
    fn throttle(&mut self) -> Option<Served> {
        if !self.gate.is_on() {
            return None;
        }
        // What is left of the chain beside header and status is data, one way or the other.
        let out = u64::from(self.chain.readable_bytes()).saturating_sub(HEADER_BYTES as u64);
        let bytes = out.max(u64::from(self.chain.writable_bytes()).saturating_sub(1));
        let wait = self.gate.consume(bytes).err()?;
        self.ring.undo_pop();
        self.metrics().throttled.inc();
        Some(Served::After(wait))
    }

    /// Serves the popped chain, or has the engine do it.
    fn one<'m>(&mut self, ram: &'m Ram, slices: &mut Vec<VolatileSlice<'m>>) -> Result<(), RingError> {
        slices.clear();
        resolve(ram, self.chain.readable(), slices)?;
        let readable = slices.len();
        resolve(ram, self.chain.writable(), slices)?;
        let (readable, writable) = slices.split_at_mut(readable);
        let Some(reply) = Reply::owed(&self.chain) else {
            return Err(RingError::NoAnswer { head: self.chain.head() });
        };
        let sectors = self.backing().sectors;
        let rules = self.shared.rules(self.session.features, sectors);
        match parse(readable, writable, &rules) {
            Ok(request) => {
                let Err((request, reply)) = self.take_off(request, reply, ram) else { return Ok(()) };
                let (outcome, moved) = self.execute(request);
                self.answer(reply, outcome, moved)
            }
            Err(refusal) => {
                let status = self.refuse(&refusal);
                self.answer(reply, Err(status), 0)
            }
        }
    }

    /// Gives the driver its answer.
    pub(super) fn answer(&mut self, reply: Reply, outcome: Outcome, moved: u64) -> Result<(), RingError> {
        let (status, data_bytes) = match outcome {
            Ok(data_bytes) => (Status::Ok, data_bytes),
            Err(status) => (status, 0),
        };
        reply.finish(&mut self.ring, &self.session.ram, status, data_bytes)?;
        self.unreported += moved;
        if self.unreported >= BYTES_PER_INTERRUPT {
            self.tell()?;
        }
        Ok(())
    }

    /// Carries out `request`; the outcome and the bytes moved.
    fn execute(&mut self, request: Request) -> (Outcome, u64) {
        let (op, outcome, moved) = match request {
            Request::In { offset, data, len } => {
                let result = transfer(&mut *self.backing().backend, Direction::In, offset, data);
                (Op::Read, self.was_read(offset, len, result), u64::from(len))
            }
            Request::Out { offset, data, len } => {
                let result = transfer(&mut *self.backing().backend, Direction::Out, offset, data);
                (Op::Write, self.was_written(offset, len, result), u64::from(len))
            }
            Request::Erase { ranges } => (Op::Erase, self.erase(&ranges), 0),
            Request::Flush => {
                let result = self.flush();
                (Op::Flush, self.was_flushed(result), 0)
            }
            Request::GetId { into } => {
                let n = copy_in(into, 0, &self.shared.id);
                return (Ok(u32::try_from(n).expect("an identity is 20 bytes")), 0);
            }
        };
        self.flushed = op == Op::Flush;
        let now = monotonic_ns();
        self.took(op, &outcome, self.popped_ns, now);
        // The next one is taken off the queue right after.
        self.popped_ns = now;
        (outcome, moved)
    }

    /// Counts the time of a request, if it was carried out.
    pub(super) fn took(&self, op: Op, outcome: &Outcome, popped_ns: u64, now_ns: u64) {
        if outcome.is_ok() {
            self.metrics().time(op).record(now_ns.saturating_sub(popped_ns));
        }
    }

    /// Puts on stable storage what this queue or another has completed, whichever backing it went to.
    fn flush(&mut self) -> io::Result<()> {
        self.flush_older()?;
        self.backing().backend.flush()
    }

    pub(super) fn flush_older(&mut self) -> io::Result<()> {
        let generation = self.backing().generation;
        self.shared.backings.flush_older(generation)
    }

    /// Erases `ranges` in turn, up to the first that fails.
    fn erase(&mut self, ranges: &[erase::Range]) -> Outcome {
        let write_through = self.shared.writes_through(self.session.features);
        for &erase::Range { offset, len, how } in ranges {
            let backend = &mut self.backing().backend;
            let mut result = backend.erase(offset, len, how);
            if result.is_ok() && how != Erasure::Discard && write_through {
                result = backend.flush().and(result);
            }
            match result {
                Ok(written) => self.gate.charge_bytes(written),
                Err(error) => {
                    self.metrics().erase_failures.inc();
                    return Err(self.host_failed("erasing", offset, &error));
                }
            }
            self.metrics().erase_bytes.add(len);
        }
        self.metrics().erase_count.inc();
        Ok(0)
    }

    /// Raises the interrupt if the driver wants it.
    fn tell(&mut self) -> Result<(), RingError> {
        self.unreported = 0;
        self.burst.told();
        if self.ring.wants_interrupt(&self.session.ram)? {
            self.session.interrupt.queue(self.index);
            self.metrics().interrupts.inc();
        }
        Ok(())
    }
}

impl Lane {
    /// A batch if there is reason for one, then what the engine has to say.
    fn turn(&mut self, batch: bool) -> Result<Served, RingError> {
        let served = if batch { self.batch() } else { Ok(Served::Drained) };
        // Also before a driver that broke the rules is given up: what it asked for before is carried out.
        let polled = if !batch || self.flights.as_ref().is_some_and(|flights| flights.pushed) {
            self.poll()
        } else {
            Ok(Served::Drained)
        };
        Ok(match (served?, polled?) {
            (Served::Drained, polled) => polled,
            // A rate limit holds the queue; what was admitted before does not wait for it.
            (Served::After(limit), Served::After(retry)) => Served::After(limit.min(retry)),
            (served, _) => served,
        })
    }

    fn give_up(&mut self, error: &RingError) -> Served {
        // Once for all queues.
        if !self.session.broken.swap(true, Ordering::AcqRel) {
            self.metrics().broken.inc();
            if let Some(muted) = self.shared.may_log() {
                let (name, index) = (&self.shared.name, self.index);
                log::warn!("{name}: the driver broke queue {index}: {error} ({muted} lines left out before)");
            }
            self.session.interrupt.needs_reset();
        }
        Served::Broken
    }

    fn serve_or_give_up(&mut self, batch: bool) -> Served {
        if self.session.broken.load(Ordering::Acquire) {
            return Served::Broken;
        }
        let result = self.turn(batch);
        // What was finished before the driver broke the rules is still worth telling.
        let told = self.tell();
        match result.and_then(|served| told.map(|()| served)) {
            Ok(served) => served,
            Err(error) => self.give_up(&error),
        }
    }
}

impl Part for Lane {
    fn serve(&mut self, _queue: u16) -> Served {
        self.metrics().queue_events.inc();
        self.serve_or_give_up(true)
    }

    fn ready(&mut self) -> Served {
        match self.serve_or_give_up(false) {
            Served::More => self.serve_or_give_up(true),
            served => served,
        }
    }

    fn new_source(&mut self) -> Option<RawFd> {
        self.new_source.take()
    }

    fn set_polled(&mut self, on: bool) {
        self.polled = on;
    }

    /// Not while everything is in flight: then an answer of the host is what to wait for.
    fn peek(&self, _queue: u16) -> bool {
        !self.flights.as_ref().is_some_and(Flights::is_full) && self.ring.has_more(&self.session.ram)
    }

    fn settle(&mut self) {
        let finished = self.finish_flights();
        if let Err(error) = finished.and_then(|()| self.tell()) {
            self.give_up(&error);
        }
    }

    fn end(mut self: Box<Self>) {
        if let Err(error) = self.finish_flights() {
            // The driver is gone, whatever it did to its rings.
            log::debug!("{}: {error}", self.shared.name);
        }
        let Self { index, shared, mut backing, flights, .. } = *self;
        drop(flights);
        // A flush to come would not know of what this queue wrote to a backing that is no more the newest.
        if let Some(backing) = &mut backing
            && shared.backings.is_behind(backing.generation)
            && let Err(error) = shared.backings.flush_left(&mut *backing.backend)
        {
            log::error!("{}: flush of the replaced backing failed: {error}", shared.name);
        }
        shared.backings.leave(index.into());
    }
}
