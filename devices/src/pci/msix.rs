//! MSI-X: a table of messages, a bit of memory for each (PCI Local Bus 3.0 §6.8.2).
//!
//! The device's thread only touches one atomic word per vector: it asks the sink to deliver, or leaves a pending bit if the
//! vector is masked. vCPUs change the table under a lock; unmasking tells the sink the message first, then opens the vector,
//! then delivers what was pending.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::irq::Eventfd;

/// Capability ID of MSI-X.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry.
pub const ENTRY_SIZE: u64 = 16;
/// The most vectors a table may have here: one page of entries.
pub const VECTORS_MAX: u16 = 256;
/// Message Control: MSI-X is enabled.
pub const CONTROL_ENABLE: u16 = 1 << 15;
/// Message Control: every vector is masked.
pub const CONTROL_MASK_ALL: u16 = 1 << 14;

/// Vector Control: this vector is masked.
const ENTRY_MASKED: u32 = 1;

/// Word of a vector: it is masked by its entry, by the function's mask, or because MSI-X is not enabled.
const MASKED: u8 = 1;
/// Word of a vector: it was triggered while masked.
const PENDING: u8 = 2;

/// What a vector writes where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsixMessage {
    /// Address, the guest's choice: nothing about it was checked.
    pub address: u64,
    /// Data, likewise.
    pub data: u32,
}

/// Delivers a function's messages. Implemented by the machine: KVM routes and irqfds.
pub trait MsixSink: Send + Sync {
    /// `vector` now means `message`, and is masked or not. Called on a vCPU's thread, one call at a time, and only when the
    /// mask changed or the message of an unmasked vector did. While a vector is masked, [`MsixSink::trigger`] is not called
    /// for it (one that was already under way may come late), so a sink may keep the route of a masked vector.
    fn route(&self, vector: u16, message: MsixMessage, masked: bool);

    /// Sends `vector`'s message. Called from any thread; never blocks.
    fn trigger(&self, vector: u16);

    /// Has each write to `eventfd` send `vector`'s message, which is `message` now, from now on; not while it is masked, as it
    /// is now if `masked` says so: then a write is kept until [`MsixSink::route`] unmasks it. Not during another call of this or of
    /// `route`. False if it can't be had.
    fn connect(&self, _vector: u16, _message: MsixMessage, _masked: bool, _eventfd: &Eventfd) -> bool {
        false
    }

    /// Undoes [`MsixSink::connect`]. Called from any thread.
    fn disconnect(&self, _eventfd: &Eventfd) {}
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    message: MsixMessage,
    control: u32,
}

/// All zeros but masked, as after a reset.
const BLANK: Entry = Entry { message: MsixMessage { address: 0, data: 0 }, control: ENTRY_MASKED };

struct Table {
    entries: Vec<Entry>,
    control: u16,
}

impl Table {
    fn masked(&self, vector: usize) -> bool {
        self.control & (CONTROL_ENABLE | CONTROL_MASK_ALL) != CONTROL_ENABLE
            || self.entries[vector].control & ENTRY_MASKED != 0
    }
}

/// The table, the pending bits and the masks of one function.
pub struct Msix {
    table: Mutex<Table>,
    words: Vec<AtomicU8>,
    enabled: AtomicBool,
    sink: Arc<dyn MsixSink>,
}

impl Msix {
    /// `vectors` masked vectors, MSI-X not enabled.
    ///
    /// # Panics
    /// If `vectors` is 0 or more than [`VECTORS_MAX`].
    #[must_use]
    pub fn new(vectors: u16, sink: Arc<dyn MsixSink>) -> Self {
        assert!((1..=VECTORS_MAX).contains(&vectors), "a table has 1 to 256 vectors, not {vectors}");
        Self {
            table: Mutex::new(Table { entries: vec![BLANK; usize::from(vectors)], control: 0 }),
            words: (0..vectors).map(|_| AtomicU8::new(MASKED)).collect(),
            enabled: AtomicBool::new(false),
            sink,
        }
    }

    /// How many vectors there are.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.words.len()).expect("at most VECTORS_MAX")
    }

    /// Whether the guest enabled MSI-X.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Delivers `vector`, or remembers it until it is unmasked. Lock-free. A vector out of range is ignored.
    pub fn trigger(&self, vector: u16) {
        let Some(word) = self.words.get(usize::from(vector)) else { return };
        let masked = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            (word & MASKED != 0).then_some(word | PENDING)
        });
        if masked.is_err() {
            self.sink.trigger(vector);
        }
    }

    /// Has each write to `eventfd` deliver `vector`, as it is masked and routed at the time; false if there is no such vector,
    /// MSI-X is not enabled, or the sink has no such thing. Of what is kept because it is masked the pending bit does not tell.
    pub fn connect(&self, vector: u16, eventfd: &Eventfd) -> bool {
        // Held, so that it can't be masked between the look and the sink's.
        let table = self.table();
        let index = usize::from(vector);
        let Some(entry) = table.entries.get(index).filter(|_| self.enabled()) else { return false };
        self.sink.connect(vector, entry.message, table.masked(index), eventfd)
    }

    /// Undoes [`Msix::connect`].
    pub fn disconnect(&self, eventfd: &Eventfd) {
        self.sink.disconnect(eventfd);
    }

    /// Forgets pending vectors: the device behind the function was reset.
    pub fn forget_pending(&self) {
        for word in &self.words {
            word.fetch_and(!PENDING, Ordering::AcqRel);
        }
    }

    /// Back to masked, blank entries and MSI-X not enabled: the bus was reset.
    pub fn reset(&self) {
        let mut table = self.table();
        self.change(&mut table, |table| {
            table.control = 0;
            table.entries.fill(BLANK);
        });
        self.forget_pending();
    }

    /// The guest wrote Message Control.
    pub fn set_control(&self, control: u16) {
        let mut table = self.table();
        if table.control != control {
            self.change(&mut table, |table| table.control = control);
        }
    }

    /// Fills `data` from the table; 4 or 8 aligned bytes, zeros for anything else.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = self.table();
        words(offset, data, |dword| {
            let Some(entry) = table.entries.get(dword / 4) else { return 0 };
            let [low, high] = halves(entry.message.address);
            [low, high, entry.message.data, entry.control][dword % 4]
        });
    }

    /// Takes `data` into the table; 4 or 8 aligned bytes, anything else is ignored.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let Some(first) = dword(offset, data.len()) else { return };
        let mut table = self.table();
        if first / 4 >= table.entries.len() {
            return;
        }
        self.change(&mut table, |table| {
            for (dword, value) in (first..).zip(data.chunks_exact(4)) {
                let entry = &mut table.entries[dword / 4];
                let value = u32::from_le_bytes(value.try_into().expect("chunks of four"));
                let [low, high] = halves(entry.message.address);
                match dword % 4 {
                    0 => entry.message.address = joined([value, high]),
                    1 => entry.message.address = joined([low, value]),
                    2 => entry.message.data = value,
                    _ => entry.control = value & ENTRY_MASKED,
                }
            }
        });
    }

    /// Fills `data` from the pending bits; 4 or 8 aligned bytes, zeros for anything else.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        words(offset, data, |dword| {
            let bits = self.words.iter().skip(dword.saturating_mul(32)).take(32).enumerate();
            bits.fold(0, |all, (bit, word)| {
                all | u32::from(word.load(Ordering::Acquire) & PENDING != 0) << bit
            })
        });
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table and lets the sink and the words follow.
    fn change(&self, table: &mut Table, change: impl FnOnce(&mut Table)) {
        let before: Vec<_> =
            (0..table.entries.len()).map(|v| (table.entries[v].message, table.masked(v))).collect();
        change(table);
        self.enabled.store(table.control & CONTROL_ENABLE != 0, Ordering::Release);
        for (index, (message, was_masked)) in before.into_iter().enumerate() {
            let entry = table.entries[index];
            let vector = u16::try_from(index).expect("at most VECTORS_MAX");
            match (was_masked, table.masked(index)) {
                (true, true) => {}
                (false, true) => {
                    self.words[index].fetch_or(MASKED, Ordering::AcqRel);
                    self.sink.route(vector, entry.message, true);
                }
                (true, false) => {
                    self.sink.route(vector, entry.message, false);
                    if self.words[index].swap(0, Ordering::AcqRel) & PENDING != 0 {
                        self.sink.trigger(vector);
                    }
                }
                (false, false) if message != entry.message => self.sink.route(vector, entry.message, false),
                (false, false) => {}
            }
        }
    }
}

/// The index of the 32-bit word at `offset`, if an access of `len` bytes there is one the standard allows.
fn dword(offset: u64, len: usize) -> Option<usize> {
    let aligned = matches!(len, 4 | 8) && usize::try_from(offset).ok()?.is_multiple_of(len);
    aligned.then_some(usize::try_from(offset / 4).ok()?)
}

/// Fills `data` word by word.
fn words(offset: u64, data: &mut [u8], word: impl Fn(usize) -> u32) {
    match dword(offset, data.len()) {
        Some(first) => {
            for (index, bytes) in (first..).zip(data.chunks_exact_mut(4)) {
                bytes.copy_from_slice(&word(index).to_le_bytes());
            }
        }
        None => data.fill(0),
    }
}

#[allow(clippy::cast_possible_truncation, reason = "halves are what was asked for")]
fn halves(whole: u64) -> [u32; 2] {
    [whole as u32, (whole >> 32) as u32]
}

fn joined([low, high]: [u32; 2]) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use crate::testing::transport::CountingSink;

    use super::*;

    #[test]
    fn a_trigger_that_races_with_masking_is_delivered_by_the_last_unmask() {
        const ROUNDS: u64 = 2_000;
        let sink = CountingSink::new(1);
        let msix = Msix::new(1, Arc::clone(&sink) as Arc<dyn MsixSink>);
        msix.set_control(CONTROL_ENABLE);
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    barrier.wait();
                    msix.trigger(0);
                    barrier.wait();
                }
            });
            for round in 1..=ROUNDS {
                barrier.wait();
                for masked in [1u32, 0, 1, 0] {
                    msix.write_table(12, &masked.to_le_bytes());
                }
                barrier.wait();
                assert_eq!(sink.delivered(0), round, "once each, never lost");
            }
        });
    }

    /// Notes what is connected: vector, message and whether it is masked.
    #[derive(Default)]
    struct Connected(Mutex<Vec<(u16, MsixMessage, bool)>>);

    impl MsixSink for Connected {
        fn route(&self, vector: u16, message: MsixMessage, masked: bool) {
            self.0.lock().unwrap().push((vector, message, masked));
        }
        fn trigger(&self, _vector: u16) {}
        fn connect(&self, vector: u16, message: MsixMessage, masked: bool, _: &Eventfd) -> bool {
            self.0.lock().unwrap().push((vector, message, masked));
            true
        }
    }

    #[test]
    fn an_eventfd_is_connected_to_a_vector_that_exists_as_it_is_masked_and_routed() {
        let sink = Arc::new(Connected::default());
        let msix = Msix::new(2, Arc::clone(&sink) as Arc<dyn MsixSink>);
        let eventfd: Eventfd = Arc::new(std::io::stdin());
        assert!(!msix.connect(0, &eventfd), "MSI-X is not enabled: nothing would come");
        msix.set_control(CONTROL_ENABLE);
        msix.write_table(0, &0xfee0_0000u64.to_le_bytes());
        assert!(!msix.connect(2, &eventfd) && !msix.connect(u16::MAX, &eventfd));
        assert!(msix.connect(0, &eventfd));
        msix.write_table(12, &0u32.to_le_bytes());
        assert!(msix.connect(0, &eventfd));
        let message = MsixMessage { address: 0xfee0_0000, data: 0 };
        assert_eq!(*sink.0.lock().unwrap(), [(0, message, true), (0, message, false), (0, message, false)]);
    }

    #[test]
    fn what_lies_past_the_table_and_the_pending_bits_reads_as_zeros() {
        let msix = Msix::new(1, CountingSink::new(1));
        for offset in [16, 4096, u64::MAX - 7] {
            let (mut table, mut pending) = ([0xa5; 8], [0xa5; 8]);
            msix.read_table(offset, &mut table);
            msix.read_pending(offset, &mut pending);
            msix.write_table(offset, &[0; 8]);
            assert_eq!((table, pending), ([0; 8], [0; 8]), "{offset:#x}");
        }
    }

    #[test]
    fn a_message_is_routed_before_its_pending_vector_is_delivered() {
        #[derive(Default)]
        struct Order(Mutex<Vec<&'static str>>);
        impl MsixSink for Order {
            fn route(&self, _vector: u16, message: MsixMessage, masked: bool) {
                assert_eq!((message.address, message.data, masked), (0xfee0_0000, 0x31, false));
                self.0.lock().unwrap().push("route");
            }
            fn trigger(&self, _vector: u16) {
                self.0.lock().unwrap().push("trigger");
            }
        }
        let order = Arc::new(Order::default());
        let msix = Msix::new(1, Arc::clone(&order) as Arc<dyn MsixSink>);
        msix.set_control(CONTROL_ENABLE);
        msix.trigger(0);
        msix.write_table(0, &0xfee0_0000u64.to_le_bytes());
        // Data and mask in one access, as Linux may do it.
        msix.write_table(8, &0x31u64.to_le_bytes());
        assert_eq!(*order.0.lock().unwrap(), ["route", "trigger"]);
    }
}
