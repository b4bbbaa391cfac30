//! A guest keeps a log; its VMM is killed at some moment, 200 times: what the guest was told is on the disk is there.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vmm::host::disk::Disk;

use super::common::{Bus, Vm, zeros};
use super::{boot, kvm};

/// Kills of all tests here together.
const KILLS: usize = 200;
/// Sectors of the log, a record each; more than a guest can write before it is killed.
const SECTORS: u64 = 1 << 15;
/// The longest that a guest is left alone once it logs.
const LONGEST: Duration = Duration::from_millis(60);

/// A drive's options, and the words for the guest.
type Mode = (&'static str, Value, &'static str);

fn modes() -> [Mode; 8] {
    let mode = |engine: &str, cache: &str| json!({"io_engine": engine, "cache_type": cache});
    let direct = |engine: &str| json!({"io_engine": engine, "cache_type": "Writeback", "direct": true});
    [
        ("synchronous, flushed", mode("Sync", "Writeback"), ""),
        ("asynchronous, flushed", mode("Async", "Writeback"), ""),
        ("synchronous, written through", mode("Sync", "Writeback"), "flush=no"),
        ("asynchronous, written through", mode("Async", "Writeback"), "flush=no"),
        ("synchronous, direct", direct("Sync"), ""),
        ("asynchronous, direct", direct("Async"), ""),
        ("synchronous, unsafe", mode("Sync", "Unsafe"), ""),
        ("asynchronous, unsafe", mode("Async", "Unsafe"), ""),
    ]
}

fn word(sector: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(sector[index * 8..][..8].try_into().unwrap())
}

/// Whether `sector` holds the whole of record `n`.
fn is_record(sector: &[u8], n: u64) -> bool {
    let check = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [(0, n), (63, n), (1, check), (62, check)].iter().all(|&(index, value)| word(sector, index) == value)
}

/// One guest, killed after `life`; how many records it was told are on the disk.
fn killed(bus: Bus, (name, options, words): &Mode, life: Duration) -> u64 {
    let mut vm = Vm::start(bus.flags());
    let (log, told) = (zeros(&vm.path("log-disk"), SECTORS * 512), zeros(&vm.path("told"), 512));
    vm.put_drive("log", &log, options);
    vm.put_drive("told", &told, &json!({}));
    boot(&vm, &format!("do=log {words}"));
    vm.prints("logging");
    let end = Instant::now() + life;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
    vm.signal(Signal::SIGKILL);
    while vm.runs() {
        std::hint::spin_loop();
    }
    let told = word(&fs::read(&told).unwrap(), 0);
    let bytes = fs::read(&log).unwrap();
    for (n, sector) in (1..=told).zip(bytes.chunks(512)) {
        assert!(is_record(sector, n), "{name}, killed after {life:?}: record {n} of {told} is missing");
    }
    is_free(&log);
    told
}

/// Nothing of a VMM that is gone keeps others from its image.
fn is_free(image: &Path) {
    Disk::open(image, false, None).expect("the image is free again");
}

fn no_record_that_a_guest_was_told_is_on_the_disk_is_missing_after_its_vmm_was_killed(bus: Bus) {
    let modes = modes();
    let mut told = vec![0; modes.len()];
    let mut moment = 1u64;
    for round in 0..KILLS / 2 {
        // Any moment will do: a fixed sequence that does not repeat within the test.
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let life = LONGEST.mul_f64((moment >> 11) as f64 / (1u64 << 53) as f64);
        let which = round % modes.len();
        told[which] += killed(bus, &modes[which], life);
    }
    for ((name, ..), told) in modes.iter().zip(&told) {
        assert!(*told > 0, "{name}: no guest got as far as a record");
    }
    println!("records that guests were told of: {told:?}");
}

crate::over_both_transports!(kvm:
    no_record_that_a_guest_was_told_is_on_the_disk_is_missing_after_its_vmm_was_killed,
);
