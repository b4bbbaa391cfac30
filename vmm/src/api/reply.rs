//! From the outcome of a request to status and body: the one place that decides it.

use hyper::StatusCode;
use serde::Serialize;

use crate::control::{Answer, Denial, Outcome};
use crate::spec::Fault;

/// What kind of text a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// One JSON value.
    Json,
    /// One JSON value per line.
    JsonLines,
    /// OpenMetrics text.
    OpenMetrics,
}

impl ContentType {
    /// As the header has it.
    pub fn header(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::JsonLines => "application/x-ndjson",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Status and body of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status; its reason phrase is left empty, as Firecracker leaves it.
    pub status: StatusCode,
    /// What kind of text the body is.
    pub content_type: ContentType,
    /// The body; empty if the answer has none.
    pub body: Vec<u8>,
}

impl Reply {
    /// Success, with nothing to show.
    pub fn done() -> Self {
        Self { status: StatusCode::NO_CONTENT, content_type: ContentType::Json, body: Vec::new() }
    }

    /// Success, with a text to show.
    pub fn shows(content_type: ContentType, body: impl Into<Vec<u8>>) -> Self {
        Self { status: StatusCode::OK, content_type, body: body.into() }
    }

    /// A refusal, with its text.
    pub fn refused(fault_message: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            ..Self::shows(ContentType::Json, json(&Fault { fault_message }))
        }
    }
}

impl From<&Answer> for Reply {
    fn from(answer: &Answer) -> Self {
        match answer {
            Ok(Outcome::Done) => Self::done(),
            Ok(Outcome::Info(info)) => Self::shows(ContentType::Json, json(info)),
            Ok(Outcome::Version(version)) => Self::shows(ContentType::Json, json(version)),
            Ok(Outcome::VmConfig(config)) => Self::shows(ContentType::Json, json(config)),
            Ok(Outcome::MachineConfig(config)) => Self::shows(ContentType::Json, json(config)),
            Ok(Outcome::RateLimiter(limiter)) => Self::shows(ContentType::Json, json(limiter)),
            // Firecracker answers 400 to everything it refuses, whoever is at fault, and clients expect no other.
            Err(
                denial @ (Denial::BeforeStart
                | Denial::AfterStart
                | Denial::NoPci
                | Denial::NoDevice(_)
                | Denial::RootDevice(_)
                | Denial::Kept { .. }
                | Denial::Ended
                | Denial::Gone
                | Denial::BootSource(_)
                | Denial::MachineConfig(_)
                | Denial::Drive(_)
                | Denial::Net(_)
                | Denial::Group(_)
                | Denial::Entropy(_)
                | Denial::Vsock(_)
                | Denial::Logger(_)
                | Denial::Metrics(_)
                | Denial::Start(_)
                | Denial::Internal(_)),
            ) => Self::refused(&denial.to_string()),
        }
    }
}

/// JSON of one of our own types.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types have string keys only, and their serializers don't fail")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{MachineConfig, Version, VmInfo, VmStatus};

    fn reply(answer: Answer) -> (u16, String) {
        let reply = Reply::from(&answer);
        (reply.status.as_u16(), String::from_utf8(reply.body).unwrap())
    }

    #[test]
    fn every_outcome_has_its_status_and_body() {
        assert_eq!(reply(Ok(Outcome::Done)), (204, String::new()));
        assert_eq!(
            reply(Ok(Outcome::Version(Version::default()))),
            (200, r#"{"firecracker_version":"1.17.0"}"#.to_owned())
        );
        let (status, body) = reply(Ok(Outcome::Info(VmInfo::new("i", VmStatus::Running))));
        assert_eq!((status, body.contains(r#""state":"Running""#)), (200, true));
        assert_eq!(reply(Ok(Outcome::VmConfig(Box::default()))).0, 200);
        assert_eq!(reply(Ok(Outcome::MachineConfig(MachineConfig::default()))).0, 200);
    }

    #[test]
    fn a_denial_is_400_with_its_text_as_fault_message_and_quotes_escaped() {
        assert_eq!(
            reply(Err(Denial::BeforeStart)),
            (
                400,
                r#"{"fault_message":"The requested operation is not supported before starting the microVM."}"#.to_owned()
            )
        );
        assert_eq!(
            reply(Err(Denial::Internal("a \"b\"\n".to_owned()))).1,
            r#"{"fault_message":"Internal VMM error: a \"b\"\n"}"#
        );
        assert!(reply(Err(Denial::Gone)).1.contains("it is gone"));
    }
}
