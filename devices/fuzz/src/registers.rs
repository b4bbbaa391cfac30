//! A device behind either transport, under a driver that reads and writes its registers and configuration space as it likes.

use std::num::NonZeroU16;
use std::sync::Arc;

use devices::mem::{Bytes, GuestAddress};
use devices::testing::block::MemBackend;
use devices::testing::fake::FakeDevice;
use devices::testing::net::FakeTap;
use devices::testing::ram;
use devices::testing::transport::{QueueLayout, TransportDriver, Via};
use devices::virtio::Idle;
use devices::virtio::block::{Block, BlockOptions, Cache};
use devices::virtio::net::{Net, NetOptions};
use devices::virtio::rng::Rng;
use devices::virtio::spec::status;

use crate::Input;
use crate::guest::RAM_BYTES;

/// Accesses of one input at most.
const STEPS_MAX: usize = 256;
/// Queues that every device here may have, at most.
const QUEUES_MAX: u16 = 2;

fn device(input: &mut Input) -> Box<dyn Idle> {
    match input.byte() % 4 {
        0 => {
            let options = BlockOptions {
                name: "fuzz".into(),
                read_only: false,
                discard: true,
                cache: Cache::Writeback,
                serial: "fuzz".into(),
                limits: Default::default(),
                group: None,
                queues: NonZeroU16::new(QUEUES_MAX).expect("not 0"),
            };
            Box::new(Block::new(Box::new(MemBackend::zeroed(8)), &options))
        }
        1 => {
            let tap = FakeTap::new();
            tap.traffic().incoming.push_back(vec![7; 100]);
            let options = NetOptions { mac: Some([2; 6]), mtu: Some(1500), ..NetOptions::default() };
            Box::new(Net::new(Box::new(tap), &options))
        }
        2 => Box::new(Rng::new(&Default::default())),
        _ => FakeDevice::new().0,
    }
}

/// A place for a queue: mostly a sound one.
fn layout(input: &mut Input) -> QueueLayout {
    let base = 0x1000 * u64::from(input.byte() & 0xf);
    let mut layout = QueueLayout { size: 16, descriptors: base, driver: base + 0x100, device: base + 0x200 };
    match input.byte() {
        0 => layout.size = input.word(),
        1 => layout.descriptors = input.qword(),
        2 => layout.driver = input.qword(),
        3 => layout.device = RAM_BYTES as u64 - u64::from(input.byte()),
        _ => {}
    }
    layout
}

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let via = if input.byte() & 1 == 0 { Via::Mmio } else { Via::Pci };
    let ram = ram::flat(RAM_BYTES);
    let driver = TransportDriver::new(via, device(&mut input), Arc::clone(&ram));
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        let width = 1 << (choice >> 4 & 3);
        match choice & 0xf {
            0..3 => {
                let mut bytes = [0xa5; 8];
                driver.window().read(u64::from(input.word()), &mut bytes[..width]);
            }
            3..6 => driver.window().write(u64::from(input.word()), &input.take::<8>()[..width]),
            6 => {
                if let Some(function) = driver.function() {
                    let offset = input.word() & 0xffc | u16::from(input.byte() & 3);
                    let width = width.min(4).min(4096 - usize::from(offset));
                    if width.is_power_of_two() {
                        function.config_write(offset, &input.take::<4>()[..width]);
                        function.config_read(offset, &mut [0xa5; 4][..width]);
                    }
                }
            }
            7 => {
                driver.owner.serve(u16::from(choice >> 7));
                driver.owner.ready(0);
            }
            8 => drop(driver.negotiate(driver.offered() & input.qword() | 1 << 32)),
            9 => driver.set_queue(input.word() % (QUEUES_MAX + 1), &layout(&mut input)),
            10 => drop(driver.driver_ok()),
            11 => driver.kick(input.word() % (QUEUES_MAX + 1)),
            12 => {
                let at = GuestAddress(u64::from(input.word()));
                let _outside = ram.write(&input.take::<16>(), at);
            }
            13 => drop(driver.acknowledge()),
            14 => driver.machine_reset(),
            _ => driver.set_status(driver.status() | input.byte()),
        }
        assert!(!driver.owner.runs() || driver.status() & status::DRIVER_OK != 0, "it runs without a driver");
    }
    // Whatever it did, a reset makes an honest device of it again.
    driver.machine_reset();
    assert_eq!(driver.status(), 0);
    assert!(driver.negotiate(driver.offered()), "no honest driver can use it any more");
    ram::write(&ram, 0, &[0; 0x1000]);
    driver.set_queue(0, &QueueLayout { size: 16, descriptors: 0, driver: 0x100, device: 0x200 });
    assert!(driver.driver_ok() && driver.owner.runs(), "no honest driver can start it any more");
}
