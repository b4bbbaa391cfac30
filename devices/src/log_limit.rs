//! A bound on what a guest can make the host write to its log.

use crate::clock::monotonic_ns;
use crate::limiter::{BucketSpec, TokenBucket};

/// Lines one device may log in a burst, and again over each [`PERIOD_MS`]: enough to diagnose, too few to fill a disk.
const LINES: u64 = 10;
/// See [`LINES`].
const PERIOD_MS: u64 = 5_000;

/// Says whether a device may log one more line now.
#[derive(Debug)]
pub struct LogLimit {
    bucket: Option<TokenBucket>,
    muted: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        let spec = BucketSpec { size: LINES, one_time_burst: 0, refill_time_ms: PERIOD_MS };
        Self { bucket: TokenBucket::new(&spec, monotonic_ns()), muted: 0 }
    }
}

impl LogLimit {
    /// `Some(n)` if a line may be logged: `n` lines were left out since the last one.
    pub fn admit(&mut self) -> Option<u64> {
        let Some(bucket) = &mut self.bucket else { return Some(0) };
        if bucket.consume(monotonic_ns(), 1).is_ok() {
            return Some(std::mem::take(&mut self.muted));
        }
        self.muted += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_after_the_first_ten() {
        let mut limit = LogLimit::default();
        assert_eq!((0..1000).filter(|_| limit.admit().is_some()).count(), 10);
        assert_eq!(limit.muted, 990);
    }
}
