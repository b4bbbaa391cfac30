//! A lean PCI: one segment, one bus, single-function devices (PCI Local Bus 3.0, PCI Express ECAM).
//!
//! [`root`] finds a function by the two ways of configuration access; [`config`] is what one function answers there; [`msix`]
//! is how it interrupts; [`hotplug`] is how functions come and go. Not here: INTx, I/O ports of functions, bridges, relocation:
//! the machine places BARs, and they stay.

pub mod config;
pub mod hotplug;
pub mod msix;
pub mod root;
