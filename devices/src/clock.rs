//! The one clock of the devices: monotonic nanoseconds.

use std::sync::OnceLock;
use std::time::Instant;

/// Nanoseconds since the first call in this process; never goes back.
#[must_use]
pub fn monotonic_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}
