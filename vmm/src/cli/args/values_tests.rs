//! What is taken for a size, a time, a VM, a disk, an interface.

use proptest::prelude::*;

use super::*;
use crate::agent::model::{ActualState, DrainPolicy, Power, RestartPolicy, Role};

#[test]
fn sizes_are_whole_numbers_of_mib_or_have_a_unit() {
    for (text, mib) in [("512", 512), ("512M", 512), ("512MiB", 512), ("2G", 2048), ("1T", 1 << 20), ("0", 0)]
    {
        assert_eq!(text.parse(), Ok(Mib(mib)), "{text}");
    }
    for text in ["", "M", "1.5G", "-1", "1K", "1MB", "1 G", "1iB", "18446744073709551615G", "\u{661}"] {
        assert!(text.parse::<Mib>().is_err(), "{text}");
    }
}

#[test]
fn times_are_seconds_or_units_from_large_to_small() {
    for (text, seconds) in
        [("0", 0), ("90", 90), ("30s", 30), ("5m", 300), ("2h", 7200), ("1d2h3m4s", 93_784)]
    {
        assert_eq!(text.parse(), Ok(Seconds(seconds)), "{text}");
    }
    for text in
        ["", "h", "5m1h", "1h1h", "1.5h", "-1", "1h30", "1y", "99999999999999999999s", "213503982334602d"]
    {
        assert!(text.parse::<Seconds>().is_err(), "{text}");
    }
}

#[test]
fn which_one_may_name_its_tenant() {
    let which: Which = "acme/web".parse().unwrap();
    assert_eq!((which.tenant.unwrap().as_str(), which.name.as_str()), ("acme", "web"));
    assert_eq!("web".parse::<Which>().unwrap().tenant, None);
    for text in ["", "/", "a/", "/b", "a/b/c", "A/b", "../x"] {
        assert!(text.parse::<Which>().is_err(), "{text}");
    }
}

#[test]
fn disks_and_interfaces_are_written_shortly() {
    let Disk(disk) = "data:ro:root".parse().unwrap();
    assert!(disk.read_only && disk.root && disk.volume.as_str() == "data");
    assert!("data:rw".parse::<Disk>().unwrap_err().to_string().contains("[:ro][:root]"));

    let net: Net = "lan:domestic,ipv4=10.0.0.5,name=front".parse().unwrap();
    let spec = net.at(3).unwrap();
    assert_eq!((spec.name.as_str(), spec.class), ("front", EgressClass::Domestic));
    assert_eq!(spec.ipv4.unwrap().to_string(), "10.0.0.5");
    let plain = "lan".parse::<Net>().unwrap().at(1).unwrap();
    assert_eq!((plain.name.as_str(), plain.class), ("eth1", EgressClass::Isolated));
    for text in ["", "lan:", "lan:abroad", "lan,mac=1", "lan,ipv4=fd00::1", "lan,ipv4"] {
        assert!(text.parse::<Net>().is_err(), "{text}");
    }
}

#[test]
fn limits_can_be_taken_away() {
    assert_eq!("none".parse(), Ok(Limit(None)));
    assert_eq!("3".parse(), Ok(Limit(Some(3))));
    assert_eq!("4G".parse(), Ok(MibLimit(Some(4096))));
    assert!("some".parse::<Limit>().is_err() && "some".parse::<MibLimit>().is_err());
}

#[test]
fn the_words_on_the_command_line_are_those_of_the_api() {
    fn all<T: DeserializeOwned>(words: &[&str]) {
        for word in words {
            assert!(serde_json::from_value::<T>((*word).into()).is_ok(), "{word}");
        }
    }
    all::<Power>(POWERS);
    all::<RestartPolicy>(RESTARTS);
    all::<DrainPolicy>(DRAINS);
    all::<EgressClass>(CLASSES);
    all::<Role>(ROLES);
    all::<ActualState>(STATES);
}

proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC{0,24}|[0-9smhdMGTiB:/,=a-z]{0,24}") {
        let _ = (text.parse::<Mib>(), text.parse::<Seconds>(), text.parse::<Which>());
        let _ = (text.parse::<Disk>(), text.parse::<Net>().map(|net| net.at(0)), text.parse::<Limit>());
    }
}
