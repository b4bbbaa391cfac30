//! Tests of `metrics`.

use std::fs;
use std::io::Read;

use devices::metrics::Histogram;
use serde_json::Value;

use super::*;

#[derive(Default)]
struct Disk {
    reads: Count,
    depth: Count,
}

impl MetricSource for Disk {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        each(Reading { name: "read_count", kind: MetricKind::Counter, value: self.reads.get() });
        each(Reading { name: "depth", kind: MetricKind::Gauge, value: self.depth.get() });
    }
}

fn lines(path: &std::path::Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

struct Rig {
    dir: tempfile::TempDir,
    metrics: Arc<Metrics>,
    disks: [Arc<Disk>; 2],
}

impl Rig {
    fn new() -> Self {
        let disks = [Arc::new(Disk::default()), Arc::new(Disk::default())];
        let metrics = Metrics::new();
        for (disk, id) in disks.iter().zip(["a", "b"]) {
            metrics.register(Group::instance("block", id), disk.clone());
        }
        Self { dir: tempfile::tempdir().unwrap(), metrics, disks }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("metrics")
    }

    fn open(&self) -> Result<(), OpenError> {
        self.metrics.open(&spec::Metrics { metrics_path: self.path().to_str().unwrap().to_owned() })
    }
}

#[test]
fn a_line_is_written_at_the_opening_and_at_each_flush() {
    let rig = Rig::new();
    assert!(rig.metrics.flush().is_ok(), "without a file nothing is written and nothing is wrong");
    rig.open().unwrap();
    rig.metrics.flush().unwrap();
    let lines = lines(&rig.path());
    assert_eq!(lines.len(), 2);
    for key in ["utc_timestamp_ms", "block", "logger"] {
        assert!(!lines[0][key].is_null(), "{key}");
    }
}

#[test]
fn counters_are_shown_as_what_was_added_gauges_as_they_are_and_families_summed() {
    let rig = Rig::new();
    rig.disks[0].reads.add(5);
    rig.disks[1].reads.add(2);
    rig.open().unwrap();
    rig.disks[0].reads.add(1);
    rig.disks[0].depth.set(9);
    rig.metrics.flush().unwrap();
    let lines = lines(&rig.path());
    let reads = |line: usize, key: &str| lines[line][key]["read_count"].as_u64().unwrap();
    assert_eq!((reads(0, "block_a"), reads(0, "block_b"), reads(0, "block")), (5, 2, 7));
    assert_eq!((reads(1, "block_a"), reads(1, "block_b"), reads(1, "block")), (1, 0, 1));
    assert_eq!(lines[1]["block_a"]["depth"], 9);
}

#[test]
fn a_second_file_and_one_that_cannot_be_opened_are_refused() {
    let rig = Rig::new();
    let missing = spec::Metrics { metrics_path: "/nowhere/at/all".to_owned() };
    assert_eq!(rig.metrics.open(&missing).unwrap_err().to_string(), "No such file or directory (os error 2)");
    rig.open().unwrap();
    assert_eq!(rig.open().unwrap_err().to_string(), "Reinitialization of metrics not allowed.");
}

#[test]
fn a_fifo_nobody_reads_blocks_nothing_and_loses_no_count() {
    let rig = Rig::new();
    nix::unistd::mkfifo(&rig.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    rig.open().unwrap();
    let mut refused = 0;
    for _ in 0..2_000 {
        rig.disks[0].reads.inc();
        refused += usize::from(rig.metrics.flush().is_err());
    }
    assert!(refused > 0, "a FIFO holds 64 KiB");
    let mut fifo = fs::OpenOptions::new().read(true).open(rig.path()).unwrap();
    let mut text = Vec::new();
    let mut sum = 0;
    // Reading makes room for a line with everything that was refused.
    for _ in 0..2 {
        let mut chunk = vec![0; 1 << 20];
        let count = fifo.read(&mut chunk).unwrap();
        text.extend_from_slice(&chunk[..count]);
        rig.metrics.flush().unwrap();
    }
    let mut chunk = vec![0; 1 << 20];
    let count = fifo.read(&mut chunk).unwrap();
    text.extend_from_slice(&chunk[..count]);
    for line in String::from_utf8(text).unwrap().lines() {
        let line: Value = serde_json::from_str(line).expect("every line is whole");
        sum += line["block_a"]["read_count"].as_u64().unwrap();
    }
    assert_eq!(sum, 2_000);
}

#[test]
fn openmetrics_text_groups_a_metric_over_its_instances_and_ends_with_eof() {
    let rig = Rig::new();
    rig.disks[0].reads.add(5);
    rig.disks[1].depth.set(3);
    let text = rig.metrics.openmetrics();
    let expected = "# TYPE yun_block_depth gauge\nyun_block_depth{id=\"a\"} 0\nyun_block_depth{id=\"b\"} 3\n\
                    # TYPE yun_block_read_count counter\nyun_block_read_count_total{id=\"a\"} 5\n\
                    yun_block_read_count_total{id=\"b\"} 0\n";
    assert!(text.contains(expected), "{text}");
    assert!(
        text.ends_with("\n# EOF\n") && text.starts_with("# TYPE yun_build info\nyun_build_info{version=\"")
    );
    assert_eq!(text.matches("# TYPE ").count(), text.matches("# TYPE yun_").count());
}

#[test]
fn registering_a_group_again_replaces_it() {
    let rig = Rig::new();
    rig.disks[0].reads.add(5);
    rig.metrics.register(Group::instance("block", "a"), rig.disks[1].clone());
    assert!(rig.metrics.openmetrics().contains("yun_block_read_count_total{id=\"a\"} 0\n"));
}

#[test]
fn what_removed_devices_counted_stays_in_the_sums_and_is_shown_once() {
    let rig = Rig::new();
    rig.disks[0].reads.add(5);
    rig.disks[0].depth.set(9);
    rig.disks[1].reads.add(2);
    rig.open().unwrap();
    // Two go, one after the other, each with something that no line has shown yet; another comes under an old name.
    rig.disks[0].reads.add(10);
    rig.metrics.retire("block", "a");
    rig.metrics.retire("block", "a");
    rig.disks[1].reads.add(100);
    rig.metrics.retire("block", "b");
    let again = Arc::new(Disk::default());
    rig.metrics.register(Group::instance("block", "a"), again.clone());
    again.reads.add(1000);
    rig.metrics.flush().unwrap();
    rig.metrics.flush().unwrap();
    let lines = lines(&rig.path());
    let reads = |line: usize| lines[line]["block"]["read_count"].as_u64().unwrap();
    assert_eq!([reads(0), reads(1), reads(2)], [7, 1110, 0]);
    assert!(lines[1]["block_removed-devices"]["depth"].is_null(), "a gauge ends with its device");
    let text = rig.metrics.openmetrics();
    assert!(text.contains("yun_block_read_count_total{id=\"removed-devices\"} 117\n"), "{text}");
    assert!(text.contains("yun_block_read_count_total{id=\"a\"} 1000\n"), "{text}");
}

/// Times of one kind of request, and what each of two queues did.
#[derive(Default)]
struct Timed {
    reads: Histogram,
    queues: [Count; 2],
}

impl MetricSource for Timed {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        each(Reading { name: "read_count", kind: MetricKind::Counter, value: self.reads.tally().count() });
    }

    fn details(&self, each: &mut dyn FnMut(Detail)) {
        let tally = Box::new(self.reads.tally());
        each(Detail {
            name: "request_duration",
            label: ("op", "read".to_owned()),
            figure: Figure::Time { tally, aggregate: Some("read_agg") },
        });
        for (index, queue) in self.queues.iter().enumerate() {
            let label = ("queue", index.to_string());
            each(Detail { name: "queue_requests", label, figure: Figure::Count(queue.get()) });
        }
    }
}

fn timed() -> (tempfile::TempDir, Arc<Metrics>, [Arc<Timed>; 2]) {
    let (metrics, sources) = (Metrics::new(), [Arc::new(Timed::default()), Arc::default()]);
    for (source, id) in sources.iter().zip(["a", "b"]) {
        metrics.register(Group::instance("block", id), source.clone());
    }
    (tempfile::tempdir().unwrap(), metrics, sources)
}

/// The values of the lines of `text` that begin with `start`, in order.
fn values(text: &str, start: &str) -> Vec<f64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(start));
    lines.map(|rest| rest.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn a_time_is_a_histogram_in_seconds_whose_buckets_add_up_to_its_count() {
    let (_dir, metrics, [a, _]) = timed();
    for ns in [800, 1_000, 1_001, 3_000_000, 60_000_000_000] {
        a.reads.record(ns);
    }
    a.queues[1].add(7);
    let text = metrics.openmetrics();
    let head = "# TYPE yun_block_request_duration_seconds histogram\n# UNIT yun_block_request_duration_seconds seconds\n\
                yun_block_request_duration_seconds_bucket{id=\"a\",op=\"read\",le=\"0.000001\"} 2\n\
                yun_block_request_duration_seconds_bucket{id=\"a\",op=\"read\",le=\"0.000002\"} 3\n";
    assert!(text.contains(head), "{text}");
    let buckets = values(&text, "yun_block_request_duration_seconds_bucket{id=\"a\"");
    assert!(buckets.is_sorted() && buckets.len() == 25, "{buckets:?}");
    assert_eq!(buckets[22..], [4.0, 4.0, 5.0]);
    let end = "yun_block_request_duration_seconds_bucket{id=\"a\",op=\"read\",le=\"+Inf\"} 5\n\
               yun_block_request_duration_seconds_count{id=\"a\",op=\"read\"} 5\n\
               yun_block_request_duration_seconds_sum{id=\"a\",op=\"read\"} 60.003002801\n";
    assert!(text.contains(end), "{text}");
    assert!(text.contains("le=\"1.048576\"") && text.contains("le=\"8.388608\""), "{text}");
    assert!(text.contains("yun_block_queue_requests_total{id=\"a\",queue=\"1\"} 7\n"), "{text}");
    assert_eq!(text.matches("# TYPE yun_block_request_duration_seconds ").count(), 1);
}

#[test]
fn the_line_has_times_as_firecrackers_aggregates_whose_sum_is_what_was_added() {
    let (dir, metrics, [a, b]) = timed();
    let path = dir.path().join("metrics");
    a.reads.record(3_000);
    b.reads.record(9_000);
    metrics.open(&spec::Metrics { metrics_path: path.to_str().unwrap().to_owned() }).unwrap();
    a.reads.record(5_000);
    metrics.flush().unwrap();
    let lines = lines(&path);
    let agg = |line: usize, key: &str| lines[line][key]["read_agg"].to_string();
    assert_eq!(agg(0, "block_a"), r#"{"max_us":3,"min_us":3,"sum_us":3}"#);
    assert_eq!(agg(0, "block"), r#"{"max_us":9,"min_us":3,"sum_us":12}"#);
    assert_eq!(agg(1, "block_a"), r#"{"max_us":5,"min_us":3,"sum_us":5}"#);
    assert_eq!(agg(1, "block_b"), r#"{"max_us":9,"min_us":9,"sum_us":0}"#);
    assert!(lines[0]["block_a"]["queue_requests"].is_null(), "Firecracker's line knows no queues");
}

#[test]
fn times_of_removed_devices_stay_in_the_sums() {
    let (dir, metrics, [a, b]) = timed();
    let path = dir.path().join("metrics");
    a.reads.record(3_000);
    metrics.open(&spec::Metrics { metrics_path: path.to_str().unwrap().to_owned() }).unwrap();
    a.reads.record(100_000);
    a.queues[0].add(2);
    b.reads.record(7_000);
    b.queues[0].add(3);
    metrics.retire("block", "a");
    metrics.retire("block", "b");
    metrics.flush().unwrap();
    let lines = lines(&path);
    let agg = lines[1]["block"]["read_agg"].to_string();
    assert_eq!(agg, r#"{"max_us":100,"min_us":3,"sum_us":107}"#, "the first 3 us were in the line before");
    let text = metrics.openmetrics();
    let name = "yun_block_request_duration_seconds";
    let end = format!(
        "{name}_bucket{{id=\"removed-devices\",op=\"read\",le=\"+Inf\"}} 3\n\
         {name}_count{{id=\"removed-devices\",op=\"read\"}} 3\n\
         {name}_sum{{id=\"removed-devices\",op=\"read\"}} 0.00011\n"
    );
    assert!(text.contains(&end), "{text}");
    assert!(
        text.contains("yun_block_queue_requests_total{id=\"removed-devices\",queue=\"0\"} 5\n"),
        "{text}"
    );
}
