//! The API of one microVM: HTTP/1.1 on a Unix socket, as Firecracker speaks it, with additions.
//!
//! ```text
//!  client ── socket ── server ── route ──▶ Command ──▶ driver thread
//!                        ▲                                 │
//!                        └────────── reply ◀── Answer ─────┘
//! ```
//!
//! `server` runs on its own thread, `yun_api`, and owns connections, limits and deadlines; it answers metrics and
//! events itself, so they are there while the driver is busy. `route` and `reply` are pure. `socket` makes the
//! socket appear and disappear. No request is ever on the path of guest I/O.

mod body;
mod counters;
mod head;
mod link;
mod openapi;
mod reply;
mod route;
mod server;
mod socket;

pub use counters::ApiCounters;
pub use openapi::document;
pub use openapi::document as openapi_document;
pub use reply::{ContentType, Reply};
pub use route::{ApiError, Asked, Method, Routed, route};
pub use server::{ApiServer, BODY_LEN_MAX_DEFAULT, Limits, Services, serve_connection};
pub use socket::{ApiSocket, SocketError};

/// The description of this API, as JSON; generated from the types, and held equal to them by a test.
pub const OPENAPI_DOCUMENT: &str = include_str!("../../openapi.json");
