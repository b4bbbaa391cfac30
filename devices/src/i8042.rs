//! The keyboard controller (8042) and a keyboard that only knows Ctrl-Alt-Del: enough for the guest's reset by command 0xfe
//! and for its drivers i8042 and atkbd.
//!
//! ```text
//!   port 0x60 (offset 0)  read: the next byte from the keyboard     write: a byte to it, or a command's argument
//!   port 0x64 (offset 4)  read: status                              write: a command to the controller
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bus::BusDevice;
use crate::irq::Line;

/// Ports from the first to the last.
pub const PORTS: u64 = 5;

const DATA: u64 = 0;
const COMMAND: u64 = 4;

/// Bytes on their way to the guest, at most.
const OUTPUT_MAX: usize = 16;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
/// The keyboard is not locked by a key in the front of the machine.
const STATUS_UNLOCKED: u8 = 1 << 4;
const CONTROL_KEYBOARD_IRQ: u8 = 1 << 0;
const CONTROL_SYSTEM: u8 = 1 << 2;

const CMD_READ_CONTROL: u8 = 0x20;
const CMD_WRITE_CONTROL: u8 = 0x60;
const CMD_TEST_AUX: u8 = 0xa9;
const CMD_SELF_TEST: u8 = 0xaa;
const CMD_TEST_KEYBOARD: u8 = 0xab;
const CMD_READ_OUTPUT_PORT: u8 = 0xd0;
const CMD_WRITE_OUTPUT_PORT: u8 = 0xd1;
const CMD_WRITE_TO_AUX: u8 = 0xd4;
const CMD_RESET: u8 = 0xfe;

const KEYBOARD_ACK: u8 = 0xfa;
const KEYBOARD_RESET: u8 = 0xff;
const KEYBOARD_TEST_PASSED: u8 = 0xaa;
const KEYBOARD_GET_ID: u8 = 0xf2;
const KEYBOARD_ID: [u8; 2] = [0xab, 0x83];

/// Ctrl, Alt and Delete pressed and let go, in scan code set 2.
const CTRL_ALT_DEL: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];

/// Called on a vCPU's thread when the guest resets itself.
pub type OnReset = Box<dyn Fn() + Send + Sync>;

struct State {
    control: u8,
    output_port: u8,
    /// The command that waits for its argument.
    command: Option<u8>,
    last_was_command: bool,
    output: VecDeque<u8>,
}

/// The controller.
pub struct I8042 {
    state: Mutex<State>,
    line: Arc<dyn Line>,
    on_reset: OnReset,
}

impl I8042 {
    /// A controller that interrupts by `line` and tells `on_reset`.
    #[must_use]
    pub fn new(line: Arc<dyn Line>, on_reset: OnReset) -> Self {
        let state = State {
            control: CONTROL_SYSTEM | CONTROL_KEYBOARD_IRQ,
            output_port: 0xcf,
            command: None,
            last_was_command: false,
            output: VecDeque::with_capacity(OUTPUT_MAX),
        };
        Self { state: Mutex::new(state), line, on_reset }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Presses Ctrl-Alt-Del. False if the guest does not take its keys, so that there is no room.
    pub fn ctrl_alt_del(&self) -> bool {
        let mut state = self.state();
        let fits = state.output.len() + CTRL_ALT_DEL.len() <= OUTPUT_MAX;
        if fits {
            state.output.extend(CTRL_ALT_DEL);
            self.interrupt(&state);
        }
        fits
    }

    fn interrupt(&self, state: &State) {
        if state.control & CONTROL_KEYBOARD_IRQ != 0 && !state.output.is_empty() {
            self.line.trigger();
        }
    }

    /// Answers the guest; what it leaves unread is lost, as on hardware.
    fn answer(&self, state: &mut State, bytes: &[u8]) {
        state.output.clear();
        state.output.extend(bytes);
        self.interrupt(state);
    }

    fn command(&self, state: &mut State, command: u8) {
        state.command = None;
        match command {
            CMD_READ_CONTROL => self.answer(state, &[state.control]),
            CMD_READ_OUTPUT_PORT => self.answer(state, &[state.output_port]),
            CMD_SELF_TEST => self.answer(state, &[0x55]),
            CMD_TEST_KEYBOARD => self.answer(state, &[0]),
            // There is no mouse: the test of its port fails.
            CMD_TEST_AUX => self.answer(state, &[0xff]),
            CMD_WRITE_CONTROL | CMD_WRITE_OUTPUT_PORT | CMD_WRITE_TO_AUX => state.command = Some(command),
            _ => {}
        }
    }

    fn data(&self, state: &mut State, byte: u8) {
        match state.command.take() {
            Some(CMD_WRITE_CONTROL) => {
                state.control = byte;
                self.interrupt(state);
            }
            Some(CMD_WRITE_OUTPUT_PORT) => state.output_port = byte,
            Some(_) => {}
            None => match byte {
                KEYBOARD_RESET => self.answer(state, &[KEYBOARD_ACK, KEYBOARD_TEST_PASSED]),
                KEYBOARD_GET_ID => self.answer(state, &[KEYBOARD_ACK, KEYBOARD_ID[0], KEYBOARD_ID[1]]),
                _ => self.answer(state, &[KEYBOARD_ACK]),
            },
        }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let [byte] = data else { return };
        let mut state = self.state();
        match offset {
            DATA => {
                *byte = state.output.pop_front().unwrap_or(0);
                self.interrupt(&state);
            }
            COMMAND => {
                let full = if state.output.is_empty() { 0 } else { STATUS_OUTPUT_FULL };
                let command = if state.last_was_command { STATUS_COMMAND } else { 0 };
                *byte = STATUS_SYSTEM | STATUS_UNLOCKED | command | full;
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[byte] = data else { return };
        match offset {
            COMMAND if byte == CMD_RESET => (self.on_reset)(),
            COMMAND => {
                let mut state = self.state();
                state.last_was_command = true;
                self.command(&mut state, byte);
            }
            DATA => {
                let mut state = self.state();
                state.last_was_command = false;
                self.data(&mut state, byte);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Edges(AtomicUsize);
    impl Line for Edges {
        fn trigger(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn rig() -> (I8042, Arc<Edges>, Arc<AtomicUsize>) {
        let (edges, resets) = (Arc::new(Edges::default()), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&resets);
        let on_reset = Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        (I8042::new(edges.clone(), on_reset), edges, resets)
    }

    fn read(device: &I8042, offset: u64) -> u8 {
        let mut byte = [0xff];
        device.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn only_the_reset_command_resets() {
        let (device, _, resets) = rig();
        for byte in 0..=255 {
            device.write(COMMAND, &[byte]);
            device.write(DATA, &[byte]);
        }
        assert_eq!(resets.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_guests_driver_finds_a_controller_and_a_keyboard() {
        let (device, ..) = rig();
        device.write(COMMAND, &[CMD_SELF_TEST]);
        assert_eq!(read(&device, COMMAND) & STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL);
        assert_eq!(read(&device, DATA), 0x55);
        assert_eq!(read(&device, COMMAND) & STATUS_OUTPUT_FULL, 0);
        device.write(COMMAND, &[CMD_WRITE_CONTROL]);
        device.write(DATA, &[0x30]);
        device.write(COMMAND, &[CMD_READ_CONTROL]);
        assert_eq!(read(&device, DATA), 0x30);
        device.write(DATA, &[KEYBOARD_GET_ID]);
        assert_eq!([(); 3].map(|()| read(&device, DATA)), [KEYBOARD_ACK, 0xab, 0x83]);
    }

    #[test]
    fn ctrl_alt_del_arrives_one_interrupt_a_byte_and_is_refused_while_there_is_no_room() {
        let (device, edges, _) = rig();
        assert!(device.ctrl_alt_del());
        assert!(!device.ctrl_alt_del());
        let bytes = [(); CTRL_ALT_DEL.len()].map(|()| read(&device, DATA));
        assert_eq!(bytes, CTRL_ALT_DEL);
        assert_eq!(edges.0.load(Ordering::Relaxed), CTRL_ALT_DEL.len());
        assert_eq!(read(&device, DATA), 0);
    }

    #[test]
    fn every_offset_and_width_is_answered() {
        let (device, ..) = rig();
        for offset in 0..8 {
            for width in [1, 2, 4, 8] {
                device.read(offset, &mut vec![0xff; width]);
                device.write(offset, &vec![0; width]);
            }
        }
    }
}
