//! A guest's driver at the level of registers, over either transport: the same steps, other addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::irq::CountingLine;
use super::owner::InlineOwner;
use crate::bus::BusDevice;
use crate::irq::Line;
use crate::mem::Ram;
use crate::pci::msix::{MsixMessage, MsixSink};
use crate::pci::root::PciFunction;
use crate::virtio::Idle;
use crate::virtio::spec::{interrupt, mmio, pci::common, status};
use crate::virtio::transport::mmio::MmioTransport;
use crate::virtio::transport::pci::{PciTransport, Place, notify_offset, vector_count};

/// Where the BAR of a function under test is.
pub const BAR: u32 = 0xe000_0000;
/// Where it and its ports are.
pub const PLACE: Place = Place { memory: BAR, ports: 0x1080 };
/// Offset of the device configuration in the BAR; a real driver reads it from the capability.
pub const PCI_DEVICE: u64 = 0x2000;
/// Offset of the MSI-X table in the BAR; likewise.
pub const PCI_TABLE: u64 = 0x4000;
/// Offset of Message Control in the configuration space; likewise.
pub const PCI_MSIX_CONTROL: u16 = 0x42;

/// A sink that counts what it delivers.
#[derive(Debug, Default)]
pub struct CountingSink {
    triggers: Vec<AtomicU64>,
    routes: AtomicU64,
}

impl CountingSink {
    /// Nothing delivered on any of `vectors`.
    #[must_use]
    pub fn new(vectors: u16) -> Arc<Self> {
        let triggers = (0..vectors).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { triggers, routes: AtomicU64::new(0) })
    }

    /// How often `vector` was delivered.
    ///
    /// # Panics
    /// If there is no such vector.
    #[must_use]
    pub fn delivered(&self, vector: u16) -> u64 {
        self.triggers[usize::from(vector)].load(Ordering::SeqCst)
    }

    /// How often a route changed.
    #[must_use]
    pub fn routes(&self) -> u64 {
        self.routes.load(Ordering::SeqCst)
    }
}

impl MsixSink for CountingSink {
    fn route(&self, vector: u16, _message: MsixMessage, _masked: bool) {
        assert!(usize::from(vector) < self.triggers.len(), "only vectors that exist are routed");
        self.routes.fetch_add(1, Ordering::SeqCst);
    }

    fn trigger(&self, vector: u16) {
        self.triggers[usize::from(vector)].fetch_add(1, Ordering::SeqCst);
    }
}

/// Which transport a [`TransportDriver`] goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// virtio-mmio.
    Mmio,
    /// virtio-pci with MSI-X: vector 0 for configuration changes, vector n + 1 for queue n.
    Pci,
}

impl Via {
    /// Both, for tests that run over each.
    pub const ALL: [Self; 2] = [Self::Mmio, Self::Pci];
}

/// Where a driver put a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLayout {
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub driver: u64,
    /// Used ring.
    pub device: u64,
}

/// The transport under test and what its interrupts go to.
enum Wire {
    Mmio { transport: Arc<MmioTransport>, line: Arc<CountingLine> },
    Pci { transport: Arc<PciTransport>, sink: Arc<CountingSink> },
}

/// A guest's driver, one method for each thing that drivers do.
pub struct TransportDriver {
    wire: Wire,
    /// Runs the device; the test may serve queues and sources through it.
    pub owner: InlineOwner,
}

impl TransportDriver {
    /// Puts `device` behind a transport, run by an [`InlineOwner`]. Over PCI, MSI-X is enabled and every vector unmasked.
    #[must_use]
    pub fn new(via: Via, device: Box<dyn Idle>, ram: Ram) -> Self {
        let owner = InlineOwner::new();
        let boxed = Box::new(owner.clone());
        let wire = match via {
            Via::Mmio => {
                let line = CountingLine::new();
                let wired = Arc::clone(&line) as Arc<dyn Line>;
                Wire::Mmio { transport: Arc::new(MmioTransport::new(device, ram, boxed, wired)), line }
            }
            Via::Pci => {
                let queues = u16::try_from(device.queue_sizes_max().len()).expect("few queues");
                let sink = CountingSink::new(vector_count(queues));
                let wired = Arc::clone(&sink) as Arc<dyn MsixSink>;
                let transport = Arc::new(PciTransport::new(device, ram, boxed, wired, PLACE));
                transport.config_write(PCI_MSIX_CONTROL, &0x8000u16.to_le_bytes());
                for vector in 0..vector_count(queues) {
                    let entry = PCI_TABLE + 16 * u64::from(vector);
                    transport.write(entry, &0xfee0_0000u64.to_le_bytes());
                    transport.write(entry + 8, &(0x30 + u64::from(vector)).to_le_bytes());
                }
                Wire::Pci { transport, sink }
            }
        };
        Self { wire, owner }
    }

    /// The registers (over PCI, BAR 0), for accesses that no method makes.
    #[must_use]
    pub fn window(&self) -> &dyn BusDevice {
        match &self.wire {
            Wire::Mmio { transport, .. } => &**transport,
            Wire::Pci { transport, .. } => &**transport,
        }
    }

    /// The function, if the transport is PCI.
    #[must_use]
    pub fn function(&self) -> Option<&dyn PciFunction> {
        match &self.wire {
            Wire::Mmio { .. } => None,
            Wire::Pci { transport, .. } => Some(&**transport),
        }
    }

    /// The same, to put it on a bus.
    #[must_use]
    pub fn shared_function(&self) -> Option<Arc<dyn PciFunction>> {
        match &self.wire {
            Wire::Mmio { .. } => None,
            Wire::Pci { transport, .. } => Some(Arc::clone(transport) as Arc<dyn PciFunction>),
        }
    }

    /// The machine resets the device.
    pub fn machine_reset(&self) {
        match &self.wire {
            Wire::Mmio { transport, .. } => transport.reset(),
            Wire::Pci { transport, .. } => transport.reset(),
        }
    }

    /// Chooses the register of this transport.
    fn at(&self, mmio: u64, pci: u64) -> u64 {
        match self.wire {
            Wire::Mmio { .. } => mmio,
            Wire::Pci { .. } => pci,
        }
    }

    /// Reads `width` bytes of the window.
    fn read(&self, offset: u64, width: usize) -> u32 {
        let mut data = [0; 4];
        self.window().read(offset, &mut data[..width]);
        u32::from_le_bytes(data)
    }

    /// Writes a field that is 32 bits wide over MMIO and `pci_width` bytes over PCI.
    fn write(&self, mmio: u64, pci: u64, pci_width: usize, value: u32) {
        let width = if matches!(self.wire, Wire::Mmio { .. }) { 4 } else { pci_width };
        self.window().write(self.at(mmio, pci), &value.to_le_bytes()[..width]);
    }

    /// The device status register.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self.wire {
            Wire::Mmio { .. } => self.read(mmio::STATUS, 4),
            Wire::Pci { .. } => self.read(common::DEVICE_STATUS, 1),
        }
        .to_le_bytes()[0]
    }

    /// Writes the device status register.
    pub fn set_status(&self, value: u8) {
        self.write(mmio::STATUS, common::DEVICE_STATUS, 1, u32::from(value));
    }

    /// Resets the device.
    pub fn reset(&self) {
        self.set_status(0);
    }

    /// The features on offer.
    #[must_use]
    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.write(mmio::DEVICE_FEATURES_SEL, common::DEVICE_FEATURE_SELECT, 4, select);
            u64::from(self.read(self.at(mmio::DEVICE_FEATURES, common::DEVICE_FEATURE), 4))
        };
        half(0) | half(1) << 32
    }

    /// Says which features the driver wants.
    pub fn want(&self, features: u64) {
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(mmio::DRIVER_FEATURES_SEL, common::DRIVER_FEATURE_SELECT, 4, select);
            let half = u32::try_from(half).expect("half of 64 bits");
            self.write(mmio::DRIVER_FEATURES, common::DRIVER_FEATURE, 4, half);
        }
    }

    /// Resets the device and asks for `features`; whether it accepted them. Queues may be set up then.
    #[must_use]
    pub fn negotiate(&self, features: u64) -> bool {
        self.reset();
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        self.want(features);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    /// The largest size of queue `index`, as offered after a reset; 0 if there is no such queue.
    #[must_use]
    pub fn queue_size_max(&self, index: u16) -> u16 {
        self.select(index);
        let size = match self.wire {
            Wire::Mmio { .. } => self.read(mmio::QUEUE_NUM_MAX, 4),
            Wire::Pci { .. } => self.read(common::QUEUE_SIZE, 2),
        };
        u16::try_from(size).expect("a size has 16 bits")
    }

    /// Selects queue `index`.
    pub fn select(&self, index: u16) {
        self.write(mmio::QUEUE_SEL, common::QUEUE_SELECT, 2, u32::from(index));
    }

    /// Sets up queue `index` and enables it.
    pub fn set_queue(&self, index: u16, layout: &QueueLayout) {
        self.select(index);
        self.write(mmio::QUEUE_NUM, common::QUEUE_SIZE, 2, u32::from(layout.size));
        for (low, pci, address) in [
            (mmio::QUEUE_DESC_LOW, common::QUEUE_DESC, layout.descriptors),
            (mmio::QUEUE_DRIVER_LOW, common::QUEUE_DRIVER, layout.driver),
            (mmio::QUEUE_DEVICE_LOW, common::QUEUE_DEVICE, layout.device),
        ] {
            for (step, half) in [(0, address & 0xffff_ffff), (4, address >> 32)] {
                self.write(low + step, pci + step, 4, u32::try_from(half).expect("half of 64 bits"));
            }
        }
        if let Wire::Pci { transport, .. } = &self.wire {
            transport.write(common::CONFIG_MSIX_VECTOR, &0u16.to_le_bytes());
            transport.write(common::QUEUE_MSIX_VECTOR, &(index + 1).to_le_bytes());
        }
        self.write(mmio::QUEUE_READY, common::QUEUE_ENABLE, 2, 1);
    }

    /// Sets DRIVER_OK; whether the device serves.
    pub fn driver_ok(&self) -> bool {
        self.set_status(self.status() | status::DRIVER_OK);
        self.status() & (status::DRIVER_OK | status::DEVICE_NEEDS_RESET) == status::DRIVER_OK
    }

    /// Everything from reset to DRIVER_OK: `features`, and `queues` as queue 0, 1 and so on. Whether the device serves.
    pub fn initialise(&self, features: u64, queues: &[QueueLayout]) -> bool {
        if !self.negotiate(features) {
            return false;
        }
        for (index, layout) in (0..).zip(queues) {
            self.set_queue(index, layout);
        }
        self.driver_ok()
    }

    /// Kicks queue `index` through the registers.
    pub fn kick(&self, index: u16) {
        self.write(mmio::QUEUE_NOTIFY, notify_offset(index), 2, u32::from(index));
    }

    /// Fills `data` from the device's configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.window().read(self.at(mmio::CONFIG, PCI_DEVICE) + offset, data);
    }

    /// Writes `data` into the device's configuration space.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.window().write(self.at(mmio::CONFIG, PCI_DEVICE) + offset, data);
    }

    /// The configuration's generation, as far as the register shows it.
    #[must_use]
    pub fn config_generation(&self) -> u32 {
        match self.wire {
            Wire::Mmio { .. } => self.read(mmio::CONFIG_GENERATION, 4),
            Wire::Pci { .. } => self.read(common::CONFIG_GENERATION, 1),
        }
    }

    /// How many interrupts arrived since the beginning: edges of the line, or messages of all vectors.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        match &self.wire {
            Wire::Mmio { line, .. } => line.edges(),
            Wire::Pci { sink, .. } => {
                (0..).zip(&sink.triggers).map(|(vector, _)| sink.delivered(vector)).sum()
            }
        }
    }

    /// What an interrupt handler finds and acknowledges: bits of [`interrupt`]. Over PCI, [`interrupt::QUEUE`] is not told:
    /// the vector says it.
    pub fn acknowledge(&self) -> u32 {
        match &self.wire {
            Wire::Mmio { transport, .. } => {
                let status = self.read(mmio::INTERRUPT_STATUS, 4);
                transport.write(mmio::INTERRUPT_ACK, &status.to_le_bytes());
                status
            }
            Wire::Pci { .. } => self.read(0x1000, 1) & interrupt::CONFIG,
        }
    }

    /// What the messages of a PCI function went to.
    #[must_use]
    pub fn sink(&self) -> Option<&CountingSink> {
        match &self.wire {
            Wire::Mmio { .. } => None,
            Wire::Pci { sink, .. } => Some(sink),
        }
    }
}
