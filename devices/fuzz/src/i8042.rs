//! The keyboard controller: any access to its ports, keys pressed in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use devices::bus::BusDevice;
use devices::i8042::I8042;
use devices::testing::irq::CountingLine;

use crate::Input;

/// Steps of one input at most.
const STEPS_MAX: usize = 512;
const DATA: u64 = 0;
const COMMAND: u64 = 4;
const COMMAND_RESET: u8 = 0xfe;
/// More bytes than ever wait for the guest.
const OUTPUT_MAX: usize = 16;

fn read(device: &I8042, offset: u64) -> u8 {
    let mut byte = [0xa5];
    device.read(offset, &mut byte);
    byte[0]
}

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let resets = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&resets);
    let count = move || {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    let device = I8042::new(CountingLine::new(), Box::new(count));
    let mut asked = 0;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        let offset = if choice & 8 == 0 { DATA } else { COMMAND };
        match choice & 7 {
            0 => {
                device.ctrl_alt_del();
            }
            1..4 => {
                let byte = input.byte();
                asked += usize::from(offset == COMMAND && byte == COMMAND_RESET);
                device.write(offset, &[byte]);
            }
            4 => {
                // Not an access that the controller knows: nothing is reset, and zeros are read.
                let width = 2 << ((choice >> 4) % 3);
                device.write(input.qword(), &input.take::<8>()[..width]);
                let mut bytes = [0xa5; 8];
                device.read(input.qword(), &mut bytes[..width]);
                assert_eq!(bytes[..width], [0; 8][..width]);
            }
            _ => {
                read(&device, offset);
            }
        }
        assert_eq!(resets.load(Ordering::Relaxed), asked, "resets are asked for");
    }
    // An honest driver finds a controller and a keyboard.
    for _ in 0..OUTPUT_MAX {
        read(&device, DATA);
    }
    assert_eq!(read(&device, COMMAND) & 1, 0, "what waits is bounded");
    device.write(COMMAND, &[0xaa]);
    assert_eq!([read(&device, COMMAND) & 1, read(&device, DATA)], [1, 0x55]);
    device.write(DATA, &[0xf2]);
    assert_eq!([(); 3].map(|()| read(&device, DATA)), [0xfa, 0xab, 0x83]);
    assert!(device.ctrl_alt_del());
}
