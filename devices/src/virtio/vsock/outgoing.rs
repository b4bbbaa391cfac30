//! What a connection has to say to the guest: its answer, what the peer sends, what is shut, credit.

use std::io::{self, ErrorKind};

use super::connection::{Connection, Reset, State};
use super::host::{RECORD_BYTES_MAX, Received};
use super::packet::{Kind, Op, SEQ_EOM, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND};
use crate::mem::VolatileSlice;
use crate::virtio::queue::{copy_in, total_len, truncate};

/// The next packet for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// What it is about.
    pub op: Op,
    /// Its flags.
    pub flags: u32,
    /// Bytes of payload, which are in place.
    pub len: usize,
    /// Whether the guest has to do something about it.
    pub expects: bool,
}

impl Next {
    fn control(op: Op) -> Self {
        Self { op, flags: 0, len: 0, expects: op == Op::Request }
    }
}

impl Connection {
    /// The next packet for the guest, whose payload is put at the start of `into`; `None` if there is nothing now. Bytes of a
    /// stream may fill all of `into`, to be cut into several packets; a part of a record has at most `first` bytes. There is no
    /// payload if `may_receive`, which is asked when there may be some, says so.
    ///
    /// # Errors
    /// [`Reset`]: the connection is over.
    pub fn next<'m>(
        &mut self,
        into: &[VolatileSlice<'m>],
        first: usize,
        scratch: &mut Vec<VolatileSlice<'m>>,
        may_receive: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Next>, Reset> {
        match self.state {
            State::Asked => {
                self.state = State::Requested;
                return Ok(Some(Next::control(Op::Request)));
            }
            State::Requested | State::Draining => return Ok(None),
            State::Open => {}
        }
        if std::mem::take(&mut self.owes_response) {
            self.readable = true;
            return Ok(Some(Next::control(Op::Response)));
        }
        if self.host_shut & !self.host_told != 0 {
            return Ok(Some(self.tell_shut()));
        }
        let wants = self.readable && (self.guest_shut & SHUT_RECEIVE | self.host_shut & SHUT_SEND) == 0;
        if wants {
            let free = self.outbound.free() as usize;
            if free > 0 && !may_receive() {
                return Ok(self.owed_credit());
            }
            if free > 0 {
                let data = match self.kind {
                    Kind::Stream => self.bytes(into, scratch, free.min(total_len(into)))?,
                    Kind::SeqPacket => self.part_of_record(into, free.min(first))?,
                };
                if let Some((len, flags)) = data {
                    self.outbound.send(u32::try_from(len).expect("no more than there is credit for"));
                    return Ok(Some(Next { op: Op::Rw, flags, len, expects: false }));
                }
                if self.host_shut & !self.host_told != 0 {
                    return Ok(Some(self.tell_shut()));
                }
            } else if !std::mem::replace(&mut self.asked_for_credit, true) {
                return Ok(Some(Next::control(Op::CreditRequest)));
            }
        }
        Ok(self.owed_credit())
    }

    fn owed_credit(&self) -> Option<Next> {
        self.owes_credit.then(|| Next::control(Op::CreditUpdate))
    }

    fn tell_shut(&mut self) -> Next {
        self.host_told = self.host_shut;
        Next { op: Op::Shutdown, flags: self.host_told, len: 0, expects: self.host_told == SHUT_BOTH }
    }

    /// Bytes of the peer's; `None` if there are none now, or, as `host_shut` says, no more.
    fn bytes<'m>(
        &mut self,
        into: &[VolatileSlice<'m>],
        scratch: &mut Vec<VolatileSlice<'m>>,
        room: usize,
    ) -> Result<Option<(usize, u32)>, Reset> {
        scratch.clear();
        scratch.extend_from_slice(into);
        match self.peer.recv(truncate(scratch, room)) {
            Ok(Received { bytes: 0, .. }) => {
                self.host_shut |= SHUT_SEND;
                Ok(None)
            }
            Ok(Received { bytes, all }) => {
                self.readable = !all || self.in_pieces;
                Ok(Some((bytes.min(room), 0)))
            }
            Err(error) => self.recv_failed(error),
        }
    }

    /// The same of the record that is on its way, or of the next.
    fn part_of_record(&mut self, into: &[VolatileSlice], room: usize) -> Result<Option<(usize, u32)>, Reset> {
        if self.record.is_empty() {
            match self.peer.recv_record(&mut self.record) {
                Ok(0) => {
                    self.host_shut |= SHUT_SEND;
                    return Ok(None);
                }
                // The guest keeps a record until it is whole: it would wait for ever.
                Ok(n) if n > RECORD_BYTES_MAX.min(self.outbound.alloc() as usize) => {
                    return Err(Reset::Host(io::Error::new(
                        ErrorKind::InvalidData,
                        "a record of more bytes than fit",
                    )));
                }
                Ok(_) => {}
                Err(error) => return self.recv_failed(error),
            }
        }
        let rest = &self.record[self.record_sent..];
        let len = copy_in(into, 0, &rest[..rest.len().min(room)]);
        self.record_sent += len;
        if self.record_sent < self.record.len() {
            return Ok(Some((len, 0)));
        }
        (self.record, self.record_sent) = (Vec::new(), 0);
        Ok(Some((len, SEQ_EOM)))
    }

    fn recv_failed(&mut self, error: io::Error) -> Result<Option<(usize, u32)>, Reset> {
        match error.kind() {
            ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(None)
            }
            _ => Err(error.into()),
        }
    }
}
