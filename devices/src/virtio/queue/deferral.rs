//! An interrupt for what was sent that waits for a better moment.
//!
//! Who sends and is answered is interrupted twice: for what was used of its send queue, and for the answer. The first
//! can wait: a network driver that looks at an answer, or sends more, takes back what was sent by the way, and a driver that has the
//! next one to send anyway can take back many at once. So the interrupt is owed for a while: until the driver has taken back
//! by itself what it is owed for (its used_event says so, virtio 1.2 §2.7.7), until much is owed, or until the delay is over.
//!
//! ```text
//!   immediate ── eight answers in a row came soon ──> deferred
//!   deferred ── the delay was over, and nothing was sent meanwhile ──> immediate, and twice as many answers are needed
//!   deferred ── answers do not come any more ──> immediate
//! ```
//! Who waits for its one send to be used, or sends to nobody who answers, is not held up: it is never deferred, or ever more seldom.
//! What was deferred and never had to be told makes good for that.

use std::time::Duration;

use super::{Ring, RingError};
use crate::mem::Ram;

/// Chains and bytes that are owed for at most, and at most a quarter of the queue: with more the driver may be waiting for room.
const CHAINS_MAX: u32 = 32;
const BYTES_MAX: u64 = 256 * 1024;
/// Answers in a row that it takes at first, and at most.
const ANSWERS: (u32, u32) = (8, 4096);
/// Batches without an answer that are no conversation any more.
const UNANSWERED_MAX: u32 = 8;

/// What becomes of an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// None is wanted.
    Never,
    /// Now.
    Now,
    /// Ask again after this long, or when the queue was served again.
    After(Duration),
}

/// What a send queue owes its driver, and what it has learnt of it: an interrupt that waits for the answer, or until the driver has sent
/// more, as long as that pays.
#[derive(Debug)]
pub struct Deferral {
    delay_ns: u64,
    /// Used since the driver was last told, or has seen it by itself.
    chains: u32,
    bytes: u64,
    /// Since when an interrupt is owed, and whether the driver has sent more since.
    owed_ns: Option<u64>,
    goes_on: bool,
    /// Something was used since the last call of [`Deferral::ask`].
    fresh: bool,
    /// When the last batch ended that has no answer yet, and how many there were.
    asked_ns: Option<u64>,
    unanswered: u32,
    /// Answers in a row that came soon, and how many it takes.
    answers: u32,
    needed: u32,
}

impl Deferral {
    /// One that defers by `delay` at most.
    #[must_use]
    pub fn new(delay: Duration) -> Self {
        Self {
            delay_ns: u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX),
            chains: 0,
            bytes: 0,
            owed_ns: None,
            goes_on: false,
            fresh: false,
            asked_ns: None,
            unanswered: 0,
            answers: 0,
            needed: ANSWERS.0,
        }
    }

    /// A batch begins: what the driver has taken back meanwhile is owed no more.
    ///
    /// # Errors
    /// As [`Ring::wants_interrupt`].
    pub fn begin(&mut self, ring: &mut Ring, ram: &Ram) -> Result<(), RingError> {
        if self.owed_ns.is_some() && !ring.owes_interrupt(ram)? {
            self.paid_off();
        }
        Ok(())
    }

    /// The driver has taken back what it was owed for.
    fn paid_off(&mut self) {
        self.needed -= (self.needed - ANSWERS.0).div_ceil(8);
        self.clear();
    }

    fn clear(&mut self) {
        (self.chains, self.bytes, self.owed_ns, self.goes_on) = (0, 0, None, false);
    }

    /// A chain of `bytes` was used.
    pub fn used(&mut self, bytes: u64) {
        self.chains += 1;
        self.bytes += bytes;
        self.fresh = true;
    }

    /// The driver was given something on the queue that it receives by.
    pub fn answered(&mut self, now_ns: u64) {
        let Some(asked_ns) = self.asked_ns.take() else { return };
        let soon = now_ns.saturating_sub(asked_ns) <= self.delay_ns;
        self.answers = if soon { (self.answers + 1).min(self.needed) } else { self.answers / 2 };
        self.unanswered = 0;
    }

    fn defers(&self) -> bool {
        self.answers >= self.needed
    }

    /// What becomes of the interrupt for what `ring` has used. Asked at the end of each batch, and when the time it said is over; `Now`
    /// is said once.
    ///
    /// # Errors
    /// As [`Ring::wants_interrupt`].
    pub fn ask(&mut self, ring: &mut Ring, ram: &Ram, now_ns: u64) -> Result<Due, RingError> {
        if self.chains == 0 {
            return Ok(Due::Never);
        }
        let deferred = self.defers();
        if std::mem::take(&mut self.fresh) {
            self.goes_on |= self.owed_ns.is_some();
            if self.asked_ns.replace(now_ns).is_some() {
                self.unanswered += 1;
            }
            if self.unanswered > UNANSWERED_MAX {
                self.answers = 0;
            }
        }
        if deferred {
            if !ring.owes_interrupt(ram)? {
                self.paid_off();
                return Ok(Due::Never);
            }
            let since = *self.owed_ns.get_or_insert(now_ns);
            let waited = now_ns.saturating_sub(since);
            let chains_max = CHAINS_MAX.min(u32::from(ring.size()) / 4);
            if waited < self.delay_ns && self.chains < chains_max && self.bytes < BYTES_MAX {
                return Ok(Due::After(Duration::from_nanos(self.delay_ns - waited)));
            }
            if waited >= self.delay_ns && !self.goes_on {
                self.answers = 0;
                self.needed = (self.needed * 2).min(ANSWERS.1);
            }
        }
        self.tell(ring, ram)
    }

    /// The interrupt for what `ring` has used, without delay: whether the driver wants it.
    ///
    /// # Errors
    /// As [`Ring::wants_interrupt`].
    pub fn tell(&mut self, ring: &mut Ring, ram: &Ram) -> Result<Due, RingError> {
        self.clear();
        Ok(if ring.wants_interrupt(ram)? { Due::Now } else { Due::Never })
    }
}

#[cfg(test)]
#[path = "deferral_tests.rs"]
mod tests;
