//! virtio over PCI, modern only (virtio 1.2 §4.1): the registers, decoded.
//!
//! ```text
//!   configuration space:  header, BAR 0, capabilities: MSI-X, COMMON, ISR, DEVICE, NOTIFY, PCI_CFG (a window onto BAR 0)
//!   BAR 0, a page each:   common registers │ ISR │ device configuration │ notify, 4 bytes a queue │ MSI-X table │ PBA
//! ```
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
use crate::pci::config::{Identity, PciConfig};
use crate::pci::msix::{self, Msix, MsixSink};
use crate::pci::root::PciFunction;

/// Bytes of BAR 0, and what its address is a multiple of.
pub const BAR_SIZE: u32 = 0x8000;
/// Bytes between the notify addresses of two queues (notify_off_multiplier, §4.1.4.4).
pub const NOTIFY_STRIDE: u32 = 4;

/// Each structure has a page of the BAR.
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;

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

/// One virtio device as a PCI function: a [`PciFunction`] for the root, a [`BusDevice`] of [`BAR_SIZE`] bytes for BAR 0.
pub struct PciTransport {
    core: Mutex<Core<PciSignal>>,
    outlet: Arc<Outlet<PciSignal>>,
    config: Mutex<PciConfig>,
    /// Offset of the MSI-X capability.
    msix_cap: u16,
    /// Offset of the PCI_CFG capability.
    window_cap: u16,
}

impl PciTransport {
    /// Makes `device` a PCI function whose BAR 0 is at `bar_address`, for good; `owner` runs it once a driver is there, and
    /// `sink` delivers its [`vector_count`] vectors.
    ///
    /// # Panics
    /// If `bar_address` is no multiple of [`BAR_SIZE`], or the device has queues of no power of two or more than 1024 of them.
    #[must_use]
    pub fn new(
        device: Box<dyn Idle>,
        ram: Ram,
        owner: Box<dyn Owner>,
        sink: Arc<dyn MsixSink>,
        bar_address: u32,
    ) -> Self {
        Self::placed(device, ram, owner, sink, |config| config.set_bar0(bar_address, BAR_SIZE))
    }

    /// The same, for a device that comes while the guest runs: its memory is at `address`, where no guest can move it from (see
    /// [`PciConfig::set_fixed_memory`]).
    ///
    /// # Panics
    /// As [`PciTransport::new`].
    #[must_use]
    pub fn plugged(
        device: Box<dyn Idle>,
        ram: Ram,
        owner: Box<dyn Owner>,
        sink: Arc<dyn MsixSink>,
        address: u32,
    ) -> Self {
        Self::placed(device, ram, owner, sink, |config| config.set_fixed_memory(address, BAR_SIZE))
    }

    fn placed(
        device: Box<dyn Idle>,
        ram: Ram,
        owner: Box<dyn Owner>,
        sink: Arc<dyn MsixSink>,
        place: impl FnOnce(&mut PciConfig),
    ) -> Self {
        let queues = u16::try_from(device.queue_sizes_max().len()).unwrap_or(u16::MAX);
        assert!(notify_offset(queues) <= NOTIFY + PAGE, "the notify page holds 1024 queues, not {queues}");
        let vectors = vector_count(queues);
        let mut config = PciConfig::new(&identity(device.kind()));
        place(&mut config);
        let msix_cap = config.add_capability(msix::CAPABILITY, &msix_body(vectors), &[0x00, 0xc0]);
        for (kind, at) in [
            (spec::CAP_COMMON, COMMON),
            (spec::CAP_ISR, ISR),
            (spec::CAP_DEVICE, DEVICE),
            (spec::CAP_NOTIFY, NOTIFY),
        ] {
            let length = if kind == spec::CAP_ISR { 1 } else { PAGE };
            let extra = if kind == spec::CAP_NOTIFY { &NOTIFY_STRIDE.to_le_bytes()[..] } else { &[] };
            config.add_capability(VENDOR_CAPABILITY, &virtio_cap(kind, at, length, extra), &[]);
        }
        // The driver chooses BAR, offset and length of the window, and its data.
        let mut writable = [0; 18];
        writable[usize::from(CAP_BAR) - 2] = 0xff;
        writable[usize::from(CAP_OFFSET) - 2..].fill(0xff);
        let window = virtio_cap(spec::CAP_PCI_CFG, 0, 0, &[0; 4]);
        let window_cap = config.add_capability(VENDOR_CAPABILITY, &window, &writable);
        let outlet = Outlet::new(PciSignal {
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(spec::NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(spec::NO_VECTOR)).collect(),
            msix: Msix::new(vectors, sink),
        });
        let core = Mutex::new(Core::new(device, ram, owner, Arc::clone(&outlet)));
        Self { core, outlet, config: Mutex::new(config), msix_cap, window_cap }
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

    /// Where the PCI_CFG window points: an offset into BAR 0 and a length, if they are an access that the guest could make to
    /// the BAR itself.
    fn window(&self) -> Option<(u64, usize)> {
        let config = self.config();
        let bar = config.read_u32(self.window_cap + CAP_BAR).to_le_bytes()[0];
        let offset = config.read_u32(self.window_cap + CAP_OFFSET);
        let length = config.read_u32(self.window_cap + CAP_LENGTH);
        let sound =
            bar == 0 && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length) && offset < BAR_SIZE;
        sound.then_some((u64::from(offset), usize::try_from(length).ok()?))
    }
}

impl PciFunction for PciTransport {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if offset == self.window_cap + CAP_DATA
            && let Some((at, length)) = self.window()
        {
            let mut held = [0; 4];
            self.read(at, &mut held[..length]);
            return data.copy_from_slice(&held[..data.len()]);
        }
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        if offset == self.window_cap + CAP_DATA
            && let Some((at, length)) = self.window()
            && length <= data.len()
        {
            return self.write(at, &data[..length]);
        }
        let mut config = self.config();
        config.write(offset, data);
        // Under the configuration space's lock, so that two vCPUs' writes arrive in one order.
        self.outlet.signal.msix.set_control(config.read_u16(self.msix_cap + MSIX_CONTROL));
    }

    fn bar0(&self) -> Option<&dyn BusDevice> {
        Some(self)
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

/// A virtio capability after its header (§4.1.4): a structure in BAR 0.
fn virtio_cap(kind: u8, at: u64, length: u64, extra: &[u8]) -> Vec<u8> {
    let len = u8::try_from(16 + extra.len()).expect("capabilities are short");
    let mut body = vec![len, kind, 0, 0, 0, 0];
    body.extend(word(at));
    body.extend(word(length));
    body.extend(extra);
    body
}

fn word(value: u64) -> [u8; 4] {
    u32::try_from(value).expect("BAR 0 is below 4 GiB").to_le_bytes()
}
