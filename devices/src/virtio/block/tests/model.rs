//! The disk against a simple model of one: the same random requests, over engines, queue counts, and hosts that fail.

use proptest::prelude::*;

use super::queues::{Guest, Many, OK};
use super::*;
use crate::testing::engine::Reordered;

/// Requests that are in flight together, each in a zone of its own, where nobody else looks meanwhile.
const ZONES: u64 = 8;
const ZONE_SECTORS: u64 = 8;
const SECTORS: u64 = ZONES * ZONE_SECTORS;
/// Bytes of guest memory that one request of a queue may use.
const ROOM: u64 = 0x1400;

/// What a guest asks for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    kind: u32,
    /// Sectors from the start of its zone; past the disk's end if it is out of bounds.
    first: u64,
    sectors: u64,
    fill: u8,
}

impl Asked {
    fn any(chance: &mut Seed) -> Self {
        let first = chance.below(ZONE_SECTORS);
        Self {
            kind: chance.pick(&[IN, IN, OUT, OUT, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 77]),
            first: if chance.below(20) == 0 { SECTORS } else { first },
            sectors: 1 + chance.below(ZONE_SECTORS - first),
            fill: u8::try_from(chance.below(256)).unwrap(),
        }
    }

    fn is_out_of_bounds(&self, zone: u64) -> bool {
        zone * ZONE_SECTORS + self.first + self.sectors > SECTORS
    }
}

/// Where the parts of request `slot` of a queue lie.
fn place(guest: &Guest, slot: u64) -> (u64, u64, u64) {
    let base = guest.base + DATA + slot * ROOM;
    (base, base + 0x20, base + 0x200)
}

fn send(guest: &mut Guest, slot: u64, zone: u64, asked: &Asked) -> u16 {
    let (header, status, data) = place(guest, slot);
    let sector = zone * ZONE_SECTORS + asked.first;
    let len = u32::try_from(asked.sectors * 512).unwrap();
    let mut raw = [0; 16];
    raw[..4].copy_from_slice(&asked.kind.to_le_bytes());
    raw[8..].copy_from_slice(&sector.to_le_bytes());
    ram::write(&guest.ram, header, &raw);
    ram::write(&guest.ram, status, &[0xff]);
    ram::write(&guest.ram, data, &vec![asked.fill; len as usize]);
    let segment =
        [&sector.to_le_bytes()[..], &u32::try_from(asked.sectors).unwrap().to_le_bytes(), &[0; 4]].concat();
    let mut bufs = vec![give(header, 16)];
    match asked.kind {
        // In two parts, cut where no sector is.
        IN => bufs.extend([take(data, 100), take(data + 100, len - 100)]),
        OUT => bufs.extend([give(data, 100), give(data + 100, len - 100)]),
        DISCARD | WRITE_ZEROES => {
            ram::write(&guest.ram, data, &segment);
            bufs.push(give(data, 16));
        }
        GET_ID => bufs.push(take(data, 20)),
        _ => {}
    }
    bufs.push(take(status, 1));
    guest.driver.send(&bufs)
}

/// Checks an answer, and has the model do what was asked for.
fn check(
    guest: &Guest,
    slot: u64,
    zone: u64,
    asked: &Asked,
    model: &mut [u8],
    disk: &MemBackend,
    may_fail: bool,
) {
    let (_, status, data) = place(guest, slot);
    let status = ram::read(&guest.ram, status, 1)[0];
    let bad = match asked.kind {
        IN | OUT | DISCARD | WRITE_ZEROES => asked.is_out_of_bounds(zone),
        _ => false,
    };
    if asked.kind == 77 {
        return assert_eq!(status, Status::Unsupp as u8, "{asked:?}");
    }
    if bad {
        return assert_eq!(status, Status::IoErr as u8, "{asked:?}");
    }
    let start = usize::try_from(zone * ZONE_SECTORS + asked.first).unwrap() * 512;
    let range = start..start + usize::try_from(asked.sectors).unwrap() * 512;
    if status != OK {
        assert!(may_fail, "{asked:?} failed on a host that does not");
        assert_eq!(status, Status::IoErr as u8, "{asked:?}");
        // A write that failed may have happened in part.
        if matches!(asked.kind, OUT | DISCARD | WRITE_ZEROES) {
            model[range.clone()].copy_from_slice(&disk.platter().bytes[range]);
        }
        return;
    }
    match asked.kind {
        IN => {
            assert!(ram::read(&guest.ram, data, range.len()) == model[range], "{asked:?} read something else")
        }
        OUT => model[range].fill(asked.fill),
        DISCARD | WRITE_ZEROES => model[range].fill(0),
        GET_ID => assert_eq!(ram::read(&guest.ram, data, 5), b"yun-0"),
        _ => {}
    }
}

fn backend(kind: u8, disk: &MemBackend, seed: u64) -> Box<dyn Backend> {
    let faulty = || FaultyBackend::new(disk.clone(), seed);
    match kind {
        0 => Box::new(disk.clone()),
        1 => Box::new(Reordered::new(disk.clone(), seed)),
        2 => Box::new(faulty()),
        _ => Box::new(Reordered::new(faulty(), seed)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_disk_is_what_its_model_is_whatever_the_engine_the_queues_and_the_host(
        seed: u64, queues in 1u16..5, kind in 0u8..4, write_through: bool, pause: bool,
    ) {
        let mut chance = Seed::new(seed);
        let disk = MemBackend::zeroed(usize::try_from(SECTORS).unwrap());
        let mut many = Many::new(queues, backend(kind, &disk, seed), &options());
        if write_through {
            many.config.driver_writes(!0, 32, &[0]);
        }
        let mut model = vec![0; usize::try_from(SECTORS).unwrap() * 512];
        for _ in 0..12 {
            let mut sent: Vec<(u16, u64, u64, Asked)> = Vec::new();
            for zone in 0..ZONES {
                let queue = u16::try_from(chance.below(queues.into())).unwrap();
                let asked = Asked::any(&mut chance);
                // Rings of 16: five descriptors each, three requests of a queue at most.
                let slot = sent.iter().filter(|(other, ..)| *other == queue).count() as u64;
                if slot == 3 {
                    continue;
                }
                send(&mut many.guests[usize::from(queue)], slot, zone, &asked);
                sent.push((queue, slot, zone, asked));
            }
            let mut open = sent.len();
            let mut calls = 0;
            while open > 0 {
                for queue in 0..queues {
                    let served = match chance.below(3) {
                        0 => many.device.ready(queue.into()),
                        _ => many.device.serve(queue),
                    };
                    prop_assert!(served != Served::Broken);
                    open -= std::iter::from_fn(|| many.guests[usize::from(queue)].driver.used()).count();
                }
                if pause && chance.below(4) == 0 {
                    many.device.settle();
                }
                calls += 1;
                prop_assert!(calls < 1000, "{open} requests are never answered");
            }
            for (queue, slot, zone, asked) in &sent {
                let guest = &many.guests[usize::from(*queue)];
                check(guest, *slot, *zone, asked, &mut model, &disk, kind >= 2);
            }
        }
        many.device.stop();
        prop_assert!(disk.platter().bytes == model, "the disk ends as something else");
    }
}
