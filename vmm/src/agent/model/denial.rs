//! Refusals, as every answer that is no success shows them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of refusal, for programs; each has one HTTP status and one exit code of `yun`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DenialCode {
    /// The request itself is wrong (400).
    Invalid,
    /// Whoever asks may not (403).
    Forbidden,
    /// There is no such thing (404). Also for what the caller may not see.
    NotFound,
    /// The method does not exist here (405).
    MethodNotAllowed,
    /// The generation is not newer than what is wanted already (409).
    StaleGeneration,
    /// It exists and is different (409).
    Exists,
    /// It is in use (409).
    InUse,
    /// Its present state does not allow it (409).
    State,
    /// A tenant's quota would be exceeded (409).
    QuotaExceeded,
    /// The host has not enough left (409).
    CapacityExceeded,
    /// The request or what it holds is too large (413).
    TooLarge,
    /// Too many connections or operations at once (429).
    TooMany,
    /// The host fails (500).
    Host,
    /// The host is draining, or the agent is shutting down (503).
    Unavailable,
    /// A deadline passed (504).
    Timeout,
    /// The host has no room on its disk (507).
    NoSpace,
}

impl DenialCode {
    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::StaleGeneration
            | Self::Exists
            | Self::InUse
            | Self::State
            | Self::QuotaExceeded
            | Self::CapacityExceeded => 409,
            Self::TooLarge => 413,
            Self::TooMany => 429,
            Self::Host => 500,
            Self::Unavailable => 503,
            Self::Timeout => 504,
            Self::NoSpace => 507,
        }
    }
}

/// Why a request was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct Denial {
    /// What kind.
    pub code: DenialCode,
    /// What was wrong, with the field and the value.
    pub message: String,
    /// What would be accepted, or what to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

impl Denial {
    /// A refusal.
    pub fn new(code: DenialCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(DenialCode::Invalid, message)
    }

    /// There is none.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        Self::new(DenialCode::NotFound, format!("there is no {what} {name}"))
    }

    /// The host fails, in these words.
    pub fn host(message: impl Into<String>) -> Self {
        Self::new(DenialCode::Host, message)
    }
}

/// The detail of an [`ErrorBody`]: a [`Denial`].
pub type ErrorDetail = Denial;

/// Body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Why.
    pub error: Denial,
}
