//! What a network card did.

use crate::metrics::Counter;

/// Counters of one card, or of one of its pairs of queues, since it was made; they survive resets. Bytes are those of frames without the virtio header.
#[derive(Debug, Default)]
pub struct NetMetrics {
    /// Frames handed to the guest.
    pub rx_frames: Counter,
    /// Bytes of those.
    pub rx_bytes: Counter,
    /// Frames dropped because the guest's buffers were too small for them.
    pub rx_dropped: Counter,
    /// Receives that the host failed.
    pub rx_failures: Counter,
    /// Times the guest had no buffer for what may have come in.
    pub rx_no_buffers: Counter,
    /// Times a rate limit held the receive queue.
    pub rx_throttled: Counter,
    /// Kicks of the receive queue.
    pub rx_queue_events: Counter,
    /// Times the wire became readable.
    pub rx_wire_events: Counter,
    /// Interrupts raised for the receive queue.
    pub rx_interrupts: Counter,
    /// Frames the guest sent.
    pub tx_frames: Counter,
    /// Bytes of those.
    pub tx_bytes: Counter,
    /// Frames dropped for being too short or too long, or on a pair of queues that is not in use.
    pub tx_dropped: Counter,
    /// Frames dropped because the host failed to send them.
    pub tx_failures: Counter,
    /// Times the host was busy and a frame had to wait.
    pub tx_busy: Counter,
    /// Times a rate limit held the transmit queue.
    pub tx_throttled: Counter,
    /// Kicks of the transmit queue.
    pub tx_queue_events: Counter,
    /// Interrupts raised for the transmit queue.
    pub tx_interrupts: Counter,
    /// Kicks of the control queue.
    pub control_events: Counter,
    /// Commands that were answered with an error.
    pub control_refused: Counter,
    /// Times the guest was asked to announce itself and said that it does.
    pub announcements: Counter,
    /// Times the driver broke a queue and the device asked to be reset.
    pub broken: Counter,
}

impl NetMetrics {
    /// All of them.
    fn each(&self) -> [&Counter; 21] {
        let Self {
            rx_frames,
            rx_bytes,
            rx_dropped,
            rx_failures,
            rx_no_buffers,
            rx_throttled,
            rx_queue_events,
            rx_wire_events,
            rx_interrupts,
            tx_frames,
            tx_bytes,
            tx_dropped,
            tx_failures,
            tx_busy,
            tx_throttled,
            tx_queue_events,
            tx_interrupts,
            control_events,
            control_refused,
            announcements,
            broken,
        } = self;
        [
            rx_frames,
            rx_bytes,
            rx_dropped,
            rx_failures,
            rx_no_buffers,
            rx_throttled,
            rx_queue_events,
            rx_wire_events,
            rx_interrupts,
            tx_frames,
            tx_bytes,
            tx_dropped,
            tx_failures,
            tx_busy,
            tx_throttled,
            tx_queue_events,
            tx_interrupts,
            control_events,
            control_refused,
            announcements,
            broken,
        ]
    }

    /// What several pairs did together.
    pub(super) fn sum(pairs: &[Self]) -> Self {
        let sum = Self::default();
        for pair in pairs {
            for (total, part) in sum.each().into_iter().zip(pair.each()) {
                total.add(part.get());
            }
        }
        sum
    }
}
