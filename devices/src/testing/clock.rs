//! A clock that stands still until it is moved.

use std::time::Duration;

use crate::clock::fake::NOW_NS;

/// While it lives, [`monotonic_ns`](crate::clock::monotonic_ns) is what it says, on the thread that made it. One at a time.
#[derive(Debug)]
pub struct FakeClock(());

impl FakeClock {
    /// A clock at `now_ns`.
    #[must_use]
    pub fn at(now_ns: u64) -> Self {
        NOW_NS.set(Some(now_ns));
        Self(())
    }

    /// What it says.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        NOW_NS.get().unwrap_or_default()
    }

    /// Moves it on.
    pub fn advance(&self, by: Duration) {
        advance(by);
    }
}

/// Moves the clock of this thread on, if a test has taken it over: for what takes time without knowing whose.
pub fn advance(by: Duration) {
    let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    NOW_NS.set(NOW_NS.get().map(|now| now.saturating_add(by)));
}

impl Drop for FakeClock {
    fn drop(&mut self) {
        NOW_NS.set(None);
    }
}
