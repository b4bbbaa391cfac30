//! The bytes behind a disk, as the device sees them.

use std::io;

use crate::mem::VolatileSlice;
use crate::virtio::queue::{advance, total_len};

/// A disk's storage. Called by the device's thread only; may sleep.
///
/// The device has checked that a transfer lies within [`Backend::sectors`] and is a multiple of 512 bytes. Guest memory may
/// change while it is read from or written to.
pub trait Backend: Send {
    /// Whole sectors of 512 bytes. A partial one at the end is not counted, hence not addressable. Asked once, when the
    /// backend is put in.
    fn sectors(&self) -> u64;

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

    /// Returns once all that was written is on stable storage.
    ///
    /// # Errors
    /// What the host says; some writes may be lost then.
    fn flush(&mut self) -> io::Result<()>;
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
