//! From a kernel image to a guest that can start: load it, place the initrd, write the boot protocol's structures.

pub mod cmdline;
pub mod kernel;
pub mod params;
