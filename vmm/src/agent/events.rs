//! What happened: numbered, kept in the store, and followed by readers that come back where they were.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::clock;
use super::model::{Event, Name};
use super::store::{Batch, Store, StoreError, Table};

/// Events that are asked for without the store.
const IN_MEMORY: usize = 1024;
/// Events that are kept.
pub const KEPT: u64 = 100_000;
/// Events read from the store at once.
const PAGE: usize = 256;

/// Something to be noted.
#[derive(Clone, Debug, Default)]
pub struct Happened {
    /// What.
    pub kind: &'static str,
    /// Whose thing.
    pub tenant: Option<Name>,
    /// Which.
    pub target: Option<String>,
    /// Who asked.
    pub requestor: String,
    /// More.
    pub detail: String,
}

#[derive(Debug)]
struct Inner {
    /// Number of the last that was noted.
    last: u64,
    recent: BTreeMap<u64, Arc<Event>>,
    /// Noted, and not known to be in the store.
    pending: BTreeSet<u64>,
    /// Did not come into the store, and are lower than the last.
    failed: BTreeSet<u64>,
}

/// All events.
#[derive(Debug)]
pub struct Events {
    inner: Mutex<Inner>,
    /// Number of the last that readers may see.
    visible: watch::Sender<u64>,
}

/// An event on its way into the store. Dropped without [`Noted::publish`] it never happened.
#[derive(Debug)]
#[must_use]
pub struct Noted<'a> {
    events: &'a Events,
    seq: Option<u64>,
}

fn key(seq: u64) -> String {
    format!("{seq:020}")
}

impl Events {
    /// Goes on where the store ends.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(store: &Store) -> Result<Self, StoreError> {
        let mut last = 0;
        // The store is asked for numbers it may have, from above: it only reads forwards.
        let mut step = 1 << 40;
        while step > 0 {
            let rows: Vec<(String, Event)> = store.scan(Table::Events, key(last + step), 1).await?;
            match rows.first() {
                Some((_, event)) => last = event.seq,
                None => step /= 2,
            }
        }
        let inner =
            Inner { last, recent: BTreeMap::new(), pending: BTreeSet::new(), failed: BTreeSet::new() };
        Ok(Self { inner: Mutex::new(inner), visible: watch::Sender::new(last) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event to changes that are about to be committed. No other may be noted in between.
    pub fn note(&self, batch: &mut Batch, happened: Happened) -> Noted<'_> {
        let mut inner = self.lock();
        let seq = inner.last + 1;
        let Happened { kind, tenant, target, requestor, detail } = happened;
        let event = Event { seq, at: clock::now(), kind: kind.to_owned(), tenant, target, requestor, detail };
        batch.put(Table::Events, key(seq), &event);
        if seq > KEPT {
            batch.remove(Table::Events, key(seq - KEPT));
        }
        log::info!(
            "{} {}/{} by {}: {}",
            event.kind,
            event.tenant.as_ref().map_or("", |tenant| tenant.as_str()),
            event.target.as_deref().unwrap_or(""),
            event.requestor,
            event.detail
        );
        inner.last = seq;
        inner.recent.insert(seq, Arc::new(event));
        inner.pending.insert(seq);
        if inner.recent.len() > IN_MEMORY {
            inner.recent.pop_first();
        }
        Noted { events: self, seq: Some(seq) }
    }

    fn settle(&self, seq: u64, happened: bool) {
        let mut inner = self.lock();
        inner.pending.remove(&seq);
        if !happened {
            inner.recent.remove(&seq);
            inner.failed.insert(seq);
            // What never happened leaves no gap, unless something that did came after it.
            let mut last = inner.last;
            while inner.failed.remove(&last) {
                last -= 1;
            }
            inner.last = last;
        }
        let visible = inner.pending.first().map_or(inner.last, |first| first - 1);
        drop(inner);
        self.visible.send_replace(visible);
    }

    /// Number of the last event.
    #[must_use]
    pub fn last(&self) -> u64 {
        *self.visible.borrow()
    }

    /// Waits until there are events after `since`.
    pub async fn after(&self, since: u64) {
        let mut visible = self.visible.subscribe();
        // It ends only with `self`.
        let _ = visible.wait_for(|visible| *visible > since).await;
    }

    /// Some events after `since`, in order; none if there are none yet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read(&self, store: &Store, since: u64) -> Result<Vec<Arc<Event>>, StoreError> {
        let visible = self.last();
        if since >= visible {
            return Ok(Vec::new());
        }
        {
            let inner = self.lock();
            if inner.recent.first_key_value().is_some_and(|(first, _)| *first <= since + 1) {
                let range = inner.recent.range(since + 1..=visible);
                return Ok(range.take(PAGE).map(|(_, event)| Arc::clone(event)).collect());
            }
        }
        let rows: Vec<(String, Event)> = store.scan(Table::Events, key(since + 1), PAGE).await?;
        Ok(rows.into_iter().map(|(_, event)| Arc::new(event)).filter(|event| event.seq <= visible).collect())
    }
}

impl Noted<'_> {
    /// It is in the store: readers see it.
    pub fn publish(mut self) {
        if let Some(seq) = self.seq.take() {
            self.events.settle(seq, true);
        }
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        if let Some(seq) = self.seq.take() {
            self.events.settle(seq, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::try_here;
    use super::*;

    async fn happen(events: &Events, store: &Store, detail: u64) {
        let mut batch = Batch::new();
        let happened = Happened { kind: "vm.test", detail: detail.to_string(), ..Happened::default() };
        let noted = events.note(&mut batch, happened);
        store.commit(batch).await.unwrap();
        noted.publish();
    }

    #[test]
    fn numbers_of_events_that_never_happened_are_given_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("s"), &try_here).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let events = Events::load(&store).await.unwrap();
            happen(&events, &store, 1).await;
            let (first, second) = (Happened::default(), Happened::default());
            let first = events.note(&mut Batch::new(), first);
            let second = events.note(&mut Batch::new(), second);
            drop(first);
            drop(second);
            assert_eq!(events.last(), 1);
            happen(&events, &store, 2).await;
            let read = events.read(&store, 0).await.unwrap();
            assert_eq!(read.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2]);
        });
    }

    #[test]
    fn a_reader_that_comes_back_gets_every_event_once_also_from_another_agent() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("s.redb"), &try_here).unwrap();
        runtime.block_on(async {
            let events = Events::load(&store).await.unwrap();
            assert!(events.read(&store, 0).await.unwrap().is_empty());
            for n in 1..=1500 {
                happen(&events, &store, n).await;
            }
            for events in [events, Events::load(&store).await.unwrap()] {
                assert_eq!(events.last(), 1500);
                let (mut cursor, mut seen) = (0, Vec::new());
                while cursor < 1500 {
                    let page = events.read(&store, cursor).await.unwrap();
                    cursor = page.last().unwrap().seq;
                    seen.extend(page.iter().map(|event| event.detail.parse::<u64>().unwrap()));
                }
                assert_eq!(seen, (1..=1500).collect::<Vec<_>>());
            }
        });
    }

    #[test]
    fn what_is_not_in_the_store_did_not_happen_and_holds_up_what_came_after_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("s.redb"), &try_here).unwrap();
        runtime.block_on(async {
            let events = Events::load(&store).await.unwrap();
            let mut batch = Batch::new();
            let lost = events.note(&mut batch, Happened::default());
            happen(&events, &store, 2).await;
            assert!(events.read(&store, 0).await.unwrap().is_empty());
            drop(lost);
            let seen: Vec<u64> = events.read(&store, 0).await.unwrap().iter().map(|e| e.seq).collect();
            assert_eq!(seen, [2]);
        });
    }
}
