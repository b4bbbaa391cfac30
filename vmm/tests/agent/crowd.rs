//! Many clients at once, slow ones, dead ones: nobody pays for another.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{self, User};
use super::common::eventually;
use super::order::{audit_is_whole, events_are_whole, nothing_is_left_over, settles};
use super::ready;
use super::rig::{Host, spec_with, vm_path};

/// Clients at once.
const CLIENTS: usize = 64;

#[test]
fn of_sixty_four_clients_at_once_exactly_as_many_are_admitted_as_the_quota_holds() {
    if !ready() {
        return;
    }
    let host = Host::new();
    // Each VM has 2 vCPUs and 32 MiB: the vCPUs are what runs out.
    let quota = json!({ "vms": 20, "vcpus": 14, "memory_mib": 32 * 10, "disk_mib": 9 });
    host.put("/v1/tenants/t", &json!({ "quota": quota }));
    let barrier = Barrier::new(CLIENTS);
    let statuses: Vec<(u16, String)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let (host, barrier) = (&host, &barrier);
                scope.spawn(move || {
                    let (path, body) = if n % 2 == 0 {
                        let spec = spec_with("do=spin", &json!({ "vcpus": 2, "power": "stopped" }));
                        (vm_path("t", &format!("vm-{n}")), json!({ "spec": spec }))
                    } else {
                        (format!("/v1/tenants/t/volumes/v-{n}"), json!({ "size_mib": 2 }))
                    };
                    barrier.wait();
                    let reply = host.ask("PUT", &path, &body);
                    (reply.status, reply.text())
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let count = |wanted: u16| statuses.iter().filter(|(status, _)| *status == wanted).count();
    assert_eq!((count(201), count(202)), (7, 4), "{statuses:?}");
    for (status, text) in statuses.iter().filter(|(status, _)| !matches!(status, 201 | 202)) {
        assert_eq!(*status, 409, "{text}");
        assert!(text.contains("quota_exceeded") && text.contains("the quota of tenant t is"), "{text}");
    }
    settles(&host);
    let used = host.get("/v1/tenants/t")["used"].clone();
    assert_eq!((&used["vms"], &used["vcpus"], &used["disk_mib"]), (&json!(7), &json!(14), &json!(8)));
    events_are_whole(&host);
    audit_is_whole(&host);
    nothing_is_left_over(&host);
}

#[test]
fn every_quota_says_what_was_asked_what_is_left_and_whose_limit_it_is() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let path = vm_path("t", "vm");
    let put = |more: Value| json!({ "spec": spec_with("do=spin", &more) });
    let stopped = json!({ "power": "stopped", "vcpus": 2 });
    host.put(&vm_path("t", "first"), &put(stopped.clone()));
    for (quota, body, said) in [
        (
            json!({ "vms": 1 }),
            put(stopped.clone()),
            "1 more VMs asked for, 0 left: the quota of tenant t is 1, 1 are used",
        ),
        (
            json!({ "vcpus": 3 }),
            put(stopped.clone()),
            "2 more vCPUs asked for, 1 left: the quota of tenant t is 3, 2 are used",
        ),
        (
            json!({ "memory_mib": 40 }),
            put(stopped.clone()),
            "32 more MiB of memory asked for, 8 left: the quota of tenant t is 40, 32 are used",
        ),
    ] {
        host.put("/v1/tenants/t", &json!({ "quota": quota }));
        let (status, code, text) = host.refused("PUT", &path, &body);
        assert_eq!((status, code.as_str(), text.as_str()), (409, "quota_exceeded", said));
    }
    host.put("/v1/tenants/t", &json!({ "quota": { "disk_mib": 5 } }));
    let (status, code, text) = host.refused("PUT", "/v1/tenants/t/volumes/d", &json!({ "size_mib": 6 }));
    assert_eq!((status, code.as_str()), (409, "quota_exceeded"));
    assert_eq!(text, "6 more MiB of volumes asked for, 5 left: the quota of tenant t is 5, 0 are used");
    host.done("PUT", "/v1/tenants/t/volumes/d", &json!({ "size_mib": 5 }));
    let (_, code, _) = host.refused("PATCH", "/v1/tenants/t/volumes/d", &json!({ "size_mib": 6 }));
    assert_eq!(code, "quota_exceeded");
    // A limit below what is used takes nothing away, and lets nothing be added.
    host.put("/v1/tenants/t", &json!({ "quota": { "vms": 0, "vcpus": 0 } }));
    assert_eq!(host.get("/v1/vms").as_array().unwrap().len(), 1);
    host.put(&vm_path("t", "first"), &put(json!({ "power": "stopped", "vcpus": 1 })));
}

#[test]
fn a_client_that_sends_half_a_request_and_one_that_died_cost_nobody_else_anything() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let halves: Vec<UnixStream> = [
        "",
        "GET",
        "GET /v1/host HTTP/1.1\r\nHost: x\r\n",
        "PUT /v1/tenants/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ]
    .into_iter()
    .cycle()
    .take(40)
    .map(|text| {
        let mut stream = UnixStream::connect(host.socket()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    })
    .collect();
    // Others that follow everything, and read nothing, or went away.
    let deaf: Vec<_> = (0..8).map(|_| client::follow(&host.socket(), "/v1/events?follow=true")).collect();
    (0..8).for_each(|_| drop(client::follow(&host.socket(), "/v1/events?follow=true")));
    let began = Instant::now();
    host.put("/v1/tenants/b", &json!({}));
    host.get("/v1/host");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // In time they are told so, or cut off.
    for (at, mut half) in halves.into_iter().enumerate() {
        let mut bytes = Vec::new();
        half.set_read_timeout(Some(super::common::PATIENCE)).unwrap();
        half.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        if at % 4 == 3 {
            assert!(text.starts_with("HTTP/1.1 504") && text.contains("did not come within"), "{text}");
        }
    }
    assert_eq!(host.ask("GET", "/v1/tenants/a", &Value::Null).status, 404);
    drop(deaf);
    audit_is_whole(&host);
}

#[test]
fn one_user_can_not_take_all_connections_and_some_are_left_to_administrators() {
    if !ready() {
        return;
    }
    const USER: User = User { uid: 47_210, gids: &[47_210] };
    let host = Host::with(&["--connections-max", "16"]);
    let streams: Vec<UnixStream> =
        USER.does(|| (0..16).map(|_| UnixStream::connect(host.socket()).unwrap()).collect());
    eventually("a refusal", || {
        let refused = USER.does(|| client::request(&host.socket(), "GET", "/v1/whoami", ""));
        refused.ok().filter(|reply| reply.status == 429).map(|reply| {
            assert_eq!(reply.refusal().0, "too_many");
        })
    });
    assert_eq!(host.ask("GET", "/v1/host", &Value::Null).status, 200);
    drop(streams);
    eventually("a place", || {
        let reply = USER.does(|| client::request(&host.socket(), "GET", "/v1/whoami", ""));
        reply.ok().filter(|reply| reply.status == 200)
    });
}
