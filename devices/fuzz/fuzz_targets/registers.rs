//! A disk behind either transport, under a driver that reads and writes its registers and configuration space as it likes.
#![no_main]

use devices::testing::block::MemBackend;
use devices::testing::ram;
use devices::testing::transport::{TransportDriver, Via};
use devices::virtio::block::{Block, BlockOptions, Cache};
use devices_fuzz::{Input, RAM_BYTES};

/// Accesses of one input at most.
const STEPS_MAX: usize = 256;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let via = if input.byte() & 1 == 0 { Via::Mmio } else { Via::Pci };
    let options = BlockOptions {
        name: "fuzz".into(),
        read_only: false,
        cache: Cache::Writeback,
        serial: "fuzz".into(),
        limits: Default::default(),
    };
    let block = Block::new(Box::new(MemBackend::new(vec![0; 4096])), &options);
    let driver = TransportDriver::new(via, Box::new(block), ram::flat(RAM_BYTES));
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        let width = 1 << (choice >> 2 & 3);
        let offset = u64::from(input.word());
        let mut bytes: [u8; 8] = [0; 8];
        match choice & 3 {
            0 => driver.window().read(offset, &mut bytes[..width]),
            1 => {
                bytes = input.take();
                driver.window().write(offset, &bytes[..width]);
            }
            2 => {
                bytes[..4].copy_from_slice(&input.take::<4>());
                if let Some(function) = driver.function() {
                    function.config_write(input.word() & 0xfff, &bytes[..width.min(4)]);
                    function.config_read(input.word() & 0xfff, &mut bytes[..width.min(4)]);
                }
            }
            _ => {
                driver.owner.serve(u16::from(choice >> 7));
            }
        }
    }
    // Whatever it did, a reset makes an honest device of it again.
    driver.machine_reset();
    assert!(driver.negotiate(driver.offered()), "no honest driver can use it any more");
});
