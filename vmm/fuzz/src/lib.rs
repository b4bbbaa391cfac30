//! The bodies of the fuzz targets, one module each, and what they share: a microVM without a machine, and guest RAM that shows
//! where it was written.
//!
//! `scripts/fuzz` lets a fuzzer look for inputs that make them panic; `scripts/test fuzz` runs them on the corpora.

mod memory;
mod microvm;

pub mod api;
pub mod config;
pub mod http;
pub mod initrd;
pub mod kernel;

use devices_fuzz::corpus;

/// All targets.
pub const TARGETS: [corpus::Target; 5] = [
    ("api", api::run),
    ("config", config::run),
    ("http", http::run),
    ("initrd", initrd::run),
    ("kernel", kernel::run),
];

#[cfg(test)]
mod tests {
    #[test]
    fn every_input_of_the_corpora_passes() {
        crate::corpus::replay(env!("CARGO_MANIFEST_DIR"), &crate::TARGETS);
    }
}
