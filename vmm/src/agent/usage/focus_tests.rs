use super::*;
use crate::agent::usage::{Counters, Owner};

fn record(seq: u64, vm: &str) -> Record {
    const START_NS: u64 = 1_795_395_723_000_000_000;
    Record {
        id: format!("inc1-{seq}"),
        incarnation: "inc1".to_owned(),
        seq,
        owner: Owner {
            tenant: "acme".to_owned(),
            vm: vm.to_owned(),
            vm_id: "id-7".to_owned(),
            ..Owner::default()
        },
        start_ns: START_NS + seq * 60_500_000_000,
        end_ns: START_NS + (seq + 1) * 60_500_000_000,
        duration_ns: 60_500_000_000,
        clock: ClockState::Steady,
        is_last: false,
        used: Counters::default()
            .with(Meter::VcpuNs, 1_500_000_000u64)
            .with(Meter::DiskReads, 0u64)
            .with(Meter::VolumeByteNs("acme/data".to_owned()), (3u64 << 30) * 60)
            .with(Meter::NetTxBytes(EgressClass::Domestic), 42u64),
    }
}

fn csv_of(records: &[Record]) -> String {
    let mut bytes = Vec::new();
    let mut writer = Writer::csv("Yun");
    records.iter().for_each(|record| writer.add(std::slice::from_ref(record), &mut bytes).unwrap());
    writer.end(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn each_meter_that_grew_is_a_row_in_one_order() {
    let text = csv_of(&[record(0, "web")]);
    let want = [
        COLUMNS.join(","),
        "Yun,acme,id-7,web,Virtual Machine,Compute,Virtual Machines,vcpu,vcpu_ns,Usage,\
         2026-11-23T01:02:03Z,2026-11-23T01:03:03Z,1.5,vCPU-Seconds,inc1-0,inc1,web,,,60500000000,steady"
            .to_owned(),
        "Yun,acme,acme/data,acme/data,Volume,Storage,Block Storage,volume,volume_byte_ns,Usage,\
         2026-11-23T01:02:03Z,2026-11-23T01:03:03Z,0.00000018,GiB-Seconds,inc1-0,inc1,web,,acme/data,\
         60500000000,steady"
            .to_owned(),
        "Yun,acme,id-7,web,Virtual Machine,Networking,Network Traffic,egress-domestic,net_tx_bytes,Usage,\
         2026-11-23T01:02:03Z,2026-11-23T01:03:03Z,42,Bytes,inc1-0,inc1,web,domestic,,60500000000,steady"
            .to_owned(),
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), want);
}

#[test]
fn json_has_the_same_rows_and_columns_as_csv() {
    let records = [record(0, "web"), record(1, "web")];
    let mut bytes = Vec::new();
    let mut writer = Writer::json("Yun");
    records.iter().for_each(|record| writer.add(std::slice::from_ref(record), &mut bytes).unwrap());
    writer.end(&mut bytes).unwrap();
    let json: Vec<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(&bytes).unwrap();
    let text = csv_of(&records);
    let mut csv = csv::Reader::from_reader(text.as_bytes());
    let csv: Vec<_> = csv.records().map(Result::unwrap).collect();
    assert_eq!((json.len(), csv.len()), (6, 6));
    for (json, csv) in json.iter().zip(&csv) {
        assert_eq!(json.len(), COLUMNS.len());
        for (column, cell) in COLUMNS.iter().zip(csv) {
            assert_eq!(json[*column], cell, "{column}");
        }
    }
}

#[test]
fn periods_that_touch_still_do_in_whole_seconds() {
    let (one, two) = (record(0, "web"), record(1, "web"));
    let end = rows("Yun", &one).next().unwrap().charge_period_end;
    assert_eq!(end, rows("Yun", &two).next().unwrap().charge_period_start);
}

#[test]
fn no_name_is_taken_for_a_formula_or_for_another_cell() {
    for name in ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "＝1"] {
        let text = csv_of(&[record(0, name)]);
        let row = csv::Reader::from_reader(text.as_bytes()).records().next().unwrap().unwrap();
        assert_eq!(&row[3], format!("'{name}"));
    }
    for name in ["a,b", "a\"b", "a\nb", "a=b"] {
        let text = csv_of(&[record(0, name)]);
        let row = csv::Reader::from_reader(text.as_bytes()).records().next().unwrap().unwrap();
        assert_eq!((&row[3], row.len()), (name, COLUMNS.len()));
    }
}

#[test]
fn nothing_is_a_header_and_an_empty_array() {
    assert_eq!(csv_of(&[]), COLUMNS.join(",") + "\n");
    let mut bytes = Vec::new();
    Writer::json("Yun").end(&mut bytes).unwrap();
    assert_eq!(bytes, b"[]\n");
}

#[test]
fn what_is_broken_off_is_no_document() {
    let mut bytes = Vec::new();
    let mut writer = Writer::json("Yun");
    writer.add(&[record(0, "web")], &mut bytes).unwrap();
    assert!(serde_json::from_slice::<Vec<serde_json::Value>>(&bytes).is_err());
    writer.end(&mut bytes).unwrap();
    assert_eq!(serde_json::from_slice::<Vec<serde_json::Value>>(&bytes).unwrap().len(), 3);
}
