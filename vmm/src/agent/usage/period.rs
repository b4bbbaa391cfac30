//! From one sample to the next record. Pure: the caller reads clocks and counters, and stores what comes out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::counters::Counters;
use super::meter::Meter;

/// How far the wall clock may run from the other one within a period before the record says so, in nanoseconds. Slewing by
/// NTP stays below it for any period shorter than half an hour.
const WALL_TOLERANCE_NS: u64 = 1_000_000_000;

/// A point in time, by all clocks at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instant {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// `CLOCK_BOOTTIME`, in nanoseconds.
    pub boottime_ns: u64,
    /// `CLOCK_REALTIME`: nanoseconds since 1970.
    pub wall_ns: u64,
}

/// Whose usage it is, under names that stay what they were when the incarnation began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Owner {
    /// The tenant's name.
    pub tenant: String,
    /// The tenant's id, which no other tenant ever gets: a name may.
    #[serde(default)]
    pub tenant_id: String,
    /// The VM's name.
    pub vm: String,
    /// The VM's id, which no other VM ever gets.
    #[serde(default)]
    pub vm_id: String,
}

/// What was read of an incarnation at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Which incarnation.
    pub incarnation: String,
    /// When.
    pub at: Instant,
    /// Totals since the incarnation began. What could not be read is left out, and counted by a later record.
    pub counters: Counters,
    /// Whether it is the last one: the incarnation has ended.
    pub is_last: bool,
}

/// What the last record of an incarnation reached. Stored together with that record, or before the first one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which incarnation.
    pub incarnation: String,
    /// Whose it is.
    pub owner: Owner,
    /// The number of the next record.
    pub next_seq: u64,
    /// When the last sample was taken.
    pub at: Instant,
    /// Where the last record ended, and the next begins: nanoseconds since 1970. Later than the wall clock, if that was set
    /// back.
    pub end_ns: u64,
    /// What is in records so far.
    #[serde(default)]
    pub totals: Counters,
    /// Whether nothing will be added.
    #[serde(default)]
    pub is_closed: bool,
}

/// What the wall clock did within a period, against the other one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClockState {
    /// It went on.
    #[default]
    Steady,
    /// It was set back: the period looks shorter than it was.
    SetBack,
    /// It was set forward: the period looks longer than it was.
    SetForward,
    /// The host was restarted: the incarnation ended at its last sample or later, which nobody saw.
    Rebooted,
}

/// What was used within a period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Record {
    /// `<incarnation>-<seq>`: who has a record with this id has this record.
    pub id: String,
    /// Which incarnation.
    pub incarnation: String,
    /// Its number within the incarnation; the first is 0, and none is left out.
    pub seq: u64,
    /// Whose it is.
    pub owner: Owner,
    /// When it begins: where the record before it ended. Nanoseconds since 1970.
    pub start_ns: u64,
    /// When it ends; not before it begins. Nanoseconds since 1970.
    pub end_ns: u64,
    /// How long it was, by `CLOCK_BOOTTIME`, in nanoseconds.
    #[serde(default)]
    pub duration_ns: u64,
    /// What the wall clock did.
    #[serde(default)]
    pub clock: ClockState,
    /// Whether it is the incarnation's last.
    #[serde(default)]
    pub is_last: bool,
    /// By how much each meter grew; those that did not are left out.
    #[serde(default)]
    pub used: Counters,
}

/// Why a sample makes no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    /// It is of another incarnation.
    #[error("the sample is of incarnation {got:?}, and {want:?} is metered")]
    OtherIncarnation {
        /// Its incarnation.
        got: String,
        /// The one of the position.
        want: String,
    },
    /// The incarnation has ended.
    #[error("incarnation {0:?} has ended: its last record was written")]
    Closed(String),
    /// A counter went back: two processes under one incarnation, or a counter that is not cumulative.
    #[error("{meter} of incarnation {incarnation:?} went back from {before} to {now}")]
    WentBack {
        /// Which incarnation.
        incarnation: String,
        /// Which meter.
        meter: Meter,
        /// What is in records.
        before: u128,
        /// What was read.
        now: u128,
    },
    /// `CLOCK_BOOTTIME` went back within a boot: the sample is older than the last one.
    #[error("the sample was taken {now} ns after boot, and the last one {before} ns: take it anew")]
    Older {
        /// Of the last sample.
        before: u64,
        /// Of this one.
        now: u64,
    },
    /// Counters were read after a reboot: no incarnation survives one.
    #[error("incarnation {0:?} has counters after a reboot of its host, which it can't have survived")]
    Survived(String),
    /// There are no more numbers.
    #[error("incarnation {0:?} has no number left for a record")]
    Exhausted(String),
}

/// What grows with time alone, as it was within a period: sizes. Take a sample whenever one changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Memory given, in MiB.
    pub mem_mib: u64,
    /// Sizes of volumes by id, in bytes.
    pub volume_bytes: BTreeMap<String, u64>,
}

impl Levels {
    /// Adds to `counters` the totals that follow from `position` if these sizes were held from its sample until `now`.
    /// After a reboot it adds nothing: until when they were held is not known.
    pub fn accrue(&self, position: &Position, now: &Instant, counters: &mut Counters) {
        if now.boot_id != position.at.boot_id {
            return;
        }
        let elapsed_ns = now.boottime_ns.saturating_sub(position.at.boottime_ns);
        let mut add = |meter: Meter, level: u64| {
            let before = position.totals.get(&meter).unwrap_or(0);
            let grown = u128::from(level) * u128::from(elapsed_ns);
            counters.set(meter, before.saturating_add(grown));
        };
        add(Meter::MemMibNs, self.mem_mib);
        for (volume, bytes) in &self.volume_bytes {
            add(Meter::VolumeByteNs(volume.clone()), *bytes);
        }
    }
}

impl Position {
    /// The beginning of an incarnation. Stored together with the process, before anything is counted.
    #[must_use]
    pub fn begin(incarnation: String, owner: Owner, at: Instant) -> Self {
        let (end_ns, totals) = (at.wall_ns, Counters::default());
        Self { incarnation, owner, next_seq: 0, at, end_ns, totals, is_closed: false }
    }
}

/// The record for the time from `position` to `sample`, and the position after it. Both have to be stored in one
/// transaction; if that fails or the agent is killed before, the same position and a later sample make up for it. The same
/// arguments give the same result.
///
/// # Errors
/// [`MeterError`]; the position stays good.
pub fn advance(position: &Position, sample: Sample) -> Result<(Record, Position), MeterError> {
    let incarnation = || position.incarnation.clone();
    if sample.incarnation != position.incarnation {
        return Err(MeterError::OtherIncarnation { got: sample.incarnation, want: incarnation() });
    }
    if position.is_closed {
        return Err(MeterError::Closed(incarnation()));
    }
    let seq = position.next_seq;
    let next_seq = seq.checked_add(1).ok_or_else(|| MeterError::Exhausted(incarnation()))?;
    let is_rebooted = sample.at.boot_id != position.at.boot_id;
    let span = if is_rebooted {
        if !sample.counters.is_empty() {
            return Err(MeterError::Survived(incarnation()));
        }
        Span { duration_ns: 0, end_ns: position.end_ns, clock: ClockState::Rebooted }
    } else {
        span(position, &sample.at)?
    };

    let (mut used, mut totals) = (Counters::default(), position.totals.clone());
    for (meter, now) in sample.counters.iter() {
        let before = totals.get(meter).unwrap_or(0);
        let Some(grown) = now.checked_sub(before) else {
            return Err(MeterError::WentBack {
                incarnation: incarnation(),
                meter: meter.clone(),
                before,
                now,
            });
        };
        if grown > 0 {
            used.set(meter.clone(), grown);
            totals.set(meter.clone(), now);
        }
    }

    let is_last = sample.is_last || is_rebooted;
    let Span { duration_ns, end_ns, clock } = span;
    let record = Record {
        id: format!("{}-{seq}", position.incarnation),
        incarnation: incarnation(),
        seq,
        owner: position.owner.clone(),
        start_ns: position.end_ns,
        end_ns,
        duration_ns,
        clock,
        is_last,
        used,
    };
    let (owner, at) = (position.owner.clone(), sample.at);
    let next =
        Position { incarnation: incarnation(), owner, next_seq, at, end_ns, totals, is_closed: is_last };
    Ok((record, next))
}

struct Span {
    duration_ns: u64,
    end_ns: u64,
    clock: ClockState,
}

/// How long a period within a boot was, and where it ends by the wall clock.
fn span(position: &Position, now: &Instant) -> Result<Span, MeterError> {
    let (before, now_ns) = (position.at.boottime_ns, now.boottime_ns);
    let duration_ns = now_ns.checked_sub(before).ok_or(MeterError::Older { before, now: now_ns })?;
    // Against the last sample's wall clock and not the last period's end: after a clamp, the clock is steady again.
    let wall = i128::from(now.wall_ns) - i128::from(position.at.wall_ns);
    let drift = wall - i128::from(duration_ns);
    let clock = if now.wall_ns < position.end_ns || drift < -i128::from(WALL_TOLERANCE_NS) {
        ClockState::SetBack
    } else if drift > i128::from(WALL_TOLERANCE_NS) {
        ClockState::SetForward
    } else {
        ClockState::Steady
    };
    Ok(Span { duration_ns, end_ns: position.end_ns.max(now.wall_ns), clock })
}

#[cfg(test)]
#[path = "period_tests.rs"]
mod tests;
