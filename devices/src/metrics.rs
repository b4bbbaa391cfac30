//! Counters that a device's thread writes and anybody reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows, written by one thread at a time.
///
/// The writer is the thread that owns the device (or holds its lock), so adding is a load and a store: no locked
/// instruction on the path of a request. Readers see some recent value.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only from the one thread that writes this counter.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds one. Only from the one thread that writes this counter.
    pub fn inc(&self) {
        self.add(1);
    }

    /// The count so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
