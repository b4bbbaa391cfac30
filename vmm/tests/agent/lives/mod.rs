//! What the agent's things do when nothing goes wrong but what is theirs to handle.
//!
//! | room | one idea |
//! |---|---|
//! | [`power`] | start, stop, kill, pause, resume, reset, time to live |
//! | [`ends`] | guests that end by themselves, and restart policies |
//! | [`operations`] | long work is waited for and cancelled |
//! | [`streams`] | consoles, logs, events |
//! | [`ledgers`] | usage and audit |
//! | [`files`] | images and volumes |
//! | [`plugs`] | volumes that come and go while the guest runs |
//! | [`hosts`] | capacity, drain, shutdown, reboot, leftovers |
//! | [`roles`] | who may do what |

mod ends;
mod files;
mod hosts;
mod ledgers;
mod operations;
mod plugs;
mod power;
mod roles;
mod streams;
