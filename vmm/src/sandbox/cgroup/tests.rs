//! Cgroups over trees of ordinary directories: what is written where, in which order it is undone, what is refused.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;

use super::*;

/// A tree like cgroup file systems are: new directories come with files in them.
struct Fake {
    dir: tempfile::TempDir,
    host: Host,
}

fn fill(dir: &Dir) {
    for file in ["cgroup.procs", "cgroup.subtree_control", "memory.max", "cpu.max", "io.max", "pids.max"] {
        fs::write(dir.path().join(file), "").unwrap();
    }
    for file in ["cpuset.cpus", "cpuset.mems", "memory.limit_in_bytes", "cpu.shares", "tasks"] {
        fs::write(dir.path().join(file), "").unwrap();
    }
    // As the kernel does: available is what the directory above has enabled.
    let enabled = fs::read_to_string(dir.path().parent().unwrap().join("cgroup.subtree_control")).unwrap();
    fs::write(dir.path().join("cgroup.controllers"), enabled.replace('+', "")).unwrap();
}

impl Fake {
    fn v2(controllers: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "").unwrap();
        let mounts = vec![Mount { path: dir.path().to_owned(), controllers: None }];
        Self { dir, host: Host { mounts, on_new_dir: fill } }
    }

    fn v1() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mounts = Vec::new();
        for (name, controllers) in
            [("cpu,cpuacct", vec!["cpu", "cpuacct"]), ("cpuset", vec!["cpuset"]), ("memory", vec!["memory"])]
        {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("cgroup.subtree_control"), "").unwrap();
            fs::write(path.join("cpuset.cpus"), "0-3\n").unwrap();
            fs::write(path.join("cpuset.mems"), "0\n").unwrap();
            mounts.push(Mount {
                path,
                controllers: Some(controllers.into_iter().map(str::to_owned).collect()),
            });
        }
        Self { dir, host: Host { mounts, on_new_dir: fill } }
    }

    fn make(&self, version: Version, parent: &str, settings: &[&str]) -> Result<Group, CgroupError> {
        let settings = settings.iter().map(|text| text.parse().unwrap()).collect();
        Group::make(&self.host, &CgroupSpec { version, parent: parent.into(), settings }, "vm-1")
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// What a kernel's rmdir does not mind.
    fn empty(&self, path: &str) {
        for entry in fs::read_dir(self.dir.path().join(path)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

#[test]
fn v2_enables_controllers_on_the_way_writes_values_and_then_the_pid() {
    let fake = Fake::v2("cpu memory pids io");
    let settings = ["cpu.max=50000 100000", "memory.max=1073741824", "io.max=8:0 rbps=1048576 wiops=120"];
    let group = fake.make(Version::V2, "yun/tenants", &settings).unwrap();
    for above in ["", "yun/", "yun/tenants/"] {
        assert_eq!(fake.read(&format!("{above}cgroup.subtree_control")), "+cpu +memory +io");
    }
    assert_eq!(fake.read("yun/tenants/vm-1/cpu.max"), "50000 100000");
    assert_eq!(fake.read("yun/tenants/vm-1/memory.max"), "1073741824");
    assert_eq!(fake.read("yun/tenants/vm-1/io.max"), "8:0 rbps=1048576 wiops=120");
    assert_eq!(fake.read("yun/tenants/vm-1/cgroup.procs"), "");
    assert_eq!(fake.read("yun/tenants/vm-1/cgroup.subtree_control"), "", "nobody is below");
    group.join(4321).unwrap();
    assert_eq!(fake.read("yun/tenants/vm-1/cgroup.procs"), "4321");
}

#[test]
fn v2_says_which_controllers_there_are() {
    let fake = Fake::v2("cpu pids");
    let error = fake.make(Version::V2, "yun", &["memory.max=1"]).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "the controller memory is not available in {}: it has \"cpu pids\"",
            fake.dir.path().display()
        )
    );
    assert!(!fake.dir.path().join("yun").exists());
}

#[test]
fn v2_without_settings_joins_the_parent_which_must_exist() {
    let fake = Fake::v2("cpu");
    let error = fake.make(Version::V2, "ready", &[]).unwrap_err().to_string();
    assert!(error.contains("ready"), "{error}");
    fs::create_dir(fake.dir.path().join("ready")).unwrap();
    fs::write(fake.dir.path().join("ready/cgroup.procs"), "").unwrap();
    let group = fake.make(Version::V2, "ready", &[]).unwrap();
    group.join(7).unwrap();
    assert_eq!(fake.read("ready/cgroup.procs"), "7");
    group.undo();
    assert!(fake.dir.path().join("ready").exists(), "it is not ours");
}

#[test]
fn v1_finds_each_controllers_hierarchy_and_fills_a_cpuset_from_above() {
    let fake = Fake::v1();
    let settings = ["cpu.shares=10", "cpuset.cpus=1", "memory.limit_in_bytes=1048576"];
    let group = fake.make(Version::V1, "yun/a", &settings).unwrap();
    assert_eq!(fake.read("cpu,cpuacct/yun/a/vm-1/cpu.shares"), "10");
    assert_eq!(fake.read("memory/yun/a/vm-1/memory.limit_in_bytes"), "1048576");
    assert_eq!(fake.read("cpuset/yun/a/cpuset.cpus"), "0-3");
    assert_eq!(
        (fake.read("cpuset/yun/a/vm-1/cpuset.cpus"), fake.read("cpuset/yun/a/vm-1/cpuset.mems")),
        ("1".into(), "0".into())
    );
    group.join(4321).unwrap();
    for hierarchy in ["cpu,cpuacct", "cpuset", "memory"] {
        assert_eq!(fake.read(&format!("{hierarchy}/yun/a/vm-1/cgroup.procs")), "4321");
    }
}

#[test]
fn a_hierarchy_that_is_not_mounted_is_named_and_what_was_made_before_is_gone() {
    let fake = Fake::v1();
    let error = fake
        .make(Version::V1, "yun", &["cpu.shares=1", "hugetlb.2MB.limit_in_bytes=0"])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "no cgroup hierarchy of version 1 with the controller hugetlb is mounted; there is version 1 with cpu,cpuacct; \
         version 1 with cpuset; version 1 with memory"
    );
    assert!(!fake.dir.path().join("cpu,cpuacct/yun").exists());
    let error = fake.make(Version::V2, "yun", &["cpu.max=1"]).unwrap_err().to_string();
    assert!(error.starts_with("no cgroup hierarchy of version 2 is mounted; there is"), "{error}");
}

#[test]
fn a_file_that_the_cgroup_does_not_have_is_named() {
    let fake = Fake::v2("cpu");
    let error = fake.make(Version::V2, "yun", &["cpu.sharse=1"]).unwrap_err().to_string();
    let path = fake.dir.path().join("yun/vm-1");
    assert_eq!(error, format!("there is no file cpu.sharse in {}", path.display()));
}

#[test]
fn what_jailers_made_goes_from_the_bottom_up_as_far_as_it_is_empty() {
    let fake = Fake::v2("cpu");
    fs::create_dir(fake.dir.path().join("theirs")).unwrap();
    fill(&Dir::open(&fake.dir.path().join("theirs")).unwrap());
    fs::write(fake.dir.path().join("theirs/cgroup.controllers"), "cpu").unwrap();
    let group = fake.make(Version::V2, "theirs/ours", &["cpu.max=1"]).unwrap();
    let mode = fs::metadata(fake.dir.path().join("theirs/ours")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o1755);
    fs::create_dir(fake.dir.path().join("theirs/ours/vm-2")).unwrap();
    fake.empty("theirs/ours/vm-1");
    fake.empty("theirs/ours");
    group.undo();
    assert!(!fake.dir.path().join("theirs/ours/vm-1").exists());
    assert!(fake.dir.path().join("theirs/ours/vm-2").exists(), "another jail's");
    fs::remove_dir(fake.dir.path().join("theirs/ours/vm-2")).unwrap();
    group.undo();
    assert!(!fake.dir.path().join("theirs/ours").exists());
    assert!(fake.dir.path().join("theirs").exists());
}

#[test]
fn links_and_paths_out_of_the_hierarchy_are_refused() {
    let fake = Fake::v2("cpu");
    for parent in ["..", "a/../b", "/sys", "", "a//b", "./a"] {
        let error = fake.make(Version::V2, parent, &["cpu.max=1"]).unwrap_err();
        assert!(matches!(error, CgroupError::Parent(_)), "{parent:?}: {error}");
    }
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), fake.dir.path().join("link")).unwrap();
    for parent in ["link", "link/deeper"] {
        let error = fake.make(Version::V2, parent, &["cpu.max=1"]).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{parent:?}: {error}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_setting_is_a_file_of_a_controller_and_one_line() {
    for (text, why) in [
        ("memory.max", "there is no `=`"),
        ("=1", "the file is named CONTROLLER.PROPERTY"),
        ("memory=1", "the file is named CONTROLLER.PROPERTY"),
        ("../memory.max=1", "the file is named CONTROLLER.PROPERTY"),
        ("a/b.c=1", "the file is named CONTROLLER.PROPERTY"),
        ("..=1", "the file is named CONTROLLER.PROPERTY"),
        (".max=1", "the file is named CONTROLLER.PROPERTY"),
        ("memory.max=", "the value is one line, not empty"),
        ("memory.max=1\n2", "the value is one line, not empty"),
        ("cgroup.procs=1", "this file is the jailer's own business"),
    ] {
        let error = text.parse::<Setting>().unwrap_err().to_string();
        assert!(error.contains(why) && error.ends_with("such as memory.max=1073741824"), "{text:?}: {error}");
    }
    let setting: Setting = "io.max=8:0 rbps=1".parse().unwrap();
    assert_eq!(
        (setting.file.as_str(), setting.value.as_str(), setting.controller()),
        ("io.max", "8:0 rbps=1", "io")
    );
}

proptest! {
    #[test]
    fn no_accepted_setting_names_a_file_outside_its_directory(text in "[a-c./=]{0,12}") {
        if let Ok(setting) = text.parse::<Setting>() {
            prop_assert!(is_plain(Path::new(&setting.file)) && !setting.file.contains('/'));
        }
    }
}

#[test]
fn a_cgroup_that_another_jail_has_is_refused_and_left_alone() {
    for (fake, version) in [(Fake::v2("memory"), Version::V2), (Fake::v1(), Version::V1)] {
        let (setting, path) = match version {
            Version::V1 => ("memory.limit_in_bytes=1", "memory/yun/vm-1"),
            Version::V2 => ("memory.max=1", "yun/vm-1"),
        };
        let first = fake.make(version, "yun", &[setting]).unwrap();
        // Nobody is in it yet; its jailer is about to join it.
        let error = fake.make(version, "yun", &[setting]).unwrap_err();
        assert!(matches!(error, CgroupError::InUse(_)), "{error}");
        assert!(fake.dir.path().join(path).is_dir(), "it is the first jail's");
        first.join(42).unwrap();
        // Jailer and janitor are killed; the process is still there.
        drop(first);
        let error = fake.make(version, "yun", &[setting]).unwrap_err();
        assert!(
            error.to_string().contains("is in use by another jail: accepted is an id, or a parent"),
            "{error}"
        );
        fs::write(fake.dir.path().join(path).join("cgroup.procs"), "").unwrap();
        fake.make(version, "yun", &[setting]).unwrap();
    }
}

#[test]
fn a_cgroup_that_an_administrator_made_may_have_others_in_it() {
    let fake = Fake::v2("memory");
    let path = fake.dir.path().join("yun/vm-1");
    for dir in [path.parent().unwrap(), &path] {
        fs::create_dir(dir).unwrap();
        fill(&Dir::open(dir).unwrap());
    }
    fs::write(fake.dir.path().join("yun/cgroup.controllers"), "memory").unwrap();
    fs::write(path.join("cgroup.procs"), "42").unwrap();
    fake.make(Version::V2, "yun", &["memory.max=1"]).unwrap();
}
