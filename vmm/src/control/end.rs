//! The one place where a guest's end is noted: by a vCPU, a platform device or the driver itself.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::ended::Reason;

/// Holds why the guest ended; the first reason counts.
pub struct End {
    reason: Mutex<Option<Reason>>,
    wake: EventFd,
}

impl End {
    /// Nothing ended yet.
    ///
    /// # Errors
    /// If there is no descriptor for the wake-up.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { reason: Mutex::new(None), wake: EventFd::new(EFD_NONBLOCK)? }))
    }

    /// Notes that the guest ended and wakes the driver. From any thread; never blocks.
    pub fn note(&self, reason: Reason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        // EAGAIN: it was woken more often than it can count.
        let _ = self.wake.write(1);
    }

    /// Takes the reason, if there is one.
    pub fn take(&self) -> Option<Reason> {
        let _ = self.wake.read();
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Readable when there is a reason.
    #[must_use]
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }
}
