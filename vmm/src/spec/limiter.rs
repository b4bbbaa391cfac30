//! Rate limits: token buckets, and how a `PATCH` changes them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A budget of tokens (bytes or operations) that refills continuously.
///
/// Fields not known here are ignored, as Firecracker ignores them. A `size` or `refill_time` of 0 means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenBucket {
    /// Tokens the bucket holds.
    pub size: u64,
    /// Tokens that may be spent once, on top of the first bucketful.
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills up.
    pub refill_time: u64,
}

impl TokenBucket {
    /// Whether the bucket limits anything.
    pub fn limits(&self) -> bool {
        self.size != 0 && self.refill_time != 0
    }

    /// The bucket as it works: nothing if it limits nothing, and no burst instead of a burst of 0.
    fn effective(self) -> Option<Self> {
        self.limits()
            .then(|| Self { one_time_burst: self.one_time_burst.filter(|burst| *burst != 0), ..self })
    }
}

/// Limits on bytes and on operations; either may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Limit on bytes.
    pub bandwidth: Option<TokenBucket>,
    /// Limit on operations.
    pub ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// The limiter as it works: without buckets that limit nothing; `None` if no bucket is left.
    pub fn effective(self) -> Option<Self> {
        let limiter = Self {
            bandwidth: self.bandwidth.and_then(TokenBucket::effective),
            ops: self.ops.and_then(TokenBucket::effective),
        };
        (limiter != Self::default()).then_some(limiter)
    }

    /// What `current` becomes under a `PATCH` with `change`: a bucket that is missing stays as it is, one that limits
    /// nothing takes the limit away, any other replaces it.
    pub fn merge(current: Option<Self>, change: Option<Self>) -> Option<Self> {
        let (current, change) = (current.unwrap_or_default(), change.unwrap_or_default());
        Self { bandwidth: change.bandwidth.or(current.bandwidth), ops: change.ops.or(current.ops) }
            .effective()
    }
}

/// New limits for a device that has one limiter: the random number device, the socket device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterPatch {
    /// A bucket that is missing stays as it is, one of zeros takes the limit away.
    pub rate_limiter: RateLimiter,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(size: u64) -> Option<TokenBucket> {
        Some(TokenBucket { size, one_time_burst: None, refill_time: 100 })
    }

    #[test]
    fn a_patch_replaces_the_bucket_it_names_and_leaves_the_other() {
        let current = Some(RateLimiter { bandwidth: bucket(1), ops: bucket(2) });
        let merged = RateLimiter::merge(current, Some(RateLimiter { bandwidth: None, ops: bucket(3) }));
        assert_eq!(merged, Some(RateLimiter { bandwidth: bucket(1), ops: bucket(3) }));
        assert_eq!(RateLimiter::merge(current, None), current);
        assert_eq!(RateLimiter::merge(None, current), current);
    }

    #[test]
    fn a_bucket_of_zeros_takes_the_limit_away() {
        let current = Some(RateLimiter { bandwidth: bucket(1), ops: None });
        let off = RateLimiter { bandwidth: Some(TokenBucket::default()), ops: None };
        assert_eq!(RateLimiter::merge(current, Some(off)), None);
        assert_eq!(off.effective(), None);
    }

    #[test]
    fn a_burst_of_zero_is_no_burst() {
        let limiter = RateLimiter {
            bandwidth: Some(TokenBucket { size: 1, one_time_burst: Some(0), refill_time: 1 }),
            ops: None,
        };
        assert_eq!(limiter.effective().unwrap().bandwidth.unwrap().one_time_burst, None);
    }

    #[test]
    fn unknown_fields_are_refused_in_a_limiter_and_ignored_in_a_bucket() {
        assert!(serde_json::from_str::<TokenBucket>(r#"{"size":1,"refill_time":1,"x":1}"#).is_ok());
        assert!(serde_json::from_str::<RateLimiter>(r#"{"bytes":{"size":1,"refill_time":1}}"#).is_err());
        assert!(serde_json::from_str::<TokenBucket>(r#"{"size":1}"#).is_err());
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(a: (u64, u64), b: (u64, u64), has: (bool, bool, bool, bool)) {
            let make = |v: u64, some: bool| some.then_some(TokenBucket { size: v % 3, one_time_burst: None, refill_time: 7 });
            let current = Some(RateLimiter { bandwidth: make(a.0, has.0), ops: make(a.1, has.1) });
            let change = Some(RateLimiter { bandwidth: make(b.0, has.2), ops: make(b.1, has.3) });
            let once = RateLimiter::merge(current, change);
            prop_assert_eq!(RateLimiter::merge(once, change), once);
        }
    }
}
