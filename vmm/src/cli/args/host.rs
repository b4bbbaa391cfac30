//! Arguments of what is about the server as a whole, and about `yun` itself.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;

use super::values::{Seconds, Which};
use super::{Sure, Waiting};
use crate::cli::complete;

/// `yun usage`.
#[derive(Debug, Args)]
#[command(after_long_help = "Tables show some of the columns, --format wide and json all of them.\n\n\
    Examples:\n  yun usage -t acme --from 2026-11-01T00:00:00Z\n  yun usage --csv > november.csv")]
pub struct Usage {
    /// Only of this VM
    #[arg(long, add = ArgValueCandidates::new(complete::vms))]
    pub vm: Option<Which>,
    /// From this time on (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Until this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// As CSV, whole
    #[arg(long)]
    pub csv: bool,
}

/// `yun audit`.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Write the audit log, for `yun audit verify`
    Export {
        /// From this record on
        #[arg(long, value_name = "SEQ")]
        from: Option<u64>,
        /// Until this record
        #[arg(long, value_name = "SEQ")]
        to: Option<u64>,
        /// To this new file; stdout if it is missing
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check an exported file, without an agent: whether anything was edited, removed or moved
    Verify {
        /// The file
        file: PathBuf,
        /// Public key of the host it must be from, 64 hexadecimal digits; `yun audit verify` shows it
        #[arg(long, value_name = "HEX")]
        key: Option<String>,
    },
    /// Print the last records
    Tail {
        /// How many
        #[arg(short = 'n', long = "lines", default_value_t = 20)]
        lines: usize,
    },
}

/// `yun host`.
#[derive(Debug, Subcommand)]
pub enum Host {
    /// Show the server: its state, and what is left of it
    Show,
    /// Take no new VMs, then stop those that run, each by its policy
    Drain {
        #[allow(missing_docs)]
        #[command(flatten)]
        sure: Sure,
        #[allow(missing_docs)]
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Take VMs again
    Undrain,
    /// Stop all VMs, so that the server can be switched off; they are started again when it returns
    Shutdown {
        #[allow(missing_docs)]
        #[command(flatten)]
        sure: Sure,
        #[allow(missing_docs)]
        #[command(flatten)]
        waiting: Waiting,
    },
}

/// `yun operation`.
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// List operations
    Ls,
    /// Show an operation
    Show(OperationName),
    /// Wait until an operation has ended; the exit code is as it would have been
    Wait {
        #[allow(missing_docs)]
        #[command(flatten)]
        operation: OperationName,
        /// For how long: the exit code is 124 if it takes longer
        #[arg(long, value_name = "TIME")]
        timeout: Option<Seconds>,
    },
    /// Cancel an operation: what it had begun is undone
    Cancel(OperationName),
}

/// Which operation.
#[derive(Debug, Args)]
pub struct OperationName {
    /// Its id: op- and 16 hexadecimal digits
    #[arg(add = ArgValueCandidates::new(complete::operations))]
    pub id: String,
}

/// `yun query`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  yun query GET /host\n  yun query PUT /tenants/acme --data '-' < tenant.json\n  \
    yun query GET /metrics"
)]
pub struct Query {
    /// GET, PUT, POST, PATCH, DELETE
    pub method: String,
    /// A path, below /v1 unless it is /metrics
    pub path: String,
    /// The request's body, from this file; - is stdin
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
}

/// A shell.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// Bash.
    Bash,
    /// Zsh.
    Zsh,
    /// Fish.
    Fish,
}

/// `yun completion`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  source <(yun completion bash)\n  yun completion fish > ~/.config/fish/completions/yun.fish"
)]
pub struct Completion {
    /// For which shell
    pub shell: Shell,
}

/// `yun man`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  yun man | man -l -\n  yun man /usr/local/share/man/man1")]
pub struct Man {
    /// Where the pages go: one for each command
    pub dir: Option<PathBuf>,
}
