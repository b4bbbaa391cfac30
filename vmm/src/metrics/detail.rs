//! What there is to say of a part of whoever counts, and of how long things took.

use std::fmt;

use devices::metrics::Tally;

use super::MetricSource;

/// What a figure is about, beside the id of whoever counts: `("queue", "0")`, `("op", "read")`. The value needs no escaping.
pub type Label = (&'static str, String);

/// A figure about a part of whoever counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detail {
    /// Its name within the group, as that of a [`Reading`](super::Reading); of a time without its unit, which is added.
    pub name: &'static str,
    /// Which part.
    pub label: Label,
    /// The figure.
    pub figure: Figure,
}

/// What a [`Detail`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Figure {
    /// A counter.
    Count(u64),
    /// How long things took.
    Time {
        /// All of it.
        tally: Box<Tally>,
        /// What Firecracker's line calls the least, the most and the sum of it, if it has them.
        aggregate: Option<&'static str>,
    },
}

impl Figure {
    /// Adds another of the same kind.
    pub(super) fn add(&mut self, other: &Self) {
        match (self, other) {
            (Self::Count(sum), Self::Count(more)) => *sum = sum.saturating_add(*more),
            (Self::Time { tally, .. }, Self::Time { tally: more, .. }) => **tally = tally.and(more),
            (Self::Count(_) | Self::Time { .. }, _) => debug_assert!(false, "one name is one kind of figure"),
        }
    }
}

/// A time as Firecracker's line has it, in microseconds. The least and the most are those since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Aggregate {
    pub min_us: u64,
    pub max_us: u64,
    pub sum_us: u64,
}

impl From<&Tally> for Aggregate {
    fn from(tally: &Tally) -> Self {
        Self { min_us: tally.min_ns / 1000, max_us: tally.max_ns / 1000, sum_us: tally.sum_ns / 1000 }
    }
}

impl Aggregate {
    /// Takes up another. Of one that is nothing yet, the least is not 0.
    pub(super) fn add(&mut self, other: &Self) {
        self.min_us = match (self.min_us, other.min_us) {
            (0, other) => other,
            (own, 0) => own,
            (own, other) => own.min(other),
        };
        self.max_us = self.max_us.max(other.max_us);
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min_us, max_us, sum_us } = self;
        write!(f, "{{\"min_us\":{min_us},\"max_us\":{max_us},\"sum_us\":{sum_us}}}")
    }
}

/// Hands what Firecracker's line has of `source`'s times to `each`.
pub(super) fn aggregates(source: &dyn MetricSource, each: &mut dyn FnMut(&'static str, Aggregate)) {
    source.details(&mut |detail| {
        if let Figure::Time { tally, aggregate: Some(name) } = detail.figure {
            each(name, Aggregate::from(&*tally));
        }
    });
}
