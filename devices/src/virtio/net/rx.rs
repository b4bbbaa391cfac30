//! From the wire to the guest.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::Duration;

use super::pair::{BYTES_PER_INTERRUPT, FRAMES_PER_BATCH, Port};
use super::{HEADER_BYTES, SLICES_MAX};
use crate::mem::{Ram, VolatileSlice};
use crate::virtio::Served;
use crate::virtio::queue::{Chain, Ring, RingError, Segment, copy_in, resolve, total_len};

/// The largest frame a TAP yields: header, Ethernet header and 64 KiB of payload; what virtio 1.2 §5.1.6.3.1 asks drivers to
/// make room for.
const FRAME_BYTES_MAX: usize = 65_562;
/// Where the header's number of buffers is (virtio 1.2 §5.1.6).
const NUM_BUFFERS_AT: usize = 10;
/// When to try again after the host failed to receive: often enough to notice that it recovered.
const RETRY: Duration = Duration::from_millis(10);

/// Slices a batch starts with room for: 43 buffers of Linux's smallest size hold the largest frame.
const SLICES_AT_FIRST: usize = 64;

/// A receive buffer that was popped and not filled yet.
struct Held {
    head: u16,
    bytes: usize,
    segments: usize,
    slices: usize,
}

/// The receive side. Buffers popped ahead are `held`; their segments lie in `segments`, in order.
pub(super) struct Rx {
    pub(super) ring: Ring,
    chain: Chain,
    held: VecDeque<Held>,
    segments: VecDeque<Segment>,
    bytes: usize,
    mergeable: bool,
    /// Whether the wire may yield frames much larger than the MTU.
    large_frames: bool,
    /// False once the wire said that it is empty, until it says that it is readable.
    readable: bool,
}

/// The guest bytes behind all held buffers, for the length of one batch.
struct Room<'m> {
    slices: Vec<VolatileSlice<'m>>,
    /// Slices of buffers that were given back.
    spent: usize,
}

impl Rx {
    pub(super) fn new(ring: Ring, mergeable: bool, large_frames: bool) -> Self {
        let chain = Chain::with_room_for(ring.size());
        let (held, segments) = (VecDeque::new(), VecDeque::new());
        // What came in before the start raises no edge: look once.
        Self { ring, chain, held, segments, bytes: 0, mergeable, large_frames, readable: true }
    }

    pub(super) fn wire_may_have_frames(&mut self) {
        self.readable = true;
    }

    /// Receives until the wire is empty, the guest out of buffers, a limit reached or the batch full. `tell` interrupts.
    pub(super) fn batch(&mut self, port: &mut Port, ram: &Ram, tell: &dyn Fn()) -> Result<Served, RingError> {
        // A kick is wanted only when buffers run out.
        self.ring.suppress_kicks(ram)?;
        if !self.readable {
            return Ok(Served::Drained);
        }
        let mut room = Room { slices: Vec::with_capacity(SLICES_AT_FIRST), spent: 0 };
        let (front, back) = self.segments.as_slices();
        resolve(ram, front, &mut room.slices)?;
        resolve(ram, back, &mut room.slices)?;
        let mut unreported = 0;
        for _ in 0..FRAMES_PER_BATCH {
            self.top_up(ram, &mut room)?;
            if self.held.is_empty() {
                if self.ring.rearm(ram)? {
                    self.ring.suppress_kicks(ram)?;
                    continue;
                }
                port.metrics().rx_no_buffers.inc();
                return Ok(Served::Drained);
            }
            // The size of a frame is known only once it is there: a large one is paid for afterwards.
            if let Err(wait) = port.rx_limiter.check_now(1) {
                port.metrics().rx_throttled.inc();
                return Ok(Served::After(wait));
            }
            let into = &room.slices[room.spent..];
            match port.wire.recv(into) {
                Ok(n) if n < HEADER_BYTES => port.metrics().rx_failures.inc(),
                Ok(n) if self.cut_off(n, into) => port.metrics().rx_dropped.inc(),
                Ok(n) => {
                    self.deliver(ram, &mut room, n)?;
                    let frame = (n - HEADER_BYTES) as u64;
                    port.rx_limiter.charge(frame);
                    port.metrics().rx_frames.inc();
                    port.metrics().rx_bytes.add(frame);
                    unreported += n;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    port.rx_limiter.release();
                    return Ok(Served::Drained);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    port.metrics().rx_failures.inc();
                    port.shared.log(format_args!("receiving failed: {error}"));
                    return Ok(Served::After(RETRY));
                }
            }
            if unreported >= BYTES_PER_INTERRUPT {
                unreported = 0;
                if self.ring.wants_interrupt(ram)? {
                    tell();
                }
            }
        }
        Ok(Served::More)
    }

    /// Pops buffers until the largest frame fits, or there are no more; without MRG_RXBUF a frame gets one.
    fn top_up<'m>(&mut self, ram: &'m Ram, room: &mut Room<'m>) -> Result<(), RingError> {
        // A segment is at most two slices, so a chain always fits into what is left below this.
        let slices_max = SLICES_MAX.saturating_sub(2 * usize::from(self.ring.size()));
        let wanted = if self.mergeable { FRAME_BYTES_MAX } else { 1 };
        while self.bytes < wanted && (self.held.is_empty() || room.slices.len() - room.spent <= slices_max) {
            if !self.ring.pop(ram, &mut self.chain)? {
                return Ok(());
            }
            let (head, bytes) = (self.chain.head(), self.chain.writable_bytes() as usize);
            if bytes < HEADER_BYTES {
                return Err(RingError::NoAnswer { head });
            }
            let slices = room.slices.len();
            resolve(ram, self.chain.writable(), &mut room.slices)?;
            let slices = room.slices.len() - slices;
            self.segments.extend(self.chain.writable());
            self.held.push_back(Held { head, bytes, segments: self.chain.writable().len(), slices });
            self.bytes += bytes;
        }
        Ok(())
    }

    /// Whether a frame of `n` bytes was cut off by the end of `into`. One that just fits can't be told from one that was cut:
    /// the doubt counts against it where frames beyond the MTU are expected.
    fn cut_off(&self, n: usize, into: &[VolatileSlice]) -> bool {
        self.large_frames && n < FRAME_BYTES_MAX && n >= total_len(into)
    }

    /// Gives the buffers that hold the first `n` bytes to the guest, all at once.
    fn deliver(&mut self, ram: &Ram, room: &mut Room, n: usize) -> Result<(), RingError> {
        let mut left = n;
        let (mut buffers, mut segments, mut slices) = (0u16, 0, 0);
        for held in &self.held {
            buffers += 1;
            segments += held.segments;
            slices += held.slices;
            left = left.saturating_sub(held.bytes);
            if left == 0 {
                break;
            }
        }
        // 1 without MRG_RXBUF (virtio 1.2 §5.1.6.4.1): there is but one buffer.
        copy_in(&room.slices[room.spent..], NUM_BUFFERS_AT, &buffers.to_le_bytes());
        room.spent += slices;
        self.segments.drain(..segments);
        let (mut left, mut gone) = (n, 0);
        let used = self.held.drain(..usize::from(buffers)).map(|held| {
            let written = left.min(held.bytes);
            left -= written;
            gone += held.bytes;
            (held.head, u32::try_from(written).expect("a buffer is shorter than 4 GiB"))
        });
        self.ring.finish_together(ram, used)?;
        self.bytes -= gone;
        Ok(())
    }
}
