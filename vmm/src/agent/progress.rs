//! Long work: how far it is, and the wish that it ends early.
//!
//! Who does the work takes a [`Work`] by reference and calls [`Work::step`] between pieces of bounded length; who waits for
//! it holds the same [`Work`] (in an `Arc`, say), reads [`Progress`] and may [`Cancel`].

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How much of the work is done. In bytes, unless the function that takes it says otherwise.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// What is done, never more than [`Progress::total`] once the work has begun.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// What there is to do as far as is known; 0 until the work has begun.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// There are `more` to do.
    pub fn expect(&self, more: u64) {
        self.total.fetch_add(more, Ordering::Relaxed);
    }

    /// `more` are done.
    pub fn advance(&self, more: u64) {
        self.done.fetch_add(more, Ordering::Relaxed);
    }
}

/// The wish that work ends early. It can't be taken back.
#[derive(Debug, Default)]
pub struct Cancel(AtomicBool);

impl Cancel {
    /// Asks for the end. It comes at the next [`Work::step`], unless the work is past the point of no return.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The work was cancelled, and nothing of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cancelled: nothing of it is left")]
pub struct Cancelled;

/// Who is told of each step.
type Watcher = Box<dyn Fn(&'static str) + Send + Sync>;

/// One piece of long work, as seen by who does it and by who waits for it.
#[derive(Default)]
pub struct Work {
    progress: Progress,
    cancel: Cancel,
    watcher: Option<Watcher>,
}

impl Work {
    /// Work that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, with someone who is told the name of each step before it is taken: fault tests, which end the process
    /// there or change what the work relies on.
    #[must_use]
    pub fn watched(watcher: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        Self { watcher: Some(Box::new(watcher)), ..Self::default() }
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// How to end it early.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// A step is about to be taken, before which the work may still be given up.
    ///
    /// # Errors
    /// [`Cancelled`] if that was asked for: the caller undoes what it did and hands this on.
    pub fn step(&self, name: &'static str) -> Result<(), Cancelled> {
        self.commit(name);
        if self.cancel.is_asked() { Err(Cancelled) } else { Ok(()) }
    }

    /// A step is about to be taken that is past the point of no return.
    pub fn commit(&self, name: &'static str) {
        if let Some(watcher) = &self.watcher {
            watcher(name);
        }
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("progress", &self.progress)
            .field("cancel", &self.cancel)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_cancelled_work_ends_at_its_next_step_but_not_past_the_point_of_no_return() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let work = Work::watched({
            let seen = Arc::clone(&seen);
            move |name| seen.lock().unwrap().push(name)
        });
        assert_eq!(work.step("first"), Ok(()));
        work.cancel().ask();
        assert_eq!(work.step("second"), Err(Cancelled));
        work.commit("third");
        assert_eq!(*seen.lock().unwrap(), ["first", "second", "third"]);
    }

    #[test]
    fn progress_adds_up() {
        let work = Work::new();
        assert_eq!((work.progress().done(), work.progress().total()), (0, 0));
        work.progress().expect(10);
        work.progress().expect(5);
        work.progress().advance(7);
        assert_eq!((work.progress().done(), work.progress().total()), (7, 15));
    }
}
