//! What a jailed VMM is, sees and has open.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;

use super::common::{eventually, say};
use super::{GID, Jailed, Setup, UID, files, jailer, jails};

/// A descriptor that a child inherits.
fn inheritable() -> OwnedFd {
    let file: OwnedFd = fs::File::open("/etc/passwd").unwrap().into();
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    file
}

/// What its descriptors are.
fn descriptors(jailed: &Jailed) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(jailed.proc("fd")).unwrap().flatten() {
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        // A connection to its API may just now have been closed.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        found.push((number, target.to_string_lossy().into_owned()));
    }
    found.sort();
    found
}

#[test]
fn it_is_an_unprivileged_user_without_capabilities_or_a_way_to_any() {
    if !jails() {
        return;
    }
    let jailed = Setup::new().start();
    assert_eq!(jailed.status("Uid"), [UID.to_string().as_str(); 4].join(" "));
    assert_eq!(jailed.status("Gid"), [GID.to_string().as_str(); 4].join(" "));
    assert_eq!(jailed.status("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&jailed.status(set), 16), Ok(0), "{set}");
    }
    assert_eq!(jailed.status("NoNewPrivs"), "1");
    assert_eq!(jailed.status("Umask"), "0077");
}

#[test]
fn even_as_user_0_it_has_no_capabilities() {
    if !jails() {
        return;
    }
    let jailed = Setup::new().with(&["--uid", "0", "--gid", "0"]).start();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&jailed.status(set), 16), Ok(0), "{set}");
    }
}

#[test]
fn it_has_no_environment_and_the_arguments_of_firecrackers_jailer() {
    if !jails() {
        return;
    }
    let mut setup = Setup::new().handing_on(&["--level", "debug"]);
    setup.command.env("SECRET", "x");
    let jailed = setup.start();
    assert_eq!(fs::read(jailed.proc("environ")).unwrap(), b"");
    let cmdline = fs::read_to_string(jailed.proc("cmdline")).unwrap();
    let words: Vec<&str> = cmdline.trim_end_matches('\0').split('\0').collect();
    let [exe, id, vm, start, start_us, cpu, cpu_us, parent, parent_us, rest @ ..] = words.as_slice() else {
        panic!("{words:?}")
    };
    assert_eq!((*exe, *id, *vm), ("/yun-vmm", "--id", "vm-1"));
    assert_eq!((*start, *cpu, *parent), ("--start-time-us", "--start-time-cpu-us", "--parent-cpu-time-us"));
    assert!([start_us, cpu_us, parent_us].iter().all(|us| us.parse::<u64>().is_ok()), "{words:?}");
    assert_eq!(rest, ["--level", "debug"]);
}

#[test]
fn stray_descriptors_stay_outside_and_named_ones_get_in() {
    if !jails() {
        return;
    }
    let (stray, kept) = (inheritable(), inheritable());
    let clean = Setup::new().start();
    // Not its sockets: a connection to its API may still be closing.
    let numbers = |jailed: &Jailed| {
        descriptors(jailed).iter().filter(|(_, target)| !target.starts_with("socket:")).count()
    };
    assert!(
        descriptors(&clean).iter().all(|(_, target)| target != "/etc/passwd"),
        "{:?}",
        descriptors(&clean)
    );
    let keeping = Setup::new().with(&["--keep-fd", &kept.as_raw_fd().to_string()]).start();
    let found: Vec<_> =
        descriptors(&keeping).into_iter().filter(|(_, target)| target.ends_with("/etc/passwd")).collect();
    assert_eq!(found.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [kept.as_raw_fd()]);
    assert_eq!(
        numbers(&keeping),
        numbers(&clean) + 1,
        "{:?}, {:?}",
        descriptors(&keeping),
        descriptors(&clean)
    );
    // Nothing else points out of the jail: what the VMM opened itself is no file but its socket.
    for (number, target) in descriptors(&clean) {
        let inside = number < 3 || !target.starts_with('/') || target.starts_with("/dev/");
        assert!(inside, "{number} is {target}");
    }
    drop(stray);
    let (status, said) = Setup::new().with(&["--keep-fd", "999"]).fails();
    assert_eq!(status, Some(1));
    assert!(said.contains("descriptor 999 can't be kept: accepted is an open one from 3 on"), "{said}");
}

#[test]
fn a_directory_gets_in_neither_by_name_nor_as_standard_input() {
    if !jails() {
        return;
    }
    let directory: OwnedFd = fs::File::open("/").unwrap().into();
    fcntl(&directory, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let number = directory.as_raw_fd().to_string();
    let (status, said) = Setup::new().with(&["--keep-fd", &number]).fails();
    assert_eq!(status, Some(1));
    assert!(said.contains(&format!("descriptor {number} is refused: it is a directory")), "{said}");
    let setup = Setup::new();
    let mut command = Command::new(jailer());
    let output = command.args(setup.words()).stdin(fs::File::open("/").unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.contains("descriptor 0 is refused: it is a directory"),
        "{said}"
    );
}

#[test]
fn its_root_and_working_directory_are_the_jail_and_nothing_else_is_mounted() {
    if !jails() {
        return;
    }
    let jailed = Setup::new().start();
    let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).unwrap();
    assert_eq!(identity(&jailed.proc("root/")), identity(&jailed.root));
    assert_eq!(identity(&jailed.proc("cwd/")), identity(&jailed.root));
    let mounts = fs::read_to_string(jailed.proc("mountinfo")).unwrap();
    let [mount] = mounts.lines().collect::<Vec<_>>()[..] else { panic!("{mounts}") };
    let options = mount.split(' ').nth(5).unwrap();
    assert!(options.contains("nosuid") && !options.contains("nodev"), "{mount}");
    assert!(!mount.contains("shared:"), "{mount}");
    for (dir, expected) in [("", 0o1770), ("run", 0o1770), ("dev", 0o750), ("dev/net", 0o750)] {
        let metadata = fs::metadata(jailed.root.join(dir)).unwrap();
        let found = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
        assert_eq!(found, (0, GID, expected), "{dir}");
    }
}

#[test]
fn its_devices_are_kvm_tun_and_urandom() {
    if !jails() {
        return;
    }
    let jailed = Setup::new().start();
    let dev = jailed.root.join("dev");
    let found: Vec<_> = files(&dev)
        .into_iter()
        .filter_map(|path| {
            let metadata = fs::metadata(&path).unwrap();
            let what = (metadata.rdev() >> 8, metadata.rdev() & 0xff, metadata.uid(), metadata.gid());
            (!metadata.is_dir()).then(|| (path.strip_prefix(&dev).unwrap().to_owned(), what))
        })
        .collect();
    let expected = [("kvm", 10, 232), ("net/tun", 10, 200), ("urandom", 1, 9)];
    assert_eq!(found, expected.map(|(path, major, minor)| (path.into(), (major, minor, UID, GID))));
}

/// Runs a line of shell in `dir` as the VMM's user and group, and says whether it worked.
fn as_the_vmm(dir: &Path, line: &str) -> bool {
    let (uid, gid) = (UID.to_string(), GID.to_string());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "sh", "-c", line]).current_dir(dir);
    command.output().unwrap().status.success()
}

#[test]
fn its_user_makes_files_and_replaces_nothing_that_the_jailer_made() {
    if !jails() {
        return;
    }
    let mut setup = Setup::new().with(&["--new-pid-ns"]);
    fs::set_permissions(setup.base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // A directory of the user's own, with an image of somebody else's in its root.
    let jail = setup.base.path().join("yun-vmm").join(&setup.id);
    fs::create_dir_all(setup.root()).unwrap();
    for dir in [&jail, &setup.root()] {
        chown(dir, Some(UID), Some(GID)).unwrap();
    }
    fs::write(setup.root().join("kernel"), "shared").unwrap();
    setup.arguments.extend(["--api-sock", "/api.socket"].map(Into::into));
    let mut jailed = setup.launch();
    jailed.find_vmm();
    let root = jailed.root.clone();
    eventually("the socket", || root.join("api.socket").exists().then_some(()));
    for line in [
        "mv run x",
        "mv dev x",
        "mv dev/net x",
        "rmdir dev/net run",
        "rm -f yun-vmm.pid",
        "mv -f yun-vmm.pid x",
        "rm -f yun-vmm",
        "rm -f kernel",
        "rm -f dev/kvm",
        "mv dev/kvm x",
        "touch dev/x",
        "mkdir dev/net/x",
        "ln -s / dev/x",
        "mknod run/x c 1 9",
        "mv ../root ../x",
        "rm -f ../jail.lock",
        "touch ../x",
    ] {
        assert!(!as_the_vmm(&root, line), "{line}");
    }
    for line in
        ["touch v.sock && mv v.sock w.sock && rm w.sock", "touch run/x && rm run/x", ": <>dev/urandom"]
    {
        assert!(as_the_vmm(&root, line), "{line}");
    }
    jailed.signal(Signal::SIGKILL);
    jailed.ends();
    let given_back = |dir: &Path| fs::metadata(dir).is_ok_and(|metadata| metadata.uid() == UID);
    eventually("the janitor", || (given_back(&jail) && given_back(&root)).then_some(()));
    assert_eq!(files(&jail), [root.clone(), root.join("kernel")]);
}

#[test]
fn its_namespaces_are_its_own_and_its_network_is_what_was_asked_for() {
    if !jails() {
        return;
    }
    let here = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    let plain = Setup::new().start();
    for kind in ["mnt", "ipc", "uts", "cgroup"] {
        assert_ne!(plain.namespace(kind), here(kind), "{kind}");
    }
    for kind in ["net", "pid", "user"] {
        assert_eq!(plain.namespace(kind), here(kind), "{kind}");
    }
    let mut apart = Setup::new().with(&["--new-netns", "--new-pid-ns"]).launch();
    apart.find_vmm();
    apart.answers();
    assert_ne!(apart.namespace("net"), here("net"));
    assert_ne!(apart.namespace("pid"), here("pid"));
    assert_eq!(apart.status("NSpid").split(' ').next_back(), Some("1"));
    // A namespace can be joined by any file that it is.
    let joined = Setup::new().with(&["--netns", apart.proc("ns/net").to_str().unwrap()]).start();
    assert_eq!(joined.namespace("net"), apart.namespace("net"));
}

#[test]
fn what_is_no_network_namespace_is_refused() {
    if !jails() {
        return;
    }
    let (status, said) = Setup::new().with(&["--netns", "/run/netns/nowhere"]).fails();
    assert_eq!(status, Some(1));
    assert!(said.contains("can't open the network namespace /run/netns/nowhere: No such file"), "{said}");
    for file in ["/etc/passwd", "/proc/self/ns/uts"] {
        let setup = Setup::new().with(&["--netns", file]);
        let (status, said) = setup.fails();
        assert_eq!(status, Some(1));
        assert!(said.contains("can't join the network namespace, which must be one that"), "{said}");
    }
}

#[test]
fn a_user_namespace_has_nobody_but_its_user_where_the_host_allows_one() {
    if !jails() {
        return;
    }
    let allowed = Command::new("setpriv")
        .args(["--reuid", "47110", "--clear-groups", "unshare", "-U", "true"])
        .status();
    let setup = Setup::new().with(&["--new-user-ns"]);
    if !allowed.is_ok_and(|status| status.success()) {
        say("the host allows no user namespaces: tested is that the jailer says so");
        assert!(setup.fails().1.contains("can't make a user namespace"));
        return;
    }
    let jailed = setup.start();
    assert_ne!(jailed.namespace("user"), fs::read_link("/proc/self/ns/user").unwrap());
    for (map, id) in [("uid_map", UID), ("gid_map", GID)] {
        let text = fs::read_to_string(jailed.proc(map)).unwrap();
        assert_eq!(
            text.split_whitespace().collect::<Vec<_>>(),
            [id.to_string(), id.to_string(), "1".to_owned()]
        );
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&jailed.status(set), 16), Ok(0), "{set}");
    }
    assert_eq!(jailed.status("Uid"), [UID.to_string().as_str(); 4].join(" "));
}

#[test]
fn its_limits_are_those_given_and_2048_descriptors_if_none_is() {
    if !jails() {
        return;
    }
    let limit = |jailed: &Jailed, name: &str| {
        let limits = fs::read_to_string(jailed.proc("limits")).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    let jailed = Setup::new().start();
    assert_eq!(limit(&jailed, "Max open files"), ["2048", "2048"]);
    let given = ["--resource-limit", "no-file=300", "--resource-limit", "fsize=1048576"];
    let jailed = Setup::new().with(&given).start();
    assert_eq!(limit(&jailed, "Max open files"), ["300", "300"]);
    assert_eq!(limit(&jailed, "Max file size"), ["1048576", "1048576"]);
}
