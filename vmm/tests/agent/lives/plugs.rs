//! Volumes that come and go while the guest runs. This one has no hot-plug: it lets go of what its driver never touched.

use serde_json::{Value, json};

use super::super::order::nothing_is_left_over;
use super::super::ready;
use super::super::rig::{Host, spec_with, vm_path};

const VOLUMES: &str = "/v1/tenants/t/volumes";

fn attach(host: &Host, volume: &str, vm: &str) -> Value {
    let reply = host.ask("POST", &format!("{VOLUMES}/{volume}/attach"), &json!({ "vm": vm }));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

fn detach(host: &Host, volume: &str, vm: &str) -> Value {
    let reply = host.ask("POST", &format!("{VOLUMES}/{volume}/detach"), &json!({ "vm": vm }));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// How the operation that a change began ended.
fn outcome(host: &Host, changed: &Value) -> Value {
    host.over(changed["operation"].as_str().unwrap_or_else(|| panic!("it is nothing's: {changed}")))
}

fn makes(host: &Host, volumes: &[&str]) {
    for volume in volumes {
        host.done("PUT", &format!("{VOLUMES}/{volume}"), &json!({ "size_mib": 1 }));
    }
}

/// Ids of a VM's drives, as the agent names them.
fn drives(host: &Host, vm: &str) -> Vec<String> {
    host.drives(vm).iter().map(|drive| drive["drive_id"].as_str().unwrap().to_owned()).collect()
}

fn drive_of(host: &Host, volume: &str) -> String {
    host.get(&format!("{VOLUMES}/{volume}"))["id"].as_str().unwrap().replace('-', "_")
}

/// As it is wanted, in the process that it had.
fn is_as_wanted(host: &Host, vm: &str, pid: i32) {
    let view = host.vm(vm);
    let status = &view["status"];
    assert_eq!((&status["state"], &status["reason"]), (&json!("running"), &json!("")), "{view}");
    assert_eq!(status["observed_generation"], view["generation"], "{view}");
    assert_eq!(status["pid"], pid, "{view}");
}

#[test]
fn a_volume_comes_and_goes_while_its_vm_runs_and_is_free_for_others_then() {
    if !ready() {
        return;
    }
    let host = Host::new();
    makes(&host, &["first", "late"]);
    host.run("one", &spec_with("do=capacity", &json!({ "volumes": [{ "volume": "first" }] })));
    let pid = host.vm_pid("one");
    for _ in 0..2 {
        let view = outcome(&host, &attach(&host, "late", "one"));
        assert_eq!(view["state"], "succeeded", "{view}");
        assert_eq!(drives(&host, "one"), [drive_of(&host, "first"), drive_of(&host, "late")]);
        is_as_wanted(&host, "one", pid);
        let view = outcome(&host, &detach(&host, "late", "one"));
        assert_eq!(view["state"], "succeeded", "{view}");
        assert_eq!(drives(&host, "one"), [drive_of(&host, "first")]);
        is_as_wanted(&host, "one", pid);
    }
    host.run("two", &spec_with("do=capacity", &json!({ "volumes": [{ "volume": "late" }] })));
    host.prints("two", "sectors 0x800\n");
    let kinds = |kind: &str| host.events().iter().filter(|event| event["kind"] == kind).count();
    assert_eq!((kinds("volume.attached"), kinds("volume.detached")), (2, 2));
    nothing_is_left_over(&host);
}

#[test]
fn a_guest_gives_back_no_blocks_of_a_preallocated_volume() {
    if !ready() {
        return;
    }
    let host = Host::new();
    makes(&host, &["sparse"]);
    for volume in ["whole", "late"] {
        host.done("PUT", &format!("{VOLUMES}/{volume}"), &json!({ "size_mib": 1, "preallocate": true }));
        assert_eq!(host.get(&format!("{VOLUMES}/{volume}"))["preallocated"], true);
    }
    let volumes = json!({ "volumes": [{ "volume": "sparse" }, { "volume": "whole" }] });
    host.run("vm", &spec_with("do=spin", &volumes));
    assert_eq!(outcome(&host, &attach(&host, "late", "vm"))["state"], "succeeded");
    // What may be discarded, by default, is not told.
    let discard: Vec<_> = host.drives("vm").iter().map(|drive| drive["discard"].clone()).collect();
    assert_eq!(discard, [Value::Null, json!(false), json!(false)]);
}

#[test]
fn an_attached_volume_grows_and_is_read_only_if_that_was_said() {
    if !ready() {
        return;
    }
    let host = Host::new();
    makes(&host, &["a", "b"]);
    host.run("vm", &spec_with("do=spin", &json!({})));
    let volumes = json!([{ "volume": "a", "read_only": true }, { "volume": "b" }]);
    let put = |volumes: &Value| {
        host.put(
            &vm_path("t", "vm"),
            &json!({ "spec": spec_with("do=spin", &json!({ "volumes": volumes })) }),
        )
    };
    let view = outcome(&host, &put(&volumes));
    assert_eq!(view["state"], "succeeded", "{view}");
    let read_only: Vec<_> = host.drives("vm").iter().map(|drive| drive["is_read_only"].clone()).collect();
    assert_eq!(read_only, [json!(true), json!(false)]);
    host.done("PATCH", &format!("{VOLUMES}/b"), &json!({ "size_mib": 2 }));
    // What a guest may do with what it has is settled when it gets it.
    put(&json!([{ "volume": "a" }, { "volume": "b" }]));
    let vm = host.vm_once("vm", "told", |vm| vm["status"]["reason"].as_str().unwrap().contains("next start"));
    assert_eq!(drives(&host, "vm").len(), 2, "{vm}");
}

#[test]
fn a_volume_that_the_guest_keeps_stays_its_own_and_that_is_said_until_it_is_asked_again_or_ends() {
    if !ready() {
        return;
    }
    let host = Host::new();
    makes(&host, &["d", "e"]);
    host.run("one", &spec_with("do=capacity", &json!({ "volumes": [{ "volume": "d" }] })));
    host.prints("one", "sectors 0x800\n");
    let pid = host.vm_pid("one");
    let changed = detach(&host, "d", "one");
    let during = host.vm_once("one", "asked", |vm| {
        vm["status"]["reason"].as_str().unwrap().starts_with("volume d is being detached")
    });
    assert_eq!(during["status"]["state"], "running");
    let (status, code, _) = host.refused("DELETE", &format!("{VOLUMES}/d"), &Value::Null);
    assert_eq!((status, code.as_str()), (409, "in_use"));
    let view = outcome(&host, &changed);
    assert_eq!((&view["state"], &view["error"]["code"]), (&json!("failed"), &json!("state")), "{view}");
    let reason = host.vm("one")["status"]["reason"].as_str().unwrap().to_owned();
    for part in ["volume d could not be detached", "has not let go of device", "put again"] {
        assert!(reason.contains(part), "{reason}");
    }
    // It does not try by itself, says the same after the agent's death, and takes other volumes meanwhile.
    host.kill9();
    host.start();
    assert_eq!(host.vm("one")["status"]["reason"], reason);
    let refusals = |host: &Host| host.events().iter().filter(|event| event["kind"] == "vm.refused").count();
    assert_eq!(refusals(&host), 1);
    let again = outcome(&host, &detach(&host, "d", "one"));
    assert_eq!((&again["state"], refusals(&host)), (&json!("failed"), 2), "{again}");
    assert_eq!(drives(&host, "one"), [drive_of(&host, "d")]);
    // Wanted again, nothing differs.
    attach(&host, "d", "one");
    host.vm_once("one", "as wanted", |vm| vm["status"]["reason"] == "");
    is_as_wanted(&host, "one", pid);
    // A kill waits for no guest.
    detach(&host, "d", "one");
    host.vm_once("one", "asked", |vm| {
        vm["status"]["reason"].as_str().unwrap().starts_with("volume d is being detached")
    });
    host.act("one", "kill");
    host.delete(&format!("{VOLUMES}/d"));
    nothing_is_left_over(&host);
}

#[test]
fn what_stands_still_is_given_volumes_and_lets_go_of_them_when_it_goes_on() {
    if !ready() {
        return;
    }
    let host = Host::new();
    makes(&host, &["d"]);
    host.run("vm", &spec_with("do=spin", &json!({})));
    let pid = host.vm_pid("vm");
    host.act("vm", "pause");
    let view = outcome(&host, &attach(&host, "d", "vm"));
    assert_eq!((&view["state"], drives(&host, "vm").len()), (&json!("succeeded"), 1), "{view}");
    detach(&host, "d", "vm");
    let vm = host.vm("vm");
    assert_eq!(vm["status"]["reason"], "volume d is detached when its guest goes on", "{vm}");
    assert_eq!(drives(&host, "vm").len(), 1);
    host.act("vm", "resume");
    host.vm_once("vm", "as wanted", |vm| vm["status"]["reason"] == "");
    assert_eq!(drives(&host, "vm").len(), 0);
    is_as_wanted(&host, "vm", pid);
}

#[test]
fn a_change_to_a_running_vm_is_not_cancelled_by_ending_it() {
    if !ready() {
        return;
    }
    let host = Host::new();
    makes(&host, &["d"]);
    host.run("vm", &spec_with("do=capacity", &json!({ "volumes": [{ "volume": "d" }] })));
    host.prints("vm", "sectors 0x800\n");
    let op = detach(&host, "d", "vm")["operation"].as_str().unwrap().to_owned();
    let (status, code, text) = host.refused("DELETE", &format!("/v1/operations/{op}"), &Value::Null);
    assert_eq!((status, code.as_str()), (409, "state"), "{text}");
    assert_eq!(host.vm("vm")["status"]["state"], "running");
}
