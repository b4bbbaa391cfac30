//! Vectored I/O between descriptors and guest RAM: what the standard library can't do without a reference into it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use devices::mem::VolatileSlice;
use devices::virtio::queue::total_len;
use nix::sys::socket::MsgFlags;

/// Segments moved by one system call: `IOV_MAX`.
const SEGMENTS_MAX: usize = 1024;

/// The slices as iovecs, at most [`SEGMENTS_MAX`] of them, and how many.
fn iovecs(
    slices: &[VolatileSlice<'_>],
    out: &mut [std::mem::MaybeUninit<libc::iovec>; SEGMENTS_MAX],
) -> usize {
    let n = slices.len().min(SEGMENTS_MAX);
    for (iovec, slice) in out.iter_mut().zip(&slices[..n]) {
        iovec.write(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
    }
    n
}

/// How much `call`, which says as system calls do, has moved; again if a signal came first.
fn moved(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(moved) = usize::try_from(call()) {
            return Ok(moved);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

macro_rules! vectored {
    ($(#[$doc:meta])* $name:ident, $call:path $(, $offset:ident)?) => {
        $(#[$doc])*
        ///
        /// May move less than asked; the first `IOV_MAX` slices at most.
        ///
        /// # Errors
        /// What the system call said; EINTR is retried.
        pub fn $name(fd: BorrowedFd<'_>, slices: &[VolatileSlice<'_>] $(, $offset: u64)?) -> io::Result<usize> {
            let mut room = [const { std::mem::MaybeUninit::uninit() }; SEGMENTS_MAX];
            let n = iovecs(slices, &mut room);
            $(let $offset = i64::try_from($offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;)?
            // SAFETY: the first `n` iovecs are initialised and describe memory that `slices` keeps mapped for the
            // length of the call. The kernel copies; other threads may write the same memory, which it tolerates.
            moved(|| unsafe {
                $call(fd.as_raw_fd(), room.as_ptr().cast(), i32::try_from(n).unwrap_or(0) $(, $offset)?)
            })
        }
    };
}

vectored!(
    /// readv(2) into guest RAM.
    readv, libc::readv);
vectored!(
    /// writev(2) from guest RAM.
    writev, libc::writev);
vectored!(
    /// preadv(2) into guest RAM, `offset` bytes from the start of the file.
    preadv, libc::preadv, offset);
vectored!(
    /// pwritev(2) from guest RAM, `offset` bytes from the start of the file.
    pwritev, libc::pwritev, offset);

/// recvmsg(2) of bytes into guest RAM, and whether it filled the slices it was given; and its flags. Descriptors that come along are
/// closed, which MSG_CTRUNC tells.
///
/// May move less than asked; the first `IOV_MAX` slices at most.
///
/// # Errors
/// What the system call said; EINTR is retried.
pub fn recvmsg(fd: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<(usize, bool, MsgFlags)> {
    let mut room = [const { std::mem::MaybeUninit::uninit() }; SEGMENTS_MAX];
    let count = iovecs(slices, &mut room);
    // SAFETY: a msghdr of zeros is one without an address, iovecs and control messages.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (room.as_mut_ptr().cast(), count as _);
    // SAFETY: as of the calls above; `message` outlives the call, and is written to by it only where it lies itself.
    let bytes = moved(|| unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, 0) })?;
    let full = bytes == total_len(&slices[..count]);
    Ok((bytes, full, MsgFlags::from_bits_truncate(message.msg_flags)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn bytes_land_in_order_across_segments_and_at_the_offset() {
        let file = tempfile::tempfile().unwrap();
        let mut a = *b"hello ";
        let mut b = *b"world";
        let slices = [VolatileSlice::from(&mut a[..]), VolatileSlice::from(&mut b[..])];
        assert_eq!(pwritev(file.as_fd(), &slices, 3).unwrap(), 11);
        let (mut c, mut d) = ([0u8; 4], [0u8; 20]);
        let slices = [VolatileSlice::from(&mut c[..]), VolatileSlice::from(&mut d[..])];
        assert_eq!(preadv(file.as_fd(), &slices, 3).unwrap(), 11);
        assert_eq!((&c, &d[..7]), (b"hell", &b"o world"[..]));
    }

    #[test]
    fn more_segments_than_fit_one_call_move_a_prefix() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = [7u8; SEGMENTS_MAX + 10];
        let slices: Vec<_> = bytes.chunks_mut(1).map(VolatileSlice::from).collect();
        assert_eq!(pwritev(file.as_fd(), &slices, 0).unwrap(), SEGMENTS_MAX);
    }

    #[test]
    fn an_offset_past_what_a_file_can_have_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(preadv(file.as_fd(), &[], u64::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
