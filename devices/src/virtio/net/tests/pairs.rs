//! Several pairs of queues, and the commands that say how many of them are used.

use std::thread;

use proptest::prelude::*;

use super::*;
use crate::testing::queue::{Buf, NEXT};
use crate::testing::seed::Seed;
use crate::virtio::Part;
use crate::virtio::queue::F_INDIRECT_DESC;

/// Bytes of RAM that one pair has: rings, and data from [`PAIR_DATA`].
const PAIR_BYTES: u64 = 0x2_0000;
/// Where the rings of a transmit queue are in it.
const PAIR_TX: u64 = 0x1000;
/// Where its data is.
const PAIR_DATA: u64 = 0x4000;
/// Where a command is put, and its answer, in the part of RAM after the pairs.
const COMMAND: u64 = 0x2000;
const ANSWER: u64 = 0x3000;
const OK: u8 = 0;
const ERR: u8 = 1;

/// A card with several pairs, and the guest's side of each.
struct Many {
    ram: Ram,
    /// By pair: what receives, what sends.
    guests: Vec<[Driver; 2]>,
    control: Driver,
    taps: Vec<FakeTap>,
    irq: Arc<CountingIrq>,
    handle: NetHandle,
    device: Box<dyn Running>,
}

fn drivers(ram: &Ram, pairs: u16) -> (Vec<[Driver; 2]>, Driver) {
    let at = |pair: u16| u64::from(pair) * PAIR_BYTES;
    let guests = (0..pairs)
        .map(|pair| [Driver::new(ram, at(pair), SIZE), Driver::new(ram, at(pair) + PAIR_TX, SIZE)])
        .collect();
    (guests, Driver::new(ram, at(pairs), 16))
}

impl Many {
    fn new(pairs: u16) -> Self {
        Self::with(pairs, &NetOptions::default(), !F_EVENT_IDX)
    }

    fn with(pairs: u16, options: &NetOptions, feature_mask: u64) -> Self {
        let taps: Vec<_> = (0..pairs).map(|_| FakeTap::new()).collect();
        let wires = taps.iter().map(|tap| Box::new(tap.clone()) as Box<dyn FrameIo>).collect();
        let net = Net::with_pairs(wires, options);
        let handle = net.handle();
        let irq = CountingIrq::new();
        let (ram, guests, control, device) = Self::start(Box::new(net), pairs, feature_mask, &irq);
        Self { ram, guests, control, taps, irq, handle, device }
    }

    fn start(
        net: Box<dyn Idle>,
        pairs: u16,
        feature_mask: u64,
        irq: &Arc<CountingIrq>,
    ) -> (Ram, Vec<[Driver; 2]>, Driver, Box<dyn Running>) {
        let ram = ram::flat(usize::try_from((u64::from(pairs) + 1) * PAIR_BYTES).unwrap());
        let (guests, control) = drivers(&ram, pairs);
        let pairs = guests.iter().flatten().map(|driver| Some(driver.queue()));
        let granted = Granted {
            ram: Ram::clone(&ram),
            features: net.offered() & feature_mask,
            queues: pairs.chain([Some(control.queue())]).collect(),
            interrupt: irq.clone(),
        };
        let Ok(device) = net.start(granted) else { panic!("the wire takes the offloads") };
        (ram, guests, control, device)
    }

    /// The driver goes, and another comes.
    fn restart(self) -> Self {
        let Self { taps, irq, handle, device, .. } = self;
        let pairs = u16::try_from(taps.len()).unwrap();
        let (ram, guests, control, device) = Self::start(device.stop(), pairs, !F_EVENT_IDX, &irq);
        Self { ram, guests, control, taps, irq, handle, device }
    }

    fn base(&self) -> u64 {
        self.taps.len() as u64 * PAIR_BYTES
    }

    fn control_queue(&self) -> u16 {
        u16::try_from(2 * self.taps.len()).unwrap()
    }

    /// Sends `command` in one buffer; the answer.
    fn command(&mut self, command: &[u8]) -> u8 {
        let (at, len) = (self.base() + COMMAND, u32::try_from(command.len()).unwrap());
        ram::write(&self.ram, at, command);
        self.chain(&[give(at, len), take(self.base() + ANSWER, 1)])
    }

    fn chain(&mut self, bufs: &[Buf]) -> u8 {
        let head = self.control.link(bufs);
        self.publish(head)
    }

    fn publish(&mut self, head: u16) -> u8 {
        ram::write(&self.ram, self.base() + ANSWER, &[0xAA; 4]);
        self.control.publish(head);
        assert_eq!(self.device.serve(self.control_queue()), Served::Drained);
        assert_eq!(self.control.used(), Some((u32::from(head), 1)));
        let answer = ram::read(&self.ram, self.base() + ANSWER, 4);
        assert_eq!(answer[1..], [0xAA; 3], "the answer is one byte");
        answer[0]
    }

    fn use_pairs(&mut self, count: u16) -> u8 {
        let [low, high] = count.to_le_bytes();
        self.command(&[4, 0, low, high])
    }

    /// Which wires are in the interface.
    fn attached(&self) -> Vec<bool> {
        self.taps.iter().map(|tap| tap.traffic().attached).collect()
    }

    fn arrives(&self, pair: usize, frame: Vec<u8>) {
        self.taps[pair].traffic().incoming.push_back(frame);
    }

    fn buffer(&mut self, pair: usize) {
        let at = pair as u64 * PAIR_BYTES + PAIR_DATA;
        self.guests[pair][0].send(&[take(at, 2048)]);
    }

    fn sends(&mut self, pair: usize, len: u32) {
        let at = pair as u64 * PAIR_BYTES + PAIR_DATA;
        self.guests[pair][1].send(&[give(at, len)]);
    }
}

#[test]
fn a_card_of_several_pairs_offers_them_and_a_control_queue() {
    let wires = |n| (0..n).map(|_| Box::new(FakeTap::new()) as Box<dyn FrameIo>).collect();
    let net = Net::with_pairs(wires(QUEUE_PAIRS_MAX), &NetOptions::default());
    assert_eq!(net.offered() & (F_MQ | F_CTRL_VQ), F_MQ | F_CTRL_VQ);
    assert_eq!(net.queue_sizes_max()[..32], [QUEUE_SIZE; 32]);
    assert_eq!(net.queue_sizes_max()[32..], [CONTROL_QUEUE_SIZE]);
    let mut pairs = [0; 2];
    net.config().read(8, &mut pairs);
    assert_eq!(u16::from_le_bytes(pairs), QUEUE_PAIRS_MAX);
    assert_eq!(Net::with_pairs(wires(1), &NetOptions::default()).offered() & F_MQ, 0);
}

#[test]
fn one_pair_is_in_use_until_the_driver_asks_for_more() {
    let mut many = Many::new(3);
    assert_eq!(many.attached(), [true, false, false]);
    for (count, attached) in [(3, [true; 3]), (1, [true, false, false]), (2, [true, true, false])] {
        assert_eq!(many.use_pairs(count), OK);
        assert_eq!(many.attached(), attached, "{count}");
    }
    assert_eq!(many.use_pairs(2), OK, "again");
    for count in [0, 4, 0x8000, u16::MAX] {
        assert_eq!(many.use_pairs(count), ERR, "{count}");
        assert_eq!(many.attached(), [true, true, false], "nothing has changed");
    }
    assert_eq!(many.handle.metrics().control_refused.get(), 4);
    let idle = many.device.stop();
    assert_eq!(many.taps.iter().filter(|tap| tap.traffic().attached).count(), 1, "after a reset, one");
    drop(idle);
}

#[test]
fn frames_pass_on_each_pair_and_are_told_on_its_queues() {
    let mut many = Many::new(3);
    assert_eq!(many.use_pairs(3), OK);
    for pair in 0..3u16 {
        let index = usize::from(pair);
        many.buffer(index);
        many.arrives(index, frame(100 + index));
        assert_eq!(many.device.serve(2 * pair), Served::Drained);
        assert_eq!(many.guests[index][0].used(), Some((0, 100 + u32::from(pair))));
        many.sends(index, 200 + u32::from(pair));
        assert_eq!(many.device.serve(2 * pair + 1), Served::Drained);
        assert_eq!(many.guests[index][1].used(), Some((0, 0)));
        assert_eq!(many.taps[index].traffic().sent[0].len(), 200 + index);
        assert_eq!((many.irq.raised_on(2 * pair), many.irq.raised_on(2 * pair + 1)), (1, 1));
        let metrics = &many.handle.pairs()[index];
        assert_eq!((metrics.rx_frames.get(), metrics.tx_frames.get()), (1, 1));
    }
    assert_eq!((many.handle.metrics().rx_frames.get(), many.handle.metrics().tx_frames.get()), (3, 3));
}

#[test]
fn a_pair_that_was_given_up_yields_no_frame_and_sends_what_it_was_given_before() {
    let mut many = Many::new(2);
    assert_eq!(many.use_pairs(2), OK);
    many.buffer(1);
    many.arrives(1, frame(60));
    many.sends(1, 100);
    assert_eq!(many.use_pairs(1), OK);
    assert_eq!(many.taps[1].traffic().sent.len(), 1);
    assert_eq!([many.device.serve(2), many.device.ready(1)], [Served::Drained; 2]);
    assert_eq!(many.guests[1][0].used(), None, "virtio 1.2 §5.1.6.5.5.1");
    // A driver that goes on regardless loses its frames, and gets its buffers back.
    many.sends(1, 100);
    assert_eq!(many.device.serve(3), Served::Drained);
    assert_eq!((many.guests[1][1].used(), many.guests[1][1].used()), (Some((0, 0)), Some((1, 0))));
    assert_eq!((many.taps[1].traffic().sent.len(), many.handle.metrics().tx_dropped.get()), (1, 1));
    // The buffer is there when the pair is used again.
    assert_eq!(many.use_pairs(2), OK);
    many.arrives(1, frame(61));
    assert_eq!(many.device.ready(1), Served::Drained);
    assert_eq!(many.guests[1][0].used(), Some((0, 61)));
}

#[test]
fn without_the_feature_the_control_queue_comes_third_and_there_is_one_pair() {
    for mask in [!(F_EVENT_IDX | F_MQ), !(F_EVENT_IDX | F_MQ | F_CTRL_VQ)] {
        let taps = [FakeTap::new(), FakeTap::new()];
        let wires = taps.iter().map(|tap| Box::new(tap.clone()) as Box<dyn FrameIo>).collect();
        let net = Net::with_pairs(wires, &NetOptions::default());
        let ram = ram::flat(RAM_BYTES);
        let (rx, tx, mut third) =
            (Driver::new(&ram, 0, 16), Driver::new(&ram, 0x1000, 16), Driver::new(&ram, 0x2000, 16));
        let queues = [&rx, &tx, &third].map(|driver| Some(driver.queue())).into();
        let features = net.offered() & mask;
        let granted = Granted { ram: Ram::clone(&ram), features, queues, interrupt: CountingIrq::new() };
        let Ok(mut device) = Box::new(net).start(granted) else { panic!() };
        assert_eq!([0, 1, 2, 3, 4].map(|queue| device.part_of(queue)), [const { None }; 5]);
        assert_eq!(device.sources().len(), 1);
        ram::write(&ram, DATA, &[4, 0, 1, 0, 0xAA]);
        third.send(&[give(DATA, 4), take(DATA + 4, 1)]);
        assert_eq!(device.serve(2), Served::Drained);
        let answered = features & F_CTRL_VQ != 0;
        assert_eq!(third.used(), answered.then_some((0, 1)));
        assert_eq!(ram::read(&ram, DATA + 4, 1), [if answered { ERR } else { 0xAA }]);
        assert!(!taps[1].traffic().attached);
    }
}

#[test]
fn a_pair_whose_queues_the_driver_did_not_enable_is_refused() {
    let many = Many::new(2);
    let idle = many.device.stop();
    let (guests, mut control) = drivers(&many.ram, 2);
    let mut queues: Vec<_> = guests.iter().flatten().map(|driver| Some(driver.queue())).collect();
    queues[2] = None;
    queues.push(Some(control.queue()));
    let ram = Ram::clone(&many.ram);
    let granted = Granted { ram, features: idle.offered(), queues, interrupt: many.irq.clone() };
    let Ok(mut device) = idle.start(granted) else { panic!() };
    assert_eq!(device.sources().len(), 1, "its wire stays out");
    ram::write(&many.ram, DATA, &[4, 0, 2, 0, 0xAA]);
    control.send(&[give(DATA, 4), take(DATA + 4, 1)]);
    assert_eq!(device.serve(4), Served::Drained);
    assert_eq!(ram::read(&many.ram, DATA + 4, 1), [ERR]);
    assert!(!many.taps[1].traffic().attached);
}

#[test]
fn pairs_are_kept_over_one_start_whatever_becomes_of_that() {
    let mut many = Many::new(3);
    assert_eq!((many.use_pairs(3), many.handle.pairs_in_use()), (OK, 3));
    many.handle.keep_pairs();
    let many = many.restart();
    assert_eq!((many.attached(), many.handle.pairs_in_use()), (vec![true; 3], 3));
    let mut many = many.restart();
    assert_eq!((many.attached(), many.handle.pairs_in_use()), (vec![true, false, false], 1));
    // A start that fails is one, too: the next driver is another.
    many.use_pairs(2);
    many.handle.keep_pairs();
    many.taps[0].traffic().errors.push_back(ErrorKind::Other);
    let granted = Granted {
        ram: Ram::clone(&many.ram),
        features: F_MQ | F_CTRL_VQ,
        queues: Vec::new(),
        interrupt: many.irq.clone(),
    };
    let Err(StartFailed { device, .. }) = many.device.stop().start(granted) else { panic!("it fails") };
    let (.., device) = Many::start(device, 3, !F_EVENT_IDX, &many.irq);
    assert_eq!(many.handle.pairs_in_use(), 1);
    assert!(!many.taps[1].traffic().attached);
    drop(device);
}

#[test]
fn a_host_that_refuses_a_pair_has_the_command_refused_and_nothing_changed() {
    let mut many = Many::new(3);
    many.taps[2].traffic().errors.push_back(ErrorKind::InvalidInput);
    assert_eq!(many.use_pairs(3), ERR);
    assert_eq!(many.attached(), [true, false, false]);
    assert_eq!(many.use_pairs(3), OK);
    assert_eq!(many.attached(), [true; 3]);
}

#[test]
fn commands_that_are_unknown_short_or_long_get_an_error() {
    let mut many = Many::new(2);
    for command in [
        &[][..],
        &[4],
        &[4, 0],
        &[4, 0, 2],
        &[4, 0, 2, 0, 0],
        &[4, 1, 2, 0],
        &[0, 0, 1],
        &[1, 1, 2, 3, 4, 5, 6, 7],
        &[2, 0, 1, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[255; 4000],
    ] {
        assert_eq!(many.command(command), ERR, "{command:?}");
    }
    assert_eq!((many.use_pairs(2), many.irq.resets_asked()), (OK, 0));
}

#[test]
fn a_command_may_be_cut_into_any_segments() {
    let mut many = Many::with(2, &NetOptions::default(), !F_EVENT_IDX);
    let (at, answer) = (many.base() + COMMAND, many.base() + ANSWER);
    ram::write(&many.ram, at, &[4, 0, 2, 0]);
    let bytes: Vec<_> = (0..4).map(|i| give(at + i, 1)).collect();
    let split = [&bytes[..], &[take(answer, 0), take(answer, 1), take(answer + 1, 3)]].concat();
    assert_eq!(many.chain(&split), OK);
    assert_eq!(many.attached(), [true, true]);
    let head = many.control.link_indirect(many.base() + 0x8000, &split);
    assert_eq!(many.publish(head), OK);
}

#[test]
fn a_command_without_room_for_its_answer_breaks_the_queue() {
    for bufs in [&[give(0, 4)][..], &[give(0, 4), take(0, 0)], &[give(u64::MAX, 4), take(0, 1)]] {
        let mut many = Many::new(2);
        many.control.send(bufs);
        assert_eq!(many.device.serve(4), Served::Broken);
        assert_eq!([0, 1, 2, 3, 4].map(|queue| many.device.serve(queue)), [Served::Broken; 5]);
        assert_eq!((many.irq.resets_asked(), many.handle.metrics().broken.get()), (1, 1));
    }
}

#[test]
fn a_driver_that_floods_the_control_queue_gets_its_turn_only() {
    let mut many = Many::new(2);
    let at = many.base() + COMMAND;
    for _ in 0..9 {
        many.control.send(&[give(at, 2), take(at + 8, 1)]);
    }
    assert_eq!(many.device.serve(4), Served::More);
    assert_eq!(many.device.serve(4), Served::Drained);
    assert_eq!(std::iter::from_fn(|| many.control.used()).count(), 9);
}

#[test]
fn a_broken_pair_breaks_the_card() {
    let mut many = Many::new(2);
    assert_eq!(many.use_pairs(2), OK);
    let mut part = many.device.split_off(2).unwrap();
    many.guests[1][0].publish_index(SIZE + 1);
    assert_eq!(part.ready(), Served::Broken);
    assert_eq!([many.device.serve(0), many.device.serve(4), part.serve(3)], [Served::Broken; 3]);
    assert_eq!((many.irq.resets_asked(), many.handle.metrics().broken.get()), (1, 1));
}

#[test]
fn a_pair_that_was_split_off_is_served_by_its_part_alone() {
    let mut many = Many::new(3);
    assert_eq!([0, 1, 6].map(|queue| many.device.part_of(queue)), [None, None, None]);
    assert_eq!([2, 5].map(|queue| many.device.part_of(queue)), [Some(2..4), Some(4..6)]);
    let mut part = many.device.split_off(3).unwrap();
    assert!([0, 1, 2, 3, 6, 7].into_iter().all(|queue| many.device.split_off(queue).is_none()));
    assert_eq!(many.device.sources().len(), 2, "its own wire and that of the third pair");
    assert!(part.source().is_some() && many.taps[1].traffic().attached, "attached to be watched");
    assert_eq!(part.serve(2), Served::Drained);
    assert!(!many.taps[1].traffic().attached, "and left, as it is not used");
    assert_eq!(many.use_pairs(2), OK);
    many.sends(1, 100);
    many.sends(2, 100);
    assert_eq!(many.device.serve(3), Served::Drained);
    assert_eq!(many.guests[1][1].used(), None);
    assert_eq!(part.serve(3), Served::Drained);
    assert_eq!(many.guests[1][1].used(), Some((0, 0)));
    // What the device kept is in its sources.
    assert_eq!(many.use_pairs(3), OK);
    many.buffer(2);
    many.arrives(2, frame(70));
    assert_eq!(many.device.ready(1), Served::Drained);
    assert_eq!(many.guests[2][0].used(), Some((0, 70)));
    part.end();
}

#[test]
fn a_driver_that_comes_after_a_reset_begins_with_one_pair_and_may_take_another_number() {
    let mut many = Many::new(3);
    for count in [3, 1, 2] {
        assert_eq!(many.use_pairs(count), OK);
        for pair in 0..usize::from(count) {
            many.buffer(pair);
            many.arrives(pair, frame(100));
            assert_eq!(many.device.ready(pair), Served::Drained);
            assert_eq!(many.guests[pair][0].used(), Some((0, 100)));
        }
        many = many.restart();
        assert_eq!(many.attached(), [true, false, false]);
    }
    assert_eq!(many.handle.metrics().rx_frames.get(), 6);
}

#[test]
fn a_limit_holds_all_pairs_together() {
    let hour = BucketSpec { size: 3, one_time_burst: 0, refill_time_ms: 3_600_000 };
    let limits = LimiterSpec { bytes: None, ops: Some(hour) };
    let options = NetOptions { rx_limits: limits, tx_limits: limits, ..NetOptions::default() };
    let mut many = Many::with(2, &options, !F_EVENT_IDX);
    assert_eq!(many.use_pairs(2), OK);
    for pair in [0, 1] {
        for _ in 0..2 {
            many.sends(pair, 100);
            many.buffer(pair);
            many.arrives(pair, frame(100));
        }
    }
    assert_eq!(many.device.serve(1), Served::Drained);
    assert!(matches!(many.device.serve(3), Served::After(_)));
    assert_eq!(many.device.ready(0), Served::Drained);
    assert!(matches!(many.device.ready(1), Served::After(_)));
    assert_eq!((many.handle.metrics().tx_frames.get(), many.handle.metrics().rx_frames.get()), (3, 3));
    many.handle.set_limits(None, Some(LimiterSpec::default()));
    assert_eq!(many.device.serve(3), Served::Drained);
    assert!(matches!(many.device.serve(2), Served::After(_)));
    many.handle.set_limits(Some(LimiterSpec::default()), None);
    assert_eq!(many.device.serve(2), Served::Drained);
    assert_eq!((many.handle.metrics().tx_frames.get(), many.handle.metrics().rx_frames.get()), (4, 4));
}

/// Sends and receives on one pair, on a thread of its own, until it sent `count` frames.
fn hammer([mut rx, mut tx]: [Driver; 2], mut part: Box<dyn Part>, pair: u64, tap: &FakeTap, count: u32) {
    let (data, queue) = (pair * PAIR_BYTES + PAIR_DATA, u16::try_from(2 * pair).unwrap());
    part.source();
    rx.send(&[take(data, 2048)]);
    for _ in 0..count {
        {
            // A wire that is out of its interface gets nothing.
            let mut traffic = tap.traffic();
            if traffic.attached {
                traffic.incoming.push_back(frame(100));
            }
        }
        part.ready();
        if let Some((_, len)) = rx.used() {
            assert_eq!(len, 100);
            rx.send(&[take(data, 2048)]);
        }
        tx.send(&[give(data, 80)]);
        part.serve(queue + 1);
        assert!(tx.used().is_some(), "sent or dropped, given back");
    }
    part.end();
}

#[test]
fn pairs_come_and_go_while_their_threads_move_frames() {
    const FRAMES: u32 = 2000;
    let mut many = Many::new(4);
    thread::scope(|scope| {
        let parts: Vec<_> = [2, 4, 6].map(|queue| many.device.split_off(queue).unwrap()).into();
        let guests: Vec<_> = many.guests.drain(1..).collect();
        let threads: Vec<_> = (1..)
            .zip(guests.into_iter().zip(parts))
            .map(|(pair, (guest, part))| {
                let tap = many.taps[usize::try_from(pair).unwrap()].clone();
                scope.spawn(move || hammer(guest, part, pair, &tap, FRAMES))
            })
            .collect();
        let mut chance = Seed::new(7);
        while threads.iter().any(|thread| !thread.is_finished()) {
            let count = u16::try_from(1 + chance.below(4)).unwrap();
            assert_eq!(many.use_pairs(count), OK);
        }
    });
    let metrics = many.handle.metrics();
    assert_eq!(metrics.tx_frames.get() + metrics.tx_dropped.get(), 3 * u64::from(FRAMES));
    let sent: usize = many.taps.iter().map(|tap| tap.traffic().sent.len()).sum();
    assert_eq!((sent as u64, many.irq.resets_asked()), (metrics.tx_frames.get(), 0));
    assert_eq!(many.use_pairs(1), OK);
    assert_eq!(many.attached(), [true, false, false, false]);
    many.device.stop();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn garbage_on_the_control_queue_ends_in_an_answer_or_in_needs_reset(seed: u64) {
        let mut many = Many::with(2, &NetOptions::default(), !(F_EVENT_IDX | F_INDIRECT_DESC));
        let mut chance = Seed::new(seed);
        let base = many.base();
        ram::write(&many.ram, base + COMMAND, &[4, 0, 2, 0]);
        for index in 0..16 {
            let addr = chance.pick(&[base + COMMAND, base + ANSWER, 0x1_0000, u64::MAX]);
            let len = chance.pick(&[0u32, 1, 2, 4, 4, 1 << 31]);
            let flags = chance.pick(&[0, NEXT, NEXT, 2, 3]);
            many.control.write_desc(index, addr, len, flags, (index + 1) % 17);
        }
        for _ in 0..chance.below(24) {
            many.control.publish(u16::try_from(chance.below(17)).unwrap());
        }
        for _ in 0..8 {
            many.device.serve(4);
        }
        let attached = many.taps[1].traffic().attached;
        prop_assert!(!attached || many.handle.metrics().control_events.get() > 0);
        prop_assert_eq!(many.irq.resets_asked(), many.handle.metrics().broken.get());
    }
}

#[test]
fn a_pair_is_looked_at_by_whom_it_is_served() {
    let mut many = Many::new(2);
    assert_eq!(many.use_pairs(2), OK);
    many.sends(1, 100);
    assert!(many.device.peek(3) && !many.device.peek(1) && !many.device.peek(4));
    let mut part = many.device.split_off(2).unwrap();
    part.set_polled(true);
    assert!(part.peek(3) && !part.peek(2) && !many.device.peek(3));
    assert_eq!(part.serve(3), Served::Drained);
    assert!(!part.peek(3) && many.guests[1][1].kicks_suppressed());
    part.end();
}
