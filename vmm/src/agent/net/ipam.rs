//! Which address a new interface gets: pure, from a subnet and what is taken of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A subnet has no address left.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("subnet {net} is exhausted: all {usable} addresses that it has for guests are taken")]
pub struct Exhausted {
    /// The subnet.
    pub net: IpNet,
    /// How many it has for guests.
    pub usable: u128,
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// First and last address that a subnet gives to guests.
fn bounds(net: &IpNet) -> Option<(u128, u128)> {
    let (first, last) = (bits(net.network()), bits(net.broadcast()));
    // The network (in IPv6: the routers' anycast address, RFC 4291 section 2.6.1) and the gateway after it.
    let first = first.checked_add(2)?;
    // In IPv4, the broadcast address.
    let last = if matches!(net, IpNet::V4(_)) { last.checked_sub(1)? } else { last };
    (first <= last).then_some((first, last))
}

/// The address of a subnet's gateway, for guests that must have one inside it.
#[must_use]
pub fn gateway(net: &IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().saturating_add(1)).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().saturating_add(1)).into(),
    }
}

/// Whether a subnet gives `address` to guests: neither its network, nor its gateway, nor its broadcast address.
#[must_use]
pub fn gives(net: &IpNet, address: IpAddr) -> bool {
    let same_family = matches!(net, IpNet::V4(_)) == address.is_ipv4();
    same_family && bounds(net).is_some_and(|(first, last)| (first..=last).contains(&bits(address)))
}

/// The next address of `net` that nobody has taken, seen from `after`, and from the beginning if there is none above.
///
/// With `after` the address that was given last, one that became free is given again as late as can be: what is still under
/// way to its former holder has died by then.
///
/// # Errors
/// [`Exhausted`].
pub fn next_free(net: IpNet, taken: &BTreeSet<IpAddr>, after: Option<IpAddr>) -> Result<IpAddr, Exhausted> {
    let Some((first, last)) = bounds(&net) else { return Err(Exhausted { net, usable: 0 }) };
    let after = after.filter(|after| gives(&net, *after)).map(bits);
    let start = after.and_then(|after| after.checked_add(1)).filter(|next| *next <= last).unwrap_or(first);
    let taken: BTreeSet<u128> =
        taken.iter().filter(|address| gives(&net, **address)).map(|address| bits(*address)).collect();
    // Each step but the last meets one that is taken, so there are at most as many.
    let free = |from: u128, to: u128| (from..=to).find(|address| !taken.contains(address));
    let found = free(start, last).or_else(|| free(first, start));
    let found = found.ok_or(Exhausted { net, usable: (last - first).saturating_add(1) })?;
    let exhausted = |_| Exhausted { net, usable: 0 };
    Ok(match net {
        IpNet::V4(_) => Ipv4Addr::from_bits(u32::try_from(found).map_err(exhausted)?).into(),
        IpNet::V6(_) => Ipv6Addr::from_bits(found).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn network_gateway_and_broadcast_are_not_given() {
        let mut taken = BTreeSet::new();
        let mut given = Vec::new();
        while let Ok(address) = next_free(net("10.0.0.0/29"), &taken, None) {
            taken.insert(address);
            given.push(address.to_string());
        }
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        let error = next_free(net("10.0.0.0/29"), &taken, None).unwrap_err();
        assert_eq!(error, Exhausted { net: net("10.0.0.0/29"), usable: 5 });
        assert_eq!(gateway(&net("10.0.0.0/29")).to_string(), "10.0.0.1");
    }

    #[test]
    fn an_address_that_became_free_is_given_last() {
        let taken = ips(&["10.0.0.3", "10.0.0.5"]);
        let next =
            |after: &str| next_free(net("10.0.0.0/29"), &taken, after.parse().ok()).unwrap().to_string();
        assert_eq!(next("10.0.0.3"), "10.0.0.4");
        assert_eq!(next("10.0.0.4"), "10.0.0.6");
        assert_eq!(next("10.0.0.6"), "10.0.0.2");
        assert_eq!(next("192.168.0.1"), "10.0.0.2", "a stranger is no place to start from");
    }

    #[test]
    fn the_address_given_last_is_found_again_if_no_other_is_free() {
        let taken = ips(&["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        let next = next_free(net("10.0.0.0/29"), &taken, "10.0.0.2".parse().ok());
        assert_eq!(next.unwrap().to_string(), "10.0.0.2");
    }

    #[test]
    fn ipv6_is_as_quick_as_ipv4_and_keeps_its_last_address() {
        let taken = ips(&["fd00::2"]);
        assert_eq!(next_free(net("fd00::/64"), &taken, None).unwrap().to_string(), "fd00::3");
        assert!(gives(&net("fd00::/120"), "fd00::ff".parse().unwrap()));
        assert!(!gives(&net("fd00::/120"), "fd00::".parse().unwrap()));
        assert!(!gives(&net("fd00::/120"), "10.0.0.5".parse().unwrap()));
    }

    #[test]
    fn a_prefix_without_room_is_exhausted_from_the_beginning() {
        for small in ["10.0.0.0/31", "10.0.0.0/32", "255.255.255.255/32", "ffff::ffff/128"] {
            assert!(next_free(net(small), &BTreeSet::new(), None).is_err(), "{small}");
        }
    }
}
