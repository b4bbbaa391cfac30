//! Every refusal has a status, a code, and words that name what was wrong; and it changes nothing.

use serde_json::{Value, json};

use super::client;
use super::order::{audit_is_whole, nothing_is_left_over};
use super::ready;
use super::rig::{Host, spec_with, vm_path};

fn put(more: &Value) -> Value {
    let mut all = json!({ "power": "stopped" });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "spec": spec_with("do=spin", &all) })
}

#[test]
fn a_spec_that_is_wrong_is_refused_with_the_field_and_what_is_accepted_and_makes_nothing() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let path = vm_path("t", "vm");
    let no_interfaces = "networks are switched off";
    let table: [(Value, u16, &str, &str); 16] = [
        (put(&json!({ "vcpus": 0 })), 400, "invalid", "spec.vcpus 0: 1 to 32 are accepted"),
        (put(&json!({ "vcpus": 33 })), 400, "invalid", "spec.vcpus 33: 1 to 32 are accepted"),
        (put(&json!({ "vcpus": -1 })), 400, "invalid", "invalid value"),
        (put(&json!({ "memory_mib": 0 })), 400, "invalid", "spec.memory_mib 0: 1 to"),
        (put(&json!({ "kernel_args": "a\nb" })), 400, "invalid", "spec.kernel_args: at most 1024 printable"),
        (put(&json!({ "ttl_seconds": 0 })), 400, "invalid", "spec.ttl_seconds 0: 1 or more is accepted"),
        (put(&json!({ "ttl_deletes": true })), 400, "invalid", "spec.ttl_deletes needs spec.ttl_seconds"),
        (put(&json!({ "power": "off" })), 400, "invalid", "unknown variant `off`"),
        (put(&json!({ "colour": "red" })), 400, "invalid", "unknown field `colour`"),
        (put(&json!({ "image": "nothing" })), 404, "not_found", "there is no image \"nothing\""),
        (
            put(&json!({ "volumes": [{ "volume": "nothing" }] })),
            404,
            "not_found",
            "there is no volume t/nothing",
        ),
        (put(&json!({ "interfaces": [{ "name": "eth0", "subnet": "s" }] })), 400, "invalid", no_interfaces),
        (json!({}), 400, "invalid", "missing field `spec`"),
        (json!({ "spec": {} }), 400, "invalid", "missing field `image`"),
        (json!({ "spec": { "image": "guest" }, "more": 1 }), 400, "invalid", "unknown field `more`"),
        (json!([]), 400, "invalid", "invalid"),
    ];
    for (body, status, code, text) in &table {
        let refusal = host.refused("PUT", &path, body);
        assert_eq!((refusal.0, refusal.1.as_str()), (*status, *code), "{body}: {}", refusal.2);
        assert!(*text == no_interfaces || refusal.2.contains(text), "{body}: {}", refusal.2);
    }
    assert_eq!(host.get("/v1/vms"), json!([]));
    nothing_is_left_over(&host);
    audit_is_whole(&host);
}

#[test]
fn what_is_no_request_of_ours_is_refused_as_such() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let long = format!("/v1/tenants/{}", "a".repeat(200));
    let table: [(&str, &str, &str, u16, &str, &str); 12] = [
        ("GET", "/", "", 404, "not_found", "there is no path /"),
        ("GET", "/v2/host", "", 404, "not_found", "there is no path /v2/host"),
        ("POST", "/v1/host", "", 405, "method_not_allowed", "/v1/host does not take POST"),
        ("PUT", "/v1/tenants/t", "", 400, "invalid", "the request needs a body, in JSON"),
        ("PUT", "/v1/tenants/t", "{", 400, "invalid", "the body is not what is accepted: EOF"),
        ("PUT", "/v1/tenants/t", "{\"quota\":{\"cpus\":1}}", 400, "invalid", "unknown field `cpus`"),
        ("PUT", "/v1/tenants/Not_a_name", "{}", 400, "invalid", ""),
        ("PUT", &long, "{}", 400, "invalid", ""),
        ("GET", "/v1/tenants/t/vms/none", "", 404, "not_found", "there is no VM t/none"),
        ("GET", "/v1/tenants/none/vms", "", 404, "not_found", "there is no tenant none"),
        ("GET", "/v1/operations/op-0000000000000000", "", 404, "not_found", "op-0000000000000000"),
        ("GET", "/v1/events?since=x", "", 400, "invalid", ""),
    ];
    for (method, path, body, status, code, text) in table {
        let reply = client::request(&host.socket(), method, path, body).unwrap();
        let refusal = reply.refusal();
        assert_eq!(
            (reply.status, refusal.0.as_str()),
            (status, code),
            "{method} {path} {body}: {}",
            refusal.1
        );
        assert!(refusal.1.contains(text), "{method} {path}: {}", refusal.1);
    }
    let large = format!("{{\"quota\":{{}},\"x\":\"{}\"}}", "x".repeat(2 << 20));
    let reply = client::request(&host.socket(), "PUT", "/v1/tenants/t", &large).unwrap();
    let (code, text) = reply.refusal();
    assert_eq!((reply.status, code.as_str()), (413, "too_large"));
    assert_eq!(text, "the body is too large: at most 1048576 bytes are accepted");
    // The agent reads no more of such a head than it takes, so its answer is lost if the rest is still on its way when it
    // closes the connection (unix(7): the reader's next call is ECONNRESET).
    match client::request(&host.socket(), "GET", &format!("/v1/host?{}", "x".repeat(40_000)), "") {
        Ok(reply) => assert!(matches!(reply.status, 414 | 431), "{}", reply.status),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    assert_eq!(client::request(&host.socket(), "GET", "/v1/host", "").unwrap().status, 200);
}

#[test]
fn the_same_again_changes_nothing_and_a_stale_generation_is_refused() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let path = vm_path("t", "vm");
    let with = |generation: Option<u64>, memory: u64| {
        let mut body = put(&json!({ "memory_mib": memory }));
        if let Some(generation) = generation {
            body["generation"] = generation.into();
        }
        host.ask("PUT", &path, &body)
    };
    // What is given, and the status and generation that come of it.
    for (generation, memory, status, present) in [
        (None, 32, 201, 1),
        (None, 32, 200, 1),
        (Some(1), 32, 200, 1),
        (None, 33, 200, 2),
        (Some(2), 33, 200, 2),
        (Some(2), 34, 409, 2),
        (Some(1), 33, 409, 2),
        (Some(0), 34, 409, 2),
        (Some(7), 33, 200, 7),
        (None, 34, 200, 8),
    ] {
        let reply = with(generation, memory);
        assert_eq!(reply.status, status, "{generation:?} {memory}: {}", reply.text());
        assert_eq!(host.vm("vm")["generation"], present, "{generation:?} {memory}");
        if status == 409 {
            let (code, text) = reply.refusal();
            assert_eq!(code, "stale_generation");
            assert_eq!(text, format!("generation {} is stale: the present one is 2", generation.unwrap()));
        }
    }
    let events = host.events();
    assert_eq!(events.iter().filter(|event| event["kind"] == "vm.changed").count(), 3);
    // A dry run checks, and changes nothing.
    let dry = host.ask("PUT", &format!("{path}?dry_run=true"), &put(&json!({ "memory_mib": 99 })));
    assert_eq!((dry.status, &dry.json()["spec"]["memory_mib"]), (200, &json!(99)));
    let (_, code, _) = host.refused("PUT", &format!("{path}?dry_run=true"), &put(&json!({ "vcpus": 0 })));
    assert_eq!(code, "invalid");
    assert_eq!(host.vm("vm")["spec"]["memory_mib"], 34);
}

#[test]
fn a_tenant_that_has_something_is_not_removed_and_one_that_has_nothing_is() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.put(&vm_path("t", "vm"), &put(&json!({})));
    host.done("PUT", "/v1/tenants/t/volumes/d", &json!({ "size_mib": 1 }));
    let (status, code, text) = host.refused("DELETE", "/v1/tenants/t", &Value::Null);
    assert_eq!((status, code.as_str(), text.as_str()), (409, "in_use", "tenant t has 1 VMs and 1 volumes"));
    host.done("DELETE", &vm_path("t", "vm"), &Value::Null);
    host.delete("/v1/tenants/t/volumes/d");
    host.delete("/v1/tenants/t");
    assert_eq!(host.get("/v1/tenants"), json!([]));
    nothing_is_left_over(&host);
}
