//! Guests that end by themselves, and what their restart policy makes of it.

use serde_json::{Value, json};

use super::super::order::nothing_is_left_over;
use super::super::ready;
use super::super::rig::{Host, spec_with, vm_path};

/// Makes a VM whose guest ends `how`.
fn make(host: &Host, vm: &str, how: &str, restart: &str) {
    let spec = spec_with(&format!("do=hello end={how}"), &json!({ "restart": restart }));
    host.put(&vm_path("t", vm), &json!({ "spec": spec }));
}

fn ended(host: &Host, vm: &str) -> Value {
    host.vm_once(vm, "over", |view| {
        view["status"]["state"] == "stopped" && !view["status"]["last_end"].is_null()
    })
}

#[test]
fn a_guest_that_ends_stays_so_by_policy_never_with_a_reason() {
    if !ready() {
        return;
    }
    let host = Host::new();
    for (how, clean) in [("poweroff", true), ("panic", false), ("triple", false)] {
        make(&host, how, how, "never");
        let vm = ended(&host, how);
        let (status, end) = (&vm["status"], &vm["status"]["last_end"]);
        assert_eq!(end["status"] == 0, clean, "{how}: {vm}");
        assert_eq!((&status["incarnation"], &status["restarts"]), (&json!(1), &json!(0)));
        let reason = status["reason"].as_str().unwrap();
        assert!(reason.starts_with("it ended, and its restart policy leaves it at that: "), "{reason}");
        assert!(reason.ends_with(end["reason"].as_str().unwrap()), "{reason}");
        assert_eq!(vm["spec"]["power"], "running", "what is wanted stays");
        assert!(host.console(how).contains("done\n"));
    }
    nothing_is_left_over(&host);
    // An agent that starts does not begin it again; whoever wants that says so.
    host.kill9();
    host.start();
    assert_eq!(host.vm("poweroff")["status"]["incarnation"], 1);
    host.act("poweroff", "start");
    host.vm_once("poweroff", "over again", |vm| {
        vm["status"]["incarnation"] == 2 && vm["status"]["state"] == "stopped"
    });
}

#[test]
fn policy_on_failure_starts_a_guest_that_panicked_again_and_one_that_switched_itself_off_not() {
    if !ready() {
        return;
    }
    let host = Host::new();
    make(&host, "off", "poweroff", "on_failure");
    make(&host, "panics", "panic", "on_failure");
    let again = host.vm_once("panics", "started again", |vm| vm["status"]["restarts"].as_u64() >= Some(2));
    assert!(again["status"]["incarnation"].as_u64() >= Some(2), "{again}");
    let off = ended(&host, "off");
    assert_eq!((&off["status"]["incarnation"], &off["status"]["restarts"]), (&json!(1), &json!(0)));
    host.act("panics", "stop");
    assert_eq!(host.becomes("panics", "stopped")["status"]["reason"], "");
}

#[test]
fn policy_always_starts_every_guest_again_until_it_is_stopped() {
    if !ready() {
        return;
    }
    let host = Host::new();
    make(&host, "vm", "poweroff", "always");
    host.vm_once("vm", "started again", |vm| vm["status"]["restarts"].as_u64() >= Some(2));
    host.act("vm", "stop");
    let stopped = host.becomes("vm", "stopped");
    host.kill9();
    host.start();
    assert_eq!(host.vm("vm")["status"]["incarnation"], stopped["status"]["incarnation"]);
    nothing_is_left_over(&host);
}

#[test]
fn a_guest_that_ends_while_there_is_no_agent_is_found_ended_with_its_reason() {
    if !ready() {
        return;
    }
    let host = Host::new();
    // It ends by its VMM's SIGTERM, which nobody of an agent sees.
    host.run("vm", &spec_with("do=spin", &json!({})));
    let pid = host.vm_pid("vm");
    host.kill9();
    let id = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL).unwrap();
    super::super::common::eventually("its end", || (!host.processes().contains(&pid)).then_some(()));
    host.start();
    let vm = ended(&host, "vm");
    assert_eq!(vm["status"]["last_end"]["reason"], "its VMM was ended while nobody looked");
    assert_eq!(vm["status"]["incarnation"], 1);
    nothing_is_left_over(&host);
}
