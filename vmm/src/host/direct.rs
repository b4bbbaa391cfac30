//! Transfers past the host's page cache (O_DIRECT): the alignment is asked of the kernel, and what is not aligned takes a detour.
//!
//! A guest is told the alignment of offsets as its block size, so that only one which does not care is ever misaligned there; its
//! writes then read the blocks at their ends, change them and write them back, while no other write is going on.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{PoisonError, RwLock};

use devices::mem::VolatileSlice;
use devices::virtio::queue::{copy_in, copy_out, total_len};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::fs::{AtFlags, StatxFlags, statx};

use crate::mem::uring::are_aligned;
use crate::mem::vectored;

/// What suits every disk, where the kernel does not say (before Linux 6.1, or on file systems that never do).
const SAFE: u32 = 4096;
/// Bytes that take the detour at a time, at least one block.
const DETOUR: usize = 64 << 10;

/// How an image is read and written directly.
#[derive(Debug)]
pub struct Direct {
    /// What addresses in memory are a multiple of.
    memory: usize,
    /// What offsets in the file, and lengths, are a multiple of.
    offset: u32,
    /// Held by writes; exclusively by one that reads blocks and writes them back.
    writes: RwLock<()>,
}

impl Direct {
    /// Turns to direct I/O on the open file description of `file`.
    ///
    /// # Errors
    /// If the file system has no direct I/O, or wants an alignment above 4 KiB.
    pub fn of(file: &File) -> io::Result<Self> {
        let refused = |why: String| io::Error::new(io::ErrorKind::Unsupported, why);
        let said = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
        let (memory, offset) = match said {
            Ok(said) if said.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
                (said.stx_dio_mem_align, said.stx_dio_offset_align)
            }
            _ => (SAFE, SAFE),
        };
        if memory == 0 || offset == 0 {
            return Err(refused("its file system has no direct I/O".into()));
        }
        if !memory.is_power_of_two() || !offset.is_power_of_two() || memory.max(offset) > SAFE {
            return Err(refused(format!(
                "direct I/O on it is aligned to {memory} and {offset} bytes, above 4096"
            )));
        }
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
        fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT))?;
        Ok(Self { memory: memory as usize, offset: offset.max(512), writes: RwLock::new(()) })
    }

    /// What offsets and lengths are a multiple of, in bytes: 512 to 4096.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.offset
    }

    /// What addresses in memory are a multiple of, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory
    }

    fn fits(&self, offset: u64, slices: &[VolatileSlice]) -> bool {
        let block = self.offset as usize;
        offset.is_multiple_of(self.offset.into()) && are_aligned(slices, self.memory, block)
    }

    /// Where the blocks of a transfer begin, the bytes before it in the first, how many of `wanted` go at a time, and the
    /// length of the blocks.
    fn blocks(&self, offset: u64, wanted: usize) -> (u64, usize, usize, usize) {
        let block = self.offset as usize;
        let skip = usize::try_from(offset % u64::from(self.offset)).expect("less than a block");
        let now = wanted.min(DETOUR - skip);
        (offset - skip as u64, skip, now, (skip + now).next_multiple_of(block))
    }

    /// Reads from `offset` bytes on; the bytes read.
    ///
    /// # Errors
    /// What the host said.
    pub fn read(&self, file: &File, offset: u64, into: &[VolatileSlice]) -> io::Result<usize> {
        if self.fits(offset, into) {
            return vectored::preadv(file.as_fd(), into, offset);
        }
        let (start, skip, now, len) = self.blocks(offset, total_len(into));
        let mut room = Room::new(len, self.memory);
        let n = vectored::preadv(file.as_fd(), &[VolatileSlice::from(room.bytes())], start)?;
        let now = n.saturating_sub(skip).min(now);
        Ok(copy_in(into, 0, &room.bytes()[skip..skip + now]))
    }

    /// Writes from `offset` bytes on; the bytes written.
    ///
    /// # Errors
    /// What the host said.
    pub fn write(&self, file: &File, offset: u64, from: &[VolatileSlice]) -> io::Result<usize> {
        if self.fits(offset, from) {
            let _others = self.writes.read().unwrap_or_else(PoisonError::into_inner);
            return vectored::pwritev(file.as_fd(), from, offset);
        }
        let (start, skip, now, len) = self.blocks(offset, total_len(from));
        let mut room = Room::new(len, self.memory);
        if (skip, now) == (0, len) {
            let _others = self.writes.read().unwrap_or_else(PoisonError::into_inner);
            copy_out(from, room.bytes());
            return vectored::pwritev(file.as_fd(), &[VolatileSlice::from(room.bytes())], start);
        }
        let _alone = self.writes.write().unwrap_or_else(PoisonError::into_inner);
        let read = vectored::preadv(file.as_fd(), &[VolatileSlice::from(room.bytes())], start)?;
        if read < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        copy_out(from, &mut room.bytes()[skip..skip + now]);
        let n = vectored::pwritev(file.as_fd(), &[VolatileSlice::from(room.bytes())], start)?;
        Ok(n.saturating_sub(skip).min(now))
    }
}

/// An aligned buffer for the detour.
struct Room {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Room {
    fn new(len: usize, align: usize) -> Self {
        let bytes = vec![0u8; len + align];
        let start = bytes.as_ptr().align_offset(align);
        Self { bytes, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// An image of 1 MiB whose blocks differ, and direct I/O on it as if its alignment were `offset`.
    fn image(offset: u32) -> Option<(tempfile::NamedTempFile, File, Direct)> {
        let mut image = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let bytes: Vec<u8> =
            (0..1u32 << 20).map(|at| (at / 512).to_le_bytes()[0] ^ at.to_le_bytes()[0]).collect();
        image.write_all(&bytes).unwrap();
        image.as_file().sync_all().unwrap();
        let file = image.reopen().unwrap();
        match Direct::of(&file) {
            Ok(direct) => {
                let offset = direct.offset.max(offset);
                Some((image, file, Direct { offset, ..direct }))
            }
            Err(error) => {
                eprintln!("skipped: no direct I/O on the checkout's file system: {error}");
                None
            }
        }
    }

    #[test]
    fn reads_and_writes_of_any_alignment_move_the_right_bytes_and_no_others() {
        for offset in [512, 4096] {
            let Some((image, file, direct)) = image(offset) else { return };
            let mut expected = std::fs::read(image.path()).unwrap();
            let mut memory = vec![0u8; 512 << 10];
            // Offset in the file, and in memory, bytes: aligned, misaligned in memory, at either end, longer than a detour.
            for (turn, (at, place, len)) in [
                (0, 0, 4096),
                (8192, 1, 4096),
                (512, 3, 512),
                (4096 - 512, 0, 1024),
                (512 * 7, 5, 200 << 10),
                ((1 << 20) - 512, 9, 512),
            ]
            .into_iter()
            .enumerate()
            {
                let fill = u8::try_from(turn + 1).unwrap();
                memory.fill(fill);
                let mut left = len;
                while left > 0 {
                    let done = len - left;
                    let slice = VolatileSlice::from(&mut memory[place + done..place + len]);
                    left -= direct.write(&file, (at + done) as u64, &[slice]).unwrap();
                }
                expected[at..at + len].fill(fill);
                assert!(std::fs::read(image.path()).unwrap() == expected, "{len} bytes at {at} of {offset}");
                memory.fill(0xEE);
                let (first, rest) = memory[place..place + len].split_at_mut(len / 3);
                let slices = [VolatileSlice::from(first), VolatileSlice::from(rest)];
                let n = direct.read(&file, at as u64, &slices).unwrap();
                assert!(n == len || n >= DETOUR / 2, "{n} of {len}");
                assert!(memory[place..place + n] == expected[at..at + n], "{len} bytes at {at} of {offset}");
                assert_eq!(memory[place + len], 0xEE);
            }
        }
    }

    #[test]
    fn writes_of_sectors_of_one_block_at_once_all_arrive() {
        let Some((image, file, direct)) = image(4096) else { return };
        std::thread::scope(|scope| {
            for sector in 0..8u8 {
                let (file, direct) = (&file, &direct);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let mut bytes = [sector + 1; 512];
                        let slice = VolatileSlice::from(&mut bytes[..]);
                        assert_eq!(direct.write(file, u64::from(sector) * 512, &[slice]).unwrap(), 512);
                    }
                });
            }
        });
        let bytes = std::fs::read(image.path()).unwrap();
        for (sector, bytes) in (1..=8).zip(bytes.chunks(512)) {
            assert!(bytes.iter().all(|byte| *byte == sector), "sector {sector}");
        }
    }

    #[test]
    fn a_file_system_without_direct_io_is_refused_or_has_it() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        if let Err(error) = Direct::of(&file) {
            assert!(error.to_string().contains("direct I/O") || error.raw_os_error().is_some(), "{error}");
        }
    }
}
