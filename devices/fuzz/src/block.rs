//! A disk under a hostile driver, over a backing that fails, and a control thread that swaps it and changes limits.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};

use devices::clock::monotonic_ns;
use devices::limiter::{Group, LimiterSpec};
use devices::mem::VolatileSlice;
use devices::testing::block::MemBackend;
use devices::testing::engine::Reordered;
use devices::testing::queue::{give, take};
use devices::testing::ram;
use devices::virtio::Idle;
use devices::virtio::block::{Backend, Block, BlockOptions, Cache, Erasure};
use devices::virtio::queue::{total_len, truncate};

use crate::Input;
use crate::guest::{Guest, limits, play};

/// What becomes of the next calls: one byte each.
type Fates = Arc<Mutex<VecDeque<u8>>>;

/// A driver that means a request, more or less: any type, a few sectors, up to three segments of a discard, as data.
fn request(input: &mut Input, guest: &mut Guest) {
    const AT: u64 = 0x1_8000;
    let place = AT + u64::from(input.byte() % 16) * 0x100;
    let kind = match input.byte() % 8 {
        0 => 0,
        1 => 1,
        2 => 4,
        3 => 8,
        4 | 5 => 11,
        6 => 13,
        _ => u32::from(input.byte()),
    };
    let sector =
        |input: &mut Input| if input.chance() { u64::from(input.byte() % 10) } else { input.qword() };
    let mut raw = [&kind.to_le_bytes()[..], &[0; 4], &sector(input).to_le_bytes()].concat();
    for _ in 0..input.byte() % 4 {
        raw.extend(sector(input).to_le_bytes());
        raw.extend(u32::from(input.byte()).to_le_bytes());
        raw.extend(u32::from(input.byte() % 4).to_le_bytes());
    }
    ram::write(&guest.ram, place, &raw);
    let data =
        if matches!(kind, 0 | 8) { take(place + 0x80, 512) } else { give(place + 16, raw.len() as u32 - 16) };
    let data = if kind == 1 { give(place, 512) } else { data };
    let queue = usize::from(input.byte() & 1);
    guest.drivers[queue].send(&[give(place, 16), data, take(place + 0x70, 1)]);
}

/// A disk that fails or stops short as the input says.
#[derive(Clone)]
struct Disk(MemBackend, Fates);

impl Disk {
    /// The bytes to transfer, of `wanted`.
    fn fate(&self, wanted: usize) -> io::Result<usize> {
        match self.1.lock().expect("no panic goes on").pop_front() {
            None | Some(0) => Ok(wanted),
            Some(1) => Err(io::ErrorKind::Interrupted.into()),
            Some(2) => Err(io::ErrorKind::StorageFull.into()),
            Some(part) => Ok(wanted.min(usize::from(part))),
        }
    }
}

impl Backend for Disk {
    fn sectors(&self) -> u64 {
        self.0.sectors()
    }

    fn share(&self) -> Box<dyn Backend> {
        Box::new(Self(self.0.clone(), Arc::clone(&self.1)))
    }

    fn read_at(&mut self, offset: u64, into: &[VolatileSlice]) -> io::Result<usize> {
        let keep = self.fate(total_len(into))?;
        self.0.read_at(offset, truncate(&mut into.to_vec(), keep))
    }

    fn write_at(&mut self, offset: u64, from: &[VolatileSlice]) -> io::Result<usize> {
        assert!(offset + total_len(from) as u64 <= 512 * self.sectors(), "checked against the capacity");
        let keep = self.fate(total_len(from))?;
        self.0.write_at(offset, truncate(&mut from.to_vec(), keep))
    }

    fn erase(&mut self, offset: u64, len: u64, how: Erasure) -> io::Result<u64> {
        assert!(offset + len <= 512 * self.sectors(), "checked against the capacity");
        self.fate(0)?;
        self.0.erase(offset, len, how)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.fate(0)?;
        self.0.flush()
    }
}

/// Queues of the disk.
const QUEUES: u64 = 2;

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let fates = Fates::default();
    let engine = input.chance();
    let disk = |sectors| -> Box<dyn Backend> {
        let disk = Disk(MemBackend::zeroed(sectors), Arc::clone(&fates));
        if engine { Box::new(Reordered::new(disk, sectors as u64)) } else { Box::new(disk) }
    };
    let group = Group::new(&LimiterSpec::default(), 0);
    let options = BlockOptions {
        name: "fuzz".into(),
        read_only: input.chance(),
        discard: input.chance(),
        cache: if input.chance() { Cache::Writeback } else { Cache::Unsafe },
        serial: "fuzz".into(),
        limits: limits(&mut input),
        group: Some(group.clone()),
        queues: NonZeroU16::new(QUEUES as u16).expect("not 0"),
    };
    let block = Block::new(disk(8), &options);
    let (handle, config) = (block.handle(), Arc::clone(block.config()));
    let extra = |input: &mut Input, guest: &mut Guest| match input.byte() % 8 {
        0 => handle.swap_backing(disk(usize::from(input.byte() % 16))),
        1 if input.chance() => handle.set_limits(limits(input)),
        1 => group.set(&limits(input), monotonic_ns()),
        2 => _ = config.driver_writes(!0, 32, &[input.byte() & 1]),
        3..=5 => request(input, guest),
        _ => fates.lock().expect("no panic goes on").extend(input.take::<4>()),
    };
    let mut guest = play(block, QUEUES, &mut input, extra, || {
        fates.lock().expect("no panic goes on").clear();
        handle.swap_backing(disk(8));
        handle.set_limits(LimiterSpec::default());
        group.set(&LimiterSpec::default(), monotonic_ns());
    });
    // An honest driver reads the last sector.
    const HEADER: u64 = 0x1_0000;
    const DATA: u64 = 0x1_1000;
    const STATUS: u64 = 0x1_2000;
    let mut header = [0; 16];
    header[8] = 7;
    ram::write(&guest.ram, HEADER, &header);
    ram::write(&guest.ram, DATA, &[0xff; 512]);
    ram::write(&guest.ram, STATUS, &[0xff]);
    assert_eq!(guest.ask(0, &[give(HEADER, 16), take(DATA, 512), take(STATUS, 1)]), 513);
    assert_eq!(ram::read(&guest.ram, STATUS, 1), [0]);
    assert_eq!(ram::read(&guest.ram, DATA, 512), [0; 512]);
}
