//! What was used, and what was asked: records that add up, and a log that shows every edit.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vmm::agent::audit;
use vmm::agent::usage::focus::COLUMNS;
use vmm::agent::usage::{Meter, Record};
use vmm::agent::vms::process::cpu_ns;

use super::super::common::eventually;
use super::super::order::{audit_is_whole, sum, usage, usage_adds_up};
use super::super::ready;
use super::super::rig::{Host, spec, spec_with, vm_path};

/// Ends the agent: its records of the VM that goes on as this process, and how long they are together, in nanoseconds. They have
/// the CPU time that the process has used, and its memory all the time.
fn bill(host: &Host, pid: i32) -> (Vec<Record>, u64) {
    let before = cpu_ns(pid, "yun_vcpu").unwrap();
    host.terminate();
    let after = cpu_ns(pid, "yun_vcpu").unwrap();
    let mut usage = usage_adds_up(host);
    let name = usage.keys().find(|name| name.starts_with("vm-")).unwrap().clone();
    let records = usage.remove(&name).unwrap();
    let used = sum(&records, &Meter::VcpuNs);
    assert!((u128::from(before)..=u128::from(after)).contains(&used), "{before} {used} {after}");
    let durations = records.iter().map(|record| record.duration_ns).sum();
    assert_eq!(sum(&records, &Meter::MemMibNs), u128::from(durations) * 32);
    (records, durations)
}

#[test]
fn usage_has_no_gap_and_no_double_count_over_deaths_of_the_agent_at_any_time() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    let pid = host.vm_pid("vm");
    for round in 0..12 {
        // At whatever point of its work that is.
        (0..round * 7).for_each(|_| drop(host.ask("GET", "/v1/usage", &Value::Null)));
        host.kill9();
        host.start();
    }
    let (records, durations) = bill(&host, pid);
    let (begin, end) = (records[0].start_ns, records.last().unwrap().end_ns);
    assert!(durations.abs_diff(end - begin) < 200_000_000, "{durations} of {}", end - begin);
}

#[test]
fn usage_adds_up_and_nothing_ends_early_when_the_clock_is_set_back_by_a_day() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec_with("do=spin", &json!({ "ttl_seconds": 3600 })));
    let pid = host.vm_pid("vm");
    for behind in ["86400", "0", "86400"] {
        host.kill9();
        let mut command = host.command();
        command.env("YUND_CLOCK_BEHIND", behind);
        host.launch(command);
        let before = eventually("the agent's answer", || host.attempt("GET", "/v1/usage", &Value::Null).ok());
        let (before, rows) = (before.json(), || host.get("/v1/usage").as_array().unwrap().len());
        let before = before.as_array().unwrap().len();
        eventually("a record", || (rows() > before).then_some(()));
    }
    assert_eq!(host.vm_pid("vm"), pid);
    let (_, durations) = bill(&host, pid);
    assert!(durations < 600_000_000_000, "a day is paid for that nobody had: {durations}");
}

#[test]
fn usage_is_shown_with_focus_columns_as_json_and_the_same_as_csv() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.done("PUT", "/v1/tenants/t/volumes/d", &json!({ "size_mib": 8 }));
    host.run("vm", &spec("do=spin"));
    // Nothing more is counted.
    host.act("vm", "kill");
    eventually("a volume's record", || {
        let rows = host.get("/v1/usage?tenant=t");
        rows.as_array().unwrap().iter().any(|row| row["ResourceType"] == "Volume").then_some(())
    });
    let path = "/v1/usage?tenant=t&vm=vm";
    let json = host.get(path);
    let rows = json.as_array().unwrap();
    let csv = host.ask("GET", &format!("{path}&format=csv"), &Value::Null);
    assert!(csv.head.contains("content-type: text/csv"), "{}", csv.head);
    let csv = csv.text();
    let mut lines = csv.lines();
    assert_eq!(lines.next().unwrap(), COLUMNS.join(","));
    assert_eq!(lines.count(), rows.len());
    let mut names = BTreeSet::new();
    for row in rows {
        assert_eq!(
            (&row["SubAccountId"], &row["ChargeCategory"], &row["x_VmName"]),
            (&json!("t"), &json!("Usage"), &json!("vm"))
        );
        assert!(names.insert(format!("{} {}", row["x_RecordId"], row["SkuMeter"])), "twice: {row}");
        let quantity = row["ConsumedQuantity"].as_str().unwrap();
        assert!(csv.contains(&format!(",{quantity},")), "{quantity}: {csv}");
    }
    assert!(rows.iter().any(|row| row["ServiceName"] == "Virtual Machines"), "{json}");
    let (status, code, text) = host.refused("GET", "/v1/usage?from=yesterday", &Value::Null);
    assert_eq!((status, code.as_str()), (400, "invalid"));
    assert!(text.contains("from \"yesterday\"") && text.contains("RFC 3339"), "{text}");
    assert_eq!(host.get("/v1/usage?from=2000-01-01T00:00:00Z&to=2000-01-02T00:00:00Z"), json!([]));
}

#[test]
fn a_volume_is_paid_for_by_its_size_and_time_until_it_is_deleted() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let path = "/v1/tenants/t/volumes/d";
    host.done("PUT", path, &json!({ "size_mib": 8 }));
    let id = host.get(path)["id"].as_str().unwrap().to_owned();
    let meter = Meter::VolumeByteNs(id.clone());
    let counted = || {
        let rows = host.get("/v1/usage?tenant=t&vm=d");
        (rows.as_array().unwrap().len() >= 2).then_some(())
    };
    eventually("two records of it", counted);
    host.delete(path);
    host.terminate();
    let records: Vec<_> = usage(&host).into_iter().filter(|record| record.incarnation == id).collect();
    assert!(records.last().unwrap().is_last);
    let durations: u64 = records.iter().map(|record| record.duration_ns).sum();
    assert_eq!(sum(&records, &meter), u128::from(durations) * (8 << 20));
    usage_adds_up(&host);
}

#[test]
fn the_audit_log_says_who_asked_for_what_and_shows_every_edit_also_after_a_death_of_the_agent() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.put(&vm_path("t", "vm"), &json!({ "spec": spec("do=spin") }));
    host.refused("DELETE", "/v1/tenants/t", &Value::Null);
    host.kill9();
    host.start();
    audit_is_whole(&host);
    let export = host.ask("GET", "/v1/audit", &Value::Null).text();
    let lines: Vec<&str> = export.lines().collect();
    let records: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |method: &str, path: &str| {
        records
            .iter()
            .rfind(|r| r["method"] == method && r["path"] == path)
            .unwrap_or_else(|| panic!("{export}"))
    };
    let put = of("PUT", &vm_path("t", "vm"));
    assert_eq!(
        (&put["who"]["uid"], &put["decision"], &put["status"], &put["tenant"]),
        (&json!(0), &json!("allowed"), &json!(201), &json!("t"))
    );
    let delete = of("DELETE", "/v1/tenants/t");
    assert_eq!(delete["status"], 409);
    assert!(delete["error"].as_str().unwrap().contains("tenant t has 1 VMs"), "{delete}");
    let verify = |text: String| audit::verify(text.as_bytes(), None);
    let all = lines.len();
    for at in [0, all / 2, all - 2] {
        let mut fewer = lines.clone();
        fewer.remove(at);
        assert!(verify(fewer.join("\n") + "\n").is_err(), "without line {at}");
        let edited: Vec<String> = lines
            .iter()
            .enumerate()
            .map(
                |(n, line)| {
                    if n == at { line.replacen("\"uid\":0", "\"uid\":1", 1) } else { (*line).to_owned() }
                },
            )
            .collect();
        assert!(verify(edited.join("\n") + "\n").is_err(), "with line {at} edited");
    }
    let mut swapped = lines.clone();
    swapped.swap(1, 2);
    assert!(verify(swapped.join("\n") + "\n").is_err(), "in another order");
    assert!(verify(lines[..all - 1].join("\n") + "\n").is_err(), "without its end");
    verify(export.clone()).unwrap();
    // An export of a part is whole by itself.
    let part = host.ask("GET", "/v1/audit?from=2&to=4", &Value::Null).text();
    assert_eq!(part.lines().count(), 4);
    verify(part).unwrap();
}
