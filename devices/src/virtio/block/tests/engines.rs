//! An engine with requests in flight: full, swapped, flushed, stopped.

use super::queues::{Many, OK};
use super::*;
use crate::testing::engine::Reordered;

fn reordered(disk: &MemBackend, seed: u64) -> Box<dyn Backend> {
    Box::new(Reordered::new(disk.clone(), seed))
}

/// Makes `count` writes of one sector each available, with its number in it.
fn send_writes(many: &mut Many, count: u64) {
    for sector in 0..count {
        let byte = u8::try_from(sector + 1).unwrap();
        let at = many.guests[0].base + DATA + sector * 0x400;
        ram::write(
            &many.guests[0].ram,
            at,
            &[&OUT.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(),
        );
        ram::write(&many.guests[0].ram, at + 0x200, &[byte; 512]);
        let head = many.guests[0]
            .driver
            .link_indirect(at + 0x20, &[give(at, 16), give(at + 0x200, 512), take(at + 0x100, 1)]);
        many.guests[0].driver.publish(head);
    }
}

fn answers(many: &mut Many) -> usize {
    std::iter::from_fn(|| many.guests[0].driver.used()).count()
}

#[test]
fn requests_in_flight_are_settled_by_a_pause_and_by_a_stop() {
    for seed in 0..20 {
        let disk = MemBackend::zeroed(16);
        let mut many = Many::new(1, reordered(&disk, seed), &options());
        send_writes(&mut many, 8);
        many.device.serve(0);
        many.device.settle();
        assert_eq!(answers(&mut many), 8);
        send_writes(&mut many, 8);
        many.device.serve(0);
        let Many { mut guests, device, .. } = many;
        device.stop();
        assert_eq!(std::iter::from_fn(|| guests[0].driver.used()).count(), 8);
    }
}

#[test]
fn a_swap_finishes_what_is_in_flight_on_the_old_backing_and_flushes_it() {
    for seed in 0..20 {
        let (old, new) = (MemBackend::zeroed(16), MemBackend::zeroed(16));
        let mut many = Many::new(1, reordered(&old, seed), &options());
        send_writes(&mut many, 8);
        many.device.serve(0);
        many.handle.swap_backing(reordered(&new, seed));
        many.device.serve(0);
        assert_eq!(answers(&mut many), 8);
        for (sector, byte) in (0..8).zip(1..) {
            assert_eq!(old.platter().bytes[sector * 512..][..512], [byte; 512]);
        }
        assert_eq!((old.platter().flushes, new.platter().calls), (1, 0));
        send_writes(&mut many, 1);
        many.device.serve(0);
        many.device.settle();
        assert_eq!((answers(&mut many), new.platter().bytes[0]), (1, 1));
    }
}

#[test]
fn a_new_engine_is_told_to_whoever_waits_for_it_once() {
    let disk = MemBackend::zeroed(16);
    let mut many = Many::new(2, reordered(&disk, 1), &options());
    many.device.serve(1);
    assert!(many.device.new_source().is_none(), "no request, no engine");
    many.guests[1].send_write(1, 1);
    many.device.serve(1);
    assert!(matches!(many.device.new_source(), Some((1, _))));
    many.device.serve(1);
    assert!(many.device.new_source().is_none());
    many.device.settle();
    assert_eq!(many.guests[1].answer(), Some(OK));
}

#[test]
fn a_driver_that_makes_more_available_than_fits_in_flight_is_served_in_the_end() {
    for seed in 0..20 {
        let disk = MemBackend::zeroed(16);
        let mut many = Many::new(1, reordered(&disk, seed), &options());
        let mut answered = 0;
        // 16 at a time are all that the ring has; the driver gives them again as soon as the ring lets it.
        for _ in 0..10 {
            send_writes(&mut many, 16);
            let mut calls = 0;
            let before = answered;
            while answered < before + 16 {
                many.device.serve(0);
                many.device.ready(0);
                answered += answers(&mut many);
                calls += 1;
                assert!(calls < 1000);
            }
        }
    }
}
