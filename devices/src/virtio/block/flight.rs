//! Requests that an engine has: what is owed for each until it is finished.
//!
//! ```text
//!   Lane::one ── take_off ──> Flights: slot = tag, Reply, where the data lie ── Engine::push
//!                                        ... poll: begin, land ...
//!   driver <── Reply::finish <── land <──────────────────────────────────────── Engine::pop: in any order
//! ```

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::backend::{Direction, transfer};
use super::engine::{Engine, Finished, Transfer};
use super::lane::Lane;
use super::metrics::Op;
use super::request::{HEADER_BYTES, Reply, Request};
use crate::clock::monotonic_ns;
use crate::mem::{Ram, VolatileSlice};
use crate::virtio::Served;
use crate::virtio::queue::{RingError, Segment, advance, resolve, truncate};

/// Before an engine is tried again that could not begin what it was given: the host is short of memory.
const ENGINE_PAUSE: Duration = Duration::from_millis(1);

/// A request in flight.
pub(super) struct Flight {
    pub transfer: Transfer,
    pub reply: Reply,
    /// When it was taken off the queue.
    pub popped_ns: u64,
    /// Bytes of data.
    pub len: u32,
    /// Bytes of `segments` before the data.
    pub skip: usize,
    /// Where the data lie, for what the engine leaves undone. They were inside RAM when it was pushed, and RAM does not go.
    pub segments: Vec<Segment>,
}

/// An engine and what it has.
pub(super) struct Flights {
    pub engine: Box<dyn Engine>,
    slots: Vec<Option<Flight>>,
    free: Vec<u16>,
    /// Lists of segments for the next flights.
    spare: Vec<Vec<Segment>>,
    /// Something was pushed and has not begun.
    pub pushed: bool,
}

impl Flights {
    /// Nothing in flight, of `depth` at most.
    pub(super) fn new(engine: Box<dyn Engine>, depth: u16) -> Self {
        let slots = (0..depth).map(|_| None).collect();
        Self { engine, slots, free: (0..depth).rev().collect(), spare: Vec::new(), pushed: false }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Gives a request to the engine; not when full.
    pub(super) fn push(
        &mut self,
        transfer: Transfer,
        (reply, popped_ns): (Reply, u64),
        (segments, skip, len): (&[Segment], usize, u32),
        ram: &Ram,
        data: &[VolatileSlice],
    ) {
        let tag = self.free.pop().expect("the caller looked");
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.extend_from_slice(segments);
        self.slots[usize::from(tag)] = Some(Flight { transfer, reply, popped_ns, len, skip, segments: kept });
        self.engine.push(tag, transfer, ram, data);
        self.pushed = true;
    }

    /// What has the tag `tag`, which is free again.
    pub(super) fn land(&mut self, tag: u16) -> Option<Flight> {
        let flight = self.slots.get_mut(usize::from(tag))?.take()?;
        self.free.push(tag);
        Some(flight)
    }

    /// Takes a list of segments back.
    pub(super) fn recycle(&mut self, mut segments: Vec<Segment>) {
        segments.clear();
        self.spare.push(segments);
    }
}

impl Lane {
    /// The engine, which is asked for when the first request comes: a machine that boots does not wait for it.
    fn engine(&mut self) -> Option<&mut Flights> {
        if std::mem::replace(&mut self.engine_unknown, false) {
            let depth = self.ring.size();
            match self.backing().backend.engine(depth) {
                Some(Ok(engine)) => {
                    self.new_source = Some(engine.source());
                    self.flights = Some(Flights::new(engine, depth));
                }
                Some(Err(error)) => {
                    let name = &self.shared.name;
                    log::warn!(
                        "{name}: requests are done one at a time, for the host has no io_uring: {error}"
                    );
                }
                None => {}
            }
        }
        self.flights.as_mut()
    }

    /// Gives `request` to the engine, if there is one and it is for such requests.
    pub(super) fn take_off<'s, 'm>(
        &mut self,
        request: Request<'s, 'm>,
        reply: Reply,
        ram: &Ram,
    ) -> Result<(), (Request<'s, 'm>, Reply)> {
        // Each write is to be stable before it is answered: that is one thing after the other.
        let write_through = self.shared.writes_through(self.session.features);
        if self.engine().is_none() {
            return Err((request, reply));
        }
        let beside = self.flights.as_ref().is_some_and(|flights| !flights.is_empty());
        if beside && matches!(request, Request::Flush) && self.flush_older().is_err() {
            // Fails as well where that is told.
            self.shared.backings.owe_a_failure();
            return Err((request, reply));
        }
        let Self { flights: Some(flights), chain, popped_ns, .. } = self else {
            return Err((request, reply));
        };
        let popped_ns = *popped_ns;
        match request {
            Request::In { offset, ref data, len } if len > 0 => {
                let at = (chain.writable(), 0, len);
                flights.push(Transfer::Read { offset }, (reply, popped_ns), at, ram, data);
            }
            Request::Out { offset, ref data, len } if len > 0 && !write_through => {
                let at = (chain.readable(), HEADER_BYTES, len);
                flights.push(Transfer::Write { offset }, (reply, popped_ns), at, ram, data);
            }
            // One that nothing waits beside is done at once: the engine would start a thread for it.
            Request::Flush if beside => {
                flights.push(Transfer::Flush, (reply, popped_ns), (&[], 0, 0), ram, &[]);
            }
            other => return Err((other, reply)),
        }
        Ok(())
    }

    /// Begins what was pushed; answers what is finished.
    pub(super) fn poll(&mut self) -> Result<Served, RingError> {
        let Some(flights) = &mut self.flights else { return Ok(Served::Drained) };
        match flights.engine.poll() {
            Ok(()) => flights.pushed = false,
            Err(error) => {
                self.host_failed("io_uring", 0, &error);
                return Ok(Served::After(ENGINE_PAUSE));
            }
        }
        self.land()?;
        let again = self.stalled && self.flights.as_ref().is_some_and(|flights| !flights.is_full());
        Ok(if again { Served::More } else { Served::Drained })
    }

    /// Within a batch: begins what was pushed and answers what is finished; whether there was anything, and the engine took it.
    pub(super) fn begun_early(&mut self) -> Result<bool, RingError> {
        if !self.flights.as_ref().is_some_and(|flights| flights.pushed) {
            return Ok(false);
        }
        self.poll()?;
        // One that failed is tried again after the batch, and then after a pause.
        Ok(self.flights.as_ref().is_some_and(|flights| !flights.pushed))
    }

    /// Answers what is finished. The clock is read once for all of them.
    fn land(&mut self) -> Result<(), RingError> {
        let mut now = None;
        while let Some(Finished { tag, result }) =
            self.flights.as_mut().and_then(|flights| flights.engine.pop())
        {
            let Some(flight) = self.flights.as_mut().and_then(|flights| flights.land(tag)) else { continue };
            let Flight { transfer, reply, popped_ns, len, skip, segments } = flight;
            let result = match result {
                Ok(n) if n >= len as usize => Ok(()),
                Ok(n) => {
                    now = None;
                    self.do_the_rest(transfer, &segments, skip, n, len)
                }
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                    now = None;
                    self.do_the_rest(transfer, &segments, skip, 0, len)
                }
                Err(error) => Err(error),
            };
            let (op, outcome, moved) = match transfer {
                Transfer::Read { offset } => (Op::Read, self.was_read(offset, len, result), len.into()),
                Transfer::Write { offset } => (Op::Write, self.was_written(offset, len, result), len.into()),
                Transfer::Flush => (Op::Flush, self.was_flushed(result), 0),
            };
            self.took(op, &outcome, popped_ns, *now.get_or_insert_with(monotonic_ns));
            if let Some(flights) = &mut self.flights {
                flights.recycle(segments);
            }
            self.answer(reply, outcome, moved)?;
        }
        Ok(())
    }

    /// Moves what an engine left undone of a transfer, after `done` of `len` bytes.
    fn do_the_rest(
        &mut self,
        what: Transfer,
        segments: &[Segment],
        skip: usize,
        done: usize,
        len: u32,
    ) -> io::Result<()> {
        let ram = Ram::clone(&self.session.ram);
        let mut slices = Vec::new();
        resolve(&ram, segments, &mut slices).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        let rest = truncate(advance(&mut slices, skip + done), len as usize - done);
        let backend = &mut *self.backing().backend;
        let at = |offset: u64| offset + done as u64;
        match what {
            Transfer::Read { offset } => transfer(backend, Direction::In, at(offset), rest),
            Transfer::Write { offset } => transfer(backend, Direction::Out, at(offset), rest),
            Transfer::Flush => backend.flush(),
        }
    }

    /// Waits until nothing is in flight; answers it all.
    pub(super) fn finish_flights(&mut self) -> Result<(), RingError> {
        while let Some(flights) = self.flights.as_mut().filter(|flights| !flights.is_empty()) {
            if let Err(error) = flights.engine.wait() {
                self.host_failed("io_uring", 0, &error);
                break;
            }
            flights.pushed = false;
            self.land()?;
        }
        Ok(())
    }
}
