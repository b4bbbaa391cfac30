//! The rate limits that a disk's queues share, and those that the disk shares with other devices.

use std::time::Duration;

use crate::clock::monotonic_ns;
use crate::limiter::{Group, Limiter, LimiterSpec};

/// One set of buckets for all queues, beside that of a group of devices. Where nothing is limited, asking costs a load or two.
pub(super) struct Limits {
    own: Group,
    group: Option<Group>,
}

impl Limits {
    pub(super) fn new(spec: &LimiterSpec, group: Option<&Group>) -> Self {
        Self { own: Group::new(spec, monotonic_ns()), group: group.cloned() }
    }

    /// Puts other limits in place of the disk's own, with full buckets.
    pub(super) fn set(&self, spec: &LimiterSpec) {
        self.own.set(spec, monotonic_ns());
    }

    /// What one of the queues asks before it serves a request.
    pub(super) fn gate(&self) -> Gate {
        Gate(Limiter::sharing(&self.own, self.group.as_ref()))
    }
}

/// One queue's way past the limits.
pub(super) struct Gate(Limiter);

impl Gate {
    /// Whether anything is limited.
    pub(super) fn is_on(&self) -> bool {
        !self.0.is_off()
    }

    /// Takes one operation of `bytes`.
    ///
    /// # Errors
    /// How long to wait before trying again. Its tokens are put aside for then.
    pub(super) fn consume(&mut self, bytes: u64) -> Result<(), Duration> {
        self.0.consume(monotonic_ns(), bytes)
    }

    /// Takes `bytes` that an admitted operation turned out to cost beside its own.
    pub(super) fn charge_bytes(&mut self, bytes: u64) {
        self.0.charge_bytes(bytes);
    }
}
