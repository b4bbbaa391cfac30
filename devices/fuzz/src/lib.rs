//! The bodies of the fuzz targets, one module each, and what they share: [`Input`], the hostile [`guest`], the [`corpus`].
//!
//! `scripts/fuzz` lets a fuzzer look for inputs that make them panic; `scripts/test fuzz` runs them on the corpora.

pub mod corpus;
pub mod guest;
mod input;

pub mod block;
pub mod i8042;
pub mod msix;
pub mod net;
pub mod pci;
pub mod queue;
pub mod registers;
pub mod rng;
pub mod serial;
pub mod vsock;

pub use input::Input;

/// All targets.
pub const TARGETS: [corpus::Target; 10] = [
    ("block", block::run),
    ("i8042", i8042::run),
    ("msix", msix::run),
    ("net", net::run),
    ("pci", pci::run),
    ("queue", queue::run),
    ("registers", registers::run),
    ("rng", rng::run),
    ("serial", serial::run),
    ("vsock", vsock::run),
];

#[cfg(test)]
mod tests {
    #[test]
    fn every_input_of_the_corpora_passes() {
        crate::corpus::replay(env!("CARGO_MANIFEST_DIR"), &crate::TARGETS);
    }
}
