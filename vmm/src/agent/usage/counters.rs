//! Totals by meter.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use super::meter::Meter;

/// How much each meter has counted. A meter that is not there was not read, or has counted nothing.
///
/// In JSON an object whose values are decimal numbers in strings, since they outgrow what readers of JSON keep exactly:
/// `{"vcpu_ns":"1500000000","net_tx_bytes/domestic":"42"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, ToSchema)]
#[schema(value_type = std::collections::HashMap<String, String>)]
pub struct Counters(BTreeMap<Meter, u128>);

impl Counters {
    /// The same with `meter` at `count`.
    #[must_use]
    pub fn with(mut self, meter: Meter, count: impl Into<u128>) -> Self {
        self.set(meter, count);
        self
    }

    /// Puts `meter` at `count`.
    pub fn set(&mut self, meter: Meter, count: impl Into<u128>) {
        self.0.insert(meter, count.into());
    }

    /// What `meter` has counted, if it was read.
    #[must_use]
    pub fn get(&self, meter: &Meter) -> Option<u128> {
        self.0.get(meter).copied()
    }

    /// Every meter that is there, in one order.
    pub fn iter(&self) -> impl Iterator<Item = (&Meter, u128)> {
        self.0.iter().map(|(meter, count)| (meter, *count))
    }

    /// Whether no meter is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Counters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(meter, count)| (meter.to_string(), count.to_string())))
    }
}

impl<'de> Deserialize<'de> for Counters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = BTreeMap::<String, String>::deserialize(deserializer)?;
        let read = |(meter, count): (String, String)| {
            let meter: Meter = meter.parse().map_err(de::Error::custom)?;
            let bad = || de::Error::custom(format!("{meter} is {count:?}, and a decimal number is read"));
            Ok((meter.clone(), count.parse().map_err(|_| bad())?))
        };
        text.into_iter().map(read).collect::<Result<_, D::Error>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_of_any_size_are_read_back_exactly() {
        let counters = Counters::default()
            .with(Meter::MemMibNs, u128::MAX)
            .with(Meter::VolumeByteNs("data".to_owned()), 1u64);
        let text = serde_json::to_string(&counters).unwrap();
        assert_eq!(
            text,
            r#"{"mem_mib_ns":"340282366920938463463374607431768211455","volume_byte_ns/data":"1"}"#
        );
        assert_eq!(serde_json::from_str::<Counters>(&text).unwrap(), counters);
        // By way of a value, as front ends do.
        let value = serde_json::to_value(&counters).unwrap();
        assert_eq!(serde_json::from_value::<Counters>(value).unwrap(), counters);
    }

    #[test]
    fn what_is_no_meter_or_no_count_is_refused_by_name() {
        for (text, part) in
            [(r#"{"vcpu":"1"}"#, "no meter is called \"vcpu\""), (r#"{"vcpu_ns":"-1"}"#, "vcpu_ns is \"-1\"")]
        {
            let error = serde_json::from_str::<Counters>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
