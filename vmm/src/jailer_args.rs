//! The command line of `yun-jailer`: the flags of Firecracker's jailer, and a few of our own.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use lexopt::prelude::{Long, Short, ValueExt};

use crate::args::API_SOCKET_DEFAULT;
use crate::sandbox::cgroup::Version;
use crate::sandbox::dir::is_plain;
use crate::sandbox::jail::{JailSpec, NetworkSpec, Started};
use crate::sandbox::privileges::{Limits, User};
use crate::spec::InstanceId;

/// Status with which the process ends if its command line was refused; that of `yun-vmm`.
pub const EXIT_ARGUMENTS: u8 = crate::args::EXIT_ARGUMENTS;

/// Where jails are unless told otherwise: as Firecracker's.
pub const BASE_DEFAULT: &str = "/srv/jailer";

/// What `--help` shows.
pub const HELP: &str = "\
yun-jailer: starts a VMM in a jail of its own, as an unprivileged user, and removes the jail when the VMM has ended.

Usage: yun-jailer --id ID --exec-file FILE --uid UID --gid GID [OPTION]... [-- ARGUMENT...]

Options that take a value accept `--option value` and `--option=value`. The ARGUMENTs are the VMM's. To be run as root.

The VMM
      --id ID               Name of the microVM: 1 to 64 letters, digits or hyphens
      --exec-file FILE      Its VMM, linked statically; it is copied into the jail
      --uid UID, --gid GID  Whom it runs as
      --new-session         Leave the session and process group, and keep the standard descriptors: the end of whoever
                            started it is nothing to the VMM then, even if it is stopped. Not for a process group's
                            leader
      --daemonize           Leave the session and process group, with /dev/null for standard input, output and error

What it can reach
      --chroot-base-dir DIR Where jails are; it must exist. Default: /srv/jailer. The VMM's `/` is
                            DIR/NAME OF FILE/ID/root
      --netns FILE          Join this network namespace, such as /run/netns/NAME
      --new-netns           Have a network namespace of its own, with nothing in it
      --new-pid-ns          Be the first process of a pid namespace of its own. The jailer ends with 0 once the VMM
                            runs, whose pid is in the file NAME OF FILE.pid in its `/`
      --new-user-ns         Be in a user namespace of its own, in which there is nobody else. Needs a host that lets
                            unprivileged users make one
      --vhost-net           Have /dev/vhost-net, for network interfaces with `vhost`
      --keep-fd N           Let the VMM inherit descriptor N of the jailer, 3 or more; may be repeated. All others
                            are closed

What it may use
      --cgroup FILE=VALUE   Write a value to a file of its cgroup, such as memory.max=1073741824; may be repeated.
                            Without any it has no cgroup of its own
      --cgroup-version N    1 (default) or 2
      --parent-cgroup PATH  Where its cgroup ID is made, below the mount of the hierarchy. Default: the name of FILE.
                            With version 2 and without --cgroup: the cgroup to join, which must exist
      --resource-limit NAME=N
                            no-file=N: one more than its highest descriptor, default 2048; fsize=N: its largest file, in
                            bytes. May be repeated

  -V, --version             Print the version, and end
  -h, --help                Print this, and end

Without --new-pid-ns the jailer becomes the VMM: its pid and its exit status are the VMM's. (Started with --daemonize
as the leader of a process group it does as with --new-pid-ns, save for the namespace.) If there is no VMM it ends with
1, and with 153 if the command line is refused; nothing of the jail is left then. What it made is removed when the VMM
has ended, however it did; files that somebody else put in the jail stay.
";

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Start a VMM.
    Run(Box<JailSpec>),
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

/// Why a command line was refused. To be shown, with [`EXIT_ARGUMENTS`] as the status.
#[derive(Debug, thiserror::Error)]
#[error("Arguments parsing error: {0}\n\nFor more information try --help.")]
pub struct JailerArgsError(String);

impl From<lexopt::Error> for JailerArgsError {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

fn refuse<T>(text: impl Into<String>) -> Result<T, JailerArgsError> {
    Err(JailerArgsError(text.into()))
}

/// What was given so far.
#[derive(Default)]
struct Given {
    id: Option<InstanceId>,
    exec_file: Option<PathBuf>,
    uid: Option<u32>,
    gid: Option<u32>,
    base: Option<PathBuf>,
    netns: Option<PathBuf>,
    new_netns: bool,
    daemonize: bool,
    new_session: bool,
    new_pid_ns: bool,
    new_user_ns: bool,
    cgroup: Vec<crate::sandbox::cgroup::Setting>,
    cgroup_version: Version,
    parent_cgroup: Option<PathBuf>,
    limits: Limits,
    keep_fds: Vec<RawFd>,
    vhost_net: bool,
}

impl Invocation {
    /// Reads a command line, without the program's name. `started` is when the program was.
    ///
    /// # Errors
    /// [`JailerArgsError`] says which argument is wrong, and what would be right.
    pub fn parse(
        arguments: impl IntoIterator<Item = OsString>,
        started: Started,
    ) -> Result<Self, JailerArgsError> {
        let mut ours: Vec<OsString> = arguments.into_iter().collect();
        // Up to the first `--`, wherever it stands, as Firecracker's jailer has it.
        let end = ours.iter().position(|argument| argument == "--").unwrap_or(ours.len());
        let arguments: Vec<OsString> = ours.split_off(end).into_iter().skip(1).collect();
        let mut parser = lexopt::Parser::from_args(ours);
        let mut given = Given::default();
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
                name => given.take(name, &mut parser)?,
            }
        }
        Ok(Self::Run(Box::new(given.complete(arguments, started)?)))
    }
}

impl Given {
    fn take(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<(), JailerArgsError> {
        match name {
            "id" => match InstanceId::parse(&parser.value()?.string()?) {
                Ok(id) => self.id = Some(id),
                Err(error) => return refuse(error.to_string()),
            },
            "exec-file" => self.exec_file = Some(parser.value()?.into()),
            "uid" => self.uid = Some(number("--uid", &parser.value()?, 0, u32::MAX - 1)?),
            "gid" => self.gid = Some(number("--gid", &parser.value()?, 0, u32::MAX - 1)?),
            "chroot-base-dir" => self.base = Some(parser.value()?.into()),
            "netns" => self.netns = Some(parser.value()?.into()),
            "new-netns" => self.new_netns = true,
            "daemonize" => self.daemonize = true,
            "new-session" => self.new_session = true,
            "new-pid-ns" => self.new_pid_ns = true,
            "new-user-ns" => self.new_user_ns = true,
            "vhost-net" => self.vhost_net = true,
            "cgroup" => match parser.value()?.string()?.parse() {
                Ok(setting) => self.cgroup.push(setting),
                Err(error) => return refuse(format!("--cgroup: {error}")),
            },
            "cgroup-version" => match parser.value()?.string()?.as_str() {
                "1" => self.cgroup_version = Version::V1,
                "2" => self.cgroup_version = Version::V2,
                other => return refuse(format!("--cgroup-version is 1 or 2, not {other:?}")),
            },
            "parent-cgroup" => {
                let path = PathBuf::from(parser.value()?);
                if !is_plain(&path) {
                    return refuse(format!(
                        "--parent-cgroup {path:?}: accepted are names with `/` between them, without `..`, `.` or a leading `/`"
                    ));
                }
                self.parent_cgroup = Some(path);
            }
            "resource-limit" => self.limit(&parser.value()?.string()?)?,
            "keep-fd" => self.keep_fds.push(number("--keep-fd", &parser.value()?, 3, RawFd::MAX)?),
            name => return Err(Long(name).unexpected().into()),
        }
        Ok(())
    }

    fn limit(&mut self, text: &str) -> Result<(), JailerArgsError> {
        let accepted = "accepted are no-file=N and fsize=N, N a number";
        let Some((name, value)) = text.split_once('=') else {
            return refuse(format!("--resource-limit {text:?}: {accepted}"));
        };
        let Ok(value) = value.parse() else {
            return refuse(format!("--resource-limit {text:?}: {value:?} is no number; {accepted}"));
        };
        match name {
            "no-file" => self.limits.no_file = value,
            "fsize" => self.limits.file_size = Some(value),
            name => return refuse(format!("--resource-limit {text:?}: there is no {name:?}; {accepted}")),
        }
        Ok(())
    }

    fn complete(self, arguments: Vec<OsString>, started: Started) -> Result<JailSpec, JailerArgsError> {
        fn needed<T>(value: Option<T>, flag: &str) -> Result<T, JailerArgsError> {
            value.map_or_else(
                || refuse(format!("{flag} is missing; --id, --exec-file, --uid and --gid are needed")),
                Ok,
            )
        }
        let network = match (self.netns, self.new_netns) {
            (Some(_), true) => return refuse("--netns and --new-netns exclude each other"),
            (Some(path), false) => NetworkSpec::Join(path),
            (None, true) => NetworkSpec::Empty,
            (None, false) => NetworkSpec::Callers,
        };
        let (uid, gid) = (needed(self.uid, "--uid")?, needed(self.gid, "--gid")?);
        Ok(JailSpec {
            id: needed(self.id, "--id")?,
            exec_file: needed(self.exec_file, "--exec-file")?,
            user: User::new(uid, gid).expect("the parser took neither for more than it can be"),
            base: self.base.unwrap_or_else(|| BASE_DEFAULT.into()),
            network,
            daemonize: self.daemonize,
            new_session: self.new_session,
            new_pid_ns: self.new_pid_ns,
            new_user_ns: self.new_user_ns,
            cgroup_version: self.cgroup_version,
            parent_cgroup: self.parent_cgroup,
            cgroup: self.cgroup,
            limits: self.limits,
            keep_fds: self.keep_fds,
            vhost_net: self.vhost_net,
            api_socket: api_socket(&arguments),
            arguments,
            started,
        })
    }
}

fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
    flag: &str,
    text: &OsString,
    min: T,
    max: T,
) -> Result<T, JailerArgsError> {
    match text.to_str().and_then(|text| text.parse().ok()) {
        Some(number) if number >= min && number <= max => Ok(number),
        _ => refuse(format!("{flag} is a number from {min} to {max}, not {text:?}")),
    }
}

/// Where the VMM's API will be, by the arguments that are handed on to it.
fn api_socket(arguments: &[OsString]) -> PathBuf {
    let mut words = arguments.iter().filter_map(|argument| argument.to_str());
    while let Some(word) = words.next() {
        match word.strip_prefix("--api-sock") {
            Some("") => return words.next().unwrap_or(API_SOCKET_DEFAULT).into(),
            Some(rest) if rest.starts_with('=') => return rest[1..].into(),
            _ => {}
        }
    }
    API_SOCKET_DEFAULT.into()
}

/// What `--version` shows.
pub fn version() -> String {
    format!(
        "yun-jailer {} (flags of the jailer of Firecracker {})\n",
        env!("CARGO_PKG_VERSION"),
        crate::spec::FIRECRACKER_API_VERSION
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: &str = "--id vm-1 --exec-file /bin/vmm --uid 1000 --gid 100";

    fn parse(line: &str) -> Result<Invocation, String> {
        let words = line.split_whitespace().map(OsString::from);
        Invocation::parse(words, Started::default()).map_err(|error| error.to_string())
    }

    fn spec(line: &str) -> JailSpec {
        match parse(line) {
            Ok(Invocation::Run(spec)) => *spec,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn what_is_not_said_is_as_firecrackers_jailer_has_it() {
        let spec = spec(NEEDED);
        assert_eq!((spec.id.as_str(), spec.exec_file.to_str()), ("vm-1", Some("/bin/vmm")));
        assert_eq!(Some(spec.user), User::new(1000, 100));
        assert_eq!((spec.base.to_str(), spec.network), (Some("/srv/jailer"), NetworkSpec::Callers));
        assert_eq!((spec.cgroup_version, spec.parent_cgroup, spec.cgroup), (Version::V1, None, vec![]));
        assert_eq!(spec.limits, Limits { no_file: 2048, file_size: None });
        assert_eq!(spec.api_socket.to_str(), Some("/run/firecracker.socket"));
        assert!(!spec.daemonize && !spec.new_session && !spec.new_pid_ns && !spec.new_user_ns);
        assert!(spec.keep_fds.is_empty() && spec.arguments.is_empty() && !spec.vhost_net);
    }

    #[test]
    fn every_flag_is_understood_with_its_value_after_a_space_or_an_equals_sign() {
        let all = format!(
            "{NEEDED} --chroot-base-dir /jails --netns /run/netns/x --daemonize --new-session --new-pid-ns --new-user-ns \
             --cgroup memory.max=1 --cgroup cpu.max=2 --cgroup-version 2 --parent-cgroup a/b \
             --resource-limit no-file=64 --resource-limit fsize=4096 --keep-fd 3 --keep-fd 9 --vhost-net"
        );
        let expected = JailSpec {
            id: InstanceId::parse("vm-1").unwrap(),
            exec_file: "/bin/vmm".into(),
            user: User::new(1000, 100).unwrap(),
            base: "/jails".into(),
            network: NetworkSpec::Join("/run/netns/x".into()),
            daemonize: true,
            new_session: true,
            new_pid_ns: true,
            new_user_ns: true,
            cgroup_version: Version::V2,
            parent_cgroup: Some("a/b".into()),
            cgroup: vec!["memory.max=1".parse().unwrap(), "cpu.max=2".parse().unwrap()],
            limits: Limits { no_file: 64, file_size: Some(4096) },
            keep_fds: vec![3, 9],
            vhost_net: true,
            api_socket: "/run/firecracker.socket".into(),
            arguments: vec![],
            started: Started::default(),
        };
        assert_eq!(spec(&all), expected);
        let mut equals = String::new();
        for word in all.split_whitespace() {
            equals += if word.starts_with("--") { " " } else { "=" };
            equals += word;
        }
        assert_eq!(spec(&equals), expected);
        assert_eq!(spec(&format!("{NEEDED} --new-netns")).network, NetworkSpec::Empty);
    }

    #[test]
    fn what_follows_the_two_hyphens_is_the_vmms_and_says_where_its_socket_is() {
        let spec = |rest: &str| spec(&format!("{NEEDED} -- {rest}"));
        assert_eq!(
            spec("--no-api --config-file vm.json").arguments,
            ["--no-api", "--config-file", "vm.json"]
        );
        assert_eq!(spec("--help -- x").arguments, ["--help", "--", "x"]);
        assert_eq!(spec("--api-sock /api.sock").api_socket.to_str(), Some("/api.sock"));
        assert_eq!(spec("--api-sock=run/a --level debug").api_socket.to_str(), Some("run/a"));
        assert_eq!(spec("--api-sock").api_socket.to_str(), Some("/run/firecracker.socket"));
    }

    #[test]
    fn what_is_wrong_is_said_by_name_and_what_would_be_right() {
        let more = |flags: &str| format!("{NEEDED} {flags}");
        for (line, text) in [
            (String::new(), "--uid is missing; --id, --exec-file, --uid and --gid are needed"),
            ("--exec-file /x --uid 1 --gid 1".to_owned(), "--id is missing"),
            ("--id x --uid 1 --gid 1".to_owned(), "--exec-file is missing"),
            ("--id x --exec-file /x --uid 1".to_owned(), "--gid is missing"),
            (more("--id a/../b"), "Invalid instance ID: character '/' at position 1"),
            (more("--id .."), "Invalid instance ID: character '.' at position 0"),
            (more("--id="), "Invalid instance ID: its length is 0, it must be 1 to 64"),
            (more("--uid root"), "--uid is a number from 0 to 4294967294, not \"root\""),
            (more("--uid 4294967295"), "--uid is a number from 0 to 4294967294, not \"4294967295\""),
            (more("--gid -1"), "--gid is a number from 0 to 4294967294, not \"-1\""),
            (more("--netns /x --new-netns"), "--netns and --new-netns exclude each other"),
            (more("--cgroup memory.max"), "--cgroup: \"memory.max\" is no cgroup setting: there is no `=`"),
            (
                more("--cgroup ../x.y=1"),
                "accepted is CONTROLLER.PROPERTY=VALUE, such as memory.max=1073741824",
            ),
            (more("--cgroup-version 3"), "--cgroup-version is 1 or 2, not \"3\""),
            (
                more("--parent-cgroup ../up"),
                "--parent-cgroup \"../up\": accepted are names with `/` between them",
            ),
            (more("--parent-cgroup /abs"), "--parent-cgroup \"/abs\": accepted are names"),
            (
                more("--resource-limit no-file"),
                "--resource-limit \"no-file\": accepted are no-file=N and fsize=N",
            ),
            (more("--resource-limit no-file=many"), "\"many\" is no number; accepted are no-file=N"),
            (more("--resource-limit cpu=1"), "there is no \"cpu\"; accepted are no-file=N and fsize=N"),
            (more("--keep-fd 2"), "--keep-fd is a number from 3 to 2147483647, not \"2\""),
            (more("--daemonize=yes"), "unexpected argument for option '--daemonize': \"yes\""),
            (more("--nonsense"), "invalid option '--nonsense'"),
            (more("stray"), "unexpected argument \"stray\""),
            (more("--id"), "missing argument for option '--id'"),
        ] {
            let error = parse(&line).unwrap_err();
            let whole = error.starts_with("Arguments parsing error: ") && error.ends_with("try --help.");
            assert!(whole && error.contains(text), "{line}: {error}");
        }
    }

    #[test]
    fn help_and_version_win_over_everything_after_them() {
        assert_eq!(parse("-h --nonsense"), Ok(Invocation::Help));
        assert_eq!(parse("--help"), Ok(Invocation::Help));
        assert_eq!(parse("--version"), Ok(Invocation::Version));
        assert_eq!(parse("-V"), Ok(Invocation::Version));
        assert!(version().starts_with("yun-jailer 0."));
    }

    #[test]
    fn help_explains_every_flag() {
        let source = include_str!("jailer_args.rs");
        let (_, parser) = source.split_once("match name {").unwrap();
        let (parser, _) = parser.split_once("fn limit(").unwrap();
        let mut flags = 0;
        for line in parser.lines().filter(|line| line.starts_with("            \"")) {
            let flag = line.split('"').nth(1).unwrap();
            assert!(HELP.contains(&format!("--{flag} ")), "--{flag} is not explained");
            flags += 1;
        }
        assert_eq!(flags, 17);
        assert!(HELP.lines().all(|line| line.chars().count() <= 120));
    }
}
