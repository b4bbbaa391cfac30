//! A lean PCI: one segment, one bus, single-function devices (PCI Local Bus 3.0, PCI Express ECAM).
//!
//! [`root`] finds a function by the two ways of configuration access; [`config`] is what one function answers there; [`msix`]
//! is how it interrupts. Not here: INTx, I/O ports of functions, bridges, relocation: the machine places BARs before the guest
//! boots, and they stay.

pub mod config;
pub mod msix;
pub mod root;
