//! Disk images: raw files and block devices, locked so that no two VMs write one.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use devices::mem::VolatileSlice;
use devices::virtio::block::Backend;

use crate::mem::vectored;

const SECTOR: u64 = 512;

/// An opened and locked image. Clones share the descriptor and its lock, which goes with the last of them.
#[derive(Debug, Clone)]
pub struct Disk {
    file: Arc<File>,
    read_only: bool,
    sectors: u64,
}

/// Takes (or, with `F_UNLCK`, gives back) the lock of the whole file for its open file description (fcntl(2), F_OFD_SETLK).
fn lock(file: &File, kind: i32) -> io::Result<()> {
    let flock = libc::flock {
        l_type: i16::try_from(kind).expect("a small constant"),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLK(&flock)) {
        Ok(_) => Ok(()),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the image is locked by another virtual machine or drive; one writer, or any number of readers, may use it",
        )),
        Err(e) => Err(e.into()),
    }
}

impl Disk {
    /// Opens and locks the image at `path`: for one writer or many readers. `replacing` is the image that the drive has
    /// so far, which may be this very one; its own lock is no obstacle.
    ///
    /// # Errors
    /// What the host said; the image that is to be replaced keeps its lock then.
    pub fn open(path: &Path, read_only: bool, replacing: Option<&Disk>) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_NONBLOCK).open(path)?;
        Self::of(file, &path.display(), read_only, replacing)
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
        Ok(Self { file: Arc::new(file), read_only, sectors: bytes / SECTOR })
    }
}

impl Backend for Disk {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectored::preadv(self.file.as_fd(), into, offset)
    }

    fn write_at(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectored::pwritev(self.file.as_fd(), from, offset)
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
}
