//! What the stores' fault tests have in common: processes that are killed, disks that are small, work that is watched.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::progress::Work;

/// Taken for writing while a child may have descriptors of this process: from fork to exec.
static FORKING: RwLock<()> = RwLock::new(());

/// For tests that close a locked file and expect that it is unlocked: nobody forks as long as they have this.
pub(in crate::agent) fn nobody_forks() -> RwLockReadGuard<'static, ()> {
    FORKING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `command` to its end.
pub(in crate::agent) fn output(command: &mut Command) -> io::Result<Output> {
    let child = {
        let _forking = FORKING.write().unwrap_or_else(PoisonError::into_inner);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?
    };
    child.wait_with_output()
}

const DIR: &str = "YUN_TEST_CHILD_DIR";
const KILL_AT: &str = "YUN_TEST_CHILD_KILL_AT";

/// The command that runs the ignored test `name` of `module` in a process of its own, with `dir`.
fn child(module: &str, name: &str, dir: &Path) -> Vec<OsString> {
    let module = module.split_once("::").map_or(module, |(_, module)| module);
    let mut words = vec![std::env::current_exe().unwrap().into_os_string()];
    words.extend(["--exact", &format!("{module}::{name}"), "--ignored", "--nocapture"].map(OsString::from));
    assert!(dir.is_absolute());
    words
}

/// In such a process: its directory. Nothing in any other, who just ran all ignored tests.
pub(in crate::agent) fn child_dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

/// Runs `name` of `module` with `dir`; it is killed at the step that comes after `steps` others, in [`killed_work`].
pub(in crate::agent) fn run_killed(module: &str, name: &str, dir: &Path, steps: usize) -> Output {
    let words = child(module, name, dir);
    let mut command = Command::new(&words[0]);
    output(command.args(&words[1..]).env(DIR, dir).env(KILL_AT, steps.to_string())).unwrap()
}

/// Whether SIGKILL ended it.
pub(in crate::agent) fn was_killed(output: &Output) -> bool {
    output.status.signal() == Some(libc::SIGKILL)
}

/// Work that ends the process as [`run_killed`] said.
pub(in crate::agent) fn killed_work() -> Work {
    let at: usize = std::env::var(KILL_AT).unwrap().parse().unwrap();
    at_step(at, |_| kill(Pid::this(), Signal::SIGKILL).unwrap())
}

/// Work that calls `hook` with a step's name, at the step that comes after `steps` others.
pub(in crate::agent) fn at_step(steps: usize, hook: impl Fn(&'static str) + Send + Sync + 'static) -> Work {
    let seen = AtomicUsize::new(0);
    Work::watched(move |name| {
        if seen.fetch_add(1, Ordering::Relaxed) == steps {
            hook(name);
        }
    })
}

/// Work that is cancelled at the step that comes after `steps` others.
pub(in crate::agent) fn cancelled_work(steps: usize) -> Arc<Work> {
    Arc::new_cyclic(|work: &std::sync::Weak<Work>| {
        let work = work.clone();
        at_step(steps, move |_| work.upgrade().unwrap().cancel().ask())
    })
}

/// Work that writes down its steps.
pub(in crate::agent) fn noted_work() -> (Work, Arc<Mutex<Vec<&'static str>>>) {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&steps);
    (Work::watched(move |name| notes.lock().unwrap().push(name)), steps)
}

/// What a test's directory is on.
#[derive(Clone, Copy, Debug)]
pub(in crate::agent) enum FileSystem {
    /// A tmpfs of 4 MiB.
    Small,
    /// One whose files can share blocks (XFS, 400 MiB).
    Sharing,
}

/// Runs `name` of `module` with an empty directory on such a file system. Says loudly if that can't be, and fails if
/// `$YUN_REQUIRE_MOUNT` (or `$YUN_REQUIRE_XFS`) is 1.
pub(in crate::agent) fn run_on(file_system: FileSystem, module: &str, name: &str) {
    let (variable, mount) = match file_system {
        FileSystem::Small => ("YUN_REQUIRE_MOUNT", "mount -t tmpfs -o size=4m none \"$0\""),
        FileSystem::Sharing => (
            "YUN_REQUIRE_XFS",
            "truncate -s 400M \"$0.img\" && mkfs.xfs -q \"$0.img\" && mount -o loop \"$0.img\" \"$0\"",
        ),
    };
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("mount");
    fs::create_dir(&dir).unwrap();
    // In a mount namespace of its own, which goes with it.
    let script = format!("{{ {mount}; }} || exit 42; exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]).arg(&dir).args(child(module, name, &dir)).env(DIR, &dir);
    let why = match output(&mut command) {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            return assert!(said.contains("1 passed"), "{said}");
        }
        Ok(output) if output.status.code() == Some(101) => panic!("{output:?}"),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let required = std::env::var_os(variable).is_some_and(|value| value == "1");
    assert!(!required, "{variable} is set, and there is no {file_system:?} file system here: {why}");
    eprintln!("skipped: {name}, for there is no {file_system:?} file system here: {why}");
}

/// Every file below `dir`, by its path from there.
pub(in crate::agent) fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path).iter().map(|below| Path::new(path.file_name().unwrap()).join(below)));
        } else {
            found.push(path.file_name().unwrap().into());
        }
    }
    found.sort();
    found
}

/// A file of `size` bytes with data at these offsets, 64 KiB each, and holes around them.
pub(in crate::agent) fn sparse_file(path: &Path, size: u64, data: &[u64]) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, byte) in data.iter().zip(1..) {
        file.write_all_at(&[byte; 64 << 10], *offset).unwrap();
    }
    file.sync_all().unwrap();
    file
}

/// Bytes that the file at `path` takes.
pub(in crate::agent) fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}
