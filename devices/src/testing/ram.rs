//! Guest RAM without a guest.

use std::sync::Arc;

use crate::mem::{Bytes, GuestAddress, GuestMemoryMmap, Ram};

/// One region of zeroed RAM at address 0.
///
/// # Panics
/// If the host has no memory left.
#[must_use]
pub fn flat(bytes: usize) -> Ram {
    regions(&[(0, bytes)])
}

/// Several regions of zeroed RAM: (first address, bytes), ascending.
///
/// # Panics
/// If they overlap, or the host has no memory left.
#[must_use]
pub fn regions(ranges: &[(u64, usize)]) -> Ram {
    let ranges: Vec<_> = ranges.iter().map(|&(base, len)| (GuestAddress(base), len)).collect();
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("test RAM is disjoint and small"))
}

/// The bytes at `addr..addr + len`.
///
/// # Panics
/// If they are not RAM.
#[must_use]
pub fn read(ram: &Ram, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read_slice(&mut bytes, GuestAddress(addr)).expect("the test reads RAM");
    bytes
}

/// Puts `bytes` at `addr`.
///
/// # Panics
/// If that is not RAM.
pub fn write(ram: &Ram, addr: u64, bytes: &[u8]) {
    ram.write_slice(bytes, GuestAddress(addr)).expect("the test writes RAM");
}
