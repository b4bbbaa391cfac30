//! Who asked for what, what was decided and how it ended, in lines that can't be changed afterwards without it showing.
//!
//! ```text
//!   audit.jsonl.00000000000000004711   a full file: records 1 to 4711, and a footer that the host signed
//!   audit.jsonl                        records 4712 and on; the first carries the hash of record 4711
//!   audit.jsonl.lock                   held by the one process that writes
//! ```
//! A record is a line of JSON whose last two members are `prev`, the hash of the record before, and `hash`, the SHA-256 of
//! the line's own bytes up to the comma before `"hash"`. The bytes are the canonical form: nothing has to be parsed and
//! written again to check it, and `sha256sum` is enough to do so by hand. An export is such lines and a footer line with
//! first and last number, count and last hash, signed (ed25519) over its bytes up to the comma before `"signature"`.
//!
//! | room | one idea |
//! |---|---|
//! | [`entry`] | what is said about a request |
//! | [`chain`] | a record as a line, and whether the next line follows |
//! | [`footer`] | the signed last line |
//! | [`lines`] | lines of bounded length out of a reader |
//! | [`files`] | the names beside a log, and what a file holds |
//! | [`log`] | the file that is appended to |
//! | [`export`] | a range of records with a footer of its own |
//! | [`verify`](mod@verify) | an exported file alone, without the host |
//! | [`key`] | the host's key |
//!
//! What it can't show: that whoever holds the host's key did not write another history from the start. Exports that were
//! handed out earlier show that, because their last hash must be found again in every later one. Nor that whole lines at the
//! end of the *live* file were cut off, for these are not signed yet.

pub mod chain;
pub mod entry;
pub mod export;
pub mod files;
pub mod footer;
pub mod key;
pub mod lines;
pub mod log;
pub mod verify;

pub use chain::{Digest, Fault};
pub use entry::{Decision, Entry, Record, Who};
pub use export::ExportError;
pub use footer::{Footer, key_from_hex, key_to_hex};
pub use key::{KeyError, load_or_create_key};
pub use log::{AppendError, AuditLog, Durability, OpenError, Options};
pub use verify::{Verified, VerifyError, verify};

#[cfg(test)]
mod kill_tests;
#[cfg(test)]
mod testing;
