//! The guest's side of a split queue: a well-behaved driver, and the raw stores that a hostile one would do.

use virtio_queue::{Queue, QueueT};

use super::ram;
use crate::mem::{Bytes, GuestAddress, Ram};

/// VIRTQ_DESC_F_NEXT.
pub const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub const INDIRECT: u16 = 4;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Buf {
    /// First guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device fills it.
    pub writable: bool,
}

/// A buffer that the device reads.
#[must_use]
pub fn give(addr: u64, len: u32) -> Buf {
    Buf { addr, len, writable: false }
}

/// A buffer that the device fills.
#[must_use]
pub fn take(addr: u64, len: u32) -> Buf {
    Buf { addr, len, writable: true }
}

/// The guest's side of one queue whose rings lie one after the other.
#[derive(Debug)]
pub struct Driver {
    ram: Ram,
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    next_desc: u16,
    next_avail: u16,
    last_used: u16,
}

impl Driver {
    /// Bytes that the rings of a queue of `size` entries take.
    #[must_use]
    pub fn footprint(size: u16) -> u64 {
        let size = u64::from(size);
        16 * size + (6 + 2 * size).next_multiple_of(4) + 6 + 8 * size
    }

    /// A driver whose rings start at `base`, which is a multiple of 16.
    #[must_use]
    pub fn new(ram: &Ram, base: u64, size: u16) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Self {
            ram: Ram::clone(ram),
            size,
            desc: base,
            avail,
            used,
            next_desc: 0,
            next_avail: 0,
            last_used: 0,
        }
    }

    /// The device's side, as a transport hands it over.
    ///
    /// # Panics
    /// If the size is not a power of two.
    #[must_use]
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).expect("a power of two");
        queue.try_set_desc_table_address(GuestAddress(self.desc)).expect("aligned");
        queue.try_set_avail_ring_address(GuestAddress(self.avail)).expect("aligned");
        queue.try_set_used_ring_address(GuestAddress(self.used)).expect("aligned");
        queue.set_ready(true);
        assert!(queue.is_valid(&*self.ram), "the rings lie in RAM");
        queue
    }

    /// Writes one descriptor, whatever it says, into the table at `table`.
    pub fn write_desc_at(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&addr.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        ram::write(&self.ram, table + 16 * u64::from(index), &raw);
    }

    /// Writes one descriptor, whatever it says, into the queue's table.
    pub fn write_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.write_desc_at(self.desc, index, addr, len, flags, next);
    }

    /// Links `bufs` from the next free descriptors on, round and round the table; the head's index.
    ///
    /// # Panics
    /// If `bufs` is empty or longer than the queue.
    pub fn link(&mut self, bufs: &[Buf]) -> u16 {
        assert!(!bufs.is_empty() && bufs.len() <= usize::from(self.size));
        let head = self.next_desc;
        for (i, buf) in bufs.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let last = i + 1 == bufs.len();
            let flags = if buf.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.write_desc(index, buf.addr, buf.len, flags, self.next_desc);
        }
        head
    }

    /// Links `bufs` in an indirect table at `table`; the head's index.
    ///
    /// # Panics
    /// If `bufs` is longer than a table can be.
    pub fn link_indirect(&mut self, table: u64, bufs: &[Buf]) -> u16 {
        for (i, buf) in bufs.iter().enumerate() {
            let index = u16::try_from(i).expect("an index");
            let flags = if buf.writable { WRITE } else { 0 } | if i + 1 == bufs.len() { 0 } else { NEXT };
            self.write_desc_at(table, index, buf.addr, buf.len, flags, index.wrapping_add(1));
        }
        let head = self.next_desc;
        self.next_desc = (head + 1) % self.size;
        self.write_desc(head, table, u32::try_from(16 * bufs.len()).expect("a length"), INDIRECT, 0);
        head
    }

    /// Makes the chain at `head` available.
    pub fn publish(&mut self, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.next_avail % self.size);
        ram::write(&self.ram, slot, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
        self.publish_index(self.next_avail);
    }

    /// Links and publishes in one go; the head's index.
    pub fn send(&mut self, bufs: &[Buf]) -> u16 {
        let head = self.link(bufs);
        self.publish(head);
        head
    }

    /// Stores any available index.
    pub fn publish_index(&self, index: u16) {
        ram::write(&self.ram, self.avail + 2, &index.to_le_bytes());
    }

    /// The next used entry: (head, bytes written).
    pub fn used(&mut self) -> Option<(u32, u32)> {
        let index: u16 = self.load(self.used + 2);
        if index == self.last_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.last_used % self.size);
        self.last_used = self.last_used.wrapping_add(1);
        Some((self.load(at), self.load(at + 4)))
    }

    /// Sets VIRTQ_AVAIL_F_NO_INTERRUPT.
    pub fn want_interrupts(&self, wanted: bool) {
        ram::write(&self.ram, self.avail, &u16::from(!wanted).to_le_bytes());
    }

    /// Sets the used_event field (EVENT_IDX).
    pub fn set_used_event(&self, event: u16) {
        ram::write(&self.ram, self.avail + 4 + 2 * u64::from(self.size), &event.to_le_bytes());
    }

    /// The avail_event field (EVENT_IDX).
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.load(self.used + 4 + 8 * u64::from(self.size))
    }

    /// Whether the device asked not to be kicked (VIRTQ_USED_F_NO_NOTIFY).
    #[must_use]
    pub fn kicks_suppressed(&self) -> bool {
        self.load::<u16>(self.used) & 1 != 0
    }

    /// First address after the rings.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.used + 6 + 8 * u64::from(self.size)
    }

    fn load<T: vm_memory::ByteValued>(&self, addr: u64) -> T {
        self.ram.read_obj(GuestAddress(addr)).expect("the rings lie in RAM")
    }
}
