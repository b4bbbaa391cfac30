//! The contract between a virtio device, its transport and whoever runs it.
//!
//! ```text
//!            vCPU thread                                   the device's own thread
//!   guest ── register access ──> transport::core ── Owner::run ──> Running::serve(queue), Running::ready(source)
//!              (mmio or pci)      holds Idle        Owner::halt <── Running::stop() = Idle
//! ```
//! Before DRIVER_OK a transport holds an [`Idle`] device: it can be described, not served. [`Idle::start`] trades it for a
//! [`Running`] one, which owns its queues; [`Running::stop`] trades it back. Serving without memory, or starting twice,
//! does not compile.

pub mod block;
pub mod net;
pub mod queue;
pub mod rng;
pub mod spec;
pub mod status;
pub mod transport;
pub mod vsock;

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use virtio_queue::Queue;

use crate::irq::Interrupt;
use crate::mem::Ram;

/// The device's kind: its virtio device ID (virtio 1.2 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DeviceKind {
    /// Network card, §5.1.
    Net = 1,
    /// Block device, §5.2.
    Block = 2,
    /// Entropy device, §5.4.
    Entropy = 4,
    /// Socket device, §5.10.
    Vsock = 19,
}

/// A byte of a configuration space that the driver may write: 0 or 1.
#[derive(Debug)]
struct Switch {
    offset: u64,
    feature: u64,
    on: AtomicBool,
}

/// The device-specific configuration space (virtio 1.2 §2.5), little-endian, shared by the device (which changes it) and
/// its transport (which lets the guest read it, and write its one switch if it has one).
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: RwLock<Vec<u8>>,
    generation: AtomicU32,
    switch: Option<Switch>,
}

impl ConfigSpace {
    /// A configuration space holding `bytes`, generation 0.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { bytes: RwLock::new(bytes), generation: AtomicU32::new(0), switch: None })
    }

    /// The same, where a driver that agreed on the bit `feature` may switch the byte at `offset` off and on. It is on now.
    ///
    /// # Panics
    /// If `offset` is past the end: the device knows its own layout.
    #[must_use]
    pub fn with_switch(bytes: Vec<u8>, offset: usize, feature: u64) -> Arc<Self> {
        assert!(offset < bytes.len(), "the switch is one of the bytes");
        let switch = Switch { offset: offset as u64, feature, on: AtomicBool::new(true) };
        Arc::new(Self { bytes: RwLock::new(bytes), generation: AtomicU32::new(0), switch: Some(switch) })
    }

    /// Whether the driver left the switch on; true without one. Cheap enough to be asked for each request.
    #[must_use]
    pub fn switched_on(&self) -> bool {
        self.switch.as_ref().is_none_or(|switch| switch.on.load(Ordering::Acquire))
    }

    /// Switches on again: the driver that switched off is gone.
    pub fn reset_switch(&self) {
        if let Some(switch) = &self.switch {
            switch.on.store(true, Ordering::Release);
        }
    }

    /// A driver that agreed on `features` writes `data` at `offset`; whether that moved the switch. All else is ignored.
    pub fn driver_writes(&self, features: u64, offset: u64, data: &[u8]) -> bool {
        let Some(switch) = self.switch.as_ref().filter(|switch| features & switch.feature != 0) else {
            return false;
        };
        let at = switch.offset.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
        let Some(byte) = at.and_then(|at| data.get(at)) else { return false };
        switch.on.swap(*byte != 0, Ordering::AcqRel) != (*byte != 0)
    }

    /// Fills `data` from `offset`; zeros past the end.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let bytes = self.bytes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(rest) = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)) else { return };
        let n = rest.len().min(data.len());
        data[..n].copy_from_slice(&rest[..n]);
        if let Some(switch) = &self.switch
            && let Some(byte) =
                switch.offset.checked_sub(offset).and_then(|at| data.get_mut(usize::try_from(at).ok()?))
        {
            *byte = switch.on.load(Ordering::Acquire).into();
        }
    }

    /// Replaces the bytes at `offset` and moves to the next generation. The caller raises the config interrupt.
    ///
    /// # Panics
    /// If `offset + data.len()` is past the end: the device knows its own layout.
    pub fn update(&self, offset: usize, data: &[u8]) {
        let mut bytes = self.bytes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        bytes[offset..offset + data.len()].copy_from_slice(data);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Changes whenever the contents do (virtio 1.2 §2.5.3.1).
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }
}

/// What a device gets when the driver sets DRIVER_OK.
pub struct Granted {
    /// All guest RAM.
    pub ram: Ram,
    /// The features both sides agreed on; a subset of what was offered, VIRTIO_F_VERSION_1 among them.
    pub features: u64,
    /// The enabled queues by index; `None` where the driver enabled none. Each is valid: ready, sized, rings inside RAM.
    pub queues: Vec<Option<Queue>>,
    /// How to reach the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

/// A device that could not start: why, and the device itself, unchanged.
pub struct StartFailed {
    /// The device, as it was.
    pub device: Box<dyn Idle>,
    /// For the log.
    pub reason: String,
}

/// A device that no driver is using: all that a transport can hold before DRIVER_OK.
pub trait Idle: Send {
    /// The virtio device ID.
    fn kind(&self) -> DeviceKind;

    /// The feature bits on offer, transport-independent ones (VIRTIO_F_VERSION_1, EVENT_IDX, INDIRECT_DESC) included.
    fn offered(&self) -> u64;

    /// The largest size of each queue; powers of two. Its length is the number of queues.
    fn queue_sizes_max(&self) -> &[u16];

    /// The device's configuration space.
    fn config(&self) -> &Arc<ConfigSpace>;

    /// Begins to serve. Cheap: called on a vCPU's thread.
    ///
    /// # Errors
    /// [`StartFailed`] gives the device back; the transport then sets DEVICE_NEEDS_RESET.
    fn start(self: Box<Self>, granted: Granted) -> Result<Box<dyn Running>, StartFailed>;
}

/// What [`Running::serve`] left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Nothing to do until the next kick or event.
    Drained,
    /// The bound on one batch was reached: call again soon, after a look at the other sources.
    More,
    /// A rate limit or a busy host holds the queue, or its driver is owed an interrupt: call again after this long, or when kicked.
    After(Duration),
    /// The driver broke the rules; [`Interrupt::needs_reset`] was already called. Serve nothing more until stopped.
    Broken,
}

impl Served {
    /// The same, of a queue that is to be served again after `wait` as well, if there is such a time.
    #[must_use]
    pub fn and_after(self, wait: Option<Duration>) -> Self {
        match (self, wait) {
            (Self::Drained, Some(wait)) => Self::After(wait),
            (Self::After(wait), Some(other)) => Self::After(wait.min(other)),
            (served, _) => served,
        }
    }
}

/// A device in use. Owned by one thread, which alone calls it, and serves all of its queues unless it was asked to split some
/// off.
pub trait Running: Send {
    /// Serves one bounded batch of `queue`; called when the driver kicked it, and once after the start.
    /// An index without a queue is ignored.
    fn serve(&mut self, queue: u16) -> Served;

    /// Descriptors beside the kicks that the device waits for to become readable, but for those of parts that were split off.
    /// Asked once, after that.
    /// Watched edge-triggered: `ready` reads until it would block or remembers what is left.
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// The source of this index (in [`Running::sources`]) became readable, or `Served::More`/`After` of it is due.
    fn ready(&mut self, _source: usize) -> Served {
        Served::Drained
    }

    /// A descriptor, with its index, that the device has begun to wait for beside its sources, once: it is watched like them
    /// until it is closed. Asked after each call.
    fn new_source(&mut self) -> Option<(usize, RawFd)> {
        None
    }

    /// Whether somebody asks [`Running::peek`] rather than waiting for kicks. While it is so, a queue that is served and empty is
    /// left without asking its driver for kicks; once it is so no more, serve each queue before waiting.
    fn set_polled(&mut self, _on: bool) {}

    /// Whether `queue` has something to serve. A load.
    fn peek(&self, _queue: u16) -> bool {
        false
    }

    /// Begins to work, or goes on after [`Running::settle`]: called before the first [`Running::serve`], and when a pause ends.
    /// For a device whose queues somebody else serves, who has to be told.
    fn go_on(&mut self) {}

    /// The queues, as bits, whose kicks somebody else hears at present: `serve` need not be called for these. Asked after each
    /// call.
    fn kicked_elsewhere(&self) -> u64 {
        0
    }

    /// Finishes requests in flight, so that nothing of the device's touches guest memory until it is called again.
    fn settle(&mut self) {}

    /// The queues that are split off together with `queue`, and it, so that several threads share the work; `None` if it stays
    /// with the device.
    fn part_of(&self, _queue: u16) -> Option<Range<u16>> {
        None
    }

    /// Splits off the service of the part that `queue` belongs to; from then on this device ignores its queues. `None` if there
    /// is no such queue, its part was split off before, or it stays with the device.
    fn split_off(&mut self, _queue: u16) -> Option<Box<dyn Part>> {
        None
    }

    /// Settles requests in flight and becomes idle again, with everything the driver negotiated forgotten.
    fn stop(self: Box<Self>) -> Box<dyn Idle>;
}

/// The service of some queues of a running device, on a thread of its own. Its end comes before the device is stopped.
pub trait Part: Send {
    /// As [`Running::serve`], of one of its queues.
    fn serve(&mut self, queue: u16) -> Served;

    /// A descriptor that it waits for from the start, watched as [`Running::sources`] are. Asked once, before anything else, on
    /// its thread.
    fn source(&mut self) -> Option<RawFd> {
        None
    }

    /// What it waits for became readable, or `Served::More`/`After` of it is due.
    fn ready(&mut self) -> Served {
        Served::Drained
    }

    /// As [`Running::new_source`]; it has one at a time, and none beside one from the start.
    fn new_source(&mut self) -> Option<RawFd> {
        None
    }

    /// As [`Running::set_polled`].
    fn set_polled(&mut self, _on: bool) {}

    /// As [`Running::peek`].
    fn peek(&self, _queue: u16) -> bool {
        false
    }

    /// As [`Running::settle`].
    fn settle(&mut self) {}

    /// Settles requests in flight and serves nothing more.
    fn end(self: Box<Self>);
}

/// Whoever gives a running device its thread; a transport has one. Implemented by the machine.
pub trait Owner: Send {
    /// Runs the device: first one [`Running::serve`] of each queue in `queues`, then whenever kicked.
    fn run(&mut self, device: Box<dyn Running>, queues: &[u16]);

    /// Stops what runs, waiting until its thread let go of it; `None` if nothing runs.
    fn halt(&mut self) -> Option<Box<dyn Idle>>;

    /// A kick of `queue` that came through the transport's registers rather than through an ioeventfd.
    fn kick(&self, queue: u16);
}
