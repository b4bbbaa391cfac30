//! Ranges of addresses that are special whatever a list says.

use ipnet::IpNet;

/// Where no guest may ever send, and from where none is sent to: this network, loopback, link-local (with the metadata
/// service of most clouds), multicast, the future; metadata services elsewhere; IPv6 ranges that hide an IPv4 address.
const NEVER: [&str; 26] = [
    "0.0.0.0/8",
    "100.100.100.200/32",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "192.88.99.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2002::/16",
    "3ffe::/16",
    "5f00::/16",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// What is no one's on the Internet: reachable if the domestic list names it, not by being international.
const PRIVATE: [&str; 11] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "2001:db8::/32",
    "3fff::/20",
    "fc00::/7",
];

fn parsed(ranges: &'static [&'static str]) -> impl Iterator<Item = IpNet> {
    ranges.iter().map(|range| range.parse().expect("the constants above are prefixes; a test parses each"))
}

/// Never reachable.
pub(super) fn never() -> impl Iterator<Item = IpNet> {
    parsed(&NEVER)
}

/// Not international.
pub(super) fn private() -> impl Iterator<Item = IpNet> {
    parsed(&PRIVATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_are_prefixes_without_host_bits_and_metadata_services_are_among_them() {
        assert!(never().chain(private()).all(|net| net == net.trunc()));
        for address in ["169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"]
        {
            let address: std::net::IpAddr = address.parse().unwrap();
            assert!(never().any(|net| net.contains(&address)), "{address}");
        }
    }
}
