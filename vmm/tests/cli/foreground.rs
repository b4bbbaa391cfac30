//! A VM whose life is the process's.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use hyper::body::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;

use super::fake::{Fake, Reply, operation, refusal, vm};
use super::{asked, ended, run, yun};

const VM: &str = "/v1/tenants/acme/vms/job";
const LINE: [&str; 5] = ["run", "acme/job", "--image", "job", "--foreground"];

/// A VM that is made, and is then what the test says.
fn job(fake: &Fake, state: &str) -> Arc<Mutex<Value>> {
    let now = Arc::new(Mutex::new(vm("job", state)));
    let mut made = vm("job", "starting");
    made["status"]["incarnation"] = 0.into();
    fake.json(&format!("PUT {VM}"), 201, made);
    let shared = Arc::clone(&now);
    fake.on(&format!("GET {VM}"), move |_| Reply::Json(200, shared.lock().unwrap().clone()));
    fake.json(&format!("POST {VM}/actions"), 202, operation("vm_stop", "running"));
    now
}

fn end(now: &Mutex<Value>, end: Value) {
    let mut vm = now.lock().unwrap();
    vm["status"]["state"] = "stopped".into();
    vm["status"]["last_end"] = end;
}

#[test]
fn it_prints_what_the_guest_prints_and_ends_as_the_vm_does() {
    for (how, code) in [
        (json!({"status": 0, "reason": "off", "at": "t"}), 0),
        (json!({"status": 42, "reason": "off", "at": "t"}), 42),
        (json!({"signal": 9, "reason": "killed", "at": "t"}), 137),
    ] {
        let fake = Fake::new();
        let now = job(&fake, "running");
        let (says, to_user) = unbounded_channel();
        let mut reply = Some(Reply::Console(to_user, channel().0));
        fake.on(&format!("GET {VM}/console"), move |_| {
            reply.take().unwrap_or_else(|| Reply::Json(409, refusal("state", "it is gone", None)))
        });
        let child = yun(&fake, &LINE).spawn().unwrap();
        asked(&fake, &format!("GET {VM}/console?write=false"), 1);
        says.send(Bytes::from_static(b"result: 7\n")).unwrap();
        end(&now, how);
        // Its last word comes after its end was seen.
        let looks = fake.lines().iter().filter(|line| line.starts_with(&format!("GET {VM}"))).count();
        asked(&fake, &format!("GET {VM}"), looks + 1);
        says.send(Bytes::from_static(b"bye\n")).unwrap();
        drop(says);
        let said = ended(child);
        assert_eq!((said.code, said.out.as_str()), (code, "result: 7\nbye\n"), "{said:?}");
        assert_eq!(fake.body(&format!("PUT {VM}"))["spec"]["power"], "running");
    }
}

#[test]
fn a_vm_that_is_over_before_anybody_looks_loses_no_word() {
    let fake = Fake::new();
    let now = job(&fake, "running");
    end(&now, json!({"status": 3, "reason": "off", "at": "t"}));
    fake.on(&format!("GET {VM}/logs?source=console"), |_| Reply::Text(200, "all it said\n".to_owned()));
    let said = run(&fake, &LINE);
    assert_eq!((said.code, said.out.as_str()), (3, "all it said\n"), "{said:?}");
}

#[test]
fn a_signal_stops_the_vm_and_a_second_one_kills_it() {
    for first in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let fake = Fake::new();
        let now = job(&fake, "running");
        fake.json(&format!("GET {VM}/console"), 409, refusal("state", "not now", None));
        let child = yun(&fake, &LINE).spawn().unwrap();
        asked(&fake, &format!("GET {VM}"), 1);
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let actions = format!("POST {VM}/actions");
        kill(pid, first).unwrap();
        asked(&fake, &actions, 1);
        kill(pid, Signal::SIGTERM).unwrap();
        asked(&fake, &actions, 2);
        let bodies: Vec<_> =
            fake.asked().into_iter().filter(|asked| asked.line == actions).map(|asked| asked.body).collect();
        assert_eq!(bodies, [json!({"action": "stop"}), json!({"action": "kill"})]);
        end(&now, json!({"signal": 15, "reason": "killed", "at": "t"}));
        assert_eq!(ended(child).code, 143);
    }
}

#[test]
fn with_rm_nothing_stays() {
    let fake = Fake::new();
    let now = job(&fake, "running");
    end(&now, json!({"status": 5, "reason": "off", "at": "t"}));
    fake.json(&format!("DELETE {VM}"), 202, operation("vm_delete", "succeeded"));
    let said = run(&fake, &[&LINE[..], &["--rm"]].concat());
    assert_eq!(said.code, 5, "{said:?}");
    assert_eq!(fake.lines().last().unwrap(), &format!("DELETE {VM}"));
    // It is only for a VM of this command's life.
    assert_eq!(run(&fake, &["run", "acme/job", "--image", "job", "--rm"]).code, 2);
}

#[test]
fn a_vm_that_can_not_be_started_is_no_end_of_a_vm() {
    let fake = Fake::new();
    let mut made = vm("job", "stopped");
    made["status"]["incarnation"] = 0.into();
    made["operation"] = "op-1".into();
    fake.json(&format!("PUT {VM}"), 201, made.clone());
    made["operation"] = Value::Null;
    fake.json(&format!("GET {VM}"), 200, made);
    let mut failed = operation("vm_start", "failed");
    failed["error"] = refusal("capacity_exceeded", "no memory", None)["error"].clone();
    fake.json("GET /v1/operations/op-1", 200, failed);
    let said = run(&fake, &LINE);
    assert!(said.code == 4 && said.err.contains("no memory"), "{said:?}");
    // Neither is one of more lives than this.
    assert_eq!(run(&fake, &[&LINE[..], &["--restart", "always"]].concat()).code, 2);
}

#[test]
fn in_the_background_it_waits_for_the_start_and_a_name_is_made_up() {
    let fake = Fake::new();
    fake.json("GET /v1/operations/op-1", 200, operation("vm_start", "succeeded"));
    let mut made = vm("web", "starting");
    made["operation"] = "op-1".into();
    fake.json("PUT /v1/tenants/acme/vms/web", 201, made);
    fake.json("GET /v1/tenants/acme/vms/web", 200, vm("web", "running"));
    assert_eq!(run(&fake, &["run", "acme/web", "--image", "x"]).out, "acme/web is running\n");
    assert_eq!(run(&fake, &["run", "acme/web", "--image", "x", "--no-wait"]).out, "op-1\n");
    run(&fake, &["run", "-t", "acme", "--image", "x"]);
    let last = fake.lines().pop().unwrap();
    assert!(last.starts_with("PUT /v1/tenants/acme/vms/run-"), "{last}");
}

#[test]
fn an_agent_that_is_away_for_a_while_is_no_end_of_a_vm() {
    let fake = Fake::new();
    let now = job(&fake, "running");
    let mut looks = 0;
    fake.on(&format!("GET {VM}"), move |_| {
        looks += 1;
        if looks < 3 { Reply::Hangup } else { Reply::Json(200, now.lock().unwrap().clone()) }
    });
    fake.json(&format!("POST {VM}/actions"), 202, operation("vm_stop", "running"));
    let child = yun(&fake, &LINE).spawn().unwrap();
    asked(&fake, &format!("GET {VM}"), 3);
    let mut over = vm("job", "stopped");
    over["status"]["last_end"] = json!({"status": 4, "reason": "off", "at": "t"});
    fake.json(&format!("GET {VM}"), 200, over);
    assert_eq!(ended(child).code, 4);
}
