//! Sockets between guest and host: virtio socket device (virtio 1.2 §5.10), streams and records.
//!
//! ```text
//!   guest ── tx ──> packet: parse ──> mux ── connection: credit, what is shut ── send ──> Peer ──┐
//!                                      │                                                        HostSide
//!   guest <── rx ── header <────────── mux <── each connection in its turn <── recv into guest ──┘
//! ```
//! Payload is copied once, between guest memory and the host's socket, but for what a peer does not take at once: that
//! waits in the connection's backlog, whose size the guest was told and is held to. A peer that reads slowly holds up its own
//! connection only; a guest that reads slowly holds up its own peer. Whatever the guest sends that fits nothing is answered by
//! OP_RST and counted.
//!
//! Rate limits are of both directions together: bytes of payload, and packets that have any.
//!
//! Who listens where on the host, and under which names, is the [`HostSide`]'s business.

mod backlog;
mod connection;
mod credit;
mod host;
mod live;
mod metrics;
mod mux;
mod outgoing;
mod packet;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use host::{HostEvent, HostSide, Peer, RECORD_BYTES_MAX, Received};
pub use metrics::VsockMetrics;
pub use packet::{
    GUEST_CID_MIN, HEADER_BYTES, HOST_CID, Header, Key, Kind, Op, Packet, Refusal, SEQ_EOM, SHUT_BOTH,
    SHUT_RECEIVE, SHUT_SEND,
};
pub use table::{CONNECTIONS_MAX, WIDE_WINDOW_BYTES, WINDOW_BYTES};

use crate::clock::monotonic_ns;
use crate::limiter::{Group, Limiter, LimiterSpec};
use crate::virtio::queue::F_COMMON;
use crate::virtio::{ConfigSpace, DeviceKind, Granted, Idle, Running, StartFailed};

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;
/// The queue of receive buffers (virtio 1.2 §5.10.2).
pub const RX_QUEUE: u16 = 0;
/// The queue of packets to send.
pub const TX_QUEUE: u16 = 1;
/// The queue of events.
pub const EVENT_QUEUE: u16 = 2;

/// VIRTIO_VSOCK_F_STREAM (virtio 1.2 §5.10.3).
pub const F_STREAM: u64 = 1 << 0;
/// VIRTIO_VSOCK_F_SEQPACKET.
pub const F_SEQPACKET: u64 = 1 << 1;

/// How long a guest may take to answer a call, and to end what the host hung up, if nobody says otherwise: Firecracker's.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How a device presents itself.
#[derive(Debug, Clone)]
pub struct VsockOptions {
    /// The guest's address: at least [`GUEST_CID_MIN`].
    pub guest_cid: u32,
    /// See [`ANSWER_TIMEOUT`].
    pub answer_timeout: Duration,
    /// Rate limits on payload, of both directions together.
    pub limits: LimiterSpec,
}

/// What the device and its handles share.
#[derive(Default)]
struct Shared {
    metrics: VsockMetrics,
}

/// Changes and observes a device from any thread, running or not.
#[derive(Clone)]
pub struct VsockHandle {
    shared: Arc<Shared>,
    limits: Group,
}

impl VsockHandle {
    /// Puts these rate limits, with full buckets, in place of the present ones. A queue that waits for old ones does not know:
    /// kick it.
    pub fn set_limits(&self, limits: &LimiterSpec) {
        self.limits.set(limits, monotonic_ns());
    }

    /// What the device did so far.
    #[must_use]
    pub fn metrics(&self) -> &VsockMetrics {
        &self.shared.metrics
    }
}

/// A socket device that no driver is using.
pub struct Vsock {
    config: Arc<ConfigSpace>,
    shared: Arc<Shared>,
    mux: mux::Mux,
    limits: Group,
    rx_limiter: Limiter,
    tx_limiter: Limiter,
}

impl Vsock {
    /// A device whose connections end at `host`.
    #[must_use]
    pub fn new(host: Box<dyn HostSide>, options: &VsockOptions) -> Self {
        let shared = Arc::<Shared>::default();
        // struct virtio_vsock_config: guest_cid (virtio 1.2 §5.10.4).
        let config = ConfigSpace::new(u64::from(options.guest_cid).to_le_bytes().to_vec());
        let limits = Group::new(&options.limits, monotonic_ns());
        let limiter = || Limiter::sharing(&limits, None);
        let (rx_limiter, tx_limiter) = (limiter(), limiter());
        let mux = mux::Mux::new(host, options, Arc::clone(&shared));
        Self { config, mux, shared, limits, rx_limiter, tx_limiter }
    }

    /// A handle for the control thread.
    #[must_use]
    pub fn handle(&self) -> VsockHandle {
        VsockHandle { shared: Arc::clone(&self.shared), limits: self.limits.clone() }
    }
}

impl Idle for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn offered(&self) -> u64 {
        F_COMMON | F_STREAM | F_SEQPACKET
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn start(self: Box<Self>, granted: Granted) -> Result<Box<dyn Running>, StartFailed> {
        Ok(Box::new(live::Live::new(*self, granted)))
    }
}
