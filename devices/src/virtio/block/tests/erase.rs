//! Discard, write zeroes and the cache mode that the driver chooses.

use super::super::Erasure;
use super::*;

/// A segment: sector, sectors, flags.
type Segment = (u64, u32, u32);

impl Rig {
    fn erase(&mut self, kind: u32, segments: &[Segment]) -> Answer {
        let raw: Vec<u8> = segments
            .iter()
            .flat_map(|(sector, sectors, flags)| {
                [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
            })
            .collect();
        self.erase_raw(kind, &raw)
    }

    fn erase_raw(&mut self, kind: u32, raw: &[u8]) -> Answer {
        self.header(kind, 0);
        ram::write(&self.ram, DATA, raw);
        self.ask(&[give(HEADER, 16), give(DATA, u32::try_from(raw.len()).unwrap()), take(STATUS, 1)])
    }

    fn erasures(&self) -> Vec<(u64, u64, Erasure)> {
        self.disk.platter().erasures.clone()
    }
}

fn full(sectors: usize) -> MemBackend {
    MemBackend::new(vec![0xAA; sectors * 512])
}

#[test]
fn segments_are_erased_in_order_and_nothing_else_is() {
    let mut rig = Rig::with(full(64), &options());
    assert_eq!(rig.erase(DISCARD, &[(1, 2, 0), (8, 1, 0), (0, 0, 0)]), answer(Status::Ok, 1));
    assert_eq!(rig.erase(WRITE_ZEROES, &[(16, 1, 0), (18, 46, 1)]), answer(Status::Ok, 1));
    let expected = [
        (512, 1024, Erasure::Discard),
        (4096, 512, Erasure::Discard),
        (0, 0, Erasure::Discard),
        (8192, 512, Erasure::Zero { unmap: false }),
        (18 * 512, 46 * 512, Erasure::Zero { unmap: true }),
    ];
    assert_eq!(rig.erasures(), expected);
    let platter = rig.disk.platter();
    for (sector, bytes) in platter.bytes.chunks(512).enumerate() {
        let erased = matches!(sector, 1 | 2 | 8 | 16 | 18..);
        assert!(bytes.iter().all(|&byte| byte == if erased { 0 } else { 0xAA }), "sector {sector}");
    }
    let metrics = rig.handle.metrics();
    assert_eq!((metrics.erase_count.get(), metrics.erase_bytes.get()), (2, 512 * (3 + 47)));
}

#[test]
fn a_segment_cut_by_descriptors_is_still_a_segment() {
    let mut rig = Rig::new(8);
    rig.header(DISCARD, 0);
    ram::write(&rig.ram, DATA, &[&3u64.to_le_bytes()[..], &1u32.to_le_bytes(), &[0; 4]].concat());
    let bufs = [give(HEADER, 16), give(DATA, 5), give(DATA + 5, 11), take(STATUS, 1)];
    assert_eq!(rig.ask(&bufs), answer(Status::Ok, 1));
    assert_eq!(rig.erasures(), [(1536, 512, Erasure::Discard)]);
}

#[test]
fn one_bad_segment_refuses_the_request_before_any_is_erased() {
    let refused = [
        (DISCARD, (7, 2, 0), Status::IoErr),
        (DISCARD, (u64::MAX, 1, 0), Status::IoErr),
        (DISCARD, (u64::MAX / 512 + 1, 1, 0), Status::IoErr),
        (DISCARD, (0, DISCARD_SECTORS_MAX + 1, 0), Status::IoErr),
        (WRITE_ZEROES, (0, ZEROES_SECTORS_MAX + 1, 0), Status::IoErr),
        (WRITE_ZEROES, (8, 1, 1), Status::IoErr),
        (DISCARD, (0, 1, 1), Status::Unsupp),
        (DISCARD, (0, 1, 2), Status::Unsupp),
        (WRITE_ZEROES, (0, 1, 2), Status::Unsupp),
        (WRITE_ZEROES, (0, 1, 3), Status::Unsupp),
    ];
    for (kind, bad, status) in refused {
        let mut rig = Rig::with(full(8), &options());
        assert_eq!(rig.erase(kind, &[(0, 1, 0), bad]), answer(status, 1), "{kind} {bad:?}");
        assert_eq!((rig.erasures(), rig.handle.metrics().refused.get()), (vec![], 1));
    }
}

#[test]
fn no_segment_part_of_one_and_too_many_are_refused() {
    let mut rig = Rig::new(8);
    for (kind, max) in [(DISCARD, DISCARD_SEGMENTS_MAX), (WRITE_ZEROES, ZEROES_SEGMENTS_MAX)] {
        let max = max as usize;
        for len in [0, 1, 15, 17, 16 * max + 1, 16 * (max + 1), 0x1000] {
            assert_eq!(rig.erase_raw(kind, &vec![0; len]), answer(Status::IoErr, 1), "{kind}: {len} bytes");
        }
        assert_eq!(rig.erasures(), []);
        assert_eq!(rig.erase_raw(kind, &vec![0; 16 * max]), answer(Status::Ok, 1));
        assert_eq!(std::mem::take(&mut rig.disk.platter().erasures).len(), max);
    }
}

#[test]
fn a_read_only_disk_offers_neither_and_refuses_both() {
    let read_only = BlockOptions { read_only: true, ..options() };
    let block = Block::new(Box::new(full(8)), &read_only);
    assert_eq!(block.offered() & (F_DISCARD | F_WRITE_ZEROES), 0);
    let mut rig = Rig::with(full(8), &read_only);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(rig.erase(kind, &[(0, 1, 0)]), answer(Status::IoErr, 1));
    }
    assert_eq!(rig.erasures(), []);
}

#[test]
fn a_disk_that_keeps_its_blocks_offers_no_discard_and_makes_no_holes() {
    let keeps = BlockOptions { discard: false, ..options() };
    let block = Block::new(Box::new(full(8)), &keeps);
    assert_eq!(block.offered() & (F_DISCARD | F_WRITE_ZEROES), F_WRITE_ZEROES);
    let mut may_unmap = [0xff];
    block.config().read(56, &mut may_unmap);
    assert_eq!(may_unmap, [0]);
    let mut rig = Rig::with(full(8), &keeps);
    assert_eq!(rig.erase(DISCARD, &[(0, 1, 0)]), answer(Status::Unsupp, 1));
    assert_eq!(rig.erasures(), []);
    assert_eq!(rig.erase(WRITE_ZEROES, &[(2, 3, 1)]), answer(Status::Ok, 1));
    assert_eq!(rig.erasures(), [(2 * 512, 3 * 512, Erasure::Zero { unmap: false })]);
}

#[test]
fn what_was_not_agreed_on_is_unsupported() {
    for (kind, feature) in [(DISCARD, F_DISCARD), (WRITE_ZEROES, F_WRITE_ZEROES)] {
        let disk = full(8);
        let block = Block::new(Box::new(disk.clone()), &options());
        let mut rig = Rig::over(disk, block, !(feature | F_EVENT_IDX));
        assert_eq!(rig.erase(kind, &[(0, 1, 0)]), answer(Status::Unsupp, 1));
    }
}

#[test]
fn an_erasure_that_fails_is_an_error_and_counted() {
    let disk = full(8);
    let mut faulty = FaultyBackend::new(disk.clone(), 1);
    faulty.failing = 100;
    let mut rig = Rig::over(disk, Block::new(Box::new(faulty), &options()), !F_EVENT_IDX);
    assert_eq!(rig.erase(WRITE_ZEROES, &[(0, 1, 0)]), answer(Status::IoErr, 1));
    let metrics = rig.handle.metrics();
    assert_eq!((metrics.erase_failures.get(), metrics.erase_count.get()), (1, 0));
}

/// A disk that can erase only by writing.
struct Plain(MemBackend);

impl Backend for Plain {
    fn sectors(&self) -> u64 {
        self.0.sectors()
    }
    fn share(&self) -> Box<dyn Backend> {
        Box::new(Self(self.0.clone()))
    }
    fn read_at(&mut self, offset: u64, into: &[crate::mem::VolatileSlice]) -> std::io::Result<usize> {
        self.0.read_at(offset, into)
    }
    fn write_at(&mut self, offset: u64, from: &[crate::mem::VolatileSlice]) -> std::io::Result<usize> {
        self.0.write_at(offset, from)
    }
    fn erase(&mut self, offset: u64, len: u64, how: Erasure) -> std::io::Result<u64> {
        self.0.erase(offset, len, how).map(|_| len)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn zeros_that_had_to_be_written_count_against_the_rate_limit() {
    let bucket = BucketSpec { size: 4096, one_time_burst: 0, refill_time_ms: 3_600_000 };
    let limits = LimiterSpec { bytes: Some(bucket), ops: None };
    let disk = full(64);
    let block = Block::new(Box::new(Plain(disk.clone())), &BlockOptions { limits, ..options() });
    let mut rig = Rig::over(disk, block, !F_EVENT_IDX);
    assert_eq!(rig.erase(WRITE_ZEROES, &[(0, 64, 0)]), answer(Status::Ok, 1));
    rig.header(IN, 0);
    rig.driver.send(&[give(HEADER, 16), take(DATA, 512), take(STATUS, 1)]);
    let Served::After(wait) = rig.device.serve(0) else { panic!("the debt holds the queue") };
    assert!(wait > Duration::from_secs(7 * 3600), "{wait:?}");
}

#[test]
fn a_driver_that_switches_to_write_through_gets_what_it_wrote_and_each_later_write_flushed() {
    let mut rig = Rig::new(8);
    let block = Block::new(Box::new(MemBackend::zeroed(8)), &options());
    let features = block.offered();
    assert_eq!(rig.write(0, &[1; 512]), answer(Status::Ok, 1));
    assert_eq!(rig.disk.platter().flushes, 0);
    let config = rig.config.clone();
    assert!(!config.driver_writes(features & !F_CONFIG_WCE, 32, &[0]), "it was not agreed on");
    assert!(!config.driver_writes(features, 31, &[0]), "another byte");
    assert!(config.driver_writes(features, 32, &[0]));
    assert_eq!(rig.device.serve(0), Served::Drained);
    assert_eq!(rig.disk.platter().flushes, 1);
    assert_eq!(rig.write(1, &[1; 512]), answer(Status::Ok, 1));
    assert_eq!(rig.erase(WRITE_ZEROES, &[(0, 1, 0)]), answer(Status::Ok, 1));
    assert_eq!(rig.erase(DISCARD, &[(0, 1, 0)]), answer(Status::Ok, 1));
    assert_eq!(rig.disk.platter().flushes, 3, "one for each write, none for a discard");
    assert_eq!(rig.flush(), answer(Status::Ok, 1));
    assert!(config.driver_writes(features, 30, &[9, 9, 1, 9]));
    assert_eq!(rig.write(2, &[1; 512]), answer(Status::Ok, 1));
    assert_eq!(rig.disk.platter().flushes, 4);
    // A driver that comes after one that left it off finds it on.
    assert!(config.driver_writes(features, 32, &[0]));
    rig.device.stop();
    let mut byte = [0];
    config.read(32, &mut byte);
    assert_eq!(byte, [1]);
}
