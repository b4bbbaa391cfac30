//! One bucket of tokens.
//!
//! The balance is kept in token-nanoseconds (tokens times the refill time), so that each elapsed nanosecond adds exactly `size`
//! units. A request that costs more than the whole bucket is admitted when the bucket is full and leaves a debt behind: it
//! waits its turn, it never waits forever.

use std::time::Duration;

const NS_PER_MS: u64 = 1_000_000;
/// Longest refill time that is told apart from forever (146 years): keeps `size * refill_ns` within an `i128`.
const REFILL_NS_MAX: u64 = 1 << 62;
/// How late whoever was told to wait may come and lose nothing by it, though the bucket runs over: threads sleep by the
/// millisecond, and wake when the host has a CPU for them. A bucket smaller than what such a time brings would otherwise never
/// reach its rate.
const LATE_NS_MAX: u64 = 10 * NS_PER_MS;

/// What a bucket is asked to be. A `size` or `refill_time_ms` of 0 means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BucketSpec {
    /// Tokens (bytes or operations) the bucket holds, and gets back over each refill time.
    pub size: u64,
    /// Tokens on top, spent first and never refilled.
    pub one_time_burst: u64,
    /// Time to refill an empty bucket.
    pub refill_time_ms: u64,
}

/// A continuously refilled bucket of tokens.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    size: u64,
    refill_ns: u64,
    burst_left: u64,
    /// In token-nanoseconds; negative while a debt is paid off.
    balance: i128,
    updated_ns: u64,
    /// When whoever was refused last may come again.
    awaited_ns: Option<u64>,
}

impl TokenBucket {
    /// A full bucket, or `None` if `spec` means no limit.
    #[must_use]
    pub fn new(spec: &BucketSpec, now_ns: u64) -> Option<Self> {
        if spec.size == 0 || spec.refill_time_ms == 0 {
            return None;
        }
        let refill_ns = spec.refill_time_ms.saturating_mul(NS_PER_MS).min(REFILL_NS_MAX);
        let mut bucket = Self {
            size: spec.size,
            refill_ns,
            burst_left: spec.one_time_burst,
            balance: 0,
            updated_ns: now_ns,
            awaited_ns: None,
        };
        bucket.balance = bucket.units(bucket.size);
        Some(bucket)
    }

    /// Takes `tokens`, or says how long until that many can be taken.
    ///
    /// # Errors
    /// The wait; nothing was taken.
    pub fn consume(&mut self, now_ns: u64, tokens: u64) -> Result<(), Duration> {
        self.check(now_ns, tokens)?;
        self.charge(tokens);
        Ok(())
    }

    /// Whether `tokens` could be taken now, after refilling.
    ///
    /// # Errors
    /// How long until they can.
    pub fn check(&mut self, now_ns: u64, tokens: u64) -> Result<(), Duration> {
        self.refill(now_ns);
        let due = tokens.saturating_sub(self.burst_left).min(self.size);
        let missing = self.units(due) - self.balance;
        if due == 0 || missing <= 0 {
            return Ok(());
        }
        let size = u128::from(self.size);
        let wait_ns = u64::try_from(missing.unsigned_abs().div_ceil(size)).unwrap_or(u64::MAX);
        self.awaited_ns = Some(now_ns.saturating_add(wait_ns));
        Err(Duration::from_nanos(wait_ns))
    }

    /// Takes `tokens` whatever is there, going into debt: for work whose size is known only once it is done.
    pub fn charge(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst_left);
        self.burst_left -= from_burst;
        // A debt is bounded by one charge above an admitted balance; saturation only guards against misuse.
        self.balance = self.balance.saturating_sub(self.units(tokens - from_burst));
    }

    /// Gives back `tokens` that were taken and not used. What was taken from the burst comes back as ordinary ones.
    pub fn refund(&mut self, tokens: u64) {
        let most = self.units(self.size).max(self.balance);
        self.balance = self.balance.saturating_add(self.units(tokens)).min(most);
    }

    fn units(&self, tokens: u64) -> i128 {
        i128::from(tokens) * i128::from(self.refill_ns)
    }

    fn refill(&mut self, now_ns: u64) {
        let elapsed = now_ns.saturating_sub(self.updated_ns);
        self.updated_ns = self.updated_ns.max(now_ns);
        // Both factors are below 2^64: the product fits a u128; what does not fit an i128 is more than full anyway.
        let brings = |ns: u64| i128::try_from(u128::from(ns) * u128::from(self.size)).unwrap_or(i128::MAX);
        let late_ns = self.awaited_ns.map_or(0, |at| now_ns.saturating_sub(at).min(LATE_NS_MAX));
        // Also while what has piled up is being spent; then no more.
        self.awaited_ns = self.awaited_ns.filter(|_| late_ns < LATE_NS_MAX);
        let most = self.units(self.size).saturating_add(brings(late_ns)).max(self.balance);
        self.balance = self.balance.saturating_add(brings(elapsed)).min(most);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NS_PER_S: u64 = 1_000_000_000;

    fn bucket(size: u64, one_time_burst: u64, refill_time_ms: u64) -> TokenBucket {
        TokenBucket::new(&BucketSpec { size, one_time_burst, refill_time_ms }, 0).unwrap()
    }

    #[test]
    fn zero_size_or_refill_time_is_no_limit() {
        for (size, refill_time_ms) in [(0, 100), (100, 0), (0, 0)] {
            let spec = BucketSpec { size, one_time_burst: 7, refill_time_ms };
            assert!(TokenBucket::new(&spec, 0).is_none());
        }
    }

    #[test]
    fn an_empty_bucket_names_the_exact_wait() {
        let mut bucket = bucket(1000, 0, 1000);
        assert_eq!(bucket.consume(0, 1000), Ok(()));
        assert_eq!(bucket.consume(0, 1), Err(Duration::from_millis(1)));
        assert_eq!(bucket.consume(999_999, 1), Err(Duration::from_nanos(1)));
        assert_eq!(bucket.consume(1_000_000, 1), Ok(()));
    }

    #[test]
    fn the_burst_is_spent_first_and_once() {
        let mut bucket = bucket(10, 5, 1000);
        assert_eq!(bucket.consume(0, 15), Ok(()));
        assert!(bucket.consume(0, 1).is_err());
        assert_eq!(bucket.consume(100 * NS_PER_S, 10), Ok(()));
        assert!(bucket.consume(100 * NS_PER_S, 1).is_err());
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_and_breaks_nothing() {
        let mut bucket = bucket(10, 0, 1000);
        assert_eq!(bucket.consume(5 * NS_PER_S, 10), Ok(()));
        assert!(bucket.consume(0, 1).is_err());
        assert!(bucket.consume(5 * NS_PER_S, 1).is_err());
    }

    #[test]
    fn whoever_comes_a_little_late_loses_nothing_and_nobody_else_gets_more_than_a_bucket() {
        let mut small = bucket(1, 0, 1);
        let mut now = 0;
        let mut taken = 0;
        // A bucket of a millisecond, and a thread that sleeps by the millisecond and wakes 0.3 ms late.
        while now < 10 * NS_PER_S {
            match small.consume(now, 1) {
                Ok(()) => taken += 1,
                Err(wait) => {
                    now += u64::try_from(wait.as_nanos()).unwrap().next_multiple_of(NS_PER_MS) + 300_000;
                }
            }
        }
        assert!((9_990..=10_020).contains(&taken), "{taken} in 10 s");
        // Nobody waits: it is full and no more.
        assert_eq!(small.consume(now + NS_PER_S, 1), Ok(()));
        let mut idle = bucket(1, 0, 1);
        assert_eq!(idle.consume(NS_PER_S, 1), Ok(()));
        assert!(idle.consume(NS_PER_S, 1).is_err());
        // Who comes much later has been away.
        assert_eq!(idle.consume(5 * NS_PER_S, 1), Ok(()));
        let more = (0..100).take_while(|_| idle.consume(5 * NS_PER_S, 1).is_ok()).count();
        assert!(more <= 10, "{more}");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_fills_no_bucket_beyond_its_brim() {
        let mut bucket = bucket(10, 0, 1000);
        assert_eq!(bucket.consume(0, 10), Ok(()));
        bucket.refund(4);
        assert_eq!(bucket.consume(0, 4), Ok(()));
        bucket.refund(100);
        assert_eq!(bucket.consume(0, 10), Ok(()));
        assert!(bucket.consume(0, 1).is_err());
    }

    proptest! {
        #[test]
        fn the_rate_is_kept_within_two_percent_whatever_the_request_size(
            size in 1_000u64..10_000_000, refill_time_ms in 1u64..5_000, cost in 1u64..20_000_000,
        ) {
            let mut bucket = bucket(size, 0, refill_time_ms);
            let (mut now, mut taken, mut turns) = (0u64, 0u128, 0u32);
            // Long enough that neither the first full bucket nor the last debt weighs more than a hundredth.
            let goal = u128::from(size.max(cost)) * 200;
            while taken < goal && turns < 200_000 {
                turns += 1;
                match bucket.consume(now, cost) {
                    Ok(()) => taken += u128::from(cost),
                    Err(wait) => now += u64::try_from(wait.as_nanos()).unwrap(),
                }
            }
            prop_assume!(taken >= goal);
            let allowed = u128::from(size) * u128::from(now) / (u128::from(refill_time_ms) * u128::from(NS_PER_MS));
            let (low, high) = (allowed * 98 / 100, allowed * 102 / 100 + 1);
            prop_assert!((low..=high).contains(&taken), "{taken} of {allowed}");
        }

        #[test]
        fn the_wait_it_names_is_enough_for_any_numbers(
            size in 1u64.., burst: u64, refill_time_ms in 1u64.., costs in prop::collection::vec(any::<u64>(), 1..8),
        ) {
            let mut bucket = bucket(size, burst, refill_time_ms);
            let mut now = 0u64;
            for cost in costs {
                if let Err(wait) = bucket.consume(now, cost) {
                    let Some(later) = u64::try_from(wait.as_nanos()).ok().and_then(|wait| now.checked_add(wait)) else {
                        continue;
                    };
                    if wait < Duration::from_nanos(u64::MAX) {
                        now = later;
                        prop_assert_eq!(bucket.consume(now, cost), Ok(()));
                    }
                }
            }
        }
    }
}
