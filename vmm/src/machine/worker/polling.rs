//! Whether to look for work rather than to sleep until it comes.
//!
//! A thread that finds something within its window was right to look, and is spared a sleep and a wake-up, its guest a kick.
//! One that finds nothing has spent the window for nothing; after some such times in a row it sleeps, and tries again later.

use std::time::{Duration, Instant};

use super::Body;
use super::due::Job;

/// Windows in vain in a row before it stops.
const PATIENCE: u8 = 4;
/// Wake-ups that it then sleeps in between, before it tries once more.
const SLEEPS: u8 = 64;

/// The habits of one thread.
#[derive(Debug)]
pub(super) struct Polling {
    window: Duration,
    /// Windows in vain that are left.
    patience: u8,
    /// Wake-ups since it stopped.
    sleeps: u8,
}

impl Polling {
    /// Looks for `window` at a time; never if that is nothing.
    pub(super) fn new(window: Duration) -> Self {
        Self { window, patience: PATIENCE, sleeps: 0 }
    }

    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// Whether to look for more once that is served for which the thread woke up.
    pub(super) fn pays(&mut self) -> bool {
        if self.window.is_zero() {
            return false;
        }
        if self.patience == 0 {
            self.sleeps += 1;
            if self.sleeps >= SLEEPS {
                (self.sleeps, self.patience) = (0, 1);
            }
        }
        self.patience > 0
    }

    /// A window is over: something was found in it, or not.
    pub(super) fn note(&mut self, found: bool) {
        self.patience = if found { PATIENCE } else { self.patience.saturating_sub(1) };
    }
}

impl Body {
    /// Begins or ends to look for work.
    pub(super) fn look(&mut self, on: bool) {
        self.looks = on;
        if let Some(work) = &mut self.work {
            work.set_polled(on);
        }
    }

    /// Ends it: each queue is served once more, which asks its driver for kicks again.
    pub(super) fn look_no_more(&mut self) {
        self.look(false);
        self.queues.iter().for_each(|queue| self.due.add(Job::Queue(*queue)));
    }

    /// Looks for work until there is some, or something happens, or the window is over; whether there is. `None` at the end.
    pub(super) fn look_for_work(&mut self) -> Option<bool> {
        /// Looks between two at the clock and at the descriptors: a microsecond's worth, as much as those take.
        const LOOKS: u32 = 64;
        let end = Instant::now() + self.polling.window();
        loop {
            for _ in 0..LOOKS {
                let Some(work) = &self.work else { return Some(true) };
                if let Some(queue) = self.queues.iter().find(|queue| work.peek(**queue)) {
                    self.due.add(Job::Queue(*queue));
                    return Some(true);
                }
                std::hint::spin_loop();
            }
            match self.wait(0)? {
                0 if Instant::now() >= end => return Some(false),
                0 => {}
                _ => return Some(true),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(50);

    #[test]
    fn without_a_window_it_never_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        assert!((0..1000).all(|_| !polling.pays()));
    }

    #[test]
    fn windows_in_vain_end_it_and_it_tries_again_later() {
        let mut polling = Polling::new(WINDOW);
        for _ in 0..PATIENCE {
            assert!(polling.pays());
            polling.note(false);
        }
        let sleeps = (0..1000).take_while(|_| !polling.pays()).count();
        assert_eq!(sleeps, usize::from(SLEEPS) - 1);
        // Once more in vain: it sleeps at once.
        polling.note(false);
        assert!(!polling.pays());
        let _ = (0..1000).take_while(|_| !polling.pays()).count();
        // This time it pays: it goes on as at first.
        polling.note(true);
        for _ in 0..PATIENCE {
            assert!(polling.pays());
            polling.note(false);
        }
        assert!(!polling.pays());
    }

    #[test]
    fn as_long_as_it_finds_something_it_looks() {
        let mut polling = Polling::new(WINDOW);
        for turn in 0..1000 {
            assert!(polling.pays());
            polling.note(turn % u32::from(PATIENCE) == 0);
        }
    }
}
