//! A split virtqueue (virtio 1.2 §2.7) as a device sees it: chains that were checked once, answers that go out once.
//!
//! ```text
//!  Ring::pop ──> Chain: head + segments {address, length}, readable ones first   (nothing in it is trusted to be RAM yet)
//!      chain::resolve ──> Vec<VolatileSlice>: the same bytes, inside RAM         (the only way to touch them)
//!  Ring::finish(head, written) ──> used ring        Ring::wants_interrupt: once per batch
//! ```
//! One batch, in any device: [`Ring::suppress_kicks`], then `pop` until the bound of the batch or until [`Ring::rearm`] says that
//! nothing came in meanwhile (disks have [`Burst`] and cards [`Linger`] look for more first), then one interrupt if
//! [`Ring::wants_interrupt`], which a queue to send by may owe for a while ([`Deferral`]). Errors here mean that the driver broke
//! the rules of the queue: the device asks to be reset (§2.1.2) and serves nothing more.

mod burst;
#[cfg(test)]
mod burst_tests;
mod chain;
mod deferral;
mod linger;
mod look;
mod ring;
#[cfg(test)]
mod tests;

pub use burst::{Burst, Next};
pub use chain::{Chain, ChainError, Segment, advance, copy_in, copy_out, resolve, total_len, truncate};
pub use deferral::{Deferral, Due};
pub use linger::Linger;
pub use ring::{Ring, RingError};

/// VIRTIO_F_INDIRECT_DESC (virtio 1.2 §6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (virtio 1.2 §6).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1 (virtio 1.2 §6).
pub const F_VERSION_1: u64 = 1 << 32;

/// The transport-independent features that every device here offers.
pub const F_COMMON: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;
