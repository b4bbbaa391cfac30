//! The Yun virtual machine monitor.

pub mod api;
pub mod args;
pub mod control;
pub mod events;
pub mod logger;
pub mod metrics;
pub mod spec;
mod utc;
