//! What happened to the microVM: a bounded history, and readers that wait for more.
//!
//! Any thread pushes; a push takes a short lock, formats one line and never waits for a reader. The API thread reads,
//! each reader at its own pace with the sequence number it has seen last. A reader that falls behind the history is
//! told so, not waited for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use serde::Serialize;
use utoipa::ToSchema;

use crate::utc::Utc;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The guest began to run.
    Started,
    /// The guest stands still.
    Paused,
    /// The guest runs again.
    Resumed,
    /// The guest was reset in place.
    Reset,
    /// The guest is no more; the reason says how it ended. The last event.
    Shutdown,
    /// A device stopped working as it should; the reason says how.
    DeviceError,
    /// A device was added while the guest runs; it finds it a little later.
    DeviceAdded,
    /// A device was removed while the guest runs.
    DeviceRemoved,
}

/// One line of `GET /events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Event<'a> {
    /// Number of the event; the first is 1, and no number is left out.
    pub seq: u64,
    /// When it happened (RFC 3339, UTC).
    pub timestamp: String,
    /// What happened.
    pub event: EventKind,
    /// The device it happened to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<&'a str>,
    /// Why it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
}

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Lines, each with its newline, and the number of the last of them.
    Lines {
        /// The lines.
        text: String,
        /// Number of the last.
        last: u64,
    },
    /// Events it has not seen are forgotten already.
    Lagged,
    /// There will be no more.
    Closed,
}

/// The events of one microVM.
#[derive(Debug)]
pub struct EventRing {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    lines: VecDeque<String>,
    capacity: usize,
    /// Number of the last event.
    last: u64,
    closed: bool,
    waiting: Vec<Waker>,
}

impl EventRing {
    /// Events that are remembered unless told otherwise.
    pub const CAPACITY_DEFAULT: usize = 256;

    /// A ring that remembers `capacity` events.
    pub fn new(capacity: usize) -> Arc<Self> {
        let inner = Inner {
            lines: VecDeque::new(),
            capacity: capacity.max(1),
            last: 0,
            closed: false,
            waiting: Vec::new(),
        };
        Arc::new(Self { inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Notes an event.
    pub fn push(&self, event: EventKind, reason: Option<&str>) {
        self.push_about(event, None, reason);
    }

    /// Notes an event of one device.
    pub fn push_about(&self, event: EventKind, device: Option<&str>, reason: Option<&str>) {
        let mut inner = self.lock();
        let seq = inner.last + 1;
        let event = Event { seq, timestamp: format!("{}Z", Utc::now()), event, device, reason };
        let mut line = serde_json::to_string(&event).expect("an event has string keys only");
        line.push('\n');
        if inner.lines.len() == inner.capacity {
            inner.lines.pop_front();
        }
        inner.lines.push_back(line);
        inner.last = seq;
        wake(inner);
    }

    /// Ends the streams of all readers once they have read everything.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        wake(inner);
    }

    /// Number of the oldest event that is remembered, or of the next one if none is.
    fn oldest(inner: &Inner) -> u64 {
        inner.last + 1 - inner.lines.len() as u64
    }

    /// Where a reader starts that has seen event `since` (0: none): there, or at the oldest event remembered.
    pub fn start(&self, since: u64) -> u64 {
        let inner = self.lock();
        since.clamp(Self::oldest(&inner) - 1, inner.last)
    }

    /// Reads what comes after event `seen`; if there is nothing yet, `cx` is woken when there is.
    pub fn poll_after(&self, seen: u64, cx: &Context<'_>) -> Poll<Read> {
        let mut inner = self.lock();
        if seen < inner.last {
            let oldest = Self::oldest(&inner);
            if seen + 1 < oldest {
                return Poll::Ready(Read::Lagged);
            }
            let skip = usize::try_from(seen + 1 - oldest).unwrap_or(usize::MAX);
            let text = inner.lines.iter().skip(skip).map(String::as_str).collect();
            return Poll::Ready(Read::Lines { text, last: inner.last });
        }
        if inner.closed {
            return Poll::Ready(Read::Closed);
        }
        if !inner.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            inner.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl EventRing {
    /// Wakes this reader no more: it is gone.
    pub fn forget(&self, reader: &Waker) {
        self.lock().waiting.retain(|waker| !waker.will_wake(reader));
    }
}

#[cfg(test)]
impl EventRing {
    /// How many readers are to be woken.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }
}

/// Wakes the readers, after letting go of the lock.
fn wake(mut inner: MutexGuard<'_, Inner>) {
    let waiting = std::mem::take(&mut inner.waiting);
    drop(inner);
    waiting.into_iter().for_each(Waker::wake);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn read(ring: &EventRing, seen: u64) -> Poll<Read> {
        ring.poll_after(seen, &Context::from_waker(Waker::noop()))
    }

    fn sequence(read: Poll<Read>) -> Vec<u64> {
        let Poll::Ready(Read::Lines { text, .. }) = read else { panic!("{read:?}") };
        let number =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap();
        text.lines().map(number).collect()
    }

    #[test]
    fn an_event_is_one_line_of_json_with_number_time_kind_and_reason() {
        let ring = EventRing::new(4);
        ring.push(EventKind::Started, None);
        ring.push_about(EventKind::DeviceError, Some("rootfs"), Some("a \"quoted\"\nreason"));
        let Poll::Ready(Read::Lines { text, last: 2 }) = read(&ring, 0) else { panic!() };
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0]["event"].as_str(), lines[0]["reason"].is_null()), (Some("started"), true));
        assert!(lines[0]["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(lines[1]["device"], "rootfs");
        assert_eq!(lines[1]["reason"], "a \"quoted\"\nreason");
    }

    #[test]
    fn a_new_reader_gets_the_past_and_one_with_a_cursor_what_it_has_not_seen() {
        let ring = EventRing::new(3);
        for _ in 0..5 {
            ring.push(EventKind::Paused, None);
        }
        assert_eq!(sequence(read(&ring, ring.start(0))), [3, 4, 5]);
        assert_eq!(sequence(read(&ring, ring.start(4))), [5]);
        assert_eq!(ring.start(99), 5, "a cursor from another life starts at the end");
        assert!(read(&ring, 5).is_pending());
    }

    #[test]
    fn a_reader_that_fell_behind_is_told() {
        let ring = EventRing::new(2);
        for _ in 0..3 {
            ring.push(EventKind::Paused, None);
        }
        assert_eq!(read(&ring, 0), Poll::Ready(Read::Lagged));
        assert_eq!(sequence(read(&ring, 1)), [2, 3]);
    }

    #[test]
    fn waiting_readers_are_woken_once_per_wait_and_closing_ends_them_after_the_last_event() {
        let ring = EventRing::new(2);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        for _ in 0..3 {
            assert!(ring.poll_after(0, &Context::from_waker(&waker)).is_pending());
        }
        ring.push(EventKind::Shutdown, Some("power off"));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        ring.close();
        assert_eq!(sequence(read(&ring, 0)), [1]);
        assert_eq!(read(&ring, 1), Poll::Ready(Read::Closed));
    }
}
