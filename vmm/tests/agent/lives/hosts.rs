//! Capacity, drain, shutdown, reboot, and what is left over.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::super::common::{PATIENCE, eventually};
use super::super::order::{nothing_is_left_over, settles};
use super::super::ready;
use super::super::rig::{Host, spec, spec_with, vm_path};

#[test]
fn capacity_is_what_there_is_less_what_is_set_aside_and_a_refusal_says_what_is_left() {
    if !ready() {
        return;
    }
    let host = Host::with(&["--reserve-memory-mib", "300", "--overcommit-cpu", "200"]);
    let before = host.get("/v1/host");
    let memory = &before["memory_mib"];
    let number = |value: &Value| value.as_u64().unwrap();
    assert_eq!(number(&memory["reserved"]), 300);
    assert_eq!(number(&memory["allocatable"]), number(&memory["total"]) - 300);
    assert_eq!(number(&before["vcpus"]["allocatable"]), number(&before["vcpus"]["total"]) * 2);
    assert!(before["numa"].as_array().is_some_and(|nodes| !nodes.is_empty()), "{before}");
    host.run("vm", &spec("do=spin"));
    let after = host.get("/v1/host");
    assert_eq!(number(&after["memory_mib"]["allocated"]), 32);
    assert_eq!(
        (&after["vcpus"]["allocated"], &after["vms"], &after["vms_running"]),
        (&json!(1), &json!(1), &json!(1))
    );
    let too_much = number(&memory["allocatable"]);
    let path = vm_path("t", "big");
    let body = json!({ "spec": spec_with("do=spin", &json!({ "memory_mib": too_much })) });
    let (status, code, text) = host.refused("PUT", &path, &body);
    assert_eq!((status, code.as_str()), (409, "capacity_exceeded"));
    let said = format!(
        "{too_much} more MiB of memory asked for, {} left: the host can give {too_much}, 32 are given out",
        too_much - 32
    );
    assert_eq!(text, said);
    // One that is not to run takes none; it is checked when it is started.
    let body =
        json!({ "spec": spec_with("do=spin", &json!({ "memory_mib": too_much, "power": "stopped" })) });
    host.put(&path, &body);
    let (_, code, _) = host.refused("POST", &format!("{path}/actions"), &json!({ "action": "start" }));
    assert_eq!(code, "capacity_exceeded");
    assert_eq!(host.vm("big")["spec"]["power"], "stopped");
}

#[test]
fn a_drain_admits_nothing_stops_vms_by_their_policy_and_an_undrain_starts_them_again() {
    if !ready() {
        return;
    }
    let host = Host::new();
    for policy in ["stop", "kill", "keep"] {
        host.run(policy, &spec_with("do=spin", &json!({ "drain": policy })));
    }
    let kept = host.vm_pid("keep");
    let op = host.begin("POST", "/v1/host/drain", &Value::Null);
    let (status, code, text) = host.refused("PUT", &vm_path("t", "new"), &json!({ "spec": spec("do=spin") }));
    assert_eq!((status, code.as_str()), (503, "unavailable"));
    assert!(text.starts_with("the host is drain"), "{text}");
    assert_eq!(host.over(&op)["state"], "succeeded");
    assert_eq!(host.get("/v1/host")["state"], "drained");
    for policy in ["stop", "kill"] {
        let vm = host.vm(policy);
        assert_eq!((&vm["status"]["state"], &vm["spec"]["power"]), (&json!("stopped"), &json!("running")));
        assert_eq!(vm["status"]["reason"], "the host is being drained or shut down");
    }
    assert_eq!(host.vm_pid("keep"), kept);
    // A new agent keeps to it.
    host.kill9();
    host.start();
    assert_eq!(host.get("/v1/host")["state"], "drained");
    assert_eq!(host.vm("stop")["status"]["state"], "stopped");
    let reply = host.ask("POST", "/v1/host/undrain", &Value::Null);
    assert_eq!((reply.status, &reply.json()["state"]), (200, &json!("active")));
    for policy in ["stop", "kill"] {
        assert_eq!(host.becomes(policy, "running")["status"]["incarnation"], 2);
    }
    assert_eq!(host.vm_pid("keep"), kept);
}

/// Starts an agent that believes this is another boot of the host.
fn start_after_reboot(host: &Host) {
    let boot = host.dir().join("boot_id");
    fs::write(&boot, "01234567-89ab-cdef-0123-456789abcdef\n").unwrap();
    let agent = host.command();
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    command.args(["-m", "sh", "-c", script]).arg(boot).arg(agent.get_program()).args(agent.get_args());
    host.launch(command);
    eventually("the agent's answer", || host.attempt("GET", "/v1/whoami", &Value::Null).ok());
}

#[test]
fn vms_that_ran_before_a_planned_shutdown_run_again_after_the_reboot_and_those_that_did_not_do_not() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("ran", &spec("do=spin"));
    host.run("kept", &spec_with("do=spin", &json!({ "drain": "keep" })));
    host.put(&vm_path("t", "off"), &json!({ "spec": spec_with("do=spin", &json!({ "power": "stopped" })) }));
    host.done("POST", "/v1/host/shutdown", &Value::Null);
    for vm in ["ran", "kept"] {
        assert_eq!(host.vm(vm)["status"]["state"], "stopped");
    }
    nothing_is_left_over(&host);
    // Not before the reboot.
    host.terminate();
    host.start();
    assert_eq!(host.get("/v1/host")["state"], "shutting_down");
    assert_eq!(host.vm("ran")["status"]["state"], "stopped");
    host.terminate();
    start_after_reboot(&host);
    for vm in ["ran", "kept"] {
        assert_eq!(host.becomes(vm, "running")["status"]["incarnation"], 2);
    }
    assert_eq!(host.get("/v1/host")["state"], "active");
    assert_eq!(host.vm("off")["status"]["state"], "stopped");
}

#[test]
fn vms_that_ran_when_the_host_failed_run_again_after_the_reboot() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    host.done("PUT", "/v1/tenants/t/volumes/d", &json!({ "size_mib": 8 }));
    eventually("records", || (host.get("/v1/usage?tenant=t").as_array().unwrap().len() > 2).then_some(()));
    let pid = nix::unistd::Pid::from_raw(host.vm_pid("vm"));
    host.kill9();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("its end", || host.processes().is_empty().then_some(()));
    start_after_reboot(&host);
    let vm = host.becomes("vm", "running");
    assert_eq!(vm["status"]["incarnation"], 2);
    assert_eq!(vm["status"]["last_end"]["reason"], "the host was restarted");
    assert_eq!(vm["status"]["restarts"], 0, "that is no restart by policy");
    let count = host.get("/v1/usage?tenant=t&vm=d").as_array().unwrap().len();
    eventually("more records of the volume", || {
        (host.get("/v1/usage?tenant=t&vm=d").as_array().unwrap().len() > count).then_some(())
    });
    host.terminate();
    super::super::order::usage_adds_up(&host);
}

#[test]
fn an_agent_that_is_told_to_end_leaves_vms_running_for_the_next() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    let pid = host.vm_pid("vm");
    host.terminate();
    assert!(host.processes().contains(&pid));
    host.start();
    let vm = host.vm("vm");
    assert_eq!(
        (&vm["status"]["pid"], &vm["status"]["incarnation"], &vm["status"]["state"]),
        (&json!(pid), &json!(1), &json!("running"))
    );
    settles(&host);
    nothing_is_left_over(&host);
}

#[test]
fn leftovers_are_listed_and_removed_except_what_may_be_somebodys_data() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    host.done("PUT", "/v1/tenants/t/volumes/d", &json!({ "size_mib": 1 }));
    nothing_is_left_over(&host);
    let state = host.state_dir();
    fs::create_dir(state.join("vms/vm-0123456789abcdef")).unwrap();
    fs::create_dir_all(state.join("jails/yun-vmm/vm-0123456789abcdef-1/root")).unwrap();
    let data = state.join("volumes/tenants/t/vol-0123456789abcdef.raw");
    fs::write(&data, "somebody's").unwrap();
    fs::write(state.join("images/tmp/half"), "made").unwrap();
    let gc = |dry_run: bool| {
        host.ask("POST", "/v1/gc", &json!({ "dry_run": dry_run })).json()["leftovers"].clone()
    };
    let listed = gc(true);
    assert_eq!(listed.as_array().unwrap().len(), 4, "{listed}");
    assert!(listed.as_array().unwrap().iter().all(|leftover| leftover["removed"] == false));
    assert!(state.join("vms/vm-0123456789abcdef").exists());
    let doctor = host.get("/v1/doctor").to_string();
    assert!(doctor.contains("4 things belong to nothing"), "{doctor}");
    let removed = gc(false);
    for leftover in removed.as_array().unwrap() {
        assert_eq!(leftover["removed"], leftover["kind"] != "volume", "{leftover}");
    }
    let left = gc(true);
    assert_eq!((left.as_array().unwrap().len(), &left[0]["kind"]), (1, &json!("volume")), "{left}");
    assert_eq!(fs::read(&data).unwrap(), b"somebody's");
    assert_eq!(host.vm("vm")["status"]["state"], "running");
    fs::remove_file(data).unwrap();
    nothing_is_left_over(&host);
}

#[test]
fn a_socket_that_is_passed_by_systemd_keeps_who_asks_waiting_while_there_is_no_agent() {
    if !ready() {
        return;
    }
    let host = Host::bare(&[]);
    let passed = host.dir().join("passed.sock");
    let listener = UnixListener::bind(&passed).unwrap();
    let launch = || {
        let yund = host.command();
        // sd_listen_fds(3): the first descriptor is 3, and the process they are for is named.
        let mut shell = Command::new("sh");
        shell.args(["-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 </dev/null", "sh"]);
        shell
            .arg(yund.get_program())
            .args(yund.get_args())
            .stdin(OwnedFd::from(listener.try_clone().unwrap()));
        host.launch(shell);
    };
    for _ in 0..2 {
        let mut early = UnixStream::connect(&passed).unwrap();
        early.write_all(b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        early.set_read_timeout(Some(PATIENCE)).unwrap();
        launch();
        let mut answer = String::new();
        early.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{error}: {}", host.log()));
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        host.kill9();
    }
    assert!(!host.socket().exists(), "it made one of its own");
}

/// Ends the threads that look at it, whatever happens.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn gc_takes_nothing_of_what_starts_while_it_looks() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let (done, runs) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let reply = host.ask("POST", "/v1/gc", &json!({ "dry_run": false }));
                assert_eq!(reply.status, 200, "{}", reply.text());
                runs.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _at_end = AtEnd(&done);
        for round in 0..30 {
            let vm = format!("vm{}", round % 3);
            host.run(&vm, &spec("do=spin"));
            // One that looked while it started has done what it does.
            let before = runs.load(Ordering::Relaxed);
            eventually("another run", || (runs.load(Ordering::Relaxed) > before + 1).then_some(()));
            let status = host.vm(&vm)["status"].clone();
            assert_eq!(
                (&status["state"], &status["incarnation"]),
                (&json!("running"), &json!(1)),
                "{status}"
            );
            let jail = host
                .state_dir()
                .join(format!("jails/yun-vmm/{}-1/root/run", host.vm(&vm)["id"].as_str().unwrap()));
            assert!(jail.exists(), "{}", jail.display());
            host.done("DELETE", &vm_path("t", &vm), &Value::Null);
        }
    });
    nothing_is_left_over(&host);
}

#[test]
fn metrics_are_openmetrics_text() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    let text = host.ask("GET", "/metrics", &Value::Null).text();
    assert!(text.contains("yun_vms{state=\"running\"} 1\n") && text.ends_with("# EOF\n"), "{text}");
}
