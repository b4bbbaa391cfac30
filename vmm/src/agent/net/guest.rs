//! What a guest is told of its network: cloud-init's `network-config`, and the kernel's `ip=`. Just strings.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::ipam;
use super::model::{GATEWAY4, GATEWAY6, Interface};

#[derive(Serialize)]
struct Config {
    version: u8,
    ethernets: BTreeMap<String, Ethernet>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Ethernet {
    r#match: Match,
    set_name: String,
    dhcp4: bool,
    dhcp6: bool,
    accept_ra: bool,
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nameservers: Option<Nameservers>,
}

#[derive(Serialize)]
struct Match {
    macaddress: String,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Route {
    to: String,
    via: String,
    on_link: bool,
}

#[derive(Serialize)]
struct Nameservers {
    addresses: Vec<IpAddr>,
}

/// The `network-config` (version 2) of a NoCloud disk: `eth0` is the first interface, and has the default routes.
///
/// A link has no neighbours but the gateway, so addresses are whole ones (/32, /128) and the gateway is on the link. The other
/// interfaces have a route to their own subnets.
///
/// # Errors
/// None that can come from an interface; what the YAML library says.
pub fn network_config(
    interfaces: &[Interface],
    nameservers: &[IpAddr],
) -> Result<String, serde_norway::Error> {
    let ethernets = interfaces.iter().enumerate().map(|(nth, interface)| {
        let nets = [interface.ipv4().map(IpNet::from), interface.ipv6().map(IpNet::from)];
        let nets: Vec<IpNet> = nets.into_iter().flatten().collect();
        let addresses = nets.iter().map(|net| format!("{}/{}", net.addr(), net.max_prefix_len())).collect();
        let route = |net: &IpNet| {
            let (all, via) = match net {
                IpNet::V4(_) => ("0.0.0.0/0", GATEWAY4.to_string()),
                IpNet::V6(_) => ("::/0", GATEWAY6.to_string()),
            };
            let to = if nth == 0 { all.to_owned() } else { net.trunc().to_string() };
            Route { to, via, on_link: true }
        };
        let servers = (nth == 0 && !nameservers.is_empty()).then(|| nameservers.to_vec());
        let ethernet = Ethernet {
            r#match: Match { macaddress: interface.id().mac().to_string() },
            set_name: format!("eth{nth}"),
            dhcp4: false,
            dhcp6: false,
            accept_ra: false,
            addresses,
            routes: nets.iter().map(route).collect(),
            nameservers: servers.map(|addresses| Nameservers { addresses }),
        };
        (format!("eth{nth}"), ethernet)
    });
    serde_norway::to_string(&Config { version: 2, ethernets: ethernets.collect() })
}

/// The kernel's `ip=` for `interface` as `device` (`eth0`); nothing without an IPv4 address, for the kernel knows no other.
///
/// The kernel takes no gateway outside the subnet, so the subnet's own is named: the host answers for it and for the
/// neighbours too.
#[must_use]
pub fn kernel_parameter(interface: &Interface, hostname: &str, device: &str) -> Option<String> {
    let net = interface.ipv4()?;
    // A colon or a space would begin something else.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let hostname = if hostname.chars().all(plain) { hostname } else { "" };
    let gateway = ipam::gateway(&net.into());
    Some(format!("ip={}::{gateway}:{}:{hostname}:{device}:off", net.addr(), net.netmask()))
}

#[cfg(test)]
mod tests {
    use super::super::model::{EgressClass, InterfaceId, Subnet};
    use super::*;

    fn interface(number: u64, ipv4: Option<&str>, ipv6: Option<&str>) -> Interface {
        let nets = ["10.1.0.0/24", "10.9.0.0/16", "fd00:1::/64"];
        let subnets = nets.map(|net| Subnet::new("a", net.parse().unwrap()).unwrap());
        let (ipv4, ipv6) = (ipv4.map(|a| a.parse().unwrap()), ipv6.map(|a| a.parse().unwrap()));
        let id = InterfaceId::new(number).unwrap();
        Interface::new(id, "a", ipv4, ipv6, EgressClass::Isolated, &subnets).unwrap()
    }

    #[test]
    fn the_first_interface_has_the_default_routes_over_a_gateway_on_its_link() {
        let interfaces =
            [interface(1, Some("10.1.0.2"), Some("fd00:1::2")), interface(2, Some("10.9.0.2"), None)];
        let yaml = network_config(&interfaces, &["203.0.113.53".parse().unwrap()]).unwrap();
        let config: serde_json::Value = serde_norway::from_str(&yaml).unwrap();
        let expected = serde_json::json!({"version": 2, "ethernets": {
            "eth0": {
                "match": {"macaddress": "02:00:00:00:00:01"}, "set-name": "eth0",
                "dhcp4": false, "dhcp6": false, "accept-ra": false,
                "addresses": ["10.1.0.2/32", "fd00:1::2/128"],
                "routes": [
                    {"to": "0.0.0.0/0", "via": "169.254.1.1", "on-link": true},
                    {"to": "::/0", "via": "fe80::1", "on-link": true},
                ],
                "nameservers": {"addresses": ["203.0.113.53"]},
            },
            "eth1": {
                "match": {"macaddress": "02:00:00:00:00:02"}, "set-name": "eth1",
                "dhcp4": false, "dhcp6": false, "accept-ra": false,
                "addresses": ["10.9.0.2/32"],
                "routes": [{"to": "10.9.0.0/16", "via": "169.254.1.1", "on-link": true}],
            },
        }});
        assert_eq!(config, expected, "{yaml}");
    }

    #[test]
    fn the_kernel_is_told_of_a_gateway_inside_the_subnet() {
        let told =
            |hostname| kernel_parameter(&interface(1, Some("10.9.3.2"), None), hostname, "eth0").unwrap();
        assert_eq!(told("web-1"), "ip=10.9.3.2::10.9.0.1:255.255.0.0:web-1:eth0:off");
        assert_eq!(told("a b:c"), "ip=10.9.3.2::10.9.0.1:255.255.0.0::eth0:off");
        assert_eq!(kernel_parameter(&interface(1, None, Some("fd00:1::2")), "x", "eth0"), None);
    }
}
