use super::*;
use crate::agent::audit::testing::{Rig, append, export, key, lines};
use ed25519_dalek::SigningKey;
use proptest::prelude::*;
use std::sync::OnceLock;

/// An export of ten records, made once.
fn exported() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| export(&Rig::new().filled(10)))
}

fn check(bytes: &[u8]) -> Result<Verified, VerifyError> {
    verify(bytes, Some(&key().verifying_key()))
}

/// The first bad line, which must be between those two.
fn assert_found(bytes: &[u8], first: usize, last: usize) {
    match check(bytes) {
        Err(VerifyError::Line { line, fault }) => {
            let line = usize::try_from(line).unwrap();
            assert!((first..=last).contains(&line), "line {line} ({fault}), not in {first}..={last}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_exported_is_whole_and_says_what_it_is() {
    let verified = check(exported()).unwrap();
    let footer = &verified.footer;
    assert_eq!((footer.first_seq, footer.last_seq, footer.count), (1, 10, 10));
    assert!(verified.key_expected);
    assert!(!verify(exported(), None).unwrap().key_expected);
}

/// An export that is as short as one that has all kinds of lines can be.
fn short() -> Vec<u8> {
    export(&Rig::new().filled(2))
}

fn line_at(whole: &[u8], at: usize) -> usize {
    whole[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

#[test]
fn every_byte_of_an_export_counts() {
    let whole = short();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let line = line_at(&whole, at);
        assert_found(&bytes, line, line + 1);
    }
}

#[test]
fn an_export_cut_anywhere_is_not_whole() {
    let whole = short();
    for len in 0..whole.len() {
        let line = line_at(&whole, len);
        assert_found(&whole[..len], line, line);
    }
}

#[test]
fn each_line_removed_repeated_or_swapped_with_the_next_is_found_where_it_was() {
    let all = lines(exported());
    for at in 0..all.len() {
        let mut removed = all.clone();
        removed.remove(at);
        // Without the first, what is missing shows only in the footer.
        let last = if at == 0 { all.len() - 1 } else { at + 1 };
        assert_found(&removed.concat(), at + 1, last);
        let mut repeated = all.clone();
        repeated.insert(at, all[at]);
        assert_found(&repeated.concat(), at + 2, at + 2);
        if at + 1 < all.len() {
            let mut swapped = all.clone();
            swapped.swap(at, at + 1);
            assert_found(&swapped.concat(), at + 1, at + 2);
        }
    }
}

#[test]
fn a_chain_that_was_made_anew_needs_the_hosts_key() {
    // Who can write the file can make every hash right again, and sign with a key of his own.
    let rig = Rig::new();
    let forger = SigningKey::from_bytes(&[9; 32]);
    let log = crate::agent::audit::AuditLog::open(&rig.path(), forger, rig.options).unwrap();
    append(&log, 10);
    let forged = export(&log);
    assert!(verify(&forged[..], None).is_ok(), "nothing to compare with");
    let error = check(&forged).unwrap_err();
    assert!(matches!(error, VerifyError::Line { line: 11, fault: Fault::OtherKey { .. } }), "{error}");
    // Or put one record in the place of another.
    let (forged, whole) = (lines(&forged), lines(exported()));
    let mut mixed = whole.clone();
    mixed[4] = forged[4];
    let error = check(&mixed.concat()).unwrap_err();
    assert!(matches!(error, VerifyError::Line { line: 5, fault: Fault::Unlinked { .. } }), "{error}");
    // Or all of them, and leave the true footer.
    let mixed = [&forged[..10], &whole[10..]].concat().concat();
    let error = check(&mixed).unwrap_err();
    assert!(
        matches!(error, VerifyError::Line { line: 11, fault: Fault::FooterMismatch { field: "head", .. } }),
        "{error}"
    );
}

#[test]
fn an_endless_line_costs_no_memory() {
    let error = verify(std::io::repeat(b'x'), None).unwrap_err();
    assert!(matches!(error, VerifyError::Line { line: 1, fault: Fault::TooLong }), "{error}");
}

/// Something that somebody may do to a file's lines.
#[derive(Clone, Debug)]
enum Edit {
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index, usize),
    Drop(prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Move(prop::sample::Index, prop::sample::Index),
}

impl Edit {
    fn any() -> impl Strategy<Value = Self> {
        let at = any::<prop::sample::Index>;
        prop_oneof![
            (at(), 1..=255u8).prop_map(|(at, mask)| Self::Flip(at, mask)),
            (at(), any::<u8>()).prop_map(|(at, byte)| Self::Insert(at, byte)),
            (at(), 1..300usize).prop_map(|(at, len)| Self::Remove(at, len)),
            at().prop_map(Self::Drop),
            (at(), at()).prop_map(|(of, to)| Self::Repeat(of, to)),
            (at(), at()).prop_map(|(one, other)| Self::Swap(one, other)),
            (at(), at()).prop_map(|(from, to)| Self::Move(from, to)),
        ]
    }

    fn apply(&self, bytes: &[u8]) -> Vec<u8> {
        let mut flat = bytes.to_vec();
        let mut all = lines(bytes);
        let (len, count) = (flat.len(), all.len());
        if count == 0 {
            return flat;
        }
        match self {
            Self::Flip(at, mask) => flat[at.index(len)] ^= mask,
            Self::Insert(at, byte) => flat.insert(at.index(len), *byte),
            Self::Remove(at, many) => {
                let at = at.index(len);
                flat.drain(at..len.min(at + many));
            }
            Self::Drop(at) => drop(all.remove(at.index(count))),
            Self::Repeat(of, to) => all.insert(to.index(count), all[of.index(count)]),
            Self::Swap(one, other) => all.swap(one.index(count), other.index(count)),
            Self::Move(from, to) => {
                let line = all.remove(from.index(count));
                all.insert(to.index(count), line);
            }
        }
        if matches!(self, Self::Flip(..) | Self::Insert(..) | Self::Remove(..)) { flat } else { all.concat() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn whatever_is_done_to_an_export_is_found(edits in prop::collection::vec(Edit::any(), 1..4)) {
        let edited = edits.iter().fold(exported().to_vec(), |bytes, edit| edit.apply(&bytes));
        prop_assert_eq!(check(&edited).is_ok(), edited == exported());
    }

    #[test]
    fn no_input_makes_verifying_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(check(&bytes).is_err());
    }
}
