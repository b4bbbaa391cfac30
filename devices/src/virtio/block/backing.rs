//! Which backing each queue uses: a swap is taken up by one queue after the other, and loses no flush on the way.
//!
//! ```text
//!   history   used by                     swap: push to history              catch_up(queue 1): flush what is older,
//!   gen 4     queue 0                                                                           move queue 1 to gen 4,
//!   gen 3     queue 1  <── behind: a FLUSH on queue 0 must flush gen 3, too                     forget gen 3
//! ```
//! A queue that is behind may still complete writes on the old backing. Until it has caught up, a FLUSH on any other queue
//! flushes the old one as well: what was completed before a FLUSH is stable after it (virtio 1.2 §5.2.6.2), wherever it went.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Backend;

/// The generation of a queue that serves nothing.
const NONE: u64 = u64::MAX;

/// A backing that is or was the drive's.
struct Entry {
    generation: u64,
    backend: Box<dyn Backend>,
    /// As the guest was told.
    sectors: u64,
    /// Whether any queue ever used it: only then there is something to flush.
    used: bool,
}

/// The drive's backings, newest last, and where each queue is.
pub(super) struct Backings {
    newest: AtomicU64,
    /// By queue: the generation it uses.
    at: Box<[AtomicU64]>,
    history: Mutex<Vec<Entry>>,
    /// Whether an old backing is flushed before it is forgotten.
    flushes: bool,
    /// One could not be, and no FLUSH has said so yet.
    lost: AtomicBool,
}

/// What a queue uses now.
pub(super) struct Joined {
    pub generation: u64,
    pub backend: Box<dyn Backend>,
    pub sectors: u64,
    /// Why an older backing could not be flushed.
    pub flushed: io::Result<()>,
}

impl Backings {
    pub(super) fn new(backend: Box<dyn Backend>, queues: usize, flushes: bool) -> Self {
        Self {
            newest: AtomicU64::new(0),
            at: (0..queues).map(|_| AtomicU64::new(NONE)).collect(),
            history: Mutex::new(vec![Entry {
                generation: 0,
                sectors: backend.sectors(),
                backend,
                used: false,
            }]),
            flushes,
            lost: AtomicBool::new(false),
        }
    }

    fn history(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `backend` the newest; `announce` is called with its sectors, in the order of the swaps. What no queue ever used is forgotten, so
    /// that swaps alone pile nothing up.
    pub(super) fn swap(&self, backend: Box<dyn Backend>, announce: impl FnOnce(u64)) {
        let mut history = self.history();
        history.retain(|entry| entry.used);
        let generation = self.newest.load(Ordering::Relaxed) + 1;
        let sectors = backend.sectors();
        history.push(Entry { generation, backend, sectors, used: false });
        announce(sectors);
        self.newest.store(generation, Ordering::Release);
    }

    /// Whether there is a newer one than `generation`. A load.
    pub(super) fn is_behind(&self, generation: u64) -> bool {
        self.newest.load(Ordering::Acquire) != generation
    }

    /// Moves `queue` to the newest backing, once what is older is flushed. The queue has nothing in flight.
    pub(super) fn catch_up(&self, queue: usize) -> Joined {
        let mut older = Vec::new();
        let (generation, sectors, backend) = {
            let mut history = self.history();
            let newest = history.last_mut().expect("there always is a backing");
            newest.used = true;
            let joined = (newest.generation, newest.sectors, newest.backend.share());
            let old = history.iter().filter(|entry| entry.generation < joined.0);
            older.extend(old.map(|entry| entry.backend.share()));
            joined
        };
        let flushed = self.flush_each(older);
        if flushed.is_err() {
            self.owe_a_failure();
        }
        let mut history = self.history();
        // Only now: until here a FLUSH of another queue sees this one behind.
        self.at[queue].store(generation, Ordering::Release);
        let in_use = |of: u64| self.at.iter().any(|at| at.load(Ordering::Acquire) == of);
        history.retain(|entry| entry.generation >= generation || in_use(entry.generation));
        Joined { generation, backend, sectors, flushed }
    }

    fn flush_each(&self, backends: Vec<Box<dyn Backend>>) -> io::Result<()> {
        if !self.flushes {
            return Ok(());
        }
        // All of them, whatever becomes of the first.
        let results: Vec<_> = backends.into_iter().map(|mut backend| backend.flush()).collect();
        results.into_iter().collect()
    }

    /// Flushes what queues that are behind `generation` may still write to. Nothing but loads if there is none.
    ///
    /// # Errors
    /// What the host said; and, once, that a backing which is gone by now could not be flushed.
    pub(super) fn flush_older(&self, generation: u64) -> io::Result<()> {
        if self.lost.load(Ordering::Acquire) && self.lost.swap(false, Ordering::AcqRel) {
            return Err(io::Error::other("a replaced backing could not be flushed"));
        }
        if !self.at.iter().any(|at| at.load(Ordering::Acquire) < generation) {
            return Ok(());
        }
        let older = {
            let history = self.history();
            let old = history.iter().filter(|entry| entry.generation < generation);
            old.map(|entry| entry.backend.share()).collect()
        };
        self.flush_each(older)
    }

    /// Has the next FLUSH fail: an old backing may have lost something.
    pub(super) fn owe_a_failure(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Flushes `backend`, an old one that is being left.
    pub(super) fn flush_left(&self, backend: &mut dyn Backend) -> io::Result<()> {
        let result = if self.flushes { backend.flush() } else { Ok(()) };
        if result.is_err() {
            self.owe_a_failure();
        }
        result
    }

    /// `queue` serves nothing any more.
    pub(super) fn leave(&self, queue: usize) {
        self.at[queue].store(NONE, Ordering::Release);
    }
}
