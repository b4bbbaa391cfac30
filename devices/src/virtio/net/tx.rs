//! From the guest to the wire.

use std::io::ErrorKind;
use std::time::Duration;

use super::HEADER_BYTES;
use super::pair::{FRAMES_PER_BATCH, Port};
use crate::clock::monotonic_ns;
use crate::mem::Ram;
use crate::virtio::Served;
use crate::virtio::queue::{Chain, Deferral, Due, Linger, Ring, RingError, resolve};

/// Bytes of an Ethernet header: no frame is shorter.
const ETHERNET_BYTES: usize = 14;
/// The longest frame: header, Ethernet header with two VLAN tags, and the longest IP packet.
const FRAME_BYTES_MAX: usize = HEADER_BYTES + ETHERNET_BYTES + 8 + 65_535;
/// When to try again after the host was busy: about a full queue's time on a fast wire.
const RETRY: Duration = Duration::from_millis(1);
/// Nanoseconds for which the queue is looked at for more at most (see [`Linger`]): what the wire has, acknowledgements among it, waits
/// meanwhile.
const LOOK_MAX_NS: u64 = 400_000;
/// How late a driver that is answered may hear of what was sent. Linux's TCP sends on meanwhile: its small queues hold a millisecond's
/// worth, and each answer has it take back what was sent.
const DELAY: Duration = Duration::from_millis(4);
/// Slices a batch starts with room for: Linux scatters a frame over at most 18.
const SLICES_AT_FIRST: usize = 32;

/// The transmit side.
pub(super) struct Tx {
    pub(super) ring: Ring,
    chain: Chain,
    linger: Linger,
    deferral: Deferral,
    /// Somebody looks whether there is more: no kick is needed.
    pub(super) polled: bool,
}

impl Tx {
    pub(super) fn new(ring: Ring) -> Self {
        let chain = Chain::with_room_for(ring.size());
        let (linger, deferral) = (Linger::with_longest(LOOK_MAX_NS), Deferral::new(DELAY));
        Self { ring, chain, linger, deferral, polled: false }
    }

    /// The driver was given frames.
    pub(super) fn answered(&mut self) {
        self.deferral.answered(monotonic_ns());
    }

    /// What becomes of the interrupt for what was sent.
    pub(super) fn interrupt(&mut self, ram: &Ram) -> Result<Due, RingError> {
        // A thread that looks for work does not sleep until something is due.
        if self.polled {
            self.deferral.tell(&mut self.ring, ram)
        } else {
            self.deferral.ask(&mut self.ring, ram, monotonic_ns())
        }
    }

    /// Likewise, of a driver that will hear nothing more.
    pub(super) fn last_interrupt(&mut self, ram: &Ram) -> Result<Due, RingError> {
        self.deferral.tell(&mut self.ring, ram)
    }

    /// Gives the chain `head`, which held `bytes`, back.
    fn finish(&mut self, ram: &Ram, head: u16, bytes: u64) -> Result<(), RingError> {
        self.deferral.used(bytes);
        self.ring.finish(ram, head, 0)
    }

    /// Sends until the guest has no more frames, a limit is reached, the host is busy or the batch full.
    pub(super) fn batch(&mut self, port: &mut Port, ram: &Ram) -> Result<Served, RingError> {
        let mut slices = Vec::with_capacity(SLICES_AT_FIRST);
        self.ring.suppress_kicks(ram)?;
        self.linger.begin(monotonic_ns());
        self.deferral.begin(&mut self.ring, ram)?;
        for turn in 0..FRAMES_PER_BATCH {
            if !self.ring.pop(ram, &mut self.chain)? {
                // A sender that goes on meanwhile takes back by itself what was sent (the used index says so).
                if turn > 0 && self.linger.finds(|| self.ring.has_more(ram)) {
                    continue;
                }
                if !self.polled && self.ring.rearm(ram)? {
                    self.ring.suppress_kicks(ram)?;
                    continue;
                }
                return Ok(Served::Drained);
            }
            let (head, len) = (self.chain.head(), self.chain.readable_bytes() as usize);
            slices.clear();
            resolve(ram, self.chain.readable(), &mut slices)?;
            if !(HEADER_BYTES + ETHERNET_BYTES..=FRAME_BYTES_MAX).contains(&len) {
                port.metrics().tx_dropped.inc();
                port.shared.log(format_args!("a frame of {len} bytes with its header was dropped"));
                self.finish(ram, head, 0)?;
                continue;
            }
            if !port.active {
                // The driver said that it would send nothing here (virtio 1.2 §5.1.6.5.5.2).
                port.metrics().tx_dropped.inc();
                self.finish(ram, head, 0)?;
                continue;
            }
            let frame = (len - HEADER_BYTES) as u64;
            if let Err(wait) = port.tx_limiter.check_now(frame) {
                port.metrics().tx_throttled.inc();
                self.ring.undo_pop();
                return Ok(Served::After(wait));
            }
            match port.wire.send(&slices) {
                Ok(_) => {
                    port.metrics().tx_frames.inc();
                    port.metrics().tx_bytes.add(frame);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    port.metrics().tx_busy.inc();
                    self.ring.undo_pop();
                    return Ok(Served::After(RETRY));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    self.ring.undo_pop();
                    continue;
                }
                Err(error) => {
                    // A wire may lose a frame; a queue may not stand still for one that nobody can send.
                    port.metrics().tx_failures.inc();
                    port.shared
                        .log(format_args!("sending a frame of {len} bytes with its header failed: {error}"));
                }
            }
            port.tx_limiter.charge(frame);
            self.finish(ram, head, frame)?;
        }
        Ok(Served::More)
    }
}
