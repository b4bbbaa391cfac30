//! How many requests a driver gives before it waits for an answer, and a look for those that are still to come.
//!
//! A device that is quicker than its driver finds its queue empty after each request of a burst, asks for a kick and interrupts: two
//! exits or three for each, where the burst could have had one kick and one interrupt. So it learns how many the driver gives, and
//! looks for more until it has these. A driver with one request at a time is not held up: after one there is nothing to look for.
//!
//! ```text
//!   driver   r r r r r r . . . . . . r r r r r r . . .       r: a request,  K: a kick,  I: an interrupt
//!   device   K   looks   I           K   looks   I           six in hand: the sixth ends the batch at once
//! ```
//! - Whether the driver would give more than it was seen to give is tried by a look beyond that, ever more seldom if there was nothing.
//! - A look lasts for half of the time from the end of a batch to the next one, which is about what the exits take that it may save, on
//!   machines where these are quick as on those where they are slow: who looks in vain has lost no more than that. It lasts up to four
//!   times as long where looks are seldom in vain: then what is late is the driver's own interrupt or timer, and it will go on.
//! - Who was answered is told after a while although there is more to come. The device goes on looking meanwhile.

use super::look::{LOOK_MIN_NS, look};
use crate::clock::monotonic_ns;

/// The longest look, in nanoseconds.
pub(super) const LOOK_MAX_NS: u64 = 2_000_000;
/// How long answers may wait for others while the device looks, in gaps between requests and in nanoseconds at least and at most.
pub(super) const LATE_GAPS: u64 = 16;
pub(super) const LATE_NS: (u64, u64) = (20_000, 2_000_000);
/// Who is quiet for longer, in nanoseconds, says nothing about how long exits take.
const QUIET_NS: u64 = 2_000_000;
/// Bursts without a look beyond them, at most, after such looks that found nothing.
pub(super) const PAUSE_MAX: u32 = 31;
/// Looks in a row that find something until they are the longest, and how many of those one in vain is worth.
const PATIENCE_MAX: u32 = 32;
const IMPATIENCE: u32 = 2;

/// What to do about an empty queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is not empty any more.
    Found,
    /// The batch ends: the driver is told, and kicks for what comes.
    Ended,
    /// What was answered waited long enough: the driver is told. There is more to come, and no kick is needed for it.
    Late,
}

/// What a queue has learnt of a driver that waits for answers.
#[derive(Debug)]
pub struct Burst {
    /// Requests that the driver gives before it waits.
    size: u32,
    /// Requests since it was last told: those it has no answer to, as it sees it.
    untold: u32,
    /// There was a request in this burst.
    any: bool,
    /// When the batch's first look began, if there was one.
    look_ns: Option<u64>,
    /// When the last burst ended, if that was the end that was expected.
    end_ns: Option<u64>,
    /// The next batch goes on with this burst.
    goes_on: bool,
    /// Nanoseconds from one request to the next within a burst: a moving average.
    gap_ns: u64,
    /// Nanoseconds from the end of one burst to the next, of those that follow quickly.
    quiet_ns: u64,
    /// How seldom looks for what is expected were in vain of late, to [`PATIENCE_MAX`].
    patience: u32,
    /// Bursts yet to end without a look beyond, and how many it will be after the next one for nothing.
    pause: u32,
    next_pause: u32,
}

impl Default for Burst {
    fn default() -> Self {
        Self {
            size: 1,
            untold: 0,
            any: false,
            look_ns: None,
            end_ns: None,
            goes_on: false,
            gap_ns: LATE_NS.1 / LATE_GAPS,
            quiet_ns: LOOK_MIN_NS * 8,
            patience: 0,
            pause: 0,
            next_pause: 1,
        }
    }
}

impl Burst {
    /// A batch begins, now.
    pub fn begin(&mut self, now_ns: u64) {
        self.look_ns = None;
        if std::mem::take(&mut self.goes_on) {
            return;
        }
        self.any = false;
        // Who ended early may have been about to go on: that says nothing about exits.
        if let Some(end) = self.end_ns.take() {
            let quiet = now_ns.saturating_sub(end);
            if quiet < self.quiet_ns {
                self.quiet_ns -= (self.quiet_ns - quiet) / 4;
            } else if quiet <= QUIET_NS {
                self.quiet_ns += (quiet - self.quiet_ns) / 8;
            }
        }
        self.untold = 0;
    }

    /// A request was taken off the queue.
    pub fn took(&mut self) {
        self.any = true;
        self.untold = self.untold.saturating_add(1);
        self.size = self.size.max(self.untold);
    }

    /// Whether there was a request in this burst.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.any
    }

    /// The driver is told of what was answered.
    pub fn told(&mut self) {
        self.untold = 0;
    }

    /// The batch ends because it is full: the next one goes on with the burst.
    pub fn goes_on(&mut self) {
        self.goes_on = true;
    }

    /// The queue is empty: what to do about that, after looking whether there is `more` if that may pay.
    pub fn next(&mut self, more: impl FnMut() -> bool) -> Next {
        if !self.any {
            return Next::Ended;
        }
        let beyond = self.untold >= self.size;
        let begin = monotonic_ns();
        if beyond && self.pause > 0 {
            self.pause -= 1;
            self.end_ns = Some(begin);
            return Next::Ended;
        }
        let late = (self.gap_ns * LATE_GAPS).clamp(LATE_NS.0, LATE_NS.1);
        if begin.saturating_sub(*self.look_ns.get_or_insert(begin)) > late {
            self.goes_on = true;
            return Next::Late;
        }
        let patience = if beyond { 0 } else { self.patience };
        let longest =
            self.quiet_ns / 2 + self.quiet_ns * 3 * u64::from(patience) / u64::from(2 * PATIENCE_MAX);
        let (found, now) = look(begin, begin + longest.clamp(LOOK_MIN_NS, LOOK_MAX_NS), more);
        if found {
            self.gap_ns = (self.gap_ns * 7 + now.saturating_sub(begin)) / 8;
            self.patience = (self.patience + 1).min(PATIENCE_MAX);
            if beyond {
                self.next_pause /= 2;
            }
            return Next::Found;
        }
        if beyond {
            self.end_ns = Some(now);
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2 + 1).min(PAUSE_MAX);
        } else {
            // One hiccup among many is no reason to expect much less.
            self.size = (self.size - (self.size - self.untold).div_ceil(8)).max(1);
            self.patience = patience.saturating_sub(IMPATIENCE);
        }
        Next::Ended
    }
}
