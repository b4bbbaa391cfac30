//! Disk images: raw files and block devices, locked so that no two VMs write one.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use devices::mem::VolatileSlice;
use devices::virtio::block::{Backend, Engine, Erasure};
use devices::virtio::queue::truncate;
use nix::fcntl::{FallocateFlags, fallocate};

use super::direct::Direct;
use super::lock::lock;
use crate::kvm::blkdev;
use crate::mem::uring::Uring;
use crate::mem::vectored;

const SECTOR: u64 = 512;

/// An opened and locked image. Clones share the descriptor and its lock, which goes with the last of them.
#[derive(Debug, Clone)]
pub struct Disk {
    file: Arc<File>,
    read_only: bool,
    sectors: u64,
    /// Of the file system, or of the device.
    block_bytes: u32,
    is_device: bool,
    /// Whether each queue gets an io_uring.
    asynchronous: bool,
    /// How it is read and written past the host's page cache, if it is.
    direct: Option<Arc<Direct>>,
}

impl Disk {
    /// Opens and locks the image at `path`: for one writer or many readers. `replacing` is the image that the drive has
    /// so far, which may be this very one; its own lock is no obstacle.
    ///
    /// # Errors
    /// What the host said; the image that is to be replaced keeps its lock then.
    pub fn open(path: &Path, read_only: bool, replacing: Option<&Disk>) -> io::Result<Self> {
        Self::of(Self::open_file(path, read_only)?, &path.display(), read_only, replacing)
    }

    /// Opens the file of an image, for [`Disk::of`].
    ///
    /// # Errors
    /// What the host said.
    pub fn open_file(path: &Path, read_only: bool) -> io::Result<File> {
        OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_NONBLOCK).open(path)
    }

    /// The same with a file that is open already; `name` is for the log. A lock belongs to the open file description, which
    /// whoever hands it over shares: it keeps others out, not them.
    ///
    /// # Errors
    /// As [`Disk::open`], and if the file was not opened for what it is to be used for.
    pub fn of(
        file: File,
        name: &dyn std::fmt::Display,
        read_only: bool,
        replacing: Option<&Disk>,
    ) -> io::Result<Self> {
        let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFL)?;
        let needed = if read_only { [libc::O_RDONLY, libc::O_RDWR] } else { [libc::O_RDWR; 2] };
        if !needed.contains(&(flags & libc::O_ACCMODE)) {
            let why = if read_only {
                "it is not open for reading"
            } else {
                "it is not open for reading and writing"
            };
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file or block device"));
        }
        // A block device's size is where its end is.
        let bytes = (&file).seek(SeekFrom::End(0))?;
        if !bytes.is_multiple_of(SECTOR) {
            log::warn!(
                "{} is {bytes} bytes long, not a multiple of {SECTOR}; the rest is not part of the disk",
                name
            );
        }
        let mine = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
        let same = |old: &&Disk| {
            let old = old.file.metadata();
            old.is_ok_and(|old| (old.dev(), old.ino()) == (metadata.dev(), metadata.ino()))
        };
        match replacing.filter(same) {
            None => lock(&file, mine)?,
            Some(old) => {
                lock(&old.file, libc::F_UNLCK)?;
                if let Err(e) = lock(&file, mine) {
                    lock(&old.file, if old.read_only { libc::F_RDLCK } else { libc::F_WRLCK })?;
                    return Err(e);
                }
            }
        }
        let block_bytes = u32::try_from(metadata.blksize()).ok().filter(|bytes| bytes.is_power_of_two());
        Ok(Self {
            file: Arc::new(file),
            read_only,
            sectors: bytes / SECTOR,
            block_bytes: block_bytes.unwrap_or(512).max(512),
            is_device: kind.is_block_device(),
            asynchronous: false,
            direct: None,
        })
    }

    /// The same, whose transfers an io_uring does if `asynchronous` and if the host has one.
    #[must_use]
    pub fn asynchronous(self, asynchronous: bool) -> Self {
        Self { asynchronous, ..self }
    }

    /// The same, read and written as `direct` says, which was made of its file. What is left at its end of less than a block
    /// is not part of it.
    #[must_use]
    pub fn direct(self, direct: Option<Direct>) -> Self {
        let Some(direct) = direct else { return self };
        let block = u64::from(direct.block_bytes()) / SECTOR;
        Self { sectors: self.sectors / block * block, direct: Some(Arc::new(direct)), ..self }
    }

    /// fallocate(2) of what no file can have is refused by the kernel.
    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let (offset, len) =
            (i64::try_from(offset).map_err(too_large)?, i64::try_from(len).map_err(too_large)?);
        loop {
            match fallocate(&*self.file, flags | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len) {
                Err(nix::Error::EINTR) => {}
                other => return other.map_err(Into::into),
            }
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.is_device {
            return blkdev::discard(&self.file, offset, len);
        }
        self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len)
    }

    /// Writes zeros one by one.
    fn write_zeros(&mut self, mut offset: u64, len: u64) -> io::Result<()> {
        let mut zeros = [0; ZEROS];
        let zeros = VolatileSlice::from(&mut zeros[..]);
        let end = offset + len;
        while offset < end {
            let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let mut part = [zeros; ZEROS_AT_ONCE];
            match self.write_at(offset, truncate(&mut part, left))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => offset += n as u64,
            }
        }
        Ok(())
    }
}

/// Bytes of zeros that are held, and how often a system call writes them.
const ZEROS: usize = 16 << 10;
const ZEROS_AT_ONCE: usize = 64;

/// Whether `error` says that the storage has no such operation, or not for a range like that: there is another way.
fn is_not_offered(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV))
}

impl Backend for Disk {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn share(&self) -> Box<dyn Backend> {
        Box::new(self.clone())
    }

    fn engine(&mut self, depth: u16) -> Option<io::Result<Box<dyn Engine>>> {
        let (memory, len) = match &self.direct {
            // A write of part of a block must be alone: with an engine it would not be.
            Some(direct) if u64::from(direct.block_bytes()) != SECTOR => return None,
            Some(direct) => (direct.memory_bytes(), direct.block_bytes() as usize),
            None => (1, 1),
        };
        let ring =
            || Ok(Box::new(Uring::new(Arc::clone(&self.file), depth, memory, len)?) as Box<dyn Engine>);
        self.asynchronous.then(ring)
    }

    fn sector_bytes(&self) -> u32 {
        self.direct.as_ref().map_or(512, |direct| direct.block_bytes())
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        match &self.direct {
            Some(direct) => direct.read(&self.file, offset, into),
            None => vectored::preadv(self.file.as_fd(), into, offset),
        }
    }

    fn write_at(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        match &self.direct {
            Some(direct) => direct.write(&self.file, offset, from),
            None => vectored::pwritev(self.file.as_fd(), from, offset),
        }
    }

    fn erase(&mut self, offset: u64, len: u64, how: Erasure) -> io::Result<u64> {
        if len == 0 {
            return Ok(0);
        }
        let zero = [FallocateFlags::FALLOC_FL_PUNCH_HOLE, FallocateFlags::FALLOC_FL_ZERO_RANGE];
        let ways = match how {
            Erasure::Discard => {
                // What can't be given back may stay: nobody relies on what a discarded range holds.
                return match self.discard(offset, len) {
                    Err(error) if !is_not_offered(&error) => Err(error),
                    _ => Ok(0),
                };
            }
            Erasure::Zero { unmap: true } => &zero[..],
            Erasure::Zero { unmap: false } => &zero[1..],
        };
        for way in ways {
            match self.allocate(*way, offset, len) {
                Err(error) if is_not_offered(&error) => {}
                other => return other.map(|()| 0),
            }
        }
        self.write_zeros(offset, len)?;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image(bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; bytes]).unwrap();
        file
    }

    #[test]
    fn one_writer_or_many_readers_and_the_lock_goes_with_the_disk() {
        let image = image(1024);
        let writer = Disk::open(image.path(), false, None).unwrap();
        for read_only in [true, false] {
            let error = Disk::open(image.path(), read_only, None).unwrap_err();
            assert!(error.to_string().contains("locked by another"), "{error}");
        }
        let clone = writer.clone();
        drop(writer);
        assert!(Disk::open(image.path(), false, None).is_err(), "a clone keeps the lock");
        drop(clone);
        let _reader = Disk::open(image.path(), true, None).unwrap();
        let _second = Disk::open(image.path(), true, None).unwrap();
        assert!(Disk::open(image.path(), false, None).is_err());
    }

    #[test]
    fn a_drive_may_be_given_its_own_image_again_in_either_mode_and_keeps_it_when_refused() {
        let image = image(1024);
        let writer = Disk::open(image.path(), false, None).unwrap();
        let reader = Disk::open(image.path(), true, Some(&writer)).unwrap();
        drop(writer);
        let other = Disk::open(image.path(), true, None).unwrap();
        assert!(Disk::open(image.path(), false, Some(&reader)).is_err());
        drop(other);
        assert!(Disk::open(image.path(), false, None).is_err(), "the refused change gave the lock away");
        drop(reader);
    }

    #[test]
    fn directories_and_fifos_are_no_disks_and_a_partial_sector_is_not_addressable() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Disk::open(dir.path(), true, None).unwrap_err().to_string().contains("Is a directory"));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Disk::open(&fifo, true, None).is_err());
        assert_eq!(Disk::open(image(1300).path(), true, None).unwrap().sectors(), 2);
    }

    /// An image of `0xAA`, and how many bytes of it the file system holds.
    fn filled(bytes: usize, dir: Option<&Path>) -> (tempfile::NamedTempFile, Disk) {
        let mut file = match dir {
            Some(dir) => tempfile::NamedTempFile::new_in(dir).unwrap(),
            None => tempfile::NamedTempFile::new().unwrap(),
        };
        file.write_all(&vec![0xAA; bytes]).unwrap();
        file.as_file().sync_all().unwrap();
        let disk = Disk::open(file.path(), false, None).unwrap();
        (file, disk)
    }

    #[test]
    fn what_is_erased_reads_as_zeros_where_that_was_asked_and_its_neighbours_keep_what_they_hold() {
        // tmpfs can punch holes and not zero ranges: there zeros are written.
        for dir in [None, Some(Path::new("/dev/shm"))] {
            for how in [Erasure::Zero { unmap: true }, Erasure::Zero { unmap: false }] {
                let (file, mut disk) = filled(1 << 20, dir);
                // Aligned to nothing but sectors.
                let (offset, len) = (512 * 3, 512 * 1000);
                disk.erase(offset, len, how).unwrap();
                let mut expected = vec![0xAA; 1 << 20];
                expected[512 * 3..512 * 1003].fill(0);
                assert!(std::fs::read(file.path()).unwrap() == expected, "{how:?} in {dir:?}");
            }
        }
    }

    #[test]
    fn erasing_gives_space_back_unless_it_is_to_stay_and_never_changes_the_size() {
        let held = |file: &tempfile::NamedTempFile| {
            file.as_file().sync_all().unwrap();
            let metadata = file.as_file().metadata().unwrap();
            assert_eq!(metadata.len(), 8 << 20);
            metadata.blocks() * 512
        };
        for (how, left) in [
            (Erasure::Discard, 0..1 << 20),
            (Erasure::Zero { unmap: true }, 0..1 << 20),
            (Erasure::Zero { unmap: false }, 8 << 20..u64::MAX),
        ] {
            let (file, mut disk) = filled(8 << 20, None);
            disk.erase(0, 8 << 20, how).unwrap();
            assert!(left.contains(&held(&file)), "{how:?} left {}", held(&file));
        }
    }

    #[test]
    fn zeros_are_written_up_to_the_last_sector_of_a_range_of_any_length() {
        for sectors in [1, 31, 32, 33, 2048, 2049] {
            let (file, mut disk) = filled(512 * (sectors + 2), None);
            disk.write_zeros(512, 512 * sectors as u64).unwrap();
            let bytes = std::fs::read(file.path()).unwrap();
            let (first, rest) = bytes.split_at(512);
            let (zeros, last) = rest.split_at(512 * sectors);
            assert!(zeros.iter().all(|byte| *byte == 0), "{sectors} sectors");
            assert!([first, last].concat().iter().all(|byte| *byte == 0xAA), "{sectors} sectors");
        }
    }

    #[test]
    fn a_lock_that_goes_within_its_patience_is_waited_for() {
        let image = image(1024);
        let holder = Disk::open(image.path(), false, None).unwrap();
        let (asked, ask) = std::sync::mpsc::channel();
        let opener = std::thread::spawn({
            let path = image.path().to_owned();
            move || {
                asked.send(()).unwrap();
                Disk::open(&path, false, None).map(drop)
            }
        });
        ask.recv().unwrap();
        drop(holder);
        opener.join().unwrap().unwrap();
    }
}
