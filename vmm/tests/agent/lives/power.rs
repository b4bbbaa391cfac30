//! Start, stop, kill, pause, resume, reset, time to live.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm::agent::vms::process::cpu_ns;

use super::super::common::eventually;
use super::super::order::nothing_is_left_over;
use super::super::ready;
use super::super::rig::{Host, spec, spec_with, vm_path};

fn vcpu_ns(pid: i32) -> u64 {
    cpu_ns(pid, "yun_vcpu").unwrap()
}

#[test]
fn a_stop_asks_the_guest_and_kills_it_when_its_time_is_over_and_a_start_begins_another_incarnation() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let first = host.run("vm", &spec("do=spin"));
    assert_eq!(first["status"]["incarnation"], 1);
    let began = Instant::now();
    let op = host.begin("POST", &format!("{}/actions", vm_path("t", "vm")), &json!({ "action": "stop" }));
    let stopping = host.vm("vm");
    assert_eq!((&stopping["spec"]["power"], &stopping["operation"]), (&json!("stopped"), &json!(op)));
    assert_ne!(stopping["status"]["reason"], "");
    assert_eq!(host.over(&op)["state"], "succeeded");
    assert!(began.elapsed() >= Duration::from_secs(1), "its guest had no time");
    let stopped = host.vm("vm");
    let status = &stopped["status"];
    assert_eq!(
        (&status["state"], &status["reason"], &status["pid"]),
        (&json!("stopped"), &json!(""), &Value::Null)
    );
    assert_eq!(status["last_end"]["signal"], 9);
    assert!(
        status["last_end"]["reason"].as_str().unwrap().contains("without its guest's consent"),
        "{status}"
    );
    nothing_is_left_over(&host);
    host.act("vm", "start");
    let second = host.becomes("vm", "running");
    assert_eq!(second["status"]["incarnation"], 2);
    assert_ne!(second["status"]["pid"], first["status"]["pid"]);
    assert_eq!(second["id"], first["id"]);
}

#[test]
fn a_guest_that_heeds_the_power_button_ends_in_its_own_way() {
    if !ready() {
        return;
    }
    let host = Host::new();
    // Longer than this test may take.
    host.run("vm", &spec_with("do=heed", &json!({ "stop_timeout_seconds": 600 })));
    host.act("vm", "stop");
    let status = host.becomes("vm", "stopped")["status"].clone();
    assert_eq!(
        (&status["last_end"]["status"], &status["last_end"]["signal"]),
        (&json!(0), &Value::Null),
        "{status}"
    );
    assert!(host.console("vm").ends_with("done\r\n") || host.console("vm").ends_with("done\n"));
    nothing_is_left_over(&host);
}

#[test]
fn a_kill_waits_for_nobody_not_even_for_a_stop_that_is_under_way() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec_with("do=spin", &json!({ "stop_timeout_seconds": 3600 })));
    let stop = host.begin("POST", &format!("{}/actions", vm_path("t", "vm")), &json!({ "action": "stop" }));
    host.becomes("vm", "stopping");
    host.act("vm", "kill");
    assert_eq!(host.vm("vm")["status"]["state"], "stopped");
    assert_eq!(host.over(&stop)["state"], "cancelled");
}

#[test]
fn a_paused_vm_uses_no_cpu_time_and_a_resumed_one_goes_on_in_the_same_process() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let pid = i32::try_from(host.run("vm", &spec("do=spin"))["status"]["pid"].as_i64().unwrap()).unwrap();
    host.act("vm", "pause");
    assert_eq!(host.vm("vm")["status"]["state"], "paused");
    let before = vcpu_ns(pid);
    (0..20).for_each(|_| drop(host.get("/v1/host")));
    assert_eq!(vcpu_ns(pid), before);
    // An agent that comes in between finds it paused.
    host.kill9();
    host.start();
    assert_eq!(host.vm("vm")["status"]["state"], "paused");
    host.act("vm", "resume");
    let vm = host.becomes("vm", "running");
    assert_eq!(vm["status"]["pid"], pid);
    eventually("CPU time", || (vcpu_ns(pid) > before).then_some(()));
    // A stop does not wait for a guest that stands still.
    host.act("vm", "pause");
    host.act("vm", "stop");
    assert_eq!(host.vm("vm")["status"]["state"], "stopped");
}

#[test]
fn a_vm_that_is_wanted_paused_comes_up_paused() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.put(&vm_path("t", "vm"), &json!({ "spec": spec_with("do=spin", &json!({ "power": "paused" })) }));
    host.becomes("vm", "paused");
    host.put(&vm_path("t", "vm"), &json!({ "spec": spec_with("do=spin", &json!({ "power": "running" })) }));
    assert_eq!(host.becomes("vm", "running")["status"]["incarnation"], 1);
}

#[test]
fn a_reset_is_another_incarnation_of_the_same_vm() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let before = host.run("vm", &spec("do=spin"));
    host.act("vm", "reset");
    let after = host.becomes("vm", "running");
    assert_eq!((&after["id"], &after["spec"]), (&before["id"], &before["spec"]));
    assert_eq!(after["status"]["incarnation"], 2);
    assert_ne!(after["status"]["pid"], before["status"]["pid"]);
}

#[test]
fn what_does_not_run_is_not_paused_resumed_or_reset() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.put(&vm_path("t", "vm"), &json!({ "spec": spec_with("do=spin", &json!({ "power": "stopped" })) }));
    for action in ["pause", "resume", "reset"] {
        let (status, code, text) =
            host.refused("POST", &format!("{}/actions", vm_path("t", "vm")), &json!({ "action": action }));
        assert_eq!((status, code.as_str(), text.as_str()), (409, "state", "VM t/vm is stopped"), "{action}");
    }
    assert_eq!(host.vm("vm")["generation"], 1);
}

#[test]
fn a_time_to_live_ends_a_vm_also_over_a_death_of_the_agent_and_a_start_begins_it_anew() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let vm = host.run("vm", &spec_with("do=spin", &json!({ "ttl_seconds": 2 })));
    assert!(vm["status"]["expires_at"].is_string(), "{vm}");
    host.kill9();
    host.start();
    assert_eq!(host.vm("vm")["status"]["expires_at"], vm["status"]["expires_at"]);
    host.vm_once("vm", "over", |vm| {
        vm["status"]["state"] == "stopped" && vm["status"]["reason"] == "its time to live is over"
    });
    host.act("vm", "start");
    assert_eq!(host.becomes("vm", "running")["status"]["incarnation"], 2);
    host.becomes("vm", "stopped");
}

#[test]
fn a_time_to_live_that_deletes_leaves_nothing() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let path = vm_path("t", "vm");
    host.put(
        &path,
        &json!({ "spec": spec_with("do=spin", &json!({ "ttl_seconds": 1, "ttl_deletes": true })) }),
    );
    eventually("its removal", || (host.ask("GET", &path, &Value::Null).status == 404).then_some(()));
    nothing_is_left_over(&host);
    assert!(host.events().iter().any(|event| event["kind"] == "vm.deleted" && event["requestor"] == "agent"));
}

#[test]
fn a_changed_spec_waits_for_the_next_start_and_says_so() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let before = host.run("vm", &spec("do=spin"));
    host.put(&vm_path("t", "vm"), &json!({ "spec": spec_with("do=spin", &json!({ "memory_mib": 48 })) }));
    let changed = host.vm("vm");
    assert_eq!((&changed["generation"], &changed["status"]["observed_generation"]), (&json!(2), &json!(1)));
    assert_eq!(changed["status"]["pid"], before["status"]["pid"]);
    assert!(changed["status"]["reason"].as_str().unwrap().contains("next start"), "{changed}");
    host.act("vm", "reset");
    let after = host.vm_once("vm", "running as wanted", |vm| vm["status"]["reason"] == "");
    assert_eq!(after["status"]["observed_generation"], after["generation"]);
}
