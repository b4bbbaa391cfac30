//! The agent of a server: many microVMs, whose they are, and what they use. It talks to a VMM only through its socket.
//!
//! ```text
//!  socket ──> api (who asks, may they, audit) ──> ops (check, store, then act) ──> one task a VM (vms::supervise)
//!                                                   │                                │ decide: wanted + actual ──> step
//!                                                   ▼                                ▼
//!                    state (memory) <──load── store (redb) <──before each side effect── launch: jailer becomes VMM
//! ```
//! One thread runs everything that is short; what blocks (files, `nft`, the store's flushes) runs on a few others. What is
//! asked is answered from memory; what is changed is in the store before it is done, and before it is acknowledged. A VMM
//! is no part of the agent: it has its own process group, cgroup and jail, its console is a FIFO that outlives both ends,
//! and its process is known by number, start time and boot. So an agent may die anywhere ([`steps`] lists the places that are
//! tried), and the next one finds each VM ([`vms::supervise::find`]), finishes or undoes what was half done, and leaves alone
//! what it is not sure of.
//!
//! | room | one idea |
//! |---|---|
//! | [`model`], [`records`] | what goes over the socket; what is in the store |
//! | [`state`] | everything that is known, and what follows from it alone: quotas, capacity, views |
//! | [`store`], [`events`], [`operations`], [`audit`] | what must last; what happened; what is under way; who asked for what |
//! | `ops` | what can be asked: tenants, VMs, volumes, images, the host |
//! | [`vms`] | a VM's process, console, API, and the task that makes what is what is wanted |
//! | [`images`], [`volumes`], [`seed`], [`files`] | files: content-addressed, sparse, never half made |
//! | [`net`], `network` | links and rules on the host; how the agent uses them |
//! | [`usage`], `metering`, `fresh` | records without gap or double count; how counters are read; once for all who ask |
//! | [`host`], `doctor`, `openmetrics` | what the server has; what is wrong or left over; counters |
//! | [`api`] | HTTP: connections, authorisation, requests, streams |

pub mod api;
pub mod args;
pub mod audit;
pub mod clock;
pub mod config;
pub mod core;
mod doctor;
pub mod events;
pub mod files;
mod fresh;
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
