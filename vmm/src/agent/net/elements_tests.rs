use serde_json::json;

use super::super::model::Subnet;
use super::*;

fn interface(number: u64, class: EgressClass) -> Interface {
    let subnets = ["10.1.0.0/24", "fd00:1::/64"].map(|net| Subnet::new("a", net.parse().unwrap()).unwrap());
    let id = InterfaceId::new(number).unwrap();
    let (ipv4, ipv6) = ("10.1.0.2".parse().unwrap(), "fd00:1::2".parse().unwrap());
    Interface::new(id, "a", Some(ipv4), Some(ipv6), class, &subnets).unwrap()
}

#[test]
fn plugging_adds_what_the_guest_may_call_itself_its_class_and_its_counters() {
    let script = Parts::change(&Parts::default(), &Parts::of(&interface(5, EgressClass::Domestic)));
    for line in [
        "add element inet yun own4 { \"yun0000000005\" . 02:00:00:00:00:05 . 10.1.0.2 }",
        "add element arp yun own { \"yun0000000005\" . 02:00:00:00:00:05 . 02:00:00:00:00:05 . 10.1.0.2 }",
        "add element inet yun class_out { \"yun0000000005\" : jump out_domestic }",
        "add element inet yun class_in { \"yun0000000005\" : jump in_domestic }",
        "add counter inet yun yun0000000005_in_international",
        "add element inet yun count_in_international { \"yun0000000005\" : \"yun0000000005_in_international\" }",
    ] {
        assert!(script.lines().any(|l| l == line), "{line}\nis not in\n{script}");
    }
    let counter = script.find("add counter").unwrap();
    assert!(counter < script.find("add element").unwrap(), "counters are there before what names them");
    assert!(!script.contains("delete"));
}

#[test]
fn unplugging_takes_the_names_of_a_counter_away_before_the_counter() {
    let script = Parts::change(&Parts::of(&interface(5, EgressClass::Domestic)), &Parts::default());
    assert!(!script.contains("add "));
    assert_eq!(script.matches("delete counter").count(), 6);
    assert!(script.find("delete counter").unwrap() > script.rfind("delete element").unwrap());
}

#[test]
fn a_class_change_touches_two_elements() {
    let from = Parts::of(&interface(5, EgressClass::Domestic));
    let to = Parts::of(&interface(5, EgressClass::Isolated));
    let script = Parts::change(&from, &to);
    assert_eq!(script.lines().count(), 4, "{script}");
    assert_eq!(class_change(InterfaceId::new(5).unwrap(), EgressClass::Isolated).lines().count(), 4);
    assert_eq!(Parts::change(&to, &to), "");
}

#[test]
fn what_nft_lists_is_what_was_added() {
    let set = |name: &str, elem: Value| json!({"set": {"family": "inet", "table": "yun", "name": name, "elem": elem}});
    let map = |name: &str, elem: Value| json!({"map": {"family": "inet", "table": "yun", "name": name, "elem": elem}});
    let (tap, mac) = ("yun0000000005", "02:00:00:00:00:05");
    let mut objects = vec![
        set("own4", json!([{"concat": [tap, mac, "10.1.0.2"]}])),
        set(
            "own6",
            json!([{"concat": [tap, mac, "fd00:1:0::2"]}, {"concat": [tap, mac, "fe80::00ff:fe00:5"]}]),
        ),
        json!({"set": {"family": "arp", "table": "yun", "name": "own", "elem": [{"concat": [tap, mac, mac, "10.1.0.2"]}]}}),
        map("class_out", json!([[tap, {"jump": {"target": "out_domestic"}}]])),
        map("class_in", json!([[tap, {"jump": {"target": "in_domestic"}}]])),
        set("domestic4", json!(["10.1.0.2"])),
    ];
    for direction in ["out", "in"] {
        for class in EgressClass::ALL {
            let name = format!("{tap}_{direction}_{class}");
            objects.push(json!({"counter": {"family": "inet", "table": "yun", "name": name, "packets": 0}}));
            objects.push(map(&format!("count_{direction}_{class}"), json!([[tap, name]])));
        }
    }
    let parsed = Parts::parse(&[json!({"nftables": objects})]);
    let interface = interface(5, EgressClass::Domestic);
    assert_eq!(parsed, Parts::of(&interface));
    assert_eq!(parsed.ids(), BTreeSet::from([interface.id()]));
}

#[test]
fn whatever_nft_says_is_read_without_a_panic() {
    for value in
        [json!(null), json!({"nftables": 3}), json!({"nftables": [{"set": {"elem": [[], [[]], {}]}}]})]
    {
        assert_eq!(Parts::parse(std::slice::from_ref(&value)), Parts::default());
        assert!(parse_counters(&value).is_empty());
    }
}

#[test]
fn counters_are_read_by_interface_class_and_direction() {
    let counter = |name: &str, packets: u64, bytes: u64| json!({"counter": {"name": name, "packets": packets, "bytes": bytes}});
    let all = parse_counters(&json!({"nftables": [
        {"metainfo": {}},
        counter("yun0000000005_out_domestic", 3, 400),
        counter("yun0000000005_in_isolated", 1, 84),
        counter("somebody_out_domestic", 9, 9),
    ]}));
    let traffic = all[&InterfaceId::new(5).unwrap()];
    assert_eq!(traffic.domestic.sent, Count { packets: 3, bytes: 400 });
    assert_eq!(traffic.isolated.received, Count { packets: 1, bytes: 84 });
    assert_eq!((all.len(), traffic.international), (1, BothWays::default()));
}
