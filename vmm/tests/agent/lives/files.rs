//! Images and volumes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::super::order::nothing_is_left_over;
use super::super::rig::{Host, spec, spec_with, vm_path};
use super::super::{guest, ready};

const VOLUME: &str = "/v1/tenants/t/volumes/d";

#[test]
fn an_image_is_named_by_its_content_and_taken_in_whatever_becomes_of_the_files_it_came_from() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let kernel = host.dir().join("kernel");
    fs::copy(guest(), &kernel).unwrap();
    let body = json!({ "name": "copy", "kernel": kernel, "kernel_args": "do=hello end=panic" });
    host.done("POST", "/v1/images", &body);
    fs::remove_file(&kernel).unwrap();
    let (first, copy) = (host.get("/v1/images/guest"), host.get("/v1/images/copy"));
    assert_eq!(first["kernel"], copy["kernel"], "the same bytes are there once");
    assert_ne!(first["id"], copy["id"], "their command lines differ");
    let id = copy["id"].as_str().unwrap();
    assert!(id.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64), "{id}");
    assert_eq!(host.get(&format!("/v1/images/{}", &id["sha256:".len()..20]))["id"], id);
    assert_eq!(host.get("/v1/images").as_array().unwrap().len(), 2);
    let vm = json!({ "image": id, "memory_mib": 32 });
    host.put(&vm_path("t", "vm"), &json!({ "spec": vm }));
    let ended = host.vm_once("vm", "over", |vm| vm["status"]["state"] == "stopped");
    assert_ne!(ended["status"]["last_end"]["status"], 0, "its command line made it panic: {ended}");
    host.done("POST", "/v1/images/copy/verify", &Value::Null);
}

#[test]
fn a_damaged_image_is_not_started_and_named() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let digest = host.get("/v1/images/guest")["kernel"].as_str().unwrap().replace("sha256:", "");
    let blob = host.state_dir().join("images/blobs").join(&digest);
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, &bytes).unwrap();
    host.put(&vm_path("t", "vm"), &json!({ "spec": spec("do=spin") }));
    let vm = host.becomes("vm", "failed");
    let reason = vm["status"]["reason"].as_str().unwrap();
    assert!(reason.contains(&digest) && reason.contains("is damaged"), "{reason}");
    let view = host.over(&host.begin("POST", "/v1/images/guest/verify", &Value::Null));
    assert_eq!(view["state"], "failed");
    assert!(view["error"]["message"].as_str().unwrap().contains(&digest), "{view}");
    let doctor = host.get("/v1/doctor").to_string();
    assert!(doctor.contains("t/vm is failed"), "{doctor}");
    nothing_is_left_over(&host);
    // What it says helps.
    host.done("POST", "/v1/images", &json!({ "name": "guest", "kernel": guest() }));
    host.act("vm", "start");
    host.becomes("vm", "running");
}

#[test]
fn an_image_is_not_removed_while_a_vm_names_it() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.put(&vm_path("t", "vm"), &json!({ "spec": spec_with("do=spin", &json!({ "power": "stopped" })) }));
    assert_eq!(host.get("/v1/images/guest")["used_by"], 1);
    let (status, code, text) = host.refused("DELETE", "/v1/images/guest", &Value::Null);
    assert_eq!((status, code.as_str(), text.as_str()), (409, "in_use", "image guest is used by VM t/vm"));
    host.done("DELETE", &vm_path("t", "vm"), &Value::Null);
    host.delete("/v1/images/guest");
    assert_eq!(host.get("/v1/images"), json!([]));
    let (status, code, text) = host.refused("PUT", &vm_path("t", "vm"), &json!({ "spec": spec("do=spin") }));
    assert_eq!((status, code.as_str()), (404, "not_found"));
    assert!(text.contains("\"guest\""), "{text}");
    nothing_is_left_over(&host);
}

#[test]
fn an_image_is_not_removed_while_a_vm_runs_that_was_started_from_it() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    let rootfs = host.dir().join("rootfs");
    fs::write(&rootfs, [1; 4096]).unwrap();
    let other = json!({ "name": "other", "kernel": super::super::guest(), "rootfs": rootfs });
    host.done("POST", "/v1/images", &other);
    host.put(&vm_path("t", "vm"), &json!({ "spec": spec_with("do=spin", &json!({ "image": "other" })) }));
    assert_eq!(host.vm("vm")["status"]["state"], "running");
    let (status, code, _) = host.refused("DELETE", "/v1/images/guest", &Value::Null);
    assert_eq!((status, code.as_str()), (409, "in_use"));
    for image in ["guest", "other"] {
        assert_eq!(host.get(&format!("/v1/images/{image}"))["used_by"], 1, "{image}");
    }
    host.act("vm", "kill");
    host.delete("/v1/images/guest");
    nothing_is_left_over(&host);
}

fn file_of(host: &Host, volume: &str) -> std::path::PathBuf {
    let id = host.get(volume)["id"].as_str().unwrap().to_owned();
    host.state_dir().join(format!("volumes/tenants/t/{id}.raw"))
}

#[test]
fn a_volume_begins_empty_or_as_a_copy_and_takes_its_room_when_told_to() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let rootfs = host.dir().join("rootfs");
    let content: Vec<u8> = (0..=255u8).cycle().take(3 << 20).collect();
    fs::write(&rootfs, &content).unwrap();
    host.done("POST", "/v1/images", &json!({ "name": "disk", "kernel": guest(), "rootfs": rootfs }));
    host.done("PUT", VOLUME, &json!({ "from": { "image": "disk" }, "size_mib": 4 }));
    let bytes = fs::read(file_of(&host, VOLUME)).unwrap();
    assert!(
        bytes.len() == 4 << 20 && bytes[..3 << 20] == content && bytes[3 << 20..].iter().all(|b| *b == 0)
    );
    let copy = "/v1/tenants/t/volumes/copy";
    host.done("PUT", copy, &json!({ "from": { "volume": "d" } }));
    assert!(fs::read(file_of(&host, copy)).unwrap() == bytes);
    let sparse = "/v1/tenants/t/volumes/sparse";
    host.done("PUT", sparse, &json!({ "size_mib": 64 }));
    assert!(host.get(sparse)["allocated_bytes"].as_u64().unwrap() < 1 << 20);
    let whole = "/v1/tenants/t/volumes/whole";
    host.done("PUT", whole, &json!({ "size_mib": 16, "preallocate": true }));
    assert!(host.get(whole)["allocated_bytes"].as_u64().unwrap() >= 16 << 20);
    let (status, code, text) = host.refused("PUT", whole, &json!({ "size_mib": 1 }));
    assert_eq!((status, code.as_str(), text.as_str()), (409, "exists", "volume t/whole exists"));
    let small = json!({ "from": { "image": "disk" }, "size_mib": 2 });
    let (status, code, text) = host.refused("PUT", "/v1/tenants/t/volumes/x", &small);
    assert_eq!((status, code.as_str(), text.as_str()), (400, "invalid", "size_mib: at least 3 is accepted"));
    assert_eq!(host.get("/v1/tenants/t")["used"]["disk_mib"], 4 + 4 + 64 + 16);
    nothing_is_left_over(&host);
}

#[test]
fn a_guest_sees_its_volume_grow_while_it_runs() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.done("PUT", VOLUME, &json!({ "size_mib": 1 }));
    host.run("vm", &spec_with("do=capacity", &json!({ "volumes": [{ "volume": "d" }] })));
    host.prints("vm", "sectors 0x800\n");
    let pid = host.vm_pid("vm");
    host.done("PATCH", VOLUME, &json!({ "size_mib": 5 }));
    host.prints("vm", "sectors 0x2800\n");
    assert_eq!((host.vm_pid("vm"), &host.get(VOLUME)["size_mib"]), (pid, &json!(5)));
    let (status, code, text) = host.refused("PATCH", VOLUME, &json!({ "size_mib": 4 }));
    assert_eq!(
        (status, code.as_str(), text.as_str()),
        (400, "invalid", "size_mib 4: at least 5 is accepted")
    );
}

#[test]
fn a_volume_is_attached_to_one_that_writes_or_to_many_that_read_and_not_removed_meanwhile() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.done("PUT", VOLUME, &json!({ "size_mib": 1 }));
    for vm in ["one", "two"] {
        let spec = spec_with("do=capacity", &json!({ "power": "stopped" }));
        host.put(&vm_path("t", vm), &json!({ "spec": spec }));
    }
    let attach = |vm: &str, read_only: bool| {
        host.ask("POST", &format!("{VOLUME}/attach"), &json!({ "vm": vm, "read_only": read_only }))
    };
    let detach = |vm: &str| host.ask("POST", &format!("{VOLUME}/detach"), &json!({ "vm": vm }));
    assert_eq!(attach("one", false).status, 200);
    assert_eq!(attach("one", false).refusal().0, "state");
    let (code, text) = attach("two", false).refusal();
    assert_eq!((code.as_str(), text.as_str()), ("in_use", "volume d is attached to VM one"));
    host.act("one", "start");
    host.prints("one", "sectors 0x800\n");
    let (status, code, text) = host.refused("DELETE", VOLUME, &Value::Null);
    assert_eq!((status, code.as_str(), text.as_str()), (409, "in_use", "volume t/d is attached to VM one"));
    assert_eq!(host.get(VOLUME)["attached_to"], json!(["one"]));
    // What runs keeps it until it ends; then the others may have it, to read.
    assert_eq!(detach("one").status, 200);
    host.act("one", "kill");
    assert_eq!(attach("one", true).status, 200);
    assert_eq!(attach("two", true).status, 200);
    for vm in ["one", "two"] {
        host.act(vm, "start");
        host.becomes(vm, "running");
    }
    for vm in ["one", "two"] {
        host.done("DELETE", &vm_path("t", vm), &Value::Null);
    }
    assert_eq!(detach("one").status, 404);
    host.delete(VOLUME);
    nothing_is_left_over(&host);
}

#[test]
fn a_volume_that_a_vm_still_writes_to_is_neither_copied_nor_given_to_another() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.done("PUT", VOLUME, &json!({ "size_mib": 1 }));
    host.run("one", &spec_with("do=capacity", &json!({ "volumes": [{ "volume": "d" }] })));
    let view =
        host.over(&host.begin("PUT", "/v1/tenants/t/volumes/copy", &json!({ "from": { "volume": "d" } })));
    assert_eq!((&view["state"], &view["error"]["code"]), (&json!("failed"), &json!("in_use")), "{view}");
    assert_eq!(host.ask("GET", "/v1/tenants/t/volumes/copy", &Value::Null).status, 404);
    // It is wanted no more, and the one that runs has it open.
    assert_eq!(host.ask("POST", &format!("{VOLUME}/detach"), &json!({ "vm": "one" })).status, 200);
    let two = json!({ "spec": spec_with("do=capacity", &json!({ "volumes": [{ "volume": "d" }] })) });
    let (status, code, text) = host.refused("PUT", &vm_path("t", "two"), &two);
    assert_eq!(
        (status, code.as_str(), text.as_str()),
        (409, "in_use", "volume d is detached from VM one, which runs and still has it")
    );
    assert_eq!(host.vm("one")["status"]["state"], "running");
    host.act("one", "kill");
    host.put(&vm_path("t", "two"), &two);
    host.prints("two", "sectors 0x800\n");
}
