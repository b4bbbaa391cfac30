//! The serial console: a 16550A UART whose output goes to a bounded buffer.
//!
//! ```text
//!   vCPU ── out 0x3f8 ──> Serial ──> ConsoleBuffer ──(wake, when no longer empty)──> whoever drains it
//! ```
//! The vCPU never waits for whoever reads the console: what does not fit is dropped and counted, so a flood costs the guest
//! its own output and the host at most [`ConsoleBuffer`]'s capacity.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;

use crate::bus::BusDevice;
use crate::clock::monotonic_ns;
use crate::irq::Line;
use crate::limiter::{BucketSpec, TokenBucket};

/// Ports of the UART.
pub const PORTS: u64 = 8;

/// Called when there is something to do for who serves the console: a buffer that was empty no longer is, or the guest
/// has read all of an input that did not fit as a whole.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// What a guest may print unless told otherwise: enough for any boot, too little to fill a disk before somebody looks.
pub const LIMIT_DEFAULT: BucketSpec = BucketSpec { size: 1 << 20, one_time_burst: 0, refill_time_ms: 1000 };

/// Bytes that wait, and how many may join them.
struct Waiting {
    bytes: VecDeque<u8>,
    limit: Option<TokenBucket>,
}

impl Waiting {
    /// How many of `len` bytes are admitted, `room` at most.
    fn admit(&mut self, len: usize, room: usize) -> usize {
        let fits = len.min(room);
        match &mut self.limit {
            None => fits,
            // A UART prints a byte at a time: what a longer text loses is all of it.
            Some(limit) => {
                if limit.consume(monotonic_ns(), fits as u64).is_ok() {
                    fits
                } else {
                    0
                }
            }
        }
    }
}

/// Console output on its way out of the process.
pub struct ConsoleBuffer {
    waiting: Mutex<Waiting>,
    capacity: usize,
    wake: Wake,
    taken: AtomicU64,
    dropped: AtomicU64,
}

impl ConsoleBuffer {
    /// A buffer for `capacity` bytes, with [`LIMIT_DEFAULT`]; memory is used as output comes.
    #[must_use]
    pub fn new(capacity: usize, wake: Wake) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::new(Waiting {
                bytes: VecDeque::new(),
                limit: TokenBucket::new(&LIMIT_DEFAULT, monotonic_ns()),
            }),
            capacity,
            wake,
            taken: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Limits output to `limit` bytes from now on; a limit of 0 is none.
    pub fn set_limit(&self, limit: &BucketSpec) {
        self.waiting().limit = TokenBucket::new(limit, monotonic_ns());
    }

    /// Appends what fits of `output` and the limit allows; the rest is dropped and counted. Never blocks.
    pub fn push(&self, output: &[u8]) {
        let mut waiting = self.waiting();
        let was_empty = waiting.bytes.is_empty();
        let room = self.capacity - waiting.bytes.len();
        let fits = waiting.admit(output.len(), room);
        waiting.bytes.extend(&output[..fits]);
        drop(waiting);
        self.taken.fetch_add(fits as u64, Ordering::Relaxed);
        self.dropped.fetch_add((output.len() - fits) as u64, Ordering::Relaxed);
        if was_empty && fits > 0 {
            (self.wake)();
        }
    }

    /// Offers the oldest bytes, at most `max` of them, to `sink`, which says how many it took.
    ///
    /// # Errors
    /// What `sink` says; nothing is taken then.
    pub fn drain(&self, max: usize, sink: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        // Copied out, so that a vCPU never waits for the sink.
        let mut chunk = Vec::with_capacity(max.min(self.capacity));
        chunk.extend(self.waiting().bytes.iter().take(max));
        if chunk.is_empty() {
            return Ok(0);
        }
        let took = sink(&chunk)?.min(chunk.len());
        let mut waiting = self.waiting();
        waiting.bytes.drain(..took);
        if waiting.bytes.is_empty() {
            // Memory that a burst of output took is given back.
            waiting.bytes.shrink_to(256);
        }
        Ok(took)
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting().bytes.is_empty()
    }

    /// Bytes accepted, and bytes dropped for want of room or because of the limit, since the start.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.taken.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }
}

struct Output(Arc<ConsoleBuffer>);

impl Write for Output {
    fn write(&mut self, output: &[u8]) -> io::Result<usize> {
        self.0.push(output);
        Ok(output.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Irq(Arc<dyn Line>);

impl Trigger for Irq {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.trigger();
        Ok(())
    }
}

/// Tells when there is room for input again, if somebody waits for it.
struct Room {
    wanted: AtomicBool,
    output: Arc<ConsoleBuffer>,
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if self.wanted.swap(false, Ordering::Relaxed) {
            (self.output.wake)();
        }
    }
}

type Uart = vm_superio::Serial<Irq, Arc<Room>, Output>;

/// The UART.
pub struct Serial {
    uart: Mutex<Uart>,
    room: Arc<Room>,
}

impl Serial {
    /// A UART that interrupts by `line` and prints to `output`.
    #[must_use]
    pub fn new(line: Arc<dyn Line>, output: Arc<ConsoleBuffer>) -> Self {
        let room = Arc::new(Room { wanted: AtomicBool::new(false), output: Arc::clone(&output) });
        let uart = Uart::with_events(Irq(line), Arc::clone(&room), Output(output));
        Self { uart: Mutex::new(uart), room }
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the guest as much of `input` as its FIFO has room for; how much that was. If it was not all, the output
    /// buffer's [`Wake`] is called when the guest has read it. What arrives while the guest has the UART in loopback is
    /// lost, as on hardware.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        let mut uart = self.uart();
        let fits = input.len().min(uart.fifo_capacity());
        let taken = match uart.enqueue_raw_bytes(&input[..fits]) {
            // It is in loopback, and does not tell when that ends: nobody could be woken then.
            Ok(0) if fits > 0 => input.len(),
            taken => taken.unwrap_or(0),
        };
        // Under the lock that the guest reads under: it can't empty the FIFO unnoticed.
        self.room.wanted.store(taken < input.len(), Ordering::Relaxed);
        taken
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.uart().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // Errors would be the sink's or the line's; neither has any.
            let _ = self.uart().write(offset, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Quiet;
    impl Line for Quiet {
        fn trigger(&self) {}
    }

    fn rig(capacity: usize) -> (Serial, Arc<ConsoleBuffer>, Arc<AtomicUsize>) {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakes);
        let wake = Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let buffer = ConsoleBuffer::new(capacity, wake);
        (Serial::new(Arc::new(Quiet), Arc::clone(&buffer)), buffer, wakes)
    }

    #[test]
    fn output_beyond_the_limit_is_dropped_and_counted_and_comes_again_with_time() {
        let buffer = ConsoleBuffer::new(64, Box::new(|| ()));
        buffer.set_limit(&BucketSpec { size: 4, one_time_burst: 2, refill_time_ms: 1_000_000 });
        (0..10u8).for_each(|byte| buffer.push(&[byte]));
        assert_eq!(buffer.counts(), (6, 4));
        buffer.set_limit(&BucketSpec { size: 1, one_time_burst: 0, refill_time_ms: 1 });
        buffer.push(b"a");
        std::thread::sleep(std::time::Duration::from_millis(2));
        buffer.push(b"b");
        assert_eq!(buffer.counts(), (8, 4));
        buffer.set_limit(&BucketSpec::default());
        (0..10u8).for_each(|byte| buffer.push(&[byte]));
        assert_eq!(buffer.counts(), (18, 4));
    }

    #[test]
    fn output_reaches_the_sink_in_order_with_one_wake_for_a_burst() {
        let (serial, buffer, wakes) = rig(100);
        b"hello".iter().for_each(|byte| serial.write(0, &[*byte]));
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        let mut out = Vec::new();
        buffer.drain(3, |bytes| out.write(bytes)).unwrap();
        buffer.drain(100, |bytes| out.write(bytes)).unwrap();
        assert_eq!(out, b"hello");
        serial.write(0, b"!");
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_flood_is_bounded_and_what_was_dropped_is_counted() {
        let (serial, buffer, _) = rig(10);
        (0..25).for_each(|_| serial.write(0, b"x"));
        assert_eq!(buffer.counts(), (10, 15));
        assert_eq!(buffer.drain(100, |bytes| Ok(bytes.len())).unwrap(), 10);
    }

    #[test]
    fn a_sink_that_fails_takes_nothing() {
        let (serial, buffer, _) = rig(10);
        serial.write(0, b"x");
        assert!(buffer.drain(10, |_| Err(io::ErrorKind::WouldBlock.into())).is_err());
        assert_eq!(buffer.drain(10, |bytes| Ok(bytes.len())).unwrap(), 1);
    }

    #[test]
    fn input_stops_at_the_fifo_and_is_read_in_order() {
        let (serial, ..) = rig(10);
        let taken = serial.enqueue(&[7; 100]);
        assert!(taken > 0 && taken < 100);
        assert_eq!(serial.enqueue(&[7]), 0);
        let mut byte = [0];
        serial.read(0, &mut byte);
        assert_eq!(byte, [7]);
    }

    #[test]
    fn who_has_more_input_is_woken_once_when_the_guest_has_read_what_fitted() {
        let (serial, _, wakes) = rig(10);
        let mut byte = [0];
        serial.enqueue(&[7; 3]);
        (0..3).for_each(|_| serial.read(0, &mut byte));
        assert_eq!(wakes.load(Ordering::Relaxed), 0, "nobody waits");
        let taken = serial.enqueue(&[7; 100]);
        (1..taken).for_each(|_| serial.read(0, &mut byte));
        assert_eq!(wakes.load(Ordering::Relaxed), 0, "not all is read");
        (0..3).for_each(|_| serial.read(0, &mut byte));
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn input_that_meets_a_loopback_is_lost_and_what_follows_arrives() {
        let (serial, ..) = rig(10);
        let modem_control = 4;
        serial.write(modem_control, &[1 << 4]);
        assert_eq!(serial.enqueue(&[7; 100]), 100);
        serial.write(modem_control, &[0]);
        assert_eq!(serial.enqueue(&[8]), 1);
        let mut byte = [0];
        serial.read(0, &mut byte);
        assert_eq!(byte, [8]);
    }

    #[test]
    fn every_offset_and_width_is_answered() {
        let (serial, ..) = rig(10);
        for offset in (0..16).chain([u64::MAX]) {
            for width in [1, 2, 4, 8] {
                serial.read(offset, &mut vec![0xff; width]);
                serial.write(offset, &vec![0xff; width]);
            }
        }
    }
}
