//! A disk in use.

use std::io;
use std::sync::{Arc, PoisonError};

use super::backend::{Direction, Erasure, transfer};
use super::request::{HEADER_BYTES, Refusal, Request, Status, parse};
use super::{Block, erase};
use crate::clock::monotonic_ns;
use crate::irq::Interrupt;
use crate::mem::{Ram, VolatileSlice};
use crate::virtio::queue::{Chain, Ring, RingError, copy_in, resolve};
use crate::virtio::{Granted, Idle, Running, Served};

/// Requests served before the thread looks at its other sources.
const REQUESTS_PER_BATCH: u32 = 64;
/// Bytes moved before the driver is told within a batch: small requests share an interrupt, large ones don't wait for others.
const BYTES_PER_INTERRUPT: u64 = 256 * 1024;
/// Slices a batch starts with room for; chains of more are rare.
const SLICES_AT_FIRST: usize = 64;

/// The running disk: an idle one, and what the driver granted.
pub(super) struct Live {
    block: Block,
    ram: Ram,
    interrupt: Arc<dyn Interrupt>,
    /// `None` if the driver enabled no queue, or broke it.
    ring: Option<Ring>,
    broken: bool,
    chain: Chain,
    features: u64,
    /// Whether writes were flushed one by one when it was last looked.
    write_through: bool,
}

/// How a request ended, for the driver.
type Outcome = Result<u32, Status>;

impl Live {
    pub(super) fn new(mut block: Block, granted: Granted) -> Self {
        *block.shared.interrupt.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::clone(&granted.interrupt));
        if block.take_changes() {
            // The driver may have read the old capacity before it said DRIVER_OK.
            granted.interrupt.config();
        }
        let ring =
            granted.queues.into_iter().next().flatten().map(|queue| Ring::new(queue, granted.features));
        let chain = Chain::with_room_for(ring.as_ref().map_or(0, Ring::size));
        let write_through = block.writes_through(granted.features);
        Self {
            block,
            ram: granted.ram,
            interrupt: granted.interrupt,
            ring,
            broken: false,
            chain,
            features: granted.features,
            write_through,
        }
    }

    /// One batch over `ring`.
    fn batch(&mut self, ring: &mut Ring) -> Result<Served, RingError> {
        let ram = Ram::clone(&self.ram);
        let mut slices = Vec::with_capacity(SLICES_AT_FIRST);
        let mut unreported = 0;
        self.block.take_changes();
        self.look_at_cache_mode();
        ring.suppress_kicks(&ram)?;
        for turn in 0..REQUESTS_PER_BATCH {
            if !ring.pop(&ram, &mut self.chain)? {
                if ring.rearm(&ram)? {
                    ring.suppress_kicks(&ram)?;
                    continue;
                }
                if turn == 0 {
                    self.block.shared.metrics.empty_queue_events.inc();
                }
                return Ok(Served::Drained);
            }
            // After the pop: whoever was told of a new backing before making this request gets it.
            self.block.take_changes();
            if let Some(served) = self.throttle(ring) {
                return Ok(served);
            }
            unreported += self.one(ring, &ram, &mut slices)?;
            if unreported >= BYTES_PER_INTERRUPT {
                unreported = 0;
                self.tell(ring)?;
            }
        }
        Ok(Served::More)
    }

    /// A driver that switched to write-through asks for no flush any more: what it wrote before is flushed now.
    fn look_at_cache_mode(&mut self) {
        let before = std::mem::replace(&mut self.write_through, self.block.writes_through(self.features));
        if self.write_through
            && !before
            && let Err(error) = self.block.backend.flush()
        {
            self.block.shared.metrics.flush_failures.inc();
            self.host_failed("flush", 0, &error);
        }
    }

    /// Puts the popped chain back if a rate limit holds it.
    fn throttle(&mut self, ring: &mut Ring) -> Option<Served> {
        if self.block.limiter.is_off() {
            return None;
        }
        // What is left of the chain beside header and status is data, one way or the other.
        let out = u64::from(self.chain.readable_bytes()).saturating_sub(HEADER_BYTES as u64);
        let bytes = out.max(u64::from(self.chain.writable_bytes()).saturating_sub(1));
        let wait = self.block.limiter.consume(monotonic_ns(), bytes).err()?;
        ring.undo_pop();
        self.block.shared.metrics.throttled.inc();
        Some(Served::After(wait))
    }

    /// Serves the popped chain; returns the bytes moved.
    fn one<'m>(
        &mut self,
        ring: &mut Ring,
        ram: &'m Ram,
        slices: &mut Vec<VolatileSlice<'m>>,
    ) -> Result<u64, RingError> {
        slices.clear();
        resolve(ram, self.chain.readable(), slices)?;
        let readable = slices.len();
        resolve(ram, self.chain.writable(), slices)?;
        let (readable, writable) = slices.split_at_mut(readable);
        let head = self.chain.head();
        let rules = self.block.rules(self.features);
        let Some((request, reply)) = parse(head, readable, writable, &rules) else {
            return Err(RingError::NoAnswer { head });
        };
        let (outcome, moved) = match request {
            Ok(request) => self.execute(request),
            Err(refusal) => (Err(self.refuse(&refusal)), 0),
        };
        let (status, data_bytes) = match outcome {
            Ok(data_bytes) => (Status::Ok, data_bytes),
            Err(status) => (status, 0),
        };
        reply.finish(ring, ram, status, data_bytes)?;
        Ok(moved)
    }

    /// Carries out `request`; the outcome and the bytes moved.
    fn execute(&mut self, request: Request) -> (Outcome, u64) {
        let write_through = self.block.writes_through(self.features);
        let backend = &mut *self.block.backend;
        let metrics = &self.block.shared.metrics;
        match request {
            Request::In { offset, data, len } => {
                if let Err(error) = transfer(backend, Direction::In, offset, data) {
                    metrics.read_failures.inc();
                    return (Err(self.host_failed("read", offset, &error)), 0);
                }
                metrics.read_count.inc();
                metrics.read_bytes.add(u64::from(len));
                (Ok(len), u64::from(len))
            }
            Request::Out { offset, data, len } => {
                let mut result = transfer(backend, Direction::Out, offset, data);
                if result.is_ok() && write_through {
                    // A driver that can't flush, or chose not to, assumes that a completed write is stable (virtio 1.2 §5.2.6.2).
                    result = backend.flush();
                }
                if let Err(error) = result {
                    metrics.write_failures.inc();
                    return (Err(self.host_failed("write", offset, &error)), 0);
                }
                metrics.write_count.inc();
                metrics.write_bytes.add(u64::from(len));
                (Ok(0), u64::from(len))
            }
            Request::Erase { ranges } => (self.erase(&ranges), 0),
            Request::Flush => {
                if let Err(error) = backend.flush() {
                    metrics.flush_failures.inc();
                    return (Err(self.host_failed("flush", 0, &error)), 0);
                }
                metrics.flush_count.inc();
                (Ok(0), 0)
            }
            Request::GetId { into } => {
                let n = copy_in(into, 0, &self.block.id);
                (Ok(u32::try_from(n).expect("an identity is 20 bytes")), 0)
            }
        }
    }

    /// Erases `ranges` in turn, up to the first that fails.
    fn erase(&mut self, ranges: &[erase::Range]) -> Outcome {
        for &erase::Range { offset, len, how } in ranges {
            let mut result = match self.block.backend.erase(offset, len, how) {
                Ok(written) => {
                    self.block.limiter.charge_bytes(written);
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if result.is_ok() && how != Erasure::Discard && self.block.writes_through(self.features) {
                result = self.block.backend.flush();
            }
            if let Err(error) = result {
                self.block.shared.metrics.erase_failures.inc();
                return Err(self.host_failed("erasing", offset, &error));
            }
            self.block.shared.metrics.erase_bytes.add(len);
        }
        self.block.shared.metrics.erase_count.inc();
        Ok(0)
    }

    fn host_failed(&mut self, op: &str, offset: u64, error: &io::Error) -> Status {
        if let Some(muted) = self.block.log.admit() {
            let name = &self.block.name;
            log::error!("{name}: {op} at byte {offset} failed: {error} ({muted} lines left out before)");
        }
        Status::IoErr
    }

    fn refuse(&mut self, refusal: &Refusal) -> Status {
        self.block.shared.metrics.refused.inc();
        if let Some(muted) = self.block.log.admit() {
            let name = &self.block.name;
            log::warn!("{name}: request refused: {refusal} ({muted} lines left out before)");
        }
        refusal.status()
    }

    /// Raises the interrupt if the driver wants it.
    fn tell(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        if ring.wants_interrupt(&self.ram)? {
            self.interrupt.queue(0);
            self.block.shared.metrics.interrupts.inc();
        }
        Ok(())
    }
}

impl Running for Live {
    fn serve(&mut self, queue: u16) -> Served {
        if self.broken {
            return Served::Broken;
        }
        if queue != 0 {
            return Served::Drained;
        }
        let Some(mut ring) = self.ring.take() else { return Served::Drained };
        self.block.shared.metrics.queue_events.inc();
        let result = self.batch(&mut ring);
        // What was finished before the driver broke the rules is still worth telling.
        let told = self.tell(&mut ring);
        match result.and_then(|served| told.map(|()| served)) {
            Ok(served) => {
                self.ring = Some(ring);
                served
            }
            Err(error) => {
                self.broken = true;
                self.block.shared.metrics.broken.inc();
                if let Some(muted) = self.block.log.admit() {
                    let name = &self.block.name;
                    log::warn!("{name}: the driver broke its queue: {error} ({muted} lines left out before)");
                }
                self.interrupt.needs_reset();
                Served::Broken
            }
        }
    }

    fn stop(self: Box<Self>) -> Box<dyn Idle> {
        *self.block.shared.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.block.shared.config.reset_switch();
        Box::new(self.block)
    }
}
