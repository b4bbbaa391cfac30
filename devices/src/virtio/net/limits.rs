//! The rate limit of one direction, as a pair sees it: its own if the card has one pair, one that all pairs share otherwise.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::monotonic_ns;
use crate::limiter::{Group, Limiter, LimiterSpec};

/// A limit that several threads draw on. Where nothing is limited, asking costs a load.
pub(super) struct Common {
    on: AtomicBool,
    /// There are limits that other devices draw on, too, which may come and go.
    in_group: bool,
    limiter: Mutex<Limiter>,
}

impl Common {
    pub(super) fn new(spec: &LimiterSpec, group: Option<&Group>) -> Arc<Self> {
        let limiter = Limiter::new(spec, monotonic_ns()).within(group);
        let in_group = group.is_some();
        let on = AtomicBool::new(in_group || !limiter.is_off());
        Arc::new(Self { on, in_group, limiter: Mutex::new(limiter) })
    }

    /// Puts another limit in place, with full buckets.
    pub(super) fn set(&self, spec: &LimiterSpec) {
        let mut limiter = self.lock();
        limiter.set(spec, monotonic_ns());
        self.on.store(self.in_group || !limiter.is_off(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn if_on(&self) -> Option<MutexGuard<'_, Limiter>> {
        self.on.load(Ordering::Acquire).then(|| self.lock())
    }
}

/// What a pair asks before it moves a frame, and tells afterwards.
pub(super) enum Limit {
    /// Nobody else's: no lock.
    Own(Limiter),
    /// All pairs'.
    Common(Arc<Common>),
}

impl Limit {
    /// Whether a frame of `bytes` may pass now. Several pairs that ask at once may each be let through: they leave a debt of at
    /// most a frame each, which the next ones wait for.
    ///
    /// # Errors
    /// How long to wait before asking again.
    pub(super) fn check(&mut self, bytes: u64) -> Result<(), Duration> {
        match self {
            Self::Own(limiter) if limiter.is_off() => Ok(()),
            Self::Own(limiter) => limiter.check(monotonic_ns(), bytes),
            Self::Common(common) => {
                common.if_on().map_or(Ok(()), |mut limiter| limiter.check(monotonic_ns(), bytes))
            }
        }
    }

    /// A frame of `bytes` passed.
    pub(super) fn charge(&mut self, bytes: u64) {
        match self {
            Self::Own(limiter) => limiter.charge(bytes),
            Self::Common(common) => {
                if let Some(mut limiter) = common.if_on() {
                    limiter.charge(bytes);
                }
            }
        }
    }

    /// Nothing came: what was taken from a group for it goes back.
    pub(super) fn release(&mut self) {
        match self {
            Self::Own(limiter) => limiter.release(),
            Self::Common(common) => {
                if let Some(mut limiter) = common.if_on() {
                    limiter.release();
                }
            }
        }
    }

    /// Puts another limit in place, with full buckets, if it is this pair's own.
    pub(super) fn set_own(&mut self, spec: &LimiterSpec) {
        if let Self::Own(limiter) = self {
            limiter.set(spec, monotonic_ns());
        }
    }
}
