//! Interrupts that nobody takes, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::irq::{Interrupt, Line};

/// Counts what a device raised.
#[derive(Debug, Default)]
pub struct CountingIrq {
    queues: [AtomicU64; 32],
    config: AtomicU64,
    needs_reset: AtomicU64,
}

impl CountingIrq {
    /// Nothing raised yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Used-buffer interrupts of all queues.
    #[must_use]
    pub fn raised(&self) -> u64 {
        self.queues.iter().map(|count| count.load(Ordering::SeqCst)).sum()
    }

    /// Used-buffer interrupts of queue `index`.
    ///
    /// # Panics
    /// From the 33rd queue on.
    #[must_use]
    pub fn raised_on(&self, index: u16) -> u64 {
        self.queues[usize::from(index)].load(Ordering::SeqCst)
    }

    /// Configuration change interrupts.
    #[must_use]
    pub fn config_changes(&self) -> u64 {
        self.config.load(Ordering::SeqCst)
    }

    /// Times the device asked to be reset.
    #[must_use]
    pub fn resets_asked(&self) -> u64 {
        self.needs_reset.load(Ordering::SeqCst)
    }
}

impl Interrupt for CountingIrq {
    fn queue(&self, index: u16) {
        self.queues[usize::from(index)].fetch_add(1, Ordering::SeqCst);
    }

    fn config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.needs_reset.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts the edges of a [`Line`].
#[derive(Debug, Default)]
pub struct CountingLine(AtomicU64);

impl CountingLine {
    /// No edge yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Edges so far.
    #[must_use]
    pub fn edges(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Line for CountingLine {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
