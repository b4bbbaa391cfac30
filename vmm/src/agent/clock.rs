//! Time, three kinds of it: what people read, what never goes back, and which boot it belongs to.

use std::fs;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::utc::Utc;

/// The present by the clock on the wall, which somebody may set to any time. A build with debug assertions takes it for
/// `$YUND_CLOCK_BEHIND` seconds earlier: so tests set it back without setting the host's.
#[must_use]
pub fn wall() -> Utc {
    #[cfg(debug_assertions)]
    if let Some(behind) = std::env::var("YUND_CLOCK_BEHIND").ok().and_then(|text| text.parse::<u64>().ok()) {
        return Utc::from_nanos((Utc::now().as_millis() - behind * 1000) * 1_000_000);
    }
    Utc::now()
}

/// The present by [`wall`], as RFC 3339 with milliseconds.
#[must_use]
pub fn now() -> String {
    wall().to_rfc_3339()
}

/// Time since the host's boot, suspended or not: it never goes back.
#[must_use]
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux since 2.6.39 has it").into()
}

/// Which boot of the host this is.
///
/// # Errors
/// If /proc does not say.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_present_is_rfc_3339_and_boot_time_goes_on() {
        let text = now();
        assert_eq!((text.len(), &text[10..11], &text[23..]), (24, "T", "Z"), "{text}");
        let before = since_boot();
        assert!(since_boot() >= before && before > Duration::ZERO);
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
