//! What devices counted that are no more: sums only ever grow, whatever comes and goes.

use std::sync::Mutex;

use super::{MetricKind, MetricSource, Reading, lock};

/// Counters of all removed devices of one family together, in the order of the first one.
#[derive(Debug, Default)]
pub(super) struct Retired(Mutex<Vec<(&'static str, u64)>>);

impl Retired {
    /// Takes up what a device has counted. Gauges end with it.
    pub(super) fn add(&self, source: &dyn MetricSource) {
        let mut sums = lock(&self.0);
        source.read(&mut |reading| {
            if reading.kind != MetricKind::Counter {
                return;
            }
            match sums.iter_mut().find(|(name, _)| *name == reading.name) {
                Some((_, sum)) => *sum = sum.saturating_add(reading.value),
                None => sums.push((reading.name, reading.value)),
            }
        });
    }
}

impl MetricSource for Retired {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        for &(name, value) in lock(&self.0).iter() {
            each(Reading { name, kind: MetricKind::Counter, value });
        }
    }
}
