//! The devices of a Yun microVM: virtio block, net, entropy and sockets over two transports, a UART and a keyboard controller.
//!
//! | room | one idea |
//! |---|---|
//! | [`mem`] | guest RAM: checked copies in and out, never a reference into it |
//! | [`irq`] | the only way a device reaches the guest's CPU |
//! | [`bus`] | an address map: pure lookup, no device logic |
//! | [`limiter`] | token buckets over a [`clock`]: how much, when again, and together with whom |
//! | [`metrics`] | counters that one thread writes and anybody reads |
//! | [`virtio`] | the contract between a device, its transport and whoever runs it |
//! | [`pci`] | configuration space, the root bus, MSI-X |
//! | [`serial`], [`i8042`] | the console and the keyboard controller |
//!
//! Deliberately absent: KVM, HTTP, threads. Whoever owns a machine gives a device its RAM, its interrupt and a thread to run on;
//! a transport asks for that thread through [`virtio::Owner`].
#![forbid(unsafe_code)]

pub mod bus;
pub mod clock;
pub mod i8042;
pub mod irq;
pub mod limiter;
pub mod log_limit;
pub mod mem;
pub mod metrics;
pub mod pci;
pub mod serial;
#[cfg(feature = "testing")]
pub mod testing;
pub mod virtio;
