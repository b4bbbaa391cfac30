//! A disk under a hostile driver and a control thread that swaps its backing.
#![no_main]

use devices::limiter::LimiterSpec;
use devices::testing::block::MemBackend;
use devices::virtio::block::{Block, BlockOptions, Cache};
use devices_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let options = BlockOptions {
        name: "fuzz".into(),
        read_only: input.byte() & 1 == 0,
        cache: if input.byte() & 1 == 0 { Cache::Unsafe } else { Cache::Writeback },
        serial: "fuzz".into(),
        limits: LimiterSpec::default(),
    };
    let block = Block::new(Box::new(MemBackend::zeroed(8)), &options);
    let handle = block.handle();
    play(block, 1, &mut input, |input| {
        handle.swap_backing(Box::new(MemBackend::zeroed(usize::from(input.byte() % 16))));
    });
});
