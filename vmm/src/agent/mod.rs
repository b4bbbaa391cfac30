//! The agent of a server: many microVMs, whose they are, and what they use. It talks to a VMM only through its socket.

pub mod api;
pub mod model;
pub mod store;
