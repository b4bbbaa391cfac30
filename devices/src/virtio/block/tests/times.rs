//! How long requests took, as it is counted.

use super::queues::Many;
use super::*;
use crate::metrics::Tally;
use crate::testing::clock::FakeClock;
use crate::testing::engine::Reordered;

const MICROSECOND: Duration = Duration::from_micros(1);

fn tally(handle: &BlockHandle, op: Op) -> Tally {
    handle.metrics().time(op).tally()
}

#[test]
fn each_request_that_is_carried_out_is_timed_once_by_kind() {
    let clock = FakeClock::at(0);
    let mut rig = Rig::new(64);
    rig.disk.platter().takes = 5 * MICROSECOND;
    for _ in 0..3 {
        rig.read(0, 512);
    }
    rig.disk.platter().takes = 70 * MICROSECOND;
    rig.write(0, &[1; 1024]);
    rig.flush();
    rig.header(GET_ID, 0);
    rig.ask(&[give(HEADER, 16), take(DATA, 20), take(STATUS, 1)]);
    assert_eq!(rig.read(64, 512).status, Status::IoErr as u8, "past the end");
    let read = tally(&rig.handle, Op::Read);
    assert_eq!((read.count(), read.sum_ns, read.min_ns, read.max_ns), (3, 15_000, 5_000, 5_000));
    assert_eq!(read.buckets[3], 3, "more than 4 us, and no more than 8");
    let write = tally(&rig.handle, Op::Write);
    assert_eq!((write.count(), write.sum_ns, write.buckets[7]), (1, 70_000, 1));
    let flush = tally(&rig.handle, Op::Flush);
    assert_eq!((flush.count(), flush.sum_ns), (1, 70_000));
    assert_eq!(tally(&rig.handle, Op::Erase), Tally::default());
    let metrics = rig.handle.metrics();
    assert_eq!(metrics.requests(), 5);
    assert_eq!(clock.now_ns(), 3 * 5_000 + 2 * 70_000);
}

#[test]
fn requests_of_one_batch_do_not_pay_for_each_other() {
    let _clock = FakeClock::at(0);
    let mut many = Many::new(1, Box::new(MemBackend::zeroed(16)), &options());
    let disk = MemBackend::zeroed(16);
    disk.platter().takes = 3 * MICROSECOND;
    many.handle.swap_backing(Box::new(disk));
    for sector in 0..4 {
        many.guests[0].send_write(sector, 1);
    }
    assert_eq!(many.device.serve(0), Served::Drained);
    let write = tally(&many.handle, Op::Write);
    assert_eq!((write.count(), write.sum_ns), (4, 12_000));
}

#[test]
fn a_request_that_failed_or_was_held_by_a_limit_is_not_timed() {
    let clock = FakeClock::at(0);
    let second = BucketSpec { size: 1, one_time_burst: 0, refill_time_ms: 1000 };
    let limits = LimiterSpec { bytes: None, ops: Some(second) };
    let mut rig = Rig::with(MemBackend::zeroed(8), &BlockOptions { limits, ..options() });
    rig.disk.platter().takes = MICROSECOND;
    rig.read(0, 512);
    rig.header(IN, 0);
    rig.driver.send(&[give(HEADER, 16), take(DATA, 512), take(STATUS, 1)]);
    let Served::After(wait) = rig.device.serve(0) else { panic!("the limit holds") };
    clock.advance(wait);
    assert_eq!(rig.device.serve(0), Served::Drained);
    let read = tally(&rig.handle, Op::Read);
    assert_eq!((read.count(), read.sum_ns), (2, 2_000));
    let mut failing = FaultyBackend::new(MemBackend::zeroed(8), 1);
    failing.failing = 100;
    rig.handle.set_limits(LimiterSpec::default());
    rig.handle.swap_backing(Box::new(failing));
    for _ in 0..10 {
        rig.read(0, 512);
    }
    let metrics = rig.handle.metrics();
    assert_eq!(tally(&rig.handle, Op::Read).count(), metrics.read_count.get());
    assert!(metrics.read_failures.get() > 0);
}

#[test]
fn what_an_engine_does_is_timed_from_the_queue_to_its_answer_whatever_the_order() {
    for seed in 0..20 {
        let clock = FakeClock::at(0);
        let disk = MemBackend::zeroed(16);
        disk.platter().takes = MICROSECOND;
        let mut many = Many::new(1, Box::new(Reordered::new(disk, seed)), &options());
        for sector in 0..5 {
            many.guests[0].send_write(sector, 1);
        }
        many.device.serve(0);
        clock.advance(90 * MICROSECOND);
        many.device.settle();
        let write = tally(&many.handle, Op::Write);
        let at_once = write.buckets[..=3].iter().sum::<u64>();
        assert_eq!((write.count(), at_once + write.buckets[7]), (5, 5), "{write:?}");
        assert_eq!(write.sum_ns, at_once * 5_000 + write.buckets[7] * 95_000);
        many.device.stop();
    }
}

#[test]
fn each_queue_has_counters_of_its_own() {
    let mut many = Many::new(3, Box::new(MemBackend::zeroed(8)), &options());
    for (index, writes) in [(0u16, 2), (2, 1)] {
        for _ in 0..writes {
            many.guests[usize::from(index)].send_write(0, 1);
            many.device.serve(index);
        }
    }
    let queues = many.handle.queues();
    let each = |of: fn(&BlockMetrics) -> u64| queues.iter().map(of).collect::<Vec<_>>();
    assert_eq!(each(BlockMetrics::requests), [2, 0, 1]);
    assert_eq!(each(|queue| queue.write_bytes.get()), [1024, 0, 512]);
    assert_eq!(each(|queue| queue.interrupts.get()), [2, 0, 1]);
    assert_eq!(each(|queue| queue.time(Op::Write).tally().count()), [2, 0, 1]);
}
