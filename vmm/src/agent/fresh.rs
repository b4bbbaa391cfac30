//! One reading for all who ask at the same time.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;

/// What was read last, and when that reading began.
///
/// Whoever asks gets what was read after they asked, never something older; but all who wait for a reading that is under way
/// share the next one, so any number of them cost two readings. Lives on any runtime; nothing is read while nobody asks.
#[derive(Debug)]
pub struct Fresh<T>(Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Fresh<T> {
    /// What `read` says, or what it said to somebody else if that began after this was called. If the future is dropped, the
    /// next who waits reads.
    pub async fn get(&self, read: impl AsyncFnOnce() -> T) -> Arc<T> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((began, value)) = &*last
            && *began > asked
        {
            return Arc::clone(value);
        }
        let began = Instant::now();
        let value = Arc::new(read().await);
        *last = Some((began, Arc::clone(&value)));
        value
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    fn run(future: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
    }

    #[test]
    fn all_who_wait_share_one_reading_that_began_after_they_asked() {
        run(async {
            let (fresh, readings, go) = (Fresh::default(), AtomicUsize::new(0), Notify::new());
            let read = async || {
                let nth = readings.fetch_add(1, Ordering::Relaxed);
                if nth == 0 {
                    go.notified().await;
                }
                nth
            };
            let first = fresh.get(read);
            let others = join_all((0..50).map(|_| fresh.get(read)));
            // They are polled in this order: the others ask while the first one reads, and then let it go on.
            let (first, others, ()) = tokio::join!(first, others, async { go.notify_one() });
            assert_eq!(*first, 0);
            assert!(others.iter().all(|nth| **nth == 1), "{others:?}");
            assert_eq!(*fresh.get(read).await, 2, "who asks later is told nothing old");
        });
    }

    #[test]
    fn a_reading_that_is_given_up_holds_nobody_up() {
        run(async {
            let fresh = Fresh::<u8>::default();
            let never = fresh.get(async || std::future::pending().await);
            let given_up = tokio::select! { biased; _ = never => false, () = async {} => true };
            assert!(given_up);
            assert_eq!(*fresh.get(async || 7).await, 7);
        });
    }
}
