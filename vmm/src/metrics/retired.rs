//! What devices counted that are no more: sums only ever grow, whatever comes and goes.

use std::sync::Mutex;

use super::{Detail, MetricKind, MetricSource, Reading, lock};

/// Counters of all removed devices of one family together, in the order of the first one.
#[derive(Debug, Default)]
pub(super) struct Retired(Mutex<Sums>);

#[derive(Debug, Default)]
struct Sums {
    numbers: Vec<(&'static str, u64)>,
    details: Vec<Detail>,
}

impl Retired {
    /// Takes up what a device has counted. Gauges end with it.
    pub(super) fn add(&self, source: &dyn MetricSource) {
        let Sums { numbers, details } = &mut *lock(&self.0);
        source.read(&mut |reading| {
            if reading.kind != MetricKind::Counter {
                return;
            }
            match numbers.iter_mut().find(|(name, _)| *name == reading.name) {
                Some((_, sum)) => *sum = sum.saturating_add(reading.value),
                None => numbers.push((reading.name, reading.value)),
            }
        });
        source.details(&mut |more| match details
            .iter_mut()
            .find(|sum| sum.name == more.name && sum.label == more.label)
        {
            Some(sum) => sum.figure.add(&more.figure),
            None => details.push(more),
        });
    }
}

impl MetricSource for Retired {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        for &(name, value) in &lock(&self.0).numbers {
            each(Reading { name, kind: MetricKind::Counter, value });
        }
    }

    fn details(&self, each: &mut dyn FnMut(Detail)) {
        lock(&self.0).details.iter().cloned().for_each(each);
    }
}
