use super::*;

fn subnet(tenant: &str, net: &str) -> Subnet {
    Subnet::new(tenant, net.parse().unwrap()).unwrap()
}

#[test]
fn names_and_addresses_follow_from_the_id() {
    let id = InterfaceId::new(0x12_3456_789a).unwrap();
    assert_eq!(id.tap(), "yun123456789a");
    assert_eq!(InterfaceId::of_tap("yun123456789a"), Some(id));
    assert_eq!(id.mac().to_string(), "02:12:34:56:78:9a");
    assert_eq!(id.mac().link_local().to_string(), "fe80::12:34ff:fe56:789a");
    assert!(InterfaceId::new((1 << 40) - 1).unwrap().tap().len() <= 15);
}

#[test]
fn an_id_is_ten_small_hexadecimal_digits_and_nothing_else() {
    for text in ["", "123456789", "0123456789a", "012345678G", "012345678A", "+123456789", "é23456789"] {
        assert_eq!(text.parse::<InterfaceId>(), Err(ModelError::Id(text.to_owned())));
    }
    assert!(InterfaceId::new(1 << 40).is_err());
    assert_eq!(InterfaceId::of_tap("yunbr0"), None);
    assert_eq!(InterfaceId::of_tap("tap123456789a"), None);
}

#[test]
fn a_subnet_without_room_or_of_a_reserved_range_is_refused() {
    let refused = |net: &str| Subnet::new("t", net.parse().unwrap()).unwrap_err();
    assert!(matches!(refused("10.0.0.1/24"), ModelError::HostBits { .. }));
    for net in ["10.0.0.0/31", "0.0.0.0/0", "fd00::/121", "fd00::/16"] {
        assert!(matches!(refused(net), ModelError::PrefixLength { .. }), "{net}");
    }
    for net in
        ["169.254.0.0/16", "127.0.0.0/8", "224.0.0.0/24", "100.100.100.0/24", "fe80::/64", "fd00:ec2::/64"]
    {
        assert!(matches!(refused(net), ModelError::Reserved { .. }), "{net}");
    }
}

#[test]
fn subnets_stay_apart_from_other_tenants_and_from_the_host() {
    let others = [subnet("a", "10.1.0.0/16"), subnet("a", "fd00:1::/48")];
    let host = ["192.168.7.3/24".parse().unwrap()];
    let new = |net: &str| subnet("b", net).check_apart(&others, &host);
    assert_eq!(new("10.2.0.0/16"), Ok(()));
    assert!(new("10.1.3.0/24").unwrap_err().to_string().contains("of tenant `a`"));
    assert!(new("10.0.0.0/8").is_err(), "a wider one overlaps too");
    assert!(new("fd00:1:0:7::/64").is_err());
    assert!(new("192.168.0.0/16").unwrap_err().to_string().contains("of the host"));
    assert_eq!(others[0].check_apart(&others, &host), Ok(()), "it does not overlap itself");
}

#[test]
fn an_interface_has_addresses_of_its_own_tenant_only() {
    let subnets = [subnet("a", "10.1.0.0/24"), subnet("b", "10.2.0.0/24"), subnet("a", "fd00:1::/64")];
    let id = InterfaceId::new(1).unwrap();
    let new = |ipv4: Option<&str>, ipv6: Option<&str>| {
        let (ipv4, ipv6) = (ipv4.map(|a| a.parse().unwrap()), ipv6.map(|a| a.parse().unwrap()));
        Interface::new(id, "a", ipv4, ipv6, EgressClass::Isolated, &subnets)
    };
    let both = new(Some("10.1.0.2"), Some("fd00:1::2")).unwrap();
    assert_eq!(both.ipv4().unwrap().to_string(), "10.1.0.2/24");
    assert_eq!(both.ipv6().unwrap().to_string(), "fd00:1::2/64");
    assert_eq!(new(None, None), Err(ModelError::NoAddress(id)));
    for foreign in ["10.2.0.2", "10.3.0.2", "10.1.0.0", "10.1.0.1", "10.1.0.255"] {
        assert!(matches!(new(Some(foreign), None), Err(ModelError::Foreign { .. })), "{foreign}");
    }
}

#[test]
fn an_interface_survives_json_and_unknown_fields_do_not() {
    let subnets = [subnet("a", "10.1.0.0/24")];
    let address = Some("10.1.0.2".parse().unwrap());
    let id = InterfaceId::new(7).unwrap();
    let interface = Interface::new(id, "a", address, None, EgressClass::Domestic, &subnets).unwrap();
    let json = serde_json::to_value(&interface).unwrap();
    assert_eq!(json["id"], "0000000007");
    assert_eq!(json["class"], "domestic");
    assert_eq!(serde_json::from_value::<Interface>(json.clone()).unwrap(), interface);
    let mut more = json;
    more["bridge"] = "br0".into();
    assert!(serde_json::from_value::<Interface>(more).is_err());
}
