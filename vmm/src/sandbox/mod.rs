//! What a broken guest, or a broken VMM, can reach: as little as possible. One of the rooms with `unsafe`.
//!
//! | room | one idea |
//! |---|---|
//! | [`seccomp`] | the system calls of each thread, and nothing else |
//! | [`landlock`] | what no VMM needs of files, networks and other processes |
//! | [`harden`] | not to be traced, dumped, merged, or run beside a stranger |
//!
//! All of it the process does to itself, whoever started it and however.

pub mod harden;
pub mod landlock;
pub mod seccomp;
