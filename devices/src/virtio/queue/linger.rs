//! A short look for more before a batch of a stream ends: of frames to send, say, whose driver does not wait for each.
//!
//! A device that is quicker than its driver finds its queue empty after each request, asks for a kick and gets one: an exit for each,
//! where all could have had one. So it looks a little longer, by how long the driver takes from one request to the next, and at most for
//! half the time from one batch to the next: quick machines look for microseconds, slow ones longer. A driver that has no more is held
//! up by that if it waits for the interrupt, so a device that looked for nothing looks ever more seldom, and shorter: how long it would
//! have had to look it learns when the next request comes. For drivers that wait for their answers see [`Burst`](super::Burst).

use super::look::{LOOK_MIN_NS, look};
use crate::clock::monotonic_ns;

/// How long a batch may look, in gaps between requests and in nanoseconds at least and at most: by so much an interrupt is late.
const BATCH_GAPS: u64 = 16;
const BATCH_NS: (u64, u64) = (20_000, 2_000_000);
/// Batches that begin further apart, in nanoseconds, say nothing about how quick the driver is.
const PERIOD_NS: u64 = 2_000_000;
/// Batches without a look, at most, after looks that found nothing.
const PAUSE_MAX: u32 = 63;

/// What a queue has learnt of its driver.
#[derive(Debug)]
pub struct Linger {
    /// The longest look.
    look_max_ns: u64,
    /// Nanoseconds from one request to the next within a burst: a moving average.
    gap_ns: u64,
    /// Nanoseconds from one batch to the next: likewise.
    period_ns: u64,
    /// When the batch began.
    batch_ns: u64,
    /// Batches yet to end without a look, and how many it will be after the next look for nothing.
    pause: u32,
    next_pause: u32,
    /// When the batch's first look began, if there was one; whether one of this batch found anything.
    began_ns: Option<u64>,
    found: bool,
    /// When the last look began, if that was for nothing: the next request tells how long it should have been.
    missed_ns: Option<u64>,
}

impl Linger {
    /// One whose looks last `look_max_ns` nanoseconds at most, or the shortest look if that is longer, because something else waits
    /// meanwhile. A batch may look several times.
    #[must_use]
    pub fn with_longest(look_max_ns: u64) -> Self {
        let look_max_ns = look_max_ns.max(LOOK_MIN_NS);
        Self {
            look_max_ns,
            gap_ns: look_max_ns / 4,
            period_ns: LOOK_MIN_NS * 8,
            batch_ns: 0,
            pause: 0,
            next_pause: 1,
            began_ns: None,
            found: false,
            missed_ns: None,
        }
    }

    /// A batch begins, now.
    pub fn begin(&mut self, now_ns: u64) {
        (self.began_ns, self.found) = (None, false);
        if let Some(gap) = self.missed_ns.take().map(|began| now_ns.saturating_sub(began))
            && gap <= self.look_max_ns
        {
            self.learn(gap);
        }
        let period = now_ns.saturating_sub(std::mem::replace(&mut self.batch_ns, now_ns)).min(PERIOD_NS);
        self.period_ns = (self.period_ns * 7 + period) / 8;
    }

    fn learn(&mut self, gap_ns: u64) {
        self.gap_ns = (self.gap_ns * 7 + gap_ns) / 8;
    }

    /// The queue is empty: whether there is `more` if one waits a little.
    pub fn finds(&mut self, more: impl FnMut() -> bool) -> bool {
        if !self.found && self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        let begin = monotonic_ns();
        let batch = (self.gap_ns * BATCH_GAPS).clamp(BATCH_NS.0, BATCH_NS.1);
        let longest = (self.gap_ns * 4).min(self.period_ns / 2).clamp(LOOK_MIN_NS, self.look_max_ns);
        let end = (*self.began_ns.get_or_insert(begin) + batch).min(begin + longest);
        let (found, now) = look(begin, end, more);
        if found {
            self.learn(now.saturating_sub(begin));
            self.found = true;
            self.next_pause = 1;
            return true;
        }
        // A burst has an end: only who found nothing at all looked in vain.
        if !self.found {
            self.missed_ns = Some(begin);
            self.gap_ns -= self.gap_ns / 8;
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2 + 1).min(PAUSE_MAX);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use std::time::Duration;

    use super::super::look::{CLOCK_LOOKS, LOOKS};
    use super::*;
    use crate::testing::clock::{FakeClock, advance};

    const LOOK_MAX_NS: u64 = 1_000_000;

    /// One whose driver has taken a millisecond from batch to batch.
    fn of_a_slow_machine() -> Linger {
        Linger { period_ns: PERIOD_NS, ..Linger::with_longest(LOOK_MAX_NS) }
    }

    /// Looks in a batch, each of `ns`, the last of which finds something if `finds`.
    fn look(linger: &mut Linger, ns: u64, finds: Option<u64>) -> (bool, u64) {
        let began = monotonic_ns();
        let found = linger.finds(|| {
            advance(Duration::from_nanos(ns));
            finds.is_some_and(|after| monotonic_ns() - began >= after)
        });
        (found, monotonic_ns() - began)
    }

    #[test]
    fn who_looks_for_nothing_looks_ever_more_seldom_and_again_when_it_pays() {
        let _clock = FakeClock::at(0);
        let mut linger = of_a_slow_machine();
        let mut looked = Vec::new();
        for batch in 0..200 {
            advance(Duration::from_millis(1));
            linger.begin(monotonic_ns());
            let (found, took) = look(&mut linger, 100, None);
            assert!(!found && took <= LOOK_MAX_NS + 100 * u64::from(LOOKS), "{took}");
            if took > 0 {
                looked.push(batch);
            }
        }
        assert_eq!(looked, [0, 2, 6, 14, 30, 62, 126, 190]);
        linger.pause = 0;
        linger.begin(monotonic_ns());
        assert!(look(&mut linger, 100, Some(500)).0);
        for _ in 0..2 {
            linger.begin(monotonic_ns());
            assert!(look(&mut linger, 100, Some(500)).0, "what pays is done each time");
        }
    }

    #[test]
    fn it_looks_for_four_times_as_long_as_the_driver_takes() {
        let _clock = FakeClock::at(0);
        let mut linger = of_a_slow_machine();
        for _ in 0..100 {
            advance(Duration::from_millis(1));
            linger.begin(monotonic_ns());
            assert!(look(&mut linger, 100, Some(2_000)).0);
        }
        let (found, took) = look(&mut linger, 100, None);
        assert!(!found && (7_000..12_000).contains(&took), "{took}");
        // The end of a burst is no reason to look less.
        linger.begin(monotonic_ns());
        assert!(look(&mut linger, 100, Some(2_000)).0);
    }

    #[test]
    fn a_look_that_was_too_short_is_longer_the_next_time() {
        let _clock = FakeClock::at(0);
        let mut linger = Linger { gap_ns: 10_000, ..of_a_slow_machine() };
        let mut lengths = Vec::new();
        for _ in 0..40 {
            linger.pause = 0;
            linger.begin(monotonic_ns());
            let (found, took) = look(&mut linger, 100, Some(600_000));
            lengths.push(took);
            if found {
                break;
            }
            advance(Duration::from_nanos(700_000 - took));
        }
        assert!(lengths[0] < 50_000 && (600_000..610_000).contains(lengths.last().unwrap()), "{lengths:?}");
    }

    #[test]
    fn looks_get_shorter_where_the_next_request_is_far_off() {
        let _clock = FakeClock::at(0);
        let mut linger = of_a_slow_machine();
        let mut took = 0;
        for _ in 0..100 {
            linger.pause = 0;
            linger.begin(monotonic_ns());
            took = look(&mut linger, 100, None).1;
            advance(Duration::from_millis(10));
        }
        assert!(took <= LOOK_MIN_NS + 100 * u64::from(LOOKS), "{took}");
    }

    #[test]
    fn it_looks_for_half_the_time_from_batch_to_batch_at_most() {
        let _clock = FakeClock::at(0);
        let mut linger = Linger::with_longest(LOOK_MAX_NS);
        for _ in 0..100 {
            advance(Duration::from_micros(20));
            linger.begin(monotonic_ns());
        }
        let (found, took) = look(&mut linger, 100, None);
        assert!(!found && (9_000..12_000).contains(&took), "{took}");
    }

    #[test]
    fn a_batch_that_lasts_is_ended_however_much_there_is() {
        let _clock = FakeClock::at(0);
        let mut linger = of_a_slow_machine();
        linger.begin(monotonic_ns());
        let began = monotonic_ns();
        while look(&mut linger, 1_000, Some(30_000)).0 {}
        let took = monotonic_ns() - began;
        assert!((16 * 25_000..BATCH_NS.1).contains(&took), "{took}");
    }

    #[test]
    fn a_clock_that_stands_still_is_not_waited_for() {
        let _clock = FakeClock::at(0);
        let looks = Cell::new(0);
        let mut linger = Linger::with_longest(LOOK_MAX_NS);
        linger.begin(monotonic_ns());
        assert!(!linger.finds(|| {
            looks.set(looks.get() + 1);
            false
        }));
        assert_eq!(looks.get(), CLOCK_LOOKS * LOOKS);
    }
}
