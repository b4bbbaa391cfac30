//! Several transfers of one backing at a time, finished in any order.
//!
//! ```text
//!   push(tag, ..) push push ──> poll: all of them begin, whatever is finished is known ──> pop: (tag, result) in any order
//!                                 ^── again when `source` becomes readable
//! ```

use std::io;
use std::os::fd::RawFd;

use crate::mem::{Ram, VolatileSlice};

/// A transfer. Offsets are bytes from the start of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// Disk to guest.
    Read {
        /// Where on the disk.
        offset: u64,
    },
    /// Guest to disk.
    Write {
        /// Where on the disk.
        offset: u64,
    },
    /// What was written and answered before is put on stable storage. No data.
    Flush,
}

/// A transfer that is over: its tag, and the bytes moved, which may be less than asked for.
#[derive(Debug)]
pub struct Finished {
    /// As it was pushed.
    pub tag: u16,
    /// What the host says. After `Interrupted` and `WouldBlock` the caller does it again by other means.
    pub result: io::Result<usize>,
}

/// Does transfers of a backing. Called by one thread. Dropping it waits until nothing is in flight: the host touches guest
/// memory no more afterwards.
pub trait Engine: Send {
    /// Takes a transfer; it begins with the next `poll` or `wait`. `data` are guest memory of `ram`, which the engine keeps until
    /// the transfer is over. The caller has no more in flight than the depth it asked for, and no two of one tag.
    fn push(&mut self, tag: u16, transfer: Transfer, ram: &Ram, data: &[VolatileSlice]);

    /// Begins what was pushed, and learns what is finished. Does not wait.
    ///
    /// # Errors
    /// What the host says: what has not begun begins with the next call.
    fn poll(&mut self) -> io::Result<()>;

    /// The same, and waits until something is finished. Something is in flight.
    ///
    /// # Errors
    /// As [`Engine::poll`].
    fn wait(&mut self) -> io::Result<()>;

    /// A finished transfer, once.
    fn pop(&mut self) -> Option<Finished>;

    /// Becomes readable, edge-triggered, when something is finished that `poll` has not learnt of.
    fn source(&self) -> RawFd;
}
