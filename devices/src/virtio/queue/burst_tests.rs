//! [`Burst`] against a driver that is simulated, on a clock that only moves with it.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use super::burst::{Burst, LATE_GAPS, LOOK_MAX_NS, Next, PAUSE_MAX};
use super::look::{CLOCK_LOOKS, LOOKS};
use crate::clock::monotonic_ns;
use crate::testing::clock::{FakeClock, advance};

/// How quick a machine is, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Machine {
    /// The driver's, for one more request.
    gap: u64,
    /// The device's.
    service: u64,
    /// What a kick costs the driver, and an interrupt.
    kick: u64,
    interrupt: u64,
}

const QUICK: Machine = Machine { gap: 1_500, service: 1_000, kick: 4_000, interrupt: 6_000 };
const SLOW: Machine = Machine { gap: 80_000, service: 40_000, kick: 300_000, interrupt: 500_000 };

/// A driver that has something to ask for as soon as it hears an answer.
struct Driver {
    machine: Machine,
    /// Requests that it can give; given; answered, which it was not told.
    hand: u32,
    queued: u32,
    untold: u32,
    /// When it finished what it did last.
    ready_ns: u64,
}

impl Driver {
    fn run_until(&mut self, now_ns: u64) {
        while self.hand > 0 && self.ready_ns + self.machine.gap <= now_ns {
            self.ready_ns += self.machine.gap;
            self.hand -= 1;
            self.queued += 1;
        }
    }

    /// It hears of what was answered, and has `depth` in flight again.
    fn told(&mut self, depth: u32, now_ns: u64) {
        if std::mem::take(&mut self.untold) > 0 {
            self.hand = self.hand.max(depth.saturating_sub(self.queued));
            self.ready_ns = self.ready_ns.max(now_ns) + self.machine.interrupt;
        }
    }
}

/// What some requests took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    kicks: u32,
    interrupts: u32,
    ns: u64,
}

/// Serves `requests` of a driver that has `depth` in flight. Without `looks` each batch ends when the queue is empty.
fn serve(
    burst: &mut Burst,
    machine: Machine,
    depth: impl Fn(u32) -> u32,
    requests: u32,
    looks: bool,
) -> Cost {
    let step = Duration::from_nanos(machine.gap / 15);
    let driver =
        RefCell::new(Driver { machine, hand: depth(0), queued: 0, untold: 0, ready_ns: monotonic_ns() });
    let (mut cost, began, mut served) = (Cost { kicks: 0, interrupts: 0, ns: 0 }, monotonic_ns(), 0);
    let tell = |burst: &mut Burst, cost: &mut Cost| {
        cost.interrupts += u32::from(driver.borrow().untold > 0);
        driver.borrow_mut().told(depth(cost.interrupts), monotonic_ns());
        burst.told();
    };
    while served < requests {
        {
            let mut driver = driver.borrow_mut();
            // The device sleeps: what comes next is kicked for, unless it came before it slept.
            if driver.queued == 0 {
                driver.ready_ns += machine.gap;
                driver.hand -= 1;
                driver.queued += 1;
                let wake = driver.ready_ns.max(monotonic_ns());
                advance(Duration::from_nanos(wake - monotonic_ns()));
                driver.ready_ns += machine.kick;
                cost.kicks += 1;
            }
        }
        burst.begin(monotonic_ns());
        while served < requests {
            driver.borrow_mut().run_until(monotonic_ns());
            if driver.borrow().queued > 0 {
                driver.borrow_mut().queued -= 1;
                burst.took();
                advance(Duration::from_nanos(machine.service));
                driver.borrow_mut().untold += 1;
                served += 1;
                continue;
            }
            let next = if looks {
                burst.next(|| {
                    advance(step);
                    driver.borrow_mut().run_until(monotonic_ns());
                    driver.borrow().queued > 0
                })
            } else {
                Next::Ended
            };
            match next {
                Next::Found => {}
                Next::Late => {
                    tell(burst, &mut cost);
                    burst.begin(monotonic_ns());
                }
                Next::Ended => break,
            }
        }
        tell(burst, &mut cost);
    }
    cost.ns = monotonic_ns() - began;
    cost
}

#[test]
fn whatever_it_was_before_a_burst_gets_one_kick() {
    for machine in [QUICK, SLOW] {
        for before in [1, 2, 8, 32, 128] {
            for depth in [2, 4, 8, 32, 128] {
                let _clock = FakeClock::at(1);
                let mut burst = Burst::default();
                serve(&mut burst, machine, |_| before, 4_000, true);
                serve(&mut burst, machine, |_| depth, 4_000, true);
                let cost = serve(&mut burst, machine, |_| depth, 8_000, true);
                let bursts = 8_000 / depth;
                assert!(cost.kicks <= bursts * 11 / 10 + 1, "{machine:?}, {before}, then {depth}: {cost:?}");
                let interrupts = bursts * 11 / 10 + 8_000 * 2 / u32::try_from(LATE_GAPS).unwrap();
                assert!(cost.interrupts <= interrupts, "{machine:?}, {before}, then {depth}: {cost:?}");
            }
        }
    }
}

#[test]
fn one_request_at_a_time_is_not_held_up() {
    for machine in [QUICK, SLOW] {
        for before in [1, 2, 32] {
            let _clock = FakeClock::at(1);
            let mut burst = Burst::default();
            serve(&mut burst, machine, |_| before, 4_000, true);
            let with = serve(&mut burst, machine, |_| 1, 4_000, true);
            let without = serve(&mut Burst::default(), machine, |_| 1, 4_000, false);
            assert!(with.ns * 100 <= without.ns * 102, "{machine:?}, after {before}: {with:?}, {without:?}");
        }
    }
}

#[test]
fn bursts_of_any_size_lose_nothing() {
    let size = |n: u32| n.wrapping_mul(2_654_435_761) >> 16;
    for machine in [QUICK, SLOW] {
        for most in [2, 3, 4, 8, 32] {
            let _clock = FakeClock::at(1);
            let with = serve(&mut Burst::default(), machine, |n| 1 + size(n) % most, 20_000, true);
            let without = serve(&mut Burst::default(), machine, |n| 1 + size(n) % most, 20_000, false);
            assert!(
                with.ns < without.ns && with.kicks < without.kicks,
                "{machine:?}, {most}: {with:?}, {without:?}"
            );
        }
    }
}

/// One burst of `size`, each `gap_ns` after the one before; how the batch ended, and how long after its last request that was.
fn burst_of(burst: &mut Burst, size: u32, gap_ns: u64) -> (Next, u64) {
    burst.begin(monotonic_ns());
    for _ in 1..size {
        burst.took();
        let began = monotonic_ns();
        let next = burst.next(|| {
            advance(Duration::from_nanos(100));
            monotonic_ns() >= began + gap_ns
        });
        if next != Next::Found {
            burst.told();
            advance(Duration::from_millis(1));
            burst.begin(monotonic_ns());
        }
    }
    burst.took();
    let began = monotonic_ns();
    let next = burst.next(|| {
        advance(Duration::from_nanos(100));
        false
    });
    burst.told();
    let took = monotonic_ns() - began;
    advance(Duration::from_millis(1));
    (next, took)
}

#[test]
fn it_looks_ever_more_seldom_for_more_than_there_ever_is() {
    let _clock = FakeClock::at(1);
    let mut burst = Burst::default();
    let looked: Vec<u32> = (0..500).filter(|_| burst_of(&mut burst, 1, 0).1 > 0).collect();
    assert_eq!(looked[..8], [0, 2, 6, 14, 30, 62, 94, 126]);
    assert_eq!(PAUSE_MAX, 31);
}

#[test]
fn the_last_of_a_burst_ends_the_batch_at_once() {
    let _clock = FakeClock::at(1);
    let mut burst = Burst::default();
    let took: Vec<u64> = (0..100).map(|_| burst_of(&mut burst, 5, 1_000).1).collect();
    assert!(took.iter().filter(|took| **took == 0).count() >= 90, "{took:?}");
}

#[test]
fn a_driver_that_stopped_early_is_waited_for_no_longer_than_exits_take() {
    let _clock = FakeClock::at(1);
    let mut burst = Burst::default();
    for _ in 0..200 {
        burst_of(&mut burst, 8, 10_000);
    }
    // Bursts came a millisecond apart and more; looks were hardly ever in vain.
    let (next, first) = burst_of(&mut burst, 3, 10_000);
    assert!(next == Next::Ended && (1_000_000..=LOOK_MAX_NS + 1_000).contains(&first), "{first}");
    // Ever shorter, and then not at all.
    let more: Vec<u64> = (0..20).map(|_| burst_of(&mut burst, 3, 10_000).1).collect();
    assert!(
        more[..8].iter().all(|took| *took <= first)
            && more[8..].iter().filter(|took| **took > 0).count() <= 2,
        "{more:?}"
    );
}

#[test]
fn a_burst_that_lasts_is_told_of_meanwhile_and_goes_on() {
    let _clock = FakeClock::at(1);
    let mut burst = Burst::default();
    burst.begin(monotonic_ns());
    let mut late = Vec::new();
    for n in 0..1_000 {
        burst.took();
        let began = monotonic_ns();
        let next = burst.next(|| {
            advance(Duration::from_nanos(100));
            monotonic_ns() >= began + 5_000
        });
        match next {
            Next::Found => {}
            Next::Late => {
                late.push(n);
                burst.told();
                burst.begin(monotonic_ns());
            }
            Next::Ended => panic!("{n}"),
        }
    }
    // At first the gap is not known.
    let apart: Vec<_> = late.windows(2).skip(4).map(|pair| pair[1] - pair[0]).collect();
    assert!(!apart.is_empty() && apart.iter().all(|apart| (15..=20).contains(apart)), "{late:?}");
}

#[test]
fn a_kick_for_nothing_is_not_looked_after() {
    let _clock = FakeClock::at(1);
    let mut burst = Burst::default();
    burst.begin(monotonic_ns());
    assert_eq!(burst.next(|| panic!("looked")), Next::Ended);
}

#[test]
fn a_clock_that_stands_still_is_not_waited_for() {
    let _clock = FakeClock::at(1);
    let looks = Cell::new(0);
    let mut burst = Burst::default();
    burst.begin(monotonic_ns());
    burst.took();
    let next = burst.next(|| {
        looks.set(looks.get() + 1);
        false
    });
    assert_eq!((next, looks.get()), (Next::Ended, CLOCK_LOOKS * LOOKS));
}
