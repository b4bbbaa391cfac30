//! What is counted.

use std::fmt;
use std::str::FromStr;

use super::super::model::EgressClass;

/// One thing that is counted, in integers that only grow. Written `kind` or `kind/what`, as in `net_tx_bytes/domestic`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meter {
    /// Time that vCPUs ran, in nanoseconds, summed over them.
    VcpuNs,
    /// Memory given, in MiB, times nanoseconds.
    MemMibNs,
    /// Bytes read from disks.
    DiskReadBytes,
    /// Bytes written to disks.
    DiskWrittenBytes,
    /// Read requests.
    DiskReads,
    /// Write requests.
    DiskWrites,
    /// Size of the volume with this id, in bytes, times nanoseconds.
    VolumeByteNs(String),
    /// Bytes that the guest received over interfaces of a class.
    NetRxBytes(EgressClass),
    /// Bytes that the guest sent over interfaces of a class.
    NetTxBytes(EgressClass),
}

/// A name that no meter has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no meter is called {0:?}")]
pub struct UnknownMeter(pub String);

impl Meter {
    const PLAIN: [Self; 6] = [
        Self::VcpuNs,
        Self::MemMibNs,
        Self::DiskReadBytes,
        Self::DiskWrittenBytes,
        Self::DiskReads,
        Self::DiskWrites,
    ];

    /// What kind of meter it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::VcpuNs => "vcpu_ns",
            Self::MemMibNs => "mem_mib_ns",
            Self::DiskReadBytes => "disk_read_bytes",
            Self::DiskWrittenBytes => "disk_written_bytes",
            Self::DiskReads => "disk_reads",
            Self::DiskWrites => "disk_writes",
            Self::VolumeByteNs(_) => "volume_byte_ns",
            Self::NetRxBytes(_) => "net_rx_bytes",
            Self::NetTxBytes(_) => "net_tx_bytes",
        }
    }

    /// The egress class that it counts.
    #[must_use]
    pub fn egress_class(&self) -> Option<EgressClass> {
        match self {
            Self::NetRxBytes(class) | Self::NetTxBytes(class) => Some(*class),
            _ => None,
        }
    }

    /// The volume that it counts.
    #[must_use]
    pub fn volume(&self) -> Option<&str> {
        match self {
            Self::VolumeByteNs(volume) => Some(volume),
            _ => None,
        }
    }

    /// The unit that people are shown, and how many of what is counted make one.
    #[must_use]
    pub fn unit(&self) -> (&'static str, u128) {
        const SECOND: u128 = 1_000_000_000;
        match self {
            Self::VcpuNs => ("vCPU-Seconds", SECOND),
            Self::MemMibNs => ("MiB-Seconds", SECOND),
            Self::DiskReads | Self::DiskWrites => ("Requests", 1),
            Self::VolumeByteNs(_) => ("GiB-Seconds", SECOND << 30),
            Self::DiskReadBytes | Self::DiskWrittenBytes | Self::NetRxBytes(_) | Self::NetTxBytes(_) => {
                ("Bytes", 1)
            }
        }
    }

    /// `count` in the unit that people are shown: a decimal number, exact, without an exponent.
    #[must_use]
    pub fn quantity(&self, count: u128) -> String {
        let (_, per) = self.unit();
        let mut text = (count / per).to_string();
        // Every `per` is a product of twos and fives, so the digits end; and it is far below u128::MAX / 10.
        let mut rest = count % per;
        if rest > 0 {
            text.push('.');
        }
        while rest > 0 {
            text.push_str(&(rest * 10 / per).to_string());
            rest = rest * 10 % per;
        }
        text
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match (self.volume(), self.egress_class()) {
            (Some(volume), _) => write!(f, "/{volume}"),
            (_, Some(class)) => write!(f, "/{}", class.name()),
            (None, None) => Ok(()),
        }
    }
}

impl FromStr for Meter {
    type Err = UnknownMeter;

    fn from_str(text: &str) -> Result<Self, UnknownMeter> {
        let unknown = || UnknownMeter(text.to_owned());
        let Some((kind, what)) = text.split_once('/') else {
            return Self::PLAIN.into_iter().find(|meter| meter.kind() == text).ok_or_else(unknown);
        };
        let class = || EgressClass::ALL.into_iter().find(|class| class.name() == what).ok_or_else(unknown);
        match kind {
            "volume_byte_ns" if !what.is_empty() => Ok(Self::VolumeByteNs(what.to_owned())),
            "net_rx_bytes" => class().map(Self::NetRxBytes),
            "net_tx_bytes" => class().map(Self::NetTxBytes),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_meter_is_read_as_it_is_written() {
        let classes = EgressClass::ALL.into_iter();
        let net = classes.flat_map(|class| [Meter::NetRxBytes(class), Meter::NetTxBytes(class)]);
        let volume = Meter::VolumeByteNs("acme/data".to_owned());
        for meter in Meter::PLAIN.into_iter().chain(net).chain([volume]) {
            assert_eq!(meter.to_string().parse(), Ok(meter));
        }
        for text in ["", "vcpu", "vcpu_ns/", "net_rx_bytes", "net_rx_bytes/all", "volume_byte_ns/"] {
            assert_eq!(text.parse::<Meter>(), Err(UnknownMeter(text.to_owned())));
        }
    }

    #[test]
    fn quantities_are_exact() {
        let volume = Meter::VolumeByteNs("v".to_owned());
        for (meter, count, shown) in [
            (Meter::VcpuNs, 0, "0"),
            (Meter::VcpuNs, 1, "0.000000001"),
            (Meter::MemMibNs, 128_500_000_000, "128.5"),
            (Meter::DiskReads, 7, "7"),
            (volume.clone(), (10 << 30) * 60_000_000_000, "600"),
            (volume.clone(), 1 << 29, "0.0000000005"),
            (volume, 1, "0.000000000000000000931322574615478515625"),
            (Meter::VcpuNs, u128::MAX, "340282366920938463463374607431.768211455"),
        ] {
            assert_eq!(meter.quantity(count), shown, "{meter} {count}");
        }
    }
}
