//! What files may say, and how changes are shown.

use proptest::prelude::*;
use serde_json::json;

use super::*;

#[test]
fn a_file_has_documents_of_all_kinds_in_yaml_or_json() {
    let text = "
kind: tenant
name: acme
spec: {quota: {vms: 3}}
---
---
name: web
tenant: acme
spec:
  image: debian
  memory_mib: 512
---
{\"kind\": \"volume\", \"name\": \"data\", \"spec\": {\"size_mib\": 64}}
---
kind: image
spec: {name: debian, kernel: /boot/vmlinuz}
---
kind: subnet
name: lan
spec: {ipv4: 10.0.0.0/24}
";
    let manifests = parse(text).unwrap();
    let kinds: Vec<_> = manifests.iter().map(Manifest::kind).collect();
    assert_eq!(kinds, ["tenant", "vm", "volume", "image", "subnet"]);
    let Manifest::Vm { tenant: Some(tenant), spec, .. } = &manifests[1] else { panic!("{manifests:?}") };
    assert_eq!((tenant.as_str(), spec.memory_mib, spec.vcpus), ("acme", 512, 1));
    let mut sorted = manifests;
    sorted.sort_by_key(Manifest::order);
    let kinds: Vec<_> = sorted.iter().map(Manifest::kind).collect();
    assert_eq!(kinds, ["tenant", "subnet", "image", "volume", "vm"]);
}

#[test]
fn what_is_wrong_in_a_file_is_told_with_its_place() {
    for (text, told) in [
        ("", "describes nothing"),
        ("---\n---\n", "describes nothing"),
        ("- 1", "document 1: it is no mapping"),
        (
            "name: a\nspec: {image: x}\n---\nname: b\nspec: {image: x, memory: 1}",
            "document 2: unknown field `memory`",
        ),
        ("name: A\nspec: {image: x}", "is no name"),
        ("kind: cat\nname: a", "unknown variant `cat`"),
        ("name: a", "missing field `spec`"),
        ("name: [", "document 1"),
    ] {
        let (message, hint) = parse(text).unwrap_err();
        assert!(message.contains(told), "{text}: {message}");
        assert!(hint.contains("--help"));
    }
}

#[test]
fn what_is_printed_of_a_vm_can_be_applied() {
    let manifest =
        parse("name: web\ntenant: acme\nspec: {image: debian, volumes: [{volume: data}]}").unwrap();
    let text = serde_norway::to_string(&manifest[0]).unwrap();
    assert_eq!(parse(&text).unwrap(), manifest, "{text}");
}

#[test]
fn each_field_that_differs_is_named() {
    let old = json!({"a": 1, "b": {"c": "x", "d": [1]}, "gone": true});
    let new = json!({"a": 1, "b": {"c": "y", "d": [1, 2]}, "new": null, "more": 2});
    assert_eq!(
        differences(&old, &new),
        ["b.c: x -> y", "b.d: [1] -> [1,2]", "gone: true -> none", "more: none -> 2"]
    );
    assert!(differences(&old, &old).is_empty());
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(text in "\\PC{0,80}|[-:{}\\[\\]&*a-z \n]{0,80}") {
        let _ = parse(&text);
    }
}
