//! What a record says about a request, before it has a place in the chain.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::chain::Digest;

/// Longest `path`, `error` and `note`, in bytes; what is longer is cut, and ends in `…`.
pub const TEXT_LEN_MAX: usize = 4 << 10;
/// Longest of the other texts, in bytes.
pub const WORD_LEN_MAX: usize = 256;
/// Groups of a requestor that are recorded at most: the first ones.
pub const GROUPS_MAX: usize = 64;

/// Who asked, as the kernel vouches for it (`SO_PEERCRED`, `SO_PEERGROUPS`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Who {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id when it connected.
    pub pid: i32,
    /// Supplementary groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
    /// The user's name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Who {
    /// This process.
    #[must_use]
    pub fn me() -> Self {
        use nix::unistd::{getegid, geteuid, getpid};
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw(), pid: getpid().as_raw(), ..Self::default() }
    }
}

/// Whether the requestor may do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It may.
    Allowed,
    /// It may not.
    Denied,
}

/// What is recorded of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Who asked.
    pub who: Who,
    /// Whose things it is about, if one tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// HTTP method; for what the agent does by itself, a word in capitals that is none.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// SHA-256 of the body, if one was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub request_sha256: Option<Digest>,
    /// Whether it was allowed.
    pub decision: Decision,
    /// The rule that decided, by name.
    #[serde(default)]
    pub rule: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What else has to be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Entry {
    /// What the agent itself did to its log.
    pub(super) fn of_agent(method: &str, path: String, subject: Option<Digest>, note: String) -> Self {
        Self {
            who: Who::me(),
            tenant: None,
            method: method.to_owned(),
            path,
            request_sha256: subject,
            decision: Decision::Allowed,
            rule: "agent".to_owned(),
            status: 200,
            error: None,
            note: Some(note),
        }
    }

    /// The same with every text cut to its bound: a requestor must not be able to stop the log by asking for something long.
    pub(super) fn bounded(mut self) -> Self {
        self.who.groups.truncate(GROUPS_MAX);
        for word in [&mut self.who.name, &mut self.tenant].into_iter().flatten() {
            clip(word, WORD_LEN_MAX);
        }
        clip(&mut self.method, WORD_LEN_MAX);
        clip(&mut self.rule, WORD_LEN_MAX);
        clip(&mut self.path, TEXT_LEN_MAX);
        for text in [&mut self.error, &mut self.note].into_iter().flatten() {
            clip(text, TEXT_LEN_MAX);
        }
        self
    }
}

/// Cuts `text` to `len_max` bytes, of which the last three say that it was cut.
fn clip(text: &mut String, len_max: usize) {
    const CUT: &str = "…";
    if text.len() > len_max {
        let mut end = len_max - CUT.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(CUT);
    }
}

/// An entry with its place in the chain, as a line says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Record {
    /// Its number; the first of a chain is 1, and none is left out.
    pub seq: u64,
    /// When it was written, by the wall clock: RFC 3339, UTC, to the nanosecond.
    pub time: String,
    /// What is recorded.
    #[serde(flatten)]
    pub entry: Entry,
    /// The hash of the record before.
    #[schema(value_type = String)]
    pub prev: Digest,
    /// SHA-256 of the line up to here.
    #[schema(value_type = String)]
    pub hash: Digest,
}
