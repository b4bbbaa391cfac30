//! Looking at a queue until something comes or the time is up.

use crate::clock::monotonic_ns;

/// The shortest look that is worth its cost, in nanoseconds.
pub(super) const LOOK_MIN_NS: u64 = 2_000;
/// Looks at the queue between two at the clock.
pub(super) const LOOKS: u32 = 8;
/// Looks at the clock at most: if it stood still, this would not.
pub(super) const CLOCK_LOOKS: u32 = 10_000;

/// Looks from `begin` to `end`, as [`monotonic_ns`] says, whether there is `more`; and when that was known.
pub(super) fn look(begin_ns: u64, end_ns: u64, mut more: impl FnMut() -> bool) -> (bool, u64) {
    let mut now = begin_ns;
    for _ in 0..CLOCK_LOOKS {
        if now >= end_ns {
            break;
        }
        for _ in 0..LOOKS {
            if more() {
                return (true, monotonic_ns());
            }
            std::hint::spin_loop();
        }
        now = monotonic_ns();
    }
    (false, now)
}
