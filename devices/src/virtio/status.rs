//! The device status machine (virtio 1.2 §2.1, §3.1.1) as a pure function: every transport asks it.
//!
//! ```text
//!   0 ── ACKNOWLEDGE ── DRIVER ──(features acceptable)── FEATURES_OK ──(queues set up)── DRIVER_OK
//!        each step needs the one before it; several may come in one write; a write of 0 leads back to 0 from anywhere
//!   FAILED             set by the driver at any time: nothing but a reset is heard afterwards
//!   DEVICE_NEEDS_RESET set by the device, or by a write that takes a bit back: the same
//! ```

use super::spec::feature::VERSION_1;
use super::spec::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};

/// The bits that a driver sets; DEVICE_NEEDS_RESET is the device's, and ignored in what a driver writes.
const DRIVERS: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
/// Each bit needs the ones before it.
const LADDER: [u8; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// What a write to the status register leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing changes.
    Keep,
    /// These bits are added.
    Add(u8),
    /// These bits are added, DRIVER_OK among them: the device starts.
    Start(u8),
    /// The driver took a bit back, which it must not (§2.1.1): DEVICE_NEEDS_RESET.
    Break,
    /// The driver resets the device.
    Reset,
}

/// What follows when a driver writes `written` to a register that holds `current`. `acceptable` says whether its features
/// are, see [`acceptable`].
#[must_use]
pub fn write(current: u8, written: u8, acceptable: bool) -> Step {
    if written == 0 {
        return Step::Reset;
    }
    if current & (FAILED | DEVICE_NEEDS_RESET) != 0 {
        return Step::Keep;
    }
    if current & DRIVERS & !written != 0 {
        return Step::Break;
    }
    if written & FAILED != 0 {
        return Step::Add(FAILED);
    }
    let mut next = current;
    for bit in LADDER {
        let refused = bit == FEATURES_OK && current & FEATURES_OK == 0 && !acceptable;
        if written & bit == 0 || refused {
            break;
        }
        next |= bit;
    }
    match next & !current {
        0 => Step::Keep,
        added if added & DRIVER_OK != 0 => Step::Start(added),
        added => Step::Add(added),
    }
}

/// Whether a driver that wants `wanted` of `offered` may have it: nothing else, and VIRTIO_F_VERSION_1 (§2.2.2, §6.2).
#[must_use]
pub fn acceptable(offered: u64, wanted: u64) -> bool {
    wanted & !offered == 0 && wanted & VERSION_1 != 0
}

/// Whether the driver may still change the features it wants: until FEATURES_OK (§3.1.1).
#[must_use]
pub fn features_open(status: u8) -> bool {
    status & (FEATURES_OK | FAILED | DEVICE_NEEDS_RESET) == 0
}

/// Whether the driver may set up queues: between FEATURES_OK and DRIVER_OK (§3.1.1).
#[must_use]
pub fn queues_open(status: u8) -> bool {
    status & (FEATURES_OK | DRIVER_OK | FAILED | DEVICE_NEEDS_RESET) == FEATURES_OK
}

/// Whether the device serves: DRIVER_OK, and nobody gave up.
#[must_use]
pub fn serving(status: u8) -> bool {
    status & (DRIVER_OK | FAILED | DEVICE_NEEDS_RESET) == DRIVER_OK
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The register after `step`.
    fn apply(current: u8, step: Step) -> u8 {
        match step {
            Step::Keep => current,
            Step::Add(bits) | Step::Start(bits) => current | bits,
            Step::Break => current | DEVICE_NEEDS_RESET,
            Step::Reset => 0,
        }
    }

    #[test]
    fn the_initialisation_of_the_standard_leads_to_a_start() {
        let mut status = 0;
        let steps = [
            (ACKNOWLEDGE, Step::Add(ACKNOWLEDGE)),
            (3, Step::Add(DRIVER)),
            (11, Step::Add(FEATURES_OK)),
            (15, Step::Start(DRIVER_OK)),
            (15, Step::Keep),
            (0, Step::Reset),
        ];
        for (written, expected) in steps {
            let step = write(status, written, true);
            assert_eq!(step, expected, "writing {written} to {status}");
            status = apply(status, step);
        }
        assert_eq!(status, 0);
    }

    #[test]
    fn features_that_are_not_acceptable_leave_features_ok_clear() {
        assert_eq!(write(3, 11, false), Step::Keep);
        assert_eq!(write(3, 15, false), Step::Keep);
        assert_eq!(write(11, 15, false), Step::Start(DRIVER_OK));
    }

    #[test]
    fn a_bit_taken_back_breaks_the_device() {
        assert_eq!(write(15, 11, true), Step::Break);
        assert_eq!(write(11, 3, true), Step::Break);
    }

    #[test]
    fn acceptable_features_are_offered_ones_with_version_1() {
        assert!(acceptable(VERSION_1 | 6, VERSION_1 | 2));
        assert!(!acceptable(VERSION_1 | 6, 2));
        assert!(!acceptable(VERSION_1 | 6, VERSION_1 | 1));
        assert!(!acceptable(6, VERSION_1 | 2));
    }

    proptest! {
        #[test]
        fn after_any_writes_each_bit_stands_on_the_one_before(writes: Vec<(u8, bool)>) {
            let mut status = 0;
            for (written, acceptable) in writes {
                let step = write(status, written, acceptable);
                let next = apply(status, step);
                let held = LADDER.iter().take_while(|bit| next & **bit != 0).fold(0, |all, bit| all | bit);
                prop_assert_eq!(next & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK), held);
                prop_assert_eq!(next & !(DRIVERS | DEVICE_NEEDS_RESET), 0);
                prop_assert!(next & status == status || step == Step::Reset);
                prop_assert_eq!(step == Step::Reset, written == 0);
                let starts = next & DRIVER_OK != 0 && status & DRIVER_OK == 0;
                prop_assert_eq!(starts, matches!(step, Step::Start(_)));
                status = next;
            }
        }

        #[test]
        fn nothing_but_a_reset_is_heard_after_a_failure(current: u8, written in 1u8.., acceptable: bool) {
            for given_up in [FAILED, DEVICE_NEEDS_RESET] {
                let current = current | given_up;
                prop_assert_eq!(write(current, written, acceptable), Step::Keep);
                prop_assert!(!features_open(current) && !queues_open(current) && !serving(current));
            }
        }

        #[test]
        fn a_status_allows_one_kind_of_setting_up_at_most(status: u8) {
            let open = [features_open(status), queues_open(status), serving(status)];
            prop_assert!(open.iter().filter(|open| **open).count() <= 1 || status & FEATURES_OK == 0);
        }
    }
}
