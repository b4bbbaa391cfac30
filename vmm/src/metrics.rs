//! Counters of the whole process: collected from those who count, written as Firecracker's JSON line, shown as
//! OpenMetrics text.
//!
//! Whoever counts keeps plain atomics and registers a [`MetricSource`] under a [`Group`]; nothing here is on a data
//! path. A *counter* only grows: the JSON line holds what was added since the line before (as Firecracker's does), the
//! OpenMetrics text holds the sum. A *gauge* is shown as it is, in both. A [`Detail`] is of a part of whoever counts, or a
//! histogram: OpenMetrics text has them whole, the JSON line has what Firecracker's knows of them.

mod detail;
mod retired;
mod sink;
mod text;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::output;
use crate::spec;
use crate::utc::Utc;
use detail::{Aggregate, aggregates};
pub use detail::{Detail, Figure, Label};
use retired::Retired;
use sink::Sink;

/// How a number behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It is what it is now.
    Gauge,
}

/// One number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Its name within the group: lower case letters, digits and underscores.
    pub name: &'static str,
    /// How it behaves.
    pub kind: MetricKind,
    /// What it is.
    pub value: u64,
}

/// Someone who counts.
pub trait MetricSource: Send + Sync {
    /// Hands every number to `each`, always the same names in the same order. Quick, and without waiting for anybody.
    fn read(&self, each: &mut dyn FnMut(Reading));

    /// Hands every detail to `each`, likewise.
    fn details(&self, _each: &mut dyn FnMut(Detail)) {}
}

/// Where numbers belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What kind of thing counts: `block`, `net`, `vcpu`, `get_api_requests`.
    pub family: &'static str,
    /// Which of them, if there can be several: the id of the drive.
    pub instance: Option<String>,
}

impl Group {
    /// The only one of its kind.
    pub fn single(family: &'static str) -> Self {
        Self { family, instance: None }
    }

    /// One of several. Its JSON key is `block_rootfs`; `block` holds the sum over all of the family.
    pub fn instance(family: &'static str, id: impl Into<String>) -> Self {
        Self { family, instance: Some(id.into()) }
    }
}

struct Entry {
    group: Group,
    source: Arc<dyn MetricSource>,
    /// The counters as the last JSON line had them, in the source's order.
    written: Vec<u64>,
    /// The sums of the aggregates likewise, in microseconds.
    written_us: Vec<u64>,
    /// The source, if it stands for those that have gone.
    retired: Option<Arc<Retired>>,
}

/// The instance that stands for all of a family that have gone: no device's id has a hyphen.
pub const REMOVED: &str = "removed-devices";

/// A plain counter, for those who have no other.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Sets it; for gauges.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why there is no file for JSON lines.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is one already.
    #[error("Reinitialization of metrics not allowed.")]
    Again,
    /// What the host said.
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// All metrics of the process.
#[derive(Default)]
pub struct Metrics {
    entries: Mutex<Vec<Entry>>,
    sink: Mutex<Option<Sink>>,
    missed: Count,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Metrics {
    /// No counters yet, and nowhere to write them.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Takes up who counts. A group that is known already is replaced.
    pub fn register(&self, group: Group, source: Arc<dyn MetricSource>) {
        let mut entries = lock(&self.entries);
        entries.retain(|entry| entry.group != group);
        entries.push(Entry { group, source, written: Vec::new(), written_us: Vec::new(), retired: None });
    }

    /// Drops one of several who count, which has gone. Its counters stay in the sums, as those of the instance
    /// [`REMOVED`], which stands for all of its family that have gone.
    pub fn retire(&self, family: &'static str, id: &str) {
        let mut entries = lock(&self.entries);
        let gone = Group::instance(family, id);
        let Some(at) = entries.iter().position(|entry| entry.group == gone) else { return };
        let gone = entries.remove(at);
        let group = Group::instance(family, REMOVED);
        let at = entries.iter().position(|entry| entry.group == group).unwrap_or_else(|| {
            let retired = Arc::new(Retired::default());
            entries.push(Entry {
                group,
                source: retired.clone(),
                written: Vec::new(),
                written_us: Vec::new(),
                retired: Some(retired),
            });
            entries.len() - 1
        });
        let entry = &mut entries[at];
        let Some(retired) = &entry.retired else { return };
        // What the last line had of it, this has had: in the source's order, without gauges.
        let mut written = gone.written.into_iter();
        let mut counters = 0;
        gone.source.read(&mut |reading| {
            let before = written.next().unwrap_or(0);
            if reading.kind == MetricKind::Counter {
                if entry.written.len() <= counters {
                    entry.written.push(0);
                }
                entry.written[counters] += before;
                counters += 1;
            }
        });
        retired.add(&*gone.source);
        if entry.written_us.len() < gone.written_us.len() {
            entry.written_us.resize(gone.written_us.len(), 0);
        }
        for (sum, before) in entry.written_us.iter_mut().zip(gone.written_us) {
            *sum += before;
        }
    }

    /// Opens the file that receives the JSON lines, and writes the first.
    ///
    /// # Errors
    /// [`OpenError`]; nothing has changed then.
    pub fn open(&self, spec: &spec::Metrics) -> Result<(), OpenError> {
        let mut sink = lock(&self.sink);
        if sink.is_some() {
            return Err(OpenError::Again);
        }
        let file = output::open_nonblocking(spec.metrics_path.as_ref())?;
        *sink = Some(Sink::new(file));
        drop(sink);
        let _ = self.flush(); // counted as missed if it fails
        Ok(())
    }

    /// Writes a JSON line, if there is a file. A reader that does not keep up misses lines, but no counts: what could
    /// not be written is part of the next line.
    ///
    /// # Errors
    /// What the host says; `WouldBlock` if a FIFO is full.
    pub fn flush(&self) -> io::Result<()> {
        let mut sink = lock(&self.sink);
        let Some(sink) = sink.as_mut() else { return Ok(()) };
        let mut entries = lock(&self.entries);
        let (line, seen) = self.json_line(&entries);
        if let Err(error) = sink.write_line(line) {
            self.missed.inc();
            return Err(error);
        }
        for (entry, seen) in entries.iter_mut().zip(seen) {
            (entry.written, entry.written_us) = seen;
        }
        Ok(())
    }

    /// The JSON line, and for each entry the counters and aggregated sums as it has them.
    fn json_line(&self, entries: &[Entry]) -> (String, Vec<Seen>) {
        let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
        let mut line = format!("{{\"utc_timestamp_ms\":{}", Utc::now().as_millis());
        let mut seen = Vec::with_capacity(entries.len());
        for entry in entries {
            let family = entry.group.family;
            let mut values = Vec::new();
            let mut sums_us = Vec::new();
            let key =
                entry.group.instance.as_ref().map_or(String::from(family), |id| format!("{family}_{id}"));
            let mut sums = entry.group.instance.is_some().then(|| sums.entry(family).or_default());
            object(&mut line, &key, |each| {
                entry.source.read(&mut |reading| {
                    let before = entry.written.get(values.len()).copied().unwrap_or(0);
                    values.push(reading.value);
                    let shown = match reading.kind {
                        MetricKind::Counter => reading.value.saturating_sub(before),
                        MetricKind::Gauge => reading.value,
                    };
                    each(reading.name, &shown);
                    if let Some(sums) = &mut sums {
                        let sum = sums.numbers.entry(reading.name).or_default();
                        *sum = sum.saturating_add(shown);
                    }
                });
                aggregates(&*entry.source, &mut |name, mut aggregate: Aggregate| {
                    let before = entry.written_us.get(sums_us.len()).copied().unwrap_or(0);
                    sums_us.push(aggregate.sum_us);
                    aggregate.sum_us = aggregate.sum_us.saturating_sub(before);
                    each(name, &aggregate);
                    if let Some(sums) = &mut sums {
                        sums.aggregates.entry(name).or_default().add(&aggregate);
                    }
                });
            });
            seen.push((values, sums_us));
        }
        for (family, sums) in sums {
            object(&mut line, family, |each| {
                sums.numbers.iter().for_each(|(name, value)| each(name, value));
                sums.aggregates.iter().for_each(|(name, aggregate)| each(name, aggregate));
            });
        }
        object(&mut line, "logger", |each| {
            each("missed_metrics_count", &self.missed.get());
            each("missed_log_count", &crate::logger::missed());
        });
        line.push_str("}\n");
        (line, seen)
    }

    /// All metrics as OpenMetrics text.
    pub fn openmetrics(&self) -> String {
        text::openmetrics(&lock(&self.entries), self.missed.get())
    }
}

/// What a line has of one entry: its readings, and the sums of its aggregates.
type Seen = (Vec<u64>, Vec<u64>);

/// What all of a family have counted since the last line.
#[derive(Default)]
struct Sums {
    numbers: BTreeMap<&'static str, u64>,
    aggregates: BTreeMap<&'static str, Aggregate>,
}

/// Appends `,"key":{...}` with what `fill` hands over.
fn object(line: &mut String, key: &str, fill: impl FnOnce(&mut dyn FnMut(&str, &dyn fmt::Display))) {
    let _ = write!(line, ",\"{key}\":{{");
    let mut comma = "";
    fill(&mut |name, value| {
        let _ = write!(line, "{comma}\"{name}\":{value}");
        comma = ",";
    });
    line.push('}');
}

#[cfg(test)]
#[path = "metrics/tests.rs"]
mod tests;
