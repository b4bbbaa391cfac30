//! Between those who ask and the microVM: commands, what is allowed when, and what was configured.
//!
//! ```text
//!   api thread ──Envelope──▶ driver thread ── admit(state, command)? ──▶ VmResources, machine
//!        ▲                        │
//!        └──────── Answer ────────┘   (a reply slot that is dropped answers "gone" by itself)
//! ```
//!
//! One driver thread owns a microVM and is alone in changing it. `lifecycle` is a pure function over the state and a
//! command; `config` keeps what was configured before the start and touches the host only through [`HostFiles`].

mod command;
mod config;
mod denial;
pub mod driver;
pub mod end;
mod files;
mod groups;
mod lifecycle;
mod planning;
mod plug;

pub use command::{Answer, Command, CommandSender, Configure, Envelope, Outcome, ReplySlot, Unplug, channel};
pub use config::{BootEntry, DriveChange, DriveEntry, HostFiles, NetEntry, VmResources, VsockEntry};
pub use denial::{BootSourceError, Denial, DriveError, GroupError, NetError, VsockError};
pub use lifecycle::{State, Verdict, admit};
