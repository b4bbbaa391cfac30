//! What a disk did.

use crate::metrics::Counter;

/// Counters of a disk, or of one of its queues, since it was made; they survive resets and changes of the backing.
#[derive(Debug, Default)]
pub struct BlockMetrics {
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
        }
        sum
    }

    /// Requests that the host failed, of any kind.
    #[must_use]
    pub fn failures(&self) -> u64 {
        let failures =
            [&self.read_failures, &self.write_failures, &self.flush_failures, &self.erase_failures];
        failures.into_iter().map(Counter::get).sum()
    }
}
