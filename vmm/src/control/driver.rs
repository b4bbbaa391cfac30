//! The one thread that changes a microVM: takes commands in order, asks [`lifecycle::admit`] whether each is allowed now,
//! and carries it out. It also sees to signals, the console and the metrics' minute.
//!
//! ```text
//!   API thread ──Envelope──┐
//!   vCPUs, devices ──End───┤                         ┌─> Machine (build, pause, resume, drop)
//!   SIGTERM, SIGINT ───────┼──> epoll ──> Driver::run ┼─> VmResources (before the start)
//!   stdin, stdout ─────────┤                         └─> EventRing, Metrics
//!   time ──────────────────┘
//! ```

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use devices::serial::LIMIT_DEFAULT;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::config::VmResources;
use super::end::End;
use super::files::Host;
use super::lifecycle::{self, State, Verdict};
use super::planning::{bucket_spec, limits};
use super::plug::Pending;
use super::{Answer, Command, Configure, Denial, Envelope, Outcome};
use crate::events::{EventKind, EventRing};
use crate::host::console::Console;
use crate::host::lent::Received;
use crate::machine::Machine;
use crate::machine::devices::OnDeviceError;
use crate::machine::ended::Reason;
use crate::machine::slots::OnEject;
use crate::metrics::Metrics;
use crate::sandbox::seccomp::Seccomp;
use crate::sandbox::seccomp::rules::Kind;
use crate::spec::{ConfigFile, InstanceId, IoEngine, MachineConfigPatch, VmInfo};

/// How often the metrics file gets a line.
const METRICS_PERIOD: Duration = Duration::from_secs(60);

/// What the command line decides for the life of the process.
#[derive(Debug, Clone)]
pub struct Options {
    /// The microVM's name.
    pub id: InstanceId,
    /// virtio-pci rather than virtio-mmio.
    pub pci: bool,
    /// The boot timer is there.
    pub boot_timer: bool,
    /// A guest's reboot starts it again instead of ending the process.
    pub reset_on_reboot: bool,
    /// How long a guest may take to switch itself off when the process is told to end.
    pub shutdown_timeout: Duration,
    /// Guest RAM may be backed by transparent huge pages.
    pub transparent_huge_pages: bool,
    /// Guest RAM is not to be swapped out.
    pub lock_memory: bool,
    /// Open files that the process may have, as [`crate::host::descriptors_max`] says.
    pub descriptors_max: u64,
    /// Whether threads confine themselves to the system calls they need.
    pub seccomp: Seccomp,
}

/// What the driver shares with the rest of the process.
pub struct Shared {
    /// What happened, for `GET /events`.
    pub events: Arc<EventRing>,
    /// Who counts.
    pub metrics: Arc<Metrics>,
    /// Wakes the driver when a command was sent.
    pub wake: Arc<EventFd>,
}

/// See the [module](self).
pub struct Driver {
    pub(super) options: Options,
    pub(super) shared: Shared,
    inbox: Receiver<Envelope>,
    signals: SignalFd,
    end: Arc<End>,
    state: State,
    pub(super) host: Host,
    pub(super) resources: VmResources<Host>,
    console: Console,
    epoll: Epoll,
    pub(super) machine: Option<Machine>,
    /// When the guest must have switched itself off.
    deadline: Option<Instant>,
    /// Who waits for a device to go.
    pub(super) unplugs: Vec<Pending>,
}

const TOKEN_COMMAND: u64 = 0;
const TOKEN_SIGNAL: u64 = 1;
const TOKEN_END: u64 = 2;
const TOKEN_STDIN: u64 = 3;
const TOKEN_STDOUT: u64 = 4;
const TOKEN_CONSOLE: u64 = 5;

/// Blocks the signals that the driver takes, in this thread and all it starts, and SIGPIPE and SIGXFSZ, which nobody takes:
/// a reader that has gone and a file that may not grow are errors of the write, which a guest can bring about. To be called
/// before any thread is started.
///
/// # Errors
/// What the kernel said.
pub fn block_signals() -> io::Result<SigSet> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    SigSet::from_iter([Signal::SIGPIPE, Signal::SIGXFSZ]).thread_block()?;
    Ok(set)
}

impl Driver {
    /// A driver of a microVM that is not configured yet. `signals` were blocked by [`block_signals`].
    ///
    /// # Errors
    /// If descriptors can't be had.
    pub fn new(
        options: Options,
        shared: Shared,
        inbox: Receiver<Envelope>,
        signals: &SigSet,
    ) -> io::Result<Self> {
        Ok(Self {
            options,
            shared,
            inbox,
            signals: SignalFd::with_flags(signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
            end: End::new()?,
            state: State::NotStarted,
            host: Host::default(),
            resources: VmResources::default(),
            console: Console::new()?,
            epoll: Epoll::new()?,
            machine: None,
            deadline: None,
            unplugs: Vec::new(),
        })
    }

    /// Carries out a command now, on the caller's thread: for the configuration file, before [`Driver::run`].
    ///
    /// # Errors
    /// The same [`Denial`] that the API would answer.
    pub fn take(&mut self, command: Command) -> Answer {
        match lifecycle::admit(self.state, &command) {
            Verdict::Do => self.carry_out(command),
            Verdict::AlreadySo => Ok(Outcome::Done),
            Verdict::Deny(denial) => Err(denial),
        }
    }

    /// Configures everything that `file` says and starts the guest.
    ///
    /// # Errors
    /// The first [`Denial`].
    pub fn start_from(&mut self, file: ConfigFile) -> Result<(), Denial> {
        let mut configure = |what| self.take(Command::Configure(what)).map(drop);
        configure(Configure::BootSource(file.boot_source))?;
        if let Some(machine) = file.machine_config {
            configure(Configure::Machine(MachineConfigPatch::from(machine)))?;
        }
        file.rate_limiter_groups
            .into_iter()
            .try_for_each(|(id, limits)| configure(Configure::RateLimiterGroup(id, limits)))?;
        file.drives.into_iter().try_for_each(|drive| configure(Configure::Drive(drive)))?;
        file.network_interfaces
            .into_iter()
            .try_for_each(|net| configure(Configure::NetworkInterface(net)))?;
        file.entropy.into_iter().try_for_each(|entropy| configure(Configure::Entropy(entropy)))?;
        file.vsock.into_iter().try_for_each(|vsock| configure(Configure::Vsock(vsock)))?;
        if let Some(logger) = file.logger {
            self.take(Command::PutLogger(logger))?;
        }
        if let Some(metrics) = file.metrics {
            self.take(Command::PutMetrics(metrics))?;
        }
        self.take(Command::Start).map(drop)
    }

    /// Drives the microVM until its guest ends or the process is told to; why.
    ///
    /// # Errors
    /// If events can't be waited for.
    pub fn run(mut self) -> io::Result<Reason> {
        self.watch(self.shared.wake.as_raw_fd(), TOKEN_COMMAND, EventSet::IN)?;
        self.watch(self.signals.as_raw_fd(), TOKEN_SIGNAL, EventSet::IN)?;
        self.watch(self.end.wake().as_raw_fd(), TOKEN_END, EventSet::IN)?;
        self.watch(self.console.output_wake().as_raw_fd(), TOKEN_CONSOLE, EventSet::IN)?;
        // Files can't be watched; as input they are not offered.
        let _ = self.watch(self.console.stdin(), TOKEN_STDIN, EventSet::IN);
        let mut metrics_due = Instant::now() + METRICS_PERIOD;
        let mut events = [EpollEvent::default(); 8];
        loop {
            let n = match self.epoll.wait(self.timeout_ms(metrics_due), &mut events) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                Err(e) => return Err(e),
            };
            let mut ended = None;
            for event in &events[..n] {
                match event.data() {
                    TOKEN_COMMAND => self.take_commands(),
                    TOKEN_SIGNAL => ended = ended.or(self.take_signals()),
                    TOKEN_END => ended = ended.or(self.guest_ended()),
                    TOKEN_STDIN => self.take_input(),
                    TOKEN_STDOUT => self.console.drain(),
                    _ => {
                        self.console.drain();
                        self.take_input();
                    }
                }
            }
            let now = Instant::now();
            if !self.unplugs.is_empty() {
                self.see_to_unplugs(now);
            }
            if now >= metrics_due {
                metrics_due = now + METRICS_PERIOD;
                let _ = self.shared.metrics.flush(); // counted as missed
            }
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                ended = ended.or(Some(Reason::Stopped { clean: false }));
            }
            if let Some(reason) = ended {
                self.finish(&reason);
                return Ok(reason);
            }
        }
    }

    fn watch(&self, fd: RawFd, token: u64, set: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set | EventSet::EDGE_TRIGGERED, token))
    }

    fn timeout_ms(&self, metrics_due: Instant) -> i32 {
        let now = Instant::now();
        let others = [self.deadline, self.unplugs_due(now)];
        let next = others.into_iter().flatten().fold(metrics_due, Instant::min);
        let wait = next.saturating_duration_since(now);
        i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    }

    /// Input is for a guest that runs; until then it stays where it is.
    fn take_input(&mut self) {
        if self.state == State::Running {
            self.console.take_input();
        }
    }

    fn take_commands(&mut self) {
        let _ = self.shared.wake.read();
        while let Ok(envelope) = self.inbox.try_recv() {
            self.host.received = envelope.received.into();
            match envelope.command {
                Command::Unplug(what) if self.machine.is_some() => self.begin_unplug(what, envelope.reply),
                command => {
                    let answer = self.take(command);
                    // What was not asked for is closed before anybody hears.
                    self.host.received = Received::default();
                    envelope.reply.answer(answer);
                }
            }
        }
    }

    /// The process is told to end: asks the guest to, and gives it a deadline. A second time means now.
    fn take_signals(&mut self) -> Option<Reason> {
        let mut told = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            log::info!("told to end by signal {}", signal.ssi_signo);
            told = true;
        }
        if !told {
            return None;
        }
        if self.machine.is_none() {
            return Some(Reason::NeverStarted);
        }
        if self.deadline.is_some() {
            return Some(Reason::Stopped { clean: false });
        }
        // A guest that stands still can't switch itself off.
        if self.state == State::Paused {
            let _ = self.take(Command::Resume);
        }
        if let Some(machine) = &self.machine {
            machine.press_power_button();
        }
        self.deadline = Some(Instant::now() + self.options.shutdown_timeout);
        None
    }

    /// The guest ended by itself; `None` if it was started again.
    fn guest_ended(&mut self) -> Option<Reason> {
        let reason = self.end.take()?;
        if self.deadline.is_some() && reason == Reason::PowerOff {
            return Some(Reason::Stopped { clean: true });
        }
        if reason != Reason::Reboot || !self.options.reset_on_reboot || self.deadline.is_some() {
            return Some(reason);
        }
        self.machine = None;
        // What the last vCPUs of the old guest had to say is about the old guest.
        let _ = self.end.take();
        self.end_unplugs();
        match self.start() {
            Ok(()) => {
                log::info!("{reason}; started again");
                self.shared.events.push(EventKind::Reset, Some(reason.name()));
                None
            }
            Err(denial) => {
                log::error!("the guest could not be started again: {denial}");
                Some(reason)
            }
        }
    }

    fn finish(&mut self, reason: &Reason) {
        self.machine = None;
        self.console.drain_at_end();
        let status = reason.exit_status();
        log::info!("The microVM ended: {reason} (reason {}, exit status {status})", reason.name());
        self.shared.events.push(EventKind::Shutdown, Some(reason.name()));
        self.shared.events.close();
        let _ = self.shared.metrics.flush();
    }

    fn carry_out(&mut self, command: Command) -> Answer {
        match command {
            Command::GetInfo => {
                Ok(Outcome::Info(VmInfo::new(self.options.id.to_string(), self.state.into())))
            }
            Command::GetVersion => Ok(Outcome::Version(crate::spec::Version::default())),
            Command::GetVmConfig => Ok(Outcome::VmConfig(Box::new(self.resources.view()))),
            Command::GetMachineConfig => Ok(Outcome::MachineConfig(self.resources.machine().clone())),
            Command::GetRateLimiterGroup(id) => self.resources.get_group(&id),
            Command::Configure(what @ Configure::RateLimiterGroup(..)) => {
                let done = self.resources.configure(&mut self.host, what);
                self.groups_changed(done)
            }
            Command::PatchRateLimiterGroup(id, change) => {
                let done = self.resources.patch_group(&id, change);
                self.groups_changed(done)
            }
            Command::DeleteRateLimiterGroup(id) => self.resources.remove_group(&id),
            Command::Configure(what) if self.machine.is_some() => self.plug(what),
            Command::Configure(what) => self.resources.configure(&mut self.host, what),
            // It takes time: see `take_commands`.
            Command::Unplug(_) => Err(Denial::BeforeStart),
            Command::PutLogger(logger) => match crate::logger::configure(&logger) {
                Ok(()) => Ok(Outcome::Done),
                Err(e) => Err(Denial::Logger(format!("Failed to open target file: {e}"))),
            },
            Command::PutMetrics(metrics) => match self.shared.metrics.open(&metrics) {
                Ok(()) => Ok(Outcome::Done),
                Err(e) => Err(Denial::Metrics(e.to_string())),
            },
            Command::FlushMetrics => match self.shared.metrics.flush() {
                Ok(()) => Ok(Outcome::Done),
                Err(e) => Err(Denial::Metrics(e.to_string())),
            },
            Command::Start => {
                self.start()?;
                self.shared.events.push(EventKind::Started, None);
                Ok(Outcome::Done)
            }
            Command::Pause => {
                self.machine()?.pause();
                self.state = State::Paused;
                self.shared.events.push(EventKind::Paused, None);
                Ok(Outcome::Done)
            }
            Command::Resume => {
                self.machine()?.resume();
                self.state = State::Running;
                self.take_input();
                self.shared.events.push(EventKind::Resumed, None);
                Ok(Outcome::Done)
            }
            Command::PressPowerButton => {
                self.machine()?.press_power_button();
                Ok(Outcome::Done)
            }
            Command::SendCtrlAltDel => {
                self.machine()?.ctrl_alt_del();
                Ok(Outcome::Done)
            }
            Command::PatchDrive(patch) => {
                let machine = self.machine.as_ref().ok_or(Denial::BeforeStart)?;
                self.resources.patch_drive(&mut self.host, &patch, |change| {
                    let limits = limits(change.limiter);
                    let asynchronous = change.drive.spec.engine == IoEngine::Async;
                    let disk = change.file.cloned().map(|disk| disk.asynchronous(asynchronous));
                    machine.change_drive(change.index, disk, limits);
                    Ok(())
                })
            }
            Command::PatchNetworkInterface(patch) => {
                let machine = self.machine.as_ref().ok_or(Denial::BeforeStart)?;
                self.resources.patch_net(&patch, |index, rx, tx| {
                    machine.change_net(index, limits(rx), limits(tx));
                    Ok(())
                })
            }
            Command::PatchEntropy(change) => {
                let machine = self.machine.as_ref().ok_or(Denial::BeforeStart)?;
                self.resources.patch_entropy(change, |limiter| machine.change_entropy(limits(limiter)))
            }
            Command::PatchVsock(change) => {
                let machine = self.machine.as_ref().ok_or(Denial::BeforeStart)?;
                self.resources.patch_vsock(change, |limiter| machine.change_vsock(&limits(limiter)))
            }
        }
    }

    /// Who waits for limits that have changed does not know.
    fn groups_changed(&self, done: Answer) -> Answer {
        if done.is_ok()
            && let Some(machine) = &self.machine
        {
            machine.limits_changed();
        }
        done
    }

    pub(super) fn machine(&self) -> Result<&Machine, Denial> {
        self.machine.as_ref().ok_or(Denial::BeforeStart)
    }

    /// Builds the machine and lets it run. After an error everything is as it was, and may be configured and tried again.
    fn start(&mut self) -> Result<(), Denial> {
        let plan = self.plan()?;
        self.console
            .open(self.resources.serial().serial_out_path.as_deref().map(Path::new))
            .map_err(|e| Denial::Start(format!("the serial console's output can't be opened: {e}")))?;
        let limit = self.resources.serial().rate_limiter.map_or(LIMIT_DEFAULT, bucket_spec);
        self.console.buffer().set_limit(&limit);
        // Files can't be watched: they are never full. An output that is watched already, from an earlier try, stays so.
        let _ = self.watch(self.console.stdout(), TOKEN_STDOUT, EventSet::OUT);
        let end = Arc::clone(&self.end);
        let events = Arc::clone(&self.shared.events);
        let on_error: OnDeviceError =
            Arc::new(move |device, what| events.push_about(EventKind::DeviceError, Some(device), Some(what)));
        let wake = Arc::clone(&self.shared.wake);
        let on_eject: OnEject = Arc::new(move || {
            // It is full: then the driver has been woken already.
            let _ = wake.write(1);
        });
        let on_end = Arc::new(move |reason| end.note(reason));
        let machine = Machine::build(plan, &self.console, on_end, on_error, on_eject)
            .map_err(|e| Denial::Start(e.to_string()))?;
        machine.register_metrics(&self.shared.metrics);
        // A guest that is to be started again in this process needs all that starting takes.
        if !self.options.reset_on_reboot {
            let kind = if machine.has_slots() { Kind::PciDriver } else { Kind::Driver };
            self.options.seccomp.confine_or_abort(kind);
        }
        machine.resume();
        self.machine = Some(machine);
        self.state = State::Running;
        // What was typed before there was a guest to read it.
        self.take_input();
        Ok(())
    }
}
