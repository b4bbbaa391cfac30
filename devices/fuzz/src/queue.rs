//! A ring under a hostile driver: bounded chains, no panic, nothing outside RAM.

use devices::testing::queue::Driver;
use devices::testing::ram;
use devices::virtio::queue::{Chain, Ring, resolve, total_len};

use crate::Input;
use crate::guest::{RAM_BYTES, SIZE, driver_step};

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let ram = ram::flat(RAM_BYTES);
    let mut driver = Driver::new(&ram, 0, SIZE);
    let mut ring = Ring::new(driver.queue(), input.qword());
    let mut chain = Chain::with_room_for(SIZE);
    for _ in 0..256 {
        if input.is_empty() {
            return;
        }
        driver_step(&mut driver, &ram, &mut input);
        if input.byte() & 1 == 0 {
            continue;
        }
        ring.suppress_kicks(&ram).expect("the rings are RAM");
        match ring.pop(&ram, &mut chain) {
            Ok(true) => {}
            Ok(false) => {
                ring.rearm(&ram).expect("the rings are RAM");
                continue;
            }
            Err(_) => return,
        }
        assert!(chain.readable().len() + chain.writable().len() <= usize::from(SIZE));
        let mut slices = Vec::new();
        for (part, bytes) in
            [(chain.readable(), chain.readable_bytes()), (chain.writable(), chain.writable_bytes())]
        {
            slices.clear();
            if resolve(&ram, part, &mut slices).is_ok() {
                assert_eq!(total_len(&slices), bytes as usize);
            }
        }
        match input.byte() % 4 {
            0 => ring.undo_pop(),
            1 => {
                ring.finish_together(&ram, [(chain.head(), 1), (chain.head(), 2)]).expect("the rings are RAM")
            }
            _ => ring.finish(&ram, chain.head(), chain.writable_bytes()).expect("the rings are RAM"),
        }
        ring.wants_interrupt(&ram).expect("the rings are RAM");
    }
}
