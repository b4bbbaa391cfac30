//! From a plan to a machine, in one straight line: RAM, virtual machine, vCPUs, platform, devices, kernel, tables.

use std::io;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::bus::{BusDevice, BusError};
use devices::i8042::{self, I8042};
use devices::irq::Line;
use devices::pci::root::{self, PciEcam, PciRoot};
use devices::serial::{self, Serial};
use devices::virtio::block::{Block, BlockHandle, BlockOptions, QUEUES_MAX};
use devices::virtio::net::{Net, NetOptions};
use devices::virtio::rng::Rng;
use devices::virtio::transport::mmio::{self, MmioTransport};
use devices::virtio::transport::pci::{self, PciTransport};
use devices::virtio::{Idle, Served};

use super::buses::Buses;
use super::plan::Plan;
use super::platform::{AcpiPorts, BootTimer, OnEnd, Pvpanic};
use super::worker::{Observer, Worker};
use super::{Device, Machine};
use crate::arch::x86_64::acpi::{self, MmioDevice, Platform, TablesTooLarge};
use crate::arch::x86_64::{cpuid, layout, mptable};
use crate::boot::cmdline::{self, CmdlineError};
use crate::boot::kernel::{self, KernelError};
use crate::boot::params::{self, BootInfo};
use crate::host::console::Console;
use crate::kvm::KvmError;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;
use crate::mem::ram::{GuestRam, RamError};
use crate::sandbox::seccomp::Seccomp;
use crate::vcpu::Vcpus;

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
    /// Two devices at one address: a mistake in the address map.
    #[error("the address map is wrong: {0}")]
    Bus(#[from] BusError),
    /// No thread or descriptor for a device.
    #[error("no thread or descriptor for {what}: {source}")]
    Threads {
        /// Whose.
        what: String,
        /// What the host said.
        source: io::Error,
    },
}

fn threads(what: impl Into<String>) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Threads { what: what.into(), source }
}

/// Called, on a device's thread, with the device's name and what went wrong with it.
pub type OnDeviceError = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// Reports a device that its driver broke, and, once a second at most, that the host failed it.
fn report_errors<H: Send + Sync + 'static>(
    id: String,
    handle: H,
    failures: fn(&H) -> u64,
    on_error: OnDeviceError,
) -> Observer {
    const PAUSE: Duration = Duration::from_secs(1);
    let reported = AtomicU64::new(0);
    let quiet_until: Mutex<Option<Instant>> = Mutex::new(None);
    Arc::new(move |served| {
        if served == Served::Broken {
            on_error(&id, "the guest's driver broke the rules of a queue; the device waits to be reset");
        }
        let count = failures(&handle);
        if count == reported.load(Ordering::Relaxed) {
            return;
        }
        let mut quiet_until = quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        // Another of the device's threads may have reported it meanwhile.
        let new = count.saturating_sub(reported.load(Ordering::Relaxed));
        if new > 0 && quiet_until.is_none_or(|until| Instant::now() >= until) {
            on_error(&id, &format!("the host failed {new} requests; the log says why"));
            reported.store(count, Ordering::Relaxed);
            *quiet_until = Some(Instant::now() + PAUSE);
        }
    })
}

/// Queues that all drives of a machine get together unless more are asked for: each costs descriptors, and a place on KVM's
/// bus, which has 1,000.
const QUEUES_TOGETHER: u16 = 256;

// What a drive may be asked for is what its device can have.
const _: () = assert!(crate::spec::QUEUES_MAX == QUEUES_MAX);

/// Queues of one of `drives` drives: one for each vCPU, so that none waits for another.
fn queues_by_default(vcpus: u8, drives: usize) -> NonZeroU16 {
    let share = QUEUES_TOGETHER / u16::try_from(drives).unwrap_or(u16::MAX).max(1);
    NonZeroU16::new(u16::from(vcpus).min(share).min(QUEUES_MAX)).unwrap_or(NonZeroU16::MIN)
}

/// Hands out the places of virtio devices: windows and lines, or slots of the PCI bus.
struct Devices<'a> {
    vm: &'a Vm,
    buses: &'a mut Buses,
    mmio: Vec<MmioDevice>,
    pci: Option<PciRoot>,
    bars: u64,
    seccomp: Seccomp,
    on_error: OnDeviceError,
}

impl Devices<'_> {
    /// Gives `device` a thread and a place where the guest finds it.
    ///
    /// `failures` counts what the host failed; `handle` is what it reads.
    fn attach<H: Clone + Send + Sync + 'static>(
        &mut self,
        id: &str,
        device: Box<dyn Idle>,
        handle: H,
        failures: fn(&H) -> u64,
    ) -> Result<Device<H>, BuildError> {
        let queues = device.queue_sizes_max().len();
        let observer = report_errors(id.to_owned(), handle.clone(), failures, Arc::clone(&self.on_error));
        let worker =
            Worker::start(&format!("yun_{id}"), queues, self.seccomp, observer).map_err(threads(id))?;
        match self.pci.take() {
            None => self.attach_mmio(device, &worker)?,
            Some(mut root) => {
                self.attach_pci(device, &worker, &mut root)?;
                self.pci = Some(root);
            }
        }
        Ok(Device { id: id.to_owned(), handle, worker })
    }

    /// A window and a line.
    fn attach_mmio(&mut self, device: Box<dyn Idle>, worker: &Worker) -> Result<(), BuildError> {
        let index = self.mmio.len();
        let gsi = layout::VIRTIO_GSIS[index];
        let base = layout::VIRTIO_MMIO + index as u64 * layout::MMIO_WINDOW;
        let owner = Box::new(worker.handle().clone());
        let transport = MmioTransport::new(device, self.vm.ram().clone(), owner, self.vm.line(gsi));
        for (queue, kick) in (0u32..).zip(worker.handle().kicks()) {
            self.vm.notify_by_value(kick, base + mmio::QUEUE_NOTIFY, queue)?;
        }
        // The transport's status register is made for acknowledgements that come late.
        self.vm.coalesce(base + mmio::INTERRUPT_ACK)?;
        self.buses.memory.insert(base, layout::MMIO_WINDOW, Arc::new(transport))?;
        self.mmio.push(MmioDevice { base, gsi });
        Ok(())
    }

    /// A slot of the bus, a BAR and a vector for each queue.
    fn attach_pci(
        &mut self,
        device: Box<dyn Idle>,
        worker: &Worker,
        root: &mut PciRoot,
    ) -> Result<(), BuildError> {
        let queues = u16::try_from(worker.handle().kicks().len()).expect("a worker has few");
        let bar = layout::PCI_MEMORY.start + self.bars * u64::from(pci::BAR_SIZE);
        self.bars += 1;
        let address = u32::try_from(bar).expect("BARs lie in the 32-bit hole");
        let owner = Box::new(worker.handle().clone());
        let sink = self.vm.messages(pci::vector_count(queues));
        let transport = Arc::new(PciTransport::new(device, self.vm.ram().clone(), owner, sink, address));
        for (queue, kick) in (0u16..).zip(worker.handle().kicks()) {
            self.vm.notify_by_address(kick, bar + pci::notify_offset(queue))?;
        }
        self.buses.memory.insert(bar, pci::BAR_SIZE.into(), transport.clone())?;
        root.add(transport).expect("devices were counted");
        Ok(())
    }

    /// The PCI bus as the guest reaches it; the windows of virtio-mmio.
    fn finish(self) -> Result<Vec<MmioDevice>, BuildError> {
        if let Some(root) = self.pci {
            let ecam = Arc::new(PciEcam::new(Arc::new(root)));
            self.buses.memory.insert(layout::ECAM, layout::ECAM_SIZE, ecam)?;
        }
        Ok(self.mmio)
    }
}

impl Machine {
    /// Builds what `plan` says; its guest is paused. `on_end` is called when the guest ends by itself, `on_error`
    /// when a device does not work as it should.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left then.
    pub fn build(
        mut plan: Plan,
        console: &Console,
        on_end: OnEnd,
        on_error: OnDeviceError,
    ) -> Result<Self, BuildError> {
        let asked = plan.drives.len() + plan.nets.len() + usize::from(plan.entropy.is_some());
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

        let pci = plan.pci.then(PciRoot::new);
        let mut devices = Devices {
            vm: &vm,
            buses: &mut buses,
            mmio: Vec::new(),
            pci,
            bars: 0,
            seccomp: plan.seccomp,
            on_error,
        };
        let mut drives = Vec::with_capacity(plan.drives.len());
        let count = plan.drives.len();
        for drive in plan.drives {
            let queues = drive.queues.unwrap_or_else(|| queues_by_default(plan.topology.vcpus, count));
            let block = Block::new(Box::new(drive.disk), &BlockOptions { queues, ..drive.options });
            let handle = block.handle();
            drives.push(devices.attach(&drive.id, Box::new(block), handle, BlockHandle::failures)?);
        }
        let mut nets = Vec::with_capacity(plan.nets.len());
        for net in plan.nets {
            let options = NetOptions {
                name: net.id.clone(),
                mac: net.mac,
                mtu: net.mtu,
                rx_limits: net.rx_limits,
                tx_limits: net.tx_limits,
            };
            let device = Net::new(Box::new(net.tap), &options);
            let handle = device.handle();
            nets.push(devices.attach(&net.id, Box::new(device), handle, |handle| {
                let m = handle.metrics();
                m.rx_failures.get() + m.tx_failures.get()
            })?);
        }
        let entropy =
            match plan.entropy {
                Some(limits) => {
                    let device = Rng::new(&limits);
                    let handle = device.handle();
                    Some(devices.attach("rng", Box::new(device), handle, |handle| {
                        handle.metrics().host_failures.get()
                    })?)
                }
                None => None,
            };
        let mmio = devices.finish()?;

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
        let vcpus = Vcpus::start(vcpus, Arc::new(buses), plan.seccomp, move |ended| on_end(ended.into()))
            .map_err(threads("a vCPU"))?;
        console.connect(&serial);
        let console = Arc::clone(console.buffer());
        Ok(Self { vcpus, drives, nets, entropy, acpi, keyboard, console, unclaimed, _ram: ram })
    }
}
