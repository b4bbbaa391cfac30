//! The rate limits that a disk's queues share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::monotonic_ns;
use crate::limiter::{Limiter, LimiterSpec};

/// One set of buckets for all queues. Where nothing is limited, asking costs a load.
pub(super) struct Limits {
    on: AtomicBool,
    limiter: Mutex<Limiter>,
}

impl Limits {
    pub(super) fn new(spec: &LimiterSpec) -> Self {
        let limiter = Limiter::new(spec, monotonic_ns());
        Self { on: AtomicBool::new(!limiter.is_off()), limiter: Mutex::new(limiter) }
    }

    fn limiter(&self) -> Option<MutexGuard<'_, Limiter>> {
        let on = self.on.load(Ordering::Acquire);
        on.then(|| self.limiter.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts other limits in place, with full buckets.
    pub(super) fn set(&self, spec: &LimiterSpec) {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        *limiter = Limiter::new(spec, monotonic_ns());
        self.on.store(!limiter.is_off(), Ordering::Release);
    }

    /// Whether anything is limited.
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Takes one operation of `bytes`.
    ///
    /// # Errors
    /// How long to wait before trying again; nothing was taken.
    pub(super) fn consume(&self, bytes: u64) -> Result<(), Duration> {
        self.limiter().map_or(Ok(()), |mut limiter| limiter.consume(monotonic_ns(), bytes))
    }

    /// Takes `bytes` that an admitted operation turned out to cost beside its own.
    pub(super) fn charge_bytes(&self, bytes: u64) {
        if let Some(mut limiter) = self.limiter().filter(|_| bytes > 0) {
            limiter.charge_bytes(bytes);
        }
    }
}
