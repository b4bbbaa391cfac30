//! Network interfaces: `/network-interfaces/{iface_id}`.

use std::fmt;
use std::num::NonZeroU16;
use std::os::fd::RawFd;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use super::{POLL_US_MAX, RateLimiter};

/// Smallest MTU an interface can be given (RFC 791).
pub const MTU_MIN: u16 = 68;
/// Largest MTU an interface can be given.
pub const MTU_MAX: u16 = u16::MAX;
/// Pairs of queues of an interface at most.
pub const QUEUE_PAIRS_MAX: u16 = 16;

/// An Ethernet address, written as six pairs of hexadecimal digits between colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ToSchema)]
#[schema(value_type = String, examples("06:00:00:00:00:01"))]
pub struct Mac(pub [u8; 6]);

/// Text that isn't an Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The provided MAC address is invalid.")]
pub struct MacError;

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or(MacError)?;
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacError);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| MacError)?;
        }
        if pairs.next().is_some() { Err(MacError) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Body of `PUT /network-interfaces/{iface_id}`, and what `GET /vm/config` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// The same id as in the path.
    pub iface_id: String,
    /// Name of the TAP device on the host; with `host_dev_fd`, a label only. Or `fd:N`, an open one that the VMM inherited,
    /// or `received:N`, the one with number N of the descriptors sent along with the request.
    pub host_dev_name: String,
    /// Ethernet address of the guest's interface; the guest chooses if it is missing.
    pub guest_mac: Option<Mac>,
    /// Limits on what the guest receives.
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits on what the guest sends.
    pub tx_rate_limiter: Option<RateLimiter>,
    /// MTU that the guest is told, 68 to 65535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Descriptor of an already open TAP device, inherited by the VMM (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_fd: Option<RawFd>,
    /// Name of a group of rate limits (`/rate-limiter-groups`) that both directions draw on, too (an addition to Firecracker's
    /// fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter_group: Option<String>,
    /// Microseconds, at most 1000, for which the interface's thread, with `vhost` the kernel's, looks for more frames before it sleeps
    /// (the VMM's as long as that pays): it takes a CPU. 0, no time at all, if missing (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_us: Option<u16>,
    /// Whether the host's kernel moves the frames (vhost-net) rather than the VMM (an addition to Firecracker's fields). With rate
    /// limits the VMM does, as long as there are any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vhost: bool,
    /// Pairs of queues, each served by a thread of its own, with `vhost` the kernel's, once the guest uses it: 1 to 16, 1 if it is missing. More than one
    /// need a TAP device by name that is made for several (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_queue_pairs: Option<u16>,
}

/// Where the TAP device of an interface comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapSource<'a> {
    /// Open the device of this name.
    Name(&'a str),
    /// Take over this open descriptor.
    Fd(RawFd),
}

/// Why the description of an interface was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetSpecError {
    /// The MTU is too small.
    #[error("The MTU {0} is out of range: it must be {MTU_MIN} to {MTU_MAX}.")]
    Mtu(u16),
    /// Not a descriptor, or one that has another purpose.
    #[error("host_dev_fd {0} can't be a TAP device: it must be 3 or greater.")]
    Fd(RawFd),
    /// Too long a time.
    #[error("The poll_us {0} is out of range: it must be 0 to {POLL_US_MAX}.")]
    Poll(u16),
    /// No such number of pairs of queues.
    #[error("The num_queue_pairs of an interface must be 1 to {QUEUE_PAIRS_MAX}, not {0}.")]
    QueuePairs(u16),
    /// Several pairs of queues on one descriptor.
    #[error(
        "num_queue_pairs {0} needs a TAP device by name: a descriptor is one queue pair. Give 1, or the name in \
         host_dev_name and no descriptor."
    )]
    QueuePairsOfDescriptor(u16),
}

impl NetworkInterface {
    /// Accepts the description if every field is in its range; limits that limit nothing are dropped.
    ///
    /// # Errors
    /// [`NetSpecError`] names the field.
    pub fn checked(mut self) -> Result<Self, NetSpecError> {
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MTU_MIN) {
            return Err(NetSpecError::Mtu(mtu));
        }
        if let Some(fd) = self.host_dev_fd.filter(|fd| *fd < 3) {
            return Err(NetSpecError::Fd(fd));
        }
        if let Some(us) = self.poll_us.filter(|us| *us > POLL_US_MAX) {
            return Err(NetSpecError::Poll(us));
        }
        let pairs = self.num_queue_pairs.unwrap_or(1);
        if !(1..=QUEUE_PAIRS_MAX).contains(&pairs) {
            return Err(NetSpecError::QueuePairs(pairs));
        }
        let by_descriptor = self.host_dev_fd.is_some()
            || ["fd:", "received:"].iter().any(|prefix| self.host_dev_name.starts_with(prefix));
        if pairs > 1 && by_descriptor {
            return Err(NetSpecError::QueuePairsOfDescriptor(pairs));
        }
        self.rx_rate_limiter = self.rx_rate_limiter.and_then(RateLimiter::effective);
        self.tx_rate_limiter = self.tx_rate_limiter.and_then(RateLimiter::effective);
        Ok(self)
    }

    /// Its pairs of queues.
    pub fn queue_pairs(&self) -> NonZeroU16 {
        self.num_queue_pairs.and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN)
    }

    /// Where its TAP device comes from.
    pub fn tap(&self) -> TapSource<'_> {
        self.host_dev_fd.map_or(TapSource::Name(&self.host_dev_name), TapSource::Fd)
    }
}

/// Body of `PATCH /network-interfaces/{iface_id}`: what is missing stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfacePatch {
    /// The same id as in the path.
    pub iface_id: String,
    /// Other limits on what the guest receives.
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Other limits on what the guest sends.
    pub tx_rate_limiter: Option<RateLimiter>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mac_is_six_hex_pairs_in_either_case() {
        assert_eq!("06:00:aB:cD:00:01".parse::<Mac>().unwrap().to_string(), "06:00:ab:cd:00:01");
        for text in [
            "",
            "06:00:00:00:00",
            "06:00:00:00:00:01:02",
            "6:0:0:0:0:1",
            "+6:00:00:00:00:01",
            "06-00-00-00-00-01",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError), "{text}");
        }
    }

    #[test]
    fn an_mtu_below_68_and_a_standard_descriptor_are_refused() {
        let check = |extra: &str| {
            let json = format!(r#"{{"iface_id":"a","host_dev_name":"t"{extra}}}"#);
            serde_json::from_str::<NetworkInterface>(&json).unwrap().checked()
        };
        assert_eq!(
            check(r#","mtu":67"#).unwrap_err().to_string(),
            "The MTU 67 is out of range: it must be 68 to 65535."
        );
        assert!(check(r#","mtu":68"#).is_ok() && check(r#","mtu":65535"#).is_ok() && check("").is_ok());
        assert_eq!(check(r#","host_dev_fd":2"#), Err(NetSpecError::Fd(2)));
        assert_eq!(check(r#","host_dev_fd":9"#).unwrap().tap(), TapSource::Fd(9));
        assert_eq!(check("").unwrap().tap(), TapSource::Name("t"));
    }

    #[test]
    fn pairs_of_queues_are_1_to_16_and_several_need_a_name() {
        let check = |name: &str, extra: &str| {
            let json = format!(r#"{{"iface_id":"a","host_dev_name":"{name}"{extra}}}"#);
            serde_json::from_str::<NetworkInterface>(&json).unwrap().checked()
        };
        assert_eq!(check("t", "").unwrap().queue_pairs().get(), 1);
        for count in [1, 2, 16] {
            let spec = check("t", &format!(r#","num_queue_pairs":{count}"#)).unwrap();
            assert_eq!(spec.queue_pairs().get(), count);
            assert_eq!(serde_json::to_value(spec).unwrap()["num_queue_pairs"], count);
        }
        assert_eq!(check("t", r#","num_queue_pairs":0"#), Err(NetSpecError::QueuePairs(0)));
        assert_eq!(
            check("t", r#","num_queue_pairs":17"#).unwrap_err().to_string(),
            "The num_queue_pairs of an interface must be 1 to 16, not 17."
        );
        assert!(check("t", r#","num_queue_pairs":2,"vhost":true"#).is_ok());
        for (name, fd) in [("t", r#","host_dev_fd":9"#), ("fd:9", ""), ("received:0", "")] {
            assert!(check(name, &format!(r#","num_queue_pairs":1{fd}"#)).is_ok());
            assert_eq!(
                check(name, &format!(r#","num_queue_pairs":2{fd}"#)).unwrap_err().to_string(),
                "num_queue_pairs 2 needs a TAP device by name: a descriptor is one queue pair. Give 1, or the name in \
                 host_dev_name and no descriptor."
            );
        }
    }

    proptest! {
        #[test]
        fn a_mac_reads_back_as_written(bytes: [u8; 6]) {
            prop_assert_eq!(Mac(bytes).to_string().parse(), Ok(Mac(bytes)));
        }
    }
}
