use std::time::Duration;

use super::request::Status;
use super::*;
use crate::limiter::BucketSpec;
use crate::mem::Ram;
use crate::testing::block::{FaultyBackend, MemBackend};
use crate::testing::irq::CountingIrq;
use crate::testing::queue::{Buf, Driver, NEXT, give, take};
use crate::testing::ram;
use crate::testing::seed::Seed;
use crate::virtio::Served;
use crate::virtio::queue::{F_COMMON, F_EVENT_IDX};

mod engines;
mod erase;
mod hostile;
mod model;
mod queues;
mod times;

const RINGS: u64 = 0x1000;
const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const DATA: u64 = 0x1_0000;
const RAM_BYTES: usize = 0x4_0000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

fn options() -> BlockOptions {
    BlockOptions {
        name: "test disk".into(),
        read_only: false,
        discard: true,
        cache: Cache::Writeback,
        serial: "yun-0".into(),
        limits: LimiterSpec::default(),
        group: None,
        queues: NonZeroU16::MIN,
    }
}

struct Rig {
    ram: Ram,
    driver: Driver,
    disk: MemBackend,
    irq: Arc<CountingIrq>,
    handle: BlockHandle,
    config: Arc<ConfigSpace>,
    device: Box<dyn Running>,
}

/// What the driver saw of one request.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u8,
    used_len: u32,
}

fn answer(status: Status, used_len: u32) -> Answer {
    Answer { status: status as u8, used_len }
}

impl Rig {
    fn new(sectors: usize) -> Self {
        Self::with(MemBackend::zeroed(sectors), &options())
    }

    fn with(disk: MemBackend, options: &BlockOptions) -> Self {
        let block = Block::new(Box::new(disk.clone()), options);
        Self::over(disk, block, !F_EVENT_IDX)
    }

    fn over(disk: MemBackend, block: Block, feature_mask: u64) -> Self {
        let ram = ram::flat(RAM_BYTES);
        let driver = Driver::new(&ram, RINGS, 16);
        let irq = CountingIrq::new();
        let handle = block.handle();
        let config = Arc::clone(block.config());
        let granted = Granted {
            ram: Ram::clone(&ram),
            features: block.offered() & feature_mask,
            queues: vec![Some(driver.queue())],
            interrupt: irq.clone(),
        };
        let Ok(device) = Box::new(block).start(granted) else { panic!("a disk always starts") };
        Self { ram, driver, disk, irq, handle, config, device }
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut raw = [0; 16];
        raw[..4].copy_from_slice(&kind.to_le_bytes());
        raw[8..].copy_from_slice(&sector.to_le_bytes());
        ram::write(&self.ram, HEADER, &raw);
        ram::write(&self.ram, STATUS, &[0xff]);
    }

    /// Serves one chain of `bufs` and expects an answer.
    fn ask(&mut self, bufs: &[Buf]) -> Answer {
        self.driver.send(bufs);
        assert_eq!(self.device.serve(0), Served::Drained);
        let (_, used_len) = self.driver.used().expect("an answer");
        Answer { status: ram::read(&self.ram, STATUS, 1)[0], used_len }
    }

    fn read(&mut self, sector: u64, len: u32) -> Answer {
        self.header(IN, sector);
        self.ask(&[give(HEADER, 16), take(DATA, len), take(STATUS, 1)])
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> Answer {
        self.header(OUT, sector);
        ram::write(&self.ram, DATA, data);
        self.ask(&[give(HEADER, 16), give(DATA, u32::try_from(data.len()).unwrap()), take(STATUS, 1)])
    }

    fn flush(&mut self) -> Answer {
        self.header(FLUSH, 0);
        self.ask(&[give(HEADER, 16), take(STATUS, 1)])
    }
}

#[test]
fn what_was_written_is_read_back() {
    let mut rig = Rig::new(8);
    assert_eq!(rig.write(3, &[0xAB; 1024]), answer(Status::Ok, 1));
    ram::write(&rig.ram, DATA, &[0; 1024]);
    assert_eq!(rig.read(3, 1024), answer(Status::Ok, 1025));
    assert_eq!(ram::read(&rig.ram, DATA, 1024), [0xAB; 1024]);
    assert!(rig.disk.platter().bytes[..1536].iter().all(|&byte| byte == 0));
    let metrics = rig.handle.metrics();
    assert_eq!((metrics.write_bytes.get(), metrics.read_bytes.get()), (1024, 1024));
    assert_eq!((metrics.write_count.get(), metrics.read_count.get()), (1, 1));
}

#[test]
fn a_request_may_be_cut_into_descriptors_anywhere() {
    let mut rig = Rig::new(8);
    rig.disk.platter().bytes[512..1024].fill(0x5A);
    rig.header(IN, 1);
    // The header in three parts; the data share a descriptor with the status byte.
    let end = STATUS - 100;
    let bufs = [give(HEADER, 5), give(HEADER + 5, 0), give(HEADER + 5, 11), take(DATA, 412), take(end, 101)];
    assert_eq!(rig.ask(&bufs), answer(Status::Ok, 513));
    assert_eq!(ram::read(&rig.ram, DATA, 413), [vec![0x5A; 412], vec![0]].concat());
    assert_eq!(ram::read(&rig.ram, end, 100), [0x5A; 100]);
    // The header and the data in one descriptor.
    rig.header(OUT, 0);
    ram::write(&rig.ram, HEADER + 16, &[1; 512 - 256]);
    let bufs = [give(HEADER, 16 + 240), give(DATA, 272), take(STATUS, 1)];
    assert_eq!(rig.ask(&bufs), answer(Status::Ok, 1));
}

#[test]
fn write_past_the_last_sector_is_refused_and_touches_nothing() {
    let mut rig = Rig::new(8);
    assert_eq!(rig.write(7, &[0xAB; 1024]), answer(Status::IoErr, 1));
    assert!(rig.disk.platter().bytes.iter().all(|&byte| byte == 0));
    assert_eq!(rig.irq.raised(), 1);
    assert_eq!(rig.handle.metrics().refused.get(), 1);
}

#[test]
fn an_end_that_overflows_is_refused() {
    let mut rig = Rig::new(8);
    for sector in [u64::MAX, u64::MAX - 1, u64::MAX / 512, 1 << 55] {
        assert_eq!(rig.read(sector, 1024), answer(Status::IoErr, 1));
    }
}

#[test]
fn a_partial_sector_is_refused() {
    let mut rig = Rig::new(8);
    assert_eq!(rig.read(0, 511), answer(Status::IoErr, 1));
    assert_eq!(rig.write(0, &[1; 513]), answer(Status::IoErr, 1));
}

#[test]
fn a_partial_sector_at_the_end_of_the_file_is_not_addressable() {
    let mut rig = Rig::with(MemBackend::new(vec![0; 1024 + 511]), &options());
    assert_eq!(rig.read(2, 512), answer(Status::IoErr, 1));
    assert_eq!(rig.read(1, 512), answer(Status::Ok, 513));
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let mut rig = Rig::with(MemBackend::zeroed(8), &BlockOptions { read_only: true, ..options() });
    assert_eq!(rig.write(0, &[1; 512]), answer(Status::IoErr, 1));
    assert_eq!(rig.read(0, 512), answer(Status::Ok, 513));
    assert!(rig.disk.platter().bytes.iter().all(|&byte| byte == 0));
}

#[test]
fn unknown_types_are_unsupported() {
    let mut rig = Rig::new(8);
    for kind in [2, 3, 5, 10, 14, u32::MAX] {
        rig.header(kind, 0);
        assert_eq!(rig.ask(&[give(HEADER, 16), take(STATUS, 1)]), answer(Status::Unsupp, 1));
    }
}

#[test]
fn a_flush_reaches_the_backend() {
    let mut rig = Rig::new(8);
    assert_eq!(rig.flush(), answer(Status::Ok, 1));
    assert_eq!((rig.disk.platter().flushes, rig.handle.metrics().flush_count.get()), (1, 1));
}

#[test]
fn a_driver_that_cannot_flush_gets_each_write_flushed() {
    let disk = MemBackend::zeroed(8);
    let block = Block::new(Box::new(disk.clone()), &options());
    let mut rig = Rig::over(disk, block, !F_FLUSH);
    assert_eq!(rig.write(0, &[1; 512]), answer(Status::Ok, 1));
    assert_eq!(rig.disk.platter().flushes, 1);
}

#[test]
fn an_unsafe_disk_offers_no_flush_and_does_none() {
    let mut rig = Rig::with(MemBackend::zeroed(8), &BlockOptions { cache: Cache::Unsafe, ..options() });
    assert_eq!(rig.flush(), answer(Status::Unsupp, 1));
    assert_eq!(rig.write(0, &[1; 512]), answer(Status::Ok, 1));
    assert_eq!(rig.disk.platter().flushes, 0);
}

#[test]
fn the_identity_is_twenty_bytes_padded_with_zeros() {
    let mut rig = Rig::new(8);
    ram::write(&rig.ram, DATA, &[0xff; 32]);
    rig.header(GET_ID, 0);
    assert_eq!(rig.ask(&[give(HEADER, 16), take(DATA, 20), take(STATUS, 1)]), answer(Status::Ok, 21));
    let mut expected = [0xffu8; 32];
    expected[..20].fill(0);
    expected[..5].copy_from_slice(b"yun-0");
    assert_eq!(ram::read(&rig.ram, DATA, 32), expected);
}

#[test]
fn features_and_configuration_say_what_the_disk_is() {
    let block = Block::new(Box::new(MemBackend::zeroed(9)), &BlockOptions { read_only: true, ..options() });
    assert_eq!(
        block.offered(),
        F_COMMON | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_RO | F_FLUSH | F_CONFIG_WCE
    );
    let mut config = [0; 64];
    block.config().read(0, &mut config);
    assert_eq!(config[..8], 9u64.to_le_bytes());
    assert_eq!(config[12..16], 254u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[24..32], [0, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(config[32..36], [1, 0, 1, 0], "writeback, one queue");
    let words = [1u32 << 22, 32, 1, 1 << 15, 8, 1];
    assert_eq!(config[36..60], words.map(u32::to_le_bytes).concat());
    assert_eq!(config[60..], [0; 4]);
}

#[test]
fn many_requests_share_one_interrupt() {
    let mut rig = Rig::new(8);
    rig.header(IN, 0);
    for i in 0..5 {
        rig.driver.send(&[give(HEADER, 16), take(DATA + i * 512, 512), take(STATUS, 1)]);
    }
    assert_eq!(rig.device.serve(0), Served::Drained);
    assert_eq!(std::iter::from_fn(|| rig.driver.used()).count(), 5);
    assert_eq!(rig.irq.raised(), 1);
}

#[test]
fn requests_after_a_swap_go_to_the_new_backing_and_the_old_one_is_flushed() {
    let mut rig = Rig::new(8);
    let new = MemBackend::zeroed(16);
    let generation = {
        let disk = MemBackend::zeroed(8);
        let block = Block::new(Box::new(disk), &options());
        block.config().generation()
    };
    assert_eq!(rig.read(8, 512), answer(Status::IoErr, 1));
    rig.handle.swap_backing(Box::new(new.clone()));
    assert_eq!(rig.irq.config_changes(), 1);
    assert_eq!(rig.write(8, &[7; 512]), answer(Status::Ok, 1));
    assert_eq!(new.platter().bytes[4096..4608], [7; 512]);
    assert_eq!(rig.disk.platter().flushes, 1);
    let idle = rig.device.stop();
    let mut capacity = [0; 8];
    idle.config().read(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 16);
    assert_ne!(idle.config().generation(), generation);
}

#[test]
fn a_swap_without_a_driver_raises_nothing_and_holds_after_the_start() {
    let disk = MemBackend::zeroed(8);
    let block = Block::new(Box::new(disk.clone()), &options());
    block.handle().swap_backing(Box::new(MemBackend::zeroed(2)));
    let mut rig = Rig::over(disk, block, !0);
    assert_eq!(rig.read(2, 512), answer(Status::IoErr, 1));
    assert_eq!(rig.read(1, 512), answer(Status::Ok, 513));
}

#[test]
fn a_limited_request_waits_unserved_and_a_lifted_limit_lets_it_through() {
    let hour = BucketSpec { size: 1, one_time_burst: 0, refill_time_ms: 3_600_000 };
    let limits = LimiterSpec { bytes: None, ops: Some(hour) };
    let mut rig = Rig::with(MemBackend::zeroed(8), &BlockOptions { limits, ..options() });
    assert_eq!(rig.read(0, 512), answer(Status::Ok, 513));
    rig.header(IN, 1);
    rig.driver.send(&[give(HEADER, 16), take(DATA, 512), take(STATUS, 1)]);
    let Served::After(wait) = rig.device.serve(0) else { panic!("the limit holds") };
    assert!(wait > Duration::from_secs(3000) && wait <= Duration::from_secs(3600));
    assert_eq!(rig.driver.used(), None);
    assert_eq!(rig.handle.metrics().throttled.get(), 1);
    rig.handle.set_limits(LimiterSpec::default());
    assert_eq!(rig.device.serve(0), Served::Drained);
    assert_eq!(rig.driver.used().map(|(_, len)| len), Some(513));
}

#[test]
fn a_batch_is_bounded() {
    let ram = ram::flat(RAM_BYTES);
    let mut driver = Driver::new(&ram, RINGS, 128);
    let disk = MemBackend::zeroed(8);
    let block = Block::new(Box::new(disk), &options());
    let irq = CountingIrq::new();
    let granted = Granted {
        ram: Ram::clone(&ram),
        features: block.offered() & !F_EVENT_IDX,
        queues: vec![Some(driver.queue())],
        interrupt: irq,
    };
    let Ok(mut device) = Box::new(block).start(granted) else { panic!() };
    for _ in 0..100 {
        let head = driver.link_indirect(HEADER, &[give(DATA, 16), take(STATUS + 0x800, 1)]);
        driver.publish(head);
    }
    assert_eq!(device.serve(0), Served::More);
    assert_eq!(std::iter::from_fn(|| driver.used()).count(), 64);
    assert!(driver.kicks_suppressed(), "no kick is wanted while the batch goes on");
    assert_eq!(device.serve(0), Served::Drained);
    assert!(!driver.kicks_suppressed());
}

#[test]
fn a_device_without_a_queue_serves_nothing() {
    let block = Block::new(Box::new(MemBackend::zeroed(8)), &options());
    let granted =
        Granted { ram: ram::flat(4096), features: 0, queues: vec![None], interrupt: CountingIrq::new() };
    let Ok(mut device) = Box::new(block).start(granted) else { panic!() };
    assert_eq!((device.serve(0), device.serve(7)), (Served::Drained, Served::Drained));
}

#[test]
fn a_failing_short_and_interrupted_backend_never_lies_about_success() {
    for seed in 0..50 {
        let disk = MemBackend::zeroed(64);
        let block = Block::new(Box::new(FaultyBackend::new(disk.clone(), seed)), &options());
        let mut rig = Rig::over(disk, block, !F_EVENT_IDX);
        let mut chance = Seed::new(seed);
        for round in 0..40u8 {
            let sector = chance.below(60);
            let data = vec![round + 1; 512 * usize::try_from(1 + chance.below(4)).unwrap()];
            let at = usize::try_from(sector).unwrap() * 512;
            if rig.write(sector, &data).status == Status::Ok as u8 {
                assert_eq!(rig.disk.platter().bytes[at..at + data.len()], data);
            }
            ram::write(&rig.ram, DATA, &vec![0xEE; data.len()]);
            let len = u32::try_from(data.len()).unwrap();
            if rig.read(sector, len).status == Status::Ok as u8 {
                assert_eq!(
                    rig.disk.platter().bytes[at..at + data.len()],
                    ram::read(&rig.ram, DATA, data.len())
                );
            }
        }
        let metrics = rig.handle.metrics();
        assert!(metrics.read_failures.get() + metrics.write_failures.get() > 0);
    }
}

#[test]
fn a_file_that_shrank_is_an_io_error() {
    let mut rig = Rig::new(8);
    rig.disk.platter().bytes.truncate(1024);
    assert_eq!(rig.read(1, 1024), answer(Status::IoErr, 1));
    assert_eq!(rig.handle.metrics().read_failures.get(), 1);
}

#[test]
fn a_stopped_disk_starts_again() {
    let mut rig = Rig::new(8);
    assert_eq!(rig.write(0, &[9; 512]), answer(Status::Ok, 1));
    // Requests that were never served are forgotten with the driver that made them.
    rig.driver.send(&[give(HEADER, 16), take(DATA, 512), take(STATUS, 1)]);
    let idle = rig.device.stop();
    let ram = ram::flat(RAM_BYTES);
    let driver = Driver::new(&ram, RINGS, 16);
    let granted = Granted {
        ram: Ram::clone(&ram),
        features: idle.offered(),
        queues: vec![Some(driver.queue())],
        interrupt: rig.irq.clone(),
    };
    let Ok(device) = idle.start(granted) else { panic!() };
    let mut rig = Rig { ram, driver, device, ..rig };
    assert_eq!(rig.read(0, 512), answer(Status::Ok, 513));
    assert_eq!(ram::read(&rig.ram, DATA, 512), [9; 512]);
}
