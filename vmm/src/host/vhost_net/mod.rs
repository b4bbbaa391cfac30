//! A network interface whose frames the host's kernel moves (vhost-net): a virtio network device like any other to its guest.
//!
//! ```text
//!   guest ── kick: ioeventfd ──> vhost-net in the kernel <──> TAP          no thread of ours hears of a frame
//!   guest <── interrupt ── irqfd <── call: eventfd ────────┘         nor of an interrupt, over PCI
//!                      └── the device's thread <── ...               but over MMIO, whose status register is ours
//! ```
//! It is a [`Net`](devices::virtio::net::Net) around which everything stays as it is: configuration space, features, queues. While the
//! kernel serves, that device runs along without being called. When the kernel can't serve, it takes over where the kernel
//! stopped, with the same features and rings; the guest notices nothing:
//!
//! ```text
//!                    no limits               pause
//!     start ──> Held ─────────────> Kernel ─────────> Held ──> ...
//!                │ limits, or the     │ limits come       Kernel ──> Broken: the driver broke a ring
//!                │ kernel refuses     v
//!                └──────────────> Userspace        (until its driver starts the device again)
//! ```
//! vhost-net knows no rate limits, so an interface that has some is served in userspace: never without them. It counts nothing
//! either: of frames and bytes the TAP device's counters tell.
//!
//! A vhost-net serves one pair of queues: several pairs are several of them, each a thread in the kernel, of which those work whose
//! pair the driver uses. The control queue is userspace's always: its device attaches and detaches the TAP device's queues. Once
//! userspace serves, it does so for all pairs on the device's one thread.

mod kernel;
mod live;
#[cfg(test)]
mod pairs_tests;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use devices::limiter::{Limiter, LimiterSpec};
use devices::log_limit::LogLimit;
use devices::virtio::net::NetHandle;
use devices::virtio::{ConfigSpace, DeviceKind, Granted, Idle, Running, StartFailed};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use kernel::{Kernel, PATH, Vhost, VhostError, available};

/// Queues of a pair: one to receive, one to send.
const PAIR: usize = 2;

/// The features that vhost-net takes part in; all others are between the guest and the TAP device.
const KNOWN: u64 = devices::virtio::net::F_MRG_RXBUF | devices::virtio::queue::F_COMMON;

/// What the device and its handles share.
struct Shared {
    /// There are rate limits.
    limited: AtomicBool,
    /// Tells the device's thread to look at the above.
    wake: EventFd,
    in_kernel: AtomicBool,
    fallbacks: AtomicU64,
}

/// Tells an interface what became of its limits, and says where it is served; from any thread.
#[derive(Clone)]
pub struct VhostHandle(Arc<Shared>);

impl VhostHandle {
    /// These are the limits from now on; the [`NetHandle`] has been given them already.
    pub fn limits_are(&self, rx: &LimiterSpec, tx: &LimiterSpec) {
        self.0.limited.store(limits(rx, tx), Ordering::Release);
        // EAGAIN: it has been woken more often than it can count.
        let _ = self.0.wake.write(1);
    }

    /// Whether the kernel serves it now.
    #[must_use]
    pub fn in_kernel(&self) -> bool {
        self.0.in_kernel.load(Ordering::Relaxed)
    }

    /// How often userspace took over, or began in the kernel's place.
    #[must_use]
    pub fn fallbacks(&self) -> u64 {
        self.0.fallbacks.load(Ordering::Relaxed)
    }
}

fn limits(rx: &LimiterSpec, tx: &LimiterSpec) -> bool {
    !(Limiter::new(rx, 0).is_off() && Limiter::new(tx, 0).is_off())
}

/// What an interface is to be.
pub struct VhostOptions {
    /// What the log calls it.
    pub name: String,
    /// What kicks its queues: what the guest's ioeventfds signal.
    pub kicks: Arc<[EventFd]>,
    /// Limits of what the guest receives, from the start.
    pub rx_limits: LimiterSpec,
    /// Limits of what the guest sends, from the start.
    pub tx_limits: LimiterSpec,
}

/// All of an interface but its userspace path.
struct Link {
    name: String,
    /// By pair.
    kernels: Vec<Box<dyn Kernel>>,
    kicks: Arc<[EventFd]>,
    /// What the kernel signals when it has used buffers, by queue.
    calls: Vec<Arc<EventFd>>,
    /// What it signals when a ring is broken.
    errors: EventFd,
    shared: Arc<Shared>,
    net: NetHandle,
    log: LogLimit,
}

impl Link {
    /// Logs within the bound of this device: a driver may start it as often as it likes.
    fn warn(&mut self, what: std::fmt::Arguments<'_>) {
        if let Some(muted) = self.log.admit() {
            log::warn!("{}: {what} ({muted} lines left out before)", self.name);
        }
    }
}

/// An interface that no driver uses.
pub struct VhostNet {
    user: Box<dyn Idle>,
    offered: u64,
    link: Link,
}

impl VhostNet {
    /// Has `kernels`, one for each of its pairs, serve the network device `user`, of which `net` is the handle.
    ///
    /// # Errors
    /// If descriptors can't be had.
    ///
    /// # Panics
    /// If there are not as many of them as pairs.
    pub fn new(
        user: Box<dyn Idle>,
        net: NetHandle,
        kernels: Vec<Box<dyn Kernel>>,
        options: &VhostOptions,
    ) -> io::Result<Self> {
        assert_eq!(kernels.len(), net.pairs().len(), "each pair of queues has its vhost-net");
        let eventfd = || EventFd::new(EFD_NONBLOCK);
        let shared = Arc::new(Shared {
            limited: AtomicBool::new(limits(&options.rx_limits, &options.tx_limits)),
            wake: eventfd()?,
            in_kernel: AtomicBool::new(false),
            fallbacks: AtomicU64::new(0),
        });
        let link = Link {
            name: options.name.clone(),
            calls: (0..kernels.len() * PAIR).map(|_| eventfd().map(Arc::new)).collect::<io::Result<_>>()?,
            kernels,
            kicks: Arc::clone(&options.kicks),
            errors: eventfd()?,
            shared,
            net,
            log: LogLimit::default(),
        };
        Ok(Self::of(user, link))
    }

    fn of(user: Box<dyn Idle>, link: Link) -> Self {
        let known = link.kernels.iter().fold(KNOWN, |known, kernel| known & kernel.features());
        let offered = user.offered() & !(KNOWN & !known);
        Self { user, offered, link }
    }

    /// A handle for the control thread.
    #[must_use]
    pub fn handle(&self) -> VhostHandle {
        VhostHandle(Arc::clone(&self.link.shared))
    }
}

impl Idle for VhostNet {
    fn kind(&self) -> DeviceKind {
        self.user.kind()
    }

    fn offered(&self) -> u64 {
        self.offered
    }

    fn queue_sizes_max(&self) -> &[u16] {
        self.user.queue_sizes_max()
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        self.user.config()
    }

    fn start(self: Box<Self>, granted: Granted) -> Result<Box<dyn Running>, StartFailed> {
        let Self { user, link, .. } = *self;
        Ok(Box::new(live::Live::start(user, link, granted)?))
    }
}
