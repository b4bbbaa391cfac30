//! Sums of records: who used how much of what.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::meter::Meter;
use super::period::Record;

/// What has a sum of its own, besides the meter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Each tenant.
    Tenant,
    /// Each VM by its name, whatever incarnations it had.
    #[default]
    Vm,
    /// Each incarnation.
    Incarnation,
}

/// What was used of one meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sum {
    /// The tenant.
    pub tenant: String,
    /// The VM's name, unless it is a tenant's sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// The incarnation, if each has a sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// The meter: `kind` or `kind/what`.
    pub meter: String,
    /// How much the meter counted: a decimal number.
    pub count: String,
    /// The same in `unit`: a decimal number, exact.
    pub quantity: String,
    /// The unit.
    pub unit: String,
}

/// Whether a record counts for a range of time: if it begins in there. So each record counts for exactly one of ranges that
/// touch.
#[must_use]
pub fn is_in(record: &Record, range_ns: &Range<u64>) -> bool {
    range_ns.contains(&record.start_ns)
}

/// Sums up the records that begin within `range_ns` (nanoseconds since 1970), ordered by tenant, VM, incarnation and meter.
/// Records may come in any order, each once. Stops at the first that could not be had.
///
/// # Errors
/// The first that `records` yields.
pub fn aggregate<E>(
    records: impl IntoIterator<Item = Result<Record, E>>,
    range_ns: Range<u64>,
    by: By,
) -> Result<Vec<Sum>, E> {
    type Key = (String, Option<String>, Option<String>, Meter);
    let mut sums = BTreeMap::<Key, u128>::new();
    for record in records {
        let Record { owner, incarnation, used, .. } = match record? {
            record if is_in(&record, &range_ns) => record,
            _ => continue,
        };
        let (vm, incarnation) = match by {
            By::Tenant => (None, None),
            By::Vm => (Some(owner.vm), None),
            By::Incarnation => (Some(owner.vm), Some(incarnation)),
        };
        for (meter, count) in used.iter() {
            let key = (owner.tenant.clone(), vm.clone(), incarnation.clone(), meter.clone());
            let sum = sums.entry(key).or_default();
            *sum = sum.saturating_add(count);
        }
    }
    let sum = |((tenant, vm, incarnation, meter), count): (Key, u128)| Sum {
        tenant,
        vm,
        incarnation,
        meter: meter.to_string(),
        count: count.to_string(),
        quantity: meter.quantity(count),
        unit: meter.unit().0.to_owned(),
    };
    Ok(sums.into_iter().map(sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::usage::{ClockState, Counters, Owner};
    use std::convert::Infallible;

    fn record(tenant: &str, vm: &str, incarnation: &str, start_ns: u64, vcpu_ns: u64) -> Record {
        Record {
            id: format!("{incarnation}-0"),
            incarnation: incarnation.to_owned(),
            seq: 0,
            owner: Owner { tenant: tenant.to_owned(), vm: vm.to_owned(), ..Owner::default() },
            start_ns,
            end_ns: start_ns + 10,
            duration_ns: 10,
            clock: ClockState::Steady,
            is_last: false,
            used: Counters::default().with(Meter::VcpuNs, vcpu_ns).with(Meter::DiskReads, 1u64),
        }
    }

    /// Tenant, VM, incarnation, quantity, unit.
    type Shown = (String, Option<String>, Option<String>, String, String);

    fn sums(range_ns: Range<u64>, by: By) -> Vec<Shown> {
        let records = [
            record("b", "web", "i4", 30, 1_000_000_000),
            record("a", "web", "i1", 10, 500_000_000),
            record("a", "web", "i2", 20, 2_000_000_000),
            record("a", "db", "i3", 20, 4_000_000_000),
        ];
        let all = aggregate(records.map(Ok::<_, Infallible>), range_ns, by).unwrap();
        let vcpu = all.into_iter().filter(|sum| sum.meter == "vcpu_ns");
        vcpu.map(|sum| (sum.tenant, sum.vm, sum.incarnation, sum.quantity, sum.unit)).collect()
    }

    fn row(tenant: &str, vm: Option<&str>, incarnation: Option<&str>, quantity: &str) -> Shown {
        let own = |text: &str| text.to_owned();
        (own(tenant), vm.map(own), incarnation.map(own), own(quantity), own("vCPU-Seconds"))
    }

    #[test]
    fn sums_are_by_what_was_asked_for_and_in_one_order() {
        assert_eq!(sums(0..u64::MAX, By::Tenant), [row("a", None, None, "6.5"), row("b", None, None, "1")]);
        let by_vm = [
            row("a", Some("db"), None, "4"),
            row("a", Some("web"), None, "2.5"),
            row("b", Some("web"), None, "1"),
        ];
        assert_eq!(sums(0..u64::MAX, By::Vm), by_vm);
        let incarnations = sums(0..u64::MAX, By::Incarnation);
        assert_eq!(incarnations[1], row("a", Some("web"), Some("i1"), "0.5"));
        assert_eq!(incarnations.len(), 4);
    }

    #[test]
    fn a_record_counts_for_the_range_that_it_begins_in() {
        assert_eq!(sums(10..20, By::Tenant), [row("a", None, None, "0.5")]);
        assert_eq!(sums(20..30, By::Tenant), [row("a", None, None, "6")]);
        assert_eq!(sums(0..10, By::Tenant), []);
    }

    #[test]
    fn sums_stop_at_a_record_that_could_not_be_read() {
        let records = [Ok(record("a", "web", "i1", 0, 1)), Err("torn")];
        assert_eq!(aggregate(records, 0..9, By::Vm), Err("torn"));
    }
}
