//! What a device's thread counts and anybody reads: numbers, and how long things took.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows, written by one thread at a time.
///
/// The writer is the thread that owns the device (or holds its lock), so adding is a load and a store: no locked
/// instruction on the path of a request. Readers see some recent value.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only from the one thread that writes this counter.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds one. Only from the one thread that writes this counter.
    pub fn inc(&self) {
        self.add(1);
    }

    /// The count so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bounded buckets of a [`Histogram`]: number `n` is for what took at most 2^n µs and more than its neighbour before, so that
/// the last ends at 8.4 s. One more takes what was longer.
pub const BUCKETS: usize = 24;

/// The longest that bucket `n` of [`BUCKETS`] is for, in nanoseconds.
#[must_use]
pub const fn bucket_ns_max(n: usize) -> u64 {
    1000 << n
}

/// The bucket for what took `ns`.
fn bucket_of(ns: u64) -> usize {
    let us = ns.div_ceil(1000);
    let bits = u64::BITS - us.saturating_sub(1).leading_zeros();
    usize::try_from(bits).map_or(BUCKETS, |bits| bits.min(BUCKETS))
}

/// How long things took, by powers of two; written by one thread at a time, as a [`Counter`]. Recording touches two or three
/// cache lines and allocates nothing.
#[derive(Debug, Default)]
pub struct Histogram {
    sum_ns: Counter,
    /// 0 before the first.
    min_ns: AtomicU64,
    max_ns: AtomicU64,
    buckets: [Counter; BUCKETS + 1],
}

impl Histogram {
    /// Takes up what took `ns` nanoseconds. Only from the one thread that writes this histogram.
    pub fn record(&self, ns: u64) {
        self.buckets[bucket_of(ns)].inc();
        self.sum_ns.add(ns);
        self.widen(ns.max(1), ns);
    }

    /// Takes up all that another has. Likewise.
    pub fn add(&self, other: &Tally) {
        for (bucket, more) in self.buckets.iter().zip(other.buckets) {
            bucket.add(more);
        }
        self.sum_ns.add(other.sum_ns);
        self.widen(other.min_ns, other.max_ns);
    }

    fn widen(&self, min_ns: u64, max_ns: u64) {
        if max_ns > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.store(max_ns, Ordering::Relaxed);
        }
        let min = self.min_ns.load(Ordering::Relaxed);
        if min_ns != 0 && (min == 0 || min_ns < min) {
            self.min_ns.store(min_ns, Ordering::Relaxed);
        }
    }

    /// What it has so far. What is being recorded meanwhile may be in one number and not yet in another.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally {
            sum_ns: self.sum_ns.get(),
            min_ns: self.min_ns.load(Ordering::Relaxed),
            max_ns: self.max_ns.load(Ordering::Relaxed),
            buckets: std::array::from_fn(|n| self.buckets[n].get()),
        }
    }
}

/// The numbers of a [`Histogram`] at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All durations together.
    pub sum_ns: u64,
    /// The shortest; 0 if there is none.
    pub min_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// How many there were, by bucket; the last is of those that no bound is for.
    pub buckets: [u64; BUCKETS + 1],
}

impl Tally {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// This and another together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let both = Histogram::default();
        both.add(self);
        both.add(other);
        both.tally()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_whose_bound_it_does_not_pass() {
        for n in 0..BUCKETS {
            let bound = bucket_ns_max(n);
            assert_eq!((bucket_of(bound), bucket_of(bound + 1)), (n, n + 1), "{bound} ns");
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS));
    }

    #[test]
    fn a_tally_has_every_duration_once_and_two_add_up() {
        let (a, b) = (Histogram::default(), Histogram::default());
        for ns in [700, 3_000, 3_001, 20_000_000_000] {
            a.record(ns);
        }
        b.record(500);
        let (a, b) = (a.tally(), b.tally());
        assert_eq!((a.count(), a.sum_ns, a.min_ns, a.max_ns), (4, 20_000_006_701, 700, 20_000_000_000));
        assert_eq!((a.buckets[0], a.buckets[2], a.buckets[BUCKETS]), (1, 2, 1));
        let both = a.and(&b).and(&Tally::default());
        assert_eq!(
            (both.count(), both.sum_ns, both.min_ns, both.max_ns),
            (5, 20_000_007_201, 500, 20_000_000_000)
        );
    }
}
