//! The agent of a server: many microVMs, whose they are, and what they use. It talks to a VMM only through its socket.

pub mod api;
pub mod clock;
pub mod config;
pub mod events;
pub mod files;
pub mod images;
pub mod model;
pub mod operations;
pub mod progress;
pub mod records;
pub mod seed;
pub mod store;
pub mod vms;
pub mod volumes;
pub mod audit;
pub mod usage;
