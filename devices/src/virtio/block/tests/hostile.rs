//! Drivers that lie. Each ends in a status or in NEEDS_RESET, and in nothing else.

use proptest::prelude::*;

use super::*;
use crate::testing::engine::Reordered;

/// Expects the device to give up on `rig`'s driver.
fn breaks(rig: &mut Rig) {
    assert_eq!(rig.device.serve(0), Served::Broken);
    assert_eq!(rig.irq.resets_asked(), 1);
    assert_eq!(rig.device.serve(0), Served::Broken, "it stays broken until stopped");
    assert_eq!(rig.irq.resets_asked(), 1);
    assert_eq!(rig.handle.metrics().broken.get(), 1);
}

#[test]
fn a_short_header_is_refused() {
    let mut rig = Rig::new(8);
    rig.header(IN, 0);
    assert_eq!(rig.ask(&[give(HEADER, 15), take(DATA, 512), take(STATUS, 1)]), answer(Status::IoErr, 1));
    assert_eq!(rig.ask(&[take(DATA, 512), take(STATUS, 1)]), answer(Status::IoErr, 1));
}

#[test]
fn a_status_byte_that_cannot_be_written_breaks_the_queue() {
    for bufs in [&[give(HEADER, 16), give(STATUS, 1)][..], &[give(HEADER, 16), take(STATUS, 0)]] {
        let mut rig = Rig::new(8);
        rig.header(FLUSH, 0);
        rig.driver.send(bufs);
        breaks(&mut rig);
        assert_eq!(rig.disk.platter().calls, 0);
    }
}

#[test]
fn data_outside_ram_break_the_queue_before_the_disk_is_touched() {
    for data in [take(RAM_BYTES as u64 - 256, 512), take(u64::MAX - 511, 512), take(1 << 40, 512)] {
        let mut rig = Rig::new(8);
        rig.header(IN, 0);
        rig.driver.send(&[give(HEADER, 16), data, take(STATUS, 1)]);
        breaks(&mut rig);
        assert_eq!(rig.disk.platter().calls, 0);
    }
}

#[test]
fn a_loop_a_wrong_order_and_a_bad_head_break_the_queue() {
    let mut rig = Rig::new(8);
    rig.driver.write_desc(0, HEADER, 16, NEXT, 0);
    rig.driver.publish(0);
    breaks(&mut rig);
    let mut rig = Rig::new(8);
    rig.driver.send(&[take(STATUS, 1), give(HEADER, 16)]);
    breaks(&mut rig);
    let mut rig = Rig::new(8);
    rig.driver.publish(0xffff);
    breaks(&mut rig);
    let mut rig = Rig::new(8);
    rig.driver.publish_index(17);
    breaks(&mut rig);
}

#[test]
fn requests_before_the_broken_one_are_answered_and_told() {
    let mut rig = Rig::new(8);
    rig.header(IN, 0);
    rig.driver.send(&[give(HEADER, 16), take(DATA, 512), take(STATUS, 1)]);
    rig.driver.publish(0xffff);
    breaks(&mut rig);
    assert_eq!(rig.driver.used().map(|(_, len)| len), Some(513));
    assert_eq!(rig.irq.raised(), 1);
}

#[test]
fn a_header_that_its_own_data_overwrite_is_read_only_once() {
    let mut rig = Rig::new(8);
    rig.disk.platter().bytes.fill(0xff);
    rig.header(IN, 1);
    // The data land on the header: whoever read it again would see type 0xffffffff.
    assert_eq!(rig.ask(&[give(HEADER, 16), take(HEADER, 512), take(STATUS + 0x1000, 1)]).used_len, 513);
    assert_eq!(ram::read(&rig.ram, STATUS + 0x1000, 1), [0]);
}

#[test]
fn a_flood_of_bad_requests_is_refused_one_by_one() {
    let mut rig = Rig::new(8);
    rig.header(99, 0);
    for _ in 0..1000 {
        assert_eq!(rig.ask(&[give(HEADER, 16), take(STATUS, 1)]).used_len, 1);
    }
    assert_eq!(rig.handle.metrics().refused.get(), 1000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn garbage_descriptors_never_touch_a_byte_they_do_not_name(seed: u64, engine: bool) {
        let disk = MemBackend::zeroed(8);
        let backend: Box<dyn Backend> = match engine {
            true => Box::new(Reordered::new(disk.clone(), seed)),
            false => Box::new(disk.clone()),
        };
        let mut rig = Rig::over(disk, Block::new(backend, &options()), !F_EVENT_IDX);
        let mut chance = Seed::new(seed);
        rig.disk.platter().bytes.fill(0xD1);
        rig.header(u32::try_from(chance.below(15)).unwrap(), chance.below(12));
        let named: Vec<(u64, u32)> = (0..16u16)
            .map(|index| {
                let addr = chance.pick(&[HEADER, STATUS, DATA, DATA + 512, RAM_BYTES as u64 - 512, u64::MAX]);
                let len = chance.pick(&[0u32, 1, 16, 512, 528, 1024, 1 << 31]);
                let flags = u16::try_from(chance.below(4)).unwrap();
                rig.driver.write_desc(index, addr, len, flags, u16::try_from(chance.below(18)).unwrap());
                (addr, if flags & 2 == 0 { 0 } else { len })
            })
            .collect();
        for _ in 0..chance.below(16) {
            rig.driver.publish(u16::try_from(chance.below(17)).unwrap());
        }
        let before = ram::read(&rig.ram, 0, RAM_BYTES);
        let mut calls = 0;
        while rig.device.serve(0) == Served::More {
            calls += 1;
            prop_assert!(calls < 4, "work goes on without end");
        }
        rig.device.settle();
        let after = ram::read(&rig.ram, 0, RAM_BYTES);
        let rings = RINGS..rig.driver.end();
        let changed = before.iter().zip(&after).enumerate().filter(|(_, (old, new))| old != new);
        for (at, _) in changed {
            let at = at as u64;
            let allowed = rings.contains(&at)
                || named.iter().any(|&(addr, len)| at >= addr && at - addr < u64::from(len));
            prop_assert!(allowed, "byte {at:#x} changed");
        }
        prop_assert_eq!(rig.irq.resets_asked(), rig.handle.metrics().broken.get());
    }
}
