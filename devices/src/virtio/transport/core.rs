//! The transport that knows no bus: features, queues, status and resets, once for both decodes.
//!
//! ```text
//!            DRIVER_OK: queues valid, Idle::start            reset: Owner::halt
//!   Idle ──────────────────────────────────────> Running ──────────────────────> Idle
//!    │ └─ queues invalid, or start failed: stays Idle, DEVICE_NEEDS_RESET │
//!                                                      Lost <── halt had nothing to give back: no driver gets it again
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::super::spec::{feature, status as bits};
use super::super::status::{self, Step};
use super::super::{ConfigSpace, DeviceKind, Granted, Idle, Owner};
use super::rings::{Area, QueueSetup};
use crate::irq::{Eventfd, Interrupt};
use crate::mem::Ram;

/// How many complaints about its driver a device logs in its life: a guest must not fill the host's log.
const COMPLAINTS_MAX: u32 = 16;

/// How interrupts leave one kind of transport. Lock-free: called on the device's thread.
pub trait Signal: Send + Sync + 'static {
    /// Queue `index` has new used buffers.
    fn queue(&self, index: u16);

    /// As [`Interrupt::connect`].
    fn connect(&self, _index: u16, _eventfd: &Eventfd) -> bool {
        false
    }

    /// As [`Interrupt::disconnect`].
    fn disconnect(&self, _eventfd: &Eventfd) {}

    /// The configuration or DEVICE_NEEDS_RESET changed.
    fn config(&self);

    /// A reset: everything pending, and everything the driver told about interrupts, is forgotten.
    fn clear(&self);
}

/// What the device's thread may touch while a vCPU holds the core: the status register and the way out for interrupts.
pub struct Outlet<S> {
    pub(super) status: AtomicU8,
    /// The transport's interrupts.
    pub signal: S,
}

impl<S> Outlet<S> {
    /// Status 0, and `signal`.
    pub fn new(signal: S) -> Arc<Self> {
        Arc::new(Self { status: AtomicU8::new(0), signal })
    }
}

impl<S: Signal> Interrupt for Outlet<S> {
    fn queue(&self, index: u16) {
        self.signal.queue(index);
    }

    fn connect(&self, index: u16, eventfd: &Eventfd) -> bool {
        self.signal.connect(index, eventfd)
    }

    fn disconnect(&self, eventfd: &Eventfd) {
        self.signal.disconnect(eventfd);
    }

    fn config(&self) {
        self.signal.config();
    }

    fn needs_reset(&self) {
        let before = self.status.fetch_or(bits::DEVICE_NEEDS_RESET, Ordering::AcqRel);
        // Before DRIVER_OK no notification may be sent (§2.1.2); the driver finds the bit when it looks.
        if before & bits::DRIVER_OK != 0 {
            self.signal.config();
        }
    }
}

/// Where the device is.
enum Place {
    Idle(Box<dyn Idle>),
    Running,
    Lost,
}

/// One half of a 64-bit register that is written 32 bits at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

impl Half {
    /// This half of `whole`.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "half of the value is what was asked for")]
    pub fn of(self, whole: u64) -> u32 {
        match self {
            Self::Low => whole as u32,
            Self::High => (whole >> 32) as u32,
        }
    }

    /// `whole` with this half replaced.
    #[must_use]
    pub fn replaced(self, whole: u64, half: u32) -> u64 {
        match self {
            Self::Low => whole & !0xffff_ffff | u64::from(half),
            Self::High => whole & 0xffff_ffff | u64::from(half) << 32,
        }
    }

    /// The half that a feature select register chooses; only 64 features exist.
    fn selected(select: u32) -> Option<Self> {
        match select {
            0 => Some(Self::Low),
            1 => Some(Self::High),
            _ => None,
        }
    }
}

/// The policy of a transport. A decode keeps it in a mutex that only vCPUs and the machine take.
pub struct Core<S> {
    place: Place,
    kind: DeviceKind,
    offered: u64,
    config: Arc<ConfigSpace>,
    ram: Ram,
    owner: Box<dyn Owner>,
    outlet: Arc<Outlet<S>>,
    /// What a DeviceFeaturesSel or device_feature_select register holds.
    pub device_features_select: u32,
    /// What a DriverFeaturesSel or driver_feature_select register holds.
    pub driver_features_select: u32,
    wanted: u64,
    /// What a QueueSel or queue_select register holds; may name a queue that does not exist.
    pub queue_select: u32,
    queues: Vec<QueueSetup>,
    complaints: u32,
}

impl<S: Signal> Core<S> {
    /// The core of `device`, which `owner` will run.
    ///
    /// # Panics
    /// If a queue of the device has a maximum size that is no power of two, or it has more than 65535 of them.
    #[must_use]
    pub fn new(device: Box<dyn Idle>, ram: Ram, owner: Box<dyn Owner>, outlet: Arc<Outlet<S>>) -> Self {
        let queues: Vec<_> = device.queue_sizes_max().iter().map(|max| QueueSetup::new(*max)).collect();
        assert!(queues.len() <= usize::from(u16::MAX), "a device has at most 65535 queues");
        Self {
            kind: device.kind(),
            offered: device.offered(),
            config: Arc::clone(device.config()),
            place: Place::Idle(device),
            ram,
            owner,
            outlet,
            device_features_select: 0,
            driver_features_select: 0,
            wanted: 0,
            queue_select: 0,
            queues,
            complaints: 0,
        }
    }

    /// The device's kind.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// The selected 32 feature bits on offer.
    #[must_use]
    pub fn device_features(&self) -> u32 {
        Half::selected(self.device_features_select).map_or(0, |half| half.of(self.offered))
    }

    /// The selected 32 feature bits the driver wants.
    #[must_use]
    pub fn driver_features(&self) -> u32 {
        Half::selected(self.driver_features_select).map_or(0, |half| half.of(self.wanted))
    }

    /// The driver wants these of the selected 32 feature bits; ignored once FEATURES_OK is set.
    pub fn want_features(&mut self, features: u32) {
        let Some(half) = Half::selected(self.driver_features_select) else { return };
        if status::features_open(self.status()) {
            self.wanted = half.replaced(self.wanted, features);
        }
    }

    /// How many queues the device has.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).expect("checked by new")
    }

    /// The selected queue, if it exists.
    #[must_use]
    pub fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// The selected queue, if it exists and may be set up now.
    fn queue_open(&mut self) -> Option<&mut QueueSetup> {
        let open = status::queues_open(self.status());
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?).filter(|_| open)
    }

    /// The driver chooses the selected queue's size; checked when the device starts.
    pub fn set_queue_size(&mut self, size: u32) {
        if let Some(queue) = self.queue_open().filter(|queue| !queue.ready) {
            // What no 16 bits can hold is as wrong as 0.
            queue.size = u16::try_from(size).unwrap_or(0);
        }
    }

    /// The driver places half of an area of the selected queue; checked when the device starts.
    pub fn set_queue_area(&mut self, area: Area, half: Half, value: u32) {
        if let Some(queue) = self.queue_open().filter(|queue| !queue.ready) {
            let address = queue.area_mut(area);
            *address = half.replaced(*address, value);
        }
    }

    /// The driver enables the selected queue, or takes that back.
    pub fn set_queue_ready(&mut self, ready: bool) {
        if let Some(queue) = self.queue_open() {
            queue.ready = ready;
        }
    }

    /// A kick that came through a register; ignored unless the device serves that queue.
    pub fn kick(&self, queue: u16) {
        let ready = self.queues.get(usize::from(queue)).is_some_and(|queue| queue.ready);
        if ready && matches!(self.place, Place::Running) && status::serving(self.status()) {
            self.owner.kick(queue);
        }
    }

    /// Fills `data` from the device's configuration space; zeros past its end.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    /// The driver writes `data` at `offset` of the configuration space; ignored before it agreed on features (§3.1.1). A
    /// device whose switch this moved is served once, as if its first queue had been kicked, so that it hears of it.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        let heard = status::queues_open(self.status()) || status::serving(self.status());
        if heard && self.config.driver_writes(self.wanted, offset, data) {
            self.kick(0);
        }
    }

    /// Changes whenever the configuration space does.
    #[must_use]
    pub fn config_generation(&self) -> u32 {
        self.config.generation()
    }

    /// The device status register.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.outlet.status.load(Ordering::Acquire)
    }

    /// The driver writes the device status register. Starts or resets the device when that follows from it.
    pub fn set_status(&mut self, written: u8) {
        let acceptable = status::acceptable(self.offered, self.wanted) && !matches!(self.place, Place::Lost);
        match status::write(self.status(), written, acceptable) {
            Step::Keep => {}
            Step::Add(added) => self.add_status(added),
            Step::Start(added) => {
                self.add_status(added);
                self.start();
            }
            Step::Break => {
                self.complain(&format_args!("driver took back status bits: wrote {written:#x}"));
                self.outlet.needs_reset();
            }
            Step::Reset => self.reset(),
        }
    }

    /// Adds, never stores: the device's thread may set DEVICE_NEEDS_RESET at the same moment.
    fn add_status(&self, added: u8) {
        self.outlet.status.fetch_or(added, Ordering::AcqRel);
    }

    /// DRIVER_OK was set: the device becomes a running one, or needs a reset.
    fn start(&mut self) {
        let device = match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Idle(device) => device,
            other => {
                self.place = other;
                return;
            }
        };
        let event_idx = self.wanted & feature::EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, queue) in self.queues.iter().enumerate() {
            match queue.grant(&self.ram, event_idx) {
                Ok(queue) => queues.push(queue),
                Err(fault) => {
                    self.place = Place::Idle(device);
                    self.complain(&format_args!("queue {index} can't be used: {fault}"));
                    self.outlet.needs_reset();
                    return;
                }
            }
        }
        let enabled: Vec<u16> =
            (0..).zip(&queues).filter(|(_, queue)| queue.is_some()).map(|(i, _)| i).collect();
        let granted = Granted {
            ram: Arc::clone(&self.ram),
            features: self.wanted,
            queues,
            interrupt: Arc::clone(&self.outlet) as Arc<dyn Interrupt>,
        };
        match device.start(granted) {
            Ok(running) => {
                self.place = Place::Running;
                self.owner.run(running, &enabled);
            }
            Err(failed) => {
                self.place = Place::Idle(failed.device);
                self.complain(&format_args!("device did not start: {}", failed.reason));
                self.outlet.needs_reset();
            }
        }
    }

    /// Takes the device back from its thread and forgets everything a driver told it, as a driver's reset does. May wait for
    /// the device's thread to let go. Also the machine's way to reset the device.
    pub fn reset(&mut self) {
        if matches!(self.place, Place::Running) {
            self.place = match self.owner.halt() {
                Some(device) => Place::Idle(device),
                None => {
                    log::error!("virtio {:?}: its owner gave no device back; it stays unusable", self.kind);
                    Place::Lost
                }
            };
        }
        if let Place::Idle(device) = &self.place {
            // A device may come back with other features or another configuration: its back end may have been replaced.
            self.offered = device.offered();
            self.config = Arc::clone(device.config());
        }
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.wanted = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(QueueSetup::reset);
        self.outlet.signal.clear();
        // Last: a driver that polls for 0 from another vCPU finds all of the above done.
        self.outlet.status.store(0, Ordering::Release);
    }

    fn complain(&mut self, what: &std::fmt::Arguments<'_>) {
        if self.complaints < COMPLAINTS_MAX {
            self.complaints += 1;
            log::warn!("virtio {:?}: {what}", self.kind);
        }
    }
}
