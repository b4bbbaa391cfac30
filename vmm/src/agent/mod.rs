//! The agent of a server: many microVMs, whose they are, and what they use. It talks to a VMM only through its socket.

pub mod api;
pub mod args;
pub mod audit;
pub mod clock;
pub mod config;
pub mod core;
mod doctor;
pub mod events;
pub mod files;
pub mod host;
pub mod images;
mod metering;
pub mod model;
pub mod net;
mod network;
mod openmetrics;
pub mod operations;
mod ops;
pub mod progress;
pub mod records;
pub mod seed;
pub mod state;
pub mod steps;
pub mod store;
pub mod usage;
pub mod vms;
pub mod volumes;
