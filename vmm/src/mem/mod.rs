//! Guest RAM on the host, moving bytes between it and descriptors, and the process's own heap. One of the rooms with `unsafe`.

pub mod heap;
pub mod ram;
pub mod uring;
pub mod vectored;
