//! An interface in use: where it is served, and the moves from one place to the other.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use devices::irq::{Eventfd, Interrupt};
use devices::mem::{Bytes, GuestAddress, Ram};
use devices::virtio::net::uses_pairs;
use devices::virtio::{Granted, Idle, Running, Served, StartFailed};
use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use super::kernel::{Signals, VhostError};
use super::{KNOWN, Link, PAIR, VhostNet};

/// Where the used ring has its index (virtio 1.2 §2.7.8).
const USED_INDEX: u64 = 2;

/// What the device waits for, before what its userspace path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Limits may have changed.
    Wake,
    /// The kernel can't use a ring.
    Errors,
    /// It has used buffers of a queue, and nobody else tells the driver.
    Call(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Nobody serves.
    Held,
    Kernel,
    Userspace,
    /// Nobody serves until the driver resets the device.
    Broken,
}

/// The userspace path.
enum User {
    Running(Box<dyn Running>),
    /// It could not start again.
    Idle(Box<dyn Idle>),
}

impl User {
    fn stop(self) -> Box<dyn Idle> {
        match self {
            Self::Running(running) => running.stop(),
            Self::Idle(idle) => idle,
        }
    }
}

pub(super) struct Live {
    // The first to be dropped: with it the kernel lets go of guest memory.
    link: Link,
    /// `None` only inside of [`Live::give_to_userspace`].
    user: Option<User>,
    ram: Ram,
    features: u64,
    interrupt: Arc<dyn Interrupt>,
    /// The queues, by index, as they were when they were last held.
    rings: Vec<Option<QueueState>>,
    mode: Mode,
    /// Pairs that the driver may use.
    pairs: usize,
    /// Pairs, from the first on, whose rings the kernel has.
    served: usize,
    /// Userspace has taken commands from the control queue.
    commanded: bool,
    sources: Vec<Source>,
    /// Descriptors that the userspace path waits for and that nobody watches yet; `None` once that is settled.
    unwatched: Option<VecDeque<(usize, RawFd)>>,
}

impl Live {
    /// Prepares both paths; the userspace one sets the TAP device's offloads. After an error all is given back.
    pub(super) fn start(user: Box<dyn Idle>, link: Link, granted: Granted) -> Result<Self, StartFailed> {
        let (ram, features) = (Arc::clone(&granted.ram), granted.features);
        let interrupt = Arc::clone(&granted.interrupt);
        let rings: Vec<_> = granted.queues.iter().map(|queue| queue.as_ref().map(Queue::state)).collect();
        // The control queue comes after them (virtio 1.2 §5.1.2).
        let pairs = if uses_pairs(features) { link.kernels.len() } else { 1 };
        link.net.frames_are_moved_elsewhere(true);
        match user.start(granted) {
            Ok(user) => Ok(Self {
                sources: connect(&link, &*interrupt, &rings[..rings.len().min(pairs * PAIR)]),
                pairs,
                served: 0,
                commanded: false,
                link,
                user: Some(User::Running(user)),
                ram,
                features,
                interrupt,
                rings,
                mode: Mode::Held,
                unwatched: None,
            }),
            Err(StartFailed { device, reason }) => {
                Err(StartFailed { device: Box::new(VhostNet::of(device, link)), reason })
            }
        }
    }

    /// The kernel takes the rings of pairs in use where they are, as far as it has not got them. After an error it has none.
    fn give_to_kernel(&mut self) -> Result<(), VhostError> {
        if self.served == 0 {
            // What is left there was said of an earlier driver's rings.
            let _ = self.link.errors.read();
        }
        for pair in self.served..self.pairs.min(self.link.net.pairs_in_use().into()) {
            // Also of one that it has got in part.
            self.served = pair + 1;
            if let Err(error) = self.give_pair(pair) {
                self.hold();
                return Err(error);
            }
        }
        self.link.shared.in_kernel.store(true, Ordering::Relaxed);
        self.mode = Mode::Kernel;
        Ok(())
    }

    fn give_pair(&mut self, pair: usize) -> Result<(), VhostError> {
        let Link { kernels, kicks, calls, errors, .. } = &mut self.link;
        let kernel = &mut kernels[pair];
        kernel.prepare(self.features & KNOWN)?;
        for side in 0..PAIR {
            let queue = pair * PAIR + side;
            let (Some(Some(ring)), Some(kick)) = (self.rings.get(queue), kicks.get(queue)) else { continue };
            kernel.start(side, ring, &Signals { kick, call: &calls[queue], error: errors })?;
        }
        Ok(())
    }

    /// The kernel lets go of all rings; when this returns it touches no guest memory.
    fn hold(&mut self) {
        self.hold_from(0);
        self.link.shared.in_kernel.store(false, Ordering::Relaxed);
        self.mode = Mode::Held;
    }

    /// It lets go of those of pair `first` and of all after it.
    fn hold_from(&mut self, first: usize) {
        for queue in first * PAIR..self.served * PAIR {
            self.hold_ring(queue);
        }
        self.served = self.served.min(first);
    }

    fn hold_ring(&mut self, queue: usize) {
        let Some(Some(ring)) = self.rings.get_mut(queue) else { return };
        let stopped = self.link.kernels[queue / PAIR].stop(queue % PAIR);
        // All that it took it has used: vhost-net answers in order, and gives back what it could not use.
        ring.next_used = used_index(&self.ram, ring);
        ring.next_avail = stopped.unwrap_or_else(|error| {
            log::error!("{}: {error}", self.link.name);
            ring.next_used
        });
    }

    /// Where the control queue is, as userspace, which answers in order, left it.
    fn hold_control(&mut self) {
        if let Some(Some(ring)) = self.rings.get_mut(self.pairs * PAIR).filter(|_| self.commanded) {
            ring.next_used = used_index(&self.ram, ring);
            ring.next_avail = ring.next_used;
        }
    }

    /// Has userspace carry out commands of the control queue, with the kernel serving the pairs that are in use afterwards.
    fn obey(&mut self) -> Served {
        // No frame is put into a queue that the driver is told to have given up (virtio 1.2 §5.1.6.5.5.1), nor is one on its way.
        self.hold_from(1);
        self.commanded = true;
        let control = u16::try_from(self.pairs * PAIR).unwrap_or(u16::MAX);
        let served = self.running().map_or(Served::Drained, |running| running.serve(control));
        if served == Served::Broken {
            self.hold();
            self.mode = Mode::Broken;
        } else {
            self.give_to_kernel_or_userspace();
        }
        served
    }

    fn give_to_kernel_or_userspace(&mut self) {
        if let Err(error) = self.give_to_kernel() {
            self.link.warn(format_args!("{error}; it is served in userspace"));
            self.give_to_userspace();
        }
    }

    /// Userspace takes the rings where they are held, with the features that were agreed on.
    fn give_to_userspace(&mut self) {
        self.link.shared.fallbacks.fetch_add(1, Ordering::Relaxed);
        self.hold_control();
        self.link.net.frames_are_moved_elsewhere(false);
        self.link.net.keep_pairs();
        let Some(user) = self.user.take() else { return };
        // Each was valid when the driver granted it, and only its two indices are others.
        let queues = self.rings.iter().map(|ring| ring.and_then(|ring| Queue::try_from(ring).ok())).collect();
        let granted = Granted {
            ram: Arc::clone(&self.ram),
            features: self.features,
            queues,
            interrupt: Arc::clone(&self.interrupt),
        };
        match user.stop().start(granted) {
            Ok(mut running) => {
                running.go_on();
                self.unwatched = Some((self.sources.len()..).zip(running.sources()).collect());
                self.user = Some(User::Running(running));
                self.mode = Mode::Userspace;
            }
            Err(StartFailed { device, reason }) => {
                self.link.warn(format_args!("{reason}"));
                self.user = Some(User::Idle(device));
                self.give_up();
            }
        }
    }

    /// Userspace has the TAP device's queues attached to be watched; it lets go of those of unused pairs when it serves these, for which
    /// no kick would come.
    fn serve_unused(&mut self) {
        let unused = usize::from(self.link.net.pairs_in_use())..self.pairs;
        for queue in unused.filter_map(|pair| u16::try_from(pair * PAIR).ok()) {
            self.running().into_iter().for_each(|running| {
                running.serve(queue);
            });
        }
    }

    /// Nothing is served until the driver resets the device.
    fn give_up(&mut self) {
        self.mode = Mode::Broken;
        self.link.net.pairs()[0].broken.inc();
        self.interrupt.needs_reset();
    }

    fn running(&mut self) -> Option<&mut Box<dyn Running>> {
        match &mut self.user {
            Some(User::Running(running)) => Some(running),
            _ => None,
        }
    }

    fn limits_came(&self) -> bool {
        self.link.shared.limited.load(Ordering::Acquire)
    }

    fn say_that_limits_are_kept_in_userspace(&mut self) {
        self.link.warn(format_args!(
            "it has rate limits, which vhost-net does not know: it is served in userspace until they are gone and its driver \
             starts it again"
        ));
    }

    /// The kernel has used buffers of `queue`.
    fn called(&self, queue: u16) {
        self.interrupt.queue(queue);
        let metrics = &self.link.net.pairs()[usize::from(queue) / PAIR];
        let count = if queue.is_multiple_of(2) { &metrics.rx_interrupts } else { &metrics.tx_interrupts };
        count.inc();
    }
}

fn eventfd(call: &Arc<EventFd>) -> Eventfd {
    Arc::clone(call) as Eventfd
}

/// How far the device has used `ring`.
fn used_index(ram: &Ram, ring: &QueueState) -> u16 {
    let used = ram.load::<u16>(GuestAddress(ring.used_ring + USED_INDEX), Ordering::Acquire);
    used.map_or(ring.next_used, u16::from_le)
}

/// Has the calls of `rings` be interrupts by themselves, as far as the machine can; what is left to wait for.
fn connect(link: &Link, interrupt: &dyn Interrupt, rings: &[Option<QueueState>]) -> Vec<Source> {
    let calls = (0..).zip(rings).zip(&link.calls).filter(|((_, ring), _)| ring.is_some());
    let left = calls.filter(|((queue, _), call)| !interrupt.connect(*queue, &eventfd(call)));
    [Source::Wake, Source::Errors]
        .into_iter()
        .chain(left.map(|((queue, _), _)| Source::Call(queue)))
        .collect()
}

impl Running for Live {
    fn serve(&mut self, queue: u16) -> Served {
        match self.mode {
            Mode::Broken => Served::Broken,
            Mode::Kernel if usize::from(queue) == self.pairs * PAIR => self.obey(),
            Mode::Held | Mode::Kernel => Served::Drained,
            Mode::Userspace => self.running().map_or(Served::Drained, |running| running.serve(queue)),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        let Link { calls, errors, shared, .. } = &self.link;
        let ours = self.sources.iter().map(|source| match source {
            Source::Wake => shared.wake.as_raw_fd(),
            Source::Errors => errors.as_raw_fd(),
            Source::Call(queue) => calls[usize::from(*queue)].as_raw_fd(),
        });
        let theirs = match &self.user {
            Some(User::Running(running)) if self.mode == Mode::Userspace => running.sources(),
            _ => Vec::new(),
        };
        ours.chain(theirs).collect()
    }

    fn ready(&mut self, source: usize) -> Served {
        if self.mode == Mode::Broken {
            return Served::Broken;
        }
        let ours = self.sources.len();
        match self.sources.get(source) {
            // A call from just before a move to userspace is still one.
            Some(Source::Call(queue)) => self.called(*queue),
            // An edge may be old; the counter is not.
            Some(Source::Errors) if self.link.errors.read().is_ok() && self.mode == Mode::Kernel => {
                self.hold();
                self.link.warn(format_args!("the driver broke a queue: vhost-net can't use it"));
                self.give_up();
                return Served::Broken;
            }
            Some(Source::Wake) if self.mode == Mode::Kernel && self.limits_came() => {
                self.hold();
                self.say_that_limits_are_kept_in_userspace();
                self.give_to_userspace();
            }
            None if self.mode == Mode::Userspace => {
                return self.running().map_or(Served::Drained, |running| running.ready(source - ours));
            }
            _ => {}
        }
        Served::Drained
    }

    fn new_source(&mut self) -> Option<(usize, RawFd)> {
        if let Some(unwatched) = &mut self.unwatched {
            if let Some(source) = unwatched.pop_front() {
                return Some(source);
            }
            self.unwatched = None;
            self.serve_unused();
        }
        let (source, fd) = self.running()?.new_source()?;
        Some((source + self.sources.len(), fd))
    }

    fn go_on(&mut self) {
        match self.mode {
            Mode::Held if self.limits_came() => {
                self.say_that_limits_are_kept_in_userspace();
                self.give_to_userspace();
            }
            Mode::Held => self.give_to_kernel_or_userspace(),
            Mode::Userspace => self.running().into_iter().for_each(|running| running.go_on()),
            Mode::Kernel | Mode::Broken => {}
        }
    }

    fn kicked_elsewhere(&self) -> u64 {
        match self.mode {
            Mode::Kernel | Mode::Held => {
                let used = self.pairs.min(self.link.net.pairs_in_use().into()) * PAIR;
                let used = (0..used).zip(&self.rings).filter(|(_, ring)| ring.is_some());
                used.fold(0, |bits, (queue, _)| bits | 1 << queue)
            }
            Mode::Userspace | Mode::Broken => 0,
        }
    }

    fn settle(&mut self) {
        match self.mode {
            Mode::Kernel => self.hold(),
            Mode::Userspace => self.running().into_iter().for_each(|running| running.settle()),
            Mode::Held | Mode::Broken => {}
        }
    }

    fn stop(mut self: Box<Self>) -> Box<dyn Idle> {
        if self.mode == Mode::Kernel {
            self.hold();
        }
        for call in &self.link.calls {
            self.interrupt.disconnect(&eventfd(call));
        }
        let user = self.user.take().expect("taken for the length of a move only").stop();
        Box::new(VhostNet::of(user, self.link))
    }
}
