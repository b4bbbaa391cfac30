//! virtio over PCI, modern only (virtio 1.2 §4.1): the registers, decoded.
//!
//! ```text
//!   configuration space:  header, BARs, capabilities: MSI-X, COMMON, ISR, DEVICE, NOTIFY twice, PCI_CFG (a window onto the BARs)
//!   BAR 0, a page each:   common registers │ ISR │ device configuration │ notify, 4 bytes a queue │ MSI-X table │ PBA
//!   BAR 1, ports:         notify, 2 bytes a queue
//! ```
//! A driver is to kick by port if it can (§4.1.4.4 leaves it the choice; the order of capabilities says what is better, §4.1.4):
//! hosts whose CPUs don't say that a fault was an access to a device (AMD's) decode and emulate a kick by memory.
//!
//! Interrupts are MSI-X only. The vector of each queue is an atomic word: the device's thread finds it without a lock.
//! Locks: the configuration space's may be held while [`Msix`] takes its own; the core's is held while no other is taken but
//! by the device or its owner, and by [`Msix`] for a device that starts.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::spec::{interrupt, pci as spec};
use super::super::{DeviceKind, Idle, Owner};
use super::core::{Core, Outlet, Signal};
use super::pci_common;
use crate::bus::BusDevice;
use crate::irq::Eventfd;
use crate::mem::Ram;
use crate::pci::config::{Identity, PciConfig, Resources};
use crate::pci::msix::{self, Msix, MsixSink};
use crate::pci::root::{Bar, PciFunction};

/// Bytes of BAR 0, and what its address is a multiple of.
pub const BAR_SIZE: u32 = 0x8000;
/// Ports of BAR 1: enough for 64 queues.
pub const PORTS_SIZE: u16 = 0x80;
/// Bytes between the notify addresses of two queues (notify_off_multiplier, §4.1.4.4), in memory and in ports.
const NOTIFY_STRIDE: u32 = 4;
const NOTIFY_PORT_STRIDE: u16 = 2;

/// Each structure has a page of the BAR.
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;

/// The BARs, as capabilities name them.
const MEMORY: u8 = 0;
const PORTS: u8 = 1;

/// Offsets in a virtio capability, §4.1.4.
const CAP_BAR: u16 = 4;
const CAP_OFFSET: u16 = 8;
const CAP_LENGTH: u16 = 12;
/// pci_cfg_data, §4.1.4.9.
const CAP_DATA: u16 = 16;
/// Vendor-specific capability ID.
const VENDOR_CAPABILITY: u8 = 0x09;
/// Offset of Message Control in the MSI-X capability.
const MSIX_CONTROL: u16 = 2;

/// Where in BAR 0 a driver kicks `queue`: the machine binds an ioeventfd of any width there.
#[must_use]
pub fn notify_offset(queue: u16) -> u64 {
    NOTIFY + u64::from(NOTIFY_STRIDE) * u64::from(queue)
}

/// Which port of BAR 1 a driver may kick `queue` by instead; `None` of a queue that has none.
#[must_use]
pub fn notify_port(queue: u16) -> Option<u16> {
    queue.checked_mul(NOTIFY_PORT_STRIDE).filter(|port| *port < PORTS_SIZE)
}

/// How many vectors a device of `queues` queues gets: one each and one for configuration changes.
#[must_use]
pub fn vector_count(queues: u16) -> u16 {
    queues.saturating_add(1).min(msix::VECTORS_MAX)
}

/// The ISR byte, and which vector means what.
pub(super) struct PciSignal {
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    msix: Msix,
}

impl PciSignal {
    /// The vector of configuration changes.
    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// The driver chooses it; a vector that does not exist becomes NO_VECTOR (§4.1.5.1.2.1).
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Release);
    }

    /// The vector of a queue, NO_VECTOR if there is no such queue.
    pub(super) fn queue_vector(&self, queue: u32) -> u16 {
        self.slot(queue).map_or(spec::NO_VECTOR, |slot| slot.load(Ordering::Acquire))
    }

    /// The driver chooses it, likewise.
    pub(super) fn set_queue_vector(&self, queue: u32, vector: u16) {
        if let Some(slot) = self.slot(queue) {
            slot.store(self.existing(vector), Ordering::Release);
        }
    }

    fn slot(&self, queue: u32) -> Option<&AtomicU16> {
        self.queue_vectors.get(usize::try_from(queue).ok()?)
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() { vector } else { spec::NO_VECTOR }
    }

    fn set_isr(&self, bit: u32) {
        self.isr.fetch_or(bit.to_le_bytes()[0], Ordering::AcqRel);
    }
}

impl Signal for PciSignal {
    fn queue(&self, index: u16) {
        // With MSI-X the vector says it all; a driver that polls without it looks at the ISR byte (§4.1.5.3).
        if !self.msix.enabled() {
            self.set_isr(interrupt::QUEUE);
        }
        // NO_VECTOR is no vector of any table.
        self.msix.trigger(self.queue_vector(u32::from(index)));
    }

    fn connect(&self, index: u16, eventfd: &Eventfd) -> bool {
        self.msix.connect(self.queue_vector(u32::from(index)), eventfd)
    }

    fn disconnect(&self, eventfd: &Eventfd) {
        self.msix.disconnect(eventfd);
    }

    fn config(&self) {
        self.set_isr(interrupt::CONFIG);
        self.msix.trigger(self.config_vector());
    }

    fn clear(&self) {
        self.isr.store(0, Ordering::Release);
        self.config_vector.store(spec::NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(spec::NO_VECTOR, Ordering::Release);
        }
        self.msix.forget_pending();
    }
}

/// Where a function's BARs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The first address of BAR 0.
    pub memory: u32,
    /// The first port of BAR 1.
    pub ports: u16,
}

impl Place {
    fn resources(self) -> Resources {
        Resources { memory: self.memory, memory_size: BAR_SIZE, ports: self.ports, ports_size: PORTS_SIZE }
    }
}

/// BAR 1. What comes here no ioeventfd has taken.
struct NotifyPorts(Arc<Mutex<Core<PciSignal>>>);

impl BusDevice for NotifyPorts {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, _data: &[u8]) {
        if offset.is_multiple_of(NOTIFY_PORT_STRIDE.into())
            && let Ok(queue) = u16::try_from(offset / u64::from(NOTIFY_PORT_STRIDE))
        {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).kick(queue);
        }
    }
}

/// One virtio device as a PCI function: a [`PciFunction`] for the root, a [`BusDevice`] of [`BAR_SIZE`] bytes for BAR 0.
pub struct PciTransport {
    core: Arc<Mutex<Core<PciSignal>>>,
    ports: NotifyPorts,
    outlet: Arc<Outlet<PciSignal>>,
    config: Mutex<PciConfig>,
    /// Offset of the MSI-X capability.
    msix_cap: u16,
    /// Offset of the PCI_CFG capability.
    window_cap: u16,
}

impl PciTransport {
    /// Makes `device` a PCI function that is at `place`, for good; `owner` runs it once a driver is there, and `sink` delivers its
    /// [`vector_count`] vectors.
    ///
    /// # Panics
    /// If an address of `place` is no multiple of its BAR's size, or the device has queues of no power of two or more than 64 of
    /// them.
    #[must_use]
    pub fn new(
        device: Box<dyn Idle>,
        ram: Ram,
        owner: Box<dyn Owner>,
        sink: Arc<dyn MsixSink>,
        place: Place,
    ) -> Self {
        Self::placed(device, ram, owner, sink, |config| config.set_bars(&place.resources()))
    }

    /// The same, for a device that comes while the guest runs: no guest can move it from `place` (see [`PciConfig::set_fixed`]).
    ///
    /// # Panics
    /// As [`PciTransport::new`].
    #[must_use]
    pub fn plugged(
        device: Box<dyn Idle>,
        ram: Ram,
        owner: Box<dyn Owner>,
        sink: Arc<dyn MsixSink>,
        place: Place,
    ) -> Self {
        Self::placed(device, ram, owner, sink, |config| config.set_fixed(&place.resources()))
    }

    fn placed(
        device: Box<dyn Idle>,
        ram: Ram,
        owner: Box<dyn Owner>,
        sink: Arc<dyn MsixSink>,
        place: impl FnOnce(&mut PciConfig),
    ) -> Self {
        let queues = u16::try_from(device.queue_sizes_max().len()).unwrap_or(u16::MAX);
        let last = queues.saturating_sub(1);
        assert!(notify_port(last).is_some(), "there are ports for 64 queues, not {queues}");
        let vectors = vector_count(queues);
        let mut config = PciConfig::new(&identity(device.kind()));
        place(&mut config);
        let msix_cap = config.add_capability(msix::CAPABILITY, &msix_body(vectors), &[0x00, 0xc0]);
        let (port_stride, stride) =
            (u32::from(NOTIFY_PORT_STRIDE).to_le_bytes(), NOTIFY_STRIDE.to_le_bytes());
        for (kind, bar, at, length, extra) in [
            (spec::CAP_COMMON, MEMORY, COMMON, PAGE, &[][..]),
            (spec::CAP_ISR, MEMORY, ISR, 1, &[]),
            (spec::CAP_DEVICE, MEMORY, DEVICE, PAGE, &[]),
            (spec::CAP_NOTIFY, PORTS, 0, PORTS_SIZE.into(), &port_stride),
            (spec::CAP_NOTIFY, MEMORY, NOTIFY, PAGE, &stride),
        ] {
            config.add_capability(VENDOR_CAPABILITY, &virtio_cap(kind, bar, at, length, extra), &[]);
        }
        // The driver chooses BAR, offset and length of the window, and its data.
        let mut writable = [0; 18];
        writable[usize::from(CAP_BAR) - 2] = 0xff;
        writable[usize::from(CAP_OFFSET) - 2..].fill(0xff);
        let window = virtio_cap(spec::CAP_PCI_CFG, MEMORY, 0, 0, &[0; 4]);
        let window_cap = config.add_capability(VENDOR_CAPABILITY, &window, &writable);
        let outlet = Outlet::new(PciSignal {
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(spec::NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(spec::NO_VECTOR)).collect(),
            msix: Msix::new(vectors, sink),
        });
        let core = Arc::new(Mutex::new(Core::new(device, ram, owner, Arc::clone(&outlet))));
        let ports = NotifyPorts(Arc::clone(&core));
        Self { core, ports, outlet, config: Mutex::new(config), msix_cap, window_cap }
    }

    /// Resets device and function as a reset of the bus does: for the machine, with no vCPU running. BAR 0 stays.
    pub fn reset(&self) {
        self.core().reset();
        self.config().reset();
        self.outlet.signal.msix.reset();
    }

    /// Whether a driver is using the device: its status is not zero (§2.1).
    #[must_use]
    pub fn in_use(&self) -> bool {
        // Without the core's lock: a driver that resets the device holds it for as long as that takes.
        self.outlet.status.load(Ordering::Acquire) != 0
    }

    /// How many queues the device has, and so how many ioeventfds it can use.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        self.core().queue_count()
    }

    fn core(&self) -> MutexGuard<'_, Core<PciSignal>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> MutexGuard<'_, PciConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the PCI_CFG window points: a BAR, an offset into it and a length, if they are an access that the guest could make to
    /// the BAR itself.
    fn window(&self) -> Option<(&dyn BusDevice, u64, usize)> {
        let config = self.config();
        let bar = config.read_u32(self.window_cap + CAP_BAR).to_le_bytes()[0];
        let offset = config.read_u32(self.window_cap + CAP_OFFSET);
        let length = config.read_u32(self.window_cap + CAP_LENGTH);
        let (bar, size): (&dyn BusDevice, _) = match bar {
            MEMORY => (self, BAR_SIZE),
            PORTS => (&self.ports, PORTS_SIZE.into()),
            _ => return None,
        };
        let sound = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length) && offset < size;
        sound.then_some((bar, u64::from(offset), usize::try_from(length).ok()?))
    }
}

impl PciFunction for PciTransport {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if offset == self.window_cap + CAP_DATA
            && let Some((bar, at, length)) = self.window()
        {
            let mut held = [0; 4];
            bar.read(at, &mut held[..length]);
            return data.copy_from_slice(&held[..data.len()]);
        }
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        if offset == self.window_cap + CAP_DATA
            && let Some((bar, at, length)) = self.window()
            && length <= data.len()
        {
            return bar.write(at, &data[..length]);
        }
        let mut config = self.config();
        config.write(offset, data);
        // Under the configuration space's lock, so that two vCPUs' writes arrive in one order.
        self.outlet.signal.msix.set_control(config.read_u16(self.msix_cap + MSIX_CONTROL));
    }

    fn bar(&self, bar: Bar) -> Option<&dyn BusDevice> {
        Some(match bar {
            Bar::Memory => self,
            Bar::Ports => &self.ports,
        })
    }
}

impl BusDevice for PciTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let at = offset % PAGE;
        match offset - at {
            COMMON => pci_common::read(&self.core(), &self.outlet.signal, at, data),
            ISR if at == 0 => {
                data.fill(0);
                if let Some(first) = data.first_mut() {
                    *first = self.outlet.signal.isr.swap(0, Ordering::AcqRel);
                }
            }
            DEVICE => self.core().read_config(at, data),
            TABLE => self.outlet.signal.msix.read_table(at, data),
            PENDING => self.outlet.signal.msix.read_pending(at, data),
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let at = offset % PAGE;
        match offset - at {
            COMMON => pci_common::write(&mut self.core(), &self.outlet.signal, at, data),
            NOTIFY if at.is_multiple_of(u64::from(NOTIFY_STRIDE)) => {
                if let Ok(queue) = u16::try_from(at / u64::from(NOTIFY_STRIDE)) {
                    self.core().kick(queue);
                }
            }
            DEVICE => self.core().write_config(at, data),
            TABLE => self.outlet.signal.msix.write_table(at, data),
            _ => {}
        }
    }
}

fn identity(kind: DeviceKind) -> Identity {
    let device = spec::DEVICE_BASE + kind as u16;
    let class = match kind {
        DeviceKind::Net => 0x02_0000,
        DeviceKind::Block => 0x01_8000,
        DeviceKind::Entropy => 0x00_ff00,
        // Some other communication device.
        DeviceKind::Vsock => 0x07_8000,
    };
    Identity {
        vendor: spec::VENDOR,
        device,
        revision: spec::REVISION,
        class,
        subsystem_vendor: spec::VENDOR,
        subsystem: device,
    }
}

/// The MSI-X capability after its header: Message Control, then table and PBA in BAR 0.
fn msix_body(vectors: u16) -> Vec<u8> {
    let mut body = (vectors - 1).to_le_bytes().to_vec();
    for at in [TABLE, PENDING] {
        body.extend(word(at));
    }
    body
}

/// A virtio capability after its header (§4.1.4): a structure in a BAR.
fn virtio_cap(kind: u8, bar: u8, at: u64, length: u64, extra: &[u8]) -> Vec<u8> {
    let len = u8::try_from(16 + extra.len()).expect("capabilities are short");
    let mut body = vec![len, kind, bar, 0, 0, 0];
    body.extend(word(at));
    body.extend(word(length));
    body.extend(extra);
    body
}

fn word(value: u64) -> [u8; 4] {
    u32::try_from(value).expect("BAR 0 is below 4 GiB").to_le_bytes()
}
