//! A disk: virtio block device (virtio 1.2 §5.2).
//!
//! ```text
//!  control thread                     the device's thread
//!  BlockHandle ── Mailbox ──> Live::serve: pop ─> request::parse ─> Backend ─> Reply::finish
//!      └─ ConfigSpace, Interrupt::config          (one batch, then one look at who wants an interrupt)
//! ```
//! [`Block`] is the idle disk, `Live` the running one; the backend moves along. A request that was parsed is never looked at
//! again in guest memory; a request held by a rate limit is put back unparsed.

mod backend;
mod config;
mod erase;
mod live;
mod metrics;
pub mod request;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

pub use backend::{Backend, Erasure};
pub use config::{
    DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX, F_BLK_SIZE, F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_RO, F_SEG_MAX,
    F_TOPOLOGY, F_WRITE_ZEROES, ZEROES_SECTORS_MAX, ZEROES_SEGMENTS_MAX,
};
pub use erase::Range;
pub use metrics::BlockMetrics;
use request::{ID_BYTES, Rules};

use crate::clock::monotonic_ns;
use crate::irq::Interrupt;
use crate::limiter::{Limiter, LimiterSpec};
use crate::log_limit::LogLimit;
use crate::mailbox::Mailbox;
use crate::virtio::{ConfigSpace, DeviceKind, Granted, Idle, Running, StartFailed};

/// Entries of the one queue: Linux keeps that many requests in flight.
pub const QUEUE_SIZE: u16 = 256;

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
    /// See [`Cache`].
    pub cache: Cache,
    /// The identity that GET_ID returns; padded with zeros, cut to 20 bytes.
    pub serial: String,
    /// Rate limits from the start.
    pub limits: LimiterSpec,
}

/// Changes that wait for the device's thread.
#[derive(Default)]
struct Changes {
    backend: Option<Box<dyn Backend>>,
    limits: Option<LimiterSpec>,
}

/// What the device and its handles share.
struct Shared {
    config: Arc<ConfigSpace>,
    changes: Mailbox<Changes>,
    metrics: BlockMetrics,
    /// Of the running device.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

/// Changes and observes a disk from any thread, running or not.
#[derive(Clone)]
pub struct BlockHandle(Arc<Shared>);

impl BlockHandle {
    /// Puts `backend` in place of the present one and tells the guest its capacity.
    ///
    /// Requests that the guest makes after this returns go to `backend`. The device's thread flushes and drops the old one
    /// when it next serves the queue: kick it to have that done now.
    pub fn swap_backing(&self, backend: Box<dyn Backend>) {
        let interrupt = self.0.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
        let sectors = backend.sectors();
        self.0.changes.post(|changes| {
            self.0.config.update(0, &sectors.to_le_bytes());
            changes.backend = Some(backend);
        });
        if let Some(interrupt) = &*interrupt {
            interrupt.config();
        }
    }

    /// Puts these rate limits, with full buckets, in place of the present ones. The device's thread takes them up when it
    /// next serves the queue: kick it if it may be held by an old limit.
    pub fn set_limits(&self, limits: LimiterSpec) {
        self.0.changes.post(|changes| changes.limits = Some(limits));
    }

    /// What the disk did so far.
    #[must_use]
    pub fn metrics(&self) -> &BlockMetrics {
        &self.0.metrics
    }
}

/// A disk that no driver is using.
pub struct Block {
    shared: Arc<Shared>,
    name: String,
    backend: Box<dyn Backend>,
    sectors: u64,
    read_only: bool,
    cache: Cache,
    offered: u64,
    id: [u8; ID_BYTES],
    limiter: Limiter,
    log: LogLimit,
}

impl Block {
    /// A disk over `backend`.
    #[must_use]
    pub fn new(backend: Box<dyn Backend>, options: &BlockOptions) -> Self {
        let (sectors, config) = (backend.sectors(), config::space(&*backend));
        let mut id = [0; ID_BYTES];
        let len = options.serial.len().min(ID_BYTES);
        id[..len].copy_from_slice(&options.serial.as_bytes()[..len]);
        Self {
            shared: Arc::new(Shared {
                config,
                changes: Mailbox::default(),
                metrics: BlockMetrics::default(),
                interrupt: Mutex::new(None),
            }),
            name: options.name.clone(),
            backend,
            sectors,
            read_only: options.read_only,
            cache: options.cache,
            offered: config::offered(options),
            id,
            limiter: Limiter::new(&options.limits, monotonic_ns()),
            log: LogLimit::default(),
        }
    }

    /// A handle for the control thread.
    #[must_use]
    pub fn handle(&self) -> BlockHandle {
        BlockHandle(Arc::clone(&self.shared))
    }

    /// Takes up what handles asked for; whether that includes another backing.
    fn take_changes(&mut self) -> bool {
        let Some(changes) = self.shared.changes.take() else { return false };
        if let Some(limits) = changes.limits {
            self.limiter = Limiter::new(&limits, monotonic_ns());
        }
        let Some(backend) = changes.backend else { return false };
        // A flush that the guest asks for later covers what it wrote before the swap.
        if self.cache == Cache::Writeback
            && !self.read_only
            && let Err(error) = self.backend.flush()
        {
            self.shared.metrics.flush_failures.inc();
            log::error!("{}: flush of the replaced backing failed: {error}", self.name);
        }
        self.sectors = backend.sectors();
        self.backend = backend;
        self.shared.metrics.swaps.inc();
        true
    }

    /// What a driver that agreed on `features` may ask for.
    fn rules(&self, features: u64) -> Rules {
        let agreed = |feature| features & feature != 0;
        Rules {
            sectors: self.sectors,
            read_only: self.read_only,
            flush: agreed(F_FLUSH),
            discard: agreed(F_DISCARD),
            write_zeroes: agreed(F_WRITE_ZEROES),
        }
    }

    /// Whether a write is to be on stable storage before it is answered, with a driver that agreed on `features`.
    fn writes_through(&self, features: u64) -> bool {
        self.cache == Cache::Writeback && (features & F_FLUSH == 0 || !self.shared.config.switched_on())
    }
}

impl Idle for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn offered(&self) -> u64 {
        self.offered
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.shared.config
    }

    fn start(self: Box<Self>, granted: Granted) -> Result<Box<dyn Running>, StartFailed> {
        Ok(Box::new(live::Live::new(*self, granted)))
    }
}
