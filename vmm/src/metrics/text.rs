//! Metrics as OpenMetrics text.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use devices::metrics::{BUCKETS, Tally, bucket_ns_max};

use super::{Entry, Figure, Label, MetricKind};

/// What one family of the text is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Counter,
    Gauge,
    /// Of seconds.
    Histogram,
}

impl From<MetricKind> for Type {
    fn from(kind: MetricKind) -> Self {
        match kind {
            MetricKind::Counter => Self::Counter,
            MetricKind::Gauge => Self::Gauge,
        }
    }
}

/// One number, or one histogram, of a family: whose, of which part, and what it is.
struct Sample {
    id: Option<String>,
    label: Option<Label>,
    value: Value,
}

enum Value {
    Number(u64),
    Time(Box<Tally>),
}

/// The labels of a line: ids and the values of labels are plain words, which need no escaping.
struct Labels<'a> {
    sample: &'a Sample,
    /// The bound of a bucket.
    le: Option<&'a str>,
}

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.sample.id.as_ref().map(|id| ("id", id.as_str()));
        let label = self.sample.label.as_ref().map(|(name, value)| (*name, value.as_str()));
        let mut open = "{";
        for (name, value) in id.into_iter().chain(label).chain(self.le.map(|le| ("le", le))) {
            write!(f, "{open}{name}=\"{value}\"")?;
            open = ",";
        }
        if open == "," { f.write_str("}") } else { Ok(()) }
    }
}

/// Nanoseconds as seconds, exactly and without zeros at the end.
fn seconds(ns: u64) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    let short = text.trim_end_matches('0');
    // A number of seconds keeps its ".0": it is a real number.
    if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
}

/// All that `entries` have, and `missed` lines of the metrics file.
pub(super) fn openmetrics(entries: &[Entry], missed: u64) -> String {
    let mut families: BTreeMap<String, (Type, Vec<Sample>)> = BTreeMap::new();
    let mut add = |name: String, of: Type, sample: Sample| {
        families.entry(name).or_insert((of, Vec::new())).1.push(sample);
    };
    for entry in entries {
        let (family, id) = (entry.group.family, &entry.group.instance);
        entry.source.read(&mut |reading| {
            let sample = Sample { id: id.clone(), label: None, value: Value::Number(reading.value) };
            add(format!("yun_{family}_{}", reading.name), reading.kind.into(), sample);
        });
        entry.source.details(&mut |detail| {
            let (unit, of, value) = match detail.figure {
                Figure::Count(count) => ("", Type::Counter, Value::Number(count)),
                Figure::Time { tally, .. } => ("_seconds", Type::Histogram, Value::Time(tally)),
            };
            let sample = Sample { id: id.clone(), label: Some(detail.label), value };
            add(format!("yun_{family}_{}{unit}", detail.name), of, sample);
        });
    }
    for (name, value) in [("missed_metrics", missed), ("missed_log", crate::logger::missed())] {
        let sample = Sample { id: None, label: None, value: Value::Number(value) };
        add(format!("yun_logger_{name}"), Type::Counter, sample);
    }
    let mut text = String::with_capacity(64 * families.len());
    text.push_str("# TYPE yun_build info\n");
    let _ = writeln!(text, "yun_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    for (name, (of, samples)) in families {
        let (word, suffix) = match of {
            Type::Counter => ("counter", "_total"),
            Type::Gauge => ("gauge", ""),
            Type::Histogram => ("histogram", ""),
        };
        let _ = writeln!(text, "# TYPE {name} {word}");
        if of == Type::Histogram {
            let _ = writeln!(text, "# UNIT {name} seconds");
        }
        for sample in &samples {
            match &sample.value {
                Value::Number(value) => {
                    let _ = writeln!(text, "{name}{suffix}{} {value}", Labels { sample, le: None });
                }
                Value::Time(tally) => histogram(&mut text, &name, sample, tally),
            }
        }
    }
    text.push_str("# EOF\n");
    text
}

/// The lines of one histogram: each bucket counts those before it, too.
fn histogram(text: &mut String, name: &str, sample: &Sample, tally: &Tally) {
    let mut count = 0;
    for (n, in_bucket) in tally.buckets.iter().enumerate() {
        count += in_bucket;
        let le = if n < BUCKETS { seconds(bucket_ns_max(n)) } else { "+Inf".to_owned() };
        let _ = writeln!(text, "{name}_bucket{} {count}", Labels { sample, le: Some(&le) });
    }
    let labels = Labels { sample, le: None };
    let _ = writeln!(text, "{name}_count{labels} {count}");
    let _ = writeln!(text, "{name}_sum{labels} {}", seconds(tally.sum_ns));
}
