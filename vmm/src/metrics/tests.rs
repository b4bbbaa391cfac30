//! Tests of `metrics`.

use std::fs;
use std::io::Read;

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
