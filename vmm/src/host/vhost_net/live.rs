//! An interface in use: where it is served, and the moves from one place to the other.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use devices::irq::{Eventfd, Interrupt};
use devices::mem::{Bytes, GuestAddress, Ram};
use devices::virtio::net::{RX_QUEUE, TX_QUEUE};
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
    sources: Vec<Source>,
    /// Descriptors that the userspace path waits for and that nobody watches yet.
    unwatched: VecDeque<(usize, RawFd)>,
}

impl Live {
    /// Prepares both paths; the userspace one sets the TAP device's offloads. After an error all is given back.
    pub(super) fn start(user: Box<dyn Idle>, link: Link, granted: Granted) -> Result<Self, StartFailed> {
        let (ram, features) = (Arc::clone(&granted.ram), granted.features);
        let interrupt = Arc::clone(&granted.interrupt);
        let rings = granted.queues.iter().map(|queue| queue.as_ref().map(Queue::state)).collect();
        match user.start(granted) {
            Ok(user) => Ok(Self {
                sources: connect(&link, &*interrupt),
                link,
                user: Some(User::Running(user)),
                ram,
                features,
                interrupt,
                rings,
                mode: Mode::Held,
                unwatched: VecDeque::new(),
            }),
            Err(StartFailed { device, reason }) => {
                Err(StartFailed { device: Box::new(VhostNet::of(device, link)), reason })
            }
        }
    }

    /// The kernel takes the rings where they are. After an error it has none of them.
    fn give_to_kernel(&mut self) -> Result<(), VhostError> {
        let Link { kernel, kicks, calls, errors, shared, .. } = &mut self.link;
        // What is left there was said of an earlier driver's rings.
        let _ = errors.read();
        kernel.prepare(self.features & KNOWN)?;
        for (queue, ring) in self.rings.iter().take(PAIR).enumerate() {
            let (Some(ring), Some(kick)) = (ring, kicks.get(queue)) else { continue };
            let signals = Signals { kick, call: &calls[queue], error: errors };
            if let Err(error) = kernel.start(queue, ring, &signals) {
                let _ = kernel.stop(queue); // what there is of it
                (0..queue).for_each(|queue| self.hold_ring(queue));
                return Err(error);
            }
        }
        shared.in_kernel.store(true, Ordering::Relaxed);
        self.mode = Mode::Kernel;
        Ok(())
    }

    /// The kernel lets go of the rings; when this returns it touches no guest memory.
    fn hold(&mut self) {
        (0..PAIR).for_each(|queue| self.hold_ring(queue));
        self.link.shared.in_kernel.store(false, Ordering::Relaxed);
        self.mode = Mode::Held;
    }

    fn hold_ring(&mut self, queue: usize) {
        let Some(Some(ring)) = self.rings.get_mut(queue) else { return };
        let stopped = self.link.kernel.stop(queue);
        // All that it took it has used: vhost-net answers in order, and gives back what it could not use.
        let used = self.ram.load::<u16>(GuestAddress(ring.used_ring + USED_INDEX), Ordering::Acquire);
        ring.next_used = used.map_or(ring.next_used, u16::from_le);
        ring.next_avail = stopped.unwrap_or_else(|error| {
            log::error!("{}: {error}", self.link.name);
            ring.next_used
        });
    }

    /// Userspace takes the rings where they are held, with the features that were agreed on.
    fn give_to_userspace(&mut self) {
        self.link.shared.fallbacks.fetch_add(1, Ordering::Relaxed);
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
                self.unwatched.extend((self.sources.len()..).zip(running.sources()));
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
        let metrics = &self.link.net.pairs()[0];
        let count = if queue == RX_QUEUE { &metrics.rx_interrupts } else { &metrics.tx_interrupts };
        count.inc();
    }
}

fn eventfd(call: &Arc<EventFd>) -> Eventfd {
    Arc::clone(call) as Eventfd
}

/// Has the calls be interrupts by themselves, as far as the machine can; what is left to wait for.
fn connect(link: &Link, interrupt: &dyn Interrupt) -> Vec<Source> {
    let calls = [RX_QUEUE, TX_QUEUE].into_iter().zip(&link.calls);
    let left = calls.filter(|(queue, call)| !interrupt.connect(*queue, &eventfd(call)));
    [Source::Wake, Source::Errors].into_iter().chain(left.map(|(queue, _)| Source::Call(queue))).collect()
}

impl Running for Live {
    fn serve(&mut self, queue: u16) -> Served {
        let in_kernel = usize::from(queue) < PAIR && self.mode == Mode::Kernel;
        match self.mode {
            Mode::Broken => Served::Broken,
            Mode::Held => Served::Drained,
            Mode::Kernel if in_kernel => Served::Drained,
            Mode::Kernel | Mode::Userspace => {
                self.running().map_or(Served::Drained, |running| running.serve(queue))
            }
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
        if let Some(source) = self.unwatched.pop_front() {
            return Some(source);
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
            Mode::Held => {
                if let Err(error) = self.give_to_kernel() {
                    self.link.warn(format_args!("{error}; it is served in userspace"));
                    self.give_to_userspace();
                }
            }
            Mode::Userspace => self.running().into_iter().for_each(|running| running.go_on()),
            Mode::Kernel | Mode::Broken => {}
        }
    }

    fn kicked_elsewhere(&self) -> u64 {
        match self.mode {
            Mode::Kernel | Mode::Held => {
                let pair = (0..PAIR).zip(&self.rings).filter(|(_, ring)| ring.is_some());
                pair.fold(0, |bits, (queue, _)| bits | 1 << queue)
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
