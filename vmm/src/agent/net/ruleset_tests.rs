use super::*;

fn subnet(tenant: &str, net: &str) -> Subnet {
    Subnet::new(tenant, net.parse().unwrap()).unwrap()
}

#[test]
fn pairs_are_within_a_tenant_and_never_across() {
    let script = subnets(&[
        subnet("a", "10.1.0.0/24"),
        subnet("b", "10.2.0.0/24"),
        subnet("a", "10.3.0.0/24"),
        subnet("a", "fd00:1::/64"),
    ]);
    let line = |start: &str| script.lines().find(|line| line.starts_with(start)).unwrap();
    assert_eq!(
        line("add element inet yun pairs4"),
        "add element inet yun pairs4 { 10.1.0.0/24 . 10.1.0.0/24, 10.1.0.0/24 . 10.3.0.0/24, \
         10.3.0.0/24 . 10.1.0.0/24, 10.3.0.0/24 . 10.3.0.0/24, 10.2.0.0/24 . 10.2.0.0/24 }"
    );
    assert_eq!(
        line("add element inet yun pairs6"),
        "add element inet yun pairs6 { fd00:1::/64 . fd00:1::/64 }"
    );
    assert_eq!(script.matches("flush set").count(), 5);
}

#[test]
fn a_tenant_that_goes_takes_its_prefixes_along() {
    let script = subnets(&[]);
    assert_eq!(script.matches("flush set").count(), 5);
    assert!(!script.contains("add element"));
}

#[test]
fn a_list_takes_the_place_of_the_one_before_in_both_families() {
    let nets = ["203.0.113.0/25", "203.0.113.128/25", "2001:db8::/32"].map(|net| net.parse().unwrap());
    let script = list(&PrefixList::new(ListKind::Domestic, 1, nets.to_vec()).unwrap());
    let lines: Vec<&str> = script.lines().collect();
    assert_eq!(
        lines,
        [
            "flush set inet yun domestic4",
            "add element inet yun domestic4 { 203.0.113.0/24 }",
            "flush set inet yun domestic6",
            "add element inet yun domestic6 { 2001:db8::/32 }",
        ]
    );
}

#[test]
fn every_chain_for_guests_ends_in_a_verdict_and_the_base_deletes_no_element() {
    let script = base(Base::default());
    for name in [
        "guard",
        "input",
        "output",
        "from_guest",
        "to_guest",
        "own_tenant",
        "out_isolated",
        "in_international",
    ] {
        let rule = format!("add rule inet yun {name} ");
        assert_eq!(script.lines().rfind(|line| line.starts_with(&rule)).unwrap(), format!("{rule}drop"));
    }
    for verb in ["flush set", "flush map", "delete element", "delete table", "flush table", "flush ruleset"] {
        assert!(!script.contains(verb), "{verb}");
    }
}
