//! A disk: virtio block device (virtio 1.2 §5.2).
//!
//! ```text
//!  control thread                a thread for each queue, or one for all
//!  BlockHandle ── Backings ────> Lane::serve: pop ─> request::parse ─> Backend ─> Reply::finish
//!      └─ ConfigSpace, Limits, Interrupt::config     (one batch, then one look at who wants an interrupt)
//! ```
//! [`Block`] is the idle disk, `Live` the running one, a `Lane` one of its queues. A request that was parsed is never looked at
//! again in guest memory; a request held by a rate limit is put back unparsed.
//!
//! Lanes share nothing on the path of a request but the storage: each has its own share of the backing and its own counters.
//! What they do share, a rate limit and the order of swaps, costs a load where it is not used.

mod backend;
mod backing;
mod config;
mod engine;
mod erase;
mod flight;
mod lane;
mod limits;
mod live;
mod metrics;
mod outcome;
pub mod request;
#[cfg(test)]
mod tests;

use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use backend::{Backend, Erasure};
use backing::Backings;
pub use config::{
    DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX, F_BLK_SIZE, F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_MQ, F_RO,
    F_SEG_MAX, F_TOPOLOGY, F_WRITE_ZEROES, ZEROES_SECTORS_MAX, ZEROES_SEGMENTS_MAX,
};
pub use engine::{Engine, Finished, Transfer};
pub use erase::Range;
use limits::Limits;
pub use metrics::{BlockMetrics, Op};
use request::{ID_BYTES, Rules};

use crate::irq::Interrupt;
use crate::limiter::{Group, LimiterSpec};
use crate::log_limit::LogLimit;
use crate::virtio::{ConfigSpace, DeviceKind, Granted, Idle, Running, StartFailed};

/// Entries of each queue: Linux keeps that many requests in flight.
pub const QUEUE_SIZE: u16 = 256;

/// Queues of one disk at most: as many as a machine has vCPUs.
pub const QUEUES_MAX: u16 = 32;

/// What becomes of written data before the guest flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// FLUSH is not on offer: data may stay in the host's page cache for as long as it likes. Fast, and lost with the host.
    Unsafe,
    /// FLUSH is on offer and reaches stable storage. A driver that does not take the offer, or that switches to write-through
    /// (virtio 1.2 §5.2.6.2), gets each write flushed.
    Writeback,
}

/// How a disk presents itself.
#[derive(Debug, Clone)]
pub struct BlockOptions {
    /// What the log calls it.
    pub name: String,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Whether the guest may give blocks back to the storage. Without it DISCARD is not offered, and zeroes that the guest has
    /// written keep their blocks, whatever it asks for.
    pub discard: bool,
    /// See [`Cache`].
    pub cache: Cache,
    /// The identity that GET_ID returns; padded with zeros, cut to 20 bytes.
    pub serial: String,
    /// Rate limits from the start, of all queues together.
    pub limits: LimiterSpec,
    /// Limits that it has together with other devices, beside its own.
    pub group: Option<Group>,
    /// Queues on offer: 1 to [`QUEUES_MAX`].
    pub queues: NonZeroU16,
}

/// What the device, its lanes and its handles share.
struct Shared {
    name: String,
    read_only: bool,
    may_unmap: bool,
    cache: Cache,
    offered: u64,
    id: [u8; ID_BYTES],
    config: Arc<ConfigSpace>,
    backings: Backings,
    limits: Limits,
    /// By queue.
    metrics: Box<[BlockMetrics]>,
    log: Mutex<LogLimit>,
    wire: Mutex<Wire>,
}

/// The way to the driver, if there is one.
#[derive(Default)]
struct Wire {
    interrupt: Option<Arc<dyn Interrupt>>,
    /// The configuration changed while there was none: a driver that is just starting may have read it before.
    missed: bool,
}

impl Shared {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `Some(n)` if a line may be logged: `n` lines were left out since the last one.
    fn may_log(&self) -> Option<u64> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).admit()
    }

    /// What a driver that agreed on `features` may ask for, on a disk of `sectors`.
    fn rules(&self, features: u64, sectors: u64) -> Rules {
        let agreed = |feature| features & feature != 0;
        Rules {
            sectors,
            read_only: self.read_only,
            flush: agreed(F_FLUSH),
            discard: agreed(F_DISCARD),
            write_zeroes: agreed(F_WRITE_ZEROES),
            may_unmap: self.may_unmap,
        }
    }

    /// Whether a write is to be on stable storage before it is answered, with a driver that agreed on `features`.
    fn writes_through(&self, features: u64) -> bool {
        self.cache == Cache::Writeback && (features & F_FLUSH == 0 || !self.config.switched_on())
    }
}

/// Changes and observes a disk from any thread, running or not.
#[derive(Clone)]
pub struct BlockHandle(Arc<Shared>);

impl BlockHandle {
    /// Puts `backend` in place of the present one and tells the guest its capacity.
    ///
    /// Requests that the guest makes after this returns go to `backend`. Each queue's thread flushes and lets go of the old one
    /// when it next serves its queue: kick it to have that done now.
    pub fn swap_backing(&self, backend: Box<dyn Backend>) {
        let mut wire = self.0.wire();
        self.0.backings.swap(backend, |sectors| self.0.config.update(0, &sectors.to_le_bytes()));
        match &wire.interrupt {
            Some(interrupt) => interrupt.config(),
            None => wire.missed = true,
        }
    }

    /// Puts these rate limits, with full buckets, in place of the present ones. Kick the queues: one may be held by an old
    /// limit.
    pub fn set_limits(&self, limits: LimiterSpec) {
        self.0.limits.set(&limits);
    }

    /// What the disk did so far, over all of its queues.
    #[must_use]
    pub fn metrics(&self) -> BlockMetrics {
        BlockMetrics::sum(&self.0.metrics)
    }

    /// What each queue did so far.
    #[must_use]
    pub fn queues(&self) -> &[BlockMetrics] {
        &self.0.metrics
    }

    /// Requests that the host failed so far. Cheaper than [`BlockHandle::metrics`].
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.0.metrics.iter().map(BlockMetrics::failures).sum()
    }
}

/// A disk that no driver is using.
pub struct Block {
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
}

impl Block {
    /// A disk over `backend`.
    ///
    /// # Panics
    /// For more queues than [`QUEUES_MAX`].
    #[must_use]
    pub fn new(backend: Box<dyn Backend>, options: &BlockOptions) -> Self {
        let queues = options.queues.get();
        assert!(queues <= QUEUES_MAX, "a disk has at most {QUEUES_MAX} queues");
        let config = config::space(&*backend, queues, options.discard);
        let mut id = [0; ID_BYTES];
        let len = options.serial.len().min(ID_BYTES);
        id[..len].copy_from_slice(&options.serial.as_bytes()[..len]);
        let flushes = options.cache == Cache::Writeback && !options.read_only;
        let shared = Shared {
            name: options.name.clone(),
            read_only: options.read_only,
            may_unmap: options.discard,
            cache: options.cache,
            offered: config::offered(options),
            id,
            config,
            backings: Backings::new(backend, queues.into(), flushes),
            limits: Limits::new(&options.limits, options.group.as_ref()),
            metrics: (0..queues).map(|_| BlockMetrics::default()).collect(),
            log: Mutex::default(),
            wire: Mutex::default(),
        };
        Self { shared: Arc::new(shared), queue_sizes: vec![QUEUE_SIZE; queues.into()] }
    }

    /// A handle for the control thread.
    #[must_use]
    pub fn handle(&self) -> BlockHandle {
        BlockHandle(Arc::clone(&self.shared))
    }
}

impl Idle for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn offered(&self) -> u64 {
        self.shared.offered
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.shared.config
    }

    fn start(self: Box<Self>, granted: Granted) -> Result<Box<dyn Running>, StartFailed> {
        Ok(Box::new(live::Live::new(*self, granted)))
    }
}
