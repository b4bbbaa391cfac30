//! A network card: virtio network device (virtio 1.2 §5.1), one pair of queues.
//!
//! ```text
//!   wire (FrameIo) ── readable ──> rx: one recv straight into guest buffers, as many as the frame takes (MRG_RXBUF)
//!   guest ── kick ──> tx: one send straight from guest buffers
//! ```
//! No frame is copied here. Both directions share the device's thread and take turns in bounded batches. Receive buffers
//! are popped ahead, enough for the largest frame, and kept from one frame to the next. When the guest runs out of them, the
//! wire is left alone until it kicks.

mod frame_io;
mod live;
mod metrics;
mod rx;
#[cfg(test)]
mod tests;
mod tx;

use std::sync::Arc;

pub use frame_io::{FrameIo, Offloads, SLICES_MAX};
pub use metrics::NetMetrics;

use crate::clock::monotonic_ns;
use crate::limiter::{Group, Limiter, LimiterSpec};
use crate::log_limit::LogLimit;
use crate::mailbox::Mailbox;
use crate::virtio::queue::F_COMMON;
use crate::virtio::{ConfigSpace, DeviceKind, Granted, Idle, Running, StartFailed};

/// Entries of either queue.
pub const QUEUE_SIZE: u16 = 256;
/// The queue of receive buffers.
pub const RX_QUEUE: u16 = 0;
/// The queue of frames to send.
pub const TX_QUEUE: u16 = 1;

/// VIRTIO_NET_F_CSUM (virtio 1.2 §5.1.3), as those below.
pub const F_CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_MTU.
pub const F_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC.
pub const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_GUEST_TSO4.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_GUEST_TSO6.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// VIRTIO_NET_F_GUEST_ECN.
pub const F_GUEST_ECN: u64 = 1 << 9;
/// VIRTIO_NET_F_GUEST_UFO.
pub const F_GUEST_UFO: u64 = 1 << 10;
/// VIRTIO_NET_F_HOST_TSO4.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_HOST_TSO6.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// VIRTIO_NET_F_HOST_ECN.
pub const F_HOST_ECN: u64 = 1 << 13;
/// VIRTIO_NET_F_HOST_UFO.
pub const F_HOST_UFO: u64 = 1 << 14;
/// VIRTIO_NET_F_MRG_RXBUF.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_STATUS.
pub const F_STATUS: u64 = 1 << 16;

/// What every card offers, whatever its options.
const F_ALWAYS: u64 = F_COMMON
    | F_CSUM
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_GUEST_ECN
    | F_GUEST_UFO
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN
    | F_HOST_UFO
    | F_MRG_RXBUF
    | F_STATUS;

/// Bytes of `struct virtio_net_hdr` with its number of buffers (virtio 1.2 §5.1.6).
const HEADER_BYTES: usize = 12;
/// VIRTIO_NET_S_LINK_UP (virtio 1.2 §5.1.4).
const S_LINK_UP: u16 = 1;

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

/// Changes that wait for the device's thread.
#[derive(Default)]
struct Changes {
    rx_limits: Option<LimiterSpec>,
    tx_limits: Option<LimiterSpec>,
}

/// What the device and its handles share.
struct Shared {
    changes: Mailbox<Changes>,
    metrics: NetMetrics,
}

/// Changes and observes a card from any thread, running or not.
#[derive(Clone)]
pub struct NetHandle(Arc<Shared>);

impl NetHandle {
    /// Puts these rate limits, with full buckets, in place of the present ones; `None` leaves a direction as it is. The
    /// device's thread takes them up when it next serves either queue: kick both if old limits may hold them.
    pub fn set_limits(&self, rx: Option<LimiterSpec>, tx: Option<LimiterSpec>) {
        self.0.changes.post(|changes| {
            changes.rx_limits = rx.or(changes.rx_limits);
            changes.tx_limits = tx.or(changes.tx_limits);
        });
    }

    /// What the card did so far.
    #[must_use]
    pub fn metrics(&self) -> &NetMetrics {
        &self.0.metrics
    }
}

/// A network card that no driver is using.
pub struct Net {
    shared: Arc<Shared>,
    config: Arc<ConfigSpace>,
    name: String,
    offered: u64,
    wire: Box<dyn FrameIo>,
    rx_limiter: Limiter,
    tx_limiter: Limiter,
    log: LogLimit,
}

impl Net {
    /// A card on `wire`.
    #[must_use]
    pub fn new(wire: Box<dyn FrameIo>, options: &NetOptions) -> Self {
        // struct virtio_net_config up to the MTU: mac[6], status, max_virtqueue_pairs, mtu (virtio 1.2 §5.1.4).
        let mut config = Vec::with_capacity(HEADER_BYTES);
        config.extend_from_slice(&options.mac.unwrap_or_default());
        config.extend_from_slice(&S_LINK_UP.to_le_bytes());
        config.extend_from_slice(&1u16.to_le_bytes());
        config.extend_from_slice(&options.mtu.unwrap_or_default().to_le_bytes());
        let mac = if options.mac.is_some() { F_MAC } else { 0 };
        let mtu = if options.mtu.is_some() { F_MTU } else { 0 };
        let now = monotonic_ns();
        Self {
            shared: Arc::new(Shared { changes: Mailbox::default(), metrics: NetMetrics::default() }),
            config: ConfigSpace::new(config),
            name: options.name.clone(),
            offered: F_ALWAYS | mac | mtu,
            wire,
            rx_limiter: Limiter::new(&options.rx_limits, now).within(options.group.as_ref()),
            tx_limiter: Limiter::new(&options.tx_limits, now).within(options.group.as_ref()),
            log: LogLimit::default(),
        }
    }

    /// A handle for the control thread.
    #[must_use]
    pub fn handle(&self) -> NetHandle {
        NetHandle(Arc::clone(&self.shared))
    }

    /// Takes up what handles asked for.
    fn take_changes(&mut self) {
        let Some(changes) = self.shared.changes.take() else { return };
        let now = monotonic_ns();
        if let Some(limits) = changes.rx_limits {
            self.rx_limiter.set(&limits, now);
        }
        if let Some(limits) = changes.tx_limits {
            self.tx_limiter.set(&limits, now);
        }
    }

    /// Logs within the bound of this device.
    fn log(&mut self, what: std::fmt::Arguments) {
        if let Some(muted) = self.log.admit() {
            log::warn!("{}: {what} ({muted} lines left out before)", self.name);
        }
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
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn start(mut self: Box<Self>, granted: Granted) -> Result<Box<dyn Running>, StartFailed> {
        if let Err(error) = self.wire.set_offloads(offloads(granted.features)) {
            let reason = format!("setting the offloads of {} failed: {error}", self.name);
            return Err(StartFailed { device: self, reason });
        }
        Ok(Box::new(live::Live::new(*self, granted)))
    }
}

/// What a driver with these features can receive. A feature without the one it needs (virtio 1.2 §5.1.3.1) is left off.
fn offloads(features: u64) -> Offloads {
    let has = |bit| features & bit != 0;
    let csum = has(F_GUEST_CSUM);
    let tso4 = csum && has(F_GUEST_TSO4);
    let tso6 = csum && has(F_GUEST_TSO6);
    Offloads { csum, tso4, tso6, ecn: (tso4 || tso6) && has(F_GUEST_ECN), ufo: csum && has(F_GUEST_UFO) }
}
