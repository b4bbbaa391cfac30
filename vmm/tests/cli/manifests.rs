//! Files that say what is to be.

use serde_json::json;

use super::fake::{Fake, operation, refusal, vm};
use super::{run, run_with};

const FILE: &str = "
name: web
tenant: acme
spec: {image: debian, vcpus: 4, memory_mib: 1536}
---
kind: volume
tenant: acme
name: data
spec: {size_mib: 64}
---
kind: tenant
name: acme
spec: {quota: {vms: 3}}
";

#[test]
fn what_a_file_describes_is_made_in_the_order_it_is_needed() {
    let fake = Fake::new();
    let tenant = json!({
        "name": "acme", "quota": {"vms": 3}, "access": [], "egress": "isolated", "created_at": "t",
        "used": {"vms": 0, "vcpus": 0, "memory_mib": 0, "disk_mib": 0, "interfaces": 0}
    });
    fake.json("PUT /v1/tenants/acme", 200, tenant);
    fake.json("PUT /v1/tenants/acme/volumes/data", 202, operation("volume_create", "succeeded"));
    let mut made = vm("web", "starting");
    made["operation"] = "op-1".into();
    fake.json("PUT /v1/tenants/acme/vms/web", 201, made);
    fake.json("GET /v1/operations/op-1", 200, operation("vm_reconcile", "succeeded"));
    let said = run_with(&fake, &["apply", "-f", "-", "--format", "json"], FILE);
    assert_eq!(said.code, 0, "{said:?}");
    let said = said.json();
    let results: Vec<_> = said.as_array().unwrap().iter().map(|one| (&one["kind"], &one["result"])).collect();
    let created = json!("created");
    assert_eq!(
        results,
        [(&json!("tenant"), &created), (&json!("volume"), &created), (&json!("vm"), &created)]
    );
    let puts: Vec<_> = fake.lines().into_iter().filter(|line| line.starts_with("PUT")).collect();
    assert_eq!(
        puts,
        ["PUT /v1/tenants/acme", "PUT /v1/tenants/acme/volumes/data", "PUT /v1/tenants/acme/vms/web"]
    );
    assert_eq!(fake.body("PUT /v1/tenants/acme/vms/web")["spec"]["vcpus"], 4);
}

#[test]
fn what_is_so_already_is_left_alone() {
    let fake = Fake::new();
    let there = vm("web", "running");
    fake.json("GET /v1/tenants/acme/vms/web", 200, there.clone());
    fake.json("PUT /v1/tenants/acme/vms/web", 200, there);
    let by_id = "name: web\nspec: {image: 'sha256:00', vcpus: 2, memory_mib: 1536}\n";
    let said = run_with(&fake, &["apply", "-t", "acme", "-f", "-"], by_id);
    assert_eq!(said.out, "KIND\tNAME\tRESULT\tCHANGES\nvm\tacme/web\tunchanged\t-\n");
    let asked = fake.lines().len();
    let file = "name: web\nspec: {image: debian, vcpus: 2, memory_mib: 1536}\n";
    let said = run_with(&fake, &["apply", "-t", "acme", "-f", "-"], file);
    assert_eq!(said.out, "KIND\tNAME\tRESULT\tCHANGES\nvm\tacme/web\tunchanged\t-\n");
    assert_eq!(fake.lines()[asked..], ["GET /v1/tenants/acme/vms/web"]);
}

#[test]
fn a_dry_run_shows_what_would_change_and_changes_nothing() {
    let fake = Fake::new();
    fake.json("GET /v1/tenants/acme/vms/web", 200, vm("web", "running"));
    let mut would = vm("web", "running");
    would["spec"]["memory_mib"] = 2048.into();
    fake.json("PUT /v1/tenants/acme/vms/web?dry_run=true", 200, would);
    let volume = json!({
        "name": "data", "tenant": "acme", "id": "v-1", "size_mib": 32, "allocated_bytes": 0, "attached_to": [],
        "state": "ready", "created_at": "t"
    });
    fake.json("GET /v1/tenants/acme/volumes/data", 200, volume);
    let said = run_with(&fake, &["apply", "-f", "-", "--dry-run"], FILE);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(
        said.out.lines().skip(1).collect::<Vec<_>>(),
        [
            "tenant\tacme\tcreated\t-",
            "volume\tacme/data\tchanged\tsize_mib: 32 -> 64",
            "vm\tacme/web\tchanged\tmemory_mib: 1536 -> 2048"
        ]
    );
    let changed = |line: &String| !line.starts_with("GET") && !line.ends_with("dry_run=true");
    assert!(!fake.lines().iter().any(changed), "{:?}", fake.lines());
}

#[test]
fn nothing_is_done_if_any_file_is_wrong_and_nothing_after_what_failed() {
    let fake = Fake::new();
    let said =
        run_with(&fake, &["apply", "-f", "-"], "name: a\ntenant: t\nspec: {image: x}\n---\nnonsense: 1\n");
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("document 2"), "{said:?}");
    assert!(fake.lines().is_empty());
    fake.json("PUT /v1/tenants/acme", 403, refusal("forbidden", "no", None));
    let said = run_with(&fake, &["apply", "-f", "-"], FILE);
    assert_eq!(said.code, 6);
    assert_eq!(fake.lines(), ["GET /v1/tenants/acme", "PUT /v1/tenants/acme"]);
}

#[test]
fn a_vm_can_be_made_again_from_what_is_shown_of_it() {
    let fake = Fake::new();
    fake.json("GET /v1/tenants/acme/vms/web", 200, vm("web", "running"));
    let manifest = run(&fake, &["show", "acme/web", "--manifest"]).out;
    let said = run_with(&fake, &["apply", "-f", "-"], &manifest);
    assert!(said.out.contains("unchanged"), "{manifest} {said:?}");
    fake.json("GET /v1/tenants/acme/vms/web", 404, refusal("not_found", "no", None));
    fake.json("PUT /v1/tenants/acme/vms/web", 201, vm("web", "running"));
    let said = run_with(&fake, &["apply", "-f", "-"], &manifest);
    assert!(said.out.contains("created"), "{said:?}");
    assert_eq!(fake.body("PUT /v1/tenants/acme/vms/web"), json!({"spec": vm("web", "running")["spec"]}));
}
