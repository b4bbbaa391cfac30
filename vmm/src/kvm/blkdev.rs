//! The ioctls of block devices (linux/fs.h), for [`crate::host::disk`]: here because they are `unsafe` to make.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `BLKDISCARD`.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Has a block device forget `len` bytes from `offset` on, both multiples of its sectors (BLKDISCARD). On a file that is no
/// block device the answer is ENOTTY.
///
/// # Errors
/// What the kernel says.
pub fn discard(device: &impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two 64-bit numbers, which `range` holds for the length of the call, and writes nothing.
    match unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKDISCARD as _, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
