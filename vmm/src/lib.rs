//! The Yun virtual machine monitor.

pub mod api;
pub mod arch;
pub mod args;
pub mod boot;
pub mod control;
pub mod events;
pub mod host;
pub mod kvm;
pub mod logger;
pub mod machine;
pub mod mem;
pub mod metrics;
mod output;
pub mod spec;
mod utc;
pub mod vcpu;

/// Stack of a thread that serves a guest, in bytes: address space, of which only what is touched is memory.
pub(crate) const THREAD_STACK: usize = 256 << 10;
