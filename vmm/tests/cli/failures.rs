//! Exit codes, error bodies, confirmation, an agent that is away.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::json;
use vmm::agent::model::{DenialCode, ErrorBody};

use super::fake::{Fake, Reply, operation, refusal, vm};
use super::{run, yun};

#[test]
fn each_refusal_has_its_exit_code_with_message_hint_and_code() {
    let fake = Fake::new();
    for (status, code, exit) in [
        (400, "invalid", 2),
        (403, "forbidden", 6),
        (404, "not_found", 3),
        (409, "in_use", 4),
        (409, "quota_exceeded", 4),
        (503, "unavailable", 4),
        (504, "timeout", 124),
        (500, "host", 1),
    ] {
        fake.json("GET /v1/host", status, refusal(code, "what was wrong", Some("what to do")));
        let said = run(&fake, &["host", "show"]);
        assert_eq!(said.code, exit, "{said:?}");
        assert_eq!(said.err, format!("yun: what was wrong [{code}]\nhint: what to do\n"));
        let said = run(&fake, &["host", "show", "--format", "json"]);
        let body: ErrorBody = serde_json::from_str(&said.err).unwrap();
        assert_eq!(serde_json::to_value(body).unwrap(), refusal(code, "what was wrong", Some("what to do")));
        assert_eq!((said.code, said.out.as_str()), (exit, ""));
    }
}

#[test]
fn an_agent_that_is_away_is_5_and_says_where_it_was_looked_for() {
    let fake = Fake::new();
    let nowhere = fake.dir().join("nowhere");
    let said = run(&fake, &["ls", "--socket", nowhere.to_str().unwrap()]);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.err.contains(nowhere.to_str().unwrap()) && said.err.contains("--socket"), "{said:?}");
    // A socket that nobody listens on any more.
    let left = fake.dir().join("left");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    assert_eq!(run(&fake, &["ls", "--socket", left.to_str().unwrap()]).code, 5);
}

#[test]
fn a_socket_that_is_closed_to_the_caller_is_6() {
    if !nix::unistd::Uid::effective().is_root() {
        let required = std::env::var_os("YUN_REQUIRE_ROOT").is_some_and(|value| value == "1");
        assert!(!required, "YUN_REQUIRE_ROOT is set, and this is not root");
        eprintln!("skipped: only root can be someone else; no closed socket was tried");
        return;
    }
    let fake = Fake::new();
    std::fs::set_permissions(fake.dir(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(fake.socket(), PermissionsExt::from_mode(0o660)).unwrap();
    // Where someone else may execute it.
    let copy = fake.dir().join("yun");
    std::fs::copy(env!("CARGO_BIN_EXE_yun"), &copy).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy).arg("ls");
    let output = command.env("YUN_SOCKET", fake.socket()).env_remove("YUN_TENANT").output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6), "{err}");
    assert!(err.contains("yun-admin"), "{err}");
}

#[test]
fn an_agent_that_is_silent_is_a_time_out() {
    let fake = Fake::new();
    fake.on("GET /v1/host", |_| Reply::Silence);
    let said = run(&fake, &["host", "show", "--request-timeout", "1s"]);
    assert_eq!(said.code, 124, "{said:?}");
}

#[test]
fn an_agent_that_breaks_off_or_talks_nonsense_is_1() {
    let fake = Fake::new();
    fake.on("GET /v1/host", |_| Reply::Hangup);
    assert_eq!(run(&fake, &["host", "show"]).code, 1);
    fake.on("GET /v1/host", |_| Reply::Text(200, "<html>".to_owned()));
    let said = run(&fake, &["host", "show"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("GET /v1/host is not understood"), "{said:?}");
}

#[test]
fn a_wrong_command_line_is_2_also_in_json() {
    let fake = Fake::new();
    for wrong in [
        &["frobnicate"][..],
        &["show"],
        &["show", "A/b"],
        &["show", "web"],
        &["run", "a/b"],
        &["ls", "--state", "x"],
    ] {
        let said = run(&fake, wrong);
        assert_eq!(said.code, 2, "{wrong:?} {said:?}");
        assert!(said.out.is_empty() && !said.err.is_empty(), "{said:?}");
        let json: Vec<&str> = wrong.iter().chain(&["--format", "json"]).copied().collect();
        let body: ErrorBody = serde_json::from_str(&run(&fake, &json).err).unwrap();
        assert_eq!(body.error.code, DenialCode::Invalid);
    }
    assert!(fake.lines().is_empty());
    assert_eq!(run(&fake, &["--help"]).code, 0);
    assert_eq!(run(&fake, &["--version"]).code, 0);
}

#[test]
fn without_a_terminal_nothing_is_destroyed_that_was_not_confirmed() {
    let fake = Fake::new();
    fake.json("DELETE /v1/tenants/acme/vms/web", 202, operation("vm_delete", "succeeded"));
    for verb in [
        &["rm", "acme/web"][..],
        &["kill", "acme/web"],
        &["reset", "acme/web"],
        &["gc"],
        &["host", "drain"],
        &["host", "shutdown"],
        &["volume", "rm", "acme/web"],
        &["tenant", "rm", "acme"],
    ] {
        let said = run(&fake, verb);
        assert_eq!(said.code, 2, "{verb:?} {said:?}");
        assert!(said.err.contains("--yes"), "{said:?}");
    }
    let said = run(&fake, &["rm", "acme/web", "--dry-run"]);
    assert_eq!((said.code, said.err.as_str()), (0, "yun: would remove VM acme/web\n"));
    assert!(fake.lines().is_empty(), "{:?}", fake.lines());
    let said = run(&fake, &["rm", "acme/web", "--yes"]);
    assert_eq!((said.code, said.out.as_str()), (0, "removal of VM acme/web: done\n"));
}

#[test]
fn gc_without_confirmation_lists_only() {
    let fake = Fake::new();
    let report =
        json!({"leftovers": [{"kind": "tap", "name": "yt9", "reason": "no VM has it", "removed": false}]});
    fake.json("POST /v1/gc", 200, report);
    let said = run(&fake, &["gc", "--dry-run"]);
    assert_eq!(said.out, "KIND\tNAME\tRESULT\tREASON\ntap\tyt9\tleft\tno VM has it\n");
    assert_eq!(fake.body("POST /v1/gc"), json!({"dry_run": true}));
}

#[test]
fn one_vm_that_fails_does_not_keep_the_others_from_it() {
    let fake = Fake::new();
    fake.json("POST /v1/tenants/acme/vms/a/actions", 409, refusal("state", "it runs", None));
    fake.json("POST /v1/tenants/acme/vms/b/actions", 202, operation("vm_start", "succeeded"));
    let said = run(&fake, &["start", "acme/a", "acme/b"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert_eq!(fake.lines().len(), 2);
}

#[test]
fn create_refuses_what_exists_and_the_agent_is_told_so() {
    let fake = Fake::new();
    fake.json("PUT /v1/tenants/acme/vms/web", 200, vm("web", "running"));
    let said = run(&fake, &["create", "acme/web", "--image", "debian"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert_eq!(fake.body("PUT /v1/tenants/acme/vms/web")["generation"], 1);
    fake.json("PUT /v1/tenants/acme/vms/web", 409, refusal("stale_generation", "no", None));
    let said = run(&fake, &["create", "acme/web", "--image", "debian"]);
    assert!(said.code == 4 && said.err.contains("[exists]"), "{said:?}");
    fake.json("PUT /v1/tenants/acme/vms/web", 201, vm("web", "stopped"));
    let said = run(&fake, &["create", "acme/web", "--image", "debian"]);
    assert_eq!((said.code, said.out.as_str()), (0, "acme/web is stopped\n"));
}

#[test]
fn whoever_has_read_enough_may_close_the_pipe() {
    let fake = Fake::new();
    let many: Vec<_> = (0..20_000).map(|n| vm(&format!("v{n}"), "running")).collect();
    fake.json("GET /v1/vms", 200, json!(many));
    let mut child = yun(&fake, &["ls"]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    drop(out);
    let said = super::ended(child);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
}

#[test]
fn wait_ends_with_the_state_or_with_124_or_with_what_makes_it_vain() {
    let fake = Fake::new();
    let mut looks = 0;
    fake.on("GET /v1/tenants/acme/vms/web", move |_| {
        looks += 1;
        Reply::Json(200, vm("web", if looks < 3 { "starting" } else { "running" }))
    });
    let line = ["wait", "acme/web", "--for", "state=running", "--timeout", "30s"];
    assert_eq!(run(&fake, &line).code, 0);
    assert_eq!(fake.lines().len(), 3);
    let said = run(&fake, &["wait", "acme/web", "--for", "state=deleted", "--timeout", "1s"]);
    assert_eq!(said.code, 124, "{said:?}");
    fake.json("GET /v1/tenants/acme/vms/web", 200, vm("web", "failed"));
    assert_eq!(run(&fake, &line).code, 1);
    fake.json("GET /v1/tenants/acme/vms/web", 404, refusal("not_found", "no", None));
    assert_eq!(run(&fake, &line).code, 3);
    assert_eq!(run(&fake, &["wait", "acme/web", "--for", "state=deleted"]).code, 0);
}
