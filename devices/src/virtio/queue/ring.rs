//! The two rings: what the driver made available, what the device used, and who wants to hear about it.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Chain, ChainError, F_EVENT_IDX};

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2 §2.7.7).
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Bytes before the entries of either ring: flags and index (virtio 1.2 §2.7.6, §2.7.8).
const RING_HEADER: u64 = 4;

/// Why a queue can't be served any more. The driver is at fault: it gets DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The available index is further ahead than the queue has entries.
    #[error("the driver says it made more chains available than the queue has entries")]
    AvailIndex,
    /// An available entry names a descriptor that does not exist.
    #[error("available head {head} is not below the queue's size {size}")]
    BadHead {
        /// The descriptor index.
        head: u16,
        /// Entries in the queue.
        size: u16,
    },
    /// A chain that can't be answered.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A well-formed chain without the byte that would hold its answer.
    #[error("chain {head} has no room for an answer")]
    NoAnswer {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A ring that can't be reached.
    #[error("the rings are not accessible: {0}")]
    Rings(String),
}

impl From<virtio_queue::Error> for RingError {
    fn from(error: virtio_queue::Error) -> Self {
        match error {
            virtio_queue::Error::InvalidAvailRingIndex => Self::AvailIndex,
            other => Self::Rings(other.to_string()),
        }
    }
}

impl From<vm_memory::GuestMemoryError> for RingError {
    fn from(error: vm_memory::GuestMemoryError) -> Self {
        Self::Rings(error.to_string())
    }
}

/// A queue in use by a device.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    event_idx: bool,
    /// The used index at the last [`Ring::wants_interrupt`]: what the driver was last asked about.
    asked_at: u16,
}

impl Ring {
    /// Takes over `queue`, which the transport found valid, under the agreed `features`.
    #[must_use]
    pub fn new(mut queue: Queue, features: u64) -> Self {
        let event_idx = features & F_EVENT_IDX != 0;
        queue.set_event_idx(event_idx);
        let asked_at = queue.next_used();
        Self { queue, event_idx, asked_at }
    }

    /// Entries in the queue.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Fills `chain` with the next available chain; false if there is none.
    ///
    /// # Errors
    /// [`RingError`] if the driver broke the rules; the queue is not to be served any more.
    pub fn pop(&mut self, ram: &GuestMemoryMmap<()>, chain: &mut Chain) -> Result<bool, RingError> {
        let size = self.queue.size();
        let Some(next) = self.queue.iter(ram)?.next() else { return Ok(false) };
        let head = next.head_index();
        if head >= size {
            return Err(RingError::BadHead { head, size });
        }
        chain.fill(next, size)?;
        Ok(true)
    }

    /// Whether the driver made something available that was not popped; false if that can't be read, which `pop` will tell.
    #[must_use]
    pub fn has_more(&self, ram: &GuestMemoryMmap<()>) -> bool {
        let index = self.queue.avail_idx(ram, Ordering::Acquire);
        index.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Puts the chain that was popped last back: the next `pop` yields it again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives the chain `head` back to the driver, `written` bytes of it filled.
    ///
    /// # Errors
    /// [`RingError::Rings`] if the used ring can't be written.
    pub fn finish(&mut self, ram: &GuestMemoryMmap<()>, head: u16, written: u32) -> Result<(), RingError> {
        Ok(self.queue.add_used(ram, head, written)?)
    }

    /// Gives several chains back at once: the driver sees all of them or none (virtio 1.2 §5.1.6.4.1).
    ///
    /// # Errors
    /// [`RingError::Rings`] if the used ring can't be written.
    pub fn finish_together(
        &mut self,
        ram: &GuestMemoryMmap<()>,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), RingError> {
        let mut chains = chains.into_iter().peekable();
        while let Some((head, written)) = chains.next() {
            if chains.peek().is_none() {
                // Publishes the index, hence all entries before it.
                return self.finish(ram, head, written);
            }
            let used = self.queue.next_used();
            let entry = u64::from(head) | u64::from(written) << 32;
            let at = RING_HEADER + u64::from(used % self.queue.size()) * 8;
            ram.write_obj(entry.to_le(), GuestAddress(self.queue.used_ring() + at))?;
            self.queue.set_next_used(used.wrapping_add(1));
        }
        Ok(())
    }

    /// Asks the driver not to kick. It may still do so: this is a hint. Under EVENT_IDX silence is the default.
    ///
    /// # Errors
    /// [`RingError::Rings`] if the used ring can't be written.
    pub fn suppress_kicks(&mut self, ram: &GuestMemoryMmap<()>) -> Result<(), RingError> {
        Ok(self.queue.disable_notification(ram)?)
    }

    /// Asks the driver to kick again. True if chains came in meanwhile: they may come without a kick, so look again.
    ///
    /// # Errors
    /// [`RingError::Rings`] if the rings can't be accessed.
    pub fn rearm(&mut self, ram: &GuestMemoryMmap<()>) -> Result<bool, RingError> {
        Ok(self.queue.enable_notification(ram)?)
    }

    /// As [`Ring::wants_interrupt`], of a driver that is not told now: if it wants an interrupt, the next call is about the same and
    /// what was finished since.
    ///
    /// # Errors
    /// As [`Ring::wants_interrupt`].
    pub fn owes_interrupt(&mut self, ram: &GuestMemoryMmap<()>) -> Result<bool, RingError> {
        let before = self.asked_at;
        let owed = self.wants_interrupt(ram)?;
        if owed {
            self.asked_at = before;
        }
        Ok(owed)
    }

    /// Whether the driver wants an interrupt for what was finished since the last call (virtio 1.2 §2.7.7).
    ///
    /// # Errors
    /// [`RingError::Rings`] if the available ring can't be read.
    pub fn wants_interrupt(&mut self, ram: &GuestMemoryMmap<()>) -> Result<bool, RingError> {
        let now = self.queue.next_used();
        let before = std::mem::replace(&mut self.asked_at, now);
        if now == before {
            return Ok(false);
        }
        // The used index must be visible before we look at what the driver wants: it writes that, then looks at the index.
        fence(Ordering::SeqCst);
        let avail = self.queue.avail_ring();
        if self.event_idx {
            let at = RING_HEADER + u64::from(self.queue.size()) * 2;
            let event = u16::from_le(ram.load(GuestAddress(avail + at), Ordering::Relaxed)?);
            return Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before));
        }
        let flags = u16::from_le(ram.load(GuestAddress(avail), Ordering::Relaxed)?);
        Ok(flags & AVAIL_F_NO_INTERRUPT == 0)
    }
}
