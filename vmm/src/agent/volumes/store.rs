//! The directory of volumes.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{Allocation, SECTOR_BYTES, SIZE_BYTES_MAX, Shrink, Usage, VolumeError, VolumeKey};
use crate::agent::files::copy::{Copy, Method};
use crate::agent::files::lock::{self, Held, Use};
use crate::agent::files::staged::{Staged, Staging, remove};
use crate::agent::files::{FileError, allocated_bytes, entries, left_bytes, make_dir, source, sync_dir};
use crate::agent::progress::Work;

/// Bytes that are allocated between two looks at whether the work is to end.
const ALLOCATE_PIECE: u64 = 1 << 30;
/// What a volume's file name ends with.
const SUFFIX: &str = ".raw";

/// What a new volume begins with.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Zeros.
    Empty,
    /// An open file that nobody changes, such as an image's root file system, and what errors call it.
    File(&'a File, &'a Path),
    /// Another volume, which nobody may be writing.
    Volume(&'a VolumeKey),
}

/// What is in the directory and should not be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Files that were never completed: [`Volumes::gc`] removes them.
    pub unfinished: Vec<PathBuf>,
    /// Volumes that the caller does not know. They may hold somebody's data: nothing but [`Volumes::remove`] removes them.
    pub unknown: Vec<VolumeKey>,
}

/// The volumes in a directory. One process at a time may have it open, by any number of threads. Every function blocks.
#[derive(Debug)]
pub struct Volumes {
    tenants: PathBuf,
    staging: Staging,
    /// Held while names below `tenants`, or sizes, change; never while bytes are copied.
    names: Mutex<()>,
}

fn check_size(size_bytes: u64) -> Result<(), VolumeError> {
    let in_range = (SECTOR_BYTES..=SIZE_BYTES_MAX).contains(&size_bytes);
    if in_range && size_bytes.is_multiple_of(SECTOR_BYTES) {
        Ok(())
    } else {
        Err(VolumeError::Size { size_bytes })
    }
}

impl Volumes {
    /// The volumes in `dir`, an absolute path; what is missing of it is made.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn open(dir: &Path) -> Result<Self, VolumeError> {
        // Refuses a relative path before anything is made.
        let staging = Staging::open(dir.join("tmp")).map_err(VolumeError::Store)?;
        let tenants = dir.join("tenants");
        make_dir(&tenants).map_err(VolumeError::Store)?;
        Ok(Self { tenants, staging, names: Mutex::new(()) })
    }

    /// Creates a volume of `size_bytes` that begins with what `from` has; the rest are zeros. Holes of the source are holes of
    /// the volume; sparse ones share the source's blocks where the file system can.
    ///
    /// `work` advances by the size of `from`, and for [`Allocation::Preallocated`] by `size_bytes` too, in bytes. After an
    /// error, or a death, there is no volume.
    ///
    /// # Errors
    /// [`VolumeError::Size`], [`VolumeError::SmallerThanSource`], [`VolumeError::Exists`]; [`VolumeError::NotFound`] and
    /// [`VolumeError::InUse`] about the source; [`VolumeError::Full`], [`VolumeError::Cancelled`]; [`VolumeError::File`].
    pub fn create(
        &self,
        volume: &VolumeKey,
        size_bytes: u64,
        from: Source<'_>,
        allocation: Allocation,
        work: &Work,
    ) -> Result<Usage, VolumeError> {
        check_size(size_bytes)?;
        let path = self.path(volume);
        // Asked again when it gets its name: this only saves the work.
        if path.symlink_metadata().is_ok() {
            return Err(VolumeError::Exists(volume.clone()));
        }
        let other;
        let other_path;
        let source = match from {
            Source::Empty => None,
            Source::File(file, path) => Some((file, path)),
            Source::Volume(source) => {
                other = self.hold(source, Use::Reading)?;
                other_path = self.path(source);
                Some((other.file(), other_path.as_path()))
            }
        };
        let source = match source {
            None => None,
            Some((file, path)) => {
                let metadata = file.metadata().map_err(FileError::host("look at", path));
                Some((file, path, metadata.map_err(VolumeError::of(volume))?.len()))
            }
        };
        if let Some((.., source_bytes)) = source.filter(|(.., source_bytes)| *source_bytes > size_bytes) {
            return Err(VolumeError::SmallerThanSource { volume: volume.clone(), size_bytes, source_bytes });
        }
        work.progress().expect(source.map_or(0, |(.., source_bytes)| source_bytes));
        let staged =
            self.fill(&path, size_bytes, source, allocation, work).map_err(VolumeError::of(volume))?;
        self.publish(staged, volume, &path, work)?;
        self.usage(volume)
    }

    /// Creates `target` with the size and the bytes of `source`, as [`Volumes::create`] does.
    ///
    /// # Errors
    /// As [`Volumes::create`].
    pub fn copy(
        &self,
        source: &VolumeKey,
        target: &VolumeKey,
        allocation: Allocation,
        work: &Work,
    ) -> Result<Usage, VolumeError> {
        let size_bytes = self.usage(source)?.size_bytes;
        self.create(target, size_bytes, Source::Volume(source), allocation, work)
    }

    /// Makes the file, all but its name.
    fn fill(
        &self,
        path: &Path,
        size_bytes: u64,
        source: Option<(&File, &Path, u64)>,
        allocation: Allocation,
        work: &Work,
    ) -> Result<Staged<'_>, FileError> {
        work.step("stage a volume")?;
        let staged = self.staging.create(path)?;
        let target = staged.file();
        let method = match allocation {
            Allocation::Sparse => Method::Share,
            Allocation::Preallocated => {
                work.progress().expect(size_bytes);
                allocate(target, path, 0, size_bytes, work)?;
                Method::Write
            }
        };
        target.set_len(size_bytes).map_err(FileError::growing("grow", path, target, size_bytes))?;
        if let Some((source, source_path, size)) = source {
            let copy = Copy { source, source_path, size, target, target_path: path, method };
            copy.run(work, &mut |_, _| Ok(()))?;
        }
        work.step("seal a volume")?;
        staged.seal(0o600, size_bytes)?;
        Ok(staged)
    }

    fn publish(
        &self,
        staged: Staged<'_>,
        volume: &VolumeKey,
        path: &Path,
        work: &Work,
    ) -> Result<(), VolumeError> {
        let failed = VolumeError::of(volume);
        let _names = self.names();
        if path.symlink_metadata().is_ok() {
            return Err(VolumeError::Exists(volume.clone()));
        }
        work.step("publish a volume")?;
        let tenant = self.tenants.join(volume.tenant());
        make_dir(&tenant).map_err(&failed)?;
        work.commit("name a volume");
        let published = staged.publish(path);
        if published.is_err() {
            remove(path).unwrap_or_else(|error| log::warn!("{error}"));
            self.forget_tenant(&tenant);
        }
        published.map_err(&failed)?;
        work.commit("published");
        Ok(())
    }

    /// Changes the size of a volume. It may grow while it is used; the VM learns of it through the API of its drives. It may
    /// shrink only by force, and if nobody uses it. `work` advances by what is allocated, in bytes.
    ///
    /// # Errors
    /// [`VolumeError::Size`], [`VolumeError::NotFound`], [`VolumeError::WouldShrink`]; [`VolumeError::InUse`] when it is to
    /// shrink; [`VolumeError::Full`], [`VolumeError::Cancelled`], [`VolumeError::File`]. After
    /// any, its size is what it was, unless it could not be put on the disk.
    pub fn resize(
        &self,
        volume: &VolumeKey,
        size_bytes: u64,
        shrink: Shrink,
        allocation: Allocation,
        work: &Work,
    ) -> Result<Usage, VolumeError> {
        check_size(size_bytes)?;
        let failed = VolumeError::of(volume);
        let path = self.path(volume);
        let _names = self.names();
        let file = source::open(&path, true).map_err(VolumeError::opening(volume))?;
        let now_bytes = file.metadata().map_err(FileError::host("look at", &path)).map_err(&failed)?.len();
        let held;
        let file = if size_bytes < now_bytes {
            if shrink == Shrink::Refused {
                return Err(VolumeError::WouldShrink { volume: volume.clone(), size_bytes, now_bytes });
            }
            held = Held::take(file, &path, Use::Writing).map_err(&failed)?;
            held.file()
        } else {
            &file
        };
        let resized = resize(file, &path, now_bytes, size_bytes, allocation, work);
        resized.map_err(&failed)?;
        self.usage(volume)
    }

    /// Opens the volume and takes its lock, which lives as long as this descriptor or a copy of it, in any process.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::InUse`], [`VolumeError::File`].
    pub fn open_for_use(&self, volume: &VolumeKey, read_only: bool) -> Result<File, VolumeError> {
        let path = self.path(volume);
        let how = if read_only { Use::Reading } else { Use::Writing };
        let opened =
            source::open(&path, !read_only).and_then(|file| lock::take(&file, &path, how).map(|()| file));
        opened.map_err(VolumeError::opening(volume))
    }

    /// The same for a while.
    fn hold(&self, volume: &VolumeKey, how: Use) -> Result<Held, VolumeError> {
        let path = self.path(volume);
        let held = source::open(&path, how == Use::Writing).and_then(|file| Held::take(file, &path, how));
        held.map_err(VolumeError::opening(volume))
    }

    /// How big it is.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::File`].
    pub fn usage(&self, volume: &VolumeKey) -> Result<Usage, VolumeError> {
        let path = self.path(volume);
        let metadata = path.symlink_metadata().map_err(FileError::host("look at", &path));
        let metadata = metadata.map_err(VolumeError::opening(volume))?;
        Ok(Usage { size_bytes: metadata.len(), allocated_bytes: allocated_bytes(&metadata) })
    }

    /// Removes a volume that nobody uses, and what is in it.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::InUse`], [`VolumeError::File`].
    pub fn remove(&self, volume: &VolumeKey) -> Result<(), VolumeError> {
        let failed = VolumeError::of(volume);
        let path = self.path(volume);
        let _names = self.names();
        // Held until the name is gone, so that nobody begins to use it meanwhile.
        let _held = self.hold(volume, Use::Writing)?;
        remove(&path).map_err(&failed)?;
        let tenant = self.tenants.join(volume.tenant());
        sync_dir(&tenant).map_err(&failed)?;
        self.forget_tenant(&tenant);
        Ok(())
    }

    /// All volumes, by tenant and id.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn list(&self) -> Result<Vec<VolumeKey>, VolumeError> {
        let mut found = Vec::new();
        let tenants = entries(&self.tenants, |name| Some(name.to_owned())).map_err(VolumeError::Store)?;
        for tenant in tenants {
            let key = |name: &str| VolumeKey::new(&tenant, name.strip_suffix(SUFFIX)?).ok();
            match entries(&self.tenants.join(&tenant), key) {
                Ok(volumes) => found.extend(volumes),
                // The last of them was removed meanwhile.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(VolumeError::Store(error)),
            }
        }
        Ok(found)
    }

    /// What is there and should not be: what was cut short, and volumes that are not `known`.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn leftovers(&self, known: &dyn Fn(&VolumeKey) -> bool) -> Result<Leftovers, VolumeError> {
        let unfinished = self.staging.leftovers().map_err(VolumeError::Store)?;
        let unknown = self.list()?.into_iter().filter(|volume| !known(volume)).collect();
        Ok(Leftovers { unfinished, unknown })
    }

    /// Removes what was never completed, and directories of tenants who have no volume; says which files.
    ///
    /// # Errors
    /// [`VolumeError::Store`]; some may be gone then.
    pub fn gc(&self) -> Result<Vec<PathBuf>, VolumeError> {
        let _names = self.names();
        for tenant in
            entries(&self.tenants, |name| Some(self.tenants.join(name))).map_err(VolumeError::Store)?
        {
            self.forget_tenant(&tenant);
        }
        self.staging.remove_leftovers().map_err(VolumeError::Store)
    }

    /// Its file. Who opens it takes no lock: to be used by those who only look, or hand it to whoever has the lock.
    #[must_use]
    pub fn path(&self, volume: &VolumeKey) -> PathBuf {
        self.tenants.join(volume.tenant()).join(format!("{}{SUFFIX}", volume.id()))
    }

    /// Removes a tenant's directory, if it is empty.
    fn forget_tenant(&self, dir: &Path) {
        match std::fs::remove_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                log::warn!("can't remove {}: {error}", dir.display());
            }
            _ => {}
        }
    }

    fn names(&self) -> MutexGuard<'_, ()> {
        // What a panicking thread left of the names is what a killed process leaves.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives `file` blocks for the range, and leaves its size alone.
fn allocate(file: &File, path: &Path, start: u64, end: u64, work: &Work) -> Result<(), FileError> {
    // The host would take all there is before it says no, and others would go without meanwhile.
    let left = left_bytes(file).map_err(FileError::host("look at the file system of", path))?;
    if left < end - start {
        return Err(FileError::Full { path: path.to_owned(), asked: end - start, left, source: None });
    }
    let mut offset = start;
    while offset < end {
        work.step("allocate a piece")?;
        let length = ALLOCATE_PIECE.min(end - offset);
        match range(offset, length)
            .and_then(|(offset, length)| fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length))
        {
            Err(Errno::EINTR) => continue,
            Err(errno) => {
                return Err(FileError::growing("preallocate", path, file, end - start)(errno.into()));
            }
            Ok(()) => {}
        }
        offset += length;
        work.progress().advance(length);
    }
    Ok(())
}

/// Offset and length as the host takes them.
fn range(offset: u64, length: u64) -> Result<(i64, i64), Errno> {
    let number = |bytes: u64| i64::try_from(bytes).map_err(|_| Errno::EFBIG);
    Ok((number(offset)?, number(length)?))
}

/// From `now` to `size` bytes, or nothing.
fn resize(
    file: &File,
    path: &Path,
    now: u64,
    size: u64,
    allocation: Allocation,
    work: &Work,
) -> Result<(), FileError> {
    let grow = || {
        if allocation == Allocation::Preallocated && size > now {
            work.progress().expect(size - now);
            allocate(file, path, now, size, work)?;
        }
        work.step("set the size")?;
        file.set_len(size).map_err(FileError::growing("resize", path, file, size))
    };
    grow().inspect_err(|_| {
        // Blocks behind the end are given back. Neither can lose data: that is before the end.
        let _ = file.set_len(now);
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let Ok((offset, length)) = range(now, size.saturating_sub(now)) {
            let _ = fallocate(file, hole, offset, length);
        }
    })?;
    file.sync_all().map_err(FileError::host("sync", path))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "fault_tests.rs"]
mod fault_tests;
