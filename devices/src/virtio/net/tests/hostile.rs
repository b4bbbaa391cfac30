//! Drivers that lie. Each ends in a dropped frame or in NEEDS_RESET, and in nothing else.

use proptest::prelude::*;

use super::*;
use crate::testing::queue::NEXT;
use crate::testing::seed::Seed;

fn breaks(rig: &mut Rig, queue: u16) {
    assert_eq!(rig.device.serve(queue), Served::Broken);
    assert_eq!(rig.irq.resets_asked(), 1);
    assert_eq!([rig.device.serve(0), rig.device.serve(1), rig.device.ready(0)], [Served::Broken; 3]);
    assert_eq!((rig.irq.resets_asked(), rig.metrics().broken.get()), (1, 1));
}

#[test]
fn a_receive_buffer_smaller_than_the_header_breaks_the_queue() {
    for buf in [take(DATA, 11), take(DATA, 0), give(DATA, 2048)] {
        let mut rig = Rig::new();
        rig.rx.send(&[buf]);
        breaks(&mut rig, RX_QUEUE);
    }
}

#[test]
fn buffers_and_frames_outside_ram_break_their_queue() {
    for addr in [RAM_BYTES as u64 - 1, u64::MAX - 4, 1 << 40] {
        let mut rig = Rig::new();
        rig.rx.send(&[take(addr, 2048)]);
        breaks(&mut rig, RX_QUEUE);
        let mut rig = Rig::new();
        rig.tx.send(&[give(addr, 2048)]);
        breaks(&mut rig, TX_QUEUE);
        assert!(rig.tap.traffic().sent.is_empty());
    }
}

#[test]
fn loops_bad_heads_and_lying_indices_break_their_queue() {
    for queue in [RX_QUEUE, TX_QUEUE] {
        let new = || {
            let mut rig = Rig::new();
            let driver = if queue == RX_QUEUE { &mut rig.rx } else { &mut rig.tx };
            driver.write_desc(0, DATA, 64, NEXT, 0);
            rig
        };
        let act = |rig: &mut Rig, act: &dyn Fn(&mut Driver)| {
            act(if queue == RX_QUEUE { &mut rig.rx } else { &mut rig.tx });
            breaks(rig, queue);
        };
        act(&mut new(), &|driver| driver.publish(0));
        act(&mut new(), &|driver| driver.publish(SIZE));
        act(&mut new(), &|driver| driver.publish_index(SIZE + 1));
    }
}

#[test]
fn receive_buffers_of_many_tiny_segments_stay_within_what_one_call_takes() {
    let mut rig = Rig::new();
    let bufs: Vec<_> = (0..u64::from(SIZE)).map(|i| take(DATA + i, 1)).collect();
    for _ in 0..SIZE {
        let head = rig.rx.link_indirect(0x8000, &bufs);
        rig.rx.publish(head);
    }
    // 64 buffers of 64 bytes hold 4096: all of them would be 4096 slices.
    rig.arrives(frame(60));
    assert_eq!(rig.device.ready(0), Served::Drained);
    assert_eq!(rig.rx.used(), Some((0, 60)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn garbage_descriptors_never_touch_a_byte_they_do_not_name(seed: u64) {
        let mut rig = Rig::new();
        let mut chance = Seed::new(seed);
        let mut named = Vec::new();
        for index in 0..SIZE {
            for rx in [true, false] {
                let addr = chance.pick(&[DATA, DATA + 64, DATA + 4096, RAM_BYTES as u64 - 64, u64::MAX]);
                let len = chance.pick(&[0u32, 12, 64, 64, 64, 1500, 1 << 31]);
                let flags = u16::try_from(chance.below(4)).unwrap();
                let next = u16::try_from(chance.below(u64::from(SIZE) + 1)).unwrap();
                let driver = if rx { &mut rig.rx } else { &mut rig.tx };
                driver.write_desc(index, addr, len, flags, next);
                if rx && flags & 2 != 0 {
                    named.push((addr, len));
                }
            }
        }
        for _ in 0..chance.below(32) {
            rig.rx.publish(u16::try_from(chance.below(u64::from(SIZE))).unwrap());
            rig.tx.publish(u16::try_from(chance.below(u64::from(SIZE))).unwrap());
            rig.arrives(frame(12 + usize::try_from(chance.below(3000)).unwrap()));
        }
        let before = ram::read(&rig.ram, 0, RAM_BYTES);
        for _ in 0..4 {
            rig.device.serve(TX_QUEUE);
            rig.device.ready(0);
        }
        let after = ram::read(&rig.ram, 0, RAM_BYTES);
        for (at, _) in before.iter().zip(&after).enumerate().filter(|(_, (old, new))| old != new) {
            let at = at as u64;
            let allowed = (RX_RINGS..rig.rx.end()).contains(&at)
                || (TX_RINGS..rig.tx.end()).contains(&at)
                || named.iter().any(|&(addr, len)| at >= addr && at - addr < u64::from(len));
            prop_assert!(allowed, "byte {at:#x} changed");
        }
        prop_assert_eq!(rig.irq.resets_asked(), rig.metrics().broken.get());
    }
}
