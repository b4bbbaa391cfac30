//! Arguments of what is done with VMs.

use std::path::PathBuf;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use super::values::{DRAINS, Disk, Mib, Net, POWERS, RESTARTS, STATES, Seconds, Which, one_of};
use super::{Sure, Waiting};
use crate::agent::model::{ActualState, DrainPolicy, Power, RestartPolicy};
use crate::cli::complete;

/// `yun ls`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  yun ls\n  yun ls -t acme --state running --format name")]
pub struct Ls {
    /// Of all tenants that you may see, also if --tenant or $YUN_TENANT names one
    #[arg(long, short = 'A')]
    pub all_tenants: bool,
    /// Only those in this state (repeatable)
    #[arg(long, value_parser = one_of::<ActualState>(STATES))]
    pub state: Vec<ActualState>,
}

/// `yun show`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  yun show acme/web\n  yun show acme/web --manifest > web.yaml")]
pub struct Show {
    /// Which VM
    #[arg(add = ArgValueCandidates::new(complete::vms))]
    pub vm: Which,
    /// Print what `yun apply -f` takes: what is wanted of it, and nothing else
    #[arg(long)]
    pub manifest: bool,
}

/// What is wanted of a VM, by flags.
#[derive(Clone, Debug, Args)]
pub struct SpecFlags {
    /// Its image, by name or id
    #[arg(long, add = ArgValueCandidates::new(complete::images))]
    pub image: Option<String>,
    /// vCPUs, 1 to 32
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub vcpus: u8,
    /// Memory: 512M, 2G; a number alone is MiB
    #[arg(long, default_value = "128M", value_name = "SIZE")]
    pub memory: Mib,
    /// Add to the kernel's command line
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub kernel_args: String,
    /// A volume among its disks, read-only or as root file system (repeatable)
    #[arg(long, value_name = "NAME[:ro][:root]")]
    pub volume: Vec<Disk>,
    /// An interface in a subnet, with its egress class: isolated, domestic, international (repeatable)
    #[arg(long, value_name = "SUBNET[:CLASS][,name=N][,ipv4=A][,ipv6=A]")]
    pub net: Vec<Net>,
    /// cloud-init user data, from this file
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// Keys that may log in, from this file, one a line (repeatable)
    #[arg(long, value_name = "FILE")]
    pub ssh_keys: Vec<PathBuf>,
    /// What to do when it ends
    #[arg(long, value_parser = one_of::<RestartPolicy>(RESTARTS), default_value = "never")]
    pub restart: RestartPolicy,
    /// Stop it so long after it was first started: 90s, 2h, 1d
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<Seconds>,
    /// Remove it then
    #[arg(long, requires = "ttl")]
    pub ttl_deletes: bool,
    /// How long a stop waits for the guest before it is killed
    #[arg(long, default_value = "30s", value_name = "TIME")]
    pub stop_timeout: Seconds,
    /// What a drain of the server does to it
    #[arg(long, value_parser = one_of::<DrainPolicy>(DRAINS), default_value = "stop")]
    pub drain: DrainPolicy,
}

/// `yun create`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  yun create acme/web --image debian --vcpus 2 --memory 1G --net lan:domestic\n  \
    yun create -f vms.yaml\n\nA file has the form that `yun apply` describes. It is refused (exit code 4) if it exists."
)]
pub struct Create {
    /// Its name
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub vm: Option<Which>,
    /// Take VMs from this file: YAML or JSON, several documents; - is stdin
    #[arg(long, short = 'f', conflicts_with = "image")]
    pub file: Option<PathBuf>,
    #[allow(missing_docs)] // clap would take it for the command's
    #[command(flatten)]
    pub spec: SpecFlags,
    /// Whether it is to run
    #[arg(long, value_parser = one_of::<Power>(POWERS), default_value = "stopped")]
    pub power: Power,
    /// Only check whether it could be made
    #[arg(long)]
    pub dry_run: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub waiting: Waiting,
}

/// `yun run`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  yun run acme/web --image debian --memory 1G\n  \
    yun run -t acme --image job --foreground --rm --ttl 2h\n\n\
    With --foreground the VM's life is the command's, as a batch scheduler wants it: what it prints on its console goes to \
    stdout, stdin is not read. SIGTERM, SIGINT and SIGHUP stop the VM by its power button, a second one kills it. The exit code \
    is that of the VM's process, or 128 and the number of the signal that ended it; failures of yun itself are told on stderr. \
    Should yun be killed by SIGKILL the VM goes on: --ttl bounds that.")]
pub struct Run {
    /// Its name; one is made up if it is missing
    pub vm: Option<Which>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub spec: SpecFlags,
    /// Stay until it ends: console to stdout, signals stop it, its exit status is this command's
    #[arg(long, conflicts_with_all = ["no_wait", "dry_run"])]
    pub foreground: bool,
    /// Remove it when it has ended
    #[arg(long, requires = "foreground")]
    pub rm: bool,
    /// Only check whether it could be made
    #[arg(long)]
    pub dry_run: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub waiting: Waiting,
}

/// `yun apply`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "A document has a kind (vm if it is missing; tenant, subnet, image, volume), a name, a tenant \
    (that of --tenant if it is missing), and a spec as the API has it:\n\n  \
    kind: volume\n  name: data\n  spec: {size_mib: 1024}\n  ---\n  name: web\n  spec:\n    image: debian\n    \
    memory_mib: 512\n    volumes: [{volume: data}]\n\n\
    It may be repeated: what is so already is left alone. Volumes grow; nothing is removed.\n\n\
    Examples:\n  yun apply -f tenant.yaml --dry-run\n  yun show acme/web --manifest | yun apply -f -"
)]
pub struct Apply {
    /// This file: YAML or JSON, several documents; - is stdin (repeatable)
    #[arg(long, short = 'f', required = true)]
    pub file: Vec<PathBuf>,
    /// Only show what would change
    #[arg(long)]
    pub dry_run: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub waiting: Waiting,
}

/// `yun start`, `pause`, `resume`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  yun start acme/web acme/db")]
pub struct Act {
    /// Which VMs
    #[arg(required = true, add = ArgValueCandidates::new(complete::vms))]
    pub vms: Vec<Which>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub waiting: Waiting,
}

/// `yun stop`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  yun stop acme/web --timeout 2m")]
pub struct Stop {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub act: Act,
    /// How long the guest may take before it is killed, in the place of what its spec says
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Seconds>,
}

/// `yun kill`, `reset`, `rm`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  yun rm acme/web --yes")]
pub struct Destroy {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub act: Act,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub sure: Sure,
}

/// `yun restart`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  yun restart acme/web\n\nTo start it again without asking the guest: yun reset."
)]
pub struct Restart {
    /// Which VMs
    #[arg(required = true, add = ArgValueCandidates::new(complete::vms))]
    pub vms: Vec<Which>,
    /// How long the guest may take before it is killed
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Seconds>,
}

/// `yun console`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "The escape character detaches, unless it is typed twice: then the guest gets one. Where stdin is no \
    terminal it is looked for only if --escape is given, so that any bytes can be sent.\n\n\
    One may write, many may read. Bytes go to your terminal as the guest sends them.\n\n\
    Examples:\n  yun console acme/web\n  yun console acme/web --read-only --history 65536\n  \
    echo poweroff | yun console acme/web"
)]
pub struct Console {
    /// Which VM
    #[arg(add = ArgValueCandidates::new(complete::vms))]
    pub vm: Which,
    /// The character that detaches: ^], ^A, a single character, or none
    #[arg(long, value_name = "CHARACTER")]
    pub escape: Option<super::super::escape::EscapeKey>,
    /// Only watch
    #[arg(long)]
    pub read_only: bool,
    /// Show so many bytes of what was printed before
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    pub history: u64,
}

/// `yun logs`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  yun logs acme/web --tail 50\n  yun logs acme/web -f --source console"
)]
pub struct Logs {
    /// Which VM
    #[arg(add = ArgValueCandidates::new(complete::vms))]
    pub vm: Which,
    /// Go on as more is said
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// Only the last so many lines
    #[arg(long, value_name = "N")]
    pub tail: Option<u64>,
    /// Of the VMM's own log, or of what the guest printed on its console
    #[arg(long, value_parser = ["vmm", "console"], default_value = "vmm")]
    pub source: String,
}

/// `yun events`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "With -f it goes on after a restart of the agent where it was, without a gap.\n\n\
    Examples:\n  yun events -f\n  yun events --since 1000 --format json"
)]
pub struct Events {
    /// Go on as more happens
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// Only what came after the event of this number
    #[arg(long, value_name = "SEQ")]
    pub since: Option<u64>,
}

/// `yun wait`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "The exit code is 124 if it takes longer, and 1 if the VM fails, so that it will not get there by \
    itself.\n\nExamples:\n  yun wait acme/web --for state=running --timeout 30s"
)]
pub struct Wait {
    /// Which VM
    #[arg(add = ArgValueCandidates::new(complete::vms))]
    pub vm: Which,
    /// For which state
    #[arg(long = "for", value_parser = ["state=running", "state=stopped", "state=paused", "state=deleted"],
        default_value = "state=running")]
    pub state: String,
    /// For how long
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Seconds>,
}

/// `yun top`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Keys: q ends it.\n\nExamples:\n  yun top -t acme\n  yun top --once --format json"
)]
pub struct Top {
    /// Once, without taking the screen. Rates in tables are of one interval; JSON has the counters
    #[arg(long)]
    pub once: bool,
    /// How often, in whole seconds
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub interval: Seconds,
}

/// `yun explain`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  yun explain acme/web")]
pub struct Explain {
    /// Which VM
    #[arg(add = ArgValueCandidates::new(complete::vms))]
    pub vm: Which,
}
