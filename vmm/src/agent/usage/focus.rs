//! Records as rows with the column names of FOCUS 1.2 (FinOps Open Cost and Usage Specification), and our own with `x_`: one
//! row for each meter of a record that grew. What has to do with prices is left to who sets them.
//!
//! Rows come in the order of the records, and within one in the order of the meters. `x_RecordId` and `SkuMeter` with
//! `x_Volume` and `x_EgressClass` name a row: who gets one twice has the same twice.

use std::io::{self, Write};

use serde::Serialize;
use utoipa::ToSchema;

use super::super::model::EgressClass;
use super::meter::Meter;
use super::period::{ClockState, Record};
use crate::utc::Utc;

/// A row. Numbers are decimal texts, exact; FOCUS takes them as decimals in CSV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct Row {
    /// Who sells it.
    pub provider_name: String,
    /// The tenant.
    pub sub_account_id: String,
    /// The VM's id (its name, if it has none), or the volume's.
    pub resource_id: String,
    /// The VM's name, or the volume's id.
    pub resource_name: String,
    /// `Virtual Machine` or `Volume`.
    pub resource_type: String,
    /// `Compute`, `Storage` or `Networking`, of FOCUS's list.
    pub service_category: String,
    /// Which of our services.
    pub service_name: String,
    /// What has a price.
    pub sku_id: String,
    /// What was measured.
    pub sku_meter: String,
    /// `Usage`.
    pub charge_category: String,
    /// When the period begins: UTC, to the second, rounded down.
    pub charge_period_start: String,
    /// When the period ends, likewise; it is not part of it. The next period begins there.
    pub charge_period_end: String,
    /// How much, in `ConsumedUnit`.
    pub consumed_quantity: String,
    /// The unit.
    pub consumed_unit: String,
    /// The record's id.
    #[serde(rename = "x_RecordId")]
    pub x_record_id: String,
    /// The incarnation.
    #[serde(rename = "x_Incarnation")]
    pub x_incarnation: String,
    /// The VM's name, for volumes too.
    #[serde(rename = "x_VmName")]
    pub x_vm_name: String,
    /// The egress class; empty for what is not network traffic.
    #[serde(rename = "x_EgressClass")]
    pub x_egress_class: String,
    /// The volume's id; empty for what is none.
    #[serde(rename = "x_Volume")]
    pub x_volume: String,
    /// How long the period was by a clock that nobody sets, in nanoseconds.
    #[serde(rename = "x_DurationNs")]
    pub x_duration_ns: String,
    /// What the wall clock did meanwhile: `steady`, `set_back`, `set_forward` or `rebooted`.
    #[serde(rename = "x_Clock")]
    pub x_clock: String,
}

/// Names of the columns, in their order.
pub const COLUMNS: [&str; 21] = [
    "ProviderName",
    "SubAccountId",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "SkuId",
    "SkuMeter",
    "ChargeCategory",
    "ChargePeriodStart",
    "ChargePeriodEnd",
    "ConsumedQuantity",
    "ConsumedUnit",
    "x_RecordId",
    "x_Incarnation",
    "x_VmName",
    "x_EgressClass",
    "x_Volume",
    "x_DurationNs",
    "x_Clock",
];

fn sku(meter: &Meter) -> &'static str {
    match meter {
        Meter::VcpuNs => "vcpu",
        Meter::MemMibNs => "memory",
        Meter::DiskReadBytes => "disk-read-bytes",
        Meter::DiskWrittenBytes => "disk-written-bytes",
        Meter::DiskReads => "disk-reads",
        Meter::DiskWrites => "disk-writes",
        Meter::VolumeByteNs(_) => "volume",
        Meter::NetRxBytes(EgressClass::Isolated) => "ingress-isolated",
        Meter::NetRxBytes(EgressClass::Domestic) => "ingress-domestic",
        Meter::NetRxBytes(EgressClass::International) => "ingress-international",
        Meter::NetTxBytes(EgressClass::Isolated) => "egress-isolated",
        Meter::NetTxBytes(EgressClass::Domestic) => "egress-domestic",
        Meter::NetTxBytes(EgressClass::International) => "egress-international",
    }
}

fn service(meter: &Meter) -> (&'static str, &'static str) {
    match meter {
        Meter::VcpuNs | Meter::MemMibNs => ("Compute", "Virtual Machines"),
        Meter::NetRxBytes(_) | Meter::NetTxBytes(_) => ("Networking", "Network Traffic"),
        Meter::DiskReadBytes
        | Meter::DiskWrittenBytes
        | Meter::DiskReads
        | Meter::DiskWrites
        | Meter::VolumeByteNs(_) => ("Storage", "Block Storage"),
    }
}

fn clock(state: ClockState) -> &'static str {
    match state {
        ClockState::Steady => "steady",
        ClockState::SetBack => "set_back",
        ClockState::SetForward => "set_forward",
        ClockState::Rebooted => "rebooted",
    }
}

/// `ns` as FOCUS has points in time: `2026-11-23T01:02:03Z`. Rounded down, so that periods that touch still do.
fn second(ns: u64) -> String {
    let text = Utc::from_nanos(ns).to_string();
    format!("{}Z", text.split('.').next().unwrap_or_default())
}

/// The rows of a record.
pub fn rows<'a>(provider: &'a str, record: &'a Record) -> impl Iterator<Item = Row> + use<'a> {
    record.used.iter().filter(|(_, count)| *count > 0).map(move |(meter, count)| {
        let owner = &record.owner;
        let vm_id = if owner.vm_id.is_empty() { &owner.vm } else { &owner.vm_id };
        let (resource_id, resource_name, resource_type) = match meter.volume() {
            // Counted by itself it has its own name; with a VM it has none.
            Some(volume) => {
                (volume, if volume == owner.vm_id { owner.vm.as_str() } else { volume }, "Volume")
            }
            None => (vm_id.as_str(), owner.vm.as_str(), "Virtual Machine"),
        };
        let (service_category, service_name) = service(meter);
        Row {
            provider_name: provider.to_owned(),
            sub_account_id: owner.tenant.clone(),
            resource_id: resource_id.to_owned(),
            resource_name: resource_name.to_owned(),
            resource_type: resource_type.to_owned(),
            service_category: service_category.to_owned(),
            service_name: service_name.to_owned(),
            sku_id: sku(meter).to_owned(),
            sku_meter: meter.kind().to_owned(),
            charge_category: "Usage".to_owned(),
            charge_period_start: second(record.start_ns),
            charge_period_end: second(record.end_ns),
            consumed_quantity: meter.quantity(count),
            consumed_unit: meter.unit().0.to_owned(),
            x_record_id: record.id.clone(),
            x_incarnation: record.incarnation.clone(),
            x_vm_name: owner.vm.clone(),
            x_egress_class: meter.egress_class().map_or("", EgressClass::name).to_owned(),
            x_volume: meter.volume().unwrap_or_default().to_owned(),
            x_duration_ns: record.duration_ns.to_string(),
            x_clock: clock(record.clock).to_owned(),
        }
    })
}

impl Row {
    /// The same with every cell such that no spreadsheet takes it for a formula.
    fn for_spreadsheets(mut self) -> Self {
        // The other cells are made here: numbers, times and words.
        for cell in [
            &mut self.provider_name,
            &mut self.sub_account_id,
            &mut self.resource_id,
            &mut self.resource_name,
            &mut self.x_record_id,
            &mut self.x_incarnation,
            &mut self.x_vm_name,
            &mut self.x_volume,
        ] {
            if cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']) {
                cell.insert(0, '\'');
            }
        }
        self
    }
}

/// Writes records in pieces that make one document: as CSV with a header, in which a text cell that a spreadsheet would take
/// for a formula gets a `'` before it; or as a JSON array of [`Row`]s. One row after the other, and none is kept.
#[derive(Debug)]
pub struct Writer {
    provider: String,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Csv { begun: bool },
    Json { begun: bool },
}

impl Writer {
    /// Of CSV, of what `provider` sells.
    #[must_use]
    pub fn csv(provider: &str) -> Self {
        Self { provider: provider.to_owned(), form: Form::Csv { begun: false } }
    }

    /// Of JSON.
    #[must_use]
    pub fn json(provider: &str) -> Self {
        Self { provider: provider.to_owned(), form: Form::Json { begun: false } }
    }

    /// The next records.
    ///
    /// # Errors
    /// What `to` says.
    pub fn add(&mut self, records: &[Record], mut to: impl Write) -> io::Result<()> {
        let rows = records.iter().flat_map(|record| rows(&self.provider, record));
        match &mut self.form {
            Form::Csv { begun } => {
                let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(to);
                // The header goes first, also if there are no rows.
                if !std::mem::replace(begun, true) {
                    csv.write_record(COLUMNS)?;
                }
                for row in rows {
                    csv.serialize(row.for_spreadsheets())?;
                }
                csv.flush()
            }
            Form::Json { begun } => {
                for row in rows {
                    to.write_all(if std::mem::replace(begun, true) { b",\n" } else { b"[\n" })?;
                    serde_json::to_writer(&mut to, &row)?;
                }
                to.flush()
            }
        }
    }

    /// The end.
    ///
    /// # Errors
    /// What `to` says.
    pub fn end(mut self, mut to: impl Write) -> io::Result<()> {
        self.add(&[], &mut to)?;
        match self.form {
            Form::Csv { .. } => {}
            Form::Json { begun: true } => to.write_all(b"\n]\n")?,
            Form::Json { begun: false } => to.write_all(b"[]\n")?,
        }
        to.flush()
    }
}

#[cfg(test)]
#[path = "focus_tests.rs"]
mod tests;
