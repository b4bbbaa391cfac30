//! A network card: virtio network device (virtio 1.2 §5.1), of one pair of queues or several, and a control queue.
//!
//! ```text
//!   wire (FrameIo) ── readable ──> rx: one recv straight into guest buffers, as many as the frame takes (MRG_RXBUF)
//!   guest ── kick ──> tx: one send straight from guest buffers
//!   guest ── kick ──> control: how many pairs it uses; the host brings frames to those only
//! ```
//! No frame is copied here. Both directions of a pair share a thread and take turns in bounded batches. Receive buffers
//! are popped ahead, enough for the largest frame, and kept from one frame to the next. When the guest runs out of them, the
//! wire is left alone until it kicks.
//!
//! [`Net`] is the idle card, `Live` the running one, a `Port` what is there of a pair without a driver, a `Pair` what is there
//! with one. Each pair has a wire, a thread and counters of its own; rate limits are the card's.

mod control;
mod features;
mod frame_io;
mod live;
mod metrics;
mod pair;
mod rx;
#[cfg(test)]
mod tests;
mod tx;

use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use features::{F_ALWAYS, F_USO, announces, offloads};
pub use features::{
    F_CSUM, F_CTRL_VQ, F_GUEST_ANNOUNCE, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_UFO,
    F_GUEST_USO4, F_GUEST_USO6, F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6, F_HOST_UFO, F_HOST_USO, F_MAC, F_MQ,
    F_MRG_RXBUF, F_MTU, F_STATUS, uses_pairs,
};
pub use frame_io::{FrameIo, Offloads, SLICES_MAX};
pub use metrics::NetMetrics;
use pair::Port;

use crate::clock::monotonic_ns;
use crate::irq::Interrupt;
use crate::limiter::{Group, Limiter, LimiterSpec};
use crate::log_limit::LogLimit;
use crate::virtio::{ConfigSpace, DeviceKind, Granted, Idle, Running, StartFailed};

/// Entries of a queue of frames.
pub const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue: drivers wait for each command.
pub const CONTROL_QUEUE_SIZE: u16 = 64;
/// The first pair's queue of receive buffers; that of pair `n` is this plus `2 * n` (virtio 1.2 §5.1.2).
pub const RX_QUEUE: u16 = 0;
/// The first pair's queue of frames to send; likewise.
pub const TX_QUEUE: u16 = 1;
/// Pairs of queues of one card at most: with the control queue they are what a worker thread, 64 queues, has room for, and
/// more than a TAP device's frames are worth spreading over.
pub const QUEUE_PAIRS_MAX: u16 = 16;

/// Bytes of `struct virtio_net_hdr` with its number of buffers (virtio 1.2 §5.1.6).
const HEADER_BYTES: usize = 12;
/// Where the configuration has the status (virtio 1.2 §5.1.4).
const STATUS_AT: usize = 6;
/// VIRTIO_NET_S_LINK_UP (virtio 1.2 §5.1.4).
const S_LINK_UP: u16 = 1;
/// VIRTIO_NET_S_ANNOUNCE (virtio 1.2 §5.1.4).
const S_ANNOUNCE: u16 = 2;

/// How a card presents itself.
#[derive(Debug, Clone, Default)]
pub struct NetOptions {
    /// What the log calls it.
    pub name: String,
    /// Its address; the guest makes one up without it.
    pub mac: Option<[u8; 6]>,
    /// The MTU to suggest to the guest.
    pub mtu: Option<u16>,
    /// Rate limits on what the guest receives, from the start.
    pub rx_limits: LimiterSpec,
    /// Rate limits on what the guest sends, from the start.
    pub tx_limits: LimiterSpec,
    /// Limits that both directions have together with other devices, beside their own.
    pub group: Option<Group>,
}

/// What the device, its pairs and its handles share.
struct Shared {
    name: String,
    config: Arc<ConfigSpace>,
    caller: Mutex<Caller>,
    /// What all pairs together may receive, and send.
    limits: [Group; 2],
    /// Pairs that the driver uses.
    in_use: AtomicU16,
    /// Pairs that it is taken to use when it next starts the card.
    in_use_next: AtomicU16,
    /// Somebody else moves the frames.
    elsewhere: AtomicBool,
    /// By pair.
    metrics: Box<[NetMetrics]>,
    log: Mutex<LogLimit>,
}

/// The way to a driver that announces itself when it is asked, if there is one.
#[derive(Default)]
struct Caller {
    /// Weak: handles may outlive the machine.
    interrupt: Option<Weak<dyn Interrupt>>,
    /// It was asked, and has not answered yet.
    asked: bool,
}

impl Shared {
    fn caller(&self) -> MutexGuard<'_, Caller> {
        self.caller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver has heard; or it is gone, and no one is asked. Whether it had been asked.
    fn heard(&self, caller: &mut Caller) -> bool {
        if caller.asked {
            self.config.update(STATUS_AT, &S_LINK_UP.to_le_bytes());
        }
        std::mem::take(&mut caller.asked)
    }

    /// Logs within the bound of this device.
    fn log(&self, what: std::fmt::Arguments) {
        let admitted = self.log.lock().unwrap_or_else(PoisonError::into_inner).admit();
        if let Some(muted) = admitted {
            log::warn!("{}: {what} ({muted} lines left out before)", self.name);
        }
    }
}

/// Changes and observes a card from any thread, running or not.
#[derive(Clone)]
pub struct NetHandle(Arc<Shared>);

impl NetHandle {
    /// Puts these rate limits, with full buckets, in place of the present ones; `None` leaves a direction as it is. They are
    /// those of all pairs together. Who waits for old ones does not know: kick all queues.
    pub fn set_limits(&self, rx: Option<LimiterSpec>, tx: Option<LimiterSpec>) {
        for (limits, spec) in self.0.limits.iter().zip([rx, tx]) {
            spec.inspect(|spec| limits.set(spec, monotonic_ns()));
        }
    }

    /// Asks the guest to tell the network where it is (virtio 1.2 §5.1.6.5.4), from any thread: whatever forwards its frames may have
    /// forgotten or mistaken that while it was paused. A guest whose driver did not agree to do so is not asked.
    pub fn announce(&self) {
        let mut caller = self.0.caller();
        let Some(interrupt) = caller.interrupt.as_ref().and_then(Weak::upgrade) else { return };
        self.0.config.update(STATUS_AT, &(S_LINK_UP | S_ANNOUNCE).to_le_bytes());
        caller.asked = true;
        interrupt.config();
    }

    /// Pairs of queues that the driver uses: the first, until it asks for more (virtio 1.2 §5.1.6.5.5).
    #[must_use]
    pub fn pairs_in_use(&self) -> u16 {
        self.0.in_use.load(Ordering::Acquire)
    }

    /// Somebody else moves the frames from now on, or no more: a card that is told so obeys its control queue, has the wires of pairs
    /// that are in use attached and touches no other queue by itself. Its frames' queues must not be served.
    pub fn frames_are_moved_elsewhere(&self, elsewhere: bool) {
        self.0.elsewhere.store(elsewhere, Ordering::Release);
    }

    /// The driver that starts the card next is the present one, who won't ask again: it uses as many pairs as now.
    pub fn keep_pairs(&self) {
        self.0.in_use_next.store(self.pairs_in_use(), Ordering::Release);
    }

    /// What the card did so far, over all of its pairs.
    #[must_use]
    pub fn metrics(&self) -> NetMetrics {
        NetMetrics::sum(&self.0.metrics)
    }

    /// What each pair did so far.
    #[must_use]
    pub fn pairs(&self) -> &[NetMetrics] {
        &self.0.metrics
    }

    /// Frames that the host failed to receive or to send so far. Cheaper than [`NetHandle::metrics`].
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.0.metrics.iter().map(|pair| pair.rx_failures.get() + pair.tx_failures.get()).sum()
    }
}

/// A network card that no driver is using.
pub struct Net {
    shared: Arc<Shared>,
    offered: u64,
    queue_sizes: Vec<u16>,
    /// By pair; one at least.
    ports: Vec<Port>,
}

impl Net {
    /// A card of one pair of queues on `wire`.
    #[must_use]
    pub fn new(wire: Box<dyn FrameIo>, options: &NetOptions) -> Self {
        Self::with_pairs(vec![wire], options)
    }

    /// A card of a pair of queues for each of `wires`, which are all the same interface's. All but the first are
    /// detached until a driver uses them.
    ///
    /// # Panics
    /// For no wire, and for more than [`QUEUE_PAIRS_MAX`].
    #[must_use]
    pub fn with_pairs(mut wires: Vec<Box<dyn FrameIo>>, options: &NetOptions) -> Self {
        let pairs =
            u16::try_from(wires.len()).ok().and_then(NonZeroU16::new).filter(|n| n.get() <= QUEUE_PAIRS_MAX);
        let pairs = pairs.expect("a card has 1 to 16 pairs of queues").get();
        // struct virtio_net_config up to the MTU: mac[6], status, max_virtqueue_pairs, mtu (virtio 1.2 §5.1.4).
        let mut config = Vec::with_capacity(HEADER_BYTES);
        config.extend_from_slice(&options.mac.unwrap_or_default());
        config.extend_from_slice(&S_LINK_UP.to_le_bytes());
        config.extend_from_slice(&pairs.to_le_bytes());
        config.extend_from_slice(&options.mtu.unwrap_or_default().to_le_bytes());
        let optional = [
            (options.mac.is_some(), F_MAC),
            (options.mtu.is_some(), F_MTU),
            (pairs > 1, F_MQ),
            (wires[0].takes_uso(), F_USO),
        ];
        let offered = optional.iter().filter(|(on, _)| *on).fold(F_ALWAYS, |offered, (_, bit)| offered | bit);
        let mut queue_sizes = vec![QUEUE_SIZE; usize::from(pairs) * 2];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        let shared = Arc::new(Shared {
            name: options.name.clone(),
            config: ConfigSpace::new(config),
            caller: Mutex::default(),
            limits: [&options.rx_limits, &options.tx_limits].map(|spec| Group::new(spec, monotonic_ns())),
            in_use: AtomicU16::new(1),
            in_use_next: AtomicU16::new(1),
            elsewhere: AtomicBool::new(false),
            metrics: (0..pairs).map(|_| NetMetrics::default()).collect(),
            log: Mutex::default(),
        });
        let port = |(index, wire)| {
            let limiter = |own| Limiter::sharing(own, options.group.as_ref());
            let [rx_limiter, tx_limiter] = shared.limits.each_ref().map(limiter);
            let shared = Arc::clone(&shared);
            let mut port = Port { index, shared, wire, rx_limiter, tx_limiter, active: true, attached: None };
            port.rest();
            port
        };
        let ports = (0..).zip(wires).map(port).collect();
        Self { shared, offered, queue_sizes, ports }
    }

    /// A handle for the control thread.
    #[must_use]
    pub fn handle(&self) -> NetHandle {
        NetHandle(Arc::clone(&self.shared))
    }
}

impl Idle for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn offered(&self) -> u64 {
        self.offered
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.shared.config
    }

    fn start(mut self: Box<Self>, granted: Granted) -> Result<Box<dyn Running>, StartFailed> {
        // Those of a driver that is gone are no other's, even if this start fails.
        let pairs_in_use = self.shared.in_use_next.swap(1, Ordering::AcqRel);
        // They are the interface's: one wire tells it, the one that is always attached.
        if let Err(error) = self.ports[0].wire.set_offloads(offloads(granted.features)) {
            let reason = format!("setting the offloads of {} failed: {error}", self.shared.name);
            return Err(StartFailed { device: self, reason });
        }
        if announces(granted.features) {
            self.shared.caller().interrupt = Some(Arc::downgrade(&granted.interrupt));
        }
        Ok(Box::new(live::Live::new(*self, granted, pairs_in_use)))
    }
}
