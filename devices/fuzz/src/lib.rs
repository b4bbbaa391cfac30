//! A hostile guest, driven by bytes: each step is a store that a driver could do, or a call that the device would get.

use std::sync::Arc;

use devices::mem::{Bytes, GuestAddress, Ram};
use devices::testing::irq::CountingIrq;
use devices::testing::queue::Driver;
use devices::testing::ram;
use devices::virtio::{Granted, Idle, Running, Served};

/// Guest RAM.
pub const RAM_BYTES: usize = 0x2_0000;
/// Entries of each queue.
pub const SIZE: u16 = 16;
/// Steps of one input at most: keeps runs short, and slow inputs out of the corpus.
const STEPS_MAX: usize = 256;
/// Batches in a row that may say `More`: 16 chains at most are there to serve.
const BATCHES_MAX: usize = 4;

/// The input, read front to back; zeros past its end.
pub struct Input<'d>(pub &'d [u8]);

impl Input<'_> {
    /// Whether anything is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let n = N.min(self.0.len());
        bytes[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        bytes
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// The next two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// An address: mostly in RAM, sometimes near its end or anywhere.
    pub fn addr(&mut self) -> u64 {
        match self.byte() {
            0 => u64::from_le_bytes(self.take()),
            1 => RAM_BYTES as u64 - u64::from(self.byte()),
            _ => u64::from(self.word()),
        }
    }

    /// A length: mostly small.
    pub fn len(&mut self) -> u32 {
        match self.byte() {
            0 => u32::from_le_bytes(self.take()),
            1 => 16,
            2 => 512,
            n => u32::from(n),
        }
    }
}

/// One step of a driver on `driver`.
pub fn driver_step(driver: &mut Driver, ram: &Ram, input: &mut Input) {
    match input.byte() % 6 {
        0 => {
            let (index, addr, len) = (input.word() % SIZE, input.addr(), input.len());
            driver.write_desc(index, addr, len, input.word(), input.word() % (SIZE + 1));
        }
        1 => {
            // An indirect table anywhere in the first half of RAM.
            let (table, index) = (u64::from(input.word()), u16::from(input.byte()));
            let (addr, len) = (input.addr(), input.len());
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
pub fn serve(device: &mut dyn Running, mut call: impl FnMut(&mut dyn Running) -> Served) {
    for _ in 0..BATCHES_MAX {
        if call(device) != Served::More {
            return;
        }
    }
    panic!("work without end");
}

/// Plays `input` against a device: driver steps on its queues, serves, resets, and what `extra` does.
pub fn play(device: impl Idle + 'static, queues: u64, input: &mut Input, mut extra: impl FnMut(&mut Input)) {
    let ram = ram::flat(RAM_BYTES);
    let features = u64::from_le_bytes(input.take());
    let mut idle: Box<dyn Idle> = Box::new(device);
    let irq = CountingIrq::new();
    let start = |idle: Box<dyn Idle>| {
        let drivers: Vec<_> = (0..queues).map(|i| Driver::new(&ram, 0x800 * i, SIZE)).collect();
        let granted = Granted {
            ram: Arc::clone(&ram),
            features: idle.offered() & features,
            queues: drivers.iter().map(|driver| Some(driver.queue())).collect(),
            interrupt: irq.clone(),
        };
        (drivers, idle.start(granted).unwrap_or_else(|failed| panic!("{}", failed.reason)))
    };
    let (mut drivers, mut device) = start(idle);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        let queue = u16::from(choice >> 7) % queues as u16;
        match choice & 0x7f {
            0 => {
                idle = device.stop();
                ram::write(&ram, 0, &[0; 0x1000]);
                (drivers, device) = start(idle);
            }
            1..=16 => serve(&mut *device, |device| device.serve(queue)),
            17..=24 => serve(&mut *device, |device| device.ready(0)),
            25..=40 => extra(input),
            _ => driver_step(&mut drivers[usize::from(queue)], &ram, input),
        }
    }
    device.stop();
}
