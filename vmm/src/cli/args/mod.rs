//! The command line of `yun`, from which help, completion and manual pages are made too.

pub mod host;
pub mod things;
pub mod values;
pub mod vm;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::engine::ArgValueCandidates;

use super::complete;
use super::output::Format;
use crate::agent::model::Name;
use values::Seconds;

/// Operates the microVMs of this server: talks to its agent, yund, over a local socket.
///
/// VMs, volumes and networks belong to tenants. A VM is named `tenant/name`, or `name` with --tenant or $YUN_TENANT.
/// What takes long is an operation: yun waits for it and shows its progress; Ctrl-C stops the waiting, not the work.
#[derive(Debug, Parser)]
#[command(name = "yun", version, max_term_width = 100, after_long_help = complete::exit_codes_and_environment())]
pub struct Cli {
    /// What goes with every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What goes with every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The agent's socket
    #[arg(
        long,
        global = true,
        env = "YUN_SOCKET",
        default_value = "/run/yun/yund.sock",
        value_name = "PATH",
        help_heading = "Global options"
    )]
    pub socket: PathBuf,
    /// Whose things, where the command does not say it
    #[arg(long, short = 't', global = true, env = "YUN_TENANT", help_heading = "Global options",
        add = ArgValueCandidates::new(complete::tenants))]
    pub tenant: Option<Name>,
    /// How results are printed. JSON and YAML have the API's schema; raw numbers in them, human sizes in tables
    #[arg(long, global = true, value_enum, default_value_t = Format::Table, help_heading = "Global options")]
    pub format: Format,
    /// No line of titles above columns
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_headers: bool,
    /// How long the agent may take to answer: 30s, 2m
    #[arg(long, global = true, default_value = "30s", value_name = "TIME", help_heading = "Global options")]
    pub request_timeout: Seconds,
}

/// For what destroys something, or ends someone's work.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Sure {
    /// Do not ask. Without a terminal it has to be given
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// For what takes long.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Waiting {
    /// Do not wait: print the operation's id, for `yun operation wait`
    #[arg(long)]
    pub no_wait: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one of it
pub enum Command {
    /// List VMs
    #[command(visible_alias = "list")]
    Ls(vm::Ls),
    /// Show a VM
    Show(vm::Show),
    /// Make a VM that does not exist yet
    Create(vm::Create),
    /// Make a VM and start it
    Run(vm::Run),
    /// Make what a file describes be so: tenants, subnets, images, volumes, VMs
    Apply(vm::Apply),
    /// Start VMs
    Start(vm::Act),
    /// Stop VMs: their power button, then a deadline, then their end
    Stop(vm::Stop),
    /// End VMs at once
    Kill(vm::Destroy),
    /// Stop VMs and start them again
    Restart(vm::Restart),
    /// Make VMs' vCPUs stand still
    Pause(vm::Act),
    /// Let VMs' vCPUs go on
    Resume(vm::Act),
    /// End VMs at once and start them again
    Reset(vm::Destroy),
    /// Remove VMs
    Rm(vm::Destroy),
    /// Attach to a VM's serial console
    Console(vm::Console),
    /// Print what a VM, or its VMM, said
    Logs(vm::Logs),
    /// Print what happened on the server
    Events(vm::Events),
    /// Wait until a VM is in a state
    Wait(vm::Wait),
    /// Show what VMs use, refreshed each second
    Top(vm::Top),
    /// Say why a VM is not as it is wanted
    Explain(vm::Explain),
    /// Kernels and root file systems
    #[command(subcommand)]
    Image(things::Image),
    /// Disks that outlive VMs
    #[command(subcommand)]
    Volume(things::Volume),
    /// Subnets, egress classes and their lists
    #[command(subcommand)]
    Net(things::Net),
    /// Tenants, who may use them, and what they may use
    #[command(subcommand)]
    Tenant(things::Tenant),
    /// What was used, in FOCUS columns
    Usage(host::Usage),
    /// Who asked for what, and whether they got it
    #[command(subcommand)]
    Audit(host::Audit),
    /// The server
    #[command(subcommand)]
    Host(host::Host),
    /// Look for what is wrong with the agent and the server
    Doctor,
    /// Remove leftovers: what belongs to nothing any more
    Gc(Sure),
    /// Long work
    #[command(subcommand, visible_alias = "op")]
    Operation(host::Operation),
    /// Send a request to the agent, and print its answer
    Query(host::Query),
    /// Print the script that makes a shell complete yun's commands, with live names
    Completion(host::Completion),
    /// Write manual pages: yun.1 to stdout, or all of them to a directory
    Man(host::Man),
}
