//! Long work is waited for and cancelled.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::super::order::{nothing_is_left_over, settles};
use super::super::ready;
use super::super::rig::{Host, spec, vm_path};

/// A server whose jailer waits until somebody writes into the FIFO that is returned.
fn with_slow_jailer() -> (Host, fs::File) {
    let dir = tempfile::tempdir().unwrap().keep();
    let (fifo, script) = (dir.join("go"), dir.join("yun-jailer"));
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    // Open for reading and writing: neither side waits for the other to open it.
    let go = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let text =
        format!("#!/bin/sh\nread x < {}\nexec {} \"$@\"\n", fifo.display(), super::super::jailer().display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    (Host::with(&["--jailer", script.to_str().unwrap(), "--vmm-timeout-ms", "200000"]), go)
}

#[test]
fn a_start_is_waited_for_and_a_cancelled_one_is_wanted_stopped() {
    if !ready() {
        return;
    }
    let (host, mut go) = with_slow_jailer();
    host.put(&vm_path("t", "vm"), &json!({ "spec": spec("do=spin") }));
    host.becomes("vm", "starting");
    let actions = format!("{}/actions", vm_path("t", "vm"));
    let op = host.begin("POST", &actions, &json!({ "action": "start" }));
    let view = host.get(&format!("/v1/operations/{op}/wait?timeout_seconds=0"));
    assert_eq!(
        (&view["state"], &view["kind"], &view["cancellable"]),
        (&json!("running"), &json!("vm_start"), &json!(true))
    );
    assert_eq!(view["requestor"], "uid:0");
    let reply = host.ask("DELETE", &format!("/v1/operations/{op}"), &Value::Null);
    assert_eq!((reply.status, &reply.json()["state"]), (202, &json!("cancelled")));
    go.write_all(b"go\n").unwrap();
    host.becomes("vm", "stopped");
    settles(&host);
    assert_eq!(host.vm("vm")["spec"]["power"], "stopped");
    nothing_is_left_over(&host);
    // And one that is not cancelled succeeds.
    let op = host.begin("POST", &actions, &json!({ "action": "start" }));
    go.write_all(b"go\n").unwrap();
    assert_eq!(host.over(&op)["state"], "succeeded");
    assert_eq!(host.vm("vm")["status"]["state"], "running");
    let (status, code, _) = host.refused("DELETE", &format!("/v1/operations/{op}"), &Value::Null);
    assert_eq!((status, code.as_str()), (409, "state"), "it is over");
}

#[test]
fn an_import_shows_how_far_it_is_and_a_cancelled_one_leaves_nothing() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let rootfs = host.dir().join("rootfs");
    // No disk is read as fast as this would have to be.
    fs::File::create(&rootfs).unwrap().set_len(4 << 40).unwrap();
    let body = json!({ "name": "huge", "kernel": super::super::guest(), "rootfs": rootfs });
    let op = host.begin("POST", "/v1/images", &body);
    super::super::common::eventually("progress", || {
        let view = host.get(&format!("/v1/operations/{op}"));
        assert_eq!(view["state"], "running", "{view}");
        (view["done"].as_u64() > Some(0) && view["unit"] == "bytes").then_some(())
    });
    // Meanwhile others are served.
    host.run("vm", &spec("do=spin"));
    assert_eq!(host.ask("DELETE", &format!("/v1/operations/{op}"), &Value::Null).status, 202);
    assert_eq!(host.over(&op)["state"], "cancelled");
    assert_eq!(host.ask("GET", "/v1/images/huge", &Value::Null).status, 404);
    nothing_is_left_over(&host);
}

#[test]
fn a_volume_whose_making_is_cancelled_was_never_there() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let rootfs = host.dir().join("rootfs");
    fs::File::create(&rootfs).unwrap().set_len(192 << 20).unwrap();
    let body = json!({ "name": "disk", "kernel": super::super::guest(), "rootfs": rootfs });
    host.done("POST", "/v1/images", &body);
    // An agent that has not verified the image yet, and so reads all of it first.
    host.terminate();
    host.start();
    let path = "/v1/tenants/t/volumes/d";
    let op = host.begin("PUT", path, &json!({ "from": { "image": "disk" } }));
    let (status, code, _) = host.refused("DELETE", path, &Value::Null);
    assert_eq!((status, code.as_str()), (409, "state"), "it is being made");
    assert_eq!(host.ask("DELETE", &format!("/v1/operations/{op}"), &Value::Null).status, 202);
    assert_eq!(host.over(&op)["state"], "cancelled");
    assert_eq!(host.ask("GET", path, &Value::Null).status, 404);
    assert_eq!(host.get("/v1/tenants/t")["used"]["disk_mib"], 0);
    nothing_is_left_over(&host);
}
