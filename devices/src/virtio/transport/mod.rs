//! The two ways a guest's driver reaches a virtio device (virtio 1.2 §4).
//!
//! [`core`] decides everything: features, status, queues, resets. [`mmio`] and [`pci`] decode registers and carry interrupts,
//! nothing else, so they can't drift apart.
//!
//! What the device's own thread may touch (status bits, interrupt bits, vectors) is atomic and lives outside the lock that
//! serialises the guest's register accesses: raising an interrupt never waits for a vCPU, and a reset may wait for the
//! device's thread while it holds that lock.

pub mod core;
pub mod mmio;
pub mod pci;
mod pci_common;
pub mod rings;
