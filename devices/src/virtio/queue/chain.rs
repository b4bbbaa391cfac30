//! One descriptor chain: a bounded, checked list of segments, and the guest bytes behind them.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// What one descriptor points to. Not known to be RAM until [`resolve`] says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First guest-physical address.
    pub addr: GuestAddress,
    /// Bytes; may be zero.
    pub len: u32,
}

/// Why a chain was turned down. Every variant is reachable from a hostile guest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It loops, names a descriptor that isn't there, holds 2^32 bytes or more, or its indirect table is malformed.
    #[error(
        "chain {head} breaks off after {links} descriptors: loop, bad index, bad indirect table or 4 GiB passed"
    )]
    Truncated {
        /// Index of its first descriptor.
        head: u16,
        /// Descriptors that could be followed.
        links: usize,
    },
    /// More descriptors than the queue has entries (virtio 1.2 §2.7.5.3.1).
    #[error("chain {head} has more than {max} descriptors")]
    TooLong {
        /// Index of its first descriptor.
        head: u16,
        /// The queue's size.
        max: usize,
    },
    /// A device-readable descriptor after a device-writable one (virtio 1.2 §2.7.4.2).
    #[error("chain {head} has a readable descriptor after a writable one")]
    Order {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A segment lies outside guest RAM, wholly or in part.
    #[error("segment {addr:#x}+{len:#x} is not in guest RAM")]
    OutsideRam {
        /// First address.
        addr: u64,
        /// Bytes.
        len: u32,
    },
}

/// A descriptor chain, copied out of guest memory. Made once per device and filled again for each request: no allocation.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable: usize,
    readable_bytes: u32,
    writable_bytes: u32,
}

impl Chain {
    /// An empty chain with room for the longest one that a queue of `queue_size` entries may hold.
    #[must_use]
    pub fn with_room_for(queue_size: u16) -> Self {
        let segments = Vec::with_capacity(usize::from(queue_size));
        Self { head: 0, segments, readable: 0, readable_bytes: 0, writable_bytes: 0 }
    }

    /// The index that goes back to the driver in the used ring.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver gives, in order.
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// What the device fills, in order.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    /// Sum of the readable lengths.
    #[must_use]
    pub fn readable_bytes(&self) -> u32 {
        self.readable_bytes
    }

    /// Sum of the writable lengths.
    #[must_use]
    pub fn writable_bytes(&self) -> u32 {
        self.writable_bytes
    }

    /// Follows `chain` to its end: at most as many links as the queue has entries, indirect ones included.
    pub(super) fn fill(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap<()>>,
        queue_size: u16,
    ) -> Result<(), ChainError> {
        let head = chain.head_index();
        let max = usize::from(queue_size);
        *self = Self {
            head,
            segments: std::mem::take(&mut self.segments),
            readable: 0,
            readable_bytes: 0,
            writable_bytes: 0,
        };
        self.segments.clear();
        let mut unfinished = true;
        for descriptor in chain {
            if self.segments.len() == max {
                return Err(ChainError::TooLong { head, max });
            }
            // The sum of all lengths fits: the iterator ends (unfinished) where it would pass 2^32.
            if descriptor.is_write_only() {
                self.writable_bytes += descriptor.len();
            } else if self.readable == self.segments.len() {
                self.readable += 1;
                self.readable_bytes += descriptor.len();
            } else {
                return Err(ChainError::Order { head });
            }
            self.segments.push(Segment { addr: descriptor.addr(), len: descriptor.len() });
            unfinished = descriptor.has_next();
        }
        if unfinished {
            return Err(ChainError::Truncated { head, links: self.segments.len() });
        }
        Ok(())
    }
}

/// Appends the guest bytes behind `segments` to `into`: one lookup per segment, empty ones left out.
///
/// A segment that spans two adjoining regions of RAM becomes two slices.
///
/// # Errors
/// [`ChainError::OutsideRam`]; `into` then holds the slices of the segments before.
pub fn resolve<'m>(
    ram: &'m GuestMemoryMmap<()>,
    segments: &[Segment],
    into: &mut Vec<VolatileSlice<'m>>,
) -> Result<(), ChainError> {
    for &Segment { addr, len } in segments {
        let bytes = len as usize;
        if bytes == 0 {
            continue;
        }
        if let Ok(slice) = ram.get_slice(addr, bytes) {
            into.push(slice);
            continue;
        }
        for part in GuestMemoryBackend::get_slices(ram, addr, bytes) {
            into.push(part.map_err(|_| ChainError::OutsideRam { addr: addr.0, len })?);
        }
    }
    Ok(())
}

/// Bytes in `slices`.
#[must_use]
pub fn total_len(slices: &[VolatileSlice]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// `slices` without their first `n` bytes; empty if there are fewer.
pub fn advance<'s, 'm>(slices: &'s mut [VolatileSlice<'m>], mut n: usize) -> &'s mut [VolatileSlice<'m>] {
    let whole = slices.iter().take_while(|slice| take_if_covers(&mut n, slice.len())).count();
    let rest = &mut slices[whole..];
    if let Some(first) = rest.first_mut() {
        *first = first.offset(n).expect("n is less than the slice: it was not taken whole");
    }
    rest
}

/// The first `n` bytes of `slices`; all of them if there are fewer.
pub fn truncate<'s, 'm>(slices: &'s mut [VolatileSlice<'m>], mut n: usize) -> &'s mut [VolatileSlice<'m>] {
    let whole = slices.iter().take_while(|slice| take_if_covers(&mut n, slice.len())).count();
    if n > 0
        && let Some(last) = slices.get_mut(whole)
    {
        *last = last.subslice(0, n).expect("n is less than the slice: it was not taken whole");
        return &mut slices[..=whole];
    }
    &mut slices[..whole]
}

/// Takes `len` off `n` if `n` covers it.
fn take_if_covers(n: &mut usize, len: usize) -> bool {
    let covers = *n >= len;
    if covers {
        *n -= len;
    }
    covers
}

/// Copies from the start of `slices` into `data`; returns the bytes copied: the shorter of the two.
pub fn copy_out(slices: &[VolatileSlice], data: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        if done == data.len() {
            break;
        }
        done += slice.copy_to(&mut data[done..]);
    }
    done
}

/// Copies `data` into `slices`, `skip` bytes from their start; returns the bytes copied: what fits.
pub fn copy_in(slices: &[VolatileSlice], mut skip: usize, data: &[u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        if done == data.len() {
            break;
        }
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        let room = slice.offset(skip).expect("skip is less than the slice");
        skip = 0;
        let n = room.len().min(data.len() - done);
        room.copy_from(&data[done..done + n]);
        done += n;
    }
    done
}
