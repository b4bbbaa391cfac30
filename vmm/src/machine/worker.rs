//! A device's own thread: waits for kicks, for the device's descriptors and for orders, and serves.
//!
//! A device that divides into parts, of a queue or a few, gets a thread for each beyond the first that a driver uses: the
//! device's thread starts them when a driver first does so, and hands them their parts of the running device. They obey its orders, and it theirs who own it:
//!
//! ```text
//!   transport, machine ── Order ──> yun_disk ── Order ──> yun_disk.1     (halt, pause: answered when all of them did it)
//! ```
//! The thread exists as long as the device does, whatever the guest makes of it: a driver that resets its device in a loop
//! starts no threads. Kick eventfds are watched edge-triggered and never read: each write is an edge, and the counter is
//! nobody's business; that saves a system call a kick.
//!
//! With a window ([`Habits::poll`]) a thread looks for work that long before it sleeps, while that pays; a drive's driver is not
//! asked for kicks meanwhile. A pause, a limit and the end of the window have it asked for them again: nobody sleeps unkicked.

mod due;
mod polling;
mod work;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::virtio::{Idle, Owner, Part, Running, Served};
use due::{Due, Job};
use polling::Polling;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use work::Work;

use crate::sandbox::seccomp::Seccomp;
use crate::sandbox::seccomp::rules::Kind;

/// Queues and sources that one device may have; each is a bit.
const QUEUES_MAX: usize = 64;

/// What the thread is told.
enum Order {
    /// Serve this device; its queues are to be served once unasked.
    Run(Box<dyn Running>, Vec<u16>),
    /// Serve this part of a device; its queues, once unasked.
    RunPart(Box<dyn Part>, Vec<u16>),
    /// Stop the device and hand it back.
    Halt(SyncSender<Option<Box<dyn Idle>>>),
    /// Serve nothing until resumed; answered once that is so.
    Pause(SyncSender<()>),
    /// Go on.
    Resume,
}

/// How a device's threads work.
#[derive(Clone, Debug, Default)]
pub struct Habits {
    /// For how long to look for more work before sleeping; nothing for not at all.
    pub poll: Duration,
    /// CPUs to stay on; any if there are none.
    pub cpus: Arc<[u16]>,
}

/// Looks on: called on each of a device's threads after each batch, with what it left behind.
pub type Observer = Arc<dyn Fn(Served) + Send + Sync>;

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

/// The eventfds that kick a device's queues.
///
/// # Errors
/// If descriptors can't be had.
pub fn kicks(queues: usize) -> std::io::Result<Arc<[EventFd]>> {
    let kicks = (0..queues).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<std::io::Result<Vec<_>>>()?;
    Ok(kicks.into())
}

/// A worker thread; ended, with its device, when dropped.
pub struct Worker {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    quit: Arc<EventFd>,
}

impl Worker {
    /// Starts the thread `name` for a device with these [`kicks`], which somebody else may hear as well, confined to what `kind` may
    /// do if `seccomp` says so; `observer` looks on. It works as `habits` say.
    ///
    /// # Errors
    /// If descriptors or a thread can't be had.
    ///
    /// # Panics
    /// For more than 64 queues.
    pub fn start(
        name: &str,
        kicks: &Arc<[EventFd]>,
        kind: Kind,
        seccomp: Seccomp,
        observer: Observer,
        habits: &Habits,
    ) -> std::io::Result<Self> {
        assert!(kicks.len() <= QUEUES_MAX, "each queue is a bit");
        let cpus = Arc::clone(&habits.cpus);
        Self::spawn(name, kicks, 0..kicks.len(), observer, habits.poll, move || {
            // Threads for single queues inherit it.
            crate::host::cpus::stay_on(&cpus);
            seccomp.confine_or_abort(kind);
        })
    }

    /// A thread that is kicked by those of `kicks` that are in `mine`; `first` is the first thing it does.
    fn spawn(
        name: &str,
        kicks: &Arc<[EventFd]>,
        mine: Range<usize>,
        observer: Observer,
        poll: Duration,
        first: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Self> {
        let eventfd = || EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let (wake, quit) = (eventfd()?, eventfd()?);
        let (orders, inbox) = channel();
        let epoll = Epoll::new()?;
        let watch = |fd: RawFd, token: u64, set: EventSet| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set | EventSet::EDGE_TRIGGERED, token))
        };
        watch(wake.as_raw_fd(), TOKEN_WAKE, EventSet::IN)?;
        watch(quit.as_raw_fd(), TOKEN_QUIT, EventSet::IN)?;
        for (token, kick) in (TOKEN_KICK..).zip(kicks.iter()).take(mine.end).skip(mine.start) {
            watch(kick.as_raw_fd(), token, EventSet::IN)?;
        }
        let body = Body {
            name: name.to_owned(),
            epoll,
            inbox,
            observer,
            kicks: Arc::clone(kicks),
            work: None,
            sources: Vec::new(),
            due: Due::default(),
            queues: Vec::new(),
            polling: Polling::new(poll),
            looks: false,
            paused: false,
            elsewhere: 0,
            others: BTreeMap::new(),
            refused: false,
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(crate::THREAD_STACK)
            .spawn(move || {
                first();
                body.work();
            })?;
        let handle = Handle { orders, wake, kicks: Arc::clone(kicks) };
        Ok(Self { handle, thread: Some(thread), quit })
    }

    /// A way to the thread.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

#[cfg(test)]
impl Worker {
    /// One that is not confined, and that nobody looks at.
    pub fn plain(name: &str, queues: usize, habits: &Habits) -> Self {
        let kicks = kicks(queues).expect("descriptors");
        Self::start(name, &kicks, Kind::Device, Seccomp::Off, Arc::new(|_| ()), habits).expect("a thread")
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

/// Watches a device's descriptor until it is closed, or taken back.
fn watch_source(epoll: &Epoll, source: usize, fd: RawFd) {
    let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, TOKEN_SOURCE + source as u64);
    if let Err(e) = epoll.ctl(ControlOperation::Add, fd, event) {
        log::error!("a device's descriptor can't be watched: {e}");
    }
}

/// Watches what `work` has begun to wait for; `watched` is what is to be forgotten when it ends: some of it outlives it.
fn watch_new(epoll: &Epoll, work: &mut Work, watched: &mut Vec<RawFd>) {
    while let Some((source, fd)) = work.new_source() {
        watch_source(epoll, source, fd);
        // A number may come again: that of one that was closed.
        if !watched.contains(&fd) {
            watched.push(fd);
        }
    }
}

/// What the thread owns.
struct Body {
    name: String,
    epoll: Epoll,
    inbox: Receiver<Order>,
    observer: Observer,
    kicks: Arc<[EventFd]>,
    work: Option<Work>,
    /// What the work waits for, or did: watched, and perhaps there when it is gone.
    sources: Vec<RawFd>,
    due: Due,
    /// Whose kicks are this thread's.
    queues: Vec<u16>,
    polling: Polling,
    /// It looks for work: the driver is not asked for kicks, so it must not sleep.
    looks: bool,
    paused: bool,
    /// The queues, as bits, whose kicks this thread does not watch because its device says that somebody else hears them.
    elsewhere: u64,
    /// The threads that serve parts of this one's device, by their first queue. They stay, as this one does, and wait for the next part.
    others: BTreeMap<u16, Worker>,
    /// The host had no thread for a queue, and the log says so.
    refused: bool,
}

impl Body {
    fn work(mut self) {
        loop {
            if self.looks && self.due.is_empty() {
                let Some(found) = self.look_for_work() else { return };
                self.polling.note(found);
            }
            if self.looks && !self.due.is_due() {
                self.look_no_more();
            }
            let timeout = if self.paused || self.work.is_none() { -1 } else { self.due.timeout_ms() };
            if self.wait(timeout).is_none() {
                return;
            }
            if !self.paused {
                if timeout != 0 && !self.looks && self.due.is_due() && self.polling.pays() {
                    self.look(true);
                }
                self.serve_due();
            }
            self.mind_kicks();
        }
    }

    fn go_on(&mut self) {
        let Some(work) = &mut self.work else { return };
        work.go_on();
        watch_new(&self.epoll, work, &mut self.sources);
    }

    /// Watches the kicks that are this thread's to hear, and no others. A queue that becomes its own is served once unasked.
    fn mind_kicks(&mut self) {
        let elsewhere = self.work.as_ref().map_or(0, Work::kicked_elsewhere);
        let changed = std::mem::replace(&mut self.elsewhere, elsewhere) ^ elsewhere;
        if changed == 0 {
            return;
        }
        for (queue, kick) in (0u16..).zip(self.kicks.iter()).filter(|(queue, _)| changed >> queue & 1 != 0) {
            let mine = elsewhere >> queue & 1 == 0;
            let operation = if mine { ControlOperation::Add } else { ControlOperation::Delete };
            let event =
                EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, TOKEN_KICK + u64::from(queue));
            if let Err(e) = self.epoll.ctl(operation, kick.as_raw_fd(), event) {
                log::error!("{}: who hears the kicks of queue {queue} can't be changed: {e}", self.name);
            }
            if mine {
                self.due.add(Job::Queue(queue));
            }
        }
    }

    /// Waits for events, at most for as many milliseconds, and notes what they ask for; how many there were. `None` at the end.
    fn wait(&mut self, timeout: i32) -> Option<usize> {
        let mut events = [EpollEvent::default(); 16];
        let n = match self.epoll.wait(timeout, &mut events) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(e) => {
                log::error!("a device's thread can't wait for events and ends: {e}");
                return None;
            }
        };
        for event in &events[..n] {
            match event.data() {
                TOKEN_WAKE => self.take_orders(),
                TOKEN_QUIT => {
                    // Orders sent before the end are still answered: a vCPU may be waiting for a halt.
                    self.take_orders();
                    return None;
                }
                token if token >= TOKEN_SOURCE => {
                    self.due.add(Job::Source(usize::try_from(token - TOKEN_SOURCE).unwrap_or(usize::MAX)));
                }
                token => self.due.add(Job::Queue(u16::try_from(token - TOKEN_KICK).unwrap_or(u16::MAX))),
            }
        }
        Some(n)
    }

    fn serve_due(&mut self) {
        let Some(work) = self.work.as_mut() else {
            self.due = Due::default();
            return;
        };
        self.due.ripen();
        for job in std::mem::take(&mut self.due.now) {
            let served = work.do_job(job);
            watch_new(&self.epoll, work, &mut self.sources);
            (self.observer)(served);
            match served {
                Served::Drained => {}
                Served::More => self.due.add(job),
                Served::After(wait) => self.due.add_after(job, wait),
                Served::Broken => {
                    self.due = Due::default();
                    self.looks = false;
                    return;
                }
            }
        }
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::Run(device, queues) => self.run(device, queues),
                Order::RunPart(part, queues) => self.begin(Work::Part(part), queues),
                Order::Halt(reply) => {
                    self.due = Due::default();
                    self.looks = false;
                    // A device is stopped once its parts are.
                    for other in self.others.values_mut() {
                        other.handle.halt();
                    }
                    for fd in self.sources.drain(..) {
                        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
                    }
                    let _ = reply.send(self.work.take().and_then(Work::stop));
                }
                Order::Pause(reply) => {
                    self.paused = true;
                    if self.looks {
                        self.look_no_more();
                    }
                    if let Some(work) = &mut self.work {
                        work.settle();
                    }
                    self.others.values().for_each(|other| other.handle.pause());
                    let _ = reply.send(());
                }
                Order::Resume => {
                    self.paused = false;
                    self.go_on();
                    self.others.values().for_each(|other| other.handle.resume());
                }
            }
        }
    }

    fn run(&mut self, mut device: Box<dyn Running>, queues: Vec<u16>) {
        // This thread keeps the first part that is in use, and what is no part.
        let first = queues.first().and_then(|queue| device.part_of(*queue));
        let mut mine = Vec::new();
        let mut parts: BTreeMap<u16, (Range<u16>, Vec<u16>)> = BTreeMap::new();
        for queue in queues {
            match device.part_of(queue) {
                Some(part) if first.as_ref() != Some(&part) => {
                    parts.entry(part.start).or_insert((part, Vec::new())).1.push(queue);
                }
                _ => mine.push(queue),
            }
        }
        for (part, queues) in parts.into_values() {
            mine.extend(self.hand_over(&mut *device, part, queues));
        }
        self.begin(Work::Device(device), mine);
    }

    /// Begins to serve, with these queues.
    fn begin(&mut self, mut work: Work, queues: Vec<u16>) {
        self.sources = work.sources();
        for (source, fd) in self.sources.iter().enumerate() {
            watch_source(&self.epoll, source, *fd);
        }
        self.work = Some(work);
        if !self.paused {
            self.go_on();
        }
        self.due = Due::default();
        queues.iter().for_each(|queue| self.due.add(Job::Queue(*queue)));
        self.queues = queues;
    }

    /// Gives `part` of `device`, of which the driver uses `queues`, to a thread of its own; the queues again if there is none.
    fn hand_over(&mut self, device: &mut dyn Running, part: Range<u16>, queues: Vec<u16>) -> Vec<u16> {
        let first = part.start;
        if let Entry::Vacant(vacant) = self.others.entry(first) {
            let name = format!("{}.{first}", self.name);
            let kicks = usize::from(first)..usize::from(part.end);
            // It is confined from its first instruction on: a thread inherits the filters of whoever starts it.
            let (mine, observer) = (kicks.clone(), Arc::clone(&self.observer));
            let thread = Worker::spawn(&name, &self.kicks, mine, observer, self.polling.window(), || ());
            match thread {
                Ok(thread) => {
                    // From now on their kicks are its own.
                    for kick in &self.kicks[kicks] {
                        let kick = kick.as_raw_fd();
                        let _ = self.epoll.ctl(ControlOperation::Delete, kick, EpollEvent::default());
                    }
                    if self.paused {
                        thread.handle.pause();
                    }
                    vacant.insert(thread);
                }
                Err(e) => {
                    if !std::mem::replace(&mut self.refused, true) {
                        log::warn!("{}: no thread for queue {first}, the device's serves it: {e}", self.name);
                    }
                    return queues;
                }
            }
        }
        match device.split_off(first) {
            Some(split) => {
                self.others[&first].handle.tell(Order::RunPart(split, queues));
                Vec::new()
            }
            None => queues,
        }
    }
}

#[cfg(test)]
mod tests;
