//! A VMM in its jail: what is asked for, and the straight line that leads there.
//!
//! ```text
//!   jailer                              janitor              the VMM to be (the jailer itself, or its child)
//!     close descriptors, clear environment
//!     make tree and cgroup
//!     hire ───────────────────────────▶ waits
//!     (fork, if the VMM needs a pid namespace) ──────────────▶ join cgroup and network
//!     record the pid, write the pid file                       unshare, mount, pivot_root
//!     end with 0                          │                    limits, user, capabilities
//!                                         │                    execve
//!                                         ▼                      ⋮ ends
//!                                       removes tree and cgroup ◀┘
//! ```
//! Whatever fails, nothing stays: before the janitor is hired the jailer removes what it made, afterwards the janitor does,
//! and the jailer reports only then.

use std::convert::Infallible;
use std::error::Error;
use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::waitpid;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, Pid, execve, fork, getpgrp, getpid, setsid};

use super::cgroup::{CgroupError, CgroupSpec, Group, Host, Setting, Version};
use super::descriptors::{self, KeepError};
use super::dir::Dir;
use super::janitor::Janitor;
use super::lock::Process;
use super::namespaces::{self, NamespaceError, Network};
use super::privileges::{self, Limits, PrivilegeError, User};
use super::tree::{ExecFile, Tree, TreeError, TreeSpec};
use crate::spec::InstanceId;

/// The network that a VMM is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetworkSpec {
    /// The caller's.
    #[default]
    Callers,
    /// The namespace that this file is, such as `/run/netns/NAME`.
    Join(PathBuf),
    /// An empty namespace of its own.
    Empty,
}

/// When the front began its work, in microseconds: for the VMM's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// Monotonic time.
    pub monotonic_us: u64,
    /// CPU time of this process.
    pub cpu_us: u64,
}

impl Started {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self {
            monotonic_us: clock_us(ClockId::CLOCK_MONOTONIC),
            cpu_us: clock_us(ClockId::CLOCK_PROCESS_CPUTIME_ID),
        }
    }
}

fn clock_us(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("these two clocks exist on every Linux");
    let (seconds, nanoseconds) = (time.tv_sec().unsigned_abs(), time.tv_nsec().unsigned_abs());
    seconds * 1_000_000 + nanoseconds / 1000
}

/// A VMM and the jail it is to live in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailSpec {
    /// The microVM's name, and the jail's.
    pub id: InstanceId,
    /// The VMM's executable, which must need no other file: static.
    pub exec_file: PathBuf,
    /// The VMM's user and group.
    pub user: User,
    /// The directory that holds all jails. It exists.
    pub base: PathBuf,
    /// Its network.
    pub network: NetworkSpec,
    /// Whether it leaves its session, and has `/dev/null` for its standard descriptors.
    pub daemonize: bool,
    /// Whether this process begins a session, which the VMM and its janitor stay in.
    pub new_session: bool,
    /// Whether it is the first process of a pid namespace.
    pub new_pid_ns: bool,
    /// Whether it is in a user namespace without any other user.
    pub new_user_ns: bool,
    /// Which cgroups.
    pub cgroup_version: Version,
    /// Below which cgroup, named from the mount on; `None` for the exec file's name.
    pub parent_cgroup: Option<PathBuf>,
    /// Values for its cgroup. Without any it has none of its own.
    pub cgroup: Vec<Setting>,
    /// Its limits.
    pub limits: Limits,
    /// Descriptors of this process that it inherits besides the standard ones.
    pub keep_fds: Vec<RawFd>,
    /// Whether it has `/dev/vhost-net`.
    pub vhost_net: bool,
    /// Its API's socket as it sees it, which is removed if it dies without doing so.
    pub api_socket: PathBuf,
    /// Arguments after its id and the start times.
    pub arguments: Vec<OsString>,
    /// When work on it began.
    pub started: Started,
}

/// Why there is no VMM in a jail. Nothing of the jail is left.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A forked process has one thread, and would find locks of the others taken.
    #[error("this process has {0} threads; a jail is made by a process with one")]
    Threads(usize),
    /// A descriptor that is to be kept can't be.
    #[error(transparent)]
    Descriptor(#[from] KeepError),
    /// The named network namespace can't be opened.
    #[error("can't open the network namespace {}", path.display())]
    Network {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The files can't be made.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The cgroup can't be made.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A namespace can't be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// Privileges can't be given up.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// The VMM can't be executed.
    #[error("can't execute the copy of {} in the jail{hint}", path.display())]
    Exec {
        /// The exec file.
        path: PathBuf,
        /// What is probably wrong.
        hint: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// An argument holds a NUL byte.
    #[error("an argument has a NUL byte in it: {0:?}")]
    Argument(OsString),
    /// The host refuses something else.
    #[error("can't {doing}")]
    Host {
        /// To do what.
        doing: &'static str,
        /// What the host says.
        source: io::Error,
    },
    /// The process that was to become the VMM failed, in these words.
    #[error("{0}")]
    Inside(String),
}

fn host<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError::Host { doing, source: error.into() }
}

/// An error with all its causes, in one line.
#[must_use]
pub fn in_words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Makes the jail, and becomes the VMM in it: if all is well this returns only where the VMM is a process of its own, a
/// child of this one, and says its pid. That is so with a pid namespace, and for a daemon if this process leads a process
/// group, which can't leave its session.
///
/// This process is used up: its descriptors, environment and umask are changed at once. It must have one thread. Its files
/// and cgroups are removed by a janitor after the VMM's end.
///
/// # Errors
/// [`JailError`]; then nothing is left. This process may be in the jail by then, without privileges, and should report and
/// end.
pub fn run(spec: &JailSpec) -> Result<Pid, JailError> {
    let threads = fs::read_dir("/proc/self/task").map_err(host("count threads"))?.count();
    if threads != 1 {
        return Err(JailError::Threads(threads));
    }
    (0..3).chain(spec.keep_fds.iter().copied()).try_for_each(descriptors::check_harmless)?;
    descriptors::close_all_but(&spec.keep_fds)?;
    // SAFETY: there is no other thread that could read the environment.
    unsafe { libc::clearenv() };
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    if spec.new_session {
        // Else the end of our parent would orphan our process group, and that of a stopped VMM would get SIGHUP (setpgid(2)).
        setsid().map_err(host("begin a new session"))?;
    }
    let mut jail = Jail::make(spec)?;
    let mut janitor = match Janitor::hire(&jail.tree, jail.group.as_ref()) {
        Ok(janitor) => janitor,
        Err(error) => {
            jail.undo();
            return Err(host("make the janitor's process")(error));
        }
    };
    let result = if jail.needs_child() {
        jail.spawn(&mut janitor)
    } else {
        jail.become_vmm(false).map(|never| match never {})
    };
    result.inspect_err(|_| janitor.undo())
}

/// A jail that is made, with everything at hand that its VMM can't reach from inside.
struct Jail<'a> {
    spec: &'a JailSpec,
    tree: Tree,
    group: Option<Group>,
    root: Dir,
    network: Network,
    /// `/dev/null`.
    null: fs::File,
    /// The `/proc` outside, if it is needed.
    proc: Option<OwnedFd>,
    program: CString,
}

impl<'a> Jail<'a> {
    fn make(spec: &'a JailSpec) -> Result<Self, JailError> {
        // What can be refused without making anything comes first.
        let network = match &spec.network {
            NetworkSpec::Callers => Network::Callers,
            NetworkSpec::Empty => Network::Empty,
            NetworkSpec::Join(path) => Network::Joined(
                descriptors::open_path(path)
                    .map_err(|source| JailError::Network { path: path.clone(), source })?,
            ),
        };
        let null = descriptors::null().map_err(host("open /dev/null"))?;
        let open_proc = || descriptors::open_path(Path::new("/proc"));
        let proc = spec.new_user_ns.then(open_proc).transpose().map_err(host("open /proc"))?;
        let exec_file = ExecFile::open(&spec.exec_file)?;
        let program = c_string(&Path::new("/").join(exec_file.name()).into())?;
        let wanted = spec.cgroup_below(Path::new(exec_file.name()));
        let tree = Tree::make(&TreeSpec {
            base: &spec.base,
            exec_file: &exec_file,
            id: &spec.id,
            owner: spec.user.ids(),
            api_socket: &spec.api_socket,
            vhost_net: spec.vhost_net,
        })?;
        let rest = (|| {
            let root = tree.root()?;
            let make = |wanted: &CgroupSpec| Group::make(&Host::here()?, wanted, spec.id.as_str());
            let group = wanted.as_ref().map(make).transpose()?;
            Ok((root, group))
        })();
        match rest {
            Ok((root, group)) => {
                let mut jail = Self { spec, tree, group, root, network, null, proc, program };
                if jail.needs_child() {
                    jail.tree.expect_pid_file();
                } else if let Err(error) = jail.record(getpid()) {
                    jail.undo();
                    return Err(error);
                }
                Ok(jail)
            }
            Err(error) => {
                tree.undo(None);
                Err(error)
            }
        }
    }

    fn undo(&self) {
        if let Some(group) = &self.group {
            group.undo();
        }
        // Last, for it has the lock.
        self.tree.undo(None);
    }

    fn needs_child(&self) -> bool {
        // Neither the leader of a session nor that of a process group can begin a new session (setsid(2)).
        self.spec.new_pid_ns || (self.spec.daemonize && getpgrp() == getpid())
    }

    fn record(&mut self, pid: Pid) -> Result<(), JailError> {
        let process = Process::of(pid.as_raw()).map_err(host("look at the VMM's process in /proc"))?;
        Ok(self.tree.record(process)?)
    }

    /// Makes a child that becomes the VMM, and sees to it that it has.
    fn spawn(&mut self, janitor: &mut Janitor) -> Result<Pid, JailError> {
        let (mut ours, theirs) = UnixStream::pair().map_err(host("make a pair of sockets"))?;
        if self.spec.new_pid_ns {
            // Of this process's children, not of itself.
            unshare(CloneFlags::CLONE_NEWPID).map_err(host("make a pid namespace"))?;
        }
        // SAFETY: `run` has checked that there is no other thread whose locks the child could find taken.
        let child = match unsafe { fork() }.map_err(host("make the VMM's process"))? {
            ForkResult::Child => {
                drop(ours);
                self.become_vmm_in_child(theirs)
            }
            ForkResult::Parent { child } => child,
        };
        drop(theirs);
        let done = (|| {
            janitor.watch(child.as_raw()).map_err(host("have the VMM's process watched"))?;
            self.record(child)?;
            self.tree.write_pid_file(child.as_raw())?;
            ours.write_all(&[0]).map_err(host("let the VMM's process go on"))?;
            let mut words = String::new();
            // Until it is closed, by `execve` or by its end.
            ours.read_to_string(&mut words).map_err(host("hear of the VMM's process"))?;
            if words.is_empty() { Ok(child) } else { Err(JailError::Inside(words)) }
        })();
        done.inspect_err(|_| {
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
        })
    }

    /// In the child: waits until it may go on, becomes the VMM, or says why not and ends.
    fn become_vmm_in_child(&self, mut parent: UnixStream) -> ! {
        // Without a word the parent is gone, and the janitor is about to remove everything.
        if parent.read_exact(&mut [0]).is_ok() {
            let Err(error) = self.become_vmm(true);
            let _ = parent.write_all(in_words(&error).as_bytes());
        }
        // SAFETY: nothing of the parent's is to be run again, neither destructors nor what is registered for exit.
        unsafe { libc::_exit(1) }
    }

    /// The straight line into the jail.
    fn become_vmm(&self, is_child: bool) -> Result<Infallible, JailError> {
        let spec = self.spec;
        if let Some(group) = &self.group {
            group.join(std::process::id())?;
        }
        namespaces::enter(&self.root, &self.network)?;
        if spec.daemonize {
            setsid().map_err(host("begin a new session"))?;
        }
        spec.limits.apply()?;
        privileges::drop_to(spec.user, self.proc.as_ref())?;
        for fd in &spec.keep_fds {
            // SAFETY: `close_all_but` has found it open, and nobody here closes it.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
            descriptors::keep_over_exec(fd).map_err(host("keep a descriptor"))?;
        }
        let arguments = self.arguments(is_child)?;
        let stderr = descriptors::save_stderr().map_err(host("keep standard error"))?;
        if spec.daemonize {
            descriptors::redirect_to(&self.null).map_err(host("redirect the standard descriptors"))?;
        }
        let source = match execve(&self.program, &arguments, &[] as &[CString]) {
            Ok(never) => match never {},
            Err(error) => error.into(),
        };
        // There is nobody left to tell if this fails.
        let _ = descriptors::restore_stderr(&stderr);
        Err(exec_failed(&spec.exec_file, source))
    }

    fn arguments(&self, is_child: bool) -> Result<Vec<CString>, JailError> {
        let Started { monotonic_us, cpu_us } = self.spec.started;
        // A process keeps its CPU time when it executes something, and a child begins with none.
        let (own_us, parents_us) = if is_child {
            (0, clock_us(ClockId::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(cpu_us))
        } else {
            (cpu_us, 0)
        };
        let mut arguments = vec![self.program.clone()];
        let flags = [
            ("--id", self.spec.id.to_string()),
            ("--start-time-us", monotonic_us.to_string()),
            ("--start-time-cpu-us", own_us.to_string()),
            ("--parent-cpu-time-us", parents_us.to_string()),
        ];
        for (flag, value) in flags {
            arguments.push(c_string(&flag.into())?);
            arguments.push(c_string(&value.into())?);
        }
        for argument in &self.spec.arguments {
            arguments.push(c_string(argument)?);
        }
        Ok(arguments)
    }
}

impl JailSpec {
    /// The cgroup that is asked for; `None` if the VMM stays in the caller's.
    fn cgroup_below(&self, exec_name: &Path) -> Option<CgroupSpec> {
        // As Firecracker's: without values version 1 makes nothing, and version 2 joins a parent that was named.
        let joins_parent = self.cgroup_version == Version::V2 && self.parent_cgroup.is_some();
        (!self.cgroup.is_empty() || joins_parent).then(|| CgroupSpec {
            version: self.cgroup_version,
            parent: self.parent_cgroup.clone().unwrap_or_else(|| exec_name.to_owned()),
            settings: self.cgroup.clone(),
        })
    }
}

fn c_string(text: &OsString) -> Result<CString, JailError> {
    CString::new(text.as_bytes()).map_err(|_| JailError::Argument(text.clone()))
}

fn exec_failed(path: &Path, source: io::Error) -> JailError {
    let hint = match source.raw_os_error() {
        Some(libc::ENOENT) => ", where no interpreter or shared library is: it must be linked statically",
        Some(libc::ENOEXEC) => ", since it is no program",
        _ => "",
    };
    JailError::Exec { path: path.to_owned(), hint, source }
}
