//! Tenants and strangers who want more than is theirs.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmm::agent::store::{Batch, Store, Table, try_here};
use vmm::agent::usage::{Counters, Meter, Record};

use super::client::{self, User};
use super::common::eventually;
use super::order::nothing_is_left_over;
use super::ready;
use super::rig::{Host, spec_with, vm_path};

const READER: User = User { uid: 47_301, gids: &[47_301] };

#[test]
fn a_reader_does_not_write_to_a_console_however_that_is_spelt() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.put("/v1/tenants/t", &json!({ "access": [{ "uid": READER.uid, "role": "read" }] }));
    host.run("vm", &spec_with("do=spin", &json!({})));
    let path = format!("{}/console", vm_path("t", "vm"));
    READER.does(|| client::console(&host.socket(), &path)).unwrap();
    for query in ["write=true", "%77rite=true", "write=tru%65", "history=1&wri%74e=true"] {
        let attached = READER.does(|| client::console(&host.socket(), &format!("{path}?{query}")));
        let refused = attached.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.starts_with("403"), "{query}: {refused}");
    }
}

#[test]
fn no_generation_is_so_high_that_none_comes_after_it() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let path = vm_path("t", "vm");
    let body =
        |generation: u64| json!({ "generation": generation, "spec": spec_with("do=spin", &json!({})) });
    let (status, code, text) = host.refused("PUT", &path, &body(u64::MAX));
    assert_eq!((status, code.as_str()), (400, "invalid"));
    assert_eq!(text, "generation 18446744073709551615: 1 to 9007199254740991 are accepted");
    host.put(&path, &body((1 << 53) - 1));
    host.becomes("vm", "running");
    host.act("vm", "kill");
    host.act("vm", "start");
    host.act("vm", "kill");
    host.put("/v1/tenants/u", &json!({}));
}

#[test]
fn what_a_vm_was_started_with_counts_until_it_ends() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let quota = json!({ "quota": { "vcpus": 4, "memory_mib": 128 } });
    host.put("/v1/tenants/t", &quota);
    let with = |vcpus: u8, memory: u64| json!({ "spec": spec_with("do=spin", &json!({ "vcpus": vcpus, "memory_mib": memory })) });
    host.put(&vm_path("t", "one"), &with(3, 96));
    host.becomes("one", "running");
    // Wanted smaller from its next start on: it has not given anything back.
    host.put(&vm_path("t", "one"), &with(1, 32));
    let used = host.get("/v1/tenants/t")["used"].clone();
    assert_eq!((&used["vcpus"], &used["memory_mib"]), (&json!(3), &json!(96)), "{used}");
    let host_view = host.get("/v1/host");
    assert_eq!(host_view["memory_mib"]["allocated"], 96, "{host_view}");
    let stats = host.get(&format!("{}/stats", vm_path("t", "one")));
    assert_eq!((&stats["vcpus"], &stats["memory_mib"]), (&json!(3), &json!(96)), "{stats}");
    // It is paid for as it is, too.
    let memory = || -> Vec<Value> {
        let rows = host.get("/v1/usage").as_array().unwrap().clone();
        rows.into_iter().filter(|row| row["SkuId"] == "memory").collect()
    };
    let before = memory().len();
    let rows = eventually("two more samples", || Some(memory()).filter(|rows| rows.len() >= before + 2));
    for row in rows {
        let number = |name: &str| row[name].as_str().unwrap().parse::<f64>().unwrap();
        let mib = number("ConsumedQuantity") / (number("x_DurationNs") / 1e9);
        assert!((95.0..97.0).contains(&mib), "{mib}: {row}");
    }
    let (status, code, text) = host.refused("PUT", &vm_path("t", "two"), &with(2, 32));
    assert_eq!((status, code.as_str()), (409, "quota_exceeded"), "{text}");
    assert_eq!(text, "2 more vCPUs asked for, 1 left: the quota of tenant t is 4, 3 are used");
    // As large as it is it may be wanted again.
    host.put(&vm_path("t", "one"), &with(3, 96));
    host.put(&vm_path("t", "one"), &with(1, 32));
    host.act("one", "reset");
    host.becomes("one", "running");
    host.put(&vm_path("t", "two"), &with(2, 32));
    assert_eq!(host.get("/v1/tenants/t")["used"]["vcpus"], 3);
}

#[test]
fn a_volume_is_as_large_as_it_is_counted_whoever_was_not_told() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let volume = "/v1/tenants/t/volumes/d";
    host.put("/v1/tenants/t", &json!({ "quota": { "disk_mib": 8 } }));
    host.done("PUT", volume, &json!({ "size_mib": 1 }));
    host.run("vm", &spec_with("do=spin", &json!({})));
    assert_eq!(host.ask("POST", &format!("{volume}/attach"), &json!({ "vm": "vm" })).status, 200);
    // Whether what runs has it by now or not.
    let view = host.over(&host.begin("PATCH", volume, &json!({ "size_mib": 8 })));
    let id = host.get(volume)["id"].as_str().unwrap().to_owned();
    let file = host.state_dir().join(format!("volumes/tenants/t/{id}.raw"));
    let len_mib = std::fs::metadata(file).unwrap().len() >> 20;
    assert_eq!((host.get(volume)["size_mib"].as_u64(), len_mib), (Some(8), 8), "{view}");
    assert_eq!(view["state"], "succeeded", "{view}");
    assert_eq!(host.refused("PUT", "/v1/tenants/t/volumes/e", &json!({ "size_mib": 8 })).1, "quota_exceeded");
}

#[test]
fn a_volume_that_a_vm_still_has_is_not_removed_and_stays_as_it_was() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let volume = "/v1/tenants/t/volumes/d";
    host.done("PUT", volume, &json!({ "size_mib": 1 }));
    host.run("vm", &spec_with("do=capacity", &json!({ "volumes": [{ "volume": "d" }] })));
    assert_eq!(host.ask("POST", &format!("{volume}/detach"), &json!({ "vm": "vm" })).status, 200);
    for _ in 0..2 {
        let (status, code, text) = host.refused("DELETE", volume, &Value::Null);
        assert_eq!((status, code.as_str()), (409, "in_use"), "{text}");
    }
    assert_eq!(host.get(volume)["state"], "ready");
    host.act("vm", "kill");
    host.delete(volume);
    nothing_is_left_over(&host);
}

#[test]
fn everyone_who_removes_the_same_vm_hears_of_its_end() {
    if !ready() {
        return;
    }
    let host = Host::new();
    for round in 0..8 {
        let path = vm_path("t", &format!("vm-{round}"));
        host.put(&path, &json!({ "spec": spec_with("do=spin", &json!({ "power": "stopped" })) }));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| while host.ask("DELETE", &path, &Value::Null).status == 202 {});
            }
        });
        assert_eq!(host.ask("GET", &path, &Value::Null).status, 404);
    }
    let under_way: Vec<Value> = host
        .get("/v1/operations")
        .as_array()
        .unwrap()
        .iter()
        .filter(|op| op["state"] == "running")
        .cloned()
        .collect();
    assert!(under_way.is_empty(), "{under_way:?}");
}

#[test]
fn no_vm_holds_up_the_shutdown_of_its_host_longer_than_an_hour() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let spec = spec_with("do=spin", &json!({ "stop_timeout_seconds": u32::MAX }));
    let (status, code, text) = host.refused("PUT", &vm_path("t", "vm"), &json!({ "spec": spec }));
    assert_eq!((status, code.as_str()), (400, "invalid"));
    assert_eq!(text, "spec.stop_timeout_seconds 4294967295: 0 to 3600 are accepted");
}

#[test]
fn who_takes_over_a_name_does_not_see_what_another_did_under_it() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("secret-of-another", &spec_with("do=spin", &json!({})));
    host.get("/v1/usage");
    host.done("DELETE", &vm_path("t", "secret-of-another"), &Value::Null);
    host.delete("/v1/tenants/t");
    host.put("/v1/tenants/t", &json!({ "access": [{ "uid": READER.uid, "role": "read" }] }));
    for path in ["/v1/events", "/v1/events?tenant=t", "/v1/operations", "/v1/usage", "/v1/usage?tenant=t"] {
        // An administrator sees it, but for operations, which nobody has any more.
        let all = host.ask("GET", path, &Value::Null).text();
        assert_eq!(all.contains("secret-of-another"), path != "/v1/operations", "{path}: {all}");
        let seen = host.ask_as(READER, "GET", path, &Value::Null);
        assert_eq!(seen.status, 200, "{path}");
        assert!(!seen.text().contains("secret-of-another"), "{path}: {}", seen.text());
    }
    host.run("own", &spec_with("do=spin", &json!({})));
    for path in ["/v1/events", "/v1/operations", "/v1/usage"] {
        eventually(path, || {
            host.ask_as(READER, "GET", path, &Value::Null).text().contains("own").then_some(())
        });
    }
}

#[test]
fn consoles_count_among_a_users_connections_for_as_long_as_they_are_open() {
    if !ready() {
        return;
    }
    let host = Host::with(&["--connections-max", "16"]);
    host.put("/v1/tenants/t", &json!({ "access": [{ "uid": READER.uid, "role": "read" }] }));
    host.run("vm", &spec_with("do=spin", &json!({})));
    let path = format!("{}/console", vm_path("t", "vm"));
    let mut open = Vec::new();
    let refused = (0..16).find_map(|_| match READER.does(|| client::console(&host.socket(), &path)) {
        Ok(console) => {
            open.push(console);
            None
        }
        Err(error) => Some(error.to_string()),
    });
    assert!(refused.as_deref().is_some_and(|refused| refused.starts_with("429")), "{refused:?}");
    assert_eq!(open.len(), 4, "a quarter");
    drop(open);
    eventually("a place", || READER.does(|| client::console(&host.socket(), &path)).ok());
}

#[test]
fn vmms_that_hang_are_waited_for_together() {
    if !ready() {
        return;
    }
    let host = Host::with(&["--vmm-timeout-ms", "2000"]);
    let names = ["a", "b", "c", "d"];
    let pids: Vec<i32> = names
        .iter()
        .map(|name| {
            host.run(name, &spec_with("do=spin", &json!({})));
            host.vm_pid(name)
        })
        .collect();
    let all = |signal| pids.iter().for_each(|pid| kill(Pid::from_raw(*pid), signal).unwrap());
    all(Signal::SIGSTOP);
    let began = Instant::now();
    let stats = host.get("/v1/stats");
    let took = began.elapsed();
    all(Signal::SIGCONT);
    assert_eq!(stats.as_array().unwrap().len(), names.len());
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn every_path_that_is_no_text_is_refused_as_everything_else_is() {
    if !ready() {
        return;
    }
    let host = Host::new();
    for (method, path) in [
        ("GET", "/v1/images/%ff"),
        ("DELETE", "/v1/images/%ff"),
        ("POST", "/v1/images/%ff/verify"),
        ("GET", "/v1/operations/%ff"),
        ("GET", "/v1/operations/%ff/wait"),
        ("DELETE", "/v1/operations/%ff"),
        ("GET", "/v1/tenants/%ff"),
        ("GET", "/v1/tenants/t/vms/%ff"),
        ("PUT", "/v1/tenants/t/vms/vm/interfaces/%ff/class"),
        ("PUT", "/v1/network/lists/%ff"),
    ] {
        let (status, code, _) = host.refused(method, path, &json!({ "class": "isolated" }));
        assert_eq!((status, code.as_str()), (400, "invalid"), "{method} {path}");
    }
}

/// A line of /proc/PID/status, in KiB.
fn memory_kib(pid: i32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_long_bill_that_nobody_reads_takes_no_memory() {
    const RECORDS: u64 = 6000;
    if !ready() {
        return;
    }
    let host = Host::new();
    host.put("/v1/tenants/t", &json!({ "access": [{ "uid": READER.uid, "role": "read" }] }));
    host.done("PUT", "/v1/tenants/t/volumes/d", &json!({ "size_mib": 1 }));
    let own = eventually("a record", || host.get("/v1/usage").as_array().unwrap().first().cloned());
    host.terminate();
    host.store_is_closed();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, _) = Store::open(&host.state_dir().join("yund.redb"), &try_here).unwrap();
        let rows: Vec<(String, Record)> = store.scan(Table::Usage, "", 1).await.unwrap();
        let used =
            [Meter::VcpuNs, Meter::MemMibNs, Meter::DiskReadBytes, Meter::DiskReads, Meter::DiskWrites];
        let used = used.into_iter().fold(Counters::default(), |used, meter| used.with(meter, 7_u64 << 30));
        let mut batch = Batch::new();
        for seq in 0..RECORDS {
            let id = format!("filler-{seq}");
            let record = Record { id: id.clone(), seq, used: used.clone(), ..rows[0].1.clone() };
            batch.put(Table::Usage, format!("{:020}-{id}", record.end_ns), &record);
        }
        store.commit(batch).await.unwrap();
    });
    host.store_is_closed();
    host.start();
    let whole = host.ask_as(READER, "GET", "/v1/usage", &Value::Null);
    let rows = whole.json().as_array().unwrap().len() as u64;
    assert!(rows > RECORDS * 5 && whole.text().contains(own["x_RecordId"].as_str().unwrap()), "{rows}");
    let csv = host.ask_as(READER, "GET", "/v1/usage?format=csv", &Value::Null);
    assert!(csv.text().lines().count() as u64 > RECORDS * 5);
    let before = memory_kib(host.pid(), "VmHWM:");
    let deaf: Vec<_> = (0..16).map(|_| READER.does(|| client::follow(&host.socket(), "/v1/usage"))).collect();
    let grown_mib = (memory_kib(host.pid(), "VmHWM:") - before) >> 10;
    drop(deaf);
    assert!(before >> 10 < 64 && grown_mib < 64, "{before} KiB, and {grown_mib} MiB more");
}

#[test]
fn strangers_take_nothing_from_those_who_have_a_tenant_however_many_they_are() {
    if !ready() {
        return;
    }
    const STRANGERS: [User; 4] = [
        User { uid: 47_311, gids: &[47_311] },
        User { uid: 47_312, gids: &[47_312] },
        User { uid: 47_313, gids: &[47_313] },
        User { uid: 47_314, gids: &[47_314] },
    ];
    let host = Host::with(&["--connections-max", "16"]);
    host.put("/v1/tenants/t", &json!({ "access": [{ "uid": READER.uid, "role": "read" }] }));
    let connect = || UnixStream::connect(host.socket()).unwrap();
    let idle: Vec<_> = STRANGERS.iter().map(|user| user.does(|| [(); 4].map(|()| connect()))).collect();
    assert_eq!(host.ask_as(READER, "GET", "/v1/tenants/t", &Value::Null).status, 200);
    drop(idle);
    // Nor do they fill the disk with what is noted of them: one at a time is answered, at leisure.
    eventually("a place", || {
        let reply = STRANGERS[0].does(|| client::request(&host.socket(), "GET", "/v1/whoami", ""));
        reply.ok().filter(|reply| reply.status == 200)
    });
    let began = Instant::now();
    for user in STRANGERS {
        eventually("an answer", || {
            let reply = user.does(|| client::request(&host.socket(), "GET", "/v1/vms", ""));
            reply.ok().filter(|reply| reply.status == 403)
        });
    }
    assert!(began.elapsed() >= Duration::from_millis(350), "{:?}", began.elapsed());
}
