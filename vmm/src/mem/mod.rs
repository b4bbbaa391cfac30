//! Guest RAM on the host, and moving bytes between it and descriptors. One of the rooms with `unsafe`.

pub mod ram;
pub mod vectored;
