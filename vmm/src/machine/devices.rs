//! A machine's virtio devices: made from their plans, each with its thread, and given a place where the guest finds it.

use std::io;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::limiter::LimiterSpec;
use devices::mem::Ram;
use devices::pci::root::PciRoot;
use devices::virtio::block::{Block, BlockHandle, BlockOptions, QUEUES_MAX};
use devices::virtio::net::{FrameIo, Net, NetHandle, NetOptions, QUEUE_PAIRS_MAX};
use devices::virtio::rng::{Rng, RngHandle};
use devices::virtio::transport::mmio::{self, MmioTransport};
use devices::virtio::vsock::{ANSWER_TIMEOUT, Vsock, VsockHandle, VsockOptions};
use devices::virtio::{Idle, Served};
use vmm_sys_util::eventfd::EventFd;

use super::build::BuildError;
use super::buses::Buses;
use super::plan::{DrivePlan, NetPlan, VsockPlan};
use super::slots::Place;
use super::worker::{self, Habits, Observer, Worker};
use crate::arch::x86_64::acpi::MmioDevice;
use crate::arch::x86_64::layout;
use crate::host::vhost_net::{Kernel, Vhost, VhostHandle, VhostNet, VhostOptions};
use crate::kvm::vm::Vm;
use crate::sandbox::seccomp::Seccomp;
use crate::sandbox::seccomp::rules::Kind;

/// A virtio device of a machine: its name, its thread, and a way to change and observe it.
pub(super) struct Device<H> {
    pub(super) id: String,
    pub(super) handle: H,
    pub(super) worker: Worker,
    /// Its place on the PCI bus, if that is where it is.
    pub(super) place: Option<Place>,
}

/// Changes and observes a network interface.
#[derive(Clone)]
pub(super) struct NetControl {
    pub(super) net: NetHandle,
    /// If the host's kernel is to move its frames.
    pub(super) vhost: Option<VhostHandle>,
}

impl NetControl {
    /// Puts these limits in place of the present ones.
    pub(super) fn set_limits(&self, rx: LimiterSpec, tx: LimiterSpec) {
        self.net.set_limits(Some(rx), Some(tx));
        if let Some(vhost) = &self.vhost {
            vhost.limits_are(&rx, &tx);
        }
    }
}

/// A device that has no place yet.
pub(super) struct Made<H> {
    id: String,
    idle: Box<dyn Idle>,
    handle: H,
    worker: Worker,
}

impl<H> Made<H> {
    /// Has it placed.
    pub(super) fn place<E>(
        self,
        place: impl FnOnce(Box<dyn Idle>, &Worker) -> Result<Option<Place>, E>,
    ) -> Result<Device<H>, E> {
        let place = place(self.idle, &self.worker)?;
        Ok(Device { id: self.id, handle: self.handle, worker: self.worker, place })
    }
}

/// Whose thread, of which kind, and for how long it looks for work before it sleeps.
struct Thread<'a> {
    kind: Kind,
    id: &'a str,
    poll: Duration,
}

/// Makes the devices of one machine.
pub(super) struct Maker {
    pub(super) seccomp: Seccomp,
    pub(super) on_error: OnDeviceError,
    pub(super) vcpus: u8,
    /// Where the threads are to stay, if anywhere.
    pub(super) io_cpus: Arc<[u16]>,
}

impl Maker {
    /// Gives `idle` a thread. `failures` counts what the host failed; `handle` is what it reads.
    fn make<H: Clone + Send + Sync + 'static>(
        &self,
        thread: &Thread,
        idle: Box<dyn Idle>,
        handle: H,
        failures: fn(&H) -> u64,
    ) -> Result<Made<H>, BuildError> {
        let kicks = worker::kicks(idle.queue_sizes_max().len()).map_err(threads(thread.id))?;
        self.make_kicked(thread, idle, &kicks, handle, failures)
    }

    /// The same for a device that knows what kicks it.
    fn make_kicked<H: Clone + Send + Sync + 'static>(
        &self,
        thread: &Thread,
        idle: Box<dyn Idle>,
        kicks: &Arc<[EventFd]>,
        handle: H,
        failures: fn(&H) -> u64,
    ) -> Result<Made<H>, BuildError> {
        let &Thread { kind, id, poll } = thread;
        let habits = Habits { poll, cpus: Arc::clone(&self.io_cpus) };
        let observer = report_errors(id.to_owned(), handle.clone(), failures, Arc::clone(&self.on_error));
        let worker = Worker::start(&format!("yun_{id}"), kicks, kind, self.seccomp, observer, &habits);
        Ok(Made { id: id.to_owned(), idle, handle, worker: worker.map_err(threads(id))? })
    }

    /// A disk, one of `count`.
    pub(super) fn drive(&self, plan: DrivePlan, count: usize) -> Result<Made<BlockHandle>, BuildError> {
        let queues = plan.queues.unwrap_or_else(|| queues_by_default(self.vcpus, count));
        let block = Block::new(Box::new(plan.disk), &BlockOptions { queues, ..plan.options });
        let handle = block.handle();
        let thread = Thread { kind: Kind::Device, id: &plan.id, poll: plan.poll };
        self.make(&thread, Box::new(block), handle, BlockHandle::failures)
    }

    /// A network interface of a guest with this RAM.
    pub(super) fn net(&self, plan: NetPlan, ram: &Ram) -> Result<Made<NetControl>, BuildError> {
        let options = NetOptions {
            name: plan.id.clone(),
            mac: plan.mac,
            mtu: plan.mtu,
            rx_limits: plan.rx_limits,
            tx_limits: plan.tx_limits,
            group: plan.group,
        };
        let wires = plan.tap.into_queues();
        let kernels = plan.vhost.then(|| wires.clone());
        let wires = wires.into_iter().map(|queue| Box::new(queue) as Box<dyn FrameIo>);
        let net = Net::with_pairs(wires.collect(), &options);
        let kicks = worker::kicks(net.queue_sizes_max().len()).map_err(threads(&plan.id))?;
        let mut handle = NetControl { net: net.handle(), vhost: None };
        let mut idle: Box<dyn Idle> = Box::new(net);
        if let Some(taps) = kernels {
            let open = |tap| -> Result<Box<dyn Kernel>, BuildError> {
                let kernel = Vhost::open(ram.clone(), tap, plan.poll);
                let kernel = kernel.map_err(|source| BuildError::Vhost { id: plan.id.clone(), source })?;
                Ok(Box::new(kernel))
            };
            let kernels = taps.into_iter().map(open).collect::<Result<_, _>>()?;
            let options = VhostOptions {
                name: plan.id.clone(),
                kicks: Arc::clone(&kicks),
                rx_limits: plan.rx_limits,
                tx_limits: plan.tx_limits,
            };
            let device = VhostNet::new(idle, handle.net.clone(), kernels, &options);
            let device = device.map_err(threads(&plan.id))?;
            handle.vhost = Some(device.handle());
            idle = Box::new(device);
        }
        let thread = Thread { kind: Kind::Device, id: &plan.id, poll: plan.poll };
        self.make_kicked(&thread, idle, &kicks, handle, |handle| handle.net.failures())
    }

    /// The entropy device.
    pub(super) fn entropy(&self, limits: &LimiterSpec) -> Result<Made<RngHandle>, BuildError> {
        let rng = Rng::new(limits);
        let handle = rng.handle();
        let thread = Thread { kind: Kind::Device, id: "rng", poll: Duration::ZERO };
        self.make(&thread, Box::new(rng), handle, |handle| handle.metrics().host_failures.get())
    }

    /// The socket device.
    pub(super) fn vsock(&self, plan: VsockPlan) -> Result<Made<VsockHandle>, BuildError> {
        let VsockPlan { guest_cid, limits, host, poll } = plan;
        let options = VsockOptions { guest_cid, answer_timeout: ANSWER_TIMEOUT, limits };
        let vsock = Vsock::new(Box::new(host), &options);
        let handle = vsock.handle();
        let thread = Thread { kind: Kind::Vsock, id: "vsock", poll };
        self.make(&thread, Box::new(vsock), handle, |handle| {
            let m = handle.metrics();
            m.rx_read_failures.get() + m.tx_write_failures.get()
        })
    }
}

pub(super) fn threads(what: impl Into<String>) -> impl FnOnce(io::Error) -> BuildError {
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

// What a drive and an interface may be asked for is what their devices can have.
const _: () = assert!(crate::spec::QUEUES_MAX == QUEUES_MAX);
const _: () = assert!(crate::spec::QUEUE_PAIRS_MAX == QUEUE_PAIRS_MAX);

/// Queues of one of `drives` drives: one for each vCPU, so that none waits for another.
fn queues_by_default(vcpus: u8, drives: usize) -> NonZeroU16 {
    let share = QUEUES_TOGETHER / u16::try_from(drives).unwrap_or(u16::MAX).max(1);
    NonZeroU16::new(u16::from(vcpus).min(share).min(QUEUES_MAX)).unwrap_or(NonZeroU16::MIN)
}

/// Hands out the places of devices before the guest runs: slots of the PCI bus, or windows and lines.
pub(super) struct Places<'a> {
    pub(super) vm: &'a Vm,
    pub(super) buses: &'a mut Buses,
    pub(super) mmio: Vec<MmioDevice>,
    pub(super) root: Option<&'a PciRoot>,
}

impl Places<'_> {
    /// Gives a device its place.
    pub(super) fn give<H>(&mut self, made: Made<H>) -> Result<Device<H>, BuildError> {
        made.place(|idle, worker| match self.root {
            None => self.window(idle, worker).map(|()| None),
            Some(root) => Place::new(self.vm, root, idle, worker, false).map(Some),
        })
    }

    /// A window and a line.
    fn window(&mut self, idle: Box<dyn Idle>, worker: &Worker) -> Result<(), BuildError> {
        let index = self.mmio.len();
        let gsi = layout::VIRTIO_GSIS[index];
        let base = layout::VIRTIO_MMIO + index as u64 * layout::MMIO_WINDOW;
        let owner = Box::new(worker.handle().clone());
        let transport = MmioTransport::new(idle, self.vm.ram().clone(), owner, self.vm.line(gsi));
        for (queue, kick) in (0u32..).zip(worker.handle().kicks()) {
            self.vm.notify_by_value(kick, base + mmio::QUEUE_NOTIFY, queue)?;
        }
        // The transport's status register is made for acknowledgements that come late.
        self.vm.coalesce(base + mmio::INTERRUPT_ACK)?;
        self.buses.memory.insert(base, layout::MMIO_WINDOW, Arc::new(transport))?;
        self.mmio.push(MmioDevice { base, gsi });
        Ok(())
    }
}
