//! Several queues: served by one thread or by one each, over one storage.

use std::thread;

use super::*;
use crate::virtio::Part;

/// Guest RAM for each queue: its rings, then headers, status bytes and data at the places above.
const RAM_EACH: u64 = RAM_BYTES as u64;

/// The guest's side of one queue.
pub(super) struct Guest {
    pub ram: Ram,
    pub base: u64,
    pub driver: Driver,
}

impl Guest {
    fn send(&mut self, kind: u32, sector: u64, data: Option<Buf>) {
        let mut raw = [0; 16];
        raw[..4].copy_from_slice(&kind.to_le_bytes());
        raw[8..].copy_from_slice(&sector.to_le_bytes());
        ram::write(&self.ram, self.base + HEADER, &raw);
        ram::write(&self.ram, self.base + STATUS, &[0xff]);
        let mut bufs = vec![give(self.base + HEADER, 16), take(self.base + STATUS, 1)];
        data.into_iter().for_each(|data| bufs.insert(1, data));
        self.driver.send(&bufs);
    }

    pub fn send_write(&mut self, sector: u64, byte: u8) {
        ram::write(&self.ram, self.base + DATA, &[byte; 512]);
        self.send(OUT, sector, Some(give(self.base + DATA, 512)));
    }

    /// The status of the answer, if there is one.
    pub fn answer(&mut self) -> Option<u8> {
        self.driver.used().map(|_| ram::read(&self.ram, self.base + STATUS, 1)[0])
    }
}

pub(super) struct Many {
    pub guests: Vec<Guest>,
    pub irq: Arc<CountingIrq>,
    pub handle: BlockHandle,
    pub config: Arc<ConfigSpace>,
    pub device: Box<dyn Running>,
}

impl Many {
    pub(super) fn new(queues: u16, backend: Box<dyn Backend>, options: &BlockOptions) -> Self {
        let options = BlockOptions { queues: NonZeroU16::new(queues).unwrap(), ..options.clone() };
        let ram = ram::flat(RAM_BYTES * usize::from(queues));
        let guests: Vec<_> = (0..u64::from(queues))
            .map(|queue| {
                let base = queue * RAM_EACH;
                Guest { ram: Ram::clone(&ram), base, driver: Driver::new(&ram, base + RINGS, 16) }
            })
            .collect();
        let irq = CountingIrq::new();
        let block = Block::new(backend, &options);
        let (handle, config) = (block.handle(), Arc::clone(block.config()));
        let granted = Granted {
            ram,
            features: block.offered() & !F_EVENT_IDX,
            queues: guests.iter().map(|guest| Some(guest.driver.queue())).collect(),
            interrupt: irq.clone(),
        };
        let Ok(device) = Box::new(block).start(granted) else { panic!("a disk always starts") };
        Self { guests, irq, handle, config, device }
    }

    /// Has queue `index` served and expects an answer.
    fn answered(&mut self, index: u16) -> u8 {
        assert_eq!(self.device.serve(index), Served::Drained);
        self.guests[usize::from(index)].answer().expect("an answer")
    }
}

pub(super) const OK: u8 = Status::Ok as u8;

#[test]
fn more_than_one_queue_is_on_offer_and_counted_in_the_configuration() {
    let block = Block::new(
        Box::new(MemBackend::zeroed(8)),
        &BlockOptions { queues: NonZeroU16::new(5).unwrap(), ..options() },
    );
    assert_eq!((block.offered() & F_MQ, block.queue_sizes_max()), (F_MQ, &[QUEUE_SIZE; 5][..]));
    let mut count = [0; 2];
    block.config().read(34, &mut count);
    assert_eq!(u16::from_le_bytes(count), 5);
}

#[test]
fn a_queue_serves_its_own_requests_and_raises_its_own_interrupt() {
    let disk = MemBackend::zeroed(8);
    let mut many = Many::new(3, Box::new(disk.clone()), &options());
    many.guests[1].send_write(1, 0x11);
    many.guests[2].send_write(2, 0x22);
    assert_eq!(many.answered(2), OK);
    assert_eq!((many.guests[1].answer(), disk.platter().bytes[512]), (None, 0));
    assert_eq!(many.answered(1), OK);
    assert_eq!(many.device.serve(0), Served::Drained);
    assert_eq!([0, 1, 2].map(|queue| many.irq.raised_on(queue)), [0, 1, 1]);
    let metrics = many.handle.metrics();
    assert_eq!((metrics.write_count.get(), metrics.write_bytes.get()), (2, 1024));
}

#[test]
fn a_polled_queue_is_found_without_a_kick_and_asks_for_kicks_again_when_it_is_polled_no_more() {
    let mut many = Many::new(2, Box::new(MemBackend::zeroed(8)), &options());
    many.device.set_polled(true);
    assert_eq!([many.device.serve(0), many.device.serve(1)], [Served::Drained; 2]);
    assert!(many.guests.iter().all(|guest| guest.driver.kicks_suppressed()));
    assert!(!many.device.peek(0) && !many.device.peek(1) && !many.device.peek(2));
    many.guests[1].send_write(1, 0x11);
    assert!(!many.device.peek(0) && many.device.peek(1));
    assert_eq!(many.answered(1), OK);
    assert!(!many.device.peek(1));
    many.device.set_polled(false);
    assert_eq!([many.device.serve(0), many.device.serve(1)], [Served::Drained; 2]);
    assert!(many.guests.iter().all(|guest| !guest.driver.kicks_suppressed()));
    // A part likewise.
    let mut part = many.device.split_off(1).unwrap();
    part.set_polled(true);
    assert_eq!(part.serve(1), Served::Drained);
    many.guests[1].send_write(1, 0x22);
    assert!(part.peek(1) && !many.device.peek(1) && many.guests[1].driver.kicks_suppressed());
    part.end();
}

#[test]
fn a_queue_that_was_split_off_is_served_by_its_part_alone() {
    let disk = MemBackend::zeroed(8);
    let mut many = Many::new(2, Box::new(disk.clone()), &options());
    assert_eq!((many.device.part_of(1), many.device.part_of(2)), (Some(1..2), None));
    let mut part = many.device.split_off(1).unwrap();
    assert!(many.device.split_off(1).is_none() && many.device.split_off(2).is_none());
    many.guests[1].send_write(1, 0x11);
    assert_eq!(many.device.serve(1), Served::Drained);
    assert_eq!(many.guests[1].answer(), None);
    assert_eq!(part.serve(1), Served::Drained);
    assert_eq!(many.guests[1].answer(), Some(OK));
    part.end();
    // The next driver gets all queues again.
    let idle = many.device.stop();
    assert_eq!(idle.queue_sizes_max().len(), 2);
}

#[test]
fn a_driver_that_breaks_one_queue_has_broken_the_device() {
    let mut many = Many::new(2, Box::new(MemBackend::zeroed(8)), &options());
    many.guests[1].driver.publish(0xffff);
    assert_eq!((many.device.serve(1), many.device.serve(0)), (Served::Broken, Served::Broken));
    assert_eq!((many.irq.resets_asked(), many.handle.metrics().broken.get()), (1, 1));
}

#[test]
fn a_rate_limit_is_of_all_queues_together() {
    let hour = BucketSpec { size: 3, one_time_burst: 0, refill_time_ms: 3_600_000 };
    let limits = LimiterSpec { bytes: None, ops: Some(hour) };
    let mut many = Many::new(2, Box::new(MemBackend::zeroed(8)), &BlockOptions { limits, ..options() });
    for queue in [0, 1, 0] {
        many.guests[usize::from(queue)].send_write(1, 1);
        assert_eq!(many.answered(queue), OK);
    }
    for queue in [0, 1] {
        many.guests[usize::from(queue)].send_write(1, 1);
        assert!(matches!(many.device.serve(queue), Served::After(_)), "queue {queue}");
    }
    many.handle.set_limits(LimiterSpec::default());
    assert_eq!([many.answered(0), many.answered(1)], [OK; 2]);
}

#[test]
fn a_flush_covers_what_another_queue_wrote_to_a_backing_that_was_replaced() {
    let (old, new) = (MemBackend::zeroed(8), MemBackend::zeroed(8));
    let mut many = Many::new(2, Box::new(old.clone()), &options());
    many.guests[0].send_write(0, 7);
    assert_eq!(many.answered(0), OK);
    many.handle.swap_backing(Box::new(new.clone()));
    // Queue 1 serves for the first time, with the new backing; queue 0 has not heard of it.
    many.guests[1].send(FLUSH, 0, None);
    assert_eq!(many.answered(1), OK);
    let flushes = old.platter().flushes;
    assert!(flushes > 0);
    // Queue 0 is behind: it may have written in between.
    many.guests[1].send(FLUSH, 0, None);
    assert_eq!(many.answered(1), OK);
    assert_eq!(old.platter().flushes, flushes + 1);
    // It catches up, and from then on the old backing is nobody's business.
    assert_eq!(many.device.serve(0), Served::Drained);
    let flushes = old.platter().flushes;
    many.guests[1].send(FLUSH, 0, None);
    assert_eq!(many.answered(1), OK);
    assert_eq!((old.platter().flushes, new.platter().flushes), (flushes, 3));
    assert_eq!(many.handle.metrics().swaps.get(), 1);
}

#[test]
fn a_replaced_backing_that_cannot_be_flushed_fails_the_next_flush_of_any_queue_once() {
    let mut bad = FaultyBackend::new(MemBackend::zeroed(8), 1);
    bad.failing = 100;
    let mut many = Many::new(2, Box::new(bad), &options());
    assert_eq!(many.device.serve(0), Served::Drained);
    many.handle.swap_backing(Box::new(MemBackend::zeroed(8)));
    assert_eq!(many.device.serve(0), Served::Drained);
    for status in [Status::IoErr, Status::Ok] {
        many.guests[1].send(FLUSH, 0, None);
        assert_eq!(many.answered(1), status as u8);
    }
}

/// A disk that tells when the last share of it goes.
struct Counted(MemBackend, Arc<()>);

impl Backend for Counted {
    fn sectors(&self) -> u64 {
        self.0.sectors()
    }
    fn share(&self) -> Box<dyn Backend> {
        Box::new(Self(self.0.clone(), Arc::clone(&self.1)))
    }
    fn read_at(&mut self, offset: u64, into: &[crate::mem::VolatileSlice]) -> std::io::Result<usize> {
        self.0.read_at(offset, into)
    }
    fn write_at(&mut self, offset: u64, from: &[crate::mem::VolatileSlice]) -> std::io::Result<usize> {
        self.0.write_at(offset, from)
    }
    fn erase(&mut self, offset: u64, len: u64, how: Erasure) -> std::io::Result<u64> {
        self.0.erase(offset, len, how)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn replaced_backings_go_when_the_last_queue_let_go_of_them_and_unused_ones_at_once() {
    let life = || {
        let life = Arc::new(());
        (Box::new(Counted(MemBackend::zeroed(8), Arc::clone(&life))), life)
    };
    let gone = |life: &Arc<()>| Arc::strong_count(life) == 1;
    let (first, first_life) = life();
    let mut many = Many::new(2, first, &options());
    for queue in [0, 1] {
        assert_eq!(many.device.serve(queue), Served::Drained);
    }
    let (second, second_life) = life();
    many.handle.swap_backing(second);
    let (third, third_life) = life();
    many.handle.swap_backing(third);
    assert!(gone(&second_life), "nobody ever used it");
    assert_eq!(many.device.serve(0), Served::Drained);
    assert!(!gone(&first_life), "queue 1 still uses it");
    assert_eq!(many.device.serve(1), Served::Drained);
    assert!(gone(&first_life) && !gone(&third_life));
    // A device that stops and a swap after it: the old one goes with the first batch of the next life, flushed.
    let idle = many.device.stop();
    many.handle.swap_backing(Box::new(MemBackend::zeroed(8)));
    drop(idle);
    drop(many.handle);
    assert!(gone(&third_life));
}

/// One queue's guest and device on a thread: writes its sectors over and over, and reads them back.
fn hammer(mut guest: Guest, mut part: Box<dyn Part>, rounds: u8) {
    let sectors = guest.base / RAM_EACH * 4..guest.base / RAM_EACH * 4 + 4;
    for round in 1..=rounds {
        for sector in sectors.clone() {
            guest.send_write(sector, round);
            assert_eq!(part.serve(0), Served::Drained);
            assert_eq!(guest.answer(), Some(OK));
        }
        for sector in sectors.clone() {
            ram::write(&guest.ram, guest.base + DATA, &[0xEE; 512]);
            guest.send(IN, sector, Some(take(guest.base + DATA, 512)));
            assert_eq!(part.serve(0), Served::Drained);
            assert_eq!(guest.answer(), Some(OK));
            assert_eq!(ram::read(&guest.ram, guest.base + DATA, 512), [round; 512]);
        }
        guest.send(FLUSH, 0, None);
        assert_eq!(part.serve(0), Served::Drained);
        assert_eq!(guest.answer(), Some(OK));
    }
    part.end();
}

#[test]
fn threads_serve_their_queues_at_once_while_limits_change_and_every_request_is_counted() {
    const QUEUES: u16 = 4;
    const ROUNDS: u8 = 100;
    let disk = MemBackend::zeroed(4 * usize::from(QUEUES));
    let Many { guests, handle, mut device, irq, .. } = Many::new(QUEUES, Box::new(disk), &options());
    let generous = BucketSpec { size: 1 << 40, one_time_burst: 0, refill_time_ms: 1 };
    thread::scope(|scope| {
        for (queue, guest) in (0..).zip(guests) {
            let part = device.split_off(queue).unwrap();
            scope.spawn(move || hammer(guest, part, ROUNDS));
        }
        for _ in 0..50 {
            handle.set_limits(LimiterSpec { bytes: Some(generous), ops: Some(generous) });
            handle.set_limits(LimiterSpec::default());
        }
    });
    let count = u64::from(QUEUES) * u64::from(ROUNDS) * 4;
    let metrics = handle.metrics();
    assert_eq!((metrics.write_count.get(), metrics.read_count.get()), (count, count));
    assert_eq!(metrics.flush_count.get(), u64::from(QUEUES) * u64::from(ROUNDS));
    assert_eq!((metrics.interrupts.get(), irq.resets_asked()), (2 * count + metrics.flush_count.get(), 0));
    device.stop();
}
