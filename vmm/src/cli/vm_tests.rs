//! What is explained.

use serde_json::json;

use super::*;

fn vm(power: &str, state: &str, reason: &str) -> Vm {
    serde_json::from_value(json!({
        "tenant": "acme", "name": "web", "id": "vm-1", "generation": 3, "created_at": "t",
        "spec": {"image": "debian", "power": power},
        "status": {
            "state": state, "reason": reason, "since": "t", "observed_generation": 3, "incarnation": 1,
            "restarts": 2, "interfaces": []
        }
    }))
    .unwrap()
}

fn told(vm: &Vm, label: &str) -> Option<String> {
    why(vm).into_iter().find(|(name, _)| *name == label).map(|(_, text)| text)
}

#[test]
fn a_vm_as_wanted_needs_no_reason() {
    assert_eq!(told(&vm("running", "running", ""), "why").unwrap(), "it is as it is wanted");
    assert_eq!(told(&vm("running", "running", ""), "try"), None);
}

#[test]
fn every_reason_is_told() {
    let mut odd = vm("running", "failed", "no memory");
    odd.status.observed_generation = 2;
    odd.operation = Some("op-1".to_owned());
    let why = told(&odd, "why").unwrap();
    assert!(why.contains("no memory") && why.contains("generation 2") && why.contains("op-1"), "{why}");
    assert!(told(&odd, "try").unwrap().contains("yun logs acme/web"));
    assert_eq!(told(&vm("running", "stopped", ""), "why").unwrap(), "the agent has not said yet");
}
