//! Cgroups of a jailed VMM: version 1 and version 2, each where it is mounted with controllers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::common::{Guard, eventually};
use super::{Setup, jails, skip};

/// Where a hierarchy is mounted that `wanted` likes: it is shown file system type and options.
fn mounted(wanted: impl Fn(&Path, &str, &str) -> bool) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        wanted(Path::new(words[1]), words[2], words[3]).then(|| words[1].into())
    })
}

fn v1(controller: &str) -> Option<PathBuf> {
    mounted(|_, kind, options| kind == "cgroup" && options.split(',').any(|option| option == controller))
}

/// A hierarchy of version 2 that has this controller to give.
fn v2(controller: &str) -> Option<PathBuf> {
    mounted(|path, kind, _| {
        let has = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        kind == "cgroup2" && has.split_whitespace().any(|name| name == controller)
    })
}

fn has_v1() -> bool {
    jails()
        && (v1("pids").is_some() && v1("cpuset").is_some()
            || skip(
                "YUN_REQUIRE_CGROUP1",
                "no cgroups of version 1 with pids and cpuset are mounted; none was used",
            ))
}

fn has_v2() -> bool {
    jails()
        && (v2("pids").is_some() && v2("memory").is_some()
            || skip(
                "YUN_REQUIRE_CGROUP2",
                "no cgroup hierarchy of version 2 has the controllers pids and memory; none was used",
            ))
}

/// A parent that no other test uses.
fn parent(name: &str) -> String {
    format!("yun-jailer-tests-{}-{name}", std::process::id())
}

fn pids(group: &Path) -> String {
    fs::read_to_string(group.join("cgroup.procs")).unwrap().trim().to_owned()
}

fn vanishes(path: &Path) {
    eventually(&format!("the end of {}", path.display()), || (!path.exists()).then_some(()));
}

#[test]
fn version_1_has_a_directory_per_hierarchy_and_leaves_none() {
    if !has_v1() {
        return;
    }
    let parent = parent("v1");
    let flags = [
        "--cgroup",
        "pids.max=77",
        "--cgroup",
        "cpuset.cpus=0",
        "--parent-cgroup",
        &format!("{parent}/deep"),
    ];
    let mut jailed = Setup::new().with(&flags).start();
    let group = |controller| v1(controller).unwrap().join(&parent).join("deep/vm-1");
    assert_eq!(fs::read_to_string(group("pids").join("pids.max")).unwrap().trim(), "77");
    assert_eq!(fs::read_to_string(group("cpuset").join("cpuset.cpus")).unwrap().trim(), "0");
    for controller in ["pids", "cpuset"] {
        assert_eq!(pids(&group(controller)), jailed.pid().to_string());
    }
    // Its cgroup namespace begins there.
    let inside = fs::read_to_string(jailed.proc("cgroup")).unwrap();
    let outside = format!("/{parent}/deep/vm-1");
    assert_eq!(inside.lines().filter(|line| line.ends_with(&outside)).count(), 2, "{inside}");
    jailed.signal(Signal::SIGKILL);
    jailed.ends();
    for controller in ["pids", "cpuset"] {
        vanishes(&v1(controller).unwrap().join(&parent));
    }
    jailed.vanishes();
}

#[test]
fn a_jail_of_the_same_id_below_another_base_does_not_get_the_first_ones_cgroup() {
    if !has_v1() {
        return;
    }
    let parent = parent("twins");
    let flags = ["--cgroup", "pids.max=77", "--parent-cgroup", &parent];
    let mut first = Setup::new().with(&flags).start();
    let group = v1("pids").unwrap().join(&parent).join("vm-1");
    let (status, said) = Setup::new().with(&flags).handing_on(&["--version"]).fails();
    assert_eq!(status, Some(1));
    assert!(said.contains(&format!("the cgroup {} is in use by another jail", group.display())), "{said}");
    assert_eq!(pids(&group), first.pid().to_string());
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ends().code(), Some(0));
    first.vanishes();
    let second = Setup::new().with(&flags).start();
    assert_eq!(pids(&group), second.pid().to_string());
}

#[test]
fn version_2_is_one_directory_with_its_controllers_and_leaves_none() {
    if !has_v2() {
        return;
    }
    let parent = parent("v2");
    let flags = [
        "--cgroup-version",
        "2",
        "--cgroup",
        "pids.max=77",
        "--cgroup",
        "memory.max=268435456",
        "--cgroup",
        "cgroup.max.depth=0",
    ];
    let mut jailed = Setup::new().with(&flags).with(&["--parent-cgroup", &parent, "--new-pid-ns"]).launch();
    jailed.find_vmm();
    jailed.answers();
    let group = v2("pids").unwrap().join(&parent).join("vm-1");
    assert_eq!(fs::read_to_string(group.join("pids.max")).unwrap().trim(), "77");
    assert_eq!(fs::read_to_string(group.join("memory.max")).unwrap().trim(), "268435456");
    assert_eq!(fs::read_to_string(group.join("cgroup.max.depth")).unwrap().trim(), "0");
    assert_eq!(pids(&group), jailed.pid().to_string(), "the janitor is not in it");
    jailed.signal(Signal::SIGTERM);
    jailed.ends();
    vanishes(&v2("pids").unwrap().join(&parent));
    jailed.vanishes();
}

#[test]
fn version_2_without_values_joins_a_cgroup_that_somebody_prepared_and_leaves_it() {
    if !jails() {
        return;
    }
    // Any hierarchy will do: no controller is needed.
    let Some(mount) = mounted(|_, kind, _| kind == "cgroup2") else {
        skip("YUN_REQUIRE_CGROUP2", "no cgroup hierarchy of version 2 is mounted; none was used");
        return;
    };
    let group = mount.join(parent("ready"));
    let flags = ["--cgroup-version", "2", "--parent-cgroup", group.file_name().unwrap().to_str().unwrap()];
    let (status, said) = Setup::new().with(&flags).fails();
    assert!(status == Some(1) && said.contains("No such file or directory"), "{said}");
    fs::create_dir(&group).unwrap();
    let mut jailed = Setup::new().with(&flags).start();
    assert_eq!(pids(&group), jailed.pid().to_string());
    jailed.signal(Signal::SIGTERM);
    jailed.ends();
    jailed.vanishes();
    eventually("an empty cgroup", || pids(&group).is_empty().then_some(()));
    fs::remove_dir(&group).unwrap();
}

#[test]
fn version_2_makes_and_removes_directories_even_without_controllers() {
    if !jails() {
        return;
    }
    let Some(mount) = mounted(|_, kind, _| kind == "cgroup2") else {
        skip("YUN_REQUIRE_CGROUP2", "no cgroup hierarchy of version 2 is mounted; none was used");
        return;
    };
    let parent = parent("bare");
    let flags = ["--cgroup-version", "2", "--cgroup", "cgroup.max.descendants=0", "--parent-cgroup", &parent];
    let mut jailed = Setup::new().with(&flags).start();
    assert_eq!(pids(&mount.join(&parent).join("vm-1")), jailed.pid().to_string());
    jailed.signal(Signal::SIGKILL);
    jailed.ends();
    vanishes(&mount.join(&parent));
}

#[test]
fn values_that_the_kernel_refuses_leave_nothing() {
    if !has_v1() {
        return;
    }
    let parent = parent("refused");
    let group = v1("pids").unwrap().join(&parent);
    for (setting, text) in [
        ("pids.max=many", "can't write \"many\" to "),
        ("pids.mux=1", "there is no file pids.mux in "),
        (
            "nonsense.max=1",
            "no cgroup hierarchy of version 1 with the controller nonsense is mounted; there is",
        ),
    ] {
        let (status, said) = Setup::new()
            .with(&["--cgroup", "pids.max=5", "--cgroup", setting, "--parent-cgroup", &parent])
            .fails();
        assert!(status == Some(1) && said.contains(text), "{said}");
        assert!(!group.exists(), "{setting}");
    }
    // As is one that fails when the process is in its cgroup already.
    let limit = [
        "--resource-limit",
        "no-file=18446744073709551615",
        "--cgroup",
        "pids.max=5",
        "--parent-cgroup",
        &parent,
    ];
    let (status, said) = Setup::new().with(&limit).fails();
    assert!(status == Some(1) && said.contains("can't limit no-file"), "{said}");
    vanishes(&group);
}

#[test]
fn a_jail_stays_locked_until_its_cgroup_is_gone() {
    if !jails() {
        return;
    }
    let Some(mount) = mounted(|_, kind, _| kind == "cgroup2") else {
        skip("YUN_REQUIRE_CGROUP2", "no cgroup hierarchy of version 2 is mounted; none was used");
        return;
    };
    let parent = parent("locked");
    let flags = ["--cgroup-version", "2", "--cgroup", "cgroup.max.descendants=0", "--parent-cgroup", &parent];
    let mut jailed = Setup::new().with(&flags).start();
    let group = mount.join(&parent).join("vm-1");
    // Somebody is in it who does not leave with the VMM.
    let mut guest = Guard(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap());
    fs::write(group.join("cgroup.procs"), guest.0.id().to_string()).unwrap();
    jailed.signal(Signal::SIGKILL);
    jailed.ends();
    let lock = jailed.base.path().join("yun-vmm/vm-1/jail.lock");
    std::thread::sleep(Duration::from_millis(300));
    assert!(lock.exists(), "the next jail of this id would lose its cgroup to the janitor of this one");
    drop(guest.0.stdin.take());
    guest.0.wait().unwrap();
    vanishes(&mount.join(&parent));
    jailed.vanishes();
}
