//! What can go wrong with a command, in words, and the exit code that says it to programs.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::agent::model::{Denial, DenialCode, Operation, OperationState};

/// Done.
pub const OK: u8 = 0;
/// It failed, on the host or here.
pub const FAILED: u8 = 1;
/// The command line, or what it gives to the agent, is wrong.
pub const USAGE: u8 = 2;
/// There is no such thing.
pub const NOT_FOUND: u8 = 3;
/// Refused as things are.
pub const REFUSED: u8 = 4;
/// No agent answers.
pub const UNREACHABLE: u8 = 5;
/// Whoever asks may not.
pub const FORBIDDEN: u8 = 6;
/// A time-out.
pub const TIMEOUT: u8 = 124;
/// Interrupted by SIGINT; 128 and the signal's number in general.
pub const INTERRUPTED: u8 = 130;

/// The exit codes, as help and manual page show them.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (OK, "done"),
    (FAILED, "it failed, on the host or here; `doctor` found an error; a file does not verify"),
    (USAGE, "the command line is wrong, or the agent says that what it was asked for is"),
    (NOT_FOUND, "there is no such thing, or none that you may see"),
    (
        REFUSED,
        "refused as things are: it exists, is in use, in another state, over a quota, the host is draining",
    ),
    (UNREACHABLE, "no agent answers on the socket"),
    (FORBIDDEN, "you may not"),
    (TIMEOUT, "a time-out"),
    (INTERRUPTED, "interrupted (SIGINT); 143 by SIGTERM, 129 by SIGHUP. What was begun goes on"),
];

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The agent refused.
    #[error("{0}")]
    Refused(Denial),
    /// The command line is wrong in a way that its grammar does not see.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What would be accepted.
        hint: String,
    },
    /// Nobody listens.
    #[error("no agent answers on {}", socket.display())]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket is closed to the caller.
    #[error("you may not open {}", socket.display())]
    Locked {
        /// Which.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke, or what came over it is not HTTP.
    #[error("the agent broke off while it answered {request}")]
    Broken {
        /// Method and path.
        request: String,
        /// What happened.
        source: hyper::Error,
    },
    /// The answer is not what this version of `yun` knows.
    #[error("the agent's answer to {request} is not understood: {source}")]
    Strange {
        /// Method and path.
        request: String,
        /// Where it differs.
        source: serde_json::Error,
    },
    /// It took too long.
    #[error("{what} took longer than {} s", after.as_secs())]
    Late {
        /// What.
        what: String,
        /// The limit.
        after: Duration,
    },
    /// Long work failed or was cancelled.
    #[error("{}", in_words(.0))]
    Operation(Box<Operation>),
    /// The user does not wait any longer; it goes on.
    #[error("detached from operation {id}, which goes on")]
    Detached {
        /// The operation.
        id: String,
        /// By which signal.
        signal: Signal,
    },
    /// A signal ended it.
    #[error("interrupted by {}", signal.as_str())]
    Interrupted {
        /// Which.
        signal: Signal,
    },
    /// A file here.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The terminal, or a descriptor.
    #[error("{what}: {source}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Where the output went can't take it.
    #[error("the output can't be written")]
    Output(#[from] io::Error),
    /// It failed, in these words.
    #[error("{message}")]
    Failed {
        /// What failed.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

fn in_words(operation: &Operation) -> String {
    let what = super::operation::describe(operation);
    match (&operation.error, operation.state) {
        (Some(denial), _) => format!("{what}: {}", denial.message),
        (None, OperationState::Cancelled) => format!("{what} was cancelled, and is undone"),
        (None, _) => format!("{what} failed"),
    }
}

impl Failure {
    /// A wrong command line.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> u8 {
        match self {
            Self::Refused(denial) => exit_of(denial.code),
            Self::Operation(operation) => {
                operation.error.as_ref().map_or(FAILED, |denial| exit_of(denial.code))
            }
            Self::Usage { .. } => USAGE,
            Self::Unreachable { .. } => UNREACHABLE,
            Self::Locked { .. } => FORBIDDEN,
            Self::Late { .. } => TIMEOUT,
            Self::Detached { signal, .. } | Self::Interrupted { signal } => of_signal(*signal),
            // Whoever reads has enough: `yun ls | head -n 1`.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => OK,
            Self::Broken { .. }
            | Self::Strange { .. }
            | Self::File { .. }
            | Self::System { .. }
            | Self::Output(_)
            | Self::Failed { .. } => FAILED,
        }
    }

    /// As the agent would say it: code, message, hint.
    #[must_use]
    pub fn denial(&self) -> Denial {
        let of = |code| Denial::new(code, self.to_string());
        match self {
            Self::Refused(denial) => denial.clone(),
            Self::Operation(operation) => match &operation.error {
                Some(denial) => Denial { hint: denial.hint.clone(), ..of(denial.code) },
                None => of(DenialCode::State),
            },
            Self::Usage { hint, .. } => of(DenialCode::Invalid).hint(hint),
            Self::Unreachable { source, .. } => {
                Denial::new(DenialCode::Unavailable, format!("{self}: {source}")).hint(
                    "is it running? `systemctl status yund`; another socket: --socket PATH or $YUN_SOCKET",
                )
            }
            Self::Locked { source, .. } => Denial::new(DenialCode::Forbidden, format!("{self}: {source}"))
                .hint(
                    "root and members of the group yun-admin may, and whom a tenant was granted to: `id -nG`",
                ),
            Self::Late { .. } => of(DenialCode::Timeout),
            Self::Detached { id, .. } => of(DenialCode::Timeout)
                .hint(format!("`yun operation wait {id}` waits for it, `yun operation cancel {id}` ends it")),
            Self::Interrupted { .. } => of(DenialCode::Timeout),
            Self::Broken { source, .. } => Denial::host(format!("{self}: {source}"))
                .hint("what was asked for may have been done: look before you repeat it"),
            Self::Output(source) => Denial::host(format!("{self}: {source}")),
            Self::Strange { .. } => Denial::host(self.to_string())
                .hint("agent and yun may be of different versions: `yun --version`, `yun host show`"),
            Self::File { .. } | Self::System { .. } => Denial::host(self.to_string()),
            Self::Failed { hint, .. } => Denial { hint: hint.clone(), ..Denial::host(self.to_string()) },
        }
    }

    /// Whether nobody needs to be told.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// The exit code for a signal: 128 and its number.
#[must_use]
pub fn of_signal(signal: Signal) -> u8 {
    u8::try_from(signal as i32).map_or(FAILED, |number| number.saturating_add(128))
}

fn exit_of(code: DenialCode) -> u8 {
    match code {
        DenialCode::Invalid | DenialCode::TooLarge => USAGE,
        DenialCode::Forbidden => FORBIDDEN,
        DenialCode::NotFound => NOT_FOUND,
        DenialCode::StaleGeneration
        | DenialCode::Exists
        | DenialCode::InUse
        | DenialCode::State
        | DenialCode::QuotaExceeded
        | DenialCode::CapacityExceeded
        | DenialCode::TooMany
        | DenialCode::Unavailable => REFUSED,
        DenialCode::Timeout => TIMEOUT,
        DenialCode::MethodNotAllowed | DenialCode::Host | DenialCode::NoSpace => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_the_exit_code_that_is_documented() {
        let refused = |code| Failure::Refused(Denial::new(code, "x"));
        let socket = PathBuf::from("/s");
        for (failure, code) in [
            (refused(DenialCode::Invalid), 2),
            (refused(DenialCode::NotFound), 3),
            (refused(DenialCode::StaleGeneration), 4),
            (refused(DenialCode::QuotaExceeded), 4),
            (refused(DenialCode::Unavailable), 4),
            (refused(DenialCode::Forbidden), 6),
            (refused(DenialCode::Timeout), 124),
            (refused(DenialCode::Host), 1),
            (Failure::usage("x", "y"), 2),
            (Failure::Unreachable { socket: socket.clone(), source: io::Error::other("x") }, 5),
            (Failure::Locked { socket, source: io::Error::other("x") }, 6),
            (Failure::Late { what: "x".to_owned(), after: Duration::from_secs(1) }, 124),
            (Failure::Detached { id: "op-1".to_owned(), signal: Signal::SIGINT }, 130),
            (Failure::Interrupted { signal: Signal::SIGTERM }, 143),
            (Failure::Interrupted { signal: Signal::SIGHUP }, 129),
            (Failure::Output(io::Error::other("x")), 1),
            (Failure::Output(io::ErrorKind::BrokenPipe.into()), 0),
        ] {
            assert_eq!(failure.exit(), code, "{failure:?}");
        }
        assert_eq!(
            EXIT_CODES.iter().map(|(code, _)| *code).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4, 5, 6, 124, 130]
        );
    }

    #[test]
    fn a_detached_operation_says_how_to_wait_and_how_to_cancel() {
        let denial = Failure::Detached { id: "op-7".to_owned(), signal: Signal::SIGINT }.denial();
        let hint = denial.hint.unwrap();
        assert!(denial.message.contains("op-7") && denial.message.contains("goes on"), "{}", denial.message);
        assert!(hint.contains("operation wait op-7") && hint.contains("operation cancel op-7"), "{hint}");
    }
}
