//! Moves between kernel and userspace, over a vhost-net that is a list of what it was asked.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use devices::irq::{Eventfd, Interrupt};
use devices::limiter::BucketSpec;
use devices::mem::Ram;
use devices::testing::irq::CountingIrq;
use devices::testing::net::FakeTap;
use devices::testing::queue::{Driver, give};
use devices::testing::ram;
use devices::virtio::Served;
use devices::virtio::net::{F_MRG_RXBUF, Net, NetOptions, RX_QUEUE, TX_QUEUE};
use devices::virtio::queue::F_EVENT_IDX;
use virtio_queue::QueueState;

use super::kernel::Signals;
use super::*;

const SIZE: u16 = 16;
const DATA: u64 = 0x1_0000;
const FRAME: u32 = 12 + 60;
/// Sources of the device: calls of its two queues come last, where nobody else hears them.
const WAKE: usize = 0;
const ERRORS: usize = 1;
const CALLS: usize = 2;
const USERS: usize = CALLS + PAIR;

/// What a vhost-net was asked, and how far it is with its rings.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) prepared: Vec<u64>,
    /// By ring: where it was told to begin, if it serves.
    pub(super) serving: [Option<QueueState>; PAIR],
    /// By ring: available entries that it took so far.
    pub(super) base: [u16; PAIR],
    pub(super) starts: usize,
    /// It refuses to start this ring.
    pub(super) refuses: Option<usize>,
}

#[derive(Clone)]
pub(super) struct Fake {
    features: u64,
    asked: Arc<Mutex<Asked>>,
}

impl Fake {
    pub(super) fn new(features: u64) -> Self {
        Self { features, asked: Arc::default() }
    }

    /// It sends `frames` frames of the guest with this RAM.
    pub(super) fn sent(&self, ram: &Ram, frames: u16) {
        let mut asked = self.asked();
        let state = asked.serving[1].expect("the kernel serves");
        for _ in 0..frames {
            let at = state.used_ring + 4 + 8 * u64::from(asked.base[1] % SIZE);
            ram::write(ram, at, &u64::from(asked.base[1] % SIZE).to_le_bytes());
            asked.base[1] += 1;
        }
        ram::write(ram, state.used_ring + 2, &asked.base[1].to_le_bytes());
    }

    pub(super) fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn serves(&self) -> [bool; PAIR] {
        self.asked().serving.map(|ring| ring.is_some())
    }
}

fn no() -> VhostError {
    VhostError::Refused { doing: "want to", source: ::vhost::Error::InvalidOperation }
}

impl Kernel for Fake {
    fn features(&self) -> u64 {
        self.features
    }

    fn prepare(&mut self, features: u64) -> Result<(), VhostError> {
        assert_eq!(self.serves(), [false; PAIR], "features are set while no ring is served");
        self.asked().prepared.push(features);
        Ok(())
    }

    fn start(&mut self, queue: usize, ring: &QueueState, _: &Signals<'_>) -> Result<(), VhostError> {
        let mut asked = self.asked();
        asked.starts += 1;
        if asked.refuses == Some(queue) {
            return Err(no());
        }
        assert!(asked.serving[queue].replace(*ring).is_none(), "ring {queue} is served already");
        asked.base[queue] = ring.next_avail;
        Ok(())
    }

    fn stop(&mut self, queue: usize) -> Result<u16, VhostError> {
        let mut asked = self.asked();
        asked.serving[queue] = None;
        Ok(asked.base[queue])
    }
}

struct Rig {
    ram: Ram,
    rx: Driver,
    tx: Driver,
    tap: FakeTap,
    irq: Arc<CountingIrq>,
    kernel: Fake,
    handle: VhostHandle,
    net: NetHandle,
    errors: EventFd,
    device: Box<dyn Running>,
}

pub(super) fn limited() -> LimiterSpec {
    let ops = BucketSpec { size: 1_000_000, one_time_burst: 0, refill_time_ms: 1 };
    LimiterSpec { bytes: None, ops: Some(ops) }
}

fn vhost(features: u64, tx_limits: LimiterSpec) -> (VhostNet, Fake, FakeTap, NetHandle) {
    let tap = FakeTap::new();
    let net = Net::new(Box::new(tap.clone()), &NetOptions { tx_limits, ..NetOptions::default() });
    let (handle, kernel) = (net.handle(), Fake::new(features));
    let kicks = (0..2).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
    let options = VhostOptions { name: "eth0".into(), kicks, rx_limits: LimiterSpec::default(), tx_limits };
    let kernels = vec![Box::new(kernel.clone()) as Box<dyn Kernel>];
    let device = VhostNet::new(Box::new(net), handle.clone(), kernels, &options).unwrap();
    (device, kernel, tap, handle)
}

impl Rig {
    fn new() -> Self {
        Self::with(LimiterSpec::default(), None)
    }

    fn with(tx_limits: LimiterSpec, refuses: Option<usize>) -> Self {
        let (device, kernel, tap, net) = vhost(u64::MAX, tx_limits);
        kernel.asked().refuses = refuses;
        let handle = device.handle();
        let errors = device.link.errors.try_clone().unwrap();
        let ram = ram::flat(0x8_0000);
        let (rx, tx) = (Driver::new(&ram, 0x1000, SIZE), Driver::new(&ram, 0x3000, SIZE));
        let irq = CountingIrq::new();
        let granted = Granted {
            ram: Ram::clone(&ram),
            features: device.offered() & !F_EVENT_IDX,
            queues: vec![Some(rx.queue()), Some(tx.queue())],
            interrupt: irq.clone(),
        };
        let Ok(mut device) = Box::new(device).start(granted) else { panic!("the wire takes the offloads") };
        device.go_on();
        Self { ram, rx, tx, tap, irq, kernel, handle, net, errors, device }
    }

    /// The driver has a frame to send.
    fn sends(&mut self) {
        self.tx.send(&[give(DATA, FRAME)]);
    }

    fn limits(&mut self, spec: LimiterSpec) {
        self.net.set_limits(None, Some(spec));
        self.handle.limits_are(&LimiterSpec::default(), &spec);
        self.device.ready(WAKE);
    }

    fn sent_by_userspace(&self) -> usize {
        self.tap.traffic().sent.len()
    }
}

#[test]
fn the_kernel_serves_what_was_agreed_on_and_userspace_neither_kicks_nor_frames() {
    let mut rig = Rig::new();
    assert_eq!(rig.kernel.serves(), [true; 2]);
    assert_eq!(rig.kernel.asked().prepared, [KNOWN & !F_EVENT_IDX]);
    let ring = rig.kernel.asked().serving[0].unwrap();
    assert_eq!((ring.desc_table, ring.size, ring.next_avail), (0x1000, SIZE, 0));
    assert!(rig.handle.in_kernel());
    assert!(rig.tap.traffic().offloads.is_some_and(|offloads| offloads.csum && offloads.tso4));
    rig.sends();
    rig.tap.traffic().incoming.push_back(vec![0; 100]);
    for queue in [RX_QUEUE, TX_QUEUE] {
        assert_eq!(rig.device.serve(queue), Served::Drained);
    }
    assert_eq!((rig.sent_by_userspace(), rig.tap.traffic().incoming.len()), (0, 1));
    assert_eq!(rig.device.kicked_elsewhere(), 0b11);
    assert!(!rig.device.sources().contains(&-1), "the TAP device is nobody's to watch but the kernel's");
}

#[test]
fn a_call_of_the_kernels_is_an_interrupt_of_its_queue() {
    let mut rig = Rig::new();
    for (source, queue) in [(CALLS, RX_QUEUE), (CALLS + 1, TX_QUEUE)] {
        assert_eq!((rig.device.ready(source), rig.irq.raised_on(queue)), (Served::Drained, 1));
    }
    assert_eq!((rig.net.metrics().rx_interrupts.get(), rig.net.metrics().tx_interrupts.get()), (1, 1));
}

/// A machine where writes to eventfds are interrupts, of the queue that receives.
struct Partial {
    irq: Arc<CountingIrq>,
    connected: Mutex<Vec<RawFd>>,
}

impl Interrupt for Partial {
    fn queue(&self, index: u16) {
        self.irq.queue(index);
    }
    fn config(&self) {}
    fn needs_reset(&self) {}
    fn connect(&self, index: u16, eventfd: &Eventfd) -> bool {
        if index == RX_QUEUE {
            self.connected.lock().unwrap().push(eventfd.as_raw_fd());
        }
        index == RX_QUEUE
    }
    fn disconnect(&self, eventfd: &Eventfd) {
        self.connected.lock().unwrap().retain(|other| *other != eventfd.as_raw_fd());
    }
}

#[test]
fn a_call_that_is_an_interrupt_by_itself_is_not_waited_for_until_the_driver_lets_go() {
    let rig = Rig::new();
    let (device, ..) = vhost(u64::MAX, LimiterSpec::default());
    let calls = [0, 1].map(|queue: usize| device.link.calls[queue].as_raw_fd());
    let interrupt = Arc::new(Partial { irq: Arc::clone(&rig.irq), connected: Mutex::default() });
    let granted = Granted {
        ram: Ram::clone(&rig.ram),
        features: KNOWN,
        queues: vec![Some(rig.rx.queue()), Some(rig.tx.queue())],
        interrupt: Arc::clone(&interrupt) as _,
    };
    let Ok(mut device) = Box::new(device).start(granted) else { panic!() };
    device.go_on();
    assert_eq!(*interrupt.connected.lock().unwrap(), [calls[0]]);
    let sources = device.sources();
    assert_eq!((sources.len(), sources[CALLS]), (CALLS + 1, calls[1]));
    device.ready(CALLS);
    assert_eq!((rig.irq.raised_on(TX_QUEUE), rig.irq.raised_on(RX_QUEUE)), (1, 0));
    device.settle();
    device.go_on();
    assert_eq!(interrupt.connected.lock().unwrap().len(), 1, "a pause is no end");
    device.stop();
    assert!(interrupt.connected.lock().unwrap().is_empty());
}

#[test]
fn a_pause_takes_the_rings_from_the_kernel_and_its_end_gives_them_back_where_they_were() {
    let mut rig = Rig::new();
    (0..3).for_each(|_| rig.sends());
    rig.kernel.sent(&rig.ram, 2);
    rig.device.settle();
    assert_eq!(rig.kernel.serves(), [false; 2]);
    assert!(!rig.handle.in_kernel());
    assert_eq!(rig.device.kicked_elsewhere(), 0b11, "a kick that comes now is the kernel's, later");
    rig.device.go_on();
    let ring = rig.kernel.asked().serving[1].unwrap();
    assert_eq!((ring.next_avail, ring.next_used), (2, 2));
    assert_eq!((rig.handle.in_kernel(), rig.handle.fallbacks()), (true, 0));
}

#[test]
fn limits_that_come_move_the_rings_to_userspace_where_the_kernel_left_them() {
    let mut rig = Rig::new();
    (0..3).for_each(|_| rig.sends());
    rig.kernel.sent(&rig.ram, 1);
    assert!(rig.tx.used().is_some());
    assert_eq!(rig.device.new_source(), None);
    rig.limits(limited());
    assert_eq!(rig.kernel.serves(), [false; 2]);
    assert_eq!((rig.handle.in_kernel(), rig.handle.fallbacks()), (false, 1));
    assert_eq!(rig.device.kicked_elsewhere(), 0);
    assert_eq!(rig.device.new_source(), Some((USERS, -1)), "now the TAP device is watched");
    assert_eq!(rig.device.new_source(), None);
    assert_eq!(rig.device.serve(TX_QUEUE), Served::Drained);
    assert_eq!(rig.sent_by_userspace(), 2, "neither again what the kernel sent, nor less than all the rest");
    assert_eq!([rig.tx.used(), rig.tx.used(), rig.tx.used()].iter().flatten().count(), 2);
    // A pause of the userspace path gives the kernel nothing.
    rig.device.settle();
    rig.device.go_on();
    assert_eq!(rig.kernel.serves(), [false; 2]);
}

#[test]
fn limits_that_come_during_a_pause_are_in_force_when_it_ends() {
    let mut rig = Rig::new();
    rig.device.settle();
    rig.handle.limits_are(&limited(), &LimiterSpec::default());
    rig.device.go_on();
    assert_eq!((rig.kernel.serves(), rig.handle.fallbacks()), ([false; 2], 1));
    assert_eq!(rig.kernel.asked().starts, 2);
}

#[test]
fn an_interface_with_limits_begins_in_userspace_and_is_the_kernels_at_the_next_start_without() {
    let mut rig = Rig::with(limited(), None);
    assert_eq!((rig.kernel.serves(), rig.handle.fallbacks()), ([false; 2], 1));
    rig.sends();
    rig.device.serve(TX_QUEUE);
    assert_eq!(rig.sent_by_userspace(), 1);
    rig.limits(LimiterSpec::default());
    assert_eq!(rig.kernel.serves(), [false; 2], "userspace may hold buffers: it keeps the rings");
    let granted = Granted {
        ram: Ram::clone(&rig.ram),
        features: KNOWN,
        queues: vec![Some(rig.rx.queue()), None],
        interrupt: rig.irq.clone(),
    };
    let Ok(mut device) = rig.device.stop().start(granted) else { panic!() };
    device.go_on();
    assert_eq!(rig.kernel.serves(), [true, false], "a queue that no driver enabled is nobody's");
    assert_eq!(device.kicked_elsewhere(), 0b01);
    device.stop();
    assert_eq!(rig.kernel.serves(), [false; 2]);
}

#[test]
fn a_kernel_that_refuses_a_ring_gives_back_the_other_and_userspace_serves_both() {
    let mut rig = Rig::with(LimiterSpec::default(), Some(1));
    assert_eq!((rig.kernel.serves(), rig.handle.fallbacks()), ([false; 2], 1));
    rig.sends();
    rig.device.serve(TX_QUEUE);
    assert_eq!((rig.sent_by_userspace(), rig.irq.resets_asked()), (1, 0));
}

#[test]
fn a_ring_that_the_kernel_can_not_use_asks_for_a_reset_and_an_old_edge_does_not() {
    let mut rig = Rig::new();
    assert_eq!(rig.device.ready(ERRORS), Served::Drained, "nothing was counted");
    assert_eq!(rig.kernel.serves(), [true; 2]);
    rig.errors.write(1).unwrap();
    assert_eq!(rig.device.ready(ERRORS), Served::Broken);
    assert_eq!((rig.kernel.serves(), rig.irq.resets_asked()), ([false; 2], 1));
    assert_eq!((rig.device.serve(TX_QUEUE), rig.net.metrics().broken.get()), (Served::Broken, 1));
    rig.device.go_on();
    assert_eq!(rig.kernel.serves(), [false; 2], "not before a reset");
    // The other ring was broken as well, and nobody has looked since.
    rig.errors.write(1).unwrap();
    let granted = Granted {
        ram: Ram::clone(&rig.ram),
        features: KNOWN,
        queues: vec![Some(rig.rx.queue()), Some(rig.tx.queue())],
        interrupt: rig.irq.clone(),
    };
    let Ok(mut device) = rig.device.stop().start(granted) else { panic!() };
    device.go_on();
    assert_eq!(
        (device.ready(ERRORS), rig.kernel.serves()),
        (Served::Drained, [true; 2]),
        "it is another driver's"
    );
}

#[test]
fn a_feature_that_the_kernel_does_not_know_is_not_on_offer_and_others_are_none_of_its_business() {
    let (all, ..) = vhost(u64::MAX, LimiterSpec::default());
    let (few, ..) = vhost(KNOWN & !F_MRG_RXBUF, LimiterSpec::default());
    assert_eq!(all.offered() ^ few.offered(), F_MRG_RXBUF);
}

#[test]
fn where_there_is_no_vhost_net_the_refusal_says_what_is_missing() {
    let error = VhostError::Open(std::io::Error::from_raw_os_error(libc::ENOENT)).to_string();
    for part in [PATH, "No such file or directory", "module vhost_net", "yun-jailer the flag --vhost-net"] {
        assert!(error.contains(part), "{error}");
    }
}
