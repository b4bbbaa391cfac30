//! Pids, statuses, failures and ends of a jailed VMM, and that nothing of its jail stays.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};

use super::common::{eventually, http};
use super::{Setup, files, is_over, jailer, jails, run, signal_of};

#[test]
fn the_jailer_becomes_the_vmm_whose_status_is_its_own() {
    if !jails() {
        return;
    }
    let mut jailed = Setup::new().start();
    assert_eq!(fs::read_to_string(jailed.proc("comm")).unwrap().trim(), "yun-vmm");
    assert_eq!(jailed.vmm, None);
    jailed.signal(Signal::SIGTERM);
    assert_eq!(jailed.ends().code(), Some(0), "{}", jailed.output.text());
    jailed.vanishes();
    let mut jailed = Setup::new().handing_on(&["--nonsense"]).launch();
    assert_eq!(jailed.ends().code(), Some(153));
    assert!(jailed.output.whole().contains("invalid option '--nonsense'"));
    jailed.vanishes();
}

#[test]
fn a_vmm_that_is_killed_leaves_nothing_either() {
    if !jails() {
        return;
    }
    let mut jailed = Setup::new().start();
    assert!(jailed.socket().exists());
    jailed.signal(Signal::SIGKILL);
    assert_eq!(signal_of(jailed.ends()), Some(Signal::SIGKILL));
    jailed.vanishes();
}

#[test]
fn with_a_pid_namespace_the_jailer_ends_with_0_and_the_pid_is_in_a_file() {
    if !jails() {
        return;
    }
    for last in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut jailed = Setup::new().with(&["--new-pid-ns"]).launch();
        let pid = jailed.find_vmm();
        assert_ne!(Some(pid), Some(Pid::from_raw(i32::try_from(jailed.jailer.id()).unwrap())));
        assert_eq!(fs::read_to_string(jailed.proc("comm")).unwrap().trim(), "yun-vmm");
        jailed.answers();
        jailed.signal(last);
        jailed.ends();
        jailed.vanishes();
    }
}

#[test]
fn a_daemon_has_a_session_of_its_own_and_nothing_of_the_callers() {
    if !jails() {
        return;
    }
    let jailed = Setup::new().with(&["--daemonize"]).start();
    assert_eq!(getsid(Some(jailed.pid())).unwrap(), jailed.pid());
    for number in 0..3 {
        assert_eq!(fs::read_link(jailed.proc(&format!("fd/{number}"))).unwrap().to_str(), Some("/dev/null"));
    }
    assert_eq!(jailed.output.whole(), "", "its output has an end");
}

#[test]
fn a_daemon_whose_jailer_leads_a_process_group_is_a_process_of_its_own() {
    if !jails() {
        return;
    }
    let mut setup = Setup::new().with(&["--daemonize"]);
    setup.command.process_group(0);
    let mut jailed = setup.launch();
    let pid = jailed.find_vmm();
    jailed.answers();
    assert_eq!(getsid(Some(pid)).unwrap(), pid);
    assert_eq!(jailed.output.whole(), "");
}

#[test]
fn nobody_who_reads_the_vmms_output_waits_for_the_janitor() {
    if !jails() {
        return;
    }
    let mut jailed = Setup::new().start();
    // Something that keeps the janitor from finishing would keep the reader, too, if it had the pipe.
    let janitors = || {
        let comm = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let names =
            fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let mut found = Vec::new();
        for pid in names.filter(|name| name.starts_with(|c: char| c.is_ascii_digit())) {
            let ours = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().any(|fd| {
                fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(jailed.base.path()))
            });
            if ours && comm(&pid).trim() == "yun-janitor" {
                found.push(pid.parse::<i32>().unwrap());
            }
        }
        found
    };
    let [janitor] = janitors()[..] else { panic!("{:?}", janitors()) };
    let janitor = Pid::from_raw(janitor);
    kill(janitor, Signal::SIGTERM).unwrap();
    kill(janitor, Signal::SIGSTOP).unwrap();
    for number in 0..3 {
        assert_eq!(
            fs::read_link(format!("/proc/{janitor}/fd/{number}")).unwrap().to_str(),
            Some("/dev/null")
        );
    }
    let here = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    for kind in ["mnt", "net", "pid", "ipc", "uts", "cgroup"] {
        assert_eq!(fs::read_link(format!("/proc/{janitor}/ns/{kind}")).unwrap(), here(kind));
    }
    assert_ne!(getsid(Some(janitor)).unwrap(), getsid(None).unwrap());
    jailed.signal(Signal::SIGTERM);
    assert_eq!(jailed.ends().code(), Some(0));
    jailed.output.whole();
    assert!(!files(jailed.base.path()).is_empty());
    kill(janitor, Signal::SIGCONT).unwrap();
    jailed.vanishes();
}

#[test]
fn files_that_somebody_put_in_the_jail_stay() {
    if !jails() {
        return;
    }
    let setup = Setup::new();
    fs::create_dir_all(setup.root()).unwrap();
    fs::write(setup.root().join("rootfs.ext4"), "precious").unwrap();
    let before = files(setup.base.path());
    let mut jailed = setup.start();
    jailed.signal(Signal::SIGKILL);
    jailed.ends();
    eventually("the janitor", || (files(jailed.base.path()) == before).then_some(()));
    assert_eq!(fs::read_to_string(jailed.root.join("rootfs.ext4")).unwrap(), "precious");
}

#[test]
fn a_jail_in_use_is_refused_and_one_that_nobody_cleaned_up_is_taken_over() {
    if !jails() {
        return;
    }
    let mut first = Setup::new().start();
    let base = first.base.path().to_owned();
    let again = |id: &str| {
        let mut setup = Setup::new();
        setup.id = id.to_owned();
        let mut words = setup.words();
        let at = words.iter().position(|word| word == "--chroot-base-dir").unwrap();
        words[at + 1] = base.clone().into();
        words
    };
    let before = files(&base);
    let (status, said) = run(&again("vm-1"));
    assert_eq!((status.code(), files(&base)), (Some(1), before), "{said}");
    assert!(said.contains(&format!("is in use: process {} lives in it", first.pid())), "{said}");
    // The janitor is killed first, then the VMM: as when the power fails.
    let holder = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let fds = fs::read_dir(entry.path().join("fd")).ok()?;
        let holds = fds.flatten().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|target| target == base.join("yun-vmm/vm-1/jail.lock"))
        });
        holds.then(|| entry.file_name().into_string().unwrap().parse::<i32>().unwrap())
    });
    let janitor = Pid::from_raw(holder.unwrap());
    kill(janitor, Signal::SIGKILL).unwrap();
    eventually("the janitor's end", || is_over(janitor).then_some(()));
    let (status, said) = run(&again("vm-1"));
    assert_eq!(status.code(), Some(1), "the VMM still lives");
    assert!(said.contains("is in use: process"), "{said}");
    first.signal(Signal::SIGKILL);
    first.ends();
    assert!(first.socket().exists(), "nobody has cleaned up");
    let mut command = Command::new(jailer());
    command.args(again("vm-1")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    first.jailer = command.spawn().unwrap();
    eventually("the new socket", || std::os::unix::net::UnixStream::connect(first.socket()).ok());
    first.answers();
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ends().code(), Some(0));
    first.vanishes();
}

#[test]
fn a_jail_can_be_made_again_the_moment_its_vmm_has_ended() {
    if !jails() {
        return;
    }
    let setup = Setup::new().handing_on(&["--version"]);
    for _ in 0..20 {
        let (status, said) = run(&setup.words());
        assert!(status.success() && said.starts_with("yun-vmm "), "{status}: {said}");
    }
}

#[test]
fn a_jailer_killed_at_any_moment_leaves_nothing_that_the_next_of_its_id_does_not_clear_away() {
    if !jails() {
        return;
    }
    // From before it has begun until its VMM runs.
    let moments = (0..40).map(|n| Duration::from_micros(n * 400));
    for (number, moment) in moments.enumerate() {
        let flags: &[&str] = if number % 2 == 0 { &[] } else { &["--new-pid-ns", "--daemonize"] };
        let mut setup = Setup::new().with(flags);
        let words = setup.words();
        setup.command.args(&words).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        let mut killed = setup.command.spawn().unwrap();
        std::thread::sleep(moment);
        let _ = killed.kill();
        killed.wait().unwrap();
        // A VMM that was already a process of its own lives on.
        if let Ok(pid) = fs::read_to_string(setup.root().join("yun-vmm.pid")) {
            let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
        }
        let again = setup.handing_on(&["--version"]);
        let (status, said) = run(&again.words());
        assert!(status.success(), "{moment:?}: {status}: {said}");
        eventually(&format!("the end of {:?} ({moment:?})", files(again.base.path())), || {
            files(again.base.path()).is_empty().then_some(())
        });
    }
}

#[test]
fn failures_before_and_inside_the_jail_are_reported_and_leave_nothing() {
    if !jails() {
        return;
    }
    for flags in [&[][..], &["--new-pid-ns"]] {
        let scripts = tempfile::tempdir().unwrap();
        for (text, expected) in [
            (
                "#!/bin/sh\n",
                "in the jail, where no interpreter or shared library is: it must be linked statically",
            ),
            ("no program", "in the jail, since it is no program"),
        ] {
            let script = scripts.path().join("vmm");
            fs::write(&script, text).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
            let (status, said) =
                Setup::new().with(flags).with(&["--exec-file", script.to_str().unwrap()]).fails();
            assert_eq!(status, Some(1));
            assert!(
                said.starts_with("yun-jailer: can't execute the copy of ") && said.contains(expected),
                "{said}"
            );
        }
        let (status, said) =
            Setup::new().with(flags).with(&["--resource-limit", "no-file=18446744073709551615"]).fails();
        assert_eq!(status, Some(1));
        assert!(said.contains("can't limit no-file to 18446744073709551615: "), "{said}");
    }
    let (status, said) = Setup::new().with(&["--chroot-base-dir", "/nowhere"]).fails();
    assert_eq!(status, Some(1));
    assert!(said.contains("can't open the directory /nowhere: No such file"), "{said}");
    let (status, said) = Setup::new().with(&["--exec-file", "/nowhere/vmm"]).fails();
    assert_eq!(status, Some(1));
    assert!(said.contains("can't find the exec file /nowhere/vmm: No such file"), "{said}");
}

#[test]
fn links_in_the_jail_are_refused() {
    if !jails() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "precious").unwrap();
    for (name, target) in [
        ("run", ""),
        ("dev", ""),
        ("yun-vmm", "precious"),
        ("yun-vmm.pid", "precious"),
        ("dev/kvm", "precious"),
        ("../jail.lock", "precious"),
    ] {
        let setup = Setup::new().with(&["--new-pid-ns"]);
        let link = setup.root().join(name);
        fs::create_dir_all(setup.root()).unwrap();
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(outside.path().join(target), &link).unwrap();
        let (status, said) = setup.fails();
        assert_eq!(status, Some(1), "{name}");
        assert!(said.contains("is a symbolic link, or one is on the way to it"), "{name}: {said}");
    }
    let setup = Setup::new();
    fs::create_dir_all(setup.root()).unwrap();
    fs::hard_link(outside.path().join("precious"), setup.root().join("yun-vmm")).unwrap();
    let (status, said) = setup.fails();
    assert!(status == Some(1) && said.contains("it has 2 hard links, 1 is accepted"), "{said}");
    assert_eq!(fs::read_to_string(outside.path().join("precious")).unwrap(), "precious");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn the_signal_at_the_parents_death_outlives_the_change_of_user() {
    if !jails() {
        return;
    }
    // The parent that dies is a shell; the signal is asked for between its fork and the jailer.
    let setup = Setup::new();
    let mut command = Command::new("sh");
    let words = setup.words().into_iter().map(|word| format!("'{}'", word.to_str().unwrap()));
    let line = format!(
        "setpriv --pdeathsig KILL '{}' {} & echo $!; read line",
        jailer().display(),
        words.collect::<Vec<_>>().join(" ")
    );
    let mut shell = command.args(["-c", &line]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let socket = setup.root().join("run/firecracker.socket");
    eventually("the VMM", || std::os::unix::net::UnixStream::connect(&socket).ok());
    shell.kill().unwrap();
    shell.wait().unwrap();
    eventually("the end of the VMM and its jail", || files(setup.base.path()).is_empty().then_some(()));
}

#[test]
fn the_command_line_is_refused_with_153() {
    let words = |line: &str| line.split(' ').map(Into::into).collect::<Vec<_>>();
    for (line, text) in
        [("--id a_b", "Invalid instance ID"), ("--uid root", "--uid is a number"), ("--x", "invalid option")]
    {
        let (status, said) = run(&words(line));
        assert!(status.code() == Some(153) && said.contains(text), "{line}: {said}");
    }
    for (line, text) in [("--help", "yun-jailer: starts a VMM"), ("--version", "yun-jailer 0.")] {
        let (status, said) = run(&words(line));
        assert!(status.success() && said.starts_with(text), "{line}: {said}");
    }
}

#[test]
fn a_stopped_vmm_in_a_session_of_its_own_outlives_whoever_started_it() {
    if !jails() {
        return;
    }
    let mut setup = Setup::new().with(&["--new-session"]);
    // Its parent ends while it is stopped: a process group that is orphaned by that gets SIGHUP (setpgid(2)).
    let words = setup.words();
    let script = "\"$0\" \"$@\" >/dev/null 2>&1 & echo $!; read end";
    setup.command = Command::new("sh");
    setup.command.args(["-c", script]).arg(jailer()).args(words).process_group(0);
    setup.command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = setup.command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = Pid::from_raw(line.trim().parse().unwrap());
    let socket = setup.root().join("run/firecracker.socket");
    eventually("the jailed API", || http::request(&socket, "GET", "/", "").ok());
    kill(pid, Signal::SIGSTOP).unwrap();
    drop(shell.stdin.take());
    shell.wait().unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    let reply = eventually("an answer", || http::request(&socket, "GET", "/", "").ok());
    assert_eq!(reply.status, 200);
    kill(pid, Signal::SIGKILL).unwrap();
    eventually("the jail's end", || files(setup.base.path()).is_empty().then_some(()));
}
