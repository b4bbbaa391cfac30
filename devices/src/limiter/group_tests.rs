//! Tests of `limiter::group`.

use std::thread;

use super::*;
use crate::clock::monotonic_ns;
use crate::limiter::{BucketSpec, Limiter};

const SECOND: u64 = 1_000_000_000;

fn group(bytes: u64, ops: u64) -> Group {
    let per_second = |size| Some(BucketSpec { size, one_time_burst: 0, refill_time_ms: 1000 });
    Group::new(&LimiterSpec { bytes: per_second(bytes), ops: per_second(ops) }, 0)
}

fn members<const N: usize>(group: &Group) -> [Limiter; N] {
    std::array::from_fn(|_| Limiter::new(&LimiterSpec::default(), 0).within(Some(group)))
}

/// Has members that always want more ask until `end_ns`, each again when it was told to; how often each was let through.
fn contend<const N: usize>(members: &mut [Limiter; N], cost: [u64; N], end_ns: u64) -> [u64; N] {
    let (mut due, mut done) = ([0u64; N], [0u64; N]);
    loop {
        let next = (0..N).min_by_key(|member| due[*member]).unwrap();
        let now = due[next];
        if now >= end_ns {
            return done;
        }
        match members[next].consume(now, cost[next]) {
            Ok(()) => done[next] += 1,
            Err(wait) => due[next] = now + u64::try_from(wait.as_nanos()).unwrap(),
        }
    }
}

#[test]
fn members_together_have_what_the_group_has() {
    let group = group(1_000_000, u64::MAX);
    let mut three = members::<3>(&group);
    let done = contend(&mut three, [4096, 1500, 512], 100 * SECOND);
    let bytes: u64 = done.iter().zip([4096, 1500, 512]).map(|(done, cost)| done * cost).sum();
    assert!((99_000_000..=102_000_000).contains(&bytes), "{bytes} bytes in 100 s of a megabyte each");
}

#[test]
fn small_requests_do_not_starve_a_large_one_nor_it_them() {
    let group = group(1_000_000, 1_000_000);
    let mut two = members::<2>(&group);
    // One wants the whole bucket each time, and more; the other crumbs of it.
    let [large, small] = contend(&mut two, [1_500_000, 64], 300 * SECOND);
    assert!(large >= 195, "{large} large ones");
    assert!(small + 2 >= large, "{small} small ones beside {large} large ones");
}

#[test]
fn members_of_one_size_get_equal_shares() {
    let group = group(u64::MAX, 1000);
    let mut four = members::<4>(&group);
    let done = contend(&mut four, [1; 4], 60 * SECOND);
    let all: u64 = done.iter().sum();
    assert!((60_000..=61_001).contains(&all), "{done:?}");
    assert!(done.iter().all(|done| done.abs_diff(all / 4) <= 1000), "{done:?}");
}

#[test]
fn whoever_goes_gives_back_what_it_waits_for() {
    let group = group(1000, 1000);
    let [mut first, mut second] = members::<2>(&group);
    assert_eq!(first.consume(0, 1000), Ok(()));
    assert_eq!(first.consume(0, 1000), Err(Duration::from_secs(1)));
    drop(first);
    assert_eq!(second.consume(0, 500), Err(Duration::from_millis(500)));
}

#[test]
fn other_limits_are_for_those_who_wait_already() {
    let group = group(1, 1_000_000);
    let [mut first, mut second] = members::<2>(&group);
    assert_eq!(first.consume(0, 3600), Ok(()));
    assert_eq!(first.consume(0, 1), Err(Duration::from_secs(3600)));
    group.set(
        &LimiterSpec {
            bytes: Some(BucketSpec { size: 100, one_time_burst: 0, refill_time_ms: 1000 }),
            ops: None,
        },
        0,
    );
    assert_eq!(first.consume(0, 1), Ok(()));
    assert_eq!(second.consume(0, 99), Ok(()));
    assert!(second.consume(0, 1).is_err());
    group.set(&LimiterSpec::default(), 0);
    assert_eq!(second.consume(0, u64::MAX), Ok(()));
}

#[test]
fn threads_that_draw_at_once_take_nothing_twice() {
    const THREADS: u64 = 4;
    const TURNS: u64 = 2000;
    // No more comes while it runs.
    let spec = BucketSpec { size: THREADS * TURNS, one_time_burst: 0, refill_time_ms: 1 << 40 };
    let group = Group::new(&LimiterSpec { bytes: Some(spec), ops: None }, monotonic_ns());
    let taken: u64 = thread::scope(|scope| {
        let draw = || {
            let [mut member] = members::<1>(&group);
            (0..2 * TURNS).take_while(|_| member.consume(monotonic_ns(), 1).is_ok()).count() as u64
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(draw)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(taken, THREADS * TURNS);
}
