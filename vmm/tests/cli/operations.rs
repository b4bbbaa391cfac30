//! Waiting, and letting go.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::fake::{Fake, Reply, operation, refusal};
use super::{asked, ended, run, yun};

const ACT: &str = "POST /v1/tenants/acme/vms/web/actions";
const WAIT: &str = "GET /v1/operations/op-1/wait";

#[test]
fn what_takes_long_is_waited_for() {
    let fake = Fake::new();
    fake.json(ACT, 202, operation("vm_stop", "running"));
    let mut times = 0;
    fake.on(WAIT, move |_| {
        times += 1;
        Reply::Json(200, operation("vm_stop", if times < 3 { "running" } else { "succeeded" }))
    });
    let said = run(&fake, &["stop", "acme/web", "--timeout", "2m"]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "stop of VM acme/web: done\n", ""));
    assert_eq!(fake.body(ACT), json!({"action": "stop", "timeout_seconds": 120}));
    assert_eq!(fake.lines().len(), 4);
    assert_eq!(run(&fake, &["start", "acme/web", "--format", "json"]).json()["state"], "succeeded");
}

#[test]
fn nobody_has_to_wait() {
    let fake = Fake::new();
    fake.json(ACT, 202, operation("vm_start", "running"));
    assert_eq!(run(&fake, &["start", "acme/web", "--no-wait"]).out, "op-1\n");
    assert_eq!(run(&fake, &["start", "acme/web", "--no-wait", "--format", "json"]).json()["id"], "op-1");
    assert_eq!(fake.lines(), [ACT, ACT]);
}

#[test]
fn work_that_failed_says_why_and_ends_as_its_refusal_would() {
    let fake = Fake::new();
    let mut failed = operation("vm_start", "failed");
    failed["error"] = refusal("capacity_exceeded", "no memory is left", Some("free some"))["error"].clone();
    fake.json(ACT, 202, failed);
    let said = run(&fake, &["start", "acme/web"]);
    assert_eq!(said.code, 4);
    assert_eq!(
        said.err,
        "yun: start of VM acme/web: no memory is left [capacity_exceeded]\nhint: free some\n"
    );
    fake.json(ACT, 202, operation("vm_start", "cancelled"));
    let said = run(&fake, &["start", "acme/web"]);
    assert!(said.code == 1 && said.err.contains("was cancelled, and is undone"), "{said:?}");
}

#[test]
fn a_signal_detaches_and_says_how_to_come_back_and_cancels_nothing() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let fake = Fake::new();
        fake.json(ACT, 202, operation("vm_start", "running"));
        fake.on(WAIT, |_| Reply::Silence);
        let child = yun(&fake, &["start", "acme/web"]).spawn().unwrap();
        asked(&fake, WAIT, 1);
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let said = ended(child);
        assert_eq!(said.code, code, "{said:?}");
        for told in ["op-1", "goes on", "yun operation wait op-1", "yun operation cancel op-1"] {
            assert!(said.err.contains(told), "{said:?}");
        }
        assert!(fake.lines().iter().all(|line| !line.starts_with("DELETE")), "{:?}", fake.lines());
    }
}

#[test]
fn an_operation_can_be_waited_for_later_and_cancelled() {
    let fake = Fake::new();
    fake.json("GET /v1/operations/op-1", 200, operation("host_drain", "running"));
    fake.json(WAIT, 200, operation("host_drain", "running"));
    fake.json("DELETE /v1/operations/op-1", 202, operation("host_drain", "running"));
    let said = run(&fake, &["operation", "wait", "op-1", "--timeout", "1s"]);
    assert!(said.code == 124 && said.err.contains("op-1"), "{said:?}");
    fake.json(WAIT, 200, operation("host_drain", "succeeded"));
    assert_eq!(run(&fake, &["operation", "wait", "op-1"]).code, 0);
    assert!(run(&fake, &["op", "cancel", "op-1"]).out.contains("state\trunning"));
}

#[test]
fn an_agent_that_restarts_meanwhile_is_waited_for() {
    let fake = Fake::new();
    fake.json(ACT, 202, operation("vm_start", "running"));
    let mut times = 0;
    fake.on(WAIT, move |_| {
        times += 1;
        if times == 1 { Reply::Hangup } else { Reply::Json(200, operation("vm_start", "succeeded")) }
    });
    assert_eq!(run(&fake, &["start", "acme/web"]).code, 0);
}
