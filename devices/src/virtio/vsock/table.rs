//! All connections of a device: found by their ports or by their slot, and never more than [`CONNECTIONS_MAX`].

use std::collections::BTreeMap;

use super::connection::Connection;
use super::packet::Key;

/// Connections at a time, those that wait for a peer to take the last of them included. Firecracker's number.
pub const CONNECTIONS_MAX: usize = 1023;
/// Bytes set aside for what the guest sends over a connection and its peer does not take.
pub const WINDOW_BYTES: u32 = 64 * 1024;
/// The same of the first streams: as much as Linux sets aside, for throughput.
pub const WIDE_WINDOW_BYTES: u32 = 256 * 1024;
/// Streams at a time with a wide window: what all windows hold is some 70 MiB then, whatever the guest does.
const WIDE_MAX: usize = 16;
/// The first port of the host's that a call of the host's comes from, as Firecracker counts.
const FIRST_CALLER_PORT: u32 = 1 << 30 | 1024;

/// See the [module](self).
#[derive(Default)]
pub struct Table {
    slots: Vec<Option<Connection>>,
    free: Vec<u16>,
    /// Those that the guest may send for.
    keys: BTreeMap<Key, u16>,
    wide: usize,
    next_caller: u32,
}

impl Table {
    /// How many more there is place for.
    pub fn room(&self) -> usize {
        CONNECTIONS_MAX - (self.slots.len() - self.free.len())
    }

    /// How many bytes are to be set aside for the next stream, and whether that is a wide window.
    pub fn window(&self) -> (u32, bool) {
        let wide = self.wide < WIDE_MAX;
        (if wide { WIDE_WINDOW_BYTES } else { WINDOW_BYTES }, wide)
    }

    /// Ports for a call of the host to `guest_port` that no connection has.
    pub fn caller_key(&mut self, guest_port: u32) -> Key {
        loop {
            // There are more ports than connections.
            let host_port = FIRST_CALLER_PORT + self.next_caller % FIRST_CALLER_PORT;
            self.next_caller = self.next_caller.wrapping_add(1);
            let key = Key { host_port, guest_port };
            if !self.keys.contains_key(&key) {
                return key;
            }
        }
    }

    /// The slot of the connection that the guest means.
    pub fn find(&self, key: Key) -> Option<u16> {
        self.keys.get(&key).copied()
    }

    /// The connection in `slot`.
    pub fn get(&mut self, slot: u16) -> Option<&mut Connection> {
        self.slots.get_mut(usize::from(slot))?.as_mut()
    }

    /// Takes `connection` up, whose ports no other has, if there is room.
    pub fn insert(&mut self, connection: Connection) -> Option<u16> {
        if self.room() == 0 {
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                u16::try_from(self.slots.len() - 1).expect("there are fewer connections")
            }
        };
        self.wide += usize::from(connection.wide);
        self.keys.insert(connection.key, slot);
        self.slots[usize::from(slot)] = Some(connection);
        Some(slot)
    }

    /// The guest knows the connection in `slot` no more; its ports are free.
    pub fn forget(&mut self, slot: u16) {
        if let Some(key) = self.get(slot).map(|connection| connection.key)
            && self.keys.get(&key) == Some(&slot)
        {
            self.keys.remove(&key);
        }
    }

    /// Closes the connection in `slot`.
    pub fn remove(&mut self, slot: u16) -> Option<Connection> {
        self.forget(slot);
        let connection = self.slots.get_mut(usize::from(slot))?.take()?;
        self.wide -= usize::from(connection.wide);
        self.free.push(slot);
        Some(connection)
    }

    /// Closes all; how many there were.
    pub fn clear(&mut self) -> usize {
        let count = self.slots.len() - self.free.len();
        *self = Self { next_caller: self.next_caller, ..Self::default() };
        count
    }

    /// Slots whose deadline has come, and the next deadline of the others.
    pub fn expired(&self, now: u64) -> (Vec<u16>, Option<u64>) {
        let mut expired = Vec::new();
        let mut next = None;
        for (slot, connection) in (0..).zip(&self.slots) {
            match connection.as_ref().and_then(|connection| connection.deadline) {
                Some(at) if at <= now => expired.push(slot),
                Some(at) => next = Some(next.map_or(at, |other: u64| other.min(at))),
                None => {}
            }
        }
        (expired, next)
    }
}
