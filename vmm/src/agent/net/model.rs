//! What the network is made of: interfaces, the tenants' subnets, and how far an interface may reach.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

pub use super::super::model::EgressClass;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The IPv4 gateway of every guest: the host's end of its link.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The IPv6 gateway of every guest: the host's end of its link.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The MAC address of every gateway, so that a guest that is restored or moved finds the one that it knew.
pub const GATEWAY_MAC: Mac = Mac([0x06, b'y', b'u', b'n', 0, 1]);
/// How the name of each of our TAP devices begins.
pub const TAP_PREFIX: &str = "yun";

/// Ids are below this: 40 bits, which is what a TAP's name and a MAC address have room for.
const ID_END: u64 = 1 << 40;
const ID_DIGITS: usize = 10;

/// Why something can't be part of the network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// No id of an interface.
    #[error("interface id `{0}` is refused: 10 lower-case hexadecimal digits are accepted")]
    Id(String),
    /// No egress class.
    #[error("egress class `{0}` is refused: isolated, domestic or international is accepted")]
    Class(String),
    /// Bits are set beyond the prefix.
    #[error("subnet {given} is refused: its host bits are set; {meant} is accepted")]
    HostBits {
        /// What was given.
        given: IpNet,
        /// The network that it lies in.
        meant: IpNet,
    },
    /// Too wide, or too narrow to hold a guest.
    #[error("subnet {net} is refused: a prefix of {min} to {max} bits is accepted")]
    PrefixLength {
        /// The subnet.
        net: IpNet,
        /// Fewest bits.
        min: u8,
        /// Most bits.
        max: u8,
    },
    /// It is of a range that guests can't have addresses of.
    #[error("subnet {net} is refused: {reserved} is never reachable; global or private unicast is accepted")]
    Reserved {
        /// The subnet.
        net: IpNet,
        /// What it overlaps.
        reserved: IpNet,
    },
    /// Somebody has it.
    #[error("subnet {net} is refused: it overlaps {other} of {whose}; a free prefix is accepted")]
    Overlap {
        /// The subnet.
        net: IpNet,
        /// What is there.
        other: IpNet,
        /// Whose that is: a tenant, or the host.
        whose: String,
    },
    /// An interface without any address.
    #[error("interface {0} has neither an IPv4 nor an IPv6 address: at least one is needed")]
    NoAddress(InterfaceId),
    /// An address that no subnet of the tenant holds.
    #[error("address {address} is refused: no subnet of tenant `{tenant}` gives it to a guest")]
    Foreign {
        /// The address.
        address: IpAddr,
        /// The tenant.
        tenant: String,
    },
}

impl fmt::Display for EgressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EgressClass {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        Self::ALL
            .into_iter()
            .find(|class| class.name() == text)
            .ok_or_else(|| ModelError::Class(text.to_owned()))
    }
}

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The link-local IPv6 address that a guest with this MAC gives itself (modified EUI-64, RFC 4291 appendix A).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let eui64 = [a ^ 0x02, b, c, 0xff, 0xfe, d, e, f];
        Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(u64::from_be_bytes(eui64)))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The number of an interface on this server: 40 bits, shown as 10 hexadecimal digits. Its TAP's name and its MAC address
/// follow from it, so neither can collide if ids don't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[0-9a-f]{10}$")]
pub struct InterfaceId(u64);

impl InterfaceId {
    /// The id of this number.
    ///
    /// # Errors
    /// [`ModelError::Id`] from 2^40 on.
    pub fn new(number: u64) -> Result<Self, ModelError> {
        if number < ID_END { Ok(Self(number)) } else { Err(ModelError::Id(format!("{number:x}"))) }
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }

    /// The name of its TAP device: 13 bytes.
    #[must_use]
    pub fn tap(self) -> String {
        format!("{TAP_PREFIX}{self}")
    }

    /// The id whose TAP has this name, if it is one of ours.
    #[must_use]
    pub fn of_tap(name: &str) -> Option<Self> {
        name.strip_prefix(TAP_PREFIX)?.parse().ok()
    }

    /// The guest's MAC address: locally administered, unicast.
    #[must_use]
    pub fn mac(self) -> Mac {
        let [_, _, _, b, c, d, e, f] = self.0.to_be_bytes();
        Mac([0x02, b, c, d, e, f])
    }
}

impl fmt::Display for InterfaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0ID_DIGITS$x}", self.0)
    }
}

impl FromStr for InterfaceId {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let refused = || ModelError::Id(text.to_owned());
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != ID_DIGITS || !digits {
            return Err(refused());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| refused())
    }
}

impl TryFrom<String> for InterfaceId {
    type Error = ModelError;

    fn try_from(text: String) -> Result<Self, ModelError> {
        text.parse()
    }
}

impl From<InterfaceId> for String {
    fn from(id: InterfaceId) -> Self {
        id.to_string()
    }
}

/// A prefix that belongs to one tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// Whose it is.
    pub tenant: String,
    /// The prefix, without host bits.
    #[schema(value_type = String, example = "10.1.0.0/24")]
    pub net: IpNet,
}

impl Subnet {
    /// A subnet of 8 to 30 bits of IPv4, or of 32 to 120 bits of IPv6, that overlaps nothing that is never reachable.
    ///
    /// # Errors
    /// [`ModelError::HostBits`], [`ModelError::PrefixLength`], [`ModelError::Reserved`].
    pub fn new(tenant: &str, net: IpNet) -> Result<Self, ModelError> {
        if net != net.trunc() {
            return Err(ModelError::HostBits { given: net, meant: net.trunc() });
        }
        let (min, max) = match net {
            IpNet::V4(_) => (8, 30),
            IpNet::V6(_) => (32, 120),
        };
        if !(min..=max).contains(&net.prefix_len()) {
            return Err(ModelError::PrefixLength { net, min, max });
        }
        if let Some(reserved) = super::ranges::never().find(|range| overlap(range, &net)) {
            return Err(ModelError::Reserved { net, reserved });
        }
        Ok(Self { tenant: tenant.to_owned(), net })
    }

    /// Refuses a subnet that overlaps one of `others` (of any tenant, itself excepted) or a network that the host is in.
    ///
    /// # Errors
    /// [`ModelError::Overlap`].
    pub fn check_apart(&self, others: &[Self], host: &[IpNet]) -> Result<(), ModelError> {
        let taken =
            |other: &IpNet, whose: String| ModelError::Overlap { net: self.net, other: *other, whose };
        for other in others.iter().filter(|other| *other != self) {
            if overlap(&other.net, &self.net) {
                return Err(taken(&other.net, format!("tenant `{}`", other.tenant)));
            }
        }
        match host.iter().find(|net| overlap(net, &self.net)) {
            Some(net) => Err(taken(&net.trunc(), "the host".to_owned())),
            None => Ok(()),
        }
    }
}

/// Whether two prefixes share an address.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// A guest's interface. It is only made with addresses that its tenant's subnets give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    id: InterfaceId,
    tenant: String,
    #[schema(value_type = Option<String>, example = "10.1.0.2/24")]
    ipv4: Option<Ipv4Net>,
    #[schema(value_type = Option<String>, example = "fd00:1::2/64")]
    ipv6: Option<Ipv6Net>,
    class: EgressClass,
}

impl Interface {
    /// An interface of `tenant` with one address of each given family; `subnets` may hold other tenants' too.
    ///
    /// # Errors
    /// [`ModelError::NoAddress`]; [`ModelError::Foreign`] if an address is in none of the tenant's subnets, or is one that a
    /// subnet gives to nobody.
    pub fn new(
        id: InterfaceId,
        tenant: &str,
        ipv4: Option<Ipv4Addr>,
        ipv6: Option<Ipv6Addr>,
        class: EgressClass,
        subnets: &[Subnet],
    ) -> Result<Self, ModelError> {
        if ipv4.is_none() && ipv6.is_none() {
            return Err(ModelError::NoAddress(id));
        }
        let prefix_len = |address: IpAddr| {
            let holds = |s: &&Subnet| s.tenant == tenant && super::ipam::gives(&s.net, address);
            let subnet = subnets.iter().find(holds);
            let foreign = || ModelError::Foreign { address, tenant: tenant.to_owned() };
            subnet.map(|subnet| subnet.net.prefix_len()).ok_or_else(foreign)
        };
        let with4 = |address: Ipv4Addr| Ok(Ipv4Net::new_assert(address, prefix_len(address.into())?));
        let with6 = |address: Ipv6Addr| Ok(Ipv6Net::new_assert(address, prefix_len(address.into())?));
        let (ipv4, ipv6) = (ipv4.map(with4).transpose()?, ipv6.map(with6).transpose()?);
        Ok(Self { id, tenant: tenant.to_owned(), ipv4, ipv6, class })
    }

    /// The same interface with another class.
    #[must_use]
    pub fn with_class(mut self, class: EgressClass) -> Self {
        self.class = class;
        self
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> InterfaceId {
        self.id
    }

    /// Whose it is.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Its IPv4 address, with the length of its subnet's prefix.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Net> {
        self.ipv4
    }

    /// Its IPv6 address, with the length of its subnet's prefix.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Net> {
        self.ipv6
    }

    /// How far it reaches.
    #[must_use]
    pub fn class(&self) -> EgressClass {
        self.class
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
