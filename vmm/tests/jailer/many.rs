//! Hundreds of jails in a row leave the machine as it was.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::common::{eventually, say};
use super::{Setup, exec_file, files, jails, signal_of};

/// How many microVMs are jailed, and how many of them at a time. Each is a VMM whose API answers; none has a guest.
const JAILS: usize = 500;
const AT_A_TIME: usize = 4;
/// How long that may take: it takes seconds, so that a wait for some timeout would show even where everything is emulated.
const LIMIT: Duration = Duration::from_secs(300);

/// Everything that a jail could leave behind.
#[derive(Debug)]
struct World {
    mounts: String,
    cgroups: BTreeSet<PathBuf>,
    namespaces: BTreeSet<PathBuf>,
    /// Processes that are, or were made by, a jailer.
    processes: BTreeSet<PathBuf>,
}

impl World {
    fn now() -> Self {
        let mut namespaces = BTreeSet::new();
        let mut processes = BTreeSet::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let links = fs::read_dir(entry.path().join("ns")).into_iter().flatten().flatten();
            namespaces.extend(links.filter_map(|link| fs::read_link(link.path()).ok()));
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if ["yun-jailer", "yun-janitor"].contains(&name.trim()) {
                processes.insert(entry.path());
            }
        }
        let cgroups = files(Path::new("/sys/fs/cgroup")).into_iter().filter(|path| path.is_dir()).collect();
        Self { mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(), cgroups, namespaces, processes }
    }

    /// What there is that was not before. Other processes of the machine may have gone meanwhile.
    fn since(&self, before: &Self) -> Vec<PathBuf> {
        let mut new: Vec<PathBuf> = self.cgroups.difference(&before.cgroups).cloned().collect();
        new.extend(self.namespaces.difference(&before.namespaces).cloned());
        new.extend(self.processes.difference(&before.processes).cloned());
        new
    }
}

#[test]
fn five_hundred_jails_leave_tree_cgroups_mounts_and_namespaces_as_they_were() {
    if !jails() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroup = mounted.lines().any(|line| line.contains(" - cgroup2 "));
    exec_file();
    let before = World::now();
    let began = Instant::now();
    let next = Mutex::new(0..JAILS);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(number) = { next.lock().unwrap().next() } {
                    one(base.path(), number, cgroup);
                }
            });
        }
    });
    let took = began.elapsed();
    eventually("the end of every tree", || files(base.path()).is_empty().then_some(()));
    let mut new = Vec::new();
    let probe = || {
        new = World::now().since(&before);
        new.is_empty().then_some(())
    };
    eventually("nothing new on the machine", probe);
    assert_eq!(World::now().mounts, before.mounts);
    say(&format!("{JAILS} jails, {AT_A_TIME} at a time, in {:.1} s; nothing is left", took.as_secs_f64()));
    assert!(took < LIMIT, "{took:?}");
}

/// One jail: of every kind in turn, ended in every way in turn.
fn one(base: &Path, number: usize, cgroup: bool) {
    let mut setup = Setup::new().with(&["--chroot-base-dir", base.to_str().unwrap()]);
    setup.id = format!("vm-{number}");
    if cgroup && number % 5 < 2 {
        let parent = format!("yun-jailer-tests-{}-many", std::process::id());
        setup = setup.with(&[
            "--cgroup-version",
            "2",
            "--cgroup",
            "cgroup.max.depth=0",
            "--parent-cgroup",
            &parent,
        ]);
    }
    if number.is_multiple_of(3) {
        setup = setup.with(&["--new-netns"]);
    }
    let root = base.join("yun-vmm").join(&setup.id).join("root");
    let apart = number % 4 == 1;
    let mut jailed = if apart { setup.with(&["--new-pid-ns"]).launch() } else { setup.launch() };
    jailed.root = root;
    if apart {
        jailed.find_vmm();
    }
    jailed.answers();
    let last = if number.is_multiple_of(2) { Signal::SIGTERM } else { Signal::SIGKILL };
    jailed.signal(last);
    let status = jailed.ends();
    if !apart {
        assert!(status.success() || signal_of(status) == Some(last), "{status}: {}", jailed.output.text());
    }
}
