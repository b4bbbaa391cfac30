//! Whole devices under rate limits, served as a thread would that sleeps by the millisecond and wakes late: what goes through is
//! within 2 % of what was asked for, whatever the sizes, and nothing stands still.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use devices::limiter::{BucketSpec, Group, LimiterSpec};
use devices::mem::Ram;
use devices::testing::block::MemBackend;
use devices::testing::clock::FakeClock;
use devices::testing::irq::CountingIrq;
use devices::testing::net::FakeTap;
use devices::testing::queue::{Driver, give, take};
use devices::testing::ram;
use devices::testing::seed::Seed;
use devices::virtio::block::{Block, BlockHandle, BlockOptions, Cache};
use devices::virtio::net::{Net, NetHandle, NetOptions, RX_QUEUE, TX_QUEUE};
use devices::virtio::queue::F_EVENT_IDX;
use devices::virtio::{Granted, Idle, Running, Served};

const HEADER: u64 = 0x1_0000;
const STATUS: u64 = 0x1_1000;
const DATA: u64 = 0x2_0000;
const RAM_BYTES: usize = 0x20_0000;
/// Entries of a queue; and chains that a driver keeps in it, of three each at most.
const SIZE: u16 = 256;
const IN_FLIGHT: u64 = 64;
/// What a driver of one buffer a chain keeps in it.
const BUFFERS: u64 = 200;
/// A receive buffer: the largest frame fits.
const BUFFER_BYTES: u32 = 66_000;
const SECOND: u64 = 1_000_000_000;
/// How long the disk takes for a request: what its full speed is.
const DISK_TAKES: Duration = Duration::from_micros(10);

/// A driver that always wants more, on one queue of a device.
trait Greedy {
    /// Makes up for what was done.
    fn top_up(&mut self);
    /// Has the device serve.
    fn serve(&mut self) -> Served;
    /// Operations and bytes that the device says it did.
    fn done(&self) -> (u64, u64);
}

/// What several drivers' threads do until `seconds` have gone by; what each got done in that time.
fn run(clock: &FakeClock, seed: &mut Seed, of: &mut [&mut dyn Greedy], seconds: u64) -> Vec<(u64, u64)> {
    let end = clock.now_ns() + seconds * SECOND;
    let before: Vec<_> = of.iter().map(|one| one.done()).collect();
    let mut due = vec![clock.now_ns(); of.len()];
    loop {
        let (next, at) = due.iter().copied().enumerate().min_by_key(|(_, at)| *at).expect("there is one");
        if at.max(clock.now_ns()) >= end {
            break;
        }
        clock.advance(Duration::from_nanos(at.saturating_sub(clock.now_ns())));
        of[next].top_up();
        due[next] = match of[next].serve() {
            Served::After(wait) => {
                let sleep = u64::try_from(wait.as_nanos()).expect("no wait is that long");
                clock.now_ns() + sleep.next_multiple_of(1_000_000) + seed.below(1_500_000)
            }
            Served::More | Served::Drained => clock.now_ns() + 1,
            Served::Broken => panic!("a driver that does everything right"),
        };
    }
    of.iter().zip(before).map(|(one, before)| (one.done().0 - before.0, one.done().1 - before.1)).collect()
}

fn bucket(size: u64, refill_time_ms: u64) -> BucketSpec {
    BucketSpec { size, one_time_burst: 0, refill_time_ms }
}

fn ops(bucket: BucketSpec) -> LimiterSpec {
    LimiterSpec { bytes: None, ops: Some(bucket) }
}

fn bytes(bucket: BucketSpec) -> LimiterSpec {
    LimiterSpec { bytes: Some(bucket), ops: None }
}

/// That `done` in `seconds` is within 2 % of what `limit` lets through, beside its first bucketful and one operation of `one`.
fn assert_rate(done: u64, limit: BucketSpec, seconds: u64, one: u64, what: &str) {
    let rate = u128::from(limit.size) * u128::from(seconds) * 1000 / u128::from(limit.refill_time_ms);
    let slack = rate / 50;
    let most = rate + slack + u128::from(limit.size + one);
    assert!(
        (rate - slack..=most).contains(&u128::from(done)),
        "{what}: {done} in {seconds} s under {limit:?}"
    );
}

struct Disk {
    driver: Driver,
    device: Box<dyn Running>,
    handle: BlockHandle,
    bytes: u32,
    in_flight: u64,
}

impl Disk {
    /// A disk whose driver reads `bytes` at a time.
    fn new(limits: LimiterSpec, group: Option<&Group>, bytes: u32) -> Self {
        let backend = MemBackend::zeroed(4096);
        backend.platter().takes = DISK_TAKES;
        let options = BlockOptions {
            name: "disk".into(),
            read_only: true,
            discard: false,
            cache: Cache::Unsafe,
            serial: String::new(),
            limits,
            group: group.cloned(),
            queues: NonZeroU16::MIN,
        };
        let block = Block::new(Box::new(backend), &options);
        let handle = block.handle();
        let ram = ram::flat(RAM_BYTES);
        ram::write(&ram, HEADER, &[0; 16]);
        let driver = Driver::new(&ram, 0x1000, SIZE);
        let granted = Granted {
            features: block.offered() & !F_EVENT_IDX,
            queues: vec![Some(driver.queue())],
            interrupt: CountingIrq::new(),
            ram,
        };
        let Ok(device) = Box::new(block).start(granted) else { panic!("a disk always starts") };
        Self { driver, device, handle, bytes, in_flight: 0 }
    }
}

impl Greedy for Disk {
    fn top_up(&mut self) {
        while self.driver.used().is_some() {
            self.in_flight -= 1;
        }
        while self.in_flight < IN_FLIGHT {
            self.driver.send(&[give(HEADER, 16), take(DATA, self.bytes), take(STATUS, 1)]);
            self.in_flight += 1;
        }
    }

    fn serve(&mut self) -> Served {
        self.device.serve(0)
    }

    fn done(&self) -> (u64, u64) {
        let metrics = self.handle.metrics();
        (metrics.read_count.get(), metrics.read_bytes.get())
    }
}

/// One direction of a card, which is kept busy.
struct Card {
    driver: Driver,
    device: Box<dyn Running>,
    handle: NetHandle,
    tap: FakeTap,
    queue: u16,
    frame: usize,
    in_flight: u64,
}

impl Card {
    /// A card whose driver sends (or gets) frames of `frame` bytes.
    fn new(queue: u16, limits: LimiterSpec, group: Option<&Group>, frame: usize) -> Self {
        let tap = FakeTap::new();
        let options = NetOptions {
            rx_limits: limits,
            tx_limits: limits,
            group: group.cloned(),
            ..NetOptions::default()
        };
        let net = Net::new(Box::new(tap.clone()), &options);
        let handle = net.handle();
        let ram = ram::flat(RAM_BYTES);
        let driver = Driver::new(&ram, 0x1000, SIZE);
        let mut queues = vec![None, None];
        queues[usize::from(queue)] = Some(driver.queue());
        let granted = Granted {
            ram: Ram::clone(&ram),
            features: net.offered() & !F_EVENT_IDX,
            queues,
            interrupt: Arc::<CountingIrq>::clone(&CountingIrq::new()),
        };
        let Ok(device) = Box::new(net).start(granted) else { panic!("the wire takes the offloads") };
        Self { driver, device, handle, tap, queue, frame, in_flight: 0 }
    }
}

impl Greedy for Card {
    fn top_up(&mut self) {
        while self.driver.used().is_some() {
            self.in_flight -= 1;
        }
        let sends = self.queue == TX_QUEUE;
        while self.in_flight < BUFFERS {
            let len = u32::try_from(12 + self.frame).expect("a frame");
            self.driver.send(&[if sends { give(DATA, len) } else { take(DATA, BUFFER_BYTES) }]);
            self.in_flight += 1;
        }
        let mut traffic = self.tap.traffic();
        traffic.sent.clear();
        while !sends && traffic.incoming.len() < 100 {
            traffic.incoming.push_back(vec![0; 12 + self.frame]);
        }
    }

    fn serve(&mut self) -> Served {
        if self.queue == RX_QUEUE { self.device.ready(0) } else { self.device.serve(self.queue) }
    }

    fn done(&self) -> (u64, u64) {
        let m = self.handle.metrics();
        if self.queue == RX_QUEUE {
            (m.rx_frames.get(), m.rx_bytes.get())
        } else {
            (m.tx_frames.get(), m.tx_bytes.get())
        }
    }
}

#[test]
fn a_disk_does_as_many_operations_as_it_may_from_one_a_second_on() {
    for (limit, seconds) in [
        (bucket(1, 1000), 500),
        (bucket(3, 1000), 300),
        (bucket(7, 333), 200),
        (bucket(1, 1), 20),
        (bucket(13, 1), 2),
        (bucket(100, 100), 20),
        (bucket(500, 10), 1),
        (bucket(50_000, 1000), 1),
        (bucket(1, 60_000), 10_000),
    ] {
        let (clock, mut seed) = (FakeClock::at(0), Seed::new(limit.size));
        let mut disk = Disk::new(ops(limit), None, 512);
        let done = run(&clock, &mut seed, &mut [&mut disk], seconds)[0];
        assert_rate(done.0, limit, seconds, 1, "reads");
    }
}

#[test]
fn a_limit_above_full_speed_costs_no_speed() {
    let free = |limits| {
        let (clock, mut seed) = (FakeClock::at(0), Seed::new(1));
        let mut disk = Disk::new(limits, None, 4096);
        run(&clock, &mut seed, &mut [&mut disk], 1)[0].0
    };
    let without = free(LimiterSpec::default());
    let with = free(LimiterSpec { bytes: Some(bucket(1 << 40, 1)), ops: Some(bucket(10_000_000, 1000)) });
    assert!(with >= without - without / 50, "{with} of {without}");
}

#[test]
fn a_disk_moves_as_many_bytes_as_it_may_whatever_the_sizes() {
    for (limit, request, seconds) in [
        // Requests of many buckets; buckets of many requests; neither a multiple of the other.
        (bucket(1, 1), 512, 500),
        (bucket(1, 1), 65_536, 20_000),
        (bucket(511, 7), 512, 50),
        (bucket(1_000_003, 997), 4096, 60),
        (bucket(100_000_000, 100), 1 << 20, 2),
        (bucket(10_000_000, 1000), 1 << 20, 100),
    ] {
        let (clock, mut seed) = (FakeClock::at(0), Seed::new(request));
        let mut disk = Disk::new(bytes(limit), None, u32::try_from(request).unwrap());
        let done = run(&clock, &mut seed, &mut [&mut disk], seconds)[0];
        assert_rate(done.1, limit, seconds, request, "bytes read");
    }
}

#[test]
fn a_card_moves_as_many_frames_and_bytes_as_it_may_in_each_direction() {
    for queue in [RX_QUEUE, TX_QUEUE] {
        for (limits, frame, seconds) in [
            (ops(bucket(1, 1000)), 60, 300),
            (ops(bucket(10, 1)), 60, 3),
            (bytes(bucket(1, 1)), 61, 100),
            (bytes(bucket(1000, 1)), 1514, 20),
            (bytes(bucket(12_500_000, 100)), 1514, 1),
            (bytes(bucket(125_000, 1)), 65_549, 2),
            (bytes(bucket(60_000, 13)), 65_549, 30),
        ] {
            let (clock, mut seed) = (FakeClock::at(0), Seed::new(frame));
            let one = usize::try_from(frame).unwrap();
            let mut card = Card::new(queue, limits, None, one);
            let done = run(&clock, &mut seed, &mut [&mut card], seconds)[0];
            match limits {
                LimiterSpec { ops: Some(limit), .. } => assert_rate(done.0, limit, seconds, 1, "frames"),
                LimiterSpec { bytes, .. } => {
                    // What the wire had is received before it is known how much it was.
                    assert_rate(done.1, bytes.unwrap(), seconds, frame, "bytes of frames");
                }
            }
        }
    }
}

#[test]
fn limits_that_change_hold_from_then_on_and_nobody_waits_for_old_ones() {
    let (clock, mut seed) = (FakeClock::at(0), Seed::new(3));
    let mut disk = Disk::new(ops(bucket(1, 3_600_000)), None, 512);
    run(&clock, &mut seed, &mut [&mut disk], 1);
    for limit in [bucket(100, 100), bucket(1, 1000), bucket(20, 1), bucket(5, 10_000)] {
        disk.handle.set_limits(ops(limit));
        let seconds = (2_000 * limit.refill_time_ms / limit.size / 1000).clamp(1, 1_000);
        // The kick that follows a change.
        let done = run(&clock, &mut seed, &mut [&mut disk], seconds)[0];
        assert_rate(done.0, limit, seconds, 1, "reads");
    }
}

#[test]
fn a_disk_and_a_card_have_together_what_their_group_has_and_neither_starves() {
    let (clock, mut seed) = (FakeClock::at(0), Seed::new(4));
    let limit = bucket(1_000_000, 100);
    let group = Group::new(&bytes(limit), clock.now_ns());
    let mut disk = Disk::new(LimiterSpec::default(), Some(&group), 1 << 20);
    let mut card = Card::new(TX_QUEUE, LimiterSpec::default(), Some(&group), 60);
    let mut slow = Disk::new(ops(bucket(1, 1000)), Some(&group), 512);
    let all = run(&clock, &mut seed, &mut [&mut disk, &mut card, &mut slow], 100);
    let sum = all.iter().map(|(_, bytes)| bytes).sum();
    assert_rate(sum, limit, 100, 1 << 20, "bytes of all");
    let [(reads, _), (frames, _), (few, _)] = all[..] else { panic!("three") };
    assert!(reads >= 900 && frames >= reads / 2, "{reads} large reads beside {frames} small frames");
    assert!((95..=102).contains(&few), "{few} reads of one a second");

    // Twice as much from now on, for all of them.
    let more = bucket(2_000_000, 100);
    group.set(&bytes(more), clock.now_ns());
    let all = run(&clock, &mut seed, &mut [&mut disk, &mut card, &mut slow], 100);
    assert_rate(all.iter().map(|(_, bytes)| bytes).sum(), more, 100, 1 << 20, "bytes of all");
}
