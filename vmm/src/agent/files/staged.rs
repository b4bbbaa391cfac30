//! Files that are being made.
//!
//! They have numbers for names in a directory of their own, on the file system where they are to be. They get their proper
//! name by a rename, when they are complete and on the disk; a process that dies before leaves them where [`Staging`]
//! finds them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{FileError, entries, make_dir, sync_dir};

/// The directory where files are made. One process at a time may use it: what this one is not at work on is left over.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    /// Numbers that are in use, by this process or by what an earlier one left.
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    at_work: BTreeSet<u64>,
}

/// A file that is being made. It is removed when dropped.
#[derive(Debug)]
pub struct Staged<'a> {
    staging: &'a Staging,
    number: u64,
    path: PathBuf,
    named: PathBuf,
    file: File,
    published: bool,
}

impl Staging {
    /// The files made in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// [`FileError::Relative`] and [`FileError::Host`].
    pub fn open(dir: PathBuf) -> Result<Self, FileError> {
        if !dir.is_absolute() {
            return Err(FileError::Relative(dir));
        }
        make_dir(&dir)?;
        Ok(Self { dir, taken: Mutex::default() })
    }

    /// A new, empty file, for reading and writing by its owner. Errors call it `named`.
    ///
    /// # Errors
    /// [`FileError::Full`] (no room for a name), [`FileError::Host`].
    pub fn create(&self, named: &Path) -> Result<Staged<'_>, FileError> {
        let mut taken = self.taken();
        loop {
            let number = taken.next;
            taken.next += 1;
            let path = self.dir.join(number.to_string());
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            match file {
                Ok(file) => {
                    taken.at_work.insert(number);
                    let named = named.to_owned();
                    return Ok(Staged { staging: self, number, path, named, file, published: false });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    let path = named.to_owned();
                    return Err(FileError::Full { path, asked: 0, left: 0, source: Some(error) });
                }
                Err(error) => return Err(FileError::host("make", &path)(error)),
            }
        }
    }

    /// Files that nobody is at work on: a process was killed at it.
    ///
    /// # Errors
    /// [`FileError::Host`].
    pub fn leftovers(&self) -> Result<Vec<PathBuf>, FileError> {
        // Held while the directory is read, so that no file is seen before it is known.
        let taken = self.taken();
        entries(&self.dir, |name| {
            let at_work = name.parse().is_ok_and(|number| taken.at_work.contains(&number));
            (!at_work).then(|| self.dir.join(name))
        })
    }

    /// Removes them; says which.
    ///
    /// # Errors
    /// [`FileError::Host`]; some may be gone then.
    pub fn remove_leftovers(&self) -> Result<Vec<PathBuf>, FileError> {
        let found = self.leftovers()?;
        for path in &found {
            remove(path)?;
        }
        Ok(found)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Both fields are right between any two statements that change them.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Staged<'_> {
    /// What is being made.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What errors call it.
    #[must_use]
    pub fn named(&self) -> &Path {
        &self.named
    }

    /// It is complete: gives it the permissions `mode` and puts it on the disk. `asked` is its size for an error's sake.
    ///
    /// # Errors
    /// [`FileError::Full`] (a file system may notice so late), [`FileError::Host`].
    pub fn seal(&self, mode: u32, asked: u64) -> Result<(), FileError> {
        let permissions = Permissions::from_mode(mode);
        self.file.set_permissions(permissions).map_err(FileError::host("chmod", &self.named))?;
        self.file.sync_all().map_err(FileError::growing("sync", &self.named, &self.file, asked))
    }

    /// Gives it its proper name, `target`, where it replaces what is there. Durable once this has returned.
    ///
    /// # Errors
    /// [`FileError::Host`]: either it is not there, or it is and can't be made durable.
    pub fn publish(mut self, target: &Path) -> Result<(), FileError> {
        fs::rename(&self.path, target).map_err(FileError::host("rename a new file to", target))?;
        self.published = true;
        target.parent().map_or(Ok(()), sync_dir)
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("can't remove {}, which gc will: {error}", self.path.display());
        }
        self.staging.taken().at_work.remove(&self.number);
    }
}

/// Removes the file at `path` if there is one; not yet durably.
///
/// # Errors
/// [`FileError::Host`].
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::host("remove", path)(error)),
        _ => Ok(()),
    }
}
