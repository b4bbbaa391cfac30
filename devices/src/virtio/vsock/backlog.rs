//! What a peer on the host has not taken yet: at most what was announced to the guest.

use std::collections::VecDeque;
use std::io;

use super::host::Peer;
use super::packet::Kind;
use crate::mem::VolatileSlice;
use crate::virtio::queue::copy_out;

/// Bytes on their way to a peer, in records or not. Empty, it takes no memory.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: VecDeque<u8>,
    /// The lengths of complete records, less one: a record has 1 to 65,536 bytes.
    records: VecDeque<u16>,
    /// The sum of those lengths.
    complete: usize,
}

impl Backlog {
    /// Whether nothing waits that could be sent now: of an unfinished record, nothing can.
    pub fn is_flushed(&self, kind: Kind) -> bool {
        match kind {
            Kind::Stream => self.bytes.is_empty(),
            Kind::SeqPacket => self.records.is_empty(),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Copies guest bytes to the end.
    pub fn push(&mut self, payload: &[VolatileSlice]) {
        for slice in payload {
            let start = self.bytes.len();
            self.bytes.resize(start + slice.len(), 0);
            let (front, back) = self.bytes.as_mut_slices();
            // The new bytes are the last ones, which may lie around the ring's end.
            let split = front.len();
            let taken = copy_out(&[*slice], &mut front[start.min(split)..]);
            let rest = slice.offset(taken).expect("at most the slice was taken");
            copy_out(&[rest], &mut back[start.saturating_sub(split)..]);
        }
    }

    /// The bytes after the last complete record are one, if there are any.
    pub fn end_record(&mut self) {
        if let Some(len) = (self.bytes.len() - self.complete).checked_sub(1) {
            self.records.push_back(u16::try_from(len).expect("a record fits into the room for records"));
            self.complete = self.bytes.len();
        }
    }

    /// Gives `peer` as much as it takes; the bytes it took, and why it took no more.
    pub fn flush(&mut self, kind: Kind, peer: &mut dyn Peer) -> (usize, io::Result<()>) {
        let mut sent = 0;
        while !self.is_flushed(kind) {
            let wanted = match kind {
                Kind::Stream => self.bytes.len(),
                Kind::SeqPacket => self.records.front().map_or(0, |len| usize::from(*len) + 1),
            };
            let (front, back) = self.bytes.as_mut_slices();
            let first = wanted.min(front.len());
            let parts =
                [VolatileSlice::from(&mut front[..first]), VolatileSlice::from(&mut back[..wanted - first])];
            let parts = if wanted == first { &parts[..1] } else { &parts[..] };
            match peer.send(parts) {
                Ok(n) => {
                    let n = if kind == Kind::SeqPacket { wanted } else { n.min(wanted) };
                    self.bytes.drain(..n);
                    if self.records.pop_front().is_some() {
                        self.complete -= n;
                    }
                    sent += n;
                }
                Err(error) => return (sent, Err(error)),
            }
        }
        if self.bytes.is_empty() {
            self.clear();
        }
        (sent, Ok(()))
    }
}
