//! The one clock of the devices: monotonic nanoseconds.

use std::sync::OnceLock;
use std::time::Instant;

/// Nanoseconds since the first call in this process; never goes back.
#[must_use]
pub fn monotonic_ns() -> u64 {
    #[cfg(feature = "testing")]
    if let Some(now) = fake::NOW_NS.get() {
        return now;
    }
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The clock of a thread that a test has taken over.
#[cfg(feature = "testing")]
pub(crate) mod fake {
    use std::cell::Cell;

    thread_local! {
        pub static NOW_NS: Cell<Option<u64>> = const { Cell::new(None) };
    }
}
