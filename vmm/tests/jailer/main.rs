//! The jailer as a process, with `yun-vmm` in the jail: needs root, and nothing else of the machine that Linux does not have.
//!
//! | room | one idea |
//! |---|---|
//! | [`confinement`] | what the VMM is, sees and has open |
//! | [`lifetime`] | pids, statuses, failures, ends, and that nothing stays |
//! | [`cgroups`] | both versions, where they are mounted |
//! | [`guests`] | a microVM in the jail |
//! | [`many`] | hundreds of jails in a row leave the machine as it was |
//!
//! What Firecracker's jailer does for whoever calls it, and the test that holds this one to it:
//!
//! | | test |
//! |---|---|
//! | closes descriptors | `stray_descriptors_stay_outside_and_named_ones_get_in` |
//! | clears the environment, hands on arguments | `it_has_no_environment_and_the_arguments_of_firecrackers_jailer` |
//! | copies the executable into `<base>/<exec>/<id>/root` | `the_jailer_becomes_the_vmm_whose_status_is_its_own` |
//! | cgroups: version 1, version 2, `--parent-cgroup` | all of [`cgroups`] |
//! | `--resource-limit`, 2,048 descriptors without | `its_limits_are_those_given_and_2048_descriptors_if_none_is` |
//! | `--netns` | `its_namespaces_are_its_own_and_its_network_is_what_was_asked_for` |
//! | a mount namespace and `pivot_root` | `its_root_and_working_directory_are_the_jail_and_nothing_else_is_mounted` |
//! | nodes of devices (not userfaultfd's: no call here needs it, and its filter forbids it) | `its_devices_are_kvm_tun_and_urandom` |
//! | drops to `--uid` and `--gid` | `it_is_an_unprivileged_user_without_capabilities_or_a_way_to_any` |
//! | `--daemonize` | `a_daemon_has_a_session_of_its_own_and_nothing_of_the_callers` |
//! | `--new-pid-ns`, the pid in a file | `with_a_pid_namespace_the_jailer_ends_with_0_and_the_pid_is_in_a_file` |
//! | refuses symbolic and hard links | `links_in_the_jail_are_refused` |
//! | refuses a wrong command line | `the_command_line_is_refused_with_153` |
//! | cleans up (which that one leaves to the caller) | `five_hundred_jails_leave_tree_cgroups_mounts_and_namespaces_as_they_were` |
//!
//! What can't be run here is skipped, loudly; with `$YUN_REQUIRE_JAIL`, `$YUN_REQUIRE_CGROUP1`, `$YUN_REQUIRE_CGROUP2` or
//! `$YUN_REQUIRE_KVM` set to 1 it fails.

#![allow(clippy::unwrap_used)] // clippy takes only functions with #[test] for tests

#[path = "../common/mod.rs"]
mod common;

mod cgroups;
mod confinement;
mod guests;
mod lifetime;
mod many;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;

use common::{Captured, eventually, http, say};

/// Whom the VMM runs as: nobody else does.
const UID: u32 = 47_110;
const GID: u32 = 47_120;

/// Says once per reason that tests are skipped; fails if they must not be.
fn skip(variable: &str, why: &str) -> bool {
    let required = std::env::var_os(variable).is_some_and(|value| value == "1");
    assert!(!required, "{variable} is set, and {why}");
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap().insert(variable.to_owned()) {
        say(&format!("skipped: {why}"));
    }
    false
}

/// Whether this machine lets us jail anything. It is found out by trying.
fn jails() -> bool {
    static CAN: OnceLock<Result<(), String>> = OnceLock::new();
    let can = CAN.get_or_init(|| {
        if !Uid::effective().is_root() {
            return Err("this is not root".to_owned());
        }
        let command =
            "d=$(mktemp -d) && trap 'rm -r \"$d\"' EXIT && mknod \"$d/n\" c 1 9 && unshare -muipnC -f true";
        let output = Command::new("sh").args(["-c", command]).output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    });
    match can {
        Ok(()) => true,
        Err(why) => {
            skip("YUN_REQUIRE_JAIL", &format!("nothing can be jailed here ({why}); no jailer was run"))
        }
    }
}

/// The VMM that is jailed: as small as what is shipped, for it is copied into each jail.
fn exec_file() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        // One for each VMM that was ever tested, and never replaced: tests may run twice at once, here and in L1.
        let metadata = fs::metadata(common::vmm()).unwrap();
        let (len, nanoseconds) = (metadata.len(), metadata.mtime_nsec());
        let dir = format!("jailer/{len}-{}.{nanoseconds}", metadata.mtime());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(dir);
        let (file, part) = (dir.join("yun-vmm"), dir.join(format!("yun-vmm.{}", std::process::id())));
        if !file.exists() {
            fs::create_dir_all(&dir).unwrap();
            let stripped = Command::new("strip").arg("-o").arg(&part).arg(common::vmm()).status();
            assert!(stripped.unwrap().success(), "strip (of binutils) does not work");
            fs::rename(part, &file).unwrap();
        }
        file
    })
}

/// The jailer under test: `$YUN_JAILER` (an optimised one, say), or the one that was built along with the tests.
fn jailer() -> PathBuf {
    std::env::var_os("YUN_JAILER").map_or_else(|| env!("CARGO_BIN_EXE_yun-jailer").into(), PathBuf::from)
}

/// Runs a jailer that starts nothing, or whose output ends by itself: its status and what it said.
fn run(arguments: &[OsString]) -> (ExitStatus, String) {
    let mut command = Command::new(jailer());
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&said).into_owned())
}

/// A jail that is to be.
struct Setup {
    base: TempDir,
    id: String,
    flags: Vec<OsString>,
    arguments: Vec<OsString>,
    command: Command,
}

impl Setup {
    fn new() -> Self {
        let command = Command::new(jailer());
        let (flags, arguments) = (Vec::new(), Vec::new());
        Self { base: tempfile::tempdir().unwrap(), id: "vm-1".to_owned(), flags, arguments, command }
    }

    /// With these flags of the jailer's.
    fn with(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(OsString::from));
        self
    }

    /// With these arguments of the VMM's.
    fn handing_on(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    /// Whole command line.
    fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["--id", &self.id, "--exec-file"].map(OsString::from).into();
        words.push(exec_file().into());
        words.extend(
            ["--uid", &UID.to_string(), "--gid", &GID.to_string(), "--chroot-base-dir"].map(OsString::from),
        );
        words.push(self.base.path().into());
        words.extend(self.flags.iter().cloned());
        words.push("--".into());
        words.extend(self.arguments.iter().cloned());
        words
    }

    fn root(&self) -> PathBuf {
        self.base.path().join("yun-vmm").join(&self.id).join("root")
    }

    /// Runs it, and expects that there is no VMM: its status, and what it said. Nothing is left.
    fn fails(&self) -> (Option<i32>, String) {
        let before = files(self.base.path());
        let (status, said) = run(&self.words());
        assert_eq!(files(self.base.path()), before, "{said}");
        (status.code(), said)
    }

    /// Starts it, and waits until the VMM's API answers.
    fn start(self) -> Jailed {
        let mut jailed = self.launch();
        jailed.answers();
        jailed
    }

    /// Starts it.
    fn launch(mut self) -> Jailed {
        let words = self.words();
        self.command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut jailer = self.command.spawn().unwrap();
        let output = Captured::of(jailer.stdout.take().unwrap().chain(jailer.stderr.take().unwrap()));
        Jailed { root: self.root(), base: self.base, jailer, output, vmm: None }
    }
}

/// A VMM in a jail, or its jailer at work. Killed when dropped.
struct Jailed {
    base: TempDir,
    root: PathBuf,
    jailer: Child,
    output: Captured,
    /// If it is not the jailer's process.
    vmm: Option<Pid>,
}

impl Jailed {
    fn socket(&self) -> PathBuf {
        self.root.join("run/firecracker.socket")
    }

    /// Waits until the API answers, through the jail's path.
    fn answers(&mut self) {
        let reply = eventually("the jailed API", || {
            if let Some(status) = self.jailer.try_wait().unwrap().filter(|status| !status.success()) {
                panic!("ended with {status}: {}", self.output.text());
            }
            http::request(&self.socket(), "GET", "/", "").ok()
        });
        assert!(reply.status == 200 && reply.body.contains("\"id\":\"vm-"), "{reply:?}");
    }

    /// The process that runs the VMM, as seen from here.
    fn pid(&self) -> Pid {
        self.vmm.unwrap_or_else(|| Pid::from_raw(i32::try_from(self.jailer.id()).unwrap()))
    }

    /// For a jailer that ends once there is a VMM: reads the pid file.
    fn find_vmm(&mut self) -> Pid {
        assert!(self.jailer.wait().unwrap().success(), "{}", self.output.text());
        let pid: i32 = fs::read_to_string(self.root.join("yun-vmm.pid")).unwrap().parse().unwrap();
        self.vmm = Some(Pid::from_raw(pid));
        Pid::from_raw(pid)
    }

    /// A file of /proc about it.
    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid().to_string()).join(name)
    }

    /// A line of /proc/PID/status.
    fn status(&self, key: &str) -> String {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
        line.unwrap_or_else(|| panic!("no {key} in {status}")).trim().replace('\t', " ")
    }

    /// One of its namespaces.
    fn namespace(&self, kind: &str) -> PathBuf {
        fs::read_link(self.proc(&format!("ns/{kind}"))).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    fn ends(&mut self) -> ExitStatus {
        if let Some(pid) = self.vmm {
            eventually("the VMM's end", || is_over(pid).then_some(()));
        }
        let what = format!("the end of {}", self.jailer.id());
        eventually(&what, || self.jailer.try_wait().unwrap())
    }

    /// Waits until nothing of it is left.
    fn vanishes(&self) {
        eventually(&format!("the end of {:?}", files(self.base.path())), || {
            files(self.base.path()).is_empty().then_some(())
        });
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        if self.jailer.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.jailer.kill();
            let _ = self.jailer.wait();
        }
        if let Some(vmm) = self.vmm {
            let _ = kill(vmm, Signal::SIGKILL);
        }
    }
}

/// Every path below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        // What goes meanwhile is no longer there.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                dirs.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Whether a process that is nobody's here has ended; it may take a while until someone has waited for it.
fn is_over(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

/// The signal that ended it.
fn signal_of(status: ExitStatus) -> Option<Signal> {
    status.signal().and_then(|number| Signal::try_from(number).ok())
}
