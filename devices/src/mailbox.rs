//! How a control thread hands a change to the thread that owns a device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A slot of pending changes. Looking into an empty one costs a load.
#[derive(Debug, Default)]
pub struct Mailbox<T> {
    full: AtomicBool,
    slot: Mutex<T>,
}

impl<T: Default> Mailbox<T> {
    fn lock(&self) -> MutexGuard<'_, T> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Edits what is pending; whoever takes next gets it.
    pub fn post<R>(&self, edit: impl FnOnce(&mut T) -> R) -> R {
        let mut slot = self.lock();
        let result = edit(&mut slot);
        self.full.store(true, Ordering::Release);
        result
    }

    /// Takes what is pending, if anything.
    pub fn take(&self) -> Option<T> {
        if !self.full.load(Ordering::Acquire) {
            return None;
        }
        let mut slot = self.lock();
        self.full.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut *slot))
    }
}
