//! The agent is killed at each of its steps, within the life of a VM that passes them all.

use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use vmm::agent::steps::STEPS;
use vmm::agent::usage::Meter;
use vmm::agent::vms::process::cpu_ns;

use super::common::say;
use super::order::{
    audit_is_whole, events_are_whole, nothing_is_left_over, settles, sum, usage_adds_up, vms,
};
use super::ready;
use super::rig::{Died, Host, spec, spec_with, vm_path};

const VM: &str = "/v1/tenants/life/vms/vm";
const VOLUME: &str = "/v1/tenants/life/volumes/disk";
const LATE: &str = "/v1/tenants/life/volumes/late";

/// One request of a life. What was asked for once may be asked for again.
type Request = fn(&Host) -> Result<(), Died>;

/// A whole life: tenant, volume, VM; everything that can be done with them; their end.
const LIFE: [(&str, Request); 14] = [
    ("tenant", |host| made(host, "/v1/tenants/life", &json!({}))),
    ("volume", |host| {
        for path in [VOLUME, LATE] {
            if !exists(host, path)? {
                done(host, "PUT", path, &json!({ "size_mib": 1 }))?;
            }
        }
        Ok(())
    }),
    ("create", |host| {
        made(host, VM, &json!({ "spec": with_volumes(&["disk"]) }))?;
        state(host, "running")?;
        prints(host, "sectors 0x800\n")
    }),
    ("resize", |host| {
        done(host, "PATCH", VOLUME, &json!({ "size_mib": 3 }))?;
        prints(host, "sectors 0x1800\n")
    }),
    ("attach", |host| plugged(host, &["disk", "late"])),
    ("detach", |host| plugged(host, &["disk"])),
    ("pause", |host| act(host, "pause", "paused")),
    ("resume", |host| act(host, "resume", "running")),
    ("reset", |host| act(host, "reset", "running")),
    ("stop", |host| act(host, "stop", "stopped")),
    ("start", |host| act(host, "start", "running")),
    ("kill", |host| act(host, "kill", "stopped")),
    ("start again", |host| act(host, "start", "running")),
    ("delete", |host| {
        for path in [VM, VOLUME, LATE, "/v1/tenants/life"] {
            let reply = host.attempt("DELETE", path, &Value::Null)?;
            match reply.status {
                202 => over(host, &reply.json())?,
                status => assert!(matches!(status, 204 | 404), "{path}: {}", reply.text()),
            }
        }
        Ok(())
    }),
];

fn made(host: &Host, path: &str, body: &Value) -> Result<(), Died> {
    let reply = host.attempt("PUT", path, body)?;
    assert!(matches!(reply.status, 200 | 201), "{path}: {}", reply.text());
    Ok(())
}

fn with_volumes(names: &[&str]) -> Value {
    let volumes: Vec<_> = names.iter().map(|name| json!({ "volume": name })).collect();
    spec_with("do=capacity", &json!({ "volumes": volumes }))
}

/// Gives the running VM these volumes, and waits until its VMM has them.
fn plugged(host: &Host, names: &[&str]) -> Result<(), Died> {
    let reply = host.attempt("PUT", VM, &json!({ "spec": with_volumes(names) }))?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    if let Some(id) = reply.json()["operation"].as_str() {
        over(host, &json!({ "id": id }))?;
    }
    until(host, "volumes as wanted", |host| {
        let status = host.attempt("GET", VM, &Value::Null)?.json()["status"].clone();
        Ok(status["state"] == "running" && status["reason"] == "")
    })?;
    assert_eq!(host.drives_at(VM).len(), names.len());
    Ok(())
}

fn exists(host: &Host, path: &str) -> Result<bool, Died> {
    Ok(host.attempt("GET", path, &Value::Null)?.status == 200)
}

fn done(host: &Host, method: &str, path: &str, body: &Value) -> Result<(), Died> {
    let reply = host.attempt(method, path, body)?;
    assert_eq!(reply.status, 202, "{method} {path} {body}: {}", reply.text());
    over(host, &reply.json())
}

fn over(host: &Host, op: &Value) -> Result<(), Died> {
    let id = op["id"].as_str().unwrap();
    let path = format!("/v1/operations/{id}/wait?timeout_seconds=240");
    let view = host.attempt("GET", &path, &Value::Null)?.json();
    assert_eq!(view["state"], "succeeded", "{view}\n{}", host.log());
    Ok(())
}

fn act(host: &Host, action: &str, becomes: &str) -> Result<(), Died> {
    let mut body = json!({ "action": action });
    if action == "stop" {
        body["timeout_seconds"] = 0.into();
    }
    done(host, "POST", &format!("{VM}/actions"), &body)?;
    state(host, becomes)
}

/// Waits for a state, or the agent's death.
fn state(host: &Host, wanted: &str) -> Result<(), Died> {
    until(host, wanted, |host| {
        let vm = host.attempt("GET", VM, &Value::Null)?;
        Ok(vm.json()["status"]["state"] == wanted)
    })
}

fn prints(host: &Host, text: &str) -> Result<(), Died> {
    until(host, text, |host| {
        let path = format!("{VM}/logs?source=console");
        Ok(host.attempt("GET", &path, &Value::Null)?.text().contains(text))
    })
}

fn until(host: &Host, what: &str, is: impl Fn(&Host) -> Result<bool, Died>) -> Result<(), Died> {
    let deadline = std::time::Instant::now() + super::common::PATIENCE;
    while !is(host)? {
        assert!(std::time::Instant::now() < deadline, "no {what}\n{}", host.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}

/// A VM that has nothing to do with it.
struct Witness(i32);

impl Witness {
    fn of(host: &Host) -> Self {
        host.run("witness", &spec("do=spin"));
        Self(host.vm_pid("witness"))
    }

    fn is_unharmed(&self, host: &Host) {
        let vm = host.vm("witness");
        assert_eq!(
            (vm["status"]["pid"].as_i64(), vm["status"]["incarnation"].as_u64()),
            (Some(self.0.into()), Some(1))
        );
        assert_eq!(
            (&vm["status"]["state"], &vm["status"]["reason"]),
            (&json!("running"), &json!("")),
            "{vm}"
        );
    }
}

/// Number and incarnation of the life's VM.
fn process_of_life(host: &Host) -> Option<(i64, u64)> {
    let vm = host.ask("GET", VM, &Value::Null);
    let status = (vm.status == 200).then(|| vm.json()["status"].clone())?;
    Some((status["pid"].as_i64()?, status["incarnation"].as_u64()?))
}

/// Lives a whole life under agents that end themselves at `step`, whenever it is reached: in which requests they did.
fn live_and_die_at(step: &str) -> Vec<&'static str> {
    let host = Host::new();
    let witness = Witness::of(&host);
    let mut deaths = Vec::new();
    host.terminate();
    host.start_to_die_at(Some(step));
    for (name, request) in LIFE {
        let before = process_of_life(&host);
        if request(&host).is_ok() {
            continue;
        }
        let status = host.ends();
        assert_eq!(status.signal(), Some(9), "{step}, {name}: {status}\n{}", host.log());
        deaths.push(name);
        let processes = host.processes();
        assert!(processes.contains(&witness.0), "{step}, {name}");
        host.start();
        settles(&host);
        witness.is_unharmed(&host);
        nothing_is_left_over(&host);
        let after = process_of_life(&host);
        // What was not asked to end has not ended.
        if matches!(name, "resize" | "attach" | "detach" | "pause" | "resume") {
            assert_eq!(before, after, "{step}, {name}");
        }
        // A guest that ran goes on in the process that was there, noted or not.
        if matches!(step, "start.started" | "start.running") {
            let (pid, _) = after.unwrap();
            assert!(
                processes.contains(&i32::try_from(pid).unwrap()),
                "{step}, {name}: {processes:?}, {after:?}"
            );
        }
        // Now it is done, whether it was before or not.
        assert!(request(&host).is_ok(), "{step}, {name}");
        settles(&host);
        host.terminate();
        host.start_to_die_at(Some(step));
    }
    host.terminate();
    host.start();
    settles(&host);
    witness.is_unharmed(&host);
    nothing_is_left_over(&host);
    assert_eq!(vms(&host).len(), 1);
    events_are_whole(&host);
    audit_is_whole(&host);
    let before = cpu_ns(witness.0, "yun_vcpu").unwrap();
    host.terminate();
    let after = cpu_ns(witness.0, "yun_vcpu").unwrap();
    for (incarnation, records) in usage_adds_up(&host) {
        let last = records.last().unwrap();
        assert_eq!(last.is_last, last.owner.vm != "witness", "{incarnation}: {last:?}");
        if last.owner.vm == "witness" {
            let used = sum(&records, &Meter::VcpuNs);
            assert!((u128::from(before)..=u128::from(after)).contains(&used), "{before} {used} {after}");
        }
    }
    deaths
}

#[test]
fn whatever_step_the_agent_is_killed_at_no_vm_is_lost_and_nothing_is_half_done_or_left() {
    if !ready() {
        return;
    }
    let (next, told) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(step) = STEPS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let deaths = live_and_die_at(step);
                    assert!(!deaths.is_empty(), "no request led to {step}");
                    told.lock().unwrap().push(format!("{step}: {}", deaths.join(", ")));
                }
            });
        }
    });
    let mut told = told.into_inner().unwrap();
    assert_eq!(told.len(), STEPS.len());
    told.sort();
    say(&format!("the agent died at\n  {}", told.join("\n  ")));
}

#[test]
fn an_agent_that_dies_again_while_it_recovers_is_followed_by_one_that_puts_all_right() {
    if !ready() {
        return;
    }
    // Where it dies, over what, and where the next one dies over that.
    let table = [
        ("start.intent", "create", ["end.seen", "end.unplugged", "end.stored", "start.spawned"].as_slice()),
        ("start.spawned", "create", &["end.seen", "end.stored", "start.spawned"]),
        ("start.configured", "create", &["end.unplugged", "start.started"]),
        ("resize.intent", "resize", &["resize.done", "resize.told"]),
        ("attach.intent", "attach", &["attach.intent", "attach.handed", "attach.stored"]),
        ("attach.handed", "attach", &["attach.stored"]),
        ("detach.intent", "detach", &["detach.intent", "detach.gone", "detach.stored"]),
        ("detach.gone", "detach", &["detach.intent", "detach.stored"]),
        ("stop.asked", "stop", &["stop.asked", "kill.done", "end.stored"]),
        ("kill.done", "kill", &["end.seen", "end.unplugged", "end.stored"]),
        ("delete.intent", "delete", &["kill.done", "end.stored", "delete.files"]),
    ];
    let host = Host::new();
    let witness = Witness::of(&host);
    for (first, over, then) in table {
        for second in then {
            for (name, request) in LIFE {
                if name == over {
                    host.terminate();
                    host.start_to_die_at(Some(first));
                    assert!(request(&host).is_err(), "{first}, {name}");
                    assert_eq!(host.ends().signal(), Some(9));
                    // It may die before it answers.
                    let mut command = host.command();
                    host.launch(std::mem::replace(
                        command.env("YUND_DIE_AT", second),
                        std::process::Command::new(""),
                    ));
                    assert_eq!(host.ends().signal(), Some(9), "{first}, {second}");
                    host.start();
                    settles(&host);
                    witness.is_unharmed(&host);
                    nothing_is_left_over(&host);
                }
                assert!(request(&host).is_ok(), "{first}, {second}, {name}");
            }
        }
    }
    let vm = host.ask("GET", &vm_path("life", "vm"), &Value::Null);
    assert_eq!(vm.status, 404);
    host.terminate();
    usage_adds_up(&host);
}
