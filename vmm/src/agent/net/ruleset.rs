//! The ruleset: what is there before any interface is, the tenants' prefixes, and the lists. Pure: text for `nft -f -`, one
//! transaction each.
//!
//! Names that begin with `yun` are guests' interfaces. A rule for guests ends in `drop`; what is neither from nor to a guest
//! is left to whatever else the host's administrator has set up.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use ipnet::IpNet;

use super::elements::{Direction, FLOWS_MAX, Set};
use super::list::{ListKind, PrefixList};
use super::model::{EgressClass, GATEWAY4, GATEWAY6, Subnet};
use super::ranges;

/// What a host's network is beside guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Base {
    /// Tenants' IPv4 addresses are hidden behind the host's on their way out.
    pub(super) masquerade: bool,
    /// Forward no IPv4 between others' interfaces: nobody did before guests needed it.
    pub(super) no_transit4: bool,
    /// The same for IPv6.
    pub(super) no_transit6: bool,
}

/// What every guest may ask neighbour discovery for: the gateway, at its address or at its solicited-node group.
const GATEWAY6_GROUP: &str = "ff02::1:ff00:1";

/// Drops what would be let through but is one flow too many.
fn few_flows() -> String {
    format!("ct state new add @flows {{ iifname ct count over {FLOWS_MAX} }} drop")
}

fn joined<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn of_family(nets: impl Iterator<Item = IpNet>, v6: bool) -> String {
    joined(nets.filter(|net| matches!(net, IpNet::V6(_)) == v6))
}

/// The tables, sets, maps and chains; what sets and maps hold is kept if they are there.
pub(super) fn base(base: Base) -> String {
    let mut script = String::from("add table inet yun\nadd table arp yun\n");
    let mut line = |text: &str| {
        script.push_str(text);
        script.push('\n');
    };
    for set in Set::all() {
        let definition = match set {
            Set::Own4 => "type ifname . ether_addr . ipv4_addr;",
            Set::Own6 => "type ifname . ether_addr . ipv6_addr;",
            Set::Arp => "type ifname . ether_addr . ether_addr . ipv4_addr;",
            Set::Class(_) => "type ifname : verdict;",
            Set::Count(..) => "type ifname : counter;",
        };
        let kind = if matches!(set, Set::Class(_) | Set::Count(..)) { "map" } else { "set" };
        line(&format!("add {kind} {} {} {{ {definition} }}", set.table(), set.name()));
    }
    for family in [4, 6] {
        for name in ["tenants", "domestic", "denied"] {
            let definition = format!("type ipv{family}_addr; flags interval;");
            line(&format!("add set inet yun {name}{family} {{ {definition} }}"));
        }
        let definition = format!("type ipv{family}_addr . ipv{family}_addr; flags interval;");
        line(&format!("add set inet yun pairs{family} {{ {definition} }}"));
    }
    line("add set inet yun flows { type ifname; size 65535; flags dynamic; }");
    line("add set arp yun pairs { type ipv4_addr . ipv4_addr; flags interval; }");

    let mut chain = |table: &str, name: &str, hook: &str, rules: &[String]| {
        let hook = if hook.is_empty() { String::new() } else { format!(" {{ type filter hook {hook}; }}") };
        let _ = writeln!(script, "add chain {table} {name}{hook}\nflush chain {table} {name}");
        for rule in rules {
            let _ = writeln!(script, "add rule {table} {name} {rule}");
        }
    };
    let arp = arp();
    chain("arp yun", "input", "input priority filter", &arp);
    // Chains are there before they are jumped to; the verdict maps name them.
    for name in ["guard4", "guard6", "from_guest", "to_guest", "own_tenant", "others"] {
        chain("inet yun", name, "", &[]);
    }
    for class in EgressClass::ALL {
        for direction in Direction::BOTH {
            let name = direction.name();
            chain("inet yun", &format!("{name}_{class}"), "", &[]);
            let counted = format!("counter name {} map @count_{name}_{class} accept", peer(direction));
            let few = matches!(direction, Direction::Out).then(few_flows);
            let rules: Vec<String> = few.into_iter().chain([counted, "drop".to_owned()]).collect();
            chain("inet yun", &format!("pass_{name}_{class}"), "", &rules);
        }
    }
    for (name, hook, rules) in [
        ("guard", "prerouting priority raw", guard()),
        ("guard4", "", guard4()),
        ("guard6", "", guard6()),
        ("input", "input priority filter", input()),
        ("output", "output priority filter", output()),
        ("forward", "forward priority filter", forward()),
        ("from_guest", "", from_guest()),
        ("own_tenant", "", own_tenant()),
        ("to_guest", "", to_guest()),
        ("others", "", others(base)),
    ] {
        chain("inet yun", name, hook, &rules);
    }
    for direction in Direction::BOTH {
        for class in EgressClass::ALL {
            chain("inet yun", &format!("{}_{class}", direction.name()), "", &reach(direction, class));
        }
    }
    script.push_str(
        "add chain inet yun nat { type nat hook postrouting priority srcnat; }\nflush chain inet yun nat\n",
    );
    script.push_str(if base.masquerade {
        "add rule inet yun nat ip saddr @tenants4 oifname != \"yun*\" masquerade\n"
    } else {
        "delete chain inet yun nat\n"
    });
    script
}

/// The interface of the guest that a packet in this direction belongs to.
fn peer(direction: Direction) -> &'static str {
    match direction {
        Direction::Out => "iifname",
        Direction::In => "oifname",
    }
}

fn rules(rules: &[&str]) -> Vec<String> {
    rules.iter().map(|&rule| rule.to_owned()).collect()
}

/// ARP: a guest may ask for the gateway and, if it was not told that its link has no neighbours, for its own tenant's.
fn arp() -> Vec<String> {
    let who = "iifname . ether saddr . arp saddr ether . arp saddr ip @own";
    vec![
        "iifname != \"yun*\" accept".to_owned(),
        format!("arp operation request arp daddr ip {GATEWAY4} {who} accept"),
        format!("arp operation request arp saddr ip . arp daddr ip @pairs {who} accept"),
        "drop".to_owned(),
    ]
}

/// Who a guest says it is, before anything else looks at the packet.
fn guard() -> Vec<String> {
    rules(&[
        "iifname != \"yun*\" accept",
        "iifname . ether saddr . ip saddr @own4 goto guard4",
        "iifname . ether saddr . ip6 saddr @own6 goto guard6",
        "drop",
    ])
}

/// What a guest must not say though it says who it is: to be a DHCP server or a router.
fn guard4() -> Vec<String> {
    rules(&["udp sport { 67, 547 } drop", "icmp type { redirect, router-advertisement } drop", "accept"])
}

fn guard6() -> Vec<String> {
    let asks_for_gateway = format!(
        "icmpv6 type nd-neighbor-solicit ip6 hoplimit 255 ip6 daddr {{ {GATEWAY6}, {GATEWAY6_GROUP} }} @th,64,128 {:#x} accept",
        GATEWAY6.to_bits()
    );
    // Multicast listeners' and all other neighbour discovery is for links with neighbours.
    let link = "icmpv6 type { 130-137, 141-143, 148-149, 151-153 } drop";
    let [addresses, dhcp] = ["ip6 saddr fe80::/10 drop", "udp sport { 67, 547 } drop"];
    let mut all = vec![asks_for_gateway];
    all.extend(rules(&[link, addresses, dhcp, "accept"]));
    all
}

/// The host's own addresses, whichever they are: nothing is served to guests there.
fn input() -> Vec<String> {
    rules(&["iifname != \"yun*\" accept", "icmpv6 type nd-neighbor-solicit accept", "drop"])
}

/// The host says to guests what a router must, and nothing of what its own programs tell to all interfaces.
fn output() -> Vec<String> {
    rules(&[
        "oifname != \"yun*\" accept",
        "icmp type { destination-unreachable, time-exceeded, parameter-problem } accept",
        "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, nd-neighbor-advert } accept",
        "drop",
    ])
}

fn forward() -> Vec<String> {
    rules(&["iifname \"yun*\" goto from_guest", "oifname \"yun*\" goto to_guest", "goto others"])
}

fn others(base: Base) -> Vec<String> {
    let mut all = Vec::new();
    if base.no_transit4 {
        all.push("meta nfproto ipv4 drop".to_owned());
    }
    if base.no_transit6 {
        all.push("meta nfproto ipv6 drop".to_owned());
    }
    all
}

/// Every packet from a guest is judged by where it goes, also those of flows that exist: a class that changes ends them.
fn from_guest() -> Vec<String> {
    let mut all = vec![
        format!("ip daddr {{ {} }} drop", of_family(ranges::never(), false)),
        format!("ip6 daddr {{ {} }} drop", of_family(ranges::never(), true)),
    ];
    all.extend(rules(&[
        "ip saddr . ip daddr @pairs4 goto own_tenant",
        "ip6 saddr . ip6 daddr @pairs6 goto own_tenant",
        "ip daddr @tenants4 drop",
        "ip6 daddr @tenants6 drop",
        "oifname \"yun*\" drop",
        "ip daddr @denied4 drop",
        "ip6 daddr @denied6 drop",
        "iifname vmap @class_out",
        "drop",
    ]));
    all
}

/// Between a tenant's VMs; an address that none has is not looked for outside.
fn own_tenant() -> Vec<String> {
    let counted = ["iifname map @count_out_isolated", "oifname map @count_in_isolated"]
        .map(|c| format!("counter name {c}"));
    let pass = format!("oifname \"yun*\" {} accept", counted.join(" "));
    vec![few_flows(), pass, "drop".to_owned()]
}

/// From the outside come only answers, and only from where the class lets the guest send to.
fn to_guest() -> Vec<String> {
    let mut all = vec![
        "ct state != { established, related } drop".to_owned(),
        format!("ip saddr {{ {} }} drop", of_family(ranges::never(), false)),
        format!("ip6 saddr {{ {} }} drop", of_family(ranges::never(), true)),
    ];
    all.extend(rules(&[
        "ip saddr @tenants4 drop",
        "ip6 saddr @tenants6 drop",
        "ip saddr @denied4 drop",
        "ip6 saddr @denied6 drop",
        "oifname vmap @class_in",
        "drop",
    ]));
    all
}

/// What a class lets through of what nobody is denied.
fn reach(direction: Direction, class: EgressClass) -> Vec<String> {
    let name = direction.name();
    let end = match direction {
        Direction::Out => "daddr",
        Direction::In => "saddr",
    };
    let domestic = ["ip", "ip6"].map(|ip| {
        let family = if ip == "ip" { 4 } else { 6 };
        format!("{ip} {end} @domestic{family} goto pass_{name}_domestic")
    });
    let mut all = Vec::new();
    match class {
        EgressClass::Isolated => {}
        EgressClass::Domestic => all.extend(domestic),
        EgressClass::International => {
            all.extend(domestic);
            all.push(format!("ip {end} {{ {} }} drop", of_family(ranges::private(), false)));
            all.push(format!("ip6 {end} {{ {} }} drop", of_family(ranges::private(), true)));
            all.push(format!("meta nfproto ipv4 goto pass_{name}_international"));
            all.push(format!("ip6 {end} 2000::/3 goto pass_{name}_international"));
        }
    }
    all.push("drop".to_owned());
    all
}

fn refill(script: &mut String, set: &str, elements: &str) {
    let _ = writeln!(script, "flush set {set}");
    if !elements.is_empty() {
        let _ = writeln!(script, "add element {set} {{ {elements} }}");
    }
}

/// All tenants' prefixes, in the place of those before.
pub(super) fn subnets(subnets: &[Subnet]) -> String {
    let mut script = String::new();
    for v6 in [false, true] {
        let family = if v6 { 6 } else { 4 };
        let mut tenants: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
        for subnet in subnets.iter().filter(|subnet| matches!(subnet.net, IpNet::V6(_)) == v6) {
            tenants.entry(&subnet.tenant).or_default().push(subnet.net);
        }
        // Neighbouring prefixes of one tenant are one: what is left overlaps nothing, as sets of intervals need it.
        for nets in tenants.values_mut() {
            *nets = IpNet::aggregate(nets);
        }
        let pairs = joined(tenants.values().flat_map(|nets| {
            nets.iter().flat_map(|from| nets.iter().map(move |to| format!("{from} . {to}")))
        }));
        refill(&mut script, &format!("inet yun tenants{family}"), &joined(tenants.values().flatten()));
        refill(&mut script, &format!("inet yun pairs{family}"), &pairs);
        if !v6 {
            refill(&mut script, "arp yun pairs", &pairs);
        }
    }
    script
}

/// A list, in the place of the one before.
pub(super) fn list(list: &PrefixList) -> String {
    let name = match list.kind() {
        ListKind::Domestic => "domestic",
        ListKind::Denied => "denied",
    };
    let mut script = String::new();
    let all = IpNet::aggregate(&list.prefixes().to_vec());
    for (family, v6) in [(4, false), (6, true)] {
        refill(&mut script, &format!("inet yun {name}{family}"), &of_family(all.iter().copied(), v6));
    }
    script
}

#[cfg(test)]
#[path = "ruleset_tests.rs"]
mod tests;
