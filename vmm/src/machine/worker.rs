//! A device's own thread: waits for kicks, for the device's descriptors and for orders, and serves.
//!
//! The thread exists as long as the device does, whatever the guest makes of it: a driver that resets its device in a loop
//! starts no threads. Kick eventfds are watched edge-triggered and never read: each write is an edge, and the counter is
//! nobody's business; that saves a system call a kick.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::virtio::{Idle, Owner, Running, Served};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::sandbox::seccomp::Seccomp;
use crate::sandbox::seccomp::rules::Kind;

/// Queues and sources that one device may have; each is a bit.
const QUEUES_MAX: usize = 64;

/// What the thread is told.
enum Order {
    /// Serve this device; its queues are to be served once unasked.
    Run(Box<dyn Running>, Vec<u16>),
    /// Stop the device and hand it back.
    Halt(SyncSender<Option<Box<dyn Idle>>>),
    /// Serve nothing until resumed; answered once that is so.
    Pause(SyncSender<()>),
    /// Go on.
    Resume,
}

/// Looks on: called on the thread after each batch, with what it left behind.
pub type Observer = Box<dyn FnMut(Served) + Send>;

/// The way to a worker thread: what a transport holds as its [`Owner`], and the machine for pausing.
#[derive(Clone)]
pub struct Handle {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    kicks: Arc<[EventFd]>,
}

impl Handle {
    fn tell(&self, order: Order) -> bool {
        let sent = self.orders.send(order).is_ok();
        sent && self.wake.write(1).is_ok()
    }

    /// The eventfds that kick the queues, by index, for ioeventfds.
    #[must_use]
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Kicks every queue: something that held them changed.
    pub fn kick_all(&self) {
        for kick in self.kicks() {
            // EAGAIN: the counter is full, so the thread has been woken more often than it can count.
            let _ = kick.write(1);
        }
    }

    /// Holds the device: when this returns it serves nothing.
    pub fn pause(&self) {
        let (done, wait) = sync_channel(1);
        if self.tell(Order::Pause(done)) {
            let _ = wait.recv();
        }
    }

    /// Lets it serve again.
    pub fn resume(&self) {
        self.tell(Order::Resume);
    }
}

impl Owner for Handle {
    fn run(&mut self, device: Box<dyn Running>, queues: &[u16]) {
        self.tell(Order::Run(device, queues.to_vec()));
    }

    fn halt(&mut self) -> Option<Box<dyn Idle>> {
        let (done, wait) = sync_channel(1);
        if !self.tell(Order::Halt(done)) {
            return None;
        }
        wait.recv().ok().flatten()
    }

    fn kick(&self, queue: u16) {
        if let Some(kick) = self.kicks.get(usize::from(queue)) {
            let _ = kick.write(1); // as above
        }
    }
}

/// A worker thread; ended, with its device, when dropped.
pub struct Worker {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    quit: Arc<EventFd>,
}

impl Worker {
    /// Starts the thread `name` for a device with `queues` queues, confined as `seccomp` says; `observer` looks on.
    ///
    /// # Errors
    /// If descriptors or a thread can't be had.
    ///
    /// # Panics
    /// For more than 64 queues.
    pub fn start(name: &str, queues: usize, seccomp: Seccomp, observer: Observer) -> std::io::Result<Self> {
        assert!(queues <= QUEUES_MAX, "each queue is a bit");
        let eventfd = || EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let (wake, quit) = (eventfd()?, eventfd()?);
        let kicks: Arc<[EventFd]> =
            (0..queues).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<std::io::Result<Vec<_>>>()?.into();
        let (orders, inbox) = channel();
        let epoll = Epoll::new()?;
        let watch = |fd: RawFd, token: u64, set: EventSet| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set | EventSet::EDGE_TRIGGERED, token))
        };
        watch(wake.as_raw_fd(), TOKEN_WAKE, EventSet::IN)?;
        watch(quit.as_raw_fd(), TOKEN_QUIT, EventSet::IN)?;
        for (token, kick) in (TOKEN_KICK..).zip(kicks.iter()) {
            watch(kick.as_raw_fd(), token, EventSet::IN)?;
        }
        let body = Body { epoll, inbox, observer, device: None, due: Due::default(), paused: false };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(crate::THREAD_STACK)
            .spawn(move || {
                seccomp.confine_or_abort(Kind::Device);
                body.work();
            })?;
        let handle = Handle { orders, wake, kicks };
        Ok(Self { handle, thread: Some(thread), quit })
    }

    /// A way to the thread.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.quit.write(1);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("a device's thread panicked");
        }
    }
}

const TOKEN_WAKE: u64 = 0;
const TOKEN_QUIT: u64 = 1;
const TOKEN_KICK: u64 = 1 << 8;
const TOKEN_SOURCE: u64 = 1 << 16;

/// Something that is to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Queue(u16),
    Source(usize),
}

/// What is to be served, and when.
#[derive(Default)]
struct Due {
    now: Vec<Job>,
    later: Vec<(Instant, Job)>,
}

impl Due {
    fn add(&mut self, job: Job) {
        self.later.retain(|(_, other)| *other != job);
        if !self.now.contains(&job) {
            self.now.push(job);
        }
    }

    fn add_after(&mut self, job: Job, wait: Duration) {
        if !self.now.contains(&job) {
            self.later.retain(|(_, other)| *other != job);
            self.later.push((Instant::now() + wait, job));
        }
    }

    /// Moves what has become due to `now`.
    fn ripen(&mut self) {
        if self.later.is_empty() {
            return;
        }
        let now = Instant::now();
        let ripe: Vec<Job> = self.later.iter().filter(|(at, _)| *at <= now).map(|(_, job)| *job).collect();
        ripe.into_iter().for_each(|job| self.add(job));
    }

    /// How long to wait for events, in epoll's milliseconds: -1 is for ever.
    fn timeout_ms(&self) -> i32 {
        if !self.now.is_empty() {
            return 0;
        }
        let Some(at) = self.later.iter().map(|(at, _)| *at).min() else { return -1 };
        let wait = at.saturating_duration_since(Instant::now());
        // Rounded up: an early look would only find that it is too early.
        i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    }
}

/// What the thread owns.
struct Body {
    epoll: Epoll,
    inbox: Receiver<Order>,
    observer: Observer,
    device: Option<Box<dyn Running>>,
    due: Due,
    paused: bool,
}

impl Body {
    fn work(mut self) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let timeout = if self.paused || self.device.is_none() { -1 } else { self.due.timeout_ms() };
            let n = match self.epoll.wait(timeout, &mut events) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => 0,
                Err(e) => {
                    log::error!("a device's thread can't wait for events and ends: {e}");
                    return;
                }
            };
            for event in &events[..n] {
                match event.data() {
                    TOKEN_WAKE => self.take_orders(),
                    TOKEN_QUIT => {
                        // Orders sent before the end are still answered: a vCPU may be waiting for a halt.
                        self.take_orders();
                        return;
                    }
                    token if token >= TOKEN_SOURCE => {
                        self.due
                            .add(Job::Source(usize::try_from(token - TOKEN_SOURCE).unwrap_or(usize::MAX)));
                    }
                    token => self.due.add(Job::Queue(u16::try_from(token - TOKEN_KICK).unwrap_or(u16::MAX))),
                }
            }
            if !self.paused {
                self.serve_due();
            }
        }
    }

    fn serve_due(&mut self) {
        let Some(device) = self.device.as_mut() else {
            self.due = Due::default();
            return;
        };
        self.due.ripen();
        for job in std::mem::take(&mut self.due.now) {
            let served = match job {
                Job::Queue(queue) => device.serve(queue),
                Job::Source(source) => device.ready(source),
            };
            (self.observer)(served);
            match served {
                Served::Drained => {}
                Served::More => self.due.add(job),
                Served::After(wait) => self.due.add_after(job, wait),
                Served::Broken => {
                    self.due = Due::default();
                    return;
                }
            }
        }
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::Run(device, queues) => {
                    for (token, fd) in (TOKEN_SOURCE..).zip(device.sources()) {
                        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
                        if let Err(e) = self.epoll.ctl(ControlOperation::Add, fd, event) {
                            log::error!("a device's descriptor can't be watched: {e}");
                        }
                    }
                    self.device = Some(device);
                    self.due = Due::default();
                    queues.into_iter().for_each(|queue| self.due.add(Job::Queue(queue)));
                }
                Order::Halt(reply) => {
                    self.due = Due::default();
                    let idle = self.device.take().map(|device| {
                        for fd in device.sources() {
                            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
                        }
                        device.stop()
                    });
                    let _ = reply.send(idle);
                }
                Order::Pause(reply) => {
                    self.paused = true;
                    let _ = reply.send(());
                }
                Order::Resume => self.paused = false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::virtio::{ConfigSpace, DeviceKind, Granted, StartFailed};
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Counter {
        served: Arc<AtomicUsize>,
        answers: Vec<Served>,
        config: Arc<ConfigSpace>,
    }

    impl Idle for Counter {
        fn kind(&self) -> DeviceKind {
            DeviceKind::Entropy
        }
        fn offered(&self) -> u64 {
            0
        }
        fn queue_sizes_max(&self) -> &[u16] {
            &[16]
        }
        fn config(&self) -> &Arc<ConfigSpace> {
            &self.config
        }
        fn start(self: Box<Self>, _: Granted) -> Result<Box<dyn Running>, StartFailed> {
            Ok(self)
        }
    }

    impl Running for Counter {
        fn serve(&mut self, _queue: u16) -> Served {
            self.served.fetch_add(1, Ordering::SeqCst);
            self.answers.pop().unwrap_or(Served::Drained)
        }
        fn stop(self: Box<Self>) -> Box<dyn Idle> {
            self
        }
    }

    fn counter(answers: &[Served]) -> (Box<Counter>, Arc<AtomicUsize>) {
        let served = Arc::new(AtomicUsize::new(0));
        let config = ConfigSpace::new(vec![]);
        (Box::new(Counter { served: Arc::clone(&served), answers: answers.to_vec(), config }), served)
    }

    fn wait_for(served: &AtomicUsize, n: usize) {
        let end = Instant::now() + Duration::from_secs(10);
        while served.load(Ordering::SeqCst) < n {
            assert!(Instant::now() < end, "served {} times, not {n}", served.load(Ordering::SeqCst));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_queue_is_served_at_the_start_at_each_kick_and_again_while_there_is_more() {
        let worker = Worker::start("test", 1, Seccomp::Off, Box::new(|_| ())).unwrap();
        let mut owner = worker.handle().clone();
        let (device, served) = counter(&[Served::After(Duration::from_millis(2)), Served::More]);
        owner.run(device, &[0]);
        wait_for(&served, 3);
        owner.kick(0);
        wait_for(&served, 4);
        assert!(owner.halt().is_some());
        assert!(owner.halt().is_none());
    }

    #[test]
    fn a_paused_device_serves_nothing_and_forgets_no_kick() {
        let worker = Worker::start("test", 1, Seccomp::Off, Box::new(|_| ())).unwrap();
        let mut owner = worker.handle().clone();
        let (device, served) = counter(&[]);
        owner.run(device, &[0]);
        wait_for(&served, 1);
        owner.pause();
        owner.kick(0);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(served.load(Ordering::SeqCst), 1);
        owner.resume();
        wait_for(&served, 2);
    }

    #[test]
    fn dropping_the_worker_ends_its_thread_and_a_late_order_is_answered() {
        let worker = Worker::start("test", 1, Seccomp::Off, Box::new(|_| ())).unwrap();
        let mut owner = worker.handle().clone();
        drop(worker);
        assert!(owner.halt().is_none());
        owner.pause();
    }
}
