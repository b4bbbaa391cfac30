//! The Yun virtual machine monitor.

pub mod control;
pub mod spec;
