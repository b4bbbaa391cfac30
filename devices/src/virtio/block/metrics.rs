//! What a disk did.

use crate::metrics::{Counter, Histogram};

/// What a request is counted as where its time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
    /// A discard or a write of zeros.
    Erase,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 4] = [Op::Read, Op::Write, Op::Flush, Op::Erase];
}

/// Counters of a disk, or of one of its queues, since it was made; they survive resets and changes of the backing.
///
/// Those of two queues lie in cache lines of their own: each has a thread that writes them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct BlockMetrics {
    /// How long requests took that were carried out, from the queue to their answer, by [`Op`] in the order of [`Op::ALL`].
    times: [Histogram; Op::ALL.len()],
    /// Bytes read by the guest.
    pub read_bytes: Counter,
    /// Bytes written by the guest.
    pub write_bytes: Counter,
    /// Reads completed.
    pub read_count: Counter,
    /// Writes completed.
    pub write_count: Counter,
    /// Flushes completed, the guest's own.
    pub flush_count: Counter,
    /// Discards and writes of zeros completed.
    pub erase_count: Counter,
    /// Bytes that those named.
    pub erase_bytes: Counter,
    /// Discards and writes of zeros that the host failed.
    pub erase_failures: Counter,
    /// Requests that broke the rules and were refused.
    pub refused: Counter,
    /// Reads that the host failed.
    pub read_failures: Counter,
    /// Writes that the host failed.
    pub write_failures: Counter,
    /// Flushes that the host failed.
    pub flush_failures: Counter,
    /// Times the queue was served.
    pub queue_events: Counter,
    /// Times it was served and empty.
    pub empty_queue_events: Counter,
    /// Times a rate limit held the queue.
    pub throttled: Counter,
    /// Interrupts raised.
    pub interrupts: Counter,
    /// Times the driver broke the queue and the device asked to be reset.
    pub broken: Counter,
    /// Changes of the backing that the device took up.
    pub swaps: Counter,
}

impl BlockMetrics {
    /// All of them.
    fn each(&self) -> [&Counter; 18] {
        let Self {
            read_bytes,
            write_bytes,
            read_count,
            write_count,
            flush_count,
            erase_count,
            erase_bytes,
            erase_failures,
            refused,
            read_failures,
            write_failures,
            flush_failures,
            queue_events,
            empty_queue_events,
            throttled,
            interrupts,
            broken,
            swaps,
            times: _,
        } = self;
        [
            read_bytes,
            write_bytes,
            read_count,
            write_count,
            flush_count,
            erase_count,
            erase_bytes,
            erase_failures,
            refused,
            read_failures,
            write_failures,
            flush_failures,
            queue_events,
            empty_queue_events,
            throttled,
            interrupts,
            broken,
            swaps,
        ]
    }

    /// What several queues did together.
    pub(super) fn sum(queues: &[Self]) -> Self {
        let sum = Self::default();
        for queue in queues {
            for (total, part) in sum.each().into_iter().zip(queue.each()) {
                total.add(part.get());
            }
            for (total, part) in sum.times.iter().zip(&queue.times) {
                total.add(&part.tally());
            }
        }
        sum
    }

    /// How long requests of this kind took that were carried out, from the moment they were taken off their queue to their
    /// answer. One that a rate limit holds is put back: what it waits for that is not in here.
    #[must_use]
    pub fn time(&self, op: Op) -> &Histogram {
        &self.times[op as usize]
    }

    /// Requests carried out, of any kind.
    #[must_use]
    pub fn requests(&self) -> u64 {
        [&self.read_count, &self.write_count, &self.flush_count, &self.erase_count]
            .map(Counter::get)
            .iter()
            .sum()
    }

    /// Requests that the host failed, of any kind.
    #[must_use]
    pub fn failures(&self) -> u64 {
        let failures =
            [&self.read_failures, &self.write_failures, &self.flush_failures, &self.erase_failures];
        failures.into_iter().map(Counter::get).sum()
    }
}
