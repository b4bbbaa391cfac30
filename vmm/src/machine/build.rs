//! From a plan to a machine, in one straight line: RAM, virtual machine, vCPUs, platform, devices, kernel, tables.

use std::io;
use std::sync::Arc;

use devices::bus::{BusDevice, BusError};
use devices::i8042::{self, I8042};
use devices::irq::Line;
use devices::pci::root::{self, PciRoot};
use devices::serial::{self, Serial};

use super::Machine;
use super::buses::Buses;
use super::devices::{Maker, OnDeviceError, Places, threads};
use super::plan::Plan;
use super::platform::{AcpiPorts, BootTimer, OnEnd, Pvpanic};
use super::slots::{self, OnEject, Slots};
use crate::arch::x86_64::acpi::{self, Platform, TablesTooLarge};
use crate::arch::x86_64::{cpuid, layout, mptable};
use crate::boot::cmdline::{self, CmdlineError};
use crate::boot::kernel::{self, KernelError};
use crate::boot::params::{self, BootInfo};
use crate::host::console::Console;
use crate::host::vhost_net::VhostError;
use crate::kvm::KvmError;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;
use crate::mem::ram::{GuestRam, RamError};
use crate::vcpu::{Ended, Vcpus};

/// Why a machine could not be built. Nothing is left of it then.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No RAM.
    #[error("Cannot create guest memory: {0}")]
    Ram(#[from] RamError),
    /// KVM refused.
    #[error("Error with KVM: {0}")]
    Kvm(#[from] KvmError),
    /// The kernel or the initrd can't be used.
    #[error("Cannot load kernel: {0}")]
    Kernel(#[from] KernelError),
    /// The command line can't be used.
    #[error("Invalid command line: {0}")]
    Cmdline(#[from] CmdlineError),
    /// More devices than there is room for.
    #[error("{asked} virtio devices were asked for; at most {max} fit over {transport}")]
    TooManyDevices {
        /// Drives, interfaces and others together.
        asked: usize,
        /// How many fit.
        max: usize,
        /// virtio-mmio or virtio-pci.
        transport: &'static str,
    },
    /// The device tables are too large.
    #[error(transparent)]
    Tables(#[from] TablesTooLarge),
    /// A device that is to come while the guest runs, to a bus that is full.
    #[error("every slot of the PCI bus is taken: {} virtio devices fit", root::SLOTS - 1)]
    NoSlot,
    /// Two devices at one address: a mistake in the address map.
    #[error("the address map is wrong: {0}")]
    Bus(#[from] BusError),
    /// The host's kernel does not serve an interface that it is to serve.
    #[error("network interface {id}: vhost: {source}")]
    Vhost {
        /// Which.
        id: String,
        /// Why not.
        source: VhostError,
    },
    /// No thread or descriptor for a device.
    #[error("no thread or descriptor for {what}: {source}")]
    Threads {
        /// Whose.
        what: String,
        /// What the host said.
        source: io::Error,
    },
}

impl Machine {
    /// Builds what `plan` says; its guest is paused. `on_end` is called when the guest ends by itself, `on_error`
    /// when a device does not work as it should, `on_eject`, on a vCPU's thread, when it has let go of a device.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left then.
    pub fn build(
        mut plan: Plan,
        console: &Console,
        on_end: OnEnd,
        on_error: OnDeviceError,
        on_eject: OnEject,
    ) -> Result<Self, BuildError> {
        let single = usize::from(plan.entropy.is_some()) + usize::from(plan.vsock.is_some());
        let asked = plan.drives.len() + plan.nets.len() + single;
        let (max, transport) = match plan.pci {
            true => (root::SLOTS - 1, "virtio-pci"),
            false => (layout::VIRTIO_GSIS.len(), "virtio-mmio"),
        };
        if asked > max {
            return Err(BuildError::TooManyDevices { asked, max, transport });
        }
        let ranges = layout::ram_ranges(plan.memory);
        let ram = GuestRam::new(&ranges, plan.backing, plan.lock_memory)?;
        let vm = Vm::new(ram.ram().clone())?;
        let vcpus = (0..plan.topology.vcpus).map(|id| Vcpu::new(&vm, id)).collect::<Result<Vec<_>, _>>()?;

        let mut buses = Buses::default();
        let ports = &mut buses.ports;
        let serial = Arc::new(Serial::new(vm.line(layout::COM1_GSI), Arc::clone(console.buffer())));
        ports.insert(layout::COM1_PORT.into(), serial::PORTS, serial.clone())?;
        let reset = Arc::clone(&on_end);
        let keyboard = Arc::new(I8042::new(
            vm.line(layout::I8042_GSI),
            Box::new(move || reset(super::ended::Reason::Reboot)),
        ));
        ports.insert(layout::I8042_PORT.into(), i8042::PORTS, keyboard.clone())?;
        let acpi_line: Arc<dyn Line> = vm.line(layout::ACPI_GSI);
        let acpi = Arc::new(AcpiPorts::new(acpi_line, Arc::clone(&on_end)));
        ports.insert(layout::ACPI_PORT.into(), acpi::PORTS, acpi.clone())?;
        ports.insert(layout::PVPANIC_PORT.into(), 1, Arc::new(Pvpanic::new(Arc::clone(&on_end))))?;
        if plan.boot_timer {
            let timer: Arc<dyn BusDevice> = Arc::new(BootTimer::start());
            buses.memory.insert(layout::BOOT_TIMER, layout::MMIO_WINDOW, timer)?;
        }

        let root = plan.pci.then(|| Arc::new(PciRoot::new()));
        let maker =
            Maker { seccomp: plan.seccomp, on_error, vcpus: plan.topology.vcpus, io_cpus: plan.io_cpus };
        let mut places = Places { vm: &vm, buses: &mut buses, mmio: Vec::new(), root: root.as_deref() };
        let count = plan.drives.len();
        let drives = plan.drives.into_iter().map(|drive| places.give(maker.drive(drive, count)?));
        let drives = drives.collect::<Result<Vec<_>, _>>()?;
        let nets = plan.nets.into_iter().map(|net| places.give(maker.net(net, vm.ram())?));
        let nets = nets.collect::<Result<Vec<_>, _>>()?;
        let entropy = plan.entropy.map(|limits| places.give(maker.entropy(&limits)?)).transpose()?;
        let vsock = plan.vsock.map(|vsock| places.give(maker.vsock(vsock)?)).transpose()?;
        let mmio = places.mmio;
        let hotplug = match &root {
            Some(root) => Some(slots::connect(root, &mut buses, on_eject)?),
            None => None,
        };

        let kernel = kernel::load(vm.ram(), &mut plan.kernel)?;
        let low_end = plan.memory.min(layout::HOLE_START);
        let initrd = match &mut plan.initrd {
            Some(file) => Some(kernel::load_initrd(vm.ram(), &kernel, file, low_end)?),
            None => None,
        };
        let line =
            cmdline::assemble(&plan.boot_args, plan.root.as_ref(), plan.pci, &mmio, kernel.cmdline_max())?;
        let platform = Platform { vcpus: plan.topology.vcpus, mmio, pci: plan.pci };
        let rsdp = acpi::write(vm.ram(), &platform)?;
        mptable::write(vm.ram(), plan.topology.vcpus);
        let map = layout::memory_map(plan.memory, plan.pci);
        params::write(vm.ram(), &kernel, &BootInfo { cmdline: &line, initrd, map: &map, rsdp });

        let tsc_khz = vcpus.first().filter(|_| vm.has_tsc_khz()).and_then(Vcpu::tsc_khz);
        let table = cpuid::base(&vm.supported_cpuid()?, plan.topology, vm.host(tsc_khz));
        for vcpu in &vcpus {
            vcpu.configure(&table, plan.topology)?;
        }
        if let Some(first) = vcpus.first() {
            first.enter_at(&vm, kernel.entry)?;
        }
        let unclaimed = Arc::clone(&buses.unclaimed);
        let ended = move |ended: Ended| on_end(ended.into());
        let vcpus = Vcpus::start(vcpus, Arc::new(buses), plan.seccomp, &plan.vcpu_cpus, ended)
            .map_err(threads("a vCPU"))?;
        console.connect(&serial);
        let console = Arc::clone(console.buffer());
        let slots =
            root.zip(hotplug).map(|(root, hotplug)| Slots { vm, root, hotplug, acpi: Arc::clone(&acpi) });
        Ok(Self {
            vcpus,
            drives,
            nets,
            entropy,
            vsock,
            acpi,
            keyboard,
            console,
            unclaimed,
            maker,
            slots,
            _ram: ram,
        })
    }
}
