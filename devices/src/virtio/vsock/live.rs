//! A socket device in use: its three queues, and turns of bounded length.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use log::Level;
use zerocopy::{FromZeros, IntoBytes};

use super::packet::{HEADER_BYTES, Header, Refusal};
use super::{EVENT_QUEUE, F_SEQPACKET, RX_QUEUE, TX_QUEUE, Vsock};
use crate::clock::monotonic_ns;
use crate::irq::Interrupt;
use crate::mem::{GuestMemoryMmap, Ram, VolatileSlice};
use crate::virtio::queue::{
    Chain, Deferral, Due, Ring, RingError, advance, copy_in, copy_out, resolve, truncate,
};
use crate::virtio::{Granted, Idle, Running, Served};

/// Packets moved in one direction before the other gets its turn.
const PACKETS_PER_BATCH: u32 = 64;

/// Receive buffers filled by one receive, at most: 64 KiB of Linux's.
const BUFFERS_AHEAD: usize = 16;

/// How late the driver may hear of what was sent, if it goes on meanwhile: Linux takes nothing back before it hears of it, and gives
/// nobody leave to send for it but where the queue is full.
const DELAY: Duration = Duration::from_millis(8);

/// A receive buffer that was popped and not filled yet.
struct Held {
    head: u16,
    /// Where its slices begin in [`Room::slices`], and those behind its header in [`Room::payloads`].
    slices: usize,
    payload: usize,
    /// Bytes behind its header.
    bytes: usize,
}

/// Receive buffers popped ahead, for the length of one batch.
#[derive(Default)]
struct Room<'m> {
    held: VecDeque<Held>,
    slices: Vec<VolatileSlice<'m>>,
    payloads: Vec<VolatileSlice<'m>>,
}

impl<'m> Room<'m> {
    /// Takes up the buffer that was popped last.
    fn add(&mut self, ram: &'m GuestMemoryMmap<()>, chain: &Chain) -> Result<(), RingError> {
        let (head, bytes) = (chain.head(), chain.writable_bytes() as usize);
        // Without room for payload a buffer would go back and forth for ever.
        if bytes <= HEADER_BYTES {
            return Err(RingError::NoAnswer { head });
        }
        let (slices, payload) = (self.slices.len(), self.payloads.len());
        resolve(ram, chain.writable(), &mut self.slices)?;
        let mut whole = self.slices[slices..].to_vec();
        self.payloads.extend_from_slice(advance(&mut whole, HEADER_BYTES));
        self.held.push_back(Held { head, slices, payload, bytes: bytes - HEADER_BYTES });
        Ok(())
    }

    /// What lies behind the headers of all buffers, in order.
    fn payload(&self) -> &[VolatileSlice<'m>] {
        &self.payloads[self.held.front().map_or(self.payloads.len(), |held| held.payload)..]
    }

    /// Puts `header` before each part of its payload, which is in place; the buffers, and the bytes of each part.
    fn fill(&mut self, mut header: Header) -> Vec<(u16, u32)> {
        let mut left = header.len.get();
        let mut filled = Vec::with_capacity(1);
        while let Some(held) = self.held.pop_front() {
            let part = left.min(u32::try_from(held.bytes).unwrap_or(u32::MAX));
            header.len = part.into();
            copy_in(&self.slices[held.slices..], 0, header.as_bytes());
            filled.push((held.head, part));
            left -= part;
            if left == 0 {
                break;
            }
        }
        filled
    }
}

/// A queue and the chain that was popped last.
struct Side {
    ring: Ring,
    chain: Chain,
}

impl Side {
    fn new(ring: Ring) -> Self {
        let chain = Chain::with_room_for(ring.size());
        Self { ring, chain }
    }
}

/// The running device: an idle one, and what the driver granted.
pub(super) struct Live {
    vsock: Vsock,
    ram: Ram,
    interrupt: Arc<dyn Interrupt>,
    rx: Option<Side>,
    tx: Option<Side>,
    deferral: Deferral,
    /// The guest's packets wait until it takes answers.
    tx_stalled: bool,
    /// They wait for the rate limit.
    tx_held: bool,
    /// How long until the rate limit lets either side go on, as this turn found it.
    held_for: Option<Duration>,
    /// Somebody looks whether there are packets: no kick is needed.
    polled: bool,
    broken: bool,
}

impl Live {
    pub(super) fn new(mut vsock: Vsock, granted: Granted) -> Self {
        let Granted { ram, features, queues, interrupt } = granted;
        let mut sides =
            queues.into_iter().map(|queue| queue.map(|queue| Side::new(Ring::new(queue, features))));
        let rx = sides.next().flatten();
        let tx = sides.next().flatten();
        vsock.mux.start(features & F_SEQPACKET != 0);
        Self {
            vsock,
            ram,
            interrupt,
            rx,
            tx,
            deferral: Deferral::new(DELAY),
            tx_stalled: false,
            tx_held: false,
            held_for: None,
            polled: false,
            broken: false,
        }
    }

    /// One turn of everything: packets of the guest if `tx` says that there are some, then packets for it.
    fn turn(&mut self, tx: bool, more: bool) -> Served {
        let result = self.try_turn(tx, more);
        let told = self.tell();
        let result = result.and_then(|served| Ok(served.and_after(told?)));
        result.unwrap_or_else(|error| {
            self.broken = true;
            let mux = &mut self.vsock.mux;
            mux.metrics().broken.inc();
            mux.log(Level::Warn, format_args!("the driver broke a queue: {error}"));
            mux.clear();
            self.interrupt.needs_reset();
            Served::Broken
        })
    }

    fn try_turn(&mut self, tx: bool, mut more: bool) -> Result<Served, RingError> {
        let wait = self.vsock.mux.expire();
        self.held_for = None;
        if tx || self.tx_stalled || self.tx_held {
            more |= self.take_packets()?;
        }
        more |= self.hand_packets()?;
        // The answers that were in the way are gone.
        more |= self.tx_stalled && !self.vsock.mux.is_choked();
        let deadline =
            wait.or_else(|| self.vsock.mux.expire()).map(|wait| wait.max(Duration::from_millis(1)));
        Ok(match deadline.into_iter().chain(self.held_for).min() {
            _ if more => Served::More,
            Some(wait) => Served::After(wait),
            None => Served::Drained,
        })
    }

    /// Takes packets of the guest's; whether there may be more.
    fn take_packets(&mut self) -> Result<bool, RingError> {
        let Some(Side { ring, chain }) = &mut self.tx else { return Ok(false) };
        let Vsock { mux, tx_limiter: limiter, .. } = &mut self.vsock;
        let ram = &*self.ram;
        let mut slices = Vec::new();
        self.tx_stalled = false;
        self.tx_held = false;
        ring.suppress_kicks(ram)?;
        self.deferral.begin(ring, &self.ram)?;
        for _ in 0..PACKETS_PER_BATCH {
            if mux.is_choked() {
                mux.metrics().tx_stalls.inc();
                self.tx_stalled = true;
                return Ok(false);
            }
            if !ring.pop(ram, chain)? {
                if !self.polled && ring.rearm(ram)? {
                    ring.suppress_kicks(ram)?;
                    continue;
                }
                return Ok(false);
            }
            let got = chain.readable_bytes();
            // What has no payload, an answer or a word about room, is never held.
            let payload = u64::from(got).saturating_sub(HEADER_BYTES as u64);
            if payload > 0
                && let Err(wait) = limiter.check_now(payload)
            {
                ring.undo_pop();
                mux.metrics().tx_throttled.inc();
                self.tx_held = true;
                self.held_for = Some(wait);
                return Ok(false);
            }
            slices.clear();
            resolve(ram, chain.readable(), &mut slices)?;
            let mut header = Header::new_zeroed();
            if copy_out(&slices, header.as_mut_bytes()) < HEADER_BYTES {
                mux.refuse(&header, Refusal::ShortHeader { got });
            } else {
                let payload = advance(&mut slices, HEADER_BYTES);
                let payload = truncate(payload, header.len.get() as usize);
                let there = got - u32::try_from(HEADER_BYTES).expect("44");
                mux.take(&header, payload, there);
            }
            if payload > 0 {
                limiter.charge(payload);
            }
            self.deferral.used(payload);
            ring.finish(ram, chain.head(), 0)?;
        }
        Ok(true)
    }

    /// Hands packets to the guest; whether there may be more that it has buffers for.
    ///
    /// Bytes of a stream are received into many buffers at once where the first was too small for them: a packet each, all
    /// with the same header but for its length.
    fn hand_packets(&mut self) -> Result<bool, RingError> {
        let Some(Side { ring, chain }) = &mut self.rx else { return Ok(false) };
        let Vsock { mux, rx_limiter: limiter, .. } = &mut self.vsock;
        let ram = &*self.ram;
        // A kick is wanted only when buffers run out.
        ring.suppress_kicks(ram)?;
        let mut room = Room::default();
        let mut scratch = Vec::new();
        let (mut handed, mut ahead) = (0, 1);
        let limited = !limiter.is_off();
        let held_before = self.held_for;
        let more = loop {
            if handed >= PACKETS_PER_BATCH {
                break true;
            }
            if !mux.has_packets() {
                break false;
            }
            while room.held.len() < ahead && ring.pop(ram, chain)? {
                room.add(ram, chain)?;
            }
            let Some(first) = room.held.front().map(|held| held.bytes) else {
                if ring.rearm(ram)? {
                    ring.suppress_kicks(ram)?;
                    continue;
                }
                mux.metrics().rx_no_buffers.inc();
                break false;
            };
            // How much there is to receive is known only afterwards: it is paid for then.
            let mut may_receive = || {
                let Err(wait) = limiter.check_now(1) else { return true };
                self.held_for = Some(self.held_for.map_or(wait, |other| other.min(wait)));
                false
            };
            let may_receive: Option<&mut dyn FnMut() -> bool> =
                if limited { Some(&mut may_receive) } else { None };
            let Some(header) = mux.next(room.payload(), first, &mut scratch, may_receive) else {
                break false;
            };
            let len = header.len.get();
            ahead = if len as usize >= first { BUFFERS_AHEAD } else { 1 };
            mux.metrics().rx_bytes.add(len.into());
            for (head, bytes) in room.fill(header) {
                mux.metrics().rx_packets.inc();
                if bytes > 0 {
                    limiter.charge(bytes.into());
                }
                ring.finish(ram, head, bytes + u32::try_from(HEADER_BYTES).expect("44"))?;
                handed += 1;
            }
        };
        room.held.iter().for_each(|_| ring.undo_pop());
        if handed > 0 {
            self.deferral.answered(monotonic_ns());
        }
        if self.held_for == held_before {
            // There was nothing to receive after all.
            limiter.release();
        } else {
            mux.metrics().rx_throttled.inc();
        }
        Ok(more)
    }

    /// Interrupts the driver for what was finished, if it wants that: once per queue and turn. How long it may wait to hear of what it
    /// sent, if it does.
    fn tell(&mut self) -> Result<Option<Duration>, RingError> {
        let metrics = self.vsock.mux.metrics();
        if let Some(Side { ring, .. }) = &mut self.rx
            && ring.wants_interrupt(&self.ram)?
        {
            self.interrupt.queue(RX_QUEUE);
            metrics.rx_interrupts.inc();
        }
        let Some(Side { ring, .. }) = &mut self.tx else { return Ok(None) };
        // A thread that looks for work does not sleep until something is due.
        let due = if self.polled {
            self.deferral.tell(ring, &self.ram)?
        } else {
            self.deferral.ask(ring, &self.ram, monotonic_ns())?
        };
        match due {
            Due::Never => Ok(None),
            Due::After(wait) => Ok(Some(wait)),
            Due::Now => {
                self.interrupt.queue(TX_QUEUE);
                metrics.tx_interrupts.inc();
                Ok(None)
            }
        }
    }
}

impl Running for Live {
    fn serve(&mut self, queue: u16) -> Served {
        if self.broken {
            return Served::Broken;
        }
        let metrics = self.vsock.mux.metrics();
        match queue {
            RX_QUEUE => metrics.rx_queue_events.inc(),
            TX_QUEUE => metrics.tx_queue_events.inc(),
            EVENT_QUEUE => {
                // Its buffers stay: the only event there is belongs to migration (virtio 1.2 §5.10.6.7).
                metrics.event_queue_events.inc();
                return Served::Drained;
            }
            _ => return Served::Drained,
        }
        self.turn(queue == TX_QUEUE, false)
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.vsock.mux.fd()]
    }

    fn ready(&mut self, source: usize) -> Served {
        if self.broken {
            return Served::Broken;
        }
        if source != 0 {
            return Served::Drained;
        }
        self.vsock.mux.metrics().host_events.inc();
        let more = self.vsock.mux.host_events();
        self.turn(false, more)
    }

    fn set_polled(&mut self, on: bool) {
        self.polled = on;
    }

    /// Packets that can't be taken now are no work: whoever looks for some would find them for ever.
    fn peek(&self, queue: u16) -> bool {
        let waits = self.tx_stalled || self.tx_held || self.broken;
        queue == TX_QUEUE && !waits && self.tx.as_ref().is_some_and(|tx| tx.ring.has_more(&self.ram))
    }

    fn stop(mut self: Box<Self>) -> Box<dyn Idle> {
        self.vsock.mux.clear();
        Box::new(self.vsock)
    }
}
