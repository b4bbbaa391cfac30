//! Several pairs of queues, each with a vhost-net, and the commands that say how many of them are used.

use devices::irq::Interrupt;
use devices::limiter::LimiterSpec;
use devices::mem::Ram;
use devices::testing::irq::CountingIrq;
use devices::testing::net::FakeTap;
use devices::testing::queue::{Driver, give, take};
use devices::testing::ram;
use devices::virtio::Served;
use devices::virtio::net::{FrameIo, Net, NetOptions};
use devices::virtio::queue::F_EVENT_IDX;

use super::tests::{Fake, limited};
use super::*;

const PAIRS: u16 = 3;
const SIZE: u16 = 16;
const PAIR_BYTES: u64 = 0x2_0000;
const TX: u64 = 0x1000;
const DATA: u64 = 0x4000;
const FRAME: u32 = 12 + 60;
const CONTROL: u16 = PAIRS * 2;
/// Where the parts of a command lie, after all pairs.
const COMMAND: u64 = PAIR_BYTES * PAIRS as u64 + 0x2000;
const ANSWER: u64 = COMMAND + 0x1000;
const OK: u8 = 0;
/// The index of the device's wake.
const WAKE: usize = 0;

struct Rig {
    ram: Ram,
    /// By pair: what the guest sends.
    tx: Vec<Driver>,
    rx: Vec<Driver>,
    control: Driver,
    taps: Vec<FakeTap>,
    kernels: Vec<Fake>,
    irq: Arc<CountingIrq>,
    handle: VhostHandle,
    net: NetHandle,
    device: Box<dyn Running>,
}

impl Rig {
    fn new() -> Self {
        let taps: Vec<_> = (0..PAIRS).map(|_| FakeTap::new()).collect();
        let kernels: Vec<_> = (0..PAIRS).map(|_| Fake::new(u64::MAX)).collect();
        let wires = taps.iter().map(|tap| Box::new(tap.clone()) as Box<dyn FrameIo>).collect();
        let user = Net::with_pairs(wires, &NetOptions::default());
        let net = user.handle();
        let none = LimiterSpec::default();
        let kicks = (0..=CONTROL).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let options = VhostOptions { name: "eth0".into(), kicks, rx_limits: none, tx_limits: none };
        let boxed = kernels.iter().map(|kernel| Box::new(kernel.clone()) as Box<dyn Kernel>).collect();
        let device = VhostNet::new(Box::new(user), net.clone(), boxed, &options).unwrap();
        let handle = device.handle();
        let ram = ram::flat(usize::try_from(PAIR_BYTES * (u64::from(PAIRS) + 1)).unwrap());
        let at = |pair: u16| u64::from(pair) * PAIR_BYTES;
        let rx: Vec<_> = (0..PAIRS).map(|pair| Driver::new(&ram, at(pair), SIZE)).collect();
        let tx: Vec<_> = (0..PAIRS).map(|pair| Driver::new(&ram, at(pair) + TX, SIZE)).collect();
        let control = Driver::new(&ram, at(PAIRS), SIZE);
        let pairs = rx.iter().zip(&tx).flat_map(|(rx, tx)| [Some(rx.queue()), Some(tx.queue())]);
        let irq = CountingIrq::new();
        let granted = Granted {
            ram: Ram::clone(&ram),
            features: device.offered() & !F_EVENT_IDX,
            queues: pairs.chain([Some(control.queue())]).collect(),
            interrupt: Arc::clone(&irq) as Arc<dyn Interrupt>,
        };
        let Ok(mut device) = Box::new(device).start(granted) else { panic!("the wire takes the offloads") };
        device.go_on();
        Self { ram, tx, rx, control, taps, kernels, irq, handle, net, device }
    }

    /// Sends a command of these bytes.
    fn sends_command(&mut self, command: &[u8]) {
        ram::write(&self.ram, COMMAND, command);
        ram::write(&self.ram, ANSWER, &[0xAA]);
        self.control.send(&[give(COMMAND, u32::try_from(command.len()).unwrap()), take(ANSWER, 1)]);
    }

    fn use_pairs(&mut self, count: u16) -> u8 {
        let [low, high] = count.to_le_bytes();
        self.sends_command(&[4, 0, low, high]);
        assert_eq!(self.device.serve(CONTROL), Served::Drained);
        assert!(self.control.used().is_some(), "an answer");
        ram::read(&self.ram, ANSWER, 1)[0]
    }

    fn sends(&mut self, pair: usize) {
        self.tx[pair].send(&[give(pair as u64 * PAIR_BYTES + DATA, FRAME)]);
    }

    /// By pair, whether the kernel serves it, both queues.
    fn served(&self) -> Vec<bool> {
        let served = |kernel: &Fake| {
            let [rx, tx] = kernel.serves();
            assert_eq!(rx, tx, "a pair is served as a whole");
            rx
        };
        self.kernels.iter().map(served).collect()
    }

    /// Takes up what the device has begun to wait for, as a thread does after each call.
    fn watch(&mut self) {
        while self.device.new_source().is_some() {}
    }

    fn attached(&self) -> Vec<bool> {
        self.taps.iter().map(|tap| tap.traffic().attached).collect()
    }

    fn sent_by_userspace(&self) -> Vec<usize> {
        self.taps.iter().map(|tap| tap.traffic().sent.len()).collect()
    }

    fn limits_come(&mut self) {
        self.net.set_limits(None, Some(limited()));
        self.handle.limits_are(&LimiterSpec::default(), &limited());
        self.device.ready(WAKE);
        self.watch();
    }
}

#[test]
fn pairs_are_the_kernels_for_as_long_as_the_driver_uses_them() {
    let mut rig = Rig::new();
    assert_eq!((rig.served(), rig.device.kicked_elsewhere()), (vec![true, false, false], 0b11));
    rig.sends(1);
    assert_eq!(rig.use_pairs(3), OK);
    assert_eq!((rig.served(), rig.attached()), (vec![true; 3], vec![true; 3]));
    assert_eq!((rig.device.kicked_elsewhere(), rig.net.pairs_in_use()), (0b11_1111, 3));
    assert_eq!(
        rig.kernels[1].asked().serving[1].unwrap().next_avail,
        0,
        "it looks for what was there before"
    );
    rig.kernels[1].sent(&rig.ram, 1);
    rig.sends(1);
    assert_eq!(rig.use_pairs(1), OK);
    assert_eq!((rig.served(), rig.attached()), (vec![true, false, false], vec![true, false, false]));
    assert_eq!(rig.sent_by_userspace(), [0; 3], "what a ring holds is the kernel's, if it comes back");
    assert_eq!(rig.use_pairs(2), OK);
    let ring = rig.kernels[1].asked().serving[1].unwrap();
    assert_eq!((ring.next_avail, ring.next_used), (1, 1));
    assert_eq!(rig.kernels[0].asked().starts, 2, "the first pair is never disturbed");
    // Too many, and none.
    for count in [0, 4, u16::MAX] {
        assert_ne!(rig.use_pairs(count), OK);
        assert_eq!((rig.served(), rig.net.pairs_in_use()), (vec![true, true, false], 2));
    }
}

#[test]
fn no_further_pair_is_served_while_the_driver_is_answered() {
    let mut rig = Rig::new();
    rig.use_pairs(3);
    let starts = |rig: &Rig| rig.kernels.iter().map(|kernel| kernel.asked().starts).collect::<Vec<_>>();
    assert_eq!(starts(&rig), [2, 2, 2]);
    assert_eq!(rig.use_pairs(2), OK);
    assert_eq!(starts(&rig), [2, 4, 2], "it was taken back before the answer and given again after it");
}

#[test]
fn a_pause_changes_nothing_of_what_the_driver_asked_for_and_a_reset_all() {
    let mut rig = Rig::new();
    rig.use_pairs(2);
    rig.device.settle();
    assert_eq!((rig.served(), rig.device.kicked_elsewhere()), (vec![false; 3], 0b1111));
    rig.device.go_on();
    assert_eq!(rig.served(), [true, true, false]);
    let device = rig.device.stop();
    assert!(rig.kernels.iter().all(|kernel| kernel.serves() == [false; 2]));
    assert_eq!(rig.net.pairs_in_use(), 1);
    let granted = Granted {
        ram: Ram::clone(&rig.ram),
        features: KNOWN,
        // Without VIRTIO_NET_F_MQ.
        queues: vec![Some(rig.rx[0].queue()), Some(rig.tx[0].queue()), None],
        interrupt: Arc::clone(&rig.irq) as Arc<dyn Interrupt>,
    };
    let Ok(mut device) = device.start(granted) else { panic!("the wire takes the offloads") };
    device.go_on();
    assert_eq!(device.kicked_elsewhere(), 0b11);
    assert!(rig.kernels[0].serves()[0] && !rig.kernels[1].serves()[0]);
}

#[test]
fn limits_move_every_pair_in_use_to_userspace_where_the_driver_is_still_obeyed() {
    let mut rig = Rig::new();
    rig.use_pairs(2);
    (0..3).for_each(|_| rig.sends(1));
    rig.kernels[1].sent(&rig.ram, 1);
    rig.limits_come();
    assert_eq!((rig.served(), rig.handle.fallbacks()), (vec![false; 3], 1));
    assert_eq!((rig.attached(), rig.net.pairs_in_use()), (vec![true, true, false], 2));
    rig.device.serve(3);
    assert_eq!(
        rig.sent_by_userspace(),
        [0, 2, 0],
        "neither again what the kernel sent, nor less than the rest"
    );
    assert_eq!(rig.device.kicked_elsewhere(), 0);
    assert_eq!(rig.use_pairs(3), OK);
    assert_eq!((rig.attached(), rig.served()), (vec![true; 3], vec![false; 3]));
    rig.sends(2);
    assert_eq!(rig.use_pairs(1), OK);
    assert_eq!(rig.sent_by_userspace(), [0, 2, 1], "what a pair holds that is given up is sent");
}

#[test]
fn a_kernel_that_refuses_a_further_pair_leaves_all_of_them_to_userspace() {
    let mut rig = Rig::new();
    rig.kernels[1].asked().refuses = Some(1);
    assert_eq!(rig.use_pairs(2), OK, "the driver gets what it asked for");
    rig.watch();
    assert_eq!((rig.served(), rig.handle.fallbacks()), (vec![false; 3], 1));
    assert!(!rig.handle.in_kernel());
    for pair in [0, 1] {
        rig.sends(pair);
        rig.device.serve(u16::try_from(pair).unwrap() * 2 + 1);
    }
    assert_eq!((rig.sent_by_userspace(), rig.attached()), (vec![1, 1, 0], vec![true, true, false]));
}

#[test]
fn a_control_queue_that_is_broken_ends_the_kernels_service_as_well() {
    let mut rig = Rig::new();
    rig.use_pairs(2);
    // A command without room for its answer.
    rig.control.send(&[give(COMMAND, 4)]);
    assert_eq!(rig.device.serve(CONTROL), Served::Broken);
    assert_eq!((rig.served(), rig.irq.resets_asked()), (vec![false; 3], 1));
    assert!(!rig.handle.in_kernel());
    rig.device.go_on();
    assert_eq!(rig.served(), [false; 3], "not before a reset");
}

#[test]
fn a_guest_of_the_kernels_is_asked_to_announce_itself_and_says_that_it_heard() {
    let mut rig = Rig::new();
    rig.net.announce();
    rig.sends_command(&[3, 0]);
    assert_eq!(rig.device.serve(CONTROL), Served::Drained);
    assert_eq!((ram::read(&rig.ram, ANSWER, 1)[0], rig.net.metrics().announcements.get()), (OK, 1));
    assert_eq!(rig.served(), [true, false, false]);
}
