//! What a network card did.

use crate::metrics::Counter;

/// Counters of one card since it was made; they survive resets. Bytes are those of frames without the virtio header.
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
    /// Frames dropped for being too short or too long.
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
    /// Times the driver broke a queue and the device asked to be reset.
    pub broken: Counter,
}
