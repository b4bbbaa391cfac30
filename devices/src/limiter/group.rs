//! Limits that several draw on.
//!
//! Who can't have its tokens at once takes them all the same, as a debt of the bucket, and is told when that is paid off: its
//! place in the line. Who comes later waits longer. So no request is overtaken for ever, however large it is and however many
//! small ones the others have: between those who always want more, operations go round. The lock is held for some additions;
//! nobody sleeps with it, and nobody has to be woken: each knows its time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Buckets, LimiterSpec};

#[derive(Debug)]
struct State {
    buckets: Buckets,
    /// How often they were replaced.
    generation: u64,
}

#[derive(Debug)]
struct Shared {
    off: AtomicBool,
    state: Mutex<State>,
}

/// Limits that several devices, or several queues, have together. A clone is the same group.
#[derive(Debug, Clone)]
pub struct Group(Arc<Shared>);

impl Group {
    /// A group with full buckets.
    #[must_use]
    pub fn new(spec: &LimiterSpec, now_ns: u64) -> Self {
        let buckets = Buckets::new(spec, now_ns);
        let off = AtomicBool::new(buckets.is_off());
        Self(Arc::new(Shared { off, state: Mutex::new(State { buckets, generation: 0 }) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts other limits in place, with full buckets. Who waits does not know: have it ask again.
    pub fn set(&self, spec: &LimiterSpec, now_ns: u64) {
        let mut state = self.state();
        state.buckets = Buckets::new(spec, now_ns);
        state.generation += 1;
        self.0.off.store(state.buckets.is_off(), Ordering::Release);
    }

    /// Whether nothing is limited. A load.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.0.off.load(Ordering::Acquire)
    }
}

/// An operation that was taken from the buckets and not done yet.
#[derive(Debug, Clone, Copy)]
struct Reserved {
    bytes: u64,
    /// When it may be done.
    at_ns: u64,
    /// Whose buckets it was taken from.
    generation: u64,
}

/// One of those in a group. It has a single operation under way.
#[derive(Debug)]
pub(super) struct Member {
    group: Group,
    reserved: Option<Reserved>,
}

impl Member {
    pub(super) fn new(group: &Group) -> Self {
        Self { group: group.clone(), reserved: None }
    }

    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    /// Takes an operation of `bytes`, unless one is taken already; an error says how long until it may be done.
    pub(super) fn reserve(&mut self, now_ns: u64, bytes: u64) -> Result<(), Duration> {
        if self.group.is_off() {
            return Ok(());
        }
        let mut state = self.group.state();
        let generation = state.generation;
        let reserved = match self.reserved.filter(|reserved| reserved.generation == generation) {
            Some(reserved) => reserved,
            None => {
                let wait = state.buckets.wait(now_ns, bytes);
                state.buckets.charge(bytes, 1);
                let wait_ns = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
                Reserved { bytes, at_ns: now_ns.saturating_add(wait_ns), generation }
            }
        };
        self.reserved = Some(reserved);
        match reserved.at_ns.saturating_sub(now_ns) {
            0 => Ok(()),
            wait_ns => Err(Duration::from_nanos(wait_ns)),
        }
    }

    /// An operation was done, and came to `bytes`.
    pub(super) fn settle(&mut self, bytes: u64) {
        let reserved = self.reserved.take();
        if self.group.is_off() {
            return;
        }
        // What was reserved is known without the lock, unless the limits change now.
        if reserved.is_some_and(|reserved| reserved.bytes == bytes) {
            return;
        }
        let mut state = self.group.state();
        match reserved.filter(|reserved| reserved.generation == state.generation) {
            Some(Reserved { bytes: paid, .. }) if paid < bytes => state.buckets.charge(bytes - paid, 0),
            Some(Reserved { bytes: paid, .. }) => state.buckets.refund(paid - bytes, 0),
            None => state.buckets.charge(bytes, 1),
        }
    }

    /// Takes `bytes`, going into debt if need be.
    pub(super) fn charge_bytes(&self, bytes: u64) {
        if bytes > 0 && !self.group.is_off() {
            self.group.state().buckets.charge(bytes, 0);
        }
    }

    /// What it has taken and not done goes back.
    pub(super) fn release(&mut self) {
        let Some(reserved) = self.reserved.take() else { return };
        let mut state = self.group.state();
        if state.generation == reserved.generation {
            state.buckets.refund(reserved.bytes, 1);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
