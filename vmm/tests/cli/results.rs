//! What is printed, in which format.

use serde_json::json;
use vmm::agent::model::{Vm, VmStats};

use super::fake::{Fake, Reply, operation, vm};
use super::run;

fn two() -> Fake {
    let fake = Fake::new();
    fake.json("GET /v1/vms", 200, json!([vm("web", "running"), vm("db", "stopped")]));
    fake.json("GET /v1/tenants/acme/vms", 200, json!([vm("web", "running")]));
    fake.json("GET /v1/tenants/acme/vms/web", 200, vm("web", "running"));
    fake
}

#[test]
fn in_a_pipe_a_list_has_tabs_and_in_wide_more_of_them() {
    let fake = two();
    let said = run(&fake, &["ls"]);
    assert_eq!(said.code, 0, "{said:?}");
    let mut lines = said.out.lines();
    assert_eq!(lines.next().unwrap(), "VM\tSTATE\tWANTED\tVCPUS\tMEMORY\tIMAGE\tADDRESS\tSINCE");
    assert_eq!(
        lines.next().unwrap(),
        "acme/web\trunning\trunning\t2\t1.50 GiB\tdebian\t10.0.0.2\t2026-11-24T08:00:00Z"
    );
    assert!(lines.next().unwrap().starts_with("acme/db\tstopped\t"));
    assert!(run(&fake, &["ls", "--format", "wide"]).out.contains("vm-0123456789abcdef"));
    assert!(!run(&fake, &["ls", "--no-headers"]).out.contains("STATE"));
}

#[test]
fn json_and_yaml_are_the_apis() {
    let fake = two();
    let expected = json!([vm("web", "running"), vm("db", "stopped")]);
    let said = run(&fake, &["ls", "--format", "json"]);
    assert_eq!(said.json(), expected);
    serde_json::from_str::<Vec<Vm>>(&said.out).unwrap();
    let yaml = run(&fake, &["--format", "yaml", "ls"]);
    assert_eq!(serde_norway::from_str::<serde_json::Value>(&yaml.out).unwrap(), expected);
    assert_eq!(run(&fake, &["show", "acme/web", "--format", "json"]).json(), vm("web", "running"));
}

#[test]
fn names_can_be_given_back_to_yun() {
    let fake = two();
    assert_eq!(run(&fake, &["ls", "--format", "name"]).out, "acme/web\nacme/db\n");
    assert_eq!(run(&fake, &["ls", "--format", "name", "--state", "stopped"]).out, "acme/db\n");
    assert_eq!(run(&fake, &["ls", "--format", "name", "-t", "acme"]).out, "acme/web\n");
    assert_eq!(run(&fake, &["ls", "--format", "name", "-t", "acme", "-A"]).out, "acme/web\nacme/db\n");
}

#[test]
fn what_is_shown_of_one_is_labelled() {
    let fake = two();
    let said = run(&fake, &["show", "web", "--tenant", "acme"]);
    assert!(said.out.contains("memory\t1.50 GiB\n"), "{said:?}");
    assert!(said.out.contains("interface\teth0 02:00:00:00:00:01 10.0.0.2 isolated on yt0\n"), "{said:?}");
    let why = run(&fake, &["explain", "acme/web"]);
    assert!(why.out.contains("why\tit is as it is wanted\n"), "{why:?}");
}

#[test]
fn top_once_has_rates_for_people_and_counters_for_programs() {
    let fake = Fake::new();
    let mut vcpu_ns = 0_u64;
    fake.on("GET /v1/stats", move |_| {
        vcpu_ns += 500_000_000_000;
        let one = json!({
            "tenant": "acme", "name": "web", "state": "running", "vcpus": 2, "memory_mib": 128, "vcpu_ns": vcpu_ns,
            "rss_kib": 2048, "disk_read_bytes": 1, "disk_written_bytes": 2, "disk_operations": 3, "net_rx_bytes": 4,
            "net_tx_bytes": 5, "uptime_seconds": 60
        });
        serde_json::from_value::<VmStats>(one.clone()).unwrap();
        Reply::Json(200, json!([one]))
    });
    let said = run(&fake, &["top", "--once", "--format", "json"]);
    assert_eq!(said.json()[0]["vcpu_ns"], 500_000_000_000_u64);
    let said = run(&fake, &["top", "--once"]);
    let row: Vec<&str> = said.out.lines().nth(1).unwrap().split('\t').collect();
    assert!(row[2].parse::<f64>().unwrap() > 0.0, "{said:?}");
    assert_eq!((row[0], row[4]), ("acme/web", "2.00 MiB"));
    assert_eq!(run(&fake, &["top"]).code, 2);
}

#[test]
fn things_of_tenants_are_asked_for_where_they_are() {
    let fake = Fake::new();
    let volume = json!({
        "name": "data", "tenant": "acme", "id": "v-1", "size_mib": 1024, "allocated_bytes": 4096, "attached_to": ["web"],
        "state": "ready", "created_at": "t"
    });
    let subnet = json!({"name": "lan", "tenant": "acme", "ipv4": "10.0.0.0/24", "interfaces": 1});
    fake.json("GET /v1/tenants", 200, json!([]));
    fake.json("GET /v1/tenants/acme/volumes", 200, json!([volume]));
    fake.json("PUT /v1/tenants/acme/volumes/copy", 202, operation("volume_create", "succeeded"));
    fake.json("PATCH /v1/tenants/acme/volumes/data", 202, operation("volume_resize", "succeeded"));
    fake.json("PUT /v1/tenants/acme/subnets/lan", 200, subnet);
    fake.json("POST /v1/images", 202, operation("image_import", "succeeded"));
    fake.json("DELETE /v1/images/sha256:ab%2Fc", 204, json!(null));
    fake.json("PUT /v1/tenants/acme/vms/web/interfaces/eth0/class", 200, vm("web", "running"));

    assert!(
        run(&fake, &["-t", "acme", "volume", "ls"]).out.contains("acme/data\tready\t1.00 GiB\t4.00 KiB\tweb")
    );
    assert_eq!(run(&fake, &["volume", "ls", "--format", "name"]).out, "");
    assert_eq!(run(&fake, &["volume", "copy", "acme/data", "copy", "--size", "2G"]).code, 0);
    assert_eq!(
        fake.body("PUT /v1/tenants/acme/volumes/copy"),
        json!({"size_mib": 2048, "from": {"volume": "data"}, "preallocate": false})
    );
    assert_eq!(run(&fake, &["volume", "resize", "acme/data", "4G"]).code, 0);
    assert_eq!(fake.body("PATCH /v1/tenants/acme/volumes/data"), json!({"size_mib": 4096}));
    assert_eq!(run(&fake, &["net", "create", "acme/lan", "--ipv4", "10.0.0.0/24"]).code, 0);
    assert_eq!(fake.body("PUT /v1/tenants/acme/subnets/lan"), json!({"ipv4": "10.0.0.0/24"}));
    assert_eq!(run(&fake, &["image", "import", "debian", "--kernel", "/k", "--ip-arg"]).code, 0);
    assert_eq!(
        fake.body("POST /v1/images"),
        json!({"name": "debian", "kernel": "/k", "kernel_args": "", "wants_ip_arg": true})
    );
    assert_eq!(run(&fake, &["image", "rm", "sha256:ab/c", "--yes"]).code, 0);
    assert_eq!(run(&fake, &["net", "class", "acme/web", "eth0", "domestic"]).code, 0);
    assert_eq!(fake.body("PUT /v1/tenants/acme/vms/web/interfaces/eth0/class"), json!({"class": "domestic"}));
}

#[test]
fn grants_and_quotas_change_what_they_name_and_nothing_else() {
    let fake = Fake::new();
    let tenant = json!({
        "name": "acme", "quota": {"vms": 3, "vcpus": 8}, "access": [{"uid": 7, "role": "read"}], "egress": "isolated", "created_at": "t",
        "used": {"vms": 1, "vcpus": 2, "memory_mib": 3, "disk_mib": 4, "interfaces": 5}
    });
    fake.json("GET /v1/tenants/acme", 200, tenant.clone());
    fake.json("PUT /v1/tenants/acme", 200, tenant);
    assert_eq!(run(&fake, &["tenant", "quota", "acme", "--vms", "none", "--memory", "1G"]).code, 0);
    let line = "PUT /v1/tenants/acme";
    assert_eq!(
        fake.body(line),
        json!({"quota": {"vcpus": 8, "memory_mib": 1024}, "access": [{"uid": 7, "role": "read"}], "egress": "isolated"})
    );
    let said = run(&fake, &["tenant", "quota", "acme"]);
    assert!(said.out.contains("vms\t1 of 3\n"), "{said:?}");
    assert_eq!(fake.lines().iter().filter(|asked| *asked == line).count(), 1);
    assert_eq!(run(&fake, &["tenant", "revoke", "acme", "--group", "7"]).code, 1);
}

#[test]
fn usage_is_a_table_of_some_columns_or_what_the_agent_sent() {
    let fake = Fake::new();
    let csv = "BilledCost,ConsumedQuantity,ConsumedUnit,SubAccountId\n0,12,vcpu-ns,acme\n";
    fake.on("GET /v1/usage", move |asked| {
        assert!(asked.line.contains("tenant=acme"), "{}", asked.line);
        if asked.line.contains("format=csv") {
            Reply::Text(200, csv.to_owned())
        } else {
            Reply::Json(200, json!([{"a": 1}]))
        }
    });
    let said = run(&fake, &["usage", "-t", "acme", "--from", "2026-01-01T00:00:00+00:00"]);
    assert_eq!(said.out, "SubAccountId\tConsumedQuantity\tConsumedUnit\nacme\t12\tvcpu-ns\n");
    assert!(fake.lines()[0].contains("from=2026-01-01T00:00:00%2B00:00"), "{:?}", fake.lines());
    assert_eq!(run(&fake, &["usage", "-t", "acme", "--csv"]).out, csv);
    assert_eq!(run(&fake, &["usage", "--vm", "acme/web", "--format", "json"]).json(), json!([{"a": 1}]));
}

#[test]
fn query_sends_what_it_is_given_and_prints_what_comes() {
    let fake = Fake::new();
    fake.json("GET /v1/host", 200, json!({"odd": 1}));
    fake.on("GET /metrics", |_| Reply::Text(200, "# EOF\n".to_owned()));
    fake.on("POST /v1/echo", |asked| Reply::Json(200, asked.body.clone()));
    assert_eq!(run(&fake, &["query", "get", "/host"]).out, "{\"odd\":1}\n");
    assert_eq!(run(&fake, &["query", "GET", "/metrics"]).out, "# EOF\n");
    let said = super::run_with(&fake, &["query", "POST", "/v1/echo", "--data", "-"], "{\"x\":[1]}");
    assert_eq!(said.out, "{\"x\":[1]}\n");
    assert_eq!(run(&fake, &["query", "GET", "/nothing"]).code, 3);
}

#[test]
fn doctor_ends_with_1_if_something_does_not_work() {
    let fake = Fake::new();
    let finding = |severity| json!({"findings": [{"check": "kvm", "severity": severity, "message": "m"}]});
    fake.json("GET /v1/doctor", 200, finding("warning"));
    assert_eq!(run(&fake, &["doctor"]).code, 0);
    fake.json("GET /v1/doctor", 200, finding("error"));
    let said = run(&fake, &["doctor"]);
    assert_eq!((said.code, said.out.as_str()), (1, "SEVERITY\tCHECK\tFOUND\tHINT\nerror\tkvm\tm\t-\n"));
}
