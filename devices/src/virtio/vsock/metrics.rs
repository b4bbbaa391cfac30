//! What a socket device did.

use crate::metrics::Counter;

/// Counters of one device since it was made; they survive resets. "rx" is what the guest receives; bytes are payload.
#[derive(Debug, Default)]
pub struct VsockMetrics {
    /// Packets handed to the guest.
    pub rx_packets: Counter,
    /// Their payload.
    pub rx_bytes: Counter,
    /// Kicks of the receive queue.
    pub rx_queue_events: Counter,
    /// Interrupts raised for the receive queue.
    pub rx_interrupts: Counter,
    /// Times there was something for the guest and no buffer.
    pub rx_no_buffers: Counter,
    /// Times a rate limit held what there was for the guest.
    pub rx_throttled: Counter,
    /// Receives that the host failed.
    pub rx_read_failures: Counter,
    /// Packets that the guest sent.
    pub tx_packets: Counter,
    /// Their payload.
    pub tx_bytes: Counter,
    /// Kicks of the transmit queue.
    pub tx_queue_events: Counter,
    /// Interrupts raised for the transmit queue.
    pub tx_interrupts: Counter,
    /// Times a rate limit held the transmit queue.
    pub tx_throttled: Counter,
    /// Packets turned down: malformed, or unexpected.
    pub tx_refused: Counter,
    /// Times the transmit queue had to wait because the guest does not take the answers.
    pub tx_stalls: Counter,
    /// Sends that the host failed as they came.
    pub tx_write_failures: Counter,
    /// Sends that the host failed later.
    pub tx_flush_failures: Counter,
    /// Kicks of the event queue.
    pub event_queue_events: Counter,
    /// Times the host's side had something to say.
    pub host_events: Counter,
    /// Connections made.
    pub added: Counter,
    /// Connections that ended.
    pub removed: Counter,
    /// Of those, the ones that the device reset.
    pub killed: Counter,
    /// Requests refused, of the guest and of the host: nobody listens, or there are too many connections.
    pub turned_away: Counter,
    /// Times the driver broke a queue and the device asked to be reset.
    pub broken: Counter,
}
