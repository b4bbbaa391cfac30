//! The command line of `yun-vmm`: Firecracker's flags, and a few of our own.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::{Long, Short, ValueExt};

use crate::api::BODY_LEN_MAX_DEFAULT;
use crate::sandbox::seccomp::Seccomp;
use crate::spec::{InstanceId, LogLevel, Logger};

/// Status with which the process ends if its command line was refused; Firecracker's.
pub const EXIT_ARGUMENTS: u8 = 153;

/// Status with which the process ends if its configuration file was refused; Firecracker's.
pub const EXIT_CONFIG_FILE: u8 = 152;

/// Where the API socket is unless told otherwise.
pub const API_SOCKET_DEFAULT: &str = "/run/firecracker.socket";

/// What `--help` shows.
pub const HELP: &str = "\
yun-vmm: one process, one microVM, driven over a Unix socket.

Usage: yun-vmm [OPTION]...

Options that take a value accept `--option value` and `--option=value`.

API
      --api-sock PATH       Unix socket of the API. Default: /run/firecracker.socket
      --no-api              Have no API; needs --config-file
      --config-file PATH    Configure and start the microVM from this JSON file; its keys are the paths of the requests
      --id ID               Name of the microVM: 1 to 64 letters, digits or hyphens. Default: anonymous-instance
      --http-api-max-payload-size BYTES
                            Largest body of a request. Default: 51200
      --openapi             Print the description of the API (OpenAPI 3.1), and end

Machine
      --enable-pci          Give the devices a PCI bus with MSI-X, instead of virtio-mmio
      --boot-timer          Log how long the guest took to start (it says so by writing 123 to a port)
      --on-reboot WHAT      What a guest's reboot does: exit (default) ends the process with status 0, reset starts the
                            guest anew in the same process, whose driver thread then keeps the system calls that
                            building a machine takes (seccomp, see README)
      --shutdown-timeout-ms MS
                            How long the guest may take to shut down after SIGTERM, before it is ended. Default: 30000
      --no-thp              Don't ask the host to back guest memory with transparent huge pages: slower start, less
                            memory taken by guests that touch little of it

Log and metrics
      --log-path PATH       File or FIFO for the log; fd:N for an inherited one. Default: standard output
      --level LEVEL         Off, Error, Warning, Info (default), Debug or Trace
      --module PREFIX       Log only what comes from modules whose path begins with this
      --show-level          Name the level in each line of the log
      --show-log-origin     Name the source file and line in each line of the log
      --metrics-path PATH   File or FIFO for the metrics, one line of JSON a minute

Confinement
      --no-seccomp          Let the process make any system call; for finding faults, not for guests of others
      --seccomp-filter PATH Accepted, without effect: the filters are part of this program
      --lock-memory         Never swap guest memory out; needs a memlock limit as large as it
      --core-scheduling     Run beside no other process on the SMT siblings of a core
      --api-peer-uid UID    Answer only clients of this user, by the kernel's word (SO_PEERCRED); repeatable. The socket
                            then lets every user connect. Without it, it lets its owner only

Start times, for the metrics; given by who starts this process
      --start-time-us US    Monotonic time at which it was started
      --start-time-cpu-us US
                            CPU time of this process at which it was started
      --parent-cpu-time-us US
                            CPU time its parent used for it

  -V, --version             Print the version, and end
  -h, --help                Print this, and end

The process ends with 0 if the guest powers off or reboots, 1 on an error, 148 if it made a system call that it may not
make, 152 if the configuration file is refused, 153 if the command line is refused.
";

/// What to do when the guest reboots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReboot {
    /// End the process, with status 0.
    #[default]
    Exit,
    /// Start the guest anew, in the same process.
    Reset,
}

/// Times that whoever started this process took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartTimes {
    /// Monotonic time of the start.
    pub start_us: Option<u64>,
    /// CPU time of this process at the start.
    pub start_cpu_us: Option<u64>,
    /// CPU time the parent used for this process.
    pub parent_cpu_us: Option<u64>,
}

/// How to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// Where the API listens; `None` without API.
    pub api_sock: Option<PathBuf>,
    /// The microVM's id.
    pub id: InstanceId,
    /// Configuration to start from.
    pub config_file: Option<PathBuf>,
    /// Form and destination of the log; all missing if no flag was given.
    pub logger: Logger,
    /// Where to write metrics.
    pub metrics_path: Option<String>,
    /// Whether to log how long the guest took to start.
    pub boot_timer: bool,
    /// Whether devices are on a PCI bus.
    pub enable_pci: bool,
    /// Largest body of an API request, in bytes.
    pub body_len_max: usize,
    /// What to do when the guest reboots.
    pub on_reboot: OnReboot,
    /// How long the guest may take to shut down.
    pub shutdown_timeout: Duration,
    /// Whether guest memory asks for transparent huge pages.
    pub transparent_huge_pages: bool,
    /// Whether threads confine themselves to the system calls they need.
    pub seccomp: Seccomp,
    /// Whether guest memory is never swapped out.
    pub lock_memory: bool,
    /// Whether to share no core with another process.
    pub core_scheduling: bool,
    /// Users whose requests are answered; all that may connect, if empty.
    pub api_peer_uids: Vec<u32>,
    /// For the metrics.
    pub start_times: StartTimes,
    /// What to log as a warning once there is a log.
    pub warnings: Vec<String>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            api_sock: Some(API_SOCKET_DEFAULT.into()),
            id: InstanceId::default(),
            config_file: None,
            logger: Logger::default(),
            metrics_path: None,
            boot_timer: false,
            enable_pci: false,
            body_len_max: BODY_LEN_MAX_DEFAULT,
            on_reboot: OnReboot::default(),
            shutdown_timeout: Duration::from_secs(30),
            transparent_huge_pages: true,
            seccomp: Seccomp::On,
            lock_memory: false,
            core_scheduling: false,
            api_peer_uids: Vec::new(),
            start_times: StartTimes::default(),
            warnings: Vec::new(),
        }
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Run a microVM.
    Run(Box<Args>),
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
    /// Print the description of the API.
    OpenApi,
}

/// Why a command line was refused. To be shown, with [`EXIT_ARGUMENTS`] as the status.
#[derive(Debug, thiserror::Error)]
#[error("Arguments parsing error: {0}\n\nFor more information try --help.")]
pub struct ArgsError(String);

impl From<lexopt::Error> for ArgsError {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

fn refuse<T>(text: impl Into<String>) -> Result<T, ArgsError> {
    Err(ArgsError(text.into()))
}

impl Invocation {
    /// Reads a command line, without the program's name.
    ///
    /// # Errors
    /// [`ArgsError`] says which argument is wrong, and what would be right.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut parser = lexopt::Parser::from_args(arguments);
        let mut args = Args::default();
        let mut no_api = false;
        let mut api_sock = None;
        while let Some(argument) = parser.next()? {
            let name = match argument {
                Short('h') => return Ok(Self::Help),
                Short('V') => return Ok(Self::Version),
                Long(name) => name.to_owned(),
                other => return Err(other.unexpected().into()),
            };
            match name.as_str() {
                "help" => return Ok(Self::Help),
                "version" => return Ok(Self::Version),
                "openapi" => return Ok(Self::OpenApi),
                "api-sock" => api_sock = Some(PathBuf::from(parser.value()?)),
                "no-api" => no_api = true,
                "config-file" => args.config_file = Some(parser.value()?.into()),
                "id" => match InstanceId::parse(&parser.value()?.string()?) {
                    Ok(id) => args.id = id,
                    Err(error) => return refuse(error.to_string()),
                },
                "http-api-max-payload-size" => args.body_len_max = parser.value()?.parse()?,
                "enable-pci" => args.enable_pci = true,
                "boot-timer" => args.boot_timer = true,
                "on-reboot" => match parser.value()?.string()?.as_str() {
                    "exit" => args.on_reboot = OnReboot::Exit,
                    "reset" => args.on_reboot = OnReboot::Reset,
                    other => return refuse(format!("--on-reboot is exit or reset, not {other:?}")),
                },
                "shutdown-timeout-ms" => {
                    args.shutdown_timeout = Duration::from_millis(parser.value()?.parse()?)
                }
                "no-thp" => args.transparent_huge_pages = false,
                "log-path" => args.logger.log_path = Some(parser.value()?.string()?),
                "level" => match parser.value()?.string()?.parse::<LogLevel>() {
                    Ok(level) => args.logger.level = Some(level),
                    Err(error) => return refuse(error),
                },
                "module" => args.logger.module = Some(parser.value()?.string()?),
                "show-level" => args.logger.show_level = Some(true),
                "show-log-origin" => args.logger.show_log_origin = Some(true),
                "metrics-path" => args.metrics_path = Some(parser.value()?.string()?),
                "seccomp-filter" => {
                    parser.value()?;
                    let text = "--seccomp-filter has no effect: the filters are part of this program.";
                    args.warnings.push(text.to_owned());
                }
                "no-seccomp" => args.seccomp = Seccomp::Off,
                "lock-memory" => args.lock_memory = true,
                "core-scheduling" => args.core_scheduling = true,
                "api-peer-uid" => args.api_peer_uids.push(parser.value()?.parse()?),
                "start-time-us" => args.start_times.start_us = Some(parser.value()?.parse()?),
                "start-time-cpu-us" => args.start_times.start_cpu_us = Some(parser.value()?.parse()?),
                "parent-cpu-time-us" => args.start_times.parent_cpu_us = Some(parser.value()?.parse()?),
                "metadata" | "mmds-size-limit" => {
                    return refuse(format!("--{name} is not supported: this build has no metadata service"));
                }
                "snapshot-version" | "describe-snapshot" => {
                    return refuse(format!("--{name} is not supported: this build has no snapshots"));
                }
                _ => return Err(Long(&name).unexpected().into()),
            }
        }
        match (no_api, api_sock) {
            (true, Some(_)) => return refuse("--no-api and --api-sock exclude each other"),
            (true, None) if args.config_file.is_none() => {
                return refuse("--no-api needs --config-file: without both nobody could say what to start");
            }
            (true, None) => args.api_sock = None,
            (false, Some(path)) => args.api_sock = Some(path),
            (false, None) => {}
        }
        Ok(Self::Run(Box::new(args)))
    }
}

/// What `--version` shows.
pub fn version() -> String {
    format!(
        "yun-vmm {} (API of Firecracker {})\n",
        env!("CARGO_PKG_VERSION"),
        crate::spec::FIRECRACKER_API_VERSION
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Invocation, String> {
        Invocation::parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    fn args(line: &str) -> Args {
        match parse(line) {
            Ok(Invocation::Run(args)) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn without_arguments_the_defaults_are_firecrackers() {
        let args = args("");
        assert_eq!(args, Args::default());
        assert_eq!(args.api_sock.unwrap().to_str(), Some("/run/firecracker.socket"));
        assert_eq!((args.id.as_str(), args.body_len_max), ("anonymous-instance", 51_200));
    }

    #[test]
    fn every_flag_is_understood_with_its_value_after_a_space_or_an_equals_sign() {
        let all = "--api-sock /a --id vm-1 --config-file /c --log-path /l --level debug --module vmm --show-level \
                   --show-log-origin --metrics-path /m --boot-timer --enable-pci --http-api-max-payload-size 100 \
                   --no-seccomp --seccomp-filter /f --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3 \
                   --on-reboot reset --shutdown-timeout-ms 50 --no-thp --lock-memory --core-scheduling \
                   --api-peer-uid 7 --api-peer-uid 8";
        let expected = Args {
            api_sock: Some("/a".into()),
            id: InstanceId::parse("vm-1").unwrap(),
            config_file: Some("/c".into()),
            logger: Logger {
                log_path: Some("/l".to_owned()),
                level: Some(LogLevel::Debug),
                show_level: Some(true),
                show_log_origin: Some(true),
                module: Some("vmm".to_owned()),
            },
            metrics_path: Some("/m".to_owned()),
            boot_timer: true,
            enable_pci: true,
            body_len_max: 100,
            on_reboot: OnReboot::Reset,
            shutdown_timeout: Duration::from_millis(50),
            transparent_huge_pages: false,
            seccomp: Seccomp::Off,
            lock_memory: true,
            core_scheduling: true,
            api_peer_uids: vec![7, 8],
            start_times: StartTimes { start_us: Some(1), start_cpu_us: Some(2), parent_cpu_us: Some(3) },
            warnings: vec![
                "--seccomp-filter has no effect: the filters are part of this program.".to_owned(),
            ],
        };
        assert_eq!(args(all), expected);
        let mut equals = String::new();
        for word in all.split_whitespace() {
            equals += if word.starts_with("--") { " " } else { "=" };
            equals += word;
        }
        assert_eq!(args(&equals), expected);
    }

    #[test]
    fn without_api_there_is_no_socket_but_there_must_be_a_file() {
        assert_eq!(args("--no-api --config-file /c").api_sock, None);
        assert!(parse("--no-api").unwrap_err().contains("--no-api needs --config-file"));
        assert!(parse("--no-api --config-file /c --api-sock /a").unwrap_err().contains("exclude each other"));
    }

    #[test]
    fn what_is_wrong_is_said_by_name() {
        for (line, text) in [
            ("--id a_b", "Invalid instance ID: character '_' at position 1"),
            ("--id=", "Invalid instance ID: its length is 0, it must be 1 to 64"),
            ("--metadata /m", "--metadata is not supported: this build has no metadata service"),
            ("--describe-snapshot /s", "--describe-snapshot is not supported: this build has no snapshots"),
            ("--level loud", "unknown log level `loud`, expected Off, Error"),
            ("--on-reboot panic", "--on-reboot is exit or reset, not \"panic\""),
            ("--http-api-max-payload-size many", "\"many\""),
            ("--api-sock", "missing argument for option '--api-sock'"),
            ("--show-level=yes", "unexpected argument for option '--show-level': \"yes\""),
            ("--nonsense", "invalid option '--nonsense'"),
            ("stray", "unexpected argument \"stray\""),
        ] {
            let error = parse(line).unwrap_err();
            assert!(
                error.starts_with("Arguments parsing error: ") && error.contains(text),
                "{line}: {error}"
            );
            assert!(error.ends_with("For more information try --help."));
        }
    }

    #[test]
    fn help_version_and_description_win_over_everything_after_them() {
        assert_eq!(parse("-h --nonsense"), Ok(Invocation::Help));
        assert_eq!(parse("--help"), Ok(Invocation::Help));
        assert_eq!(parse("--version"), Ok(Invocation::Version));
        assert_eq!(parse("-V"), Ok(Invocation::Version));
        assert_eq!(parse("--openapi"), Ok(Invocation::OpenApi));
        assert!(version().starts_with("yun-vmm 0."));
    }

    #[test]
    fn help_explains_every_flag() {
        let source = include_str!("args.rs");
        let (parser, _) = source.split_once("/// What `--version` shows").unwrap();
        let (_, parser) = parser.split_once("match name.as_str() {").unwrap();
        let unsupported =
            ["metadata", "mmds-size-limit", "snapshot-version", "describe-snapshot", "exit", "reset"];
        let mut flags = 0;
        for line in parser.lines().filter(|line| line.trim_start().starts_with('"')) {
            let flag = line.split('"').nth(1).unwrap();
            if !unsupported.contains(&flag) {
                assert!(HELP.contains(&format!("--{flag}")), "--{flag} is not explained");
                flags += 1;
            }
        }
        assert!(flags > 20);
    }
}
