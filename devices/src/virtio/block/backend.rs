//! The bytes behind a disk, as the device sees them.

use std::io;

use super::engine::Engine;
use crate::mem::VolatileSlice;
use crate::virtio::queue::{advance, total_len};

/// A disk's storage, or one queue's share of it. Called by one thread; may sleep.
///
/// The device has checked that a transfer lies within [`Backend::sectors`] and is a multiple of 512 bytes. Guest memory may
/// change while it is read from or written to.
pub trait Backend: Send {
    /// Whole sectors of 512 bytes. A partial one at the end is not counted, hence not addressable. Asked once, when the
    /// backend is put in.
    fn sectors(&self) -> u64;

    /// Another share of the same storage, for another thread: what is written or flushed through one is so for all. A
    /// storage goes when the last of its shares does.
    fn share(&self) -> Box<dyn Backend>;

    /// What does several transfers of this share at a time, up to `depth`; `None` for a storage that has no such thing, whose
    /// transfers are then done one by one. Asked once, when the first request comes.
    fn engine(&mut self, _depth: u16) -> Option<io::Result<Box<dyn Engine>>> {
        None
    }

    /// What offsets and lengths of transfers had better be a multiple of, a power of two from 512 to 4096: the guest is told.
    /// Others are served, by a detour.
    fn sector_bytes(&self) -> u32 {
        512
    }

    /// Bytes of a block of the storage, a power of two: what is aligned to it is written and erased best.
    fn block_bytes(&self) -> u32 {
        512
    }

    /// Reads from `offset` bytes on into guest memory; returns the bytes read: 0 only at the end of the storage. A short
    /// read is resumed by the caller.
    ///
    /// # Errors
    /// What the host says. `Interrupted` is tried again.
    fn read_at(&mut self, offset: u64, into: &[VolatileSlice]) -> io::Result<usize>;

    /// Writes guest memory from `offset` bytes on; returns the bytes written. A short write is resumed by the caller.
    ///
    /// # Errors
    /// What the host says. `Interrupted` is tried again.
    fn write_at(&mut self, offset: u64, from: &[VolatileSlice]) -> io::Result<usize>;

    /// Erases `len` bytes from `offset` on; returns how many of them were written one by one for it, because the storage
    /// knows no shorter way. A range that is not aligned to [`Backend::block_bytes`] is fine.
    ///
    /// # Errors
    /// What the host says; the range then holds what it held, what was asked for, or some of either.
    fn erase(&mut self, offset: u64, len: u64, how: Erasure) -> io::Result<u64>;

    /// Returns once all that was written or erased is on stable storage.
    ///
    /// # Errors
    /// What the host says; some writes may be lost then.
    fn flush(&mut self) -> io::Result<()>;
}

/// What an erased range holds afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erasure {
    /// Anything: the guest does not care. Storage that can give space back does so.
    Discard,
    /// Zeros.
    Zero {
        /// Whether its space may be given back.
        unmap: bool,
    },
}

/// Which way a transfer goes, from the guest's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Disk to guest.
    In,
    /// Guest to disk.
    Out,
}

/// Moves all of `data`, resuming short transfers.
pub(super) fn transfer(
    backend: &mut dyn Backend,
    direction: Direction,
    mut offset: u64,
    mut data: &mut [VolatileSlice],
) -> io::Result<()> {
    let mut left = total_len(data);
    while left > 0 {
        let result = match direction {
            Direction::In => backend.read_at(offset, data),
            Direction::Out => backend.write_at(offset, data),
        };
        let n = match result {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n.min(left),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        left -= n;
        if left > 0 {
            offset += n as u64;
            data = advance(data, n);
        }
    }
    Ok(())
}
