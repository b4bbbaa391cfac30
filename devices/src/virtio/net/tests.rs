use std::io::ErrorKind;
use std::time::Duration;

use super::*;
use crate::limiter::BucketSpec;
use crate::mem::Ram;
use crate::testing::clock::FakeClock;
use crate::testing::irq::CountingIrq;
use crate::testing::net::FakeTap;
use crate::testing::queue::{Driver, give, take};
use crate::testing::ram;
use crate::virtio::Served;
use crate::virtio::queue::F_EVENT_IDX;

mod announce;
mod hostile;
mod pairs;

const RX_RINGS: u64 = 0x1000;
const TX_RINGS: u64 = 0x3000;
const DATA: u64 = 0x1_0000;
const RAM_BYTES: usize = 0x8_0000;
const SIZE: u16 = 64;

struct Rig {
    ram: Ram,
    rx: Driver,
    tx: Driver,
    tap: FakeTap,
    irq: Arc<CountingIrq>,
    handle: NetHandle,
    device: Box<dyn Running>,
}

impl Rig {
    fn new() -> Self {
        Self::with(&NetOptions::default(), !F_EVENT_IDX)
    }

    fn with(options: &NetOptions, feature_mask: u64) -> Self {
        let tap = FakeTap::new();
        let net = Net::new(Box::new(tap.clone()), options);
        let handle = net.handle();
        let ram = ram::flat(RAM_BYTES);
        let (rx, tx) = (Driver::new(&ram, RX_RINGS, SIZE), Driver::new(&ram, TX_RINGS, SIZE));
        let irq = CountingIrq::new();
        let granted = Granted {
            ram: Ram::clone(&ram),
            features: net.offered() & feature_mask,
            queues: vec![Some(rx.queue()), Some(tx.queue())],
            interrupt: irq.clone(),
        };
        let Ok(device) = Box::new(net).start(granted) else { panic!("the wire takes the offloads") };
        Self { ram, rx, tx, tap, irq, handle, device }
    }

    /// Makes `n` buffers of `len` bytes available, one after the other in RAM.
    fn buffers(&mut self, n: u64, len: u32) {
        for i in 0..n {
            self.rx.send(&[take(DATA + i * u64::from(len), len)]);
        }
    }

    fn arrives(&mut self, frame: Vec<u8>) {
        self.tap.traffic().incoming.push_back(frame);
    }

    fn metrics(&self) -> NetMetrics {
        self.handle.metrics()
    }
}

/// A frame of `n` bytes with its header: the header is ones, the rest counts up.
fn frame(n: usize) -> Vec<u8> {
    (0..n).map(|i| if i < 12 { 1 } else { u8::try_from(i % 251).unwrap() }).collect()
}

/// The same frame as the guest finds it, its number of buffers filled in.
fn seen(n: usize, buffers: u16) -> Vec<u8> {
    let mut frame = frame(n);
    frame[10..12].copy_from_slice(&buffers.to_le_bytes());
    frame
}

#[test]
fn a_frame_lands_in_one_buffer_with_its_header_completed() {
    let mut rig = Rig::new();
    rig.buffers(4, 2048);
    rig.arrives(frame(100));
    assert_eq!(rig.device.ready(0), Served::Drained);
    assert_eq!(rig.rx.used(), Some((0, 100)));
    assert_eq!(rig.rx.used(), None);
    assert_eq!(ram::read(&rig.ram, DATA, 100), seen(100, 1));
    assert_eq!(rig.irq.raised(), 1);
    assert_eq!((rig.metrics().rx_frames.get(), rig.metrics().rx_bytes.get()), (1, 88));
}

#[test]
fn a_large_frame_is_spread_over_as_many_buffers_as_it_takes_and_the_rest_serve_the_next() {
    let mut rig = Rig::new();
    rig.buffers(64, 1536);
    rig.arrives(frame(65_562));
    rig.arrives(frame(60));
    assert_eq!(rig.device.ready(0), Served::Drained);
    let used: Vec<_> = std::iter::from_fn(|| rig.rx.used()).collect();
    assert_eq!(used.len(), 44);
    assert!(used[..42].iter().enumerate().all(|(i, &(head, len))| head as usize == i && len == 1536));
    assert_eq!(used[42..], [(42, 65_562 - 42 * 1536), (43, 60)]);
    assert_eq!(ram::read(&rig.ram, DATA, 65_562), seen(65_562, 43));
    assert_eq!(ram::read(&rig.ram, DATA + 43 * 1536, 60), seen(60, 1));
}

#[test]
fn buffers_kept_from_one_wake_to_the_next_are_used_in_order() {
    let mut rig = Rig::new();
    rig.buffers(40, 256);
    for i in 0..40u64 {
        rig.arrives(frame(100 + usize::try_from(i).unwrap()));
        assert_eq!(rig.device.ready(0), Served::Drained);
        let len = 100 + u32::try_from(i).unwrap();
        assert_eq!(rig.rx.used(), Some((u32::try_from(i).unwrap(), len)));
        assert_eq!(ram::read(&rig.ram, DATA + i * 256, len as usize), seen(len as usize, 1));
    }
}

#[test]
fn without_mergeable_buffers_each_frame_gets_one() {
    let mut rig = Rig::with(
        &NetOptions::default(),
        !(F_EVENT_IDX | F_MRG_RXBUF | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_UFO | F_GUEST_USO4),
    );
    rig.buffers(3, 1526);
    rig.arrives(frame(1526));
    rig.arrives(frame(60));
    assert_eq!(rig.device.ready(0), Served::Drained);
    assert_eq!((rig.rx.used(), rig.rx.used(), rig.rx.used()), (Some((0, 1526)), Some((1, 60)), None));
    assert_eq!(ram::read(&rig.ram, DATA, 1526), seen(1526, 1));
}

#[test]
fn a_frame_that_was_cut_off_is_dropped_and_its_buffers_are_kept() {
    let mut rig = Rig::new();
    rig.buffers(2, 1024);
    rig.arrives(frame(5000));
    rig.arrives(frame(100));
    assert_eq!(rig.device.ready(0), Served::Drained);
    assert_eq!((rig.rx.used(), rig.rx.used()), (Some((0, 100)), None));
    assert_eq!(rig.metrics().rx_dropped.get(), 1);
}

#[test]
fn without_buffers_the_wire_is_left_alone_until_the_guest_kicks() {
    let mut rig = Rig::new();
    rig.arrives(frame(100));
    assert_eq!(rig.device.ready(0), Served::Drained);
    assert_eq!(rig.tap.traffic().incoming.len(), 1);
    assert!(!rig.rx.kicks_suppressed(), "now a kick is wanted");
    rig.buffers(1, 2048);
    assert_eq!(rig.device.serve(RX_QUEUE), Served::Drained);
    assert_eq!(rig.rx.used(), Some((0, 100)));
    rig.buffers(8, 2048);
    assert_eq!(rig.device.serve(RX_QUEUE), Served::Drained);
    assert!(rig.rx.kicks_suppressed(), "with buffers at hand it is not");
}

#[test]
fn what_came_in_before_the_start_is_received_at_the_first_serve() {
    let mut rig = Rig::new();
    rig.buffers(1, 2048);
    rig.arrives(frame(100));
    assert_eq!(rig.device.serve(RX_QUEUE), Served::Drained);
    assert_eq!(rig.rx.used(), Some((0, 100)));
}

#[test]
fn many_frames_share_an_interrupt_and_a_batch_is_bounded() {
    let mut rig = Rig::new();
    for _ in 0..70 {
        rig.arrives(frame(100));
    }
    rig.buffers(64, 1024);
    assert_eq!(rig.device.ready(0), Served::More);
    assert_eq!(std::iter::from_fn(|| rig.rx.used()).count(), 64);
    assert_eq!(rig.irq.raised(), 1);
}

#[test]
fn a_sent_frame_goes_out_whole_with_its_header() {
    let mut rig = Rig::new();
    ram::write(&rig.ram, DATA, &frame(100));
    rig.tx.send(&[give(DATA, 12), give(DATA + 12, 40), give(DATA + 52, 48)]);
    assert_eq!(rig.device.serve(TX_QUEUE), Served::Drained);
    assert_eq!(rig.tap.traffic().sent, [frame(100)]);
    assert_eq!(rig.tx.used(), Some((0, 0)));
    assert_eq!((rig.metrics().tx_frames.get(), rig.metrics().tx_bytes.get()), (1, 88));
}

#[test]
fn short_and_long_frames_are_dropped_and_their_chains_given_back() {
    let mut rig = Rig::new();
    for len in [0, 11, 25, 65_570, 0x7_0000] {
        rig.tx.send(&[give(DATA, len)]);
        assert_eq!(rig.device.serve(TX_QUEUE), Served::Drained);
        assert!(rig.tx.used().is_some());
    }
    assert_eq!((rig.metrics().tx_dropped.get(), rig.tap.traffic().sent.len()), (5, 0));
    rig.tx.send(&[give(DATA, 65_569)]);
    assert_eq!(rig.device.serve(TX_QUEUE), Served::Drained);
    assert_eq!(rig.tap.traffic().sent[0].len(), 65_569);
}

#[test]
fn a_busy_wire_gets_the_frame_again_and_a_failing_one_loses_it() {
    let mut rig = Rig::new();
    rig.tap.traffic().errors.extend([ErrorKind::WouldBlock, ErrorKind::Interrupted]);
    rig.tx.send(&[give(DATA, 100)]);
    assert!(matches!(rig.device.serve(TX_QUEUE), Served::After(_)));
    assert_eq!(rig.tx.used(), None);
    assert_eq!(rig.device.serve(TX_QUEUE), Served::Drained);
    assert_eq!((rig.tap.traffic().sent.len(), rig.tx.used()), (1, Some((0, 0))));
    rig.tap.traffic().errors.push_back(ErrorKind::InvalidInput);
    rig.tx.send(&[give(DATA, 100)]);
    assert_eq!(rig.device.serve(TX_QUEUE), Served::Drained);
    assert_eq!((rig.tap.traffic().sent.len(), rig.tx.used()), (1, Some((1, 0))));
    assert_eq!((rig.metrics().tx_busy.get(), rig.metrics().tx_failures.get()), (1, 1));
}

#[test]
fn a_failing_receive_is_tried_again_later() {
    let mut rig = Rig::new();
    rig.buffers(1, 2048);
    rig.arrives(frame(100));
    rig.tap.traffic().errors.push_back(ErrorKind::Other);
    assert!(matches!(rig.device.ready(0), Served::After(_)));
    assert_eq!(rig.device.ready(0), Served::Drained);
    assert_eq!(rig.rx.used(), Some((0, 100)));
}

#[test]
fn limits_hold_each_direction_and_lifting_them_lets_it_go() {
    let hour = BucketSpec { size: 1, one_time_burst: 0, refill_time_ms: 3_600_000 };
    let limits = LimiterSpec { bytes: None, ops: Some(hour) };
    let options = NetOptions { rx_limits: limits, tx_limits: limits, ..NetOptions::default() };
    let mut rig = Rig::with(&options, !F_EVENT_IDX);
    rig.buffers(8, 2048);
    for _ in 0..2 {
        rig.arrives(frame(100));
        rig.tx.send(&[give(DATA, 100)]);
    }
    let long = |served| matches!(served, Served::After(wait) if wait > Duration::from_secs(3000));
    assert!(long(rig.device.ready(0)) && long(rig.device.serve(TX_QUEUE)));
    assert_eq!((rig.metrics().rx_frames.get(), rig.metrics().tx_frames.get()), (1, 1));
    assert_eq!((rig.metrics().rx_throttled.get(), rig.metrics().tx_throttled.get()), (1, 1));
    rig.handle.set_limits(None, Some(LimiterSpec::default()));
    assert!(long(rig.device.serve(RX_QUEUE)));
    assert_eq!(rig.device.serve(TX_QUEUE), Served::Drained);
    rig.handle.set_limits(Some(LimiterSpec::default()), None);
    assert_eq!(rig.device.serve(RX_QUEUE), Served::Drained);
    assert_eq!((rig.metrics().rx_frames.get(), rig.metrics().tx_frames.get()), (2, 2));
}

#[test]
fn the_wire_learns_what_the_guest_can_receive() {
    let all = Offloads { csum: true, tso4: true, tso6: true, ecn: true, ufo: true, uso: true };
    assert_eq!(Rig::new().tap.traffic().offloads, Some(all));
    let rig = Rig::with(&NetOptions::default(), !F_GUEST_CSUM);
    assert_eq!(
        rig.tap.traffic().offloads,
        Some(Offloads::default()),
        "all need GUEST_CSUM (virtio 1.2 §5.1.3.1)"
    );
    let rig = Rig::with(&NetOptions::default(), !(F_GUEST_TSO4 | F_GUEST_UFO));
    assert_eq!(rig.tap.traffic().offloads, Some(Offloads { tso4: false, ufo: false, ..all }));
    for half in [F_GUEST_USO4, F_GUEST_USO6] {
        let rig = Rig::with(&NetOptions::default(), !half);
        assert_eq!(rig.tap.traffic().offloads, Some(Offloads { uso: false, ..all }), "one alone is none");
    }
}

#[test]
fn udp_segments_are_on_offer_where_the_wire_knows_them() {
    for uso in [true, false] {
        let tap = FakeTap::new();
        tap.traffic().uso = uso;
        let net = Net::new(Box::new(tap), &NetOptions::default());
        let bits = F_GUEST_USO4 | F_GUEST_USO6 | F_HOST_USO;
        assert_eq!(net.offered() & bits, if uso { bits } else { 0 });
    }
}

#[test]
fn a_driver_of_udp_segments_alone_gets_no_frame_that_was_cut_off() {
    let large = F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_UFO;
    let mut rig = Rig::with(&NetOptions::default(), !(F_EVENT_IDX | large));
    rig.buffers(2, 1024);
    rig.arrives(frame(5000));
    rig.arrives(frame(100));
    assert_eq!(rig.device.ready(0), Served::Drained);
    assert_eq!((rig.rx.used(), rig.rx.used()), (Some((0, 100)), None));
}

#[test]
fn a_wire_that_refuses_the_offloads_keeps_the_card_idle() {
    let tap = FakeTap::new();
    tap.traffic().errors.push_back(ErrorKind::PermissionDenied);
    let net = Net::new(Box::new(tap), &NetOptions { name: "eth7".into(), ..NetOptions::default() });
    let granted =
        Granted { ram: ram::flat(4096), features: 0, queues: vec![], interrupt: CountingIrq::new() };
    let Err(failed) = Box::new(net).start(granted) else { panic!("it must not start") };
    assert!(failed.reason.contains("eth7"));
    assert_eq!(failed.device.kind(), DeviceKind::Net);
}

#[test]
fn features_and_configuration_say_what_the_card_is() {
    let mac = [6, 1, 2, 3, 4, 5];
    let options = NetOptions { mac: Some(mac), mtu: Some(9000), ..NetOptions::default() };
    let net = Net::new(Box::new(FakeTap::new()), &options);
    assert_eq!(net.offered() & (F_MAC | F_MTU), F_MAC | F_MTU);
    let mut config = [0xff; 16];
    net.config().read(0, &mut config);
    assert_eq!(config[..6], mac);
    assert_eq!(config[6..], [1, 0, 1, 0, 0x28, 0x23, 0, 0, 0, 0]);
    let plain = Net::new(Box::new(FakeTap::new()), &NetOptions::default());
    assert_eq!(plain.offered() & (F_MAC | F_MTU), 0);
}

#[test]
fn a_card_without_queues_serves_nothing() {
    let net = Net::new(Box::new(FakeTap::new()), &NetOptions::default());
    let granted = Granted {
        ram: ram::flat(4096),
        features: 0,
        queues: vec![None, None],
        interrupt: CountingIrq::new(),
    };
    let Ok(mut device) = Box::new(net).start(granted) else { panic!() };
    assert_eq!([device.serve(0), device.serve(1), device.serve(2), device.ready(0)], [Served::Drained; 4]);
}

#[test]
fn a_stopped_card_holds_no_buffer_of_its_last_driver() {
    let mut rig = Rig::new();
    rig.buffers(8, 2048);
    assert_eq!(rig.device.serve(RX_QUEUE), Served::Drained);
    let idle = rig.device.stop();
    let ram = ram::flat(RAM_BYTES);
    let rx = Driver::new(&ram, RX_RINGS, SIZE);
    let granted = Granted {
        ram: Ram::clone(&ram),
        features: idle.offered(),
        queues: vec![Some(rx.queue()), None],
        interrupt: rig.irq.clone(),
    };
    let Ok(mut device) = idle.start(granted) else { panic!() };
    rig.tap.traffic().incoming.push_back(frame(100));
    assert_eq!(device.ready(0), Served::Drained);
    assert_eq!(rig.tap.traffic().incoming.len(), 1, "no buffer yet");
}

#[test]
fn a_polled_card_finds_what_is_to_be_sent_without_a_kick_and_asks_for_kicks_again_when_it_is_polled_no_more()
{
    let mut rig = Rig::new();
    rig.device.set_polled(true);
    assert_eq!([rig.device.serve(0), rig.device.serve(1)], [Served::Drained; 2]);
    rig.buffers(1, 2048);
    assert!(rig.tx.kicks_suppressed() && ![0, 1, 2, 3].iter().any(|queue| rig.device.peek(*queue)));
    ram::write(&rig.ram, DATA, &frame(100));
    rig.tx.send(&[give(DATA, 100)]);
    assert!(rig.device.peek(1) && !rig.device.peek(0));
    assert_eq!(rig.device.serve(1), Served::Drained);
    assert!(!rig.device.peek(1) && rig.tap.traffic().sent.len() == 1);
    rig.device.set_polled(false);
    assert_eq!(rig.device.serve(1), Served::Drained);
    assert!(!rig.tx.kicks_suppressed());
}

#[test]
fn in_a_conversation_the_driver_hears_of_what_it_sent_by_the_answer() {
    let clock = FakeClock::at(0);
    let mut rig = Rig::with(&NetOptions::default(), u64::MAX);
    rig.buffers(64, 2048);
    let mut served = Vec::new();
    for turn in 0..40u16 {
        rig.tx.send(&[give(DATA, 100)]);
        served.push(rig.device.serve(TX_QUEUE));
        clock.advance(Duration::from_micros(300));
        rig.arrives(frame(100));
        assert_eq!(rig.device.ready(0), Served::Drained);
        // It looks at the answer and takes back what was sent.
        rig.tx.set_used_event(turn + 1);
        rig.rx.set_used_event(turn + 1);
    }
    assert!(served[..8].iter().all(|served| *served == Served::Drained));
    assert!(served[8..].iter().all(|served| matches!(served, Served::After(_))), "{served:?}");
    assert_eq!((rig.metrics().tx_interrupts.get(), rig.metrics().rx_interrupts.get()), (8, 40));
    // No answer comes, and nothing more is sent: it is told in time, and once.
    rig.tx.send(&[give(DATA, 100)]);
    let Served::After(wait) = rig.device.serve(TX_QUEUE) else { panic!("it is owed") };
    clock.advance(wait);
    assert_eq!(rig.device.serve(TX_QUEUE), Served::Drained);
    assert_eq!(rig.device.serve(TX_QUEUE), Served::Drained);
    assert_eq!(rig.metrics().tx_interrupts.get(), 9);
}
