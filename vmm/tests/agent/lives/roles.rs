//! Who may do what: users by number, as the kernel tells them.

use std::io::Read;

use serde_json::{Value, json};

use super::super::client::User;
use super::super::ready;
use super::super::rig::{Host, spec, vm_path};

const WRITER: User = User { uid: 47_201, gids: &[47_201] };
const READER: User = User { uid: 47_202, gids: &[47_202, 47_300] };
const OTHER: User = User { uid: 47_203, gids: &[47_203] };
const NOBODY: User = User { uid: 47_204, gids: &[47_204] };
const ADMIN: User = User { uid: 47_205, gids: &[47_205, 47_301] };

/// Tenant `t` has a writer and readers, tenant `other` another writer.
fn host() -> Host {
    let host = Host::with(&["--admin-gid", "47301"]);
    let access = json!([{ "uid": WRITER.uid, "role": "write" }, { "gid": 47_300, "role": "read" }]);
    host.put("/v1/tenants/t", &json!({ "access": access }));
    host.put("/v1/tenants/other", &json!({ "access": [{ "uid": OTHER.uid, "role": "write" }] }));
    host.run("vm", &spec("do=spin"));
    host
}

#[test]
fn everybody_does_what_their_role_lets_them_and_the_rest_does_not_exist_or_is_forbidden() {
    if !ready() {
        return;
    }
    let host = host();
    let (vm, actions) = (vm_path("t", "vm"), format!("{}/actions", vm_path("t", "vm")));
    let (no, action) = (Value::Null, json!({ "action": "pause" }));
    let put = json!({ "spec": spec("do=spin") });
    // Method, path, body, and what the writer, a reader, another tenant's writer, nobody and an administrator get.
    let table: [(&str, &str, &Value, [u16; 5]); 14] = [
        ("GET", &vm, &no, [200, 200, 404, 404, 200]),
        ("PUT", &vm, &put, [200, 403, 404, 404, 200]),
        ("POST", &actions, &action, [202, 403, 404, 404, 202]),
        ("GET", "/v1/tenants/t", &no, [200, 200, 404, 404, 200]),
        ("PUT", "/v1/tenants/t2", &json!({}), [404, 404, 404, 404, 201]),
        ("GET", "/v1/vms", &no, [200, 200, 200, 403, 200]),
        ("GET", "/v1/events", &no, [200, 200, 200, 403, 200]),
        ("GET", "/v1/usage", &no, [200, 200, 200, 403, 200]),
        ("GET", "/v1/images/guest", &no, [200, 200, 200, 403, 200]),
        ("DELETE", "/v1/images/none", &no, [403, 403, 403, 403, 404]),
        ("GET", "/v1/audit", &no, [403, 403, 403, 403, 200]),
        ("POST", "/v1/gc", &json!({ "dry_run": true }), [403, 403, 403, 403, 200]),
        ("POST", "/v1/host/undrain", &no, [403, 403, 403, 403, 200]),
        ("GET", "/v1/whoami", &no, [200, 200, 200, 200, 200]),
    ];
    for (method, path, body, expected) in table {
        for (user, expected) in [WRITER, READER, OTHER, NOBODY, ADMIN].into_iter().zip(expected) {
            let reply = host.ask_as(user, method, path, body);
            assert_eq!(reply.status, expected, "{} {method} {path}: {}", user.uid, reply.text());
        }
    }
}

#[test]
fn lists_events_usage_and_operations_show_only_what_is_ones_own() {
    if !ready() {
        return;
    }
    let host = host();
    host.act("vm", "kill");
    let op = host.begin("POST", &format!("{}/actions", vm_path("t", "vm")), &json!({ "action": "kill" }));
    host.over(&op);
    let all = |user: User, path: &str| host.ask_as(user, "GET", path, &Value::Null).text();
    for path in ["/v1/vms", "/v1/tenants", "/v1/stats", "/v1/events", "/v1/usage", "/v1/operations"] {
        let (ours, theirs) = (all(READER, path), all(OTHER, path));
        assert!(ours.contains("\"t\""), "{path}: {ours}");
        assert!(!theirs.contains("\"t\""), "{path}: {theirs}");
    }
    assert_eq!(host.ask_as(OTHER, "GET", &format!("/v1/operations/{op}"), &Value::Null).status, 404);
    assert_eq!(host.ask_as(READER, "GET", &format!("/v1/operations/{op}"), &Value::Null).status, 200);
    assert_eq!(host.ask_as(READER, "DELETE", &format!("/v1/operations/{op}"), &Value::Null).status, 403);
    let whoami = host.ask_as(READER, "GET", "/v1/whoami", &Value::Null).json();
    assert_eq!(
        whoami,
        json!({ "uid": READER.uid, "gids": READER.gids, "admin": false, "tenants": { "t": "read" } })
    );
}

#[test]
fn a_writer_has_vms_of_their_own_and_is_named_as_who_asked() {
    if !ready() {
        return;
    }
    let host = host();
    let path = vm_path("t", "theirs");
    assert_eq!(host.ask_as(WRITER, "PUT", &path, &json!({ "spec": spec("do=spin") })).status, 201);
    host.becomes("theirs", "running");
    let op = host.ask_as(WRITER, "DELETE", &path, &Value::Null).json();
    assert_eq!(op["requestor"], format!("uid:{}", WRITER.uid));
    host.over(op["id"].as_str().unwrap());
    let events = host.events();
    for kind in ["vm.created", "vm.deleted"] {
        let event = events.iter().rfind(|event| event["kind"] == kind).unwrap();
        assert_eq!(event["requestor"], format!("uid:{}", WRITER.uid), "{event}");
    }
    let forbidden = host.ask_as(READER, "PUT", &path, &json!({ "spec": spec("do=spin") }));
    let (code, text) = forbidden.refusal();
    assert_eq!(code, "forbidden");
    assert_eq!(text, format!("user {} may not do this: the role in tenant t is read", READER.uid));
    let audit = host.ask("GET", "/v1/audit", &Value::Null).text();
    let line = audit.lines().rfind(|line| line.contains("\"decision\":\"denied\"")).unwrap();
    let record: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&record["who"]["uid"], &record["path"], &record["status"]),
        (&json!(READER.uid), &json!(path), &json!(403))
    );
}

#[test]
fn who_loses_their_access_loses_their_console_and_logs_and_others_go_on() {
    if !ready() {
        return;
    }
    let host = host();
    let path = |what: &str| format!("{}/{what}", vm_path("t", "vm"));
    let console = |user: User| {
        user.does(|| super::super::client::console(&host.socket(), &path("console?write=true&history=0")))
    };
    let mut logs =
        WRITER.does(|| super::super::client::follow(&host.socket(), &path("logs?source=vmm&follow=true")));
    let mut theirs = console(WRITER).unwrap();
    let mut admins = super::super::client::console(&host.socket(), &path("console?history=0")).unwrap();
    let tenant = host.get("/v1/tenants/t");
    let access: Vec<Value> = tenant["access"].as_array().unwrap().clone();
    let left: Vec<&Value> = access.iter().filter(|entry| entry["uid"] != WRITER.uid).collect();
    assert_eq!(left.len() + 1, access.len(), "{tenant}");
    host.put("/v1/tenants/t", &json!({ "access": left }));
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).unwrap();
    logs.read_to_end(&mut rest).unwrap();
    // Who still may look on does, and the writer's place is free.
    admins.get_mut().set_nonblocking(true).unwrap();
    // Its guest may have printed something since it was attached to.
    let end = std::iter::repeat_with(|| admins.read(&mut [0])).find(|read| !matches!(read, Ok(1)));
    assert_eq!(end.unwrap().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    host.put("/v1/tenants/t", &json!({ "access": access }));
    console(WRITER).unwrap();
}

#[test]
fn a_reader_reads_a_console_and_does_not_write_to_it() {
    if !ready() {
        return;
    }
    let host = host();
    let console = |user: User, query: &str| {
        let path = format!("{}/console?{query}", vm_path("t", "vm"));
        user.does(|| super::super::client::console(&host.socket(), &path).map_err(|error| error.to_string()))
    };
    console(READER, "history=10").unwrap();
    assert!(console(READER, "write=true").unwrap_err().starts_with("403"));
    console(WRITER, "write=true").unwrap();
    assert!(console(OTHER, "").unwrap_err().starts_with("404"));
}
