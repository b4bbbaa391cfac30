//! Bytes from file to file, in pieces of bounded length.
//!
//! Data goes by `copy_file_range`, which shares the blocks where the file system can (Btrfs, XFS) and copies within the
//! kernel where it can't; holes are found with `SEEK_DATA` and `SEEK_HOLE` and stay holes. Where either does not work (across
//! file systems, say), bytes are read and written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};

use super::FileError;
use crate::agent::progress::Work;

/// Bytes between two looks at whether the copy is to end. A multiple of every file system's block, as sharing needs.
pub const PIECE: u64 = 16 << 20;
/// Bytes that are read and written, or hashed, at a time.
pub(crate) const BUFFER: usize = 256 << 10;

/// What a range of a file consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data,
    /// Nothing, which reads as zeros.
    Hole,
}

/// How data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The copy shares the source's blocks if it can.
    Share,
    /// Bytes are written into blocks that the copy has already.
    Write,
}

/// A copy that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Copy<'a> {
    /// From where; its offset is not kept.
    pub source: &'a File,
    /// What it is called.
    pub source_path: &'a Path,
    /// How many of its bytes, from the first.
    pub size: u64,
    /// To where: a file that holds no data, at least as long, open for reading and writing.
    pub target: &'a File,
    /// What it is called.
    pub target_path: &'a Path,
    /// How.
    pub method: Method,
}

impl Copy<'_> {
    /// Makes it. `each` is told of every range right after it is in the target, in order and without gaps; holes are not
    /// in the target, but nothing is there either.
    ///
    /// Advances `work` by `size`, in bytes; holes count.
    ///
    /// # Errors
    /// [`FileError::Cancelled`]; [`FileError::Shrunk`] if the source lost bytes that were to be copied;
    /// [`FileError::Full`]; [`FileError::Host`]; those of `each`. The target then holds part of the data.
    pub fn run(
        mut self,
        work: &Work,
        each: &mut dyn FnMut(Range<u64>, Piece) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let mut offset = 0;
        while offset < self.size {
            let (piece, end) = self.look(offset)?;
            while offset < end {
                work.step("copy a piece")?;
                let length = PIECE.min(end - offset);
                let done = match piece {
                    Piece::Data => self.data(offset, length)?,
                    Piece::Hole => length,
                };
                each(offset..offset + done, piece)?;
                offset += done;
                work.progress().advance(done);
            }
        }
        // What was a hole, or is one, may have been cut off.
        let got = self.source_len()?;
        if got < self.size { Err(self.shrunk(got)) } else { Ok(()) }
    }

    /// Bytes that the source has now.
    fn source_len(&self) -> Result<u64, FileError> {
        let metadata = self.source.metadata().map_err(FileError::host("look at", self.source_path));
        metadata.map(|metadata| metadata.len())
    }

    /// What is at `offset`, and where that ends.
    fn look(&self, offset: u64) -> Result<(Piece, u64), FileError> {
        let seek = |whence| -> Result<u64, Errno> {
            let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
            let found = lseek(self.source, offset, whence)?;
            Ok(u64::try_from(found).unwrap_or(0).clamp(0, self.size))
        };
        let found = match seek(Whence::SeekData) {
            Ok(start) if start > offset => return Ok((Piece::Hole, start)),
            Ok(_) => seek(Whence::SeekHole),
            // No data from here to the end.
            Err(Errno::ENXIO) => return Ok((Piece::Hole, self.size)),
            Err(errno) => Err(errno),
        };
        match found {
            Ok(end) if end > offset => Ok((Piece::Data, end)),
            // Changed between the two calls, or a file system that does not say: data is what it may be treated as.
            Ok(_) | Err(Errno::ENXIO | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok((Piece::Data, self.size)),
            Err(errno) => Err(FileError::host("find the data of", self.source_path)(errno.into())),
        }
    }

    /// Copies up to `length` bytes at `offset`; says how many, at least one.
    fn data(&mut self, offset: u64, length: u64) -> Result<u64, FileError> {
        if self.method == Method::Share {
            match share(self.source, self.target, offset, length) {
                Ok(0) => {}
                Ok(done) => return Ok(done),
                // Of two file systems, or not a thing that this one does: the rest goes the long way.
                Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                    self.method = Method::Write;
                }
                Err(errno) => return Err(self.growing()(errno.into())),
            }
        }
        let mut buffer = vec![0; BUFFER];
        let mut done = 0;
        while done < length {
            let want = buffer.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
            let got = match self.source.read_at(&mut buffer[..want], offset + done) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(FileError::host("read", self.source_path)(error)),
            };
            self.target.write_all_at(&buffer[..got], offset + done).map_err(self.growing())?;
            done += got as u64;
        }
        if done > 0 { Ok(done) } else { Err(self.shrunk(self.source_len()?)) }
    }

    fn growing(&self) -> impl FnOnce(io::Error) -> FileError {
        FileError::growing("write", self.target_path, self.target, self.size)
    }

    fn shrunk(&self, got: u64) -> FileError {
        FileError::Shrunk { path: self.source_path.to_owned(), expected: self.size, got }
    }
}

/// As copy_file_range(2), with one offset for both.
fn share(source: &File, target: &File, offset: u64, length: u64) -> Result<u64, Errno> {
    let length = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
    let mut from = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let mut to = from;
    loop {
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
            Err(Errno::EINTR) => {}
            done => return done.map(|done| done as u64),
        }
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
