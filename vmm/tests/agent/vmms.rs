//! A VMM that dies, hangs, or is not the one it seems.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmm::agent::records::{ProcessId, Runtime};
use vmm::agent::store::{Batch, Store, Table, try_here};

use super::common::{Guard, eventually};
use super::order::{nothing_is_left_over, settles, usage_adds_up};
use super::ready;
use super::rig::{Host, spec, spec_with, vm_path};

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn a_vmm_that_is_killed_under_the_agent_is_one_vms_end_and_its_policys_to_start_again() {
    if !ready() {
        return;
    }
    let host = Host::new();
    for (vm, restart) in [("never", "never"), ("on-failure", "on_failure"), ("always", "always")] {
        host.run(vm, &spec_with("do=spin", &json!({ "restart": restart })));
    }
    host.run("other", &spec("do=spin"));
    let other = host.vm_pid("other");
    for restart in ["never", "on-failure", "always"] {
        signal(host.vm_pid(restart), Signal::SIGKILL);
    }
    for restart in ["on-failure", "always"] {
        let vm = host.vm_once(restart, "running again", |vm| {
            vm["status"]["incarnation"] == 2 && vm["status"]["state"] == "running"
        });
        assert_eq!(vm["status"]["restarts"], 1);
        assert_eq!(vm["status"]["last_end"]["signal"], 9);
        assert_eq!(vm["status"]["last_end"]["reason"], "its VMM was ended by signal 9");
    }
    let vm = host.becomes("never", "stopped");
    assert!(vm["status"]["reason"].as_str().unwrap().ends_with("its VMM was ended by signal 9"), "{vm}");
    assert_eq!(host.vm_pid("other"), other);
    nothing_is_left_over(&host);
    host.terminate();
    usage_adds_up(&host);
}

#[test]
fn a_vmm_that_hangs_is_unknown_and_left_alone_and_costs_nobody_else_anything() {
    if !ready() {
        return;
    }
    let host = Host::with(&["--vmm-timeout-ms", "2000"]);
    host.run("hangs", &spec("do=spin"));
    host.run("other", &spec("do=spin"));
    let pid = host.vm_pid("hangs");
    signal(pid, Signal::SIGSTOP);
    host.kill9();
    let began = Instant::now();
    host.start();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let vm = host.becomes("hangs", "unknown");
    let reason = vm["status"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("its process lives and does not answer"), "{reason}");
    assert!(reason.ends_with("nothing is done to it"), "{reason}");
    assert_eq!((&vm["status"]["pid"], &vm["status"]["incarnation"]), (&json!(pid), &json!(1)));
    let asked = Instant::now();
    assert_eq!(host.get("/v1/vms").as_array().unwrap().len(), 2);
    assert!(asked.elapsed() < Duration::from_millis(400), "a list waits for a VMM: {:?}", asked.elapsed());
    host.act("other", "pause");
    host.act("other", "resume");
    assert!(host.get("/v1/doctor").to_string().contains("t/hangs is unknown"));
    signal(pid, Signal::SIGCONT);
    let vm = host.becomes("hangs", "running");
    assert_eq!((&vm["status"]["pid"], &vm["status"]["incarnation"]), (&json!(pid), &json!(1)));
    settles(&host);
}

#[test]
fn a_vmm_that_hangs_while_the_agent_lives_is_told_of_and_can_be_killed() {
    if !ready() {
        return;
    }
    let host = Host::with(&["--vmm-timeout-ms", "2000"]);
    host.run("vm", &spec("do=spin"));
    let pid = host.vm_pid("vm");
    signal(pid, Signal::SIGSTOP);
    let view = host.over(&host.begin(
        "POST",
        &format!("{}/actions", vm_path("t", "vm")),
        &json!({ "action": "pause" }),
    ));
    assert_eq!(view["state"], "failed", "{view}");
    host.becomes("vm", "unknown");
    host.act("vm", "kill");
    assert_eq!(host.vm("vm")["status"]["state"], "stopped");
    nothing_is_left_over(&host);
}

#[test]
fn a_vmm_that_hangs_is_noticed_without_being_asked_for() {
    if !ready() {
        return;
    }
    let host = Host::with(&["--vmm-timeout-ms", "2000"]);
    host.run("vm", &spec("do=spin"));
    let pid = host.vm_pid("vm");
    signal(pid, Signal::SIGSTOP);
    host.becomes("vm", "unknown");
    signal(pid, Signal::SIGCONT);
    let vm = host.becomes("vm", "running");
    assert_eq!((&vm["status"]["pid"], &vm["status"]["incarnation"]), (&json!(pid), &json!(1)));
    host.act("vm", "kill");
    nothing_is_left_over(&host);
}

#[test]
fn a_vmm_that_hangs_while_it_is_handed_a_volume_has_it_when_it_goes_on() {
    if !ready() {
        return;
    }
    let host = Host::with(&["--vmm-timeout-ms", "2000"]);
    host.done("PUT", "/v1/tenants/t/volumes/d", &json!({ "size_mib": 1 }));
    host.run("vm", &spec("do=spin"));
    let pid = host.vm_pid("vm");
    signal(pid, Signal::SIGSTOP);
    let reply = host.ask("POST", "/v1/tenants/t/volumes/d/attach", &json!({ "vm": "vm" }));
    assert_eq!(reply.status, 200, "{}", reply.text());
    host.becomes("vm", "unknown");
    // It may have it, or take it yet: it is nobody else's.
    assert_eq!(host.refused("DELETE", "/v1/tenants/t/volumes/d", &Value::Null).1, "in_use");
    signal(pid, Signal::SIGCONT);
    host.vm_once("vm", "as wanted", |vm| vm["status"]["state"] == "running" && vm["status"]["reason"] == "");
    assert_eq!((host.drives("vm").len(), host.vm_pid("vm")), (1, pid));
    host.act("vm", "kill");
    nothing_is_left_over(&host);
}

#[test]
fn another_process_with_the_number_of_a_vmm_is_neither_adopted_nor_killed() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let id = host.run("vm", &spec("do=spin"))["id"].as_str().unwrap().to_owned();
    let pid = host.vm_pid("vm");
    host.kill9();
    signal(pid, Signal::SIGKILL);
    eventually("its end", || host.processes().is_empty().then_some(()));
    // Nobody can say which number a process gets; what is stored can be made to name another's.
    let sleeper = Guard(std::process::Command::new("sleep").arg("1000").spawn().unwrap());
    let sleepers = i32::try_from(sleeper.0.id()).unwrap();
    let path = host.state_dir().join("yund.redb");
    let (store, loaded) = Store::open(&path, &try_here).unwrap();
    let mut runtime = loaded.all::<Runtime>(&path, Table::Runtimes).unwrap().remove(&id).unwrap();
    let before = runtime.process.unwrap();
    assert_eq!(before.pid, pid);
    runtime.process = Some(ProcessId { pid: sleepers, ..before });
    let mut batch = Batch::new();
    batch.put(Table::Runtimes, id.as_str(), &runtime);
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(store.commit(batch)).unwrap();
    drop(store);
    host.store_is_closed();
    host.start();
    let vm = host.becomes("vm", "stopped");
    assert_eq!(vm["status"]["incarnation"], 1);
    assert_eq!(vm["status"]["last_end"]["reason"], "its VMM was ended while nobody looked");
    host.act("vm", "start");
    host.done("DELETE", &vm_path("t", "vm"), &Value::Null);
    let mut sleeper = sleeper;
    assert!(sleeper.0.try_wait().unwrap().is_none(), "somebody else's process was ended");
}

#[test]
fn a_vm_that_can_not_be_started_fails_with_the_reason_and_can_be_started_when_that_is_gone() {
    if !ready() {
        return;
    }
    let host = Host::new();
    // No kernel: the VMM refuses it.
    let kernel = host.dir().join("kernel");
    std::fs::write(&kernel, "this is no kernel").unwrap();
    host.done("POST", "/v1/images", &json!({ "name": "bad", "kernel": kernel }));
    let mut bad = spec("do=spin");
    bad["image"] = "bad".into();
    host.put(&vm_path("t", "vm"), &json!({ "spec": bad }));
    let vm = host.becomes("vm", "failed");
    let reason = vm["status"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("it could not be started: "), "{reason}");
    assert!(reason.to_lowercase().contains("kernel"), "{reason}");
    nothing_is_left_over(&host);
    let view = host.over(&host.begin(
        "POST",
        &format!("{}/actions", vm_path("t", "vm")),
        &json!({ "action": "start" }),
    ));
    assert_eq!((&view["state"], &view["error"]["code"]), (&json!("failed"), &json!("host")), "{view}");
    host.put(&vm_path("t", "vm"), &json!({ "spec": spec("do=spin") }));
    host.becomes("vm", "running");
}
