//! The serial console: any access to its ports, input from the host, and a host that takes output as it pleases.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use devices::bus::BusDevice;
use devices::serial::{ConsoleBuffer, PORTS, Serial};
use devices::testing::irq::CountingLine;

use crate::Input;

/// Steps of one input at most.
const STEPS_MAX: usize = 512;
/// Bytes of output that wait for the host, at most.
const CAPACITY: usize = 16;
/// Bytes of input that wait for the guest before there is no more of it.
const PENDING_MAX: usize = 256;
const DATA: u64 = 0;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;

fn read(serial: &Serial, offset: u64) -> u8 {
    let mut byte = [0xa5];
    serial.read(offset, &mut byte);
    byte[0]
}

/// Takes all output that waits.
fn drain(buffer: &ConsoleBuffer) -> Vec<u8> {
    let mut all = Vec::new();
    let take = |bytes: &[u8]| {
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    };
    assert!(buffer.drain(usize::MAX, take).expect("the sink takes it") <= CAPACITY);
    assert!(buffer.is_empty());
    all
}

/// The host's end: output taken, input that waits for room, and the calls that say there is something to do.
struct Host {
    serial: Serial,
    buffer: Arc<ConsoleBuffer>,
    pending: Vec<u8>,
    wakes: Arc<AtomicUsize>,
    heard: usize,
}

impl Host {
    fn new() -> Self {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakes);
        let wake = Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let buffer = ConsoleBuffer::new(CAPACITY, wake);
        let serial = Serial::new(CountingLine::new(), Arc::clone(&buffer));
        Self { serial, buffer, pending: Vec::new(), wakes, heard: 0 }
    }

    /// Hands over input.
    fn give(&mut self) {
        let taken = self.serial.enqueue(&self.pending);
        self.pending.drain(..taken);
    }

    /// Does what the console does when it was woken; whether it was.
    fn hear(&mut self) -> bool {
        let wakes = self.wakes.load(Ordering::Relaxed);
        let woken = std::mem::replace(&mut self.heard, wakes) != wakes;
        if woken {
            self.give();
        }
        woken
    }
}

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut host = Host::new();
    let mut drained = 0;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        let offset = u64::from(choice >> 4) % PORTS;
        match choice & 0xf {
            0..6 => host.serial.write(offset, &[input.byte()]),
            6..10 => {
                read(&host.serial, offset);
            }
            10 if host.pending.len() < PENDING_MAX => {
                host.pending.extend(input.slice(usize::from(choice >> 4) * 16));
                host.give();
            }
            11 => {
                // Whoever drains takes some of it, or nothing.
                let keep = usize::from(choice >> 4);
                let took = host.buffer.drain(CAPACITY, |bytes| Ok(bytes.len().min(keep)));
                drained += took.expect("the sink takes it");
            }
            12 => {
                let failing = |_: &[u8]| Err(std::io::ErrorKind::WouldBlock.into());
                assert_eq!(host.buffer.drain(CAPACITY, failing).is_err(), !host.buffer.is_empty());
            }
            13 => {
                // Not an access that a UART knows.
                let width = 2 << ((choice >> 4) % 3);
                host.serial.write(input.qword(), &input.take::<8>()[..width]);
                let mut bytes = [0xa5; 8];
                host.serial.read(input.qword(), &mut bytes[..width]);
                assert_eq!(bytes[..width], [0; 8][..width]);
            }
            _ => {
                host.hear();
            }
        }
    }
    drained += drain(&host.buffer).len();
    let (taken, _) = host.buffer.counts();
    assert_eq!(taken, drained as u64, "every byte that was taken came out");
    // An honest driver reads what there is to read: then the host has got rid of all input.
    host.serial.write(LINE_CONTROL, &[3]);
    host.serial.write(MODEM_CONTROL, &[0]);
    loop {
        while read(&host.serial, LINE_STATUS) & 1 != 0 {
            read(&host.serial, DATA);
        }
        if !host.hear() {
            break;
        }
    }
    assert_eq!(host.pending.len(), 0, "input waits, and nobody is told when there is room");
    // It prints and reads.
    host.serial.write(DATA, b"!");
    assert_eq!((drain(&host.buffer), host.hear()), (b"!".to_vec(), true));
    assert_eq!(host.serial.enqueue(b"?"), 1);
    assert_eq!((read(&host.serial, LINE_STATUS) & 1, read(&host.serial, DATA)), (1, b'?'));
}
