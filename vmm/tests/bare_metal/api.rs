//! The API while a guest runs: what it refuses, what it changes, and that it answers whatever the guest does.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::common::http::{receive, request, send};
use super::common::{Vm, eventually, zeros};
use super::{boot, guest, kvm, load};

const BEFORE: &str = "The requested operation is not supported before starting the microVM.";
const GONE: &str = r#"{"fault_message":"The microVM did not answer: it is gone."}"#;
const AFTER: &str = "The requested operation is not supported after starting the microVM.";

#[test]
fn what_needs_a_started_microvm_is_refused_before() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    let disk = zeros(&vm.path("disk"), 4096);
    vm.put_drive("d", &disk, &json!({}));
    for (method, path, body) in [
        ("PATCH", "/drives/d", r#"{"drive_id":"d","path_on_host":"/x"}"#),
        ("PATCH", "/network-interfaces/e", r#"{"iface_id":"e"}"#),
        ("PATCH", "/vm", r#"{"state":"Paused"}"#),
        ("PATCH", "/vm", r#"{"state":"Resumed"}"#),
        ("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#),
        ("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#),
    ] {
        assert_eq!(vm.refused(method, path, body), BEFORE, "{method} {path}");
    }
}

#[test]
fn what_configures_is_refused_once_started() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    boot(&vm, "do=spin");
    vm.prints("bare-metal guest\n");
    let kernel = json!({ "kernel_image_path": guest() }).to_string();
    let disk = zeros(&vm.path("disk"), 4096);
    let drive = json!({"drive_id": "d", "path_on_host": disk, "is_root_device": false}).to_string();
    for (method, path, body) in [
        ("PUT", "/boot-source", kernel.as_str()),
        ("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#),
        ("PATCH", "/machine-config", r#"{"vcpu_count":1}"#),
        ("PUT", "/drives/d", drive.as_str()),
        ("PUT", "/network-interfaces/e", r#"{"iface_id":"e","host_dev_name":"t"}"#),
        ("PUT", "/entropy", "{}"),
        ("PUT", "/vsock", r#"{"guest_cid":3,"uds_path":"/x"}"#),
        ("PUT", "/serial", "{}"),
        ("PUT", "/logger", r#"{"level":"Info"}"#),
        ("PUT", "/metrics", r#"{"metrics_path":"/x"}"#),
        ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
    ] {
        // That of drives and interfaces goes on: over PCI they may come.
        let refusal = vm.refused(method, path, body);
        assert!(refusal.starts_with(AFTER), "{method} {path}: {refusal}");
    }
}

#[test]
fn the_socket_device_listens_from_its_request_on_until_the_end() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    let (path, records) = (vm.path("v"), vm.path("v_seqpacket"));
    let body = json!({"guest_cid": 3, "uds_path": path});
    // A VMM that was killed has left its socket.
    drop(UnixListener::bind(&path).unwrap());
    vm.put("/vsock", &body);
    UnixStream::connect(&path).unwrap();
    let other = Vm::start(&[]);
    let refusal = other.refused("PUT", "/vsock", &body.to_string());
    let start = "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: ";
    assert!(refusal.starts_with(start) && refusal.ends_with("(os error 98)"), "{refusal}");
    vm.put("/vsock", &body);
    assert_eq!(vm.get("/vm/config")["vsock"], body);
    boot(&vm, "do=hello");
    vm.ends_with(0, "poweroff");
    assert!(!path.exists() && !records.exists(), "the sockets' files are left");
}

#[test]
fn refusals_are_in_firecrackers_words() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    let disk = zeros(&vm.path("disk"), 4096);
    let root = |id: &str| {
        json!({"drive_id": id, "path_on_host": disk, "is_root_device": true, "is_read_only": true})
            .to_string()
    };
    assert_eq!(vm.ask("PUT", "/drives/a", &root("a")).status, 204);
    for (method, path, body, text) in [
        ("PUT", "/drives/b", root("b").as_str(), "A root block device already exists!"),
        (
            "PUT",
            "/machine-config",
            r#"{"mem_size_mib":128}"#,
            "missing field `vcpu_count` at line 1 column 20",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":"1","mem_size_mib":1}"#,
            "invalid type: string \"1\", expected u8",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":256,"mem_size_mib":1}"#,
            "invalid value: integer `256`, expected u8",
        ),
        ("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":1,"x":1}"#, "unknown field `x`"),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":0}"#,
            "The memory size (MiB) is either 0, or not a multiple of the configured page size.",
        ),
        ("PATCH", "/boot-source", "{}", "Invalid request method and/or path: PATCH boot-source."),
        ("PATCH", "/drives/a", r#"{"drive_id":"a","is_read_only":true}"#, "unknown field `is_read_only`"),
        (
            "PUT",
            "/drives/c",
            r#"{"drive_id":"d","path_on_host":"/x","is_root_device":false}"#,
            "The id from the path does not match the id from the body!",
        ),
        (
            "PUT",
            "/network-interfaces/c",
            r#"{"iface_id":"d","host_dev_name":"t"}"#,
            "The id from the path [c] does not match the id from the body [d]!",
        ),
        (
            "PUT",
            "/drives/a-b",
            r#"{"drive_id":"a-b","path_on_host":"/x","is_root_device":false}"#,
            "API Resource IDs can only contain alphanumeric characters and underscores.",
        ),
        ("PUT", "/actions", r#"{"action_type":"Dance"}"#, "unknown variant `Dance`"),
        ("PUT", "/boot-source", "{", "An error occurred when deserializing the json body of a request: EOF"),
        ("GET", "/nope", "", "Invalid request method and/or path: GET nope."),
        ("DELETE", "/nope", "", "Invalid request method and/or path: DELETE nope."),
    ] {
        let refusal = vm.refused(method, path, body);
        assert!(refusal.contains(text), "{method} {path} {body}: {refusal}");
    }
}

#[test]
fn an_answer_has_firecrackers_head() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    let reply = vm.ask("GET", "/version", "");
    let head = "Server: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: ";
    assert!(reply.head.starts_with(head), "{}", reply.head);
    let reply = vm.ask("PUT", "/entropy", "{}");
    assert_eq!(
        (reply.status, reply.head.as_str()),
        (204, "Server: Firecracker API\r\nConnection: keep-alive\r\n")
    );
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_sent() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    let mut stream = UnixStream::connect(vm.socket()).unwrap();
    std::io::Write::write_all(&mut stream, b"PUT /boot-source HTTP/1.1\r\nContent-Length: 51201\r\n\r\n")
        .unwrap();
    let reply = receive(&mut stream).unwrap();
    assert_eq!(reply.status, 400);
    let text: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(
        text["error"],
        "Request payload with size 51201 is larger than the limit of 51200 allowed by server.\n\
         All previous unanswered requests will be dropped."
    );
    assert_eq!(vm.get("/")["state"], "Not started");
}

#[test]
fn the_eleventh_connection_is_turned_away_and_a_place_that_is_left_is_free() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    boot(&vm, "do=spin");
    // The stream of events that comes with a `Vm` is the first. Connections that were closed may still count for a moment.
    let mut open = Vec::new();
    while open.len() < 9 {
        open.push(eventually("a place", || {
            let mut stream = UnixStream::connect(vm.socket()).unwrap();
            send(&mut stream, "GET", "/", "").ok()?;
            receive(&mut stream).ok().filter(|reply| reply.status == 200).map(|_| stream)
        }));
    }
    // Which is said, and done, without listening.
    let reply = receive(&mut UnixStream::connect(vm.socket()).unwrap()).unwrap();
    assert_eq!((reply.status, reply.body.as_str()), (503, r#"{ "error": "Too many open connections" }"#));
    open.pop();
    eventually("a free place", || {
        request(&vm.socket(), "GET", "/", "").ok().filter(|reply| reply.status == 200)
    });
}

#[test]
fn requests_in_a_loop_while_the_guest_starts_are_all_answered() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    load(&vm, "do=hello");
    let (socket, stop) = (vm.socket(), AtomicBool::new(false));
    let answered = thread::scope(|scope| {
        let clients: Vec<_> = ["/", "/vm/config", "/machine-config", "/metrics"]
            .into_iter()
            .map(|path| {
                let (socket, stop) = (&socket, &stop);
                scope.spawn(move || {
                    let mut answered = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // The process may end in the middle of one; what is answered is answered well.
                        let Ok(reply) = request(socket, "GET", path, "") else { break };
                        if reply.body == GONE {
                            break;
                        }
                        assert_eq!(reply.status, 200, "GET {path}: {}", reply.body);
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(50));
        vm.act("InstanceStart");
        vm.ends_with(0, "poweroff");
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<u32>>()
    });
    assert!(answered.iter().all(|n| *n > 0), "{answered:?}");
}

#[test]
fn a_paused_guest_stands_still_and_the_api_answers() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    vm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 128}));
    boot(&vm, "do=spin");
    vm.prints("bare-metal guest\n");
    for _ in 0..3 {
        vm.patch("/vm", &json!({"state": "Paused"}));
        vm.patch("/vm", &json!({"state": "Paused"}));
        let before = vm.ticks("yun_vcpu");
        thread::sleep(Duration::from_millis(200));
        assert_eq!(vm.get("/")["state"], "Paused");
        assert_eq!(vm.ticks("yun_vcpu"), before, "a paused vCPU took processor time");
        vm.patch("/vm", &json!({"state": "Resumed"}));
        vm.patch("/vm", &json!({"state": "Resumed"}));
        assert_eq!(vm.get("/")["state"], "Running");
        eventually("the guest runs again", || (vm.ticks("yun_vcpu") > before).then_some(()));
    }
    let events = eventually("seven events", || Some(vm.events()).filter(|events| events.len() == 7));
    let kinds: Vec<_> = events.iter().map(|e| e["event"].clone()).collect();
    assert_eq!(kinds, ["started", "paused", "resumed", "paused", "resumed", "paused", "resumed"]);
}

#[test]
fn a_flooding_guest_prints_nothing_while_paused() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    boot(&vm, "do=flood");
    vm.prints("the lazy dog\n");
    vm.patch("/vm", &json!({"state": "Paused"}));
    let printed = || vm.metric("yun_uart_write_count_total") + vm.metric("yun_uart_missed_write_count_total");
    let before = printed();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(printed(), before);
    vm.patch("/vm", &json!({"state": "Resumed"}));
    eventually("more output", || (printed() > before).then_some(()));
}

#[test]
fn ctrl_alt_del_is_taken_from_who_sends_it_though_no_guest_reads_its_keyboard() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    boot(&vm, "do=spin");
    vm.prints("bare-metal guest\n");
    for _ in 0..100 {
        vm.act("SendCtrlAltDel");
    }
    vm.logs("the guest does not read its keyboard");
    assert!(vm.runs());
}

#[test]
fn metrics_go_to_their_file_as_lines_of_json_each_with_what_is_new() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    let (file, disk) = (vm.path("metrics"), zeros(&vm.path("disk"), 4096));
    vm.put("/metrics", &json!({ "metrics_path": file }));
    vm.put_drive("d", &disk, &json!({}));
    boot(&vm, "do=spin");
    vm.prints("bare-metal guest\n");
    vm.act("FlushMetrics");
    vm.act("FlushMetrics");
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[1]["uart"]["write_count"], 17);
    assert_eq!(lines[2]["uart"]["write_count"], 0);
    assert_eq!(lines[1]["put_api_requests"]["drive_count"], 1);
    assert!(lines[1]["block_d"].is_object() && lines[1]["block"].is_object());
}

#[test]
fn metrics_are_openmetrics_text() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    for id in ["a", "b"] {
        let disk = zeros(&vm.path(id), 4096);
        vm.put_drive(id, &disk, &json!({}));
    }
    vm.put("/entropy", &json!({}));
    boot(&vm, "do=spin");
    vm.prints("bare-metal guest\n");
    let reply = vm.ask("GET", "/metrics", "");
    let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(reply.head.contains(kind), "{}", reply.head);
    let families = openmetrics(&reply.body);
    for name in [
        "yun_build",
        "yun_block_read_bytes",
        "yun_uart_write_count",
        "yun_entropy_entropy_bytes",
        "yun_block_request_duration_seconds",
    ] {
        assert!(families.iter().any(|family| family == name), "no {name} in {families:?}");
    }
    assert!(
        reply
            .body
            .contains("yun_block_read_bytes_total{id=\"a\"} 0\nyun_block_read_bytes_total{id=\"b\"} 0\n")
    );
}

/// Reads the text as OpenMetrics 1.0 has it (what of it we use): each family declared once, then its unit, then its samples,
/// nothing between; one sample a label set; the buckets of a histogram in order, each with those before it, then its count, which
/// is the last bucket's, and its sum; `# EOF` at the end. The names of the families.
fn openmetrics(text: &str) -> Vec<String> {
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let text = text.strip_suffix("# EOF\n").expect("ends with # EOF");
    let (mut families, mut kind, mut seen) = (Vec::<String>::new(), "", Vec::new());
    let (mut bound, mut count) = (f64::NEG_INFINITY, 0);
    for line in text.split_terminator('\n') {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, of) = declared.split_once(' ').unwrap();
            assert!(["counter", "gauge", "info", "histogram"].contains(&of), "{line}");
            assert!(word(name) && !families.iter().any(|family| family == name), "{line}");
            families.push(name.to_owned());
            (kind, seen) = (of, Vec::new());
            continue;
        }
        let family = families.last().unwrap();
        if let Some(unit) = line.strip_prefix("# UNIT ") {
            let (name, unit) = unit.split_once(' ').unwrap();
            assert!(name == family && name.ends_with(&format!("_{unit}")) && seen.is_empty(), "{line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let (name, set) = series
            .split_once('{')
            .map_or((series, ""), |(name, rest)| (name, rest.strip_suffix('}').unwrap()));
        let mut le = None;
        for label in set.split_terminator(',') {
            let (key, quoted) = label.split_once('=').unwrap();
            let value = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap();
            assert!(word(key) && !value.contains(['"', '\\']), "{line}");
            le = (key == "le").then(|| value.parse::<f64>().unwrap());
        }
        let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line}"));
        let number = || value.parse::<u64>().unwrap_or_else(|_| panic!("{line:?}"));
        match (kind, suffix) {
            ("counter", "_total") | ("gauge", "") | ("info", "_info") => _ = number(),
            ("histogram", "_bucket") => {
                let le = le.expect(line);
                assert!(le > bound && number() >= count, "{line}");
                (bound, count) = (le, number());
            }
            ("histogram", "_count") => {
                assert!(bound == f64::INFINITY && number() == count, "{line}");
                (bound, count) = (f64::NEG_INFINITY, 0);
            }
            ("histogram", "_sum") => assert!(value.contains('.') && value.parse::<f64>().is_ok(), "{line}"),
            _ => panic!("{line}"),
        }
        assert!(!seen.contains(&series.to_owned()), "twice: {line}");
        seen.push(series.to_owned());
    }
    families
}

#[test]
fn the_boot_timer_is_logged() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&["--boot-timer"]);
    boot(&vm, "do=hello");
    vm.ends_with(0, "poweroff");
    assert!(vm.log().contains("Guest-boot-time = "), "{}", vm.log());
}

#[test]
fn twenty_microvms_run_at_once() {
    if !kvm() {
        return;
    }
    let mut vms: Vec<Vm> = (0..20)
        .map(|n| {
            let vm = Vm::start(if n % 2 == 0 { &[] } else { &["--enable-pci"] });
            let disk = vm.path("disk");
            fs::write(&disk, format!("{n:04}").repeat(256)).unwrap();
            vm.put_drive("d", &disk, &json!({}));
            load(&vm, "do=blk");
            vm
        })
        .collect();
    vms.iter().for_each(|vm| vm.act("InstanceStart"));
    for (n, vm) in vms.iter_mut().enumerate() {
        vm.ends_with(0, "poweroff");
        assert!(vm.console().contains(&format!("sector 0 begins with {n:04}\n")), "{}", vm.console());
    }
}
