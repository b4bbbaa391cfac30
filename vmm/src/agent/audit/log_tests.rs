use super::*;
use crate::agent::audit::testing::{Rig, append, entry, export, key, lines};
use crate::agent::audit::{Record, verify};
use std::fs;

fn reopen(rig: &Rig) -> Result<AuditLog, OpenError> {
    AuditLog::open(&rig.path(), key(), rig.options)
}

fn records(bytes: &[u8]) -> Vec<Record> {
    let is_record = |line: &&&[u8]| line.starts_with(b"{\"seq\"");
    let all = lines(bytes);
    all.iter().filter(is_record).map(|line| serde_json::from_slice(line).unwrap()).collect()
}

#[test]
fn a_record_says_what_was_entered_and_is_hashed_as_its_line_stands() {
    let rig = Rig::new();
    let log = rig.open();
    assert_eq!(log.append(entry("/v1/host"), Durability::Durable).unwrap(), 1);
    let bytes = fs::read(rig.path()).unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap();
    let record = &records(&bytes)[0];
    assert_eq!((record.seq, &record.entry), (1, &entry("/v1/host")));
    assert!(record.time.ends_with('Z') && record.time.len() == 30, "{}", record.time);
    assert_eq!(record.prev, Digest::NONE);
    let covered = text.split(",\"hash\"").next().unwrap();
    assert_eq!(record.hash, Digest::of(covered.as_bytes()));
}

#[test]
fn a_log_goes_on_where_it_ended() {
    let rig = Rig::new();
    drop(rig.filled(3));
    let log = rig.open();
    assert_eq!(log.last_seq(), 3);
    append(&log, 2);
    let verified = verify(&export(&log)[..], Some(&log.public_key())).unwrap();
    assert_eq!(verified.footer.count, 5);
}

#[test]
fn a_record_torn_at_any_byte_is_cut_off_and_a_record_says_so() {
    let rig = Rig::new();
    drop(rig.filled(3));
    let whole = fs::read(rig.path()).unwrap();
    let last = lines(&whole)[2].len();
    for torn in 1..last {
        let kept = whole.len() - last;
        fs::write(rig.path(), &whole[..kept + torn]).unwrap();
        let log = rig.open();
        assert_eq!(log.last_seq(), 3, "two records and the one about it");
        let after = fs::read(rig.path()).unwrap();
        assert_eq!(&after[..kept], &whole[..kept]);
        let note = &records(&after)[2].entry;
        assert_eq!(note.method, "RECOVER");
        assert_eq!(note.note.as_deref(), Some(&*format!("cut {torn} bytes of a line without an end")));
        assert_eq!(note.request_sha256, Some(Digest::of(&whole[kept..kept + torn])));
    }
    verify(&export(&rig.open())[..], None).unwrap();
}

#[test]
fn zeros_at_the_end_as_a_power_cut_leaves_them_are_cut_off() {
    let rig = Rig::new();
    drop(rig.filled(1));
    let mut bytes = fs::read(rig.path()).unwrap();
    bytes.extend([0; 4096]);
    fs::write(rig.path(), bytes).unwrap();
    let log = rig.open();
    assert_eq!(log.last_seq(), 2);
    verify(&export(&log)[..], None).unwrap();
}

#[test]
fn a_broken_chain_is_refused_untouched_and_can_be_set_aside() {
    let rig = Rig::new();
    drop(rig.filled(5));
    let whole = fs::read(rig.path()).unwrap();
    let mut without = lines(&whole);
    without.remove(2);
    let broken = without.concat();
    fs::write(rig.path(), &broken).unwrap();
    let error = reopen(&rig).unwrap_err();
    assert!(
        matches!(error, OpenError::Broken { line: 3, fault: Fault::Misplaced { got: 4, want: 3 }, .. }),
        "{error}"
    );
    assert_eq!(fs::read(rig.path()).unwrap(), broken);

    let (log, aside) = AuditLog::set_aside(&rig.path(), key(), rig.options).unwrap();
    assert_eq!(fs::read(&aside[0]).unwrap(), broken);
    let note = &records(&fs::read(rig.path()).unwrap())[0].entry;
    assert_eq!((note.method.as_str(), note.request_sha256), ("SET-ASIDE", Some(Digest::of(&broken))));
    assert_eq!(note.path, aside[0].display().to_string());
    verify(&export(&log)[..], None).unwrap();
}

#[test]
fn setting_aside_goes_back_to_the_last_file_that_is_whole() {
    let rig = Rig::new();
    let log = rig.filled(2);
    log.rotate().unwrap();
    append(&log, 2);
    log.rotate().unwrap();
    append(&log, 1);
    drop(log);
    let second = &rig.files()[2];
    fs::write(second, "nothing\n").unwrap();
    let error = reopen(&rig).unwrap_err();
    assert!(matches!(&error, OpenError::Broken { path, line: 0, .. } if path == second), "{error}");
    let (log, aside) = AuditLog::set_aside(&rig.path(), key(), rig.options).unwrap();
    assert_eq!(aside.len(), 2, "the bad one, and the live one that followed it");
    assert_eq!(log.last_seq(), 2 + 2);
    verify(&export(&log)[..], None).unwrap();
}

#[test]
fn setting_aside_a_log_that_is_whole_changes_nothing() {
    let rig = Rig::new();
    drop(rig.filled(2));
    let before = fs::read(rig.path()).unwrap();
    let (_log, aside) = AuditLog::set_aside(&rig.path(), key(), rig.options).unwrap();
    assert!(aside.is_empty());
    assert_eq!(fs::read(rig.path()).unwrap(), before);
}

#[test]
fn a_full_file_is_signed_and_the_next_carries_its_hash() {
    let mut rig = Rig::new();
    rig.options.file_len_max = 2000;
    let log = rig.filled(20);
    let files = rig.files();
    assert!(files.len() > 3, "{files:?}");
    let mut prev = Digest::NONE;
    for file in &files[1..] {
        let bytes = fs::read(file).unwrap();
        assert!(bytes.len() < 2000 + 600, "a footer over the bound");
        let footer = verify(&bytes[..], Some(&log.public_key())).unwrap().footer;
        assert!(file.to_str().unwrap().ends_with(&format!(".{:020}", footer.last_seq)));
        assert_eq!(records(&bytes)[0].prev, prev);
        prev = footer.head;
    }
    assert_eq!(records(&fs::read(&files[0]).unwrap())[0].prev, prev);
    assert_eq!(verify(&export(&log)[..], None).unwrap().footer.count, 20);
    drop(log);
    assert_eq!(rig.open().last_seq(), 20);
}

#[test]
fn a_rotation_that_was_killed_at_any_byte_of_the_footer_or_before_the_rename_is_completed_or_undone() {
    let rig = Rig::new();
    let log = rig.filled(2);
    log.rotate().unwrap();
    drop(log);
    let full = rig.files()[1].clone();
    let sealed = fs::read(&full).unwrap();
    let footer = lines(&sealed)[2].len();
    for cut in 0..=footer {
        fs::remove_file(&full).ok();
        fs::write(rig.path(), &sealed[..sealed.len() - cut]).unwrap();
        let log = rig.open();
        let seqs = if cut == 0 || cut == footer { 2 } else { 3 };
        assert_eq!((log.last_seq(), full.exists()), (seqs, cut == 0), "{cut} bytes missing");
        if cut.is_multiple_of(footer / 4) {
            append(&log, 1);
            let verified = verify(&export(&log)[..], None).unwrap();
            assert_eq!((verified.footer.first_seq, verified.footer.last_seq), (1, seqs + 1));
        }
    }
}

#[test]
fn a_log_whose_live_file_was_not_made_yet_follows_the_full_one() {
    let rig = Rig::new();
    let log = rig.filled(2);
    log.rotate().unwrap();
    drop(log);
    fs::remove_file(rig.path()).unwrap();
    let log = rig.open();
    append(&log, 1);
    assert_eq!(log.last_seq(), 3);
    verify(&export(&log)[..], None).unwrap();
}

#[test]
fn a_live_file_of_another_log_is_refused() {
    let (rig, other) = (Rig::new(), Rig::new());
    let log = rig.filled(2);
    log.rotate().unwrap();
    drop(log);
    drop(other.filled(2));
    fs::copy(other.path(), rig.path()).unwrap();
    let error = reopen(&rig).unwrap_err();
    assert!(matches!(error, OpenError::Broken { line: 1, fault: Fault::Misplaced { .. }, .. }), "{error}");
}

#[test]
fn a_live_file_that_is_an_export_of_nothing_is_refused_and_not_put_away() {
    let (rig, other) = (Rig::new(), Rig::new());
    fs::write(rig.path(), export(&other.open())).unwrap();
    let error = reopen(&rig).unwrap_err();
    assert!(matches!(error, OpenError::Broken { line: 1, .. }), "{error}");
    let (log, aside) = AuditLog::set_aside(&rig.path(), key(), rig.options).unwrap();
    assert_eq!((log.last_seq(), aside.len()), (1, 1));
}

#[test]
fn a_log_is_written_by_one() {
    let rig = Rig::new();
    let log = rig.filled(1);
    let error = reopen(&rig).unwrap_err();
    assert!(matches!(error, OpenError::Busy(_)), "{error}");
    drop(log);
    rig.open();
}

#[test]
fn many_threads_at_once_get_one_number_each_and_a_whole_chain() {
    let mut rig = Rig::new();
    rig.options.file_len_max = 10_000;
    let log = rig.open();
    let mut seqs: Vec<u64> = std::thread::scope(|scope| {
        let append = |n: u64| {
            let durability = if n.is_multiple_of(2) { Durability::Durable } else { Durability::Batched };
            (0..25).map(|_| log.append(entry("/v1/vms"), durability).unwrap()).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || append(n))).collect();
        for _ in 0..5 {
            verify(&export(&log)[..], None).unwrap();
        }
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=200).collect::<Vec<_>>());
    assert_eq!(verify(&export(&log)[..], None).unwrap().footer.count, 200);
}

#[test]
fn what_must_last_is_synced_before_the_append_returns_and_the_rest_is_bounded() {
    let rig = Rig::new();
    let log = rig.open();
    let synced = || log.state().synced;
    log.append(entry("/"), Durability::Batched).unwrap();
    assert_eq!(synced(), 0);
    log.append(entry("/"), Durability::Durable).unwrap();
    assert_eq!(synced(), 2);
    append(&log, UNSYNCED_MAX - 1);
    assert_eq!(synced(), 2);
    append(&log, 1);
    assert_eq!(synced(), 2 + UNSYNCED_MAX);
    append(&log, 1);
    log.flush().unwrap();
    assert_eq!(synced(), log.last_seq());
}

#[test]
fn a_log_that_cannot_take_back_half_a_record_stops() {
    let rig = Rig::new();
    let log = rig.filled(1);
    // Neither written to nor cut.
    log.state().file = Arc::new(File::open(rig.path()).unwrap());
    let error = log.append(entry("/"), Durability::Durable).unwrap_err();
    assert!(matches!(error, AppendError::Host { op: "append to", .. }), "{error}");
    let error = log.append(entry("/"), Durability::Durable).unwrap_err();
    assert!(matches!(error, AppendError::Stopped(_)), "{error}");
    assert!(matches!(log.rotate(), Err(AppendError::Stopped(_))));
    drop(log);
    assert_eq!(rig.open().last_seq(), 1);
}

#[test]
fn a_full_file_is_never_overwritten() {
    let rig = Rig::new();
    let log = rig.filled(2);
    let name = files::full(&rig.path(), 2);
    fs::write(&name, "precious").unwrap();
    assert!(matches!(log.rotate(), Err(AppendError::Stopped("put a full file away"))));
    assert_eq!(fs::read_to_string(&name).unwrap(), "precious");
}

#[test]
fn texts_of_any_length_make_a_line_that_can_be_read_back() {
    let rig = Rig::new();
    let log = rig.open();
    let long = || "\u{1}".repeat(100_000) + "é";
    let mut entry = entry(&long());
    (entry.error, entry.note, entry.tenant, entry.who.name) =
        (Some(long()), Some(long()), Some(long()), Some(long()));
    (entry.method, entry.rule, entry.who.groups) = (long(), long(), vec![u32::MAX; 70_000]);
    log.append(entry, Durability::Durable).unwrap();
    let bytes = fs::read(rig.path()).unwrap();
    assert!(records(&bytes)[0].entry.path.ends_with('…'));
    verify(&export(&log)[..], None).unwrap();
    drop(log);
    assert_eq!(rig.open().last_seq(), 1);
}

#[test]
fn only_the_owner_can_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let rig = Rig::new();
    let log = rig.filled(1);
    log.rotate().unwrap();
    for file in rig.files() {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
