//! Order: what is wanted is, nothing is left over, and usage adds up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use vmm::agent::audit;
use vmm::agent::store::{Store, Table, try_here};
use vmm::agent::usage::{Meter, Record};

use super::client;
use super::common::PATIENCE;
use super::rig::Host;

/// Waits until `find` finds nothing wrong.
pub fn comes_right(host: &Host, find: impl Fn() -> Option<String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Some(wrong) = find() {
        assert!(Instant::now() < deadline, "{wrong}\n{}", host.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Names in a directory.
pub fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// VMs of all tenants.
pub fn vms(host: &Host) -> Vec<Value> {
    host.get("/v1/vms").as_array().unwrap().clone()
}

fn volumes(host: &Host) -> Vec<Value> {
    let tenants = host.get("/v1/tenants");
    let names = tenants.as_array().unwrap().iter().map(|tenant| tenant["name"].as_str().unwrap().to_owned());
    names.flat_map(|t| host.get(&format!("/v1/tenants/{t}/volumes")).as_array().unwrap().clone()).collect()
}

/// Waits until every VM and every volume is as it is wanted: done, or not begun.
pub fn settles(host: &Host) {
    comes_right(host, || {
        for vm in vms(host) {
            let (status, power) = (&vm["status"], &vm["spec"]["power"]);
            if status["state"] != *power || status["reason"] != "" {
                return Some(format!("it does not come to rest: {vm}"));
            }
        }
        volumes(host).iter().find(|v| v["state"] != "ready").map(|v| format!("it is not ready: {v}"))
    });
    for volume in volumes(host) {
        let (tenant, id) = (volume["tenant"].as_str().unwrap(), volume["id"].as_str().unwrap());
        let path = host.state_dir().join(format!("volumes/tenants/{tenant}/{id}.raw"));
        let len = fs::metadata(&path).unwrap_or_else(|error| panic!("{error}: {volume}")).len();
        assert_eq!(Some(len >> 20), volume["size_mib"].as_u64(), "{volume}");
    }
}

/// Waits until there is nothing but what belongs to VMs that run, VMs, and volumes.
pub fn nothing_is_left_over(host: &Host) {
    comes_right(host, || left_over(host));
}

fn left_over(host: &Host) -> Option<String> {
    let vms = vms(host);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let running: Vec<&Value> = vms.iter().filter(|vm| !vm["status"]["pid"].is_null()).collect();
    let pids: BTreeSet<i32> =
        running.iter().map(|vm| i32::try_from(vm["status"]["pid"].as_i64().unwrap()).unwrap()).collect();
    let jails: BTreeSet<String> =
        running.iter().map(|vm| format!("{}-{}", text(&vm["id"]), vm["status"]["incarnation"])).collect();
    let ids: BTreeSet<String> = vms.iter().map(|vm| text(&vm["id"])).collect();
    let state = host.state_dir();
    let found = host.processes();
    if found != pids {
        return Some(format!("processes {found:?}, and VMs have {pids:?}"));
    }
    let janitors = host.janitors();
    if janitors != pids.len() {
        return Some(format!("{janitors} janitors for VMs {pids:?}"));
    }
    for (what, dir, expected) in
        [("jails", state.join("jails/yun-vmm"), &jails), ("directories of VMs", state.join("vms"), &ids)]
    {
        let found = names(&dir);
        if found != *expected {
            return Some(format!("{what} {found:?}, and VMs have {expected:?}"));
        }
    }
    let expected: BTreeSet<String> =
        volumes(host).iter().map(|v| format!("{}/{}.raw", text(&v["tenant"]), text(&v["id"]))).collect();
    let tenants = state.join("volumes/tenants");
    let files: BTreeSet<String> = names(&tenants)
        .iter()
        .flat_map(|t| names(&tenants.join(t)).into_iter().map(move |file| format!("{t}/{file}")))
        .collect();
    if files != expected {
        return Some(format!("files {files:?}, and volumes have {expected:?}"));
    }
    for dir in ["volumes/tmp", "images/tmp"] {
        let found = names(&state.join(dir));
        if !found.is_empty() {
            return Some(format!("{dir} has {found:?}"));
        }
    }
    let groups = cgroups(host);
    if !groups.is_subset(&jails) {
        return Some(format!("cgroups {groups:?}, and VMs have {jails:?}"));
    }
    let report = host.ask("POST", "/v1/gc", &json!({ "dry_run": true })).json();
    (report["leftovers"] != json!([])).then(|| format!("{report}"))
}

/// Cgroups of VMs that were ever seen.
fn cgroups(host: &Host) -> BTreeSet<String> {
    let ids = host.ids();
    let mut dirs = vec![Path::new("/sys/fs/cgroup").to_owned()];
    let mut found = BTreeSet::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.rsplit_once('-').is_some_and(|(id, _)| ids.contains(id)) {
                    found.insert(name);
                }
                dirs.push(entry.path());
            }
        }
    }
    found
}

/// Events are numbered without a gap.
pub fn events_are_whole(host: &Host) {
    for (at, event) in host.events().iter().enumerate() {
        assert_eq!(event["seq"], at + 1, "{event}");
    }
}

/// The audit log so far is whole.
pub fn audit_is_whole(host: &Host) {
    let export = client::request(&host.socket(), "GET", "/v1/audit", "").unwrap();
    assert_eq!(export.status, 200, "{}", export.text());
    audit::verify(&export.body[..], None).unwrap_or_else(|error| panic!("{error}: {}", export.text()));
}

/// What the store holds of usage, while there is no agent.
pub fn usage(host: &Host) -> Vec<Record> {
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join("store");
    fs::copy(host.state_dir().join("yund.redb"), &path).unwrap();
    let (store, _) = Store::open(&path, &try_here).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let rows = runtime.block_on(store.scan::<Record>(Table::Usage, "", usize::MAX)).unwrap();
    rows.into_iter().map(|(_, record)| record).collect()
}

/// Records of an incarnation touch, none is missing, none is there twice, and none is longer than its time. By incarnation.
pub fn usage_adds_up(host: &Host) -> BTreeMap<String, Vec<Record>> {
    let mut by_incarnation: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for record in usage(host) {
        assert!(ids.insert(record.id.clone()), "twice: {record:?}");
        by_incarnation.entry(record.incarnation.clone()).or_default().push(record);
    }
    for (incarnation, records) in &mut by_incarnation {
        records.sort_by_key(|record| record.seq);
        for (at, record) in records.iter().enumerate() {
            assert_eq!(record.seq, at as u64, "one is missing: {records:?}");
            assert_eq!(record.id, format!("{incarnation}-{at}"));
            assert!(record.start_ns <= record.end_ns, "{record:?}");
            let memory = record.used.get(&Meter::MemMibNs).unwrap_or(0);
            assert!(memory == 0 || memory == u128::from(record.duration_ns) * 32, "{record:?}");
        }
        for pair in records.windows(2) {
            assert_eq!(pair[0].end_ns, pair[1].start_ns, "a gap: {pair:?}");
            assert!(!pair[0].is_last, "more after the last: {pair:?}");
        }
    }
    by_incarnation
}

/// What an incarnation used, over all its records.
pub fn sum(records: &[Record], meter: &Meter) -> u128 {
    records.iter().filter_map(|record| record.used.get(meter)).sum()
}
