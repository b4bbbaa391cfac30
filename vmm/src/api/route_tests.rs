//! Tests of `route`: every rule by a request and the text or command it gives.

use proptest::prelude::*;

use super::*;
use crate::spec::CpuTemplate;

fn asked(request: &str, body: &str) -> Result<Routed, String> {
    let (method, target) = request.split_once(' ').unwrap();
    route(Method::parse(method).unwrap(), target, body.as_bytes()).map_err(|error| error.to_string())
}

fn command(request: &str, body: &str) -> Command {
    match asked(request, body) {
        Ok(Routed { asked: Asked::Command(command), .. }) => command,
        other => panic!("{request} {body}: {other:?}"),
    }
}

fn refusal(request: &str, body: &str) -> String {
    asked(request, body).expect_err(request)
}

#[test]
fn reads_are_understood_with_any_slashes_around_them() {
    for (request, expected) in [
        ("GET /", Command::GetInfo),
        ("GET //", Command::GetInfo),
        ("GET ", Command::GetInfo),
        ("GET /version", Command::GetVersion),
        ("GET /version/", Command::GetVersion),
        ("GET ///version/and/more", Command::GetVersion),
        ("GET /vm/config", Command::GetVmConfig),
        ("GET /vm/config/more", Command::GetVmConfig),
        ("GET /machine-config", Command::GetMachineConfig),
        ("GET /machine-config/more", Command::GetMachineConfig),
    ] {
        assert_eq!(command(request, ""), expected, "{request}");
    }
}

#[test]
fn unknown_paths_and_methods_are_refused_with_the_first_segment() {
    for (request, body, text) in [
        ("GET /foo", "", "Invalid request method and/or path: GET foo."),
        ("GET /foo/bar", "", "Invalid request method and/or path: GET foo."),
        ("GET /vm", "", "Invalid request method and/or path: GET vm."),
        ("GET /vm/other", "", "Invalid request method and/or path: GET vm."),
        ("GET /version?x", "", "Invalid request method and/or path: GET version?x."),
        ("GET /boot-source", "", "Invalid request method and/or path: GET boot-source."),
        ("PUT /nope", "{}", "Invalid request method and/or path: PUT nope."),
        ("PUT /", "{}", "Invalid request method and/or path: PUT ."),
        ("PUT /vm", "{}", "Invalid request method and/or path: PUT vm."),
        ("PATCH /boot-source", "{}", "Invalid request method and/or path: PATCH boot-source."),
        ("PATCH /logger", "{}", "Invalid request method and/or path: PATCH logger."),
        ("PATCH /actions", "{}", "Invalid request method and/or path: PATCH actions."),
        ("DELETE /machine-config", "", "Invalid request method and/or path: DELETE machine-config."),
    ] {
        assert_eq!(refusal(request, body), text);
    }
}

#[test]
fn bodies_are_refused_where_there_is_none_and_missed_where_there_must_be_one() {
    for (request, body, text) in [
        ("GET /", "{}", "GET request cannot have a body."),
        ("GET /foo", "x", "GET request cannot have a body."),
        ("DELETE /drives/a", "x", "GET request cannot have a body."),
        ("PUT /boot-source", "", "Empty PUT request."),
        ("PUT /foo", "", "Empty PUT request."),
        ("PATCH /vm", "", "Empty PATCH request."),
        ("PATCH /foo", "", "Empty PATCH request."),
        ("PATCH /machine-config", "{}", "Empty PATCH request."),
    ] {
        assert_eq!(refusal(request, body), text, "{request}");
    }
}

#[test]
fn what_firecracker_has_and_this_build_has_not_is_refused_by_name() {
    for (request, body) in [
        ("GET /balloon", ""),
        ("PUT /balloon", "{}"),
        ("PATCH /balloon", "{}"),
        ("PATCH /balloon/hinting/stop", ""),
        ("GET /mmds", ""),
        ("PUT /mmds/config", "{}"),
        ("PATCH /mmds", "{}"),
        ("PUT /snapshot/create", "{}"),
        ("PUT /snapshot/load", "{}"),
        ("PUT /pmem/a", "{}"),
        ("GET /hotplug/memory", ""),
        ("PUT /cpu-config", "{}"),
        ("DELETE /pmem/a", ""),
    ] {
        let text = refusal(request, body);
        let name = request.split('/').nth(1).unwrap();
        let method = request.split(' ').next().unwrap();
        let start = format!(
            "The requested operation is not supported: this build has no {method} /{name}. It has /, "
        );
        assert!(text.starts_with(&start), "{text}");
    }
}

#[test]
fn actions_and_states_become_commands() {
    for (request, body, expected) in [
        ("PUT /actions", r#"{"action_type":"InstanceStart"}"#, Command::Start),
        ("PUT /actions", r#"{"action_type":"FlushMetrics"}"#, Command::FlushMetrics),
        ("PUT /actions", r#"{"action_type":"SendCtrlAltDel"}"#, Command::SendCtrlAltDel),
        ("PUT /actions", r#"{"action_type":"PressPowerButton"}"#, Command::PressPowerButton),
        ("PATCH /vm", r#"{"state":"Paused"}"#, Command::Pause),
        ("PATCH /vm", r#"{"state":"Resumed"}"#, Command::Resume),
        ("PATCH /vm/anything", r#"{"state":"Resumed"}"#, Command::Resume),
    ] {
        assert_eq!(command(request, body), expected);
    }
}

#[test]
fn configuration_becomes_checked_values() {
    let Command::Configure(Configure::Drive(drive)) = command(
        "PUT /drives/a",
        r#"{"drive_id":"a","path_on_host":"/img","is_root_device":true,"io_engine":"Async"}"#,
    ) else {
        panic!()
    };
    assert_eq!(
        (drive.id.as_str(), drive.path.as_str(), drive.root, drive.read_only),
        ("a", "/img", true, false)
    );
    let Command::Configure(Configure::NetworkInterface(net)) = command(
        "PUT /network-interfaces/e0",
        r#"{"iface_id":"e0","host_dev_name":"tap0","guest_mac":"AA:00:00:00:00:01","mtu":1400}"#,
    ) else {
        panic!()
    };
    assert_eq!((net.guest_mac.unwrap().to_string().as_str(), net.mtu), ("aa:00:00:00:00:01", Some(1400)));
    for (request, body) in [
        ("PUT /boot-source", r#"{"kernel_image_path":"k"}"#),
        ("PUT /entropy", "{}"),
        ("PUT /serial", r#"{"serial_out_path":"/o"}"#),
        (
            "PUT /logger",
            r#"{"log_path":"/l","level":"info","show_level":true,"show_log_origin":false,"module":"m"}"#,
        ),
        ("PUT /logger", "{}"),
        ("PUT /metrics", r#"{"metrics_path":"/m","emit_id":true}"#),
        ("PATCH /drives/a", r#"{"drive_id":"a"}"#),
        ("PATCH /network-interfaces/a", r#"{"iface_id":"a"}"#),
        ("PATCH /entropy", r#"{"rate_limiter":{}}"#),
        ("PATCH /vsock", r#"{"rate_limiter":{"ops":{"size":1,"refill_time":1}}}"#),
    ] {
        command(request, body);
    }
}

#[test]
fn serde_says_which_field_is_wrong_and_where() {
    let json =
        |text: &str| format!("An error occurred when deserializing the json body of a request: {text}.");
    for (request, body, text) in [
        ("PUT /machine-config", r#"{"mem_size_mib": 128}"#, "missing field `vcpu_count` at line 1 column 21"),
        ("PUT /machine-config", r#"{"vcpu_count": 2}"#, "missing field `mem_size_mib` at line 1 column 17"),
        (
            "PUT /machine-config",
            r#"{"vcpu_count":"-2","mem_size_mib":1}"#,
            "invalid type: string \"-2\", expected u8 at line 1 column 18",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":18446744073709551616}"#,
            "invalid type: floating point `1.8446744073709552e+19`, expected usize at line 1 column 51",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":1,"x":1}"#,
            "unknown field `x`, expected one of `vcpu_count`, `mem_size_mib`, `smt`, `cpu_template`, \
             `track_dirty_pages`, `huge_pages`, `vcpu_affinity`, `io_affinity` at line 1 column 36",
        ),
        (
            "PUT /machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":1,"huge_pages":"7M"}"#,
            "unknown variant `7M`, expected one of `None`, `Transparent`, `2M` at line 1 column 50",
        ),
        ("PUT /boot-source", "{}", "missing field `kernel_image_path` at line 1 column 2"),
        (
            "PUT /drives/a",
            r#"{"path_on_host":"p","is_root_device":true}"#,
            "missing field `drive_id` at line 1 column 42",
        ),
        (
            "PUT /drives/a",
            r#"{"drive_id":"a","path_on_host":"p"}"#,
            "missing field `is_root_device` at line 1 column 35",
        ),
        (
            "PUT /network-interfaces/a",
            r#"{"iface_id":"a"}"#,
            "missing field `host_dev_name` at line 1 column 16",
        ),
        (
            "PUT /network-interfaces/a",
            r#"{"iface_id":"a","host_dev_name":"t","guest_mac":"zz"}"#,
            "The provided MAC address is invalid. at line 1 column 53",
        ),
        ("PUT /metrics", "{}", "missing field `metrics_path` at line 1 column 2"),
        (
            "PUT /actions",
            r#"{"action_type":"Explode"}"#,
            "unknown variant `Explode`, expected one of `FlushMetrics`, `InstanceStart`, `PressPowerButton`, `SendCtrlAltDel` at line 1 column 24",
        ),
        (
            "PATCH /vm",
            r#"{"state":"Dead"}"#,
            "unknown variant `Dead`, expected `Paused` or `Resumed` at line 1 column 15",
        ),
        ("PUT /boot-source", "not json", "expected ident at line 1 column 2"),
        ("PUT /boot-source", "{", "EOF while parsing an object at line 1 column 1"),
    ] {
        assert_eq!(refusal(request, body), json(text), "{request} {body}");
    }
    for (field, value) in [("is_read_only", "true"), ("io_engine", "\"Sync\""), ("is_root_device", "false")] {
        let text = refusal("PATCH /drives/a", &format!(r#"{{"drive_id":"a","{field}":{value}}}"#));
        assert!(text.contains(&format!("unknown field `{field}`, expected one of `drive_id`")), "{text}");
    }
}

#[test]
fn ids_are_checked_and_compared() {
    let drive = |id: &str| format!(r#"{{"drive_id":"{id}","path_on_host":"p","is_root_device":false}}"#);
    let net = |id: &str| format!(r#"{{"iface_id":"{id}","host_dev_name":"t"}}"#);
    let bad = "API Resource IDs can only contain alphanumeric characters and underscores.";
    for (request, body, text) in [
        ("PUT /drives", drive("a"), "The ID cannot be empty."),
        ("PUT /drives//", drive("a"), "The ID cannot be empty."),
        ("PUT /drives/a-b", drive("a-b"), bad),
        ("PATCH /drives/a-b", "{}".to_owned(), bad),
        ("PUT /drives/b", drive("a"), "The id from the path does not match the id from the body!"),
        (
            "PATCH /drives/b",
            r#"{"drive_id":"a"}"#.to_owned(),
            "The id from the path does not match the id from the body!",
        ),
        ("PUT /network-interfaces", net("a"), "The ID cannot be empty."),
        ("PUT /network-interfaces/a-b", net("a-b"), bad),
        (
            "PUT /network-interfaces/b",
            net("a"),
            "The id from the path [b] does not match the id from the body [a]!",
        ),
        (
            "PATCH /network-interfaces/b",
            r#"{"iface_id":"a"}"#.to_owned(),
            "The id from the path [b] does not match the id from the body [a]!",
        ),
    ] {
        assert_eq!(refusal(request, &body), text, "{request}");
    }
}

#[test]
fn values_out_of_range_are_refused_with_the_prefix_of_their_resource() {
    for (request, body, text) in [
        (
            "PUT /drives/a",
            r#"{"drive_id":"a","is_root_device":false}"#,
            "Drive config error: Unable to create the virtio block device: Invalid block config.",
        ),
        (
            "PUT /drives/a",
            r#"{"drive_id":"a","is_root_device":false,"socket":"/s"}"#,
            "Drive config error: Unable to create the virtio block device: vhost-user drives are not supported by this \
             build: name a raw image or block device in path_on_host, not a socket.",
        ),
        (
            "PUT /network-interfaces/a",
            r#"{"iface_id":"a","host_dev_name":"t","mtu":67}"#,
            "Network config error: Could not create the network device: The MTU 67 is out of range: \
             it must be 68 to 65535.",
        ),
    ] {
        assert_eq!(refusal(request, body), text);
    }
}

#[test]
fn a_cpu_template_marks_the_request_as_deprecated() {
    let put = |extra: &str| {
        asked("PUT /machine-config", &format!(r#"{{"vcpu_count":1,"mem_size_mib":1{extra}}}"#))
            .unwrap()
            .deprecated
    };
    assert!(put(r#","cpu_template":"None""#) && !put(""));
    let patched = asked("PATCH /machine-config", r#"{"cpu_template":"T2"}"#).unwrap();
    assert!(patched.deprecated);
    let expected =
        MachineConfigPatch { cpu_template: Some(CpuTemplate::T2), ..MachineConfigPatch::default() };
    assert_eq!(patched.asked, Asked::Command(Command::Configure(Configure::Machine(expected))));
}

#[test]
fn a_socket_device_is_checked_and_its_id_is_deprecated() {
    let put = |body: &str| asked("PUT /vsock", body);
    let expected = Vsock { guest_cid: 3, uds_path: "./v.sock".to_owned(), ..Vsock::default() };
    let routed = put(r#"{"guest_cid":3,"uds_path":"./v.sock"}"#).unwrap();
    assert_eq!(routed, Command::Configure(Configure::Vsock(expected)).into());
    assert!(put(r#"{"guest_cid":3,"uds_path":"v","vsock_id":"v"}"#).unwrap().deprecated);
    assert_eq!(
        put(r#"{"guest_cid":2,"uds_path":"v"}"#).unwrap_err(),
        "Vsock config error: Cannot create vsock device: The guest_cid 2 is reserved: it must be 3 to 4294967294."
    );
    assert!(put(r#"{"guest_cid":3}"#).unwrap_err().contains("missing field `uds_path`"));
}

#[test]
fn our_additions_are_understood() {
    let get = |target: &str| asked(&format!("GET {target}"), "").map(|routed| routed.asked);
    assert_eq!(get("/metrics"), Ok(Asked::Metrics));
    assert_eq!(get("/metrics?x=1"), Ok(Asked::Metrics));
    assert_eq!(get("/openapi.json"), Ok(Asked::OpenApi));
    assert_eq!(get("/events"), Ok(Asked::Events { since: 0 }));
    assert_eq!(get("/events?since=41"), Ok(Asked::Events { since: 41 }));
    assert_eq!(
        get("/events?since=x"),
        Err("The query \"since=x\" is invalid: it may be `since` with the sequence number of an event, as in since=7."
            .to_owned())
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        method in prop::sample::select(vec![Method::Get, Method::Put, Method::Patch, Method::Delete]),
        target in "/?(drives|network-interfaces|vm|events|machine-config|actions|\\PC{0,8})(/\\PC{0,8}){0,3}",
        body in prop::collection::vec(any::<u8>(), 0..256),
    ) {
        let _ = route(method, &target, &body);
    }

    #[test]
    fn a_refusal_is_always_valid_json_on_one_line(
        method in prop::sample::select(vec![Method::Get, Method::Put, Method::Patch, Method::Delete]),
        target in "\\PC{0,16}", body in "\\PC{0,32}",
    ) {
        if let Err(error) = route(method, &target, body.as_bytes()) {
            let text = error.to_string();
            let reply = crate::api::reply::Reply::refused(&text);
            let value: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
            prop_assert_eq!(value["fault_message"].as_str(), Some(text.as_str()));
            prop_assert!(!reply.body.contains(&b'\n'));
        }
    }
}

#[test]
fn devices_that_are_to_go_are_named_in_the_path() {
    for (path, what) in [
        ("/drives/d", Unplug::Drive("d".to_owned())),
        ("/network-interfaces/eth0", Unplug::NetworkInterface("eth0".to_owned())),
    ] {
        assert_eq!(route(Method::Delete, path, b"").unwrap(), Command::Unplug(what).into());
        assert!(matches!(route(Method::Delete, path, b"{}"), Err(ApiError::UnexpectedBody)), "{path}");
    }
    for path in ["/drives", "/drives/", "/drives/a-b"] {
        assert!(matches!(route(Method::Delete, path, b""), Err(ApiError::Id(_))), "{path}");
    }
    assert!(matches!(route(Method::Delete, "/vm", b""), Err(ApiError::MethodOrPath { .. })));
    assert!(matches!(route(Method::Delete, "/pmem/p", b""), Err(ApiError::NotSupported { .. })));
}
