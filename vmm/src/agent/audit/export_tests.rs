use super::*;
use crate::agent::audit::testing::{Rig, append, export, key, lines};
use crate::agent::audit::verify;
use std::fs;

#[test]
fn each_range_of_records_is_an_export_of_its_own_over_any_number_of_files() {
    let mut rig = Rig::new();
    rig.options.file_len_max = 1000;
    let log = rig.filled(5);
    for first in 0..=7 {
        for last in first..=7 {
            let mut bytes = Vec::new();
            let footer = log.export(first..=last, &mut bytes).unwrap();
            let want: Vec<u64> = (first.max(1)..=last.min(5)).collect();
            let got = (footer.first_seq, footer.last_seq, footer.count);
            let ends = (want.first().copied().unwrap_or(0), want.last().copied().unwrap_or(0));
            assert_eq!(got, (ends.0, ends.1, u64::try_from(want.len()).unwrap()), "{first}..={last}");
            assert_eq!(verify(&bytes[..], Some(&key().verifying_key())).unwrap().footer, footer);
        }
    }
}

#[test]
fn an_export_of_nothing_is_signed_too() {
    let rig = Rig::new();
    let footer = verify(&export(&rig.open())[..], None).unwrap().footer;
    assert_eq!((footer.first_seq, footer.last_seq, footer.count), (0, 0, 0));
}

#[test]
fn a_log_that_was_changed_under_the_agent_is_not_signed() {
    let rig = Rig::new();
    let log = rig.filled(2);
    log.rotate().unwrap();
    append(&log, 3);
    let attempt = || log.export(0..=u64::MAX, std::io::sink());
    assert_eq!(attempt().unwrap().count, 5);
    for file in rig.files() {
        let whole = fs::read(&file).unwrap();
        let all = lines(&whole);
        for at in 0..all.len() {
            let mut removed = all.clone();
            removed.remove(at);
            // A full file without its footer is still a good chain, and what is exported gets a new one.
            if file != rig.path() && at == all.len() - 1 {
                continue;
            }
            fs::write(&file, removed.concat()).unwrap();
            let error = attempt().unwrap_err();
            assert!(
                matches!(&error, ExportError::Broken { path, .. } if path.starts_with(rig.dir())),
                "{error}"
            );
        }
        fs::write(&file, &whole).unwrap();
    }
    assert_eq!(attempt().unwrap().count, 5);
}

#[test]
fn an_export_that_cannot_be_written_says_so() {
    let rig = Rig::new();
    let log = rig.filled(3);
    let mut small = [0; 500];
    let error = log.export(0..=9, &mut small[..]).unwrap_err();
    assert!(matches!(error, ExportError::Write(_)), "{error}");
    assert!(verify(&small[..], None).is_err());
}
