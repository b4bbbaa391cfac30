//! A hostile guest, driven by bytes: each step is a store that a driver could do, or a call that the device would get.

use std::sync::Arc;

use devices::limiter::{BucketSpec, LimiterSpec};
use devices::mem::{Bytes, GuestAddress, Ram};
use devices::testing::irq::CountingIrq;
use devices::testing::queue::{Buf, Driver};
use devices::testing::ram;
use devices::virtio::{Granted, Idle, Running, Served};

use crate::Input;

/// Guest RAM.
pub const RAM_BYTES: usize = 0x2_0000;
/// Entries of each queue.
pub const SIZE: u16 = 16;
/// Steps of one input at most: keeps runs short, and slow inputs out of the corpus.
const STEPS_MAX: usize = 256;
/// Batches in a row that may say `More`: 16 chains at most are there to serve, and each serves one at least.
const BATCHES_MAX: usize = 20;
/// Times a device may fail to start in a row.
const TRIES_MAX: usize = 16;
/// Queues up to which a step is on one of the first two; the corpora of devices that have so few mean that.
const QUEUES_BY_BIT: u64 = 3;
/// Bytes of RAM that the rings of one queue may take.
const RINGS: u64 = 0x800;

/// An address: mostly in RAM, sometimes near its end or anywhere.
fn addr(input: &mut Input) -> u64 {
    match input.byte() {
        0 => input.qword(),
        1 => RAM_BYTES as u64 - u64::from(input.byte()),
        _ => u64::from(input.word()),
    }
}

/// A length: mostly small.
fn len(input: &mut Input) -> u32 {
    match input.byte() {
        0 => input.dword(),
        1 => 16,
        2 => 512,
        n => u32::from(n),
    }
}

/// Rate limits: none, generous ones, or any.
pub fn limits(input: &mut Input) -> LimiterSpec {
    let mut bucket = || match input.byte() {
        0..128 => None,
        128..192 => Some(BucketSpec { size: 1 << 20, one_time_burst: 0, refill_time_ms: 1 }),
        _ => Some(BucketSpec {
            size: input.qword(),
            one_time_burst: input.qword(),
            refill_time_ms: input.qword(),
        }),
    };
    LimiterSpec { bytes: bucket(), ops: bucket() }
}

/// One step of a driver on `driver`.
pub fn driver_step(driver: &mut Driver, ram: &Ram, input: &mut Input) {
    match input.byte() % 6 {
        0 => {
            let (index, addr, len) = (input.word() % SIZE, addr(input), len(input));
            driver.write_desc(index, addr, len, input.word(), input.word() % (SIZE + 1));
        }
        1 => {
            // An indirect table anywhere in the first half of RAM.
            let (table, index) = (u64::from(input.word()), u16::from(input.byte()));
            let (addr, len) = (addr(input), len(input));
            driver.write_desc_at(table, index, addr, len, input.word(), input.word());
        }
        2 | 3 => driver.publish(input.word() % (SIZE + 1)),
        4 => {
            let at = input.word();
            let bytes = input.take::<16>();
            let _outside = ram.write(&bytes, GuestAddress(u64::from(at)));
        }
        _ => match input.byte() % 3 {
            0 => driver.publish_index(input.word()),
            1 => driver.set_used_event(input.word()),
            _ => driver.want_interrupts(input.byte() & 1 == 0),
        },
    }
}

/// Serves as an owner would: again while there is more.
fn serve(device: &mut dyn Running, mut call: impl FnMut(&mut dyn Running) -> Served) -> Served {
    for _ in 0..BATCHES_MAX {
        let served = call(device);
        if served != Served::More {
            return served;
        }
    }
    panic!("work without end");
}

/// As an owner does that looks for work: what is found is done, or it would be found for ever.
fn look(device: &mut dyn Running, queue: u16) {
    if device.peek(queue) && serve(device, |device| device.serve(queue)) == Served::Drained {
        assert!(!device.peek(queue), "work that is not done");
    }
}

/// A device in use, and its guest.
pub struct Guest {
    /// Guest RAM.
    pub ram: Ram,
    /// The guest's side of each queue.
    pub drivers: Vec<Driver>,
    device: Box<dyn Running>,
}

impl Guest {
    /// Starts `device` for a driver that accepts `features` of those on offer, all `queues` enabled. A device whose host
    /// fails it at the start gets another try.
    fn start(mut device: Box<dyn Idle>, ram: &Ram, features: u64, queues: u64) -> Self {
        ram::write(ram, 0, &vec![0; usize::try_from(RINGS * queues).expect("little")]);
        let drivers: Vec<_> = (0..queues).map(|i| Driver::new(ram, RINGS * i, SIZE)).collect();
        for _ in 0..TRIES_MAX {
            let granted = Granted {
                ram: Arc::clone(ram),
                features: device.offered() & features,
                queues: drivers.iter().map(|driver| Some(driver.queue())).collect(),
                interrupt: CountingIrq::new(),
            };
            match device.start(granted) {
                Ok(device) => {
                    // As an owner does that has but one thread.
                    let _watched = device.sources();
                    return Self { ram: Arc::clone(ram), drivers, device };
                }
                Err(failed) => device = failed.device,
            }
        }
        panic!("a device that never starts");
    }

    /// Something happened on the host.
    pub fn host_event(&mut self) {
        self.source_is_ready(0);
    }

    /// The source of this index became readable.
    pub fn source_is_ready(&mut self, source: usize) {
        serve(&mut *self.device, |device| device.ready(source));
    }

    /// The driver kicks `queue`.
    pub fn kick(&mut self, queue: u16) {
        serve(&mut *self.device, |device| device.serve(queue));
    }

    /// The queues that have a part of their own go to it, and it ends: for the rest of the life of this driver they are served
    /// by nobody.
    pub fn lose_part(&mut self, queue: u16) {
        if let Some(part) = self.device.split_off(queue) {
            part.end();
        }
    }

    /// An honest driver makes `bufs` available on `queue`; how many bytes the device used of them.
    ///
    /// # Panics
    /// If the device does not answer.
    pub fn ask(&mut self, queue: u16, bufs: &[Buf]) -> u32 {
        let driver = &mut self.drivers[usize::from(queue)];
        let head = driver.send(bufs);
        serve(&mut *self.device, |device| device.serve(queue));
        self.device.settle();
        let (id, len) = driver.used().expect("an honest driver is answered");
        assert_eq!(id, u32::from(head));
        len
    }
}

/// Plays `input` against a device: driver steps on its queues, serves, resets, and what `extra` does. Then `settle` takes
/// back what the host did to it, and an honest driver starts it: the guest that can use it.
pub fn play(
    device: impl Idle + 'static,
    queues: u64,
    input: &mut Input,
    mut extra: impl FnMut(&mut Input, &mut Guest),
    settle: impl FnOnce(),
) -> Guest {
    play_in_ram(device, queues, input, |input, guest, _| extra(input, guest), settle)
}

/// The same where `extra` may store what it likes in the guest's RAM.
pub fn play_in_ram(
    device: impl Idle + 'static,
    queues: u64,
    input: &mut Input,
    mut extra: impl FnMut(&mut Input, &mut Guest, &Ram),
    settle: impl FnOnce(),
) -> Guest {
    let ram = ram::flat(RAM_BYTES);
    let features = input.qword();
    let mut guest = Guest::start(Box::new(device), &ram, features, queues);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        // A bit tells two queues apart; it takes a byte where there are many.
        let queue = match choice >> 7 {
            1 if queues > QUEUES_BY_BIT => u16::from(input.byte()) % queues as u16,
            bit => u16::from(bit) % queues as u16,
        };
        match choice & 0x7f {
            0 => guest = Guest::start(guest.device.stop(), &ram, features, queues),
            1..=16 => guest.kick(queue),
            17..=22 => guest.host_event(),
            23..=24 => guest.device.settle(),
            25..=40 => extra(input, &mut guest, &ram),
            125 => guest.device.set_polled(input.chance()),
            126..=127 => look(&mut *guest.device, queue),
            _ => driver_step(&mut guest.drivers[usize::from(queue)], &ram, input),
        }
    }
    settle();
    Guest::start(guest.device.stop(), &ram, devices::virtio::queue::F_VERSION_1, queues)
}
