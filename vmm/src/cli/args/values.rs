//! Values of arguments: sizes, durations, which VM, words of the API. Pure.

use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::de::DeserializeOwned;

use crate::agent::model::{EgressClass, InterfaceSpec, Name, VolumeAttachment};

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(String);

fn refuse<T>(text: String) -> Result<T, ValueError> {
    Err(ValueError(text))
}

/// A size in MiB: `512M`, `2G`, `1T`, or a number of MiB. Units are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mib(pub u64);

impl FromStr for Mib {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let factor = match unit.strip_suffix("iB").unwrap_or(unit) {
            "M" => 1,
            "" if !unit.ends_with("iB") => 1,
            "G" => 1 << 10,
            "T" => 1 << 20,
            _ => 0,
        };
        match number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
            Some(mib) if factor > 0 => Ok(Self(mib)),
            _ => refuse(
                "accepted are whole numbers of MiB, or with a unit: 512M, 2G, 1T (powers of 1024)".into(),
            ),
        }
    }
}

/// A time in whole seconds: `90`, `30s`, `5m`, `2h`, `1d`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub u64);

impl Seconds {
    /// As a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Seconds {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError("accepted are seconds, or with units: 30s, 5m, 2h, 1d, 1h30m".to_owned());
        if let Ok(seconds) = text.parse() {
            return Ok(Self(seconds));
        }
        let (mut rest, mut total, mut largest) = (text, 0u64, u64::MAX);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest.get(..digits).and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
            let unit = match rest.as_bytes().get(digits) {
                Some(b's') => 1,
                Some(b'm') => 60,
                Some(b'h') => 3_600,
                Some(b'd') => 86_400,
                _ => return Err(wrong()),
            };
            // From large to small, each once: 5m1h is a slip of the finger.
            if unit >= largest {
                return Err(wrong());
            }
            largest = unit;
            total = number.checked_mul(unit).and_then(|s| s.checked_add(total)).ok_or_else(wrong)?;
            rest = rest.get(digits + 1..).unwrap_or_default();
        }
        if text.is_empty() { Err(wrong()) } else { Ok(Self(total)) }
    }
}

/// Which one: `tenant/name`, or `name` of the tenant of `--tenant`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Which {
    /// Whose, if it was said.
    pub tenant: Option<Name>,
    /// Its name.
    pub name: Name,
}

impl FromStr for Which {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let name = |text| Name::parse(text).map_err(|error| ValueError(error.to_string()));
        match text.split_once('/') {
            Some((tenant, rest)) => Ok(Self { tenant: Some(name(tenant)?), name: name(rest)? }),
            None => Ok(Self { tenant: None, name: name(text)? }),
        }
    }
}

/// A volume among a VM's disks: `NAME[:ro][:root]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk(pub VolumeAttachment);

impl FromStr for Disk {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut parts = text.split(':');
        let volume = parts.next().unwrap_or_default();
        let volume = Name::parse(volume).map_err(|error| ValueError(error.to_string()))?;
        let mut disk = VolumeAttachment { volume, read_only: false, root: false };
        for part in parts {
            match part {
                "ro" => disk.read_only = true,
                "root" => disk.root = true,
                _ => {
                    return refuse(format!(
                        "{part:?} is no option of a volume: accepted is NAME[:ro][:root]"
                    ));
                }
            }
        }
        Ok(Self(disk))
    }
}

/// An interface: `SUBNET[:CLASS][,name=NAME][,ipv4=ADDRESS][,ipv6=ADDRESS]`. Its name is `eth` and its place, unless given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    subnet: Name,
    class: EgressClass,
    name: Option<Name>,
    ipv4: Option<std::net::Ipv4Addr>,
    ipv6: Option<std::net::Ipv6Addr>,
}

impl Net {
    /// As the API has it, in this place among the VM's interfaces.
    ///
    /// # Errors
    /// None: `eth` and a number is a name.
    pub fn at(self, place: usize) -> Result<InterfaceSpec, ValueError> {
        let name = match self.name {
            Some(name) => name,
            None => Name::parse(&format!("eth{place}")).map_err(|error| ValueError(error.to_string()))?,
        };
        Ok(InterfaceSpec { name, subnet: self.subnet, class: self.class, ipv4: self.ipv4, ipv6: self.ipv6 })
    }
}

impl FromStr for Net {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let form =
            "accepted is SUBNET[:isolated|domestic|international][,name=NAME][,ipv4=ADDRESS][,ipv6=ADDRESS]";
        let named = |text| Name::parse(text).map_err(|error| ValueError(error.to_string()));
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (subnet, class) = match first.split_once(':') {
            Some((subnet, class)) => {
                let class = serde_json::from_value(class.into())
                    .map_err(|_| ValueError(format!("{class:?} is no egress class: {form}")))?;
                (subnet, class)
            }
            None => (first, EgressClass::default()),
        };
        let mut net = Self { subnet: named(subnet)?, class, name: None, ipv4: None, ipv6: None };
        for part in parts {
            let wrong = || ValueError(format!("{part:?} is not understood: {form}"));
            match part.split_once('=') {
                Some(("name", name)) => net.name = Some(named(name)?),
                Some(("ipv4", address)) => net.ipv4 = Some(address.parse().map_err(|_| wrong())?),
                Some(("ipv6", address)) => net.ipv6 = Some(address.parse().map_err(|_| wrong())?),
                _ => return Err(wrong()),
            }
        }
        Ok(net)
    }
}

/// A limit of a quota: a number, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

impl FromStr for Limit {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match (text, text.parse()) {
            ("none", _) => Ok(Self(None)),
            (_, Ok(number)) => Ok(Self(Some(number))),
            _ => refuse("accepted are whole numbers, and none".into()),
        }
    }
}

/// A limit of a quota that is a size: as [`Mib`], or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MibLimit(pub Option<u64>);

impl FromStr for MibLimit {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "none" { Ok(Self(None)) } else { Ok(Self(Some(text.parse::<Mib>()?.0))) }
    }
}

/// One of the API's words for a `T`, which are these.
pub(crate) fn one_of<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words.iter().copied()).try_map(|word| serde_json::from_value::<T>(word.into()))
}

/// Words for a [`Power`](crate::agent::model::Power).
pub(crate) const POWERS: &[&str] = &["running", "paused", "stopped"];
/// Words for a [`RestartPolicy`](crate::agent::model::RestartPolicy).
pub(crate) const RESTARTS: &[&str] = &["never", "on_failure", "always"];
/// Words for a [`DrainPolicy`](crate::agent::model::DrainPolicy).
pub(crate) const DRAINS: &[&str] = &["stop", "kill", "keep"];
/// Words for an [`EgressClass`].
pub(crate) const CLASSES: &[&str] = &["isolated", "domestic", "international"];
/// Words for a [`Role`](crate::agent::model::Role).
pub(crate) const ROLES: &[&str] = &["read", "write"];
/// Words for an [`ActualState`](crate::agent::model::ActualState).
pub(crate) const STATES: &[&str] =
    &["stopped", "starting", "running", "paused", "stopping", "failed", "unknown", "deleting"];

#[cfg(test)]
#[path = "values_tests.rs"]
mod tests;
