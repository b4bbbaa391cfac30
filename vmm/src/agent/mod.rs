//! The agent of a server: many microVMs, whose they are, and what they use. It talks to a VMM only through its socket.

pub mod api;
pub mod clock;
pub mod config;
pub mod model;
pub mod records;
pub mod store;
pub mod vms;
