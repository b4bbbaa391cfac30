//! Guest RAM as devices see it.
//!
//! vCPUs and other devices write guest RAM while a device looks at it, so nothing here hands out a Rust reference into it:
//! values are copied out once, checked, and never read again; bulk data moves between guest ranges and the host by
//! [`vm_memory::VolatileSlice`].

use std::sync::Arc;

pub use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// All RAM of one guest, shared by the vCPUs' memory slots and the devices.
pub type Ram = Arc<GuestMemoryMmap<()>>;
