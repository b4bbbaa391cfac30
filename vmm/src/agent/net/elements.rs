//! What the ruleset knows of each interface: elements of its sets and maps, and counters. Pure: rendered as `nft` commands,
//! and read back from `nft`'s JSON.
//!
//! Everything here is keyed by an interface, so what there is and what there should be are two [`Parts`], and every change
//! of the network is the difference of two of them, in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::model::{EgressClass, Interface, InterfaceId};

/// Most flows that the host tracks at once for one interface. Its table, by default of 65,536 flows or more, is shared; only
/// what guests begin themselves is in it.
pub const FLOWS_MAX: u32 = 8192;

/// Which way, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Out,
    In,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Out, Self::In];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// The sets and maps that have an interface in their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    /// interface . MAC . IPv4: what a guest may call itself.
    Own4,
    /// The same for IPv6.
    Own6,
    /// interface . MAC of the frame . MAC of the sender . IPv4 of the sender, in ARP.
    Arp,
    /// interface -> what is done with packets from or to the outside.
    Class(Direction),
    /// interface -> a counter.
    Count(Direction, EgressClass),
}

impl Set {
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::Own4, Self::Own6, Self::Arp];
        all.extend(Direction::BOTH.map(Self::Class));
        for class in EgressClass::ALL {
            all.extend(Direction::BOTH.map(|direction| Self::Count(direction, class)));
        }
        all
    }

    pub(super) fn table(self) -> &'static str {
        if self == Self::Arp { "arp yun" } else { "inet yun" }
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Own4 => "own4".to_owned(),
            Self::Own6 => "own6".to_owned(),
            Self::Arp => "own".to_owned(),
            Self::Class(direction) => format!("class_{}", direction.name()),
            Self::Count(direction, class) => format!("count_{}_{class}", direction.name()),
        }
    }
}

/// An element of a set or a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    set: Set,
    id: InterfaceId,
    /// What follows the interface in the key.
    rest: Vec<String>,
    /// What the map says; empty in a set.
    data: String,
}

/// A named counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Counter {
    id: InterfaceId,
    direction: Direction,
    class: EgressClass,
}

impl Counter {
    fn name(self) -> String {
        format!("{}_{}_{}", self.id.tap(), self.direction.name(), self.class)
    }

    fn of_name(name: &str) -> Option<Self> {
        let (tap, rest) = name.split_once('_')?;
        let (direction, class) = rest.split_once('_')?;
        Some(Self {
            id: InterfaceId::of_tap(tap)?,
            direction: Direction::BOTH.into_iter().find(|d| d.name() == direction)?,
            class: class.parse().ok()?,
        })
    }
}

/// What the ruleset has of some interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    elements: BTreeSet<Element>,
    counters: BTreeSet<Counter>,
}

impl Parts {
    /// What it has of an interface that is plugged.
    pub(super) fn of(interface: &Interface) -> Self {
        let id = interface.id();
        let mac = id.mac().to_string();
        let mut parts = Self::default();
        let mut add = |set, rest: &[&str], data: String| {
            let rest = rest.iter().map(|&part| part.to_owned()).collect();
            parts.elements.insert(Element { set, id, rest, data });
        };
        if let Some(net) = interface.ipv4() {
            let address = net.addr().to_string();
            add(Set::Own4, &[&mac, &address], String::new());
            add(Set::Arp, &[&mac, &mac, &address], String::new());
        }
        if let Some(net) = interface.ipv6() {
            add(Set::Own6, &[&mac, &net.addr().to_string()], String::new());
            add(Set::Own6, &[&mac, &id.mac().link_local().to_string()], String::new());
        }
        for direction in Direction::BOTH {
            add(Set::Class(direction), &[], verdict(direction, interface.class()));
            for class in EgressClass::ALL {
                let counter = Counter { id, direction, class };
                add(Set::Count(direction, class), &[], counter.name());
            }
        }
        for direction in Direction::BOTH {
            parts.counters.extend(EgressClass::ALL.map(|class| Counter { id, direction, class }));
        }
        parts
    }

    /// The union of two.
    pub(super) fn with(mut self, other: Self) -> Self {
        self.elements.extend(other.elements);
        self.counters.extend(other.counters);
        self
    }

    /// What is of these interfaces.
    pub(super) fn only(mut self, ids: &BTreeSet<InterfaceId>) -> Self {
        self.elements.retain(|element| ids.contains(&element.id));
        self.counters.retain(|counter| ids.contains(&counter.id));
        self
    }

    /// Whose parts these are.
    pub(super) fn ids(&self) -> BTreeSet<InterfaceId> {
        self.elements.iter().map(|e| e.id).chain(self.counters.iter().map(|c| c.id)).collect()
    }

    /// Reads what `nft -j list table` says of our tables.
    pub(super) fn parse(tables: &[Value]) -> Self {
        let mut parts = Self::default();
        for object in tables.iter().filter_map(|table| table["nftables"].as_array()).flatten() {
            if let Some(counter) = object["counter"]["name"].as_str().and_then(Counter::of_name) {
                parts.counters.insert(counter);
            }
            let body = [&object["set"], &object["map"]].into_iter().find(|body| body.is_object());
            let Some(body) = body else { continue };
            let table = format!("{} {}", text(&body["family"]), text(&body["table"]));
            let set =
                Set::all().into_iter().find(|set| set.table() == table && set.name() == text(&body["name"]));
            let Some(set) = set else { continue };
            let elements = body["elem"].as_array().into_iter().flatten();
            parts.elements.extend(elements.filter_map(|element| Element::parse(set, element)));
        }
        parts
    }

    /// The commands, one transaction, that turn `from` into `to`; none if they are equal.
    pub(super) fn change(from: &Self, to: &Self) -> String {
        let mut script = String::new();
        let mut elements = |verb: &str, elements: Vec<&Element>, data: bool| {
            let mut by_set: BTreeMap<Set, Vec<String>> = BTreeMap::new();
            for element in elements {
                by_set.entry(element.set).or_default().push(element.render(data));
            }
            for (set, keys) in by_set {
                let keys = keys.join(", ");
                let _ = writeln!(script, "{verb} element {} {} {{ {keys} }}", set.table(), set.name());
            }
            std::mem::take(&mut script)
        };
        let gone = elements("delete", from.elements.difference(&to.elements).collect(), false);
        let come = elements("add", to.elements.difference(&from.elements).collect(), true);
        let mut whole = gone;
        for counter in from.counters.difference(&to.counters) {
            let _ = writeln!(whole, "delete counter inet yun {}", counter.name());
        }
        for counter in to.counters.difference(&from.counters) {
            let _ = writeln!(whole, "add counter inet yun {}", counter.name());
        }
        whole + &come
    }
}

impl Element {
    fn render(&self, with_data: bool) -> String {
        let mut shown = format!("\"{}\"", self.id.tap());
        for part in &self.rest {
            shown = shown + " . " + part;
        }
        match self.set {
            _ if !with_data => {}
            Set::Own4 | Set::Own6 | Set::Arp => {}
            Set::Class(_) => shown = shown + " : " + &self.data,
            Set::Count(..) => shown = shown + " : \"" + &self.data + "\"",
        }
        shown
    }

    /// Reads an element: a key, or a pair of key and data; a key is one string or a concatenation.
    fn parse(set: Set, element: &Value) -> Option<Self> {
        let (key, data) = match element.as_array() {
            Some(pair) => (pair.first()?, pair.get(1)),
            None => (element, None),
        };
        let key = key.get("elem").map_or(key, |elem| &elem["val"]);
        let parts: Vec<&str> = match key["concat"].as_array() {
            Some(parts) => parts.iter().map(text).collect(),
            None => vec![text(key)],
        };
        let (tap, rest) = parts.split_first()?;
        let jump = |data: &Value| data["jump"]["target"].as_str().map(|target| format!("jump {target}"));
        let data = data.map(|data| jump(data).unwrap_or_else(|| text(data).to_owned()));
        // Addresses have several spellings.
        let same =
            |part: &&str| part.parse().map_or_else(|_| (*part).to_owned(), |ip: IpAddr| ip.to_string());
        let rest = rest.iter().map(same).collect();
        Some(Self { set, id: InterfaceId::of_tap(tap)?, rest, data: data.unwrap_or_default() })
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn verdict(direction: Direction, class: EgressClass) -> String {
    format!("jump {}_{class}", direction.name())
}

/// The commands, one transaction, that give an interface another class.
pub(super) fn class_change(id: InterfaceId, class: EgressClass) -> String {
    let mut script = String::new();
    for direction in Direction::BOTH {
        let element =
            Element { set: Set::Class(direction), id, rest: Vec::new(), data: verdict(direction, class) };
        let map = element.set.name();
        let _ = writeln!(script, "delete element inet yun {map} {{ {} }}", element.render(false));
        let _ = writeln!(script, "add element inet yun {map} {{ {} }}", element.render(true));
    }
    script
}

/// The commands that end the count of an interface's flows. The kernel makes such an element with the first flow and takes it
/// away some time after the last, so it may be there or not: it is added, which is no error if it is, and deleted.
pub(super) fn end_flow_count(id: InterfaceId) -> String {
    let tap = id.tap();
    format!(
        "add element inet yun flows {{ \"{tap}\" ct count over {FLOWS_MAX} }}\n\
         delete element inet yun flows {{ \"{tap}\" }}\n"
    )
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
}

/// What was counted each way, seen from the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BothWays {
    /// From the guest.
    pub sent: Count,
    /// To the guest.
    pub received: Count,
}

/// The traffic of an interface since it was plugged, by where its other end is. What was dropped is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// With the tenant's own VMs.
    pub isolated: BothWays,
    /// With prefixes of the domestic list.
    pub domestic: BothWays,
    /// With the rest of the world.
    pub international: BothWays,
}

/// Reads what `nft -j list counters` says of each interface.
pub(super) fn parse_counters(table: &Value) -> BTreeMap<InterfaceId, Traffic> {
    let mut all: BTreeMap<InterfaceId, Traffic> = BTreeMap::new();
    for object in table["nftables"].as_array().into_iter().flatten() {
        let body = &object["counter"];
        let Some(counter) = body["name"].as_str().and_then(Counter::of_name) else { continue };
        let number = |field: &str| body[field].as_u64().unwrap_or_default();
        let traffic = all.entry(counter.id).or_default();
        let both = match counter.class {
            EgressClass::Isolated => &mut traffic.isolated,
            EgressClass::Domestic => &mut traffic.domestic,
            EgressClass::International => &mut traffic.international,
        };
        let way = match counter.direction {
            Direction::Out => &mut both.sent,
            Direction::In => &mut both.received,
        };
        *way = Count { packets: number("packets"), bytes: number("bytes") };
    }
    all
}

#[cfg(test)]
#[path = "elements_tests.rs"]
mod tests;
