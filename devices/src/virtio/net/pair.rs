//! One pair of queues of a card in use: two directions that take turns on one thread.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::features::{F_MRG_RXBUF, offloads};
use super::rx::Rx;
use super::tx::Tx;
use super::{FrameIo, NetMetrics, QUEUE_SIZE, Shared};
use crate::irq::Interrupt;
use crate::limiter::Limiter;
use crate::mem::Ram;
use crate::virtio::queue::{Due, Ring, RingError};
use crate::virtio::{Part, Served};

/// Frames moved in one direction before the other gets its turn.
pub(super) const FRAMES_PER_BATCH: u32 = 64;
/// Bytes moved before the driver is told within a batch.
pub(super) const BYTES_PER_INTERRUPT: usize = 256 * 1024;

/// A wire, and all else of a pair that outlives its driver.
pub(super) struct Port {
    /// Which pair it is, from 0.
    pub index: u16,
    pub shared: Arc<Shared>,
    pub wire: Box<dyn FrameIo>,
    pub rx_limiter: Limiter,
    pub tx_limiter: Limiter,
    /// Whether the driver uses the pair: of a card with several, only the first from the start.
    pub active: bool,
    /// Whether frames come to the wire, if that is known.
    pub attached: Option<bool>,
}

impl Port {
    pub(super) fn metrics(&self) -> &NetMetrics {
        &self.shared.metrics[usize::from(self.index)]
    }

    /// Has frames come to the wire, or to other pairs' only.
    fn attach(&mut self, attached: bool) -> bool {
        if self.attached == Some(attached) {
            return true;
        }
        match self.wire.set_attached(attached) {
            Ok(()) => self.attached = Some(attached),
            Err(error) => {
                let what = if attached { "attaching" } else { "detaching" };
                self.shared.log(format_args!("{what} queue pair {} failed: {error}", self.index));
            }
        }
        self.attached == Some(attached)
    }

    /// No driver uses the pair any more.
    pub(super) fn rest(&mut self) {
        // What waited for its turn will not be done.
        self.rx_limiter.release();
        self.tx_limiter.release();
        self.active = self.index == 0;
        self.attach(self.active);
    }
}

/// What one driver granted, for all queues.
pub(super) struct Session {
    pub ram: Ram,
    pub features: u64,
    pub interrupt: Arc<dyn Interrupt>,
    /// The driver broke one of the queues: none is served any more.
    broken: AtomicBool,
}

impl Session {
    pub(super) fn new(ram: Ram, features: u64, interrupt: Arc<dyn Interrupt>) -> Self {
        Self { ram, features, interrupt, broken: AtomicBool::new(false) }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Gives up on a driver that broke a queue, of which `metrics` counts.
    pub(super) fn settle(
        &self,
        result: Result<Served, RingError>,
        shared: &Shared,
        metrics: &NetMetrics,
    ) -> Served {
        result.unwrap_or_else(|error| {
            // Whoever is first says so: the others are about to see it.
            if !self.broken.swap(true, Ordering::Relaxed) {
                metrics.broken.inc();
                shared.log(format_args!("the driver broke a queue: {error}"));
                self.interrupt.needs_reset();
            }
            Served::Broken
        })
    }
}

/// The pair.
pub(super) struct Pair {
    pub(super) port: Port,
    session: Arc<Session>,
    rx: Option<Rx>,
    tx: Option<Tx>,
}

impl Pair {
    /// A pair whose queues the driver enabled, or not.
    pub(super) fn new(port: Port, session: Arc<Session>, rx: Option<Ring>, tx: Option<Ring>) -> Self {
        let offloads = offloads(session.features);
        let large_frames = offloads.tso4 || offloads.tso6 || offloads.ufo || offloads.uso;
        let mergeable = session.features & F_MRG_RXBUF != 0;
        let rx = rx.map(|ring| Rx::new(ring, mergeable, large_frames));
        Self { port, session, rx, tx: tx.map(Tx::new) }
    }

    /// Whether the driver enabled both queues.
    pub(super) fn is_whole(&self) -> bool {
        self.rx.is_some() && self.tx.is_some()
    }

    /// One batch of what came in, or of what is to be sent.
    pub(super) fn serve(&mut self, queue: u16) -> Served {
        if self.session.is_broken() {
            return Served::Broken;
        }
        self.leave_if_unused();
        if queue.is_multiple_of(2) {
            self.port.metrics().rx_queue_events.inc();
            self.serve_rx()
        } else {
            self.port.metrics().tx_queue_events.inc();
            self.serve_tx()
        }
    }

    /// The wire is readable.
    pub(super) fn ready(&mut self) -> Served {
        if self.session.is_broken() {
            return Served::Broken;
        }
        self.leave_if_unused();
        self.port.metrics().rx_wire_events.inc();
        if let Some(rx) = &mut self.rx {
            rx.wire_may_have_frames();
        }
        self.serve_rx()
    }

    /// As [`crate::virtio::Running::set_polled`], of what the driver sends: frames for it come by the wire, which is watched.
    pub(super) fn set_polled(&mut self, on: bool) {
        if let Some(tx) = &mut self.tx {
            tx.polled = on;
        }
    }

    /// As [`crate::virtio::Running::peek`].
    pub(super) fn peek(&self, queue: u16) -> bool {
        !queue.is_multiple_of(2) && self.tx.as_ref().is_some_and(|tx| tx.ring.has_more(&self.session.ram))
    }

    fn serve_rx(&mut self) -> Served {
        // Once the driver gave up the pair it gets no frames on it (virtio 1.2 §5.1.6.5.5.1).
        let Some(rx) = self.rx.as_mut().filter(|_| self.port.active) else { return Served::Drained };
        let queue = self.port.index * 2;
        let (session, shared) = (&self.session, Arc::clone(&self.port.shared));
        let metrics = &shared.metrics[usize::from(self.port.index)];
        let tell = || {
            session.interrupt.queue(queue);
            metrics.rx_interrupts.inc();
        };
        let before = metrics.rx_frames.get();
        let result = rx.batch(&mut self.port, &session.ram, &tell);
        let told = rx.ring.wants_interrupt(&session.ram).map(|wanted| {
            if wanted {
                tell();
            }
        });
        if metrics.rx_frames.get() != before
            && let Some(tx) = &mut self.tx
        {
            tx.answered();
        }
        session.settle(result.and_then(|served| told.map(|()| served)), &shared, metrics)
    }

    fn serve_tx(&mut self) -> Served {
        let Some(tx) = &mut self.tx else { return Served::Drained };
        let session = &self.session;
        let result = tx.batch(&mut self.port, &session.ram);
        let due = tx.interrupt(&session.ram);
        self.settle_tx(result, due)
    }

    /// Interrupts for what was sent if that is due, and says when to look again.
    fn settle_tx(&self, result: Result<Served, RingError>, due: Result<Due, RingError>) -> Served {
        let wait = due.map(|due| match due {
            Due::Never => None,
            Due::After(wait) => Some(wait),
            Due::Now => {
                self.session.interrupt.queue(self.port.index * 2 + 1);
                self.port.metrics().tx_interrupts.inc();
                None
            }
        });
        let result = result.and_then(|served| Ok(served.and_after(wait?)));
        self.session.settle(result, &self.port.shared, self.port.metrics())
    }

    /// The wire's descriptor, to be watched from now on, if the driver may come to use the pair: a wire that is not attached
    /// could not be watched.
    pub(super) fn watched(&mut self) -> Option<RawFd> {
        if !self.is_whole() {
            return None;
        }
        self.port.attach(true);
        Some(self.port.wire.fd())
    }

    /// A wire that was attached to be watched is left until the driver uses the pair.
    fn leave_if_unused(&mut self) {
        if !self.port.active {
            self.port.attach(false);
        }
    }

    /// The driver begins to use the pair; false if the host does not let it.
    pub(super) fn activate(&mut self) -> bool {
        self.port.active = self.port.attach(true);
        self.port.active
    }

    /// The driver uses the pair no more. What it gave to be sent is sent, as far as that can be done now.
    pub(super) fn deactivate(&mut self) {
        if !self.port.active {
            return;
        }
        if !self.port.shared.elsewhere.load(Ordering::Acquire) {
            self.send_the_rest();
        }
        self.port.active = false;
        self.port.attach(false);
    }

    fn send_the_rest(&mut self) {
        for _ in 0..u32::from(QUEUE_SIZE) / FRAMES_PER_BATCH {
            if self.session.is_broken() || self.serve_tx() != Served::More {
                break;
            }
        }
        if let Some(tx) = &mut self.tx {
            let due = tx.last_interrupt(&self.session.ram);
            self.settle_tx(Ok(Served::Drained), due);
        }
    }
}

/// A pair beyond the first. It has a thread of its own, and the first's thread, which gets the commands, says whether it is
/// used: hence the lock, which is held for a batch. The pair is taken back when its driver goes.
#[derive(Clone)]
pub(super) struct SharedPair(Arc<Mutex<Option<Pair>>>);

impl SharedPair {
    pub(super) fn new(pair: Pair) -> Self {
        Self(Arc::new(Mutex::new(Some(pair))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pair>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `with` with the pair; `otherwise` if it was taken back.
    pub(super) fn with<T>(&self, otherwise: T, with: impl FnOnce(&mut Pair) -> T) -> T {
        self.lock().as_mut().map_or(otherwise, with)
    }

    /// Takes the pair back.
    pub(super) fn take(&self) -> Option<Pair> {
        self.lock().take()
    }
}

impl Part for SharedPair {
    fn serve(&mut self, queue: u16) -> Served {
        self.with(Served::Drained, |pair| pair.serve(queue))
    }

    fn ready(&mut self) -> Served {
        self.with(Served::Drained, Pair::ready)
    }

    fn set_polled(&mut self, on: bool) {
        self.with((), |pair| pair.set_polled(on));
    }

    fn peek(&self, queue: u16) -> bool {
        self.with(false, |pair| pair.peek(queue))
    }

    fn source(&mut self) -> Option<RawFd> {
        self.with(None, Pair::watched)
    }

    fn end(self: Box<Self>) {}
}
