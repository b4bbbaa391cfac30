//! The VMs: one task each that makes what is what is wanted.

pub mod client;
pub mod console;
pub mod decide;
pub mod launch;
pub mod process;
