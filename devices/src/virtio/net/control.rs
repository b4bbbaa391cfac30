//! The control queue (virtio 1.2 §5.1.6.5): commands that a driver waits for, rarely.
//!
//! ```text
//!   readable: class, command, data ...     writable: one byte, VIRTIO_NET_OK or VIRTIO_NET_ERR
//! ```
//! However a driver cuts a command into buffers, it is read once, as far as the longest known one goes. What is unknown, too
//! short or too long is answered with an error; a command without room for the answer breaks the queue.

use crate::mem::Ram;
use crate::virtio::Served;
use crate::virtio::queue::{Chain, Ring, RingError, copy_in, copy_out, resolve};

/// VIRTIO_NET_OK (virtio 1.2 §5.1.6.5).
const OK: u8 = 0;
/// VIRTIO_NET_ERR.
const ERR: u8 = 1;
/// VIRTIO_NET_CTRL_MQ (virtio 1.2 §5.1.6.5.5), and its command VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const MQ_VQ_PAIRS_SET: [u8; 2] = [4, 0];
/// VIRTIO_NET_CTRL_ANNOUNCE (virtio 1.2 §5.1.6.5.4), and its command VIRTIO_NET_CTRL_ANNOUNCE_ACK.
const ANNOUNCE_ACK: [u8; 2] = [3, 0];
/// Bytes of the longest command.
const COMMAND_BYTES_MAX: usize = 4;
/// Commands obeyed before the thread looks at its other sources: each may make system calls.
const COMMANDS_PER_BATCH: u32 = 8;

/// What a driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Use this many pairs.
    Pairs(u16),
    /// It has heard that it is to announce itself.
    Announces,
}

impl Command {
    /// Reads a command of `len` bytes, of which `bytes` are the first.
    fn parse(bytes: [u8; COMMAND_BYTES_MAX], len: u32) -> Option<Self> {
        let [class, command, low, high] = bytes;
        match ([class, command], len) {
            (MQ_VQ_PAIRS_SET, 4) => Some(Self::Pairs(u16::from_le_bytes([low, high]))),
            (ANNOUNCE_ACK, 2) => Some(Self::Announces),
            _ => None,
        }
    }
}

/// The control queue of a card in use.
pub(super) struct Control {
    pub(super) ring: Ring,
    chain: Chain,
}

impl Control {
    pub(super) fn new(ring: Ring) -> Self {
        let chain = Chain::with_room_for(ring.size());
        Self { ring, chain }
    }

    /// Has `obey` carry out commands, until there are no more or the batch is full; whether it did is the answer. It is not
    /// asked about what is no command.
    pub(super) fn batch(
        &mut self,
        ram: &Ram,
        mut obey: impl FnMut(Option<Command>) -> bool,
    ) -> Result<Served, RingError> {
        let mut slices = Vec::new();
        self.ring.suppress_kicks(ram)?;
        for _ in 0..COMMANDS_PER_BATCH {
            if !self.ring.pop(ram, &mut self.chain)? {
                if self.ring.rearm(ram)? {
                    self.ring.suppress_kicks(ram)?;
                    continue;
                }
                return Ok(Served::Drained);
            }
            let head = self.chain.head();
            if self.chain.writable_bytes() == 0 {
                return Err(RingError::NoAnswer { head });
            }
            slices.clear();
            resolve(ram, self.chain.readable(), &mut slices)?;
            let mut bytes = [0; COMMAND_BYTES_MAX];
            copy_out(&slices, &mut bytes);
            slices.clear();
            resolve(ram, self.chain.writable(), &mut slices)?;
            let done = obey(Command::parse(bytes, self.chain.readable_bytes()));
            copy_in(&slices, 0, &[if done { OK } else { ERR }]);
            self.ring.finish(ram, head, 1)?;
        }
        Ok(Served::More)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_exactly_its_length() {
        let set = [4, 0, 2, 1];
        assert_eq!(Command::parse(set, 4), Some(Command::Pairs(0x102)));
        for len in [0, 1, 2, 3, 5, u32::MAX] {
            assert_eq!(Command::parse(set, len), None, "{len}");
        }
        let acknowledgement = [3, 0, 0, 0];
        assert_eq!(Command::parse(acknowledgement, 2), Some(Command::Announces));
        for len in [0, 1, 3, 4] {
            assert_eq!(Command::parse(acknowledgement, len), None, "{len}");
        }
        for other in [[4, 1, 2, 0], [0, 0, 1, 0], [255, 0, 1, 0]] {
            assert_eq!(Command::parse(other, 4), None, "{other:?}");
        }
    }
}
