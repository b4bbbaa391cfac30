//! An owner without threads: a kick serves the queue before it returns.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::virtio::{Idle, Owner, Running, Served};

/// How many batches one kick may take: a device that always wants more is broken, and a test that hangs says nothing.
const BATCHES_MAX: u32 = 100_000;

#[derive(Default)]
struct State {
    device: Option<Box<dyn Running>>,
    broken: bool,
}

/// Runs a device inline. Clones share the device: keep one, give one to the transport.
#[derive(Clone, Default)]
pub struct InlineOwner(Arc<Mutex<State>>);

impl InlineOwner {
    /// Runs nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `batch` of the device until it wants no more; the last answer. `None` if nothing runs, or it broke before.
    ///
    /// # Panics
    /// If the device wants more for ever.
    fn drain(&self, mut batch: impl FnMut(&mut dyn Running) -> Served) -> Option<Served> {
        let mut state = self.state();
        let State { device: Some(device), broken } = &mut *state else { return None };
        if *broken {
            return None;
        }
        for _ in 0..BATCHES_MAX {
            match batch(&mut **device) {
                Served::More => {}
                last => {
                    *broken = last == Served::Broken;
                    return Some(last);
                }
            }
        }
        panic!("the device answered Served::More {BATCHES_MAX} times in a row");
    }

    /// Serves `queue` as a kick does; the last answer. `None` if nothing runs, or it broke before.
    pub fn serve(&self, queue: u16) -> Option<Served> {
        self.drain(|device| device.serve(queue))
    }

    /// Tells the device that a source is readable; likewise.
    pub fn ready(&self, source: usize) -> Option<Served> {
        self.drain(|device| device.ready(source))
    }

    /// Whether a device runs.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.state().device.is_some()
    }

    /// Loses the device, as an owner whose thread died does.
    pub fn lose(&self) {
        self.state().device = None;
    }
}

impl Owner for InlineOwner {
    fn run(&mut self, device: Box<dyn Running>, queues: &[u16]) {
        {
            let mut state = self.state();
            assert!(state.device.is_none(), "a transport runs one device");
            *state = State { device: Some(device), broken: false };
        }
        self.state().device.iter_mut().for_each(|device| device.go_on());
        for queue in queues {
            self.serve(*queue);
        }
    }

    fn halt(&mut self) -> Option<Box<dyn Idle>> {
        let device = self.state().device.take()?;
        Some(device.stop())
    }

    fn kick(&self, queue: u16) {
        self.serve(queue);
    }
}
