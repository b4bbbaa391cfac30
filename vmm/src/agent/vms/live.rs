//! What only this process knows of a VM: what its task is doing, what it is to be told, its console.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::super::operations::Op;
use super::super::state::Activity;
use super::console::Console;

#[derive(Debug, Default)]
struct Inner {
    activity: Activity,
    expires_at: Option<String>,
    operation: Option<Arc<Op>>,
    stop_timeout_s: Option<u32>,
}

/// A VM in this process.
#[derive(Debug)]
pub struct Live {
    inner: Mutex<Inner>,
    /// Wakes its task.
    pub changed: Notify,
    /// Its console.
    pub console: Arc<Console>,
    /// Held while its usage is read and recorded.
    pub sampling: tokio::sync::Mutex<()>,
    /// Held while its runtime record is read, changed and stored.
    pub saving: tokio::sync::Mutex<()>,
}

impl Live {
    /// A VM whose files are in `dir`, twice `console_bytes` of whose console are kept.
    #[must_use]
    pub fn new(dir: PathBuf, console_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            changed: Notify::new(),
            console: Console::new(dir, console_bytes),
            sampling: tokio::sync::Mutex::default(),
            saving: tokio::sync::Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its task is doing.
    #[must_use]
    pub fn activity(&self) -> Activity {
        self.lock().activity.clone()
    }

    /// It is doing this now.
    pub fn does(&self, activity: Activity) {
        self.lock().activity = activity;
    }

    /// When its time to live is over.
    #[must_use]
    pub fn expires_at(&self) -> Option<String> {
        self.lock().expires_at.clone()
    }

    /// It is over then.
    pub fn set_expires_at(&self, at: Option<String>) {
        self.lock().expires_at = at;
    }

    /// Id of the operation under way.
    #[must_use]
    pub fn operation(&self) -> Option<String> {
        self.lock().operation.as_ref().filter(|op| op.is_running()).map(|op| op.id().to_owned())
    }

    /// Takes on an operation; the one before is cancelled.
    pub fn begin(&self, op: Arc<Op>) {
        let before = self.lock().operation.replace(Arc::clone(&op));
        if let Some(before) = before {
            before.cancelled(&format!("something else was asked for: {}", op.id()));
        }
        self.changed.notify_one();
    }

    /// The operation under way.
    #[must_use]
    pub fn under_way(&self) -> Option<Arc<Op>> {
        self.lock().operation.clone()
    }

    /// The operation under way, which is over now.
    #[must_use]
    pub fn take_operation(&self) -> Option<Arc<Op>> {
        self.lock().operation.take()
    }

    /// How long the next stop waits, if that was said.
    #[must_use]
    pub fn take_stop_timeout(&self) -> Option<u32> {
        self.lock().stop_timeout_s.take()
    }

    /// The next stop waits so long, in seconds.
    pub fn set_stop_timeout(&self, seconds: Option<u32>) {
        self.lock().stop_timeout_s = seconds;
    }
}
