//! The places of virtio-pci devices: a slot of the bus, two BARs, and for each queue a vector and two ioeventfds, of a port and of an
//! address. Before the guest runs, and while it does.

use std::sync::Arc;

use devices::bus::BusError;
use devices::pci::hotplug::{self, PciHotplug};
use devices::pci::root::{Bar, PciBars, PciEcam, PciRoot};
use devices::virtio::Idle;
use devices::virtio::transport::pci::{self, PciTransport};
use kvm_ioctls::IoEventAddress;
use vmm_sys_util::eventfd::EventFd;

use super::build::BuildError;
use super::buses::Buses;
use super::platform::AcpiPorts;
use super::worker::Worker;
use crate::arch::x86_64::layout;
use crate::kvm::vm::Vm;

/// Where a device is on the bus.
pub(super) struct Place {
    slot: usize,
    transport: Arc<PciTransport>,
}

impl Place {
    fn memory(slot: usize) -> u64 {
        layout::PCI_MEMORY.start + slot as u64 * u64::from(pci::BAR_SIZE)
    }

    fn ports(slot: usize) -> u64 {
        u64::from(layout::PCI_PORTS.start) + slot as u64 * u64::from(pci::PORTS_SIZE)
    }

    /// Where a driver may kick, and what that signals.
    fn kicks(slot: usize, kicks: &[EventFd]) -> impl Iterator<Item = (IoEventAddress, &EventFd)> {
        (0u16..).zip(kicks).flat_map(move |(queue, kick)| {
            let port =
                pci::notify_port(queue).map(|port| IoEventAddress::Pio(Self::ports(slot) + u64::from(port)));
            let address = IoEventAddress::Mmio(Self::memory(slot) + pci::notify_offset(queue));
            port.into_iter().chain([address]).map(move |at| (at, kick))
        })
    }

    /// Gives `device`, which `worker` serves, the first free slot. `plugged`: the guest runs already.
    ///
    /// # Errors
    /// [`BuildError::Kvm`], [`BuildError::NoSlot`]; then nothing of it is there.
    pub(super) fn new(
        vm: &Vm,
        root: &PciRoot,
        device: Box<dyn Idle>,
        worker: &Worker,
        plugged: bool,
    ) -> Result<Self, BuildError> {
        let slot = root.free_slot().ok_or(BuildError::NoSlot)?;
        let kicks = worker.handle().kicks();
        let queues = u16::try_from(kicks.len()).expect("a worker has few");
        let at = pci::Place {
            memory: u32::try_from(Self::memory(slot)).expect("BARs lie in the 32-bit hole"),
            ports: u16::try_from(Self::ports(slot)).expect("ports have 16 bits"),
        };
        let owner = Box::new(worker.handle().clone());
        let sink = vm.messages(pci::vector_count(queues));
        let make = if plugged { PciTransport::plugged } else { PciTransport::new };
        let transport = Arc::new(make(device, vm.ram().clone(), owner, sink, at));
        let place = Self { slot, transport };
        for (done, (at, kick)) in Self::kicks(slot, kicks).enumerate() {
            if let Err(error) = vm.notify_by_address(kick, &at) {
                place.forget(vm, worker, done);
                return Err(error.into());
            }
        }
        // Only the driver's thread fills slots.
        root.insert(slot, place.transport.clone()).map_err(|_| BuildError::NoSlot)?;
        Ok(place)
    }

    /// Takes the first `count` ioeventfds away.
    fn forget(&self, vm: &Vm, worker: &Worker, count: usize) {
        for (at, kick) in Self::kicks(self.slot, worker.handle().kicks()).take(count) {
            if let Err(error) = vm.forget_notify_by_address(kick, &at) {
                log::error!("an ioeventfd of slot {} can't be taken away: {error}", self.slot);
            }
        }
    }
}

/// Called, on a vCPU's thread, when the guest has let go of a device.
pub type OnEject = Arc<dyn Fn() + Send + Sync>;

/// Connects a bus to the guest: its configuration space, its BARs, and the registers for what comes and goes.
///
/// # Errors
/// [`BuildError::Bus`]: a mistake in the address map.
pub(super) fn connect(
    root: &Arc<PciRoot>,
    buses: &mut Buses,
    on_eject: OnEject,
) -> Result<Arc<PciHotplug>, BusError> {
    buses.memory.insert(layout::ECAM, layout::ECAM_SIZE, Arc::new(PciEcam::new(Arc::clone(root))))?;
    let bars = PciBars::new(Arc::clone(root), Bar::Memory, pci::BAR_SIZE);
    buses.memory.insert(layout::PCI_MEMORY.start, bars.size(), Arc::new(bars))?;
    let ports = PciBars::new(Arc::clone(root), Bar::Ports, pci::PORTS_SIZE.into());
    buses.ports.insert(layout::PCI_PORTS.start.into(), ports.size(), Arc::new(ports))?;
    let hotplug = Arc::new(PciHotplug::new(Arc::clone(root), Box::new(move |_| on_eject())));
    buses.ports.insert(layout::PCI_HOTPLUG_PORT.into(), hotplug::SIZE, Arc::clone(&hotplug) as Arc<_>)?;
    Ok(hotplug)
}

/// The bus of a machine whose guest runs.
pub(super) struct Slots {
    pub(super) vm: Vm,
    pub(super) root: Arc<PciRoot>,
    pub(super) hotplug: Arc<PciHotplug>,
    pub(super) acpi: Arc<AcpiPorts>,
}

impl Slots {
    /// Gives a device a place, and has the guest look there.
    ///
    /// # Errors
    /// As [`Place::new`].
    pub(super) fn plug(&self, device: Box<dyn Idle>, worker: &Worker) -> Result<Place, BuildError> {
        let place = Place::new(&self.vm, &self.root, device, worker, true)?;
        self.hotplug.plugged(place.slot);
        self.acpi.pci_slots_changed();
        Ok(place)
    }

    /// Asks the guest to let go of a device.
    pub(super) fn ask_back(&self, place: &Place) {
        self.hotplug.wanted(place.slot);
        self.acpi.pci_slots_changed();
    }

    /// Lets the guest keep a device that was asked for.
    pub(super) fn keep(&self, place: &Place) {
        self.hotplug.kept(place.slot);
    }

    /// Whether the guest still has a device, and if so, whether its driver uses it.
    pub(super) fn held(&self, place: &Place) -> Held {
        match (self.root.is_free(place.slot), place.transport.in_use()) {
            (true, _) => Held::No,
            (false, false) => Held::Idle,
            (false, true) => Held::InUse,
        }
    }

    /// Takes a device away, whatever the guest does with it: what it reads there from now on is ones.
    pub(super) fn take_away(&self, place: &Place, worker: &Worker) {
        self.root.remove(place.slot);
        place.forget(&self.vm, worker, usize::MAX);
    }
}

/// How far a guest has let go of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It ejected it.
    No,
    /// It is there, but no driver uses it.
    Idle,
    /// A driver uses it.
    InUse,
}
