//! Rate limits: how much I/O a device may do, and when to try again.
//!
//! ```text
//!   drive, queue 0 ── Limiter ── Member ──┐
//!   drive, queue 1 ── Limiter ── Member ──┴─ Group: the drive's own limits
//!                        └────── Member ──┐
//!   interface, rx ─── Limiter ── Member ──┴─ Group: what drive and interface have together
//! ```
//! Time is passed in, as monotonic nanoseconds, and buckets refill continuously: no timer ticks, no rounding. Whoever has to
//! wait is told for how long, and has its tokens then: nobody who comes later takes them.

mod bucket;
mod group;

use std::time::Duration;

pub use bucket::{BucketSpec, TokenBucket};
pub use group::Group;
use group::Member;

use crate::clock::monotonic_ns;

/// What limits are asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimiterSpec {
    /// Bytes moved.
    pub bytes: Option<BucketSpec>,
    /// Requests or frames.
    pub ops: Option<BucketSpec>,
}

/// The buckets of a [`LimiterSpec`].
#[derive(Debug)]
struct Buckets {
    bytes: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

impl Buckets {
    /// Full ones.
    fn new(spec: &LimiterSpec, now_ns: u64) -> Self {
        let bucket = |spec: Option<BucketSpec>| spec.and_then(|spec| TokenBucket::new(&spec, now_ns));
        Self { bytes: bucket(spec.bytes), ops: bucket(spec.ops) }
    }

    fn is_off(&self) -> bool {
        self.bytes.is_none() && self.ops.is_none()
    }

    /// How long until one operation of `bytes` can be taken.
    fn wait(&mut self, now_ns: u64, bytes: u64) -> Duration {
        let waits = [(&mut self.bytes, bytes), (&mut self.ops, 1)]
            .map(|(bucket, tokens)| bucket.as_mut().and_then(|bucket| bucket.check(now_ns, tokens).err()));
        waits.into_iter().flatten().max().unwrap_or_default()
    }

    /// Takes `bytes` and `ops`, going into debt if need be.
    fn charge(&mut self, bytes: u64, ops: u64) {
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.ops, ops)] {
            bucket.iter_mut().for_each(|bucket| bucket.charge(tokens));
        }
    }

    /// Gives `bytes` and `ops` back.
    fn refund(&mut self, bytes: u64, ops: u64) {
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.ops, ops)] {
            bucket.iter_mut().for_each(|bucket| bucket.refund(tokens));
        }
    }
}

/// What one queue, or one direction of a device, asks before it moves data: its own limits, and those of a group that it is in.
/// Owned by one thread.
///
/// It has one operation under way at a time: [`Limiter::check`] reserves it, [`Limiter::charge`] says what it came to.
#[derive(Debug)]
pub struct Limiter {
    own: Member,
    group: Option<Member>,
}

impl Limiter {
    /// One with limits of its own.
    #[must_use]
    pub fn new(spec: &LimiterSpec, now_ns: u64) -> Self {
        Self::sharing(&Group::new(spec, now_ns), None)
    }

    /// One that shares what others call their own, too, and is in `group`.
    #[must_use]
    pub fn sharing(own: &Group, group: Option<&Group>) -> Self {
        Self { own: Member::new(own), group: group.map(Member::new) }
    }

    /// The same, in `group`.
    #[must_use]
    pub fn within(self, group: Option<&Group>) -> Self {
        Self { group: group.map(Member::new), ..self }
    }

    /// Puts other limits in place of its own, with full buckets.
    pub fn set(&mut self, spec: &LimiterSpec, now_ns: u64) {
        self.own.group().set(spec, now_ns);
    }

    /// Whether nothing is limited: then no clock needs reading. A load or two.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.members().all(|member| member.group().is_off())
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.own).chain(&self.group)
    }

    fn members_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        std::iter::once(&mut self.own).chain(&mut self.group)
    }

    /// Takes one operation of `bytes`.
    ///
    /// # Errors
    /// As [`Limiter::check`].
    pub fn consume(&mut self, now_ns: u64, bytes: u64) -> Result<(), Duration> {
        self.check(now_ns, bytes)?;
        self.charge(bytes);
        Ok(())
    }

    /// Whether one operation of `bytes` may be done now. It is reserved, now or for later; asking again reserves no other.
    ///
    /// # Errors
    /// How long to wait before asking again.
    pub fn check(&mut self, now_ns: u64, bytes: u64) -> Result<(), Duration> {
        // All of them are asked, whatever the first says: the waits then go by at the same time.
        let waits = self.members_mut().filter_map(|member| member.reserve(now_ns, bytes).err());
        match waits.max() {
            Some(wait) => Err(wait),
            None => Ok(()),
        }
    }

    /// The same, by the clock, which is read only if something is limited.
    ///
    /// # Errors
    /// As [`Limiter::check`].
    pub fn check_now(&mut self, bytes: u64) -> Result<(), Duration> {
        if self.is_off() { Ok(()) } else { self.check(monotonic_ns(), bytes) }
    }

    /// One operation of `bytes` was done, be it what was reserved, or more, or less, or was not asked for.
    pub fn charge(&mut self, bytes: u64) {
        self.members_mut().for_each(|member| member.settle(bytes));
    }

    /// What is reserved will not be done, for there is nothing to do: others may have it.
    pub fn release(&mut self) {
        self.members_mut().for_each(Member::release);
    }

    /// Takes `bytes` and no operation, going into debt if need be: what one that was done cost beside.
    pub fn charge_bytes(&mut self, bytes: u64) {
        self.members_mut().for_each(|member| member.charge_bytes(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn per_second(size: u64) -> Option<BucketSpec> {
        Some(BucketSpec { size, one_time_burst: 0, refill_time_ms: 1000 })
    }

    #[test]
    fn an_operation_waits_for_the_bucket_that_takes_longer() {
        let mut limiter = Limiter::new(&LimiterSpec { bytes: per_second(100), ops: per_second(1) }, 0);
        assert_eq!(limiter.consume(0, 50), Ok(()));
        assert_eq!(limiter.consume(0, 100), Err(Duration::from_secs(1)));
        assert_eq!(limiter.consume(SECOND / 2, 100), Err(Duration::from_millis(500)));
        assert_eq!(limiter.consume(SECOND, 100), Ok(()));
    }

    #[test]
    fn what_was_reserved_is_taken_once_and_corrected_by_what_it_came_to() {
        let mut limiter = Limiter::new(&LimiterSpec { bytes: per_second(100), ops: per_second(3) }, 0);
        for _ in 0..5 {
            assert_eq!(limiter.check(0, 60), Ok(()), "the same one");
        }
        limiter.charge(10);
        assert_eq!(limiter.check(0, 60), Ok(()));
        limiter.charge(90);
        assert_eq!(limiter.consume(0, 0), Ok(()));
        assert_eq!(limiter.consume(0, 0), Err(Duration::from_nanos(SECOND / 3 + 1)));
    }

    #[test]
    fn what_is_released_can_be_taken_by_others() {
        let group = Group::new(&LimiterSpec { bytes: None, ops: per_second(1) }, 0);
        let [mut one, mut other] =
            [(); 2].map(|()| Limiter::new(&LimiterSpec::default(), 0).within(Some(&group)));
        assert_eq!(one.check(0, 1), Ok(()));
        one.release();
        one.release();
        assert_eq!(other.consume(0, 1), Ok(()));
        assert!(one.check(0, 1).is_err());
    }

    #[test]
    fn limits_that_are_replaced_forget_debts_and_reservations() {
        let mut limiter = Limiter::new(&LimiterSpec { bytes: per_second(10), ops: None }, 0);
        assert_eq!(limiter.consume(0, 1_000_000), Ok(()));
        assert!(limiter.consume(0, 1).is_err());
        limiter.set(&LimiterSpec { bytes: per_second(20), ops: None }, 0);
        assert_eq!(limiter.consume(0, 20), Ok(()));
        assert!(limiter.consume(0, 1).is_err());
        limiter.set(&LimiterSpec::default(), 0);
        assert!(limiter.is_off());
        assert_eq!(limiter.consume(0, u64::MAX), Ok(()));
    }

    #[test]
    fn one_in_a_group_waits_for_both() {
        let group = Group::new(&LimiterSpec { bytes: per_second(100), ops: None }, 0);
        let mut limiter =
            Limiter::new(&LimiterSpec { bytes: None, ops: per_second(1) }, 0).within(Some(&group));
        assert_eq!(limiter.consume(0, 100), Ok(()));
        assert_eq!(limiter.consume(0, 50), Err(Duration::from_secs(1)));
        assert_eq!(limiter.consume(SECOND, 50), Ok(()), "half a second of the group's went by meanwhile");
        group.set(&LimiterSpec::default(), 0);
        assert!(!limiter.is_off());
        limiter.set(&LimiterSpec::default(), 0);
        assert!(limiter.is_off());
    }
}
