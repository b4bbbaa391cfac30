//! What a device's thread is to serve, and when.

use std::time::{Duration, Instant};

/// Something that is to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    Queue(u16),
    Source(usize),
}

/// What is to be served, and when.
#[derive(Default)]
pub(super) struct Due {
    pub(super) now: Vec<Job>,
    later: Vec<(Instant, Job)>,
}

impl Due {
    pub(super) fn add(&mut self, job: Job) {
        self.later.retain(|(_, other)| *other != job);
        if !self.now.contains(&job) {
            self.now.push(job);
        }
    }

    pub(super) fn add_after(&mut self, job: Job, wait: Duration) {
        if !self.now.contains(&job) {
            self.later.retain(|(_, other)| *other != job);
            self.later.push((Instant::now() + wait, job));
        }
    }

    /// Whether nothing is to be served, now or later.
    pub(super) fn is_empty(&self) -> bool {
        self.now.is_empty() && self.later.is_empty()
    }

    /// Whether something is to be served now.
    pub(super) fn is_due(&self) -> bool {
        !self.now.is_empty()
    }

    /// Moves what has become due to `now`.
    pub(super) fn ripen(&mut self) {
        if self.later.is_empty() {
            return;
        }
        let now = Instant::now();
        let ripe: Vec<Job> = self.later.iter().filter(|(at, _)| *at <= now).map(|(_, job)| *job).collect();
        ripe.into_iter().for_each(|job| self.add(job));
    }

    /// How long to wait for events, in epoll's milliseconds: -1 is for ever.
    pub(super) fn timeout_ms(&self) -> i32 {
        if !self.now.is_empty() {
            return 0;
        }
        let Some(at) = self.later.iter().map(|(at, _)| *at).min() else { return -1 };
        let wait = at.saturating_duration_since(Instant::now());
        // Rounded up: an early look would only find that it is too early.
        i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    }
}
