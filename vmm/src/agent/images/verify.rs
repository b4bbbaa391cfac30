//! Bytes are compared with their name before they are used.
//!
//! Hashing takes a second or so for each GiB, so what was found is remembered along with everything that changes with a
//! file: device, inode, size, modification and change time. Nobody can set the last one. It has the resolution of a tick of
//! the clock, though, so what changed within the last moments may change again unseen: that is hashed again.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::digest::Hasher;
use super::{BlobRef, Digest, ImageError};
use crate::agent::files::copy::{PIECE, Piece};
use crate::agent::files::{FileError, source};
use crate::agent::progress::Work;

/// How long ago a file must have changed for its times to be trusted: longer than any tick.
const SETTLED: Duration = Duration::from_millis(100);

/// All that tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a change from `now` on would show. Not if the clock was set back since: no harm, but time.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(self.changed.0), u32::try_from(self.changed.1)) else {
            return false;
        };
        let changed = UNIX_EPOCH.checked_add(Duration::new(seconds, nanos));
        changed.and_then(|changed| now.duration_since(changed).ok()).is_some_and(|ago| ago > SETTLED)
    }
}

/// What a blob was when its bytes were what its name says. Locked while it is found out, so that many starts at once read
/// the blob once.
type Known = Arc<Mutex<Option<Identity>>>;

/// What was verified by this process.
#[derive(Debug, Default)]
pub struct Verified {
    blobs: Mutex<HashMap<Digest, Known>>,
}

impl Verified {
    fn of(&self, digest: &Digest) -> Known {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(blobs.entry(digest.clone()).or_default())
    }

    /// Forgets a blob that is gone.
    pub(super) fn forget(&self, digest: &Digest) {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }

    /// Opens the blob at `path`, whose bytes are `blob`'s. They are read if nobody has yet, or somebody touched the file
    /// since, or if `always`; then `work` advances by its size in bytes, which it expects.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::Damaged`], [`ImageError::Cancelled`], [`ImageError::Store`].
    pub(super) fn open(
        &self,
        path: &Path,
        blob: &BlobRef,
        always: bool,
        work: &Work,
    ) -> Result<File, ImageError> {
        let file = source::open(path, false).map_err(|error| {
            if error.is_not_found() { ImageError::Missing { path: path.to_owned() } } else { error.into() }
        })?;
        let look = || file.metadata().map_err(FileError::host("look at", path));
        let known = self.of(&blob.sha256);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the file is looked at: a change after this moment gives it a later time.
        let now = SystemTime::now();
        let before = Identity::of(&look()?);
        if !always && *known == Some(before) {
            return Ok(file);
        }
        *known = None;
        let found = hash(&file, path, before.size, work)?;
        if found != blob.sha256 || before.size != blob.size_bytes {
            return Err(ImageError::Damaged { path: path.to_owned(), found });
        }
        if before == Identity::of(&look()?) && before.is_settled(now) {
            *known = Some(before);
        }
        Ok(file)
    }
}

fn hash(file: &File, path: &Path, size: u64, work: &Work) -> Result<Digest, ImageError> {
    let mut hasher = Hasher::default();
    work.progress().expect(size);
    let mut offset = 0;
    while offset < size {
        work.step("hash a piece")?;
        let end = size.min(offset + PIECE);
        hasher.update(file, offset..end, Piece::Data).map_err(FileError::host("read", path))?;
        work.progress().advance(end - offset);
        offset = end;
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changed_a_moment_ago_or_after_the_clock_was_set_back_is_not_trusted_to_show_a_change() {
        let at = |changed| Identity { dev: 1, ino: 1, size: 1, modified: (0, 0), changed };
        let now = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        assert!(!at((100, 0)).is_settled(now(100_000)));
        assert!(!at((100, 0)).is_settled(now(100_100)));
        assert!(at((100, 0)).is_settled(now(100_101)));
        assert!(!at((100, 0)).is_settled(now(50_000)));
        assert!(!at((-1, 0)).is_settled(now(50_000)));
        assert!(!at((i64::MAX, 0)).is_settled(now(50_000)));
    }
}
