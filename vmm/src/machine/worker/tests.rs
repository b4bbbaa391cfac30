//! Orders, kicks and ends of a device's threads.

use super::*;
use devices::virtio::{ConfigSpace, DeviceKind, Granted, StartFailed};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
    let worker = Worker::plain("test", 1, &Habits::default());
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
    let worker = Worker::plain("test", 1, &Habits::default());
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
    let worker = Worker::plain("test", 1, &Habits::default());
    let mut owner = worker.handle().clone();
    drop(worker);
    assert!(owner.halt().is_none());
    owner.pause();
}

/// Queues of the device below.
const COUNT: u16 = 3;

/// A device of several queues that divides; each batch notes its queue and the thread that served it.
struct Divisible {
    batches: Batches,
    /// What this one serves; the whole device serves what was not split off.
    queues: Vec<u16>,
    /// Queues of each part; what is left over is no part.
    width: u16,
    config: Arc<ConfigSpace>,
}

type Batches = Arc<std::sync::Mutex<Vec<(u16, String)>>>;

impl Divisible {
    fn new(queues: u16) -> (Box<Self>, Batches) {
        Self::in_parts_of(1, queues)
    }

    fn in_parts_of(width: u16, queues: u16) -> (Box<Self>, Batches) {
        let batches = Batches::default();
        let queues = (0..queues).collect();
        let config = ConfigSpace::new(vec![]);
        (Box::new(Self { batches: Arc::clone(&batches), queues, width, config }), batches)
    }

    fn note(&self, queue: u16) -> Served {
        if self.queues.contains(&queue) {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            self.batches.lock().unwrap().push((queue, name));
        }
        Served::Drained
    }
}

impl Idle for Divisible {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }
    fn offered(&self) -> u64 {
        0
    }
    fn queue_sizes_max(&self) -> &[u16] {
        &[16; COUNT as usize]
    }
    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }
    fn start(self: Box<Self>, _: Granted) -> Result<Box<dyn Running>, StartFailed> {
        Ok(self)
    }
}

impl Running for Divisible {
    fn serve(&mut self, queue: u16) -> Served {
        self.note(queue)
    }
    fn part_of(&self, queue: u16) -> Option<Range<u16>> {
        let start = queue - queue % self.width;
        (start + self.width <= COUNT).then_some(start..start + self.width)
    }
    fn split_off(&mut self, queue: u16) -> Option<Box<dyn Part>> {
        let part = self.part_of(queue)?;
        let (queues, left) = self.queues.drain(..).partition(|queue| part.contains(queue));
        self.queues = left;
        let batches = Arc::clone(&self.batches);
        Some(Box::new(Self { batches, queues, width: self.width, config: Arc::clone(&self.config) }))
    }
    fn stop(mut self: Box<Self>) -> Box<dyn Idle> {
        self.queues = (0..COUNT).collect();
        self
    }
}

impl Part for Divisible {
    fn serve(&mut self, queue: u16) -> Served {
        self.note(queue)
    }
    fn end(self: Box<Self>) {
        self.batches.lock().unwrap().push((self.queues[0], "ended".into()));
    }
}

/// Waits until `done` says so of what was noted.
fn wait_until(batches: &Batches, done: impl Fn(&[(u16, String)]) -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let noted = batches.lock().unwrap().clone();
        if done(&noted) {
            return;
        }
        assert!(Instant::now() < end, "{noted:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn noted(queue: u16, what: &str) -> (u16, String) {
    (queue, what.to_owned())
}

/// Threads of this process whose names begin with `name`.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(name)).count()
}

#[test]
fn a_device_that_divides_gets_a_thread_for_each_queue_that_is_used_and_keeps_it() {
    let worker = Worker::plain("many", 3, &Habits::default());
    let mut owner = worker.handle().clone();
    let (device, batches) = Divisible::new(3);
    let mut device: Box<dyn Running> = device;
    let mut most = 0;
    for queues in [&[0u16][..], &[0, 2], &[0, 1, 2], &[0]] {
        batches.lock().unwrap().clear();
        owner.run(device, queues);
        // Served once unasked, then at each kick, by its own thread alone.
        let thread = |queue: u16| if queue == 0 { "many".to_owned() } else { format!("many.{queue}") };
        wait_until(&batches, |noted| queues.iter().all(|queue| noted.contains(&(*queue, thread(*queue)))));
        for queue in queues {
            batches.lock().unwrap().clear();
            owner.kick(*queue);
            wait_until(&batches, |noted| noted.contains(&(*queue, thread(*queue))));
        }
        let noted = batches.lock().unwrap().clone();
        assert!(noted.iter().all(|(queue, by)| *by == thread(*queue)), "{noted:?}");
        let Ok(again) = owner.halt().unwrap().start(nothing_granted()) else { panic!() };
        device = again;
        let noted = batches.lock().unwrap().clone();
        let ended = noted.iter().filter(|(_, what)| what == "ended").count();
        assert_eq!(ended, queues.len() - 1, "when the device is given back, its parts have ended");
        // A queue that no driver used so far costs none; a thread that is there stays.
        most = most.max(queues.len());
        assert_eq!(threads("many"), most);
    }
    assert_eq!(threads("many"), 3);
    drop(worker);
    assert_eq!(threads("many"), 0);
}

#[test]
fn a_part_of_several_queues_has_one_thread_and_what_is_no_part_stays() {
    let worker = Worker::plain("duo", 3, &Habits::default());
    let mut owner = worker.handle().clone();
    // Parts of two of three queues: 0 and 1; queue 2 is left over. The driver leaves out queue 0 at first.
    let (device, batches) = Divisible::in_parts_of(2, 3);
    owner.run(device, &[1, 2]);
    wait_until(&batches, |all| all.contains(&noted(1, "duo")) && all.contains(&noted(2, "duo")));
    let Ok(device) = owner.halt().unwrap().start(nothing_granted()) else { panic!() };
    assert_eq!(threads("duo"), 1, "a single part is the device's thread's own");
    batches.lock().unwrap().clear();
    // It keeps what comes first.
    owner.run(device, &[2, 0, 1]);
    wait_until(&batches, |all| {
        all.contains(&noted(2, "duo")) && all.contains(&noted(0, "duo.0")) && all.contains(&noted(1, "duo.0"))
    });
    for queue in [0, 1] {
        batches.lock().unwrap().clear();
        owner.kick(queue);
        wait_until(&batches, |all| all.contains(&noted(queue, "duo.0")));
    }
    assert_eq!(threads("duo"), 2);
    assert!(owner.halt().is_some());
}

#[test]
fn a_pause_holds_all_threads_of_a_device() {
    let worker = Worker::plain("held", 3, &Habits::default());
    let mut owner = worker.handle().clone();
    let (device, batches) = Divisible::new(3);
    owner.run(device, &[0, 1, 2]);
    wait_until(&batches, |noted| noted.len() >= 3);
    owner.pause();
    batches.lock().unwrap().clear();
    owner.kick_all();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(*batches.lock().unwrap(), []);
    owner.resume();
    wait_until(&batches, |all| {
        all.contains(&noted(0, "held"))
            && all.contains(&noted(1, "held.1"))
            && all.contains(&noted(2, "held.2"))
    });
    assert!(owner.halt().is_some());
}

/// A device that notes what is asked of it, and has something to serve while `available` is not 0.
struct Watched {
    notes: Arc<std::sync::Mutex<Vec<&'static str>>>,
    available: Arc<AtomicUsize>,
    config: Arc<ConfigSpace>,
}

impl Idle for Watched {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
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

impl Running for Watched {
    fn serve(&mut self, _queue: u16) -> Served {
        let found = self.available.swap(0, Ordering::SeqCst);
        self.notes.lock().unwrap().push(if found == 0 { "nothing" } else { "served" });
        Served::Drained
    }
    fn set_polled(&mut self, on: bool) {
        self.notes.lock().unwrap().push(if on { "looks" } else { "sleeps" });
    }
    fn peek(&self, _queue: u16) -> bool {
        self.available.load(Ordering::SeqCst) != 0
    }
    fn stop(self: Box<Self>) -> Box<dyn Idle> {
        self
    }
}

/// A thread with a window of `poll` and its device, which was served once.
struct Watch {
    worker: Worker,
    notes: Arc<std::sync::Mutex<Vec<&'static str>>>,
    available: Arc<AtomicUsize>,
}

impl Watch {
    fn new(poll: Duration) -> Self {
        let habits = Habits { poll, ..Habits::default() };
        let worker = Worker::plain("watch", 1, &habits);
        let (notes, available) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let config = ConfigSpace::new(vec![]);
        let device = Watched { notes: Arc::clone(&notes), available: Arc::clone(&available), config };
        worker.handle().clone().run(Box::new(device), &[0]);
        Self { worker, notes, available }
    }

    /// Waits until what was noted ends with `end`.
    fn until(&self, end: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.notes.lock().unwrap().ends_with(end) {
            assert!(Instant::now() < deadline, "{:?}", self.notes.lock().unwrap());
            std::thread::yield_now();
        }
    }
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn a_thread_that_looks_finds_work_without_a_kick() {
    let watch = Watch::new(LONG);
    watch.until(&["looks", "nothing"]);
    for _ in 0..3 {
        watch.available.store(1, Ordering::SeqCst);
        watch.until(&["served"]);
        watch.notes.lock().unwrap().clear();
    }
}

#[test]
fn a_thread_that_looks_obeys_and_after_a_pause_it_serves_what_came_unkicked() {
    let watch = Watch::new(LONG);
    watch.until(&["looks", "nothing"]);
    let mut owner = watch.worker.handle().clone();
    owner.pause();
    watch.until(&["sleeps"]);
    watch.available.store(1, Ordering::SeqCst);
    owner.resume();
    watch.until(&["served"]);
    owner.kick(0);
    assert!(owner.halt().is_some());
    drop(watch.worker);
}

#[test]
fn a_window_in_vain_ends_with_a_last_look_and_then_a_kick_is_needed_and_enough() {
    let watch = Watch::new(Duration::from_millis(1));
    watch.until(&["looks", "nothing", "sleeps", "nothing"]);
    watch.available.store(1, Ordering::SeqCst);
    watch.worker.handle().kick_all();
    watch.until(&["served", "sleeps", "nothing"]);
}

#[test]
fn without_a_window_nobody_looks() {
    let watch = Watch::new(Duration::ZERO);
    watch.until(&["nothing"]);
    watch.available.store(1, Ordering::SeqCst);
    watch.worker.handle().kick_all();
    watch.until(&["served"]);
    let mut owner = watch.worker.handle().clone();
    assert!(owner.halt().is_some());
    assert_eq!(*watch.notes.lock().unwrap(), ["nothing", "served"]);
}

fn nothing_granted() -> Granted {
    struct Silent;
    impl devices::irq::Interrupt for Silent {
        fn queue(&self, _: u16) {}
        fn config(&self) {}
        fn needs_reset(&self) {}
    }
    Granted {
        ram: devices::testing::ram::flat(4096),
        features: 0,
        queues: vec![],
        interrupt: Arc::new(Silent),
    }
}

/// Its kicks are somebody else's until its first source says otherwise. The second counts.
struct Lent {
    batches: Arc<AtomicUsize>,
    probes: Arc<AtomicUsize>,
    sources: [EventFd; 2],
    elsewhere: bool,
    begun: Arc<AtomicUsize>,
    config: Arc<ConfigSpace>,
}

impl Idle for Lent {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
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

impl Running for Lent {
    fn serve(&mut self, _queue: u16) -> Served {
        self.batches.fetch_add(1, Ordering::SeqCst);
        Served::Drained
    }
    fn sources(&self) -> Vec<RawFd> {
        self.sources.iter().map(AsRawFd::as_raw_fd).collect()
    }
    fn ready(&mut self, source: usize) -> Served {
        match source {
            0 => self.elsewhere = false,
            _ => drop(self.probes.fetch_add(1, Ordering::SeqCst)),
        }
        Served::Drained
    }
    fn go_on(&mut self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
    }
    fn kicked_elsewhere(&self) -> u64 {
        self.elsewhere.into()
    }
    fn stop(self: Box<Self>) -> Box<dyn Idle> {
        self
    }
}

#[test]
fn kicks_that_somebody_else_hears_wake_nobody_here_until_they_are_given_back() {
    let kicks = kicks(1).unwrap();
    let worker =
        Worker::start("lent", &kicks, Kind::Device, Seccomp::Off, Arc::new(|_| ()), &Habits::default())
            .unwrap();
    let mut owner = worker.handle().clone();
    let [batches, probes, begun] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
    let sources = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
    let [give_back, probe] = [0, 1].map(|source: usize| sources[source].try_clone().unwrap());
    let device = Lent {
        batches: Arc::clone(&batches),
        probes: Arc::clone(&probes),
        sources,
        elsewhere: true,
        begun: Arc::clone(&begun),
        config: ConfigSpace::new(vec![]),
    };
    owner.run(Box::new(device), &[0]);
    wait_for(&batches, 1);
    owner.pause();
    owner.resume();
    // What comes first is served first: when the probe was, the kick would have been.
    owner.kick(0);
    probe.write(1).unwrap();
    wait_for(&probes, 1);
    assert_eq!(batches.load(Ordering::SeqCst), 1);
    give_back.write(1).unwrap();
    wait_for(&batches, 2);
    owner.kick(0);
    wait_for(&batches, 3);
    assert!(owner.halt().is_some());
    assert_eq!(begun.load(Ordering::SeqCst), 2, "at the start and after the pause");
}

/// Waits for something that was there before it and will be after it, from its first batch on.
struct Late {
    lasting: EventFd,
    asked: bool,
    ready: Arc<AtomicUsize>,
    config: Arc<ConfigSpace>,
}

impl Idle for Late {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
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

impl Running for Late {
    fn serve(&mut self, _queue: u16) -> Served {
        Served::Drained
    }
    fn new_source(&mut self) -> Option<(usize, RawFd)> {
        (!std::mem::replace(&mut self.asked, true)).then(|| (0, self.lasting.as_raw_fd()))
    }
    fn ready(&mut self, _source: usize) -> Served {
        self.ready.fetch_add(1, Ordering::SeqCst);
        Served::Drained
    }
    fn stop(mut self: Box<Self>) -> Box<dyn Idle> {
        self.asked = false;
        self
    }
}

#[test]
fn what_a_device_began_to_wait_for_is_watched_anew_for_its_next_driver() {
    let worker = Worker::plain("late", 1, &Habits::default());
    let mut owner = worker.handle().clone();
    let lasting = EventFd::new(EFD_NONBLOCK).unwrap();
    lasting.write(1).unwrap();
    let ready = Arc::new(AtomicUsize::new(0));
    let config = ConfigSpace::new(vec![]);
    let mut device: Box<dyn Running> =
        Box::new(Late { lasting, asked: false, ready: Arc::clone(&ready), config });
    for times in 1..=3 {
        owner.run(device, &[0]);
        // It is readable all the time: to be watched is to hear of it.
        wait_for(&ready, times);
        let Ok(again) = owner.halt().unwrap().start(nothing_granted()) else { panic!() };
        device = again;
    }
}
