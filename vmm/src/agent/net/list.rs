//! Lists of prefixes that the zone signs: what is domestic, and what nobody may reach. Pure: parsing, checking, signing.
//!
//! The signature is over what a list says, not over how its JSON is laid out. Its kind is part of that, so a list of one kind
//! can't be passed off as one of the other.

use std::fmt::Write;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most prefixes in one list: ten times what the largest country has, and the kernel takes them within a second.
pub const PREFIXES_MAX: usize = 100_000;
/// Most bytes of a signed list: room for that many IPv6 prefixes.
pub const LIST_BYTES_MAX: usize = 8 << 20;
/// What the signed bytes begin with, so that a signature for something else is none for a list.
const CONTEXT: &str = "yun prefix list 1";

/// What a list is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ListKind {
    /// Prefixes that the class `domestic` reaches.
    Domestic,
    /// Prefixes that no class reaches.
    Denied,
}

impl ListKind {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Domestic, Self::Denied];

    /// As it is spelled in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Domestic => "domestic",
            Self::Denied => "denied",
        }
    }
}

/// Why a list is refused.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It is too long to be looked at.
    #[error("the list has {got} bytes: up to {LIST_BYTES_MAX} are accepted")]
    Bytes {
        /// Its length.
        got: usize,
    },
    /// It is no such JSON.
    #[error(
        "the list is not the JSON object of kind, version, prefixes, key and signature that is accepted: {source}"
    )]
    Json {
        /// Where it fails.
        source: serde_json::Error,
    },
    /// It has too many prefixes, or none where that can't be meant.
    #[error("prefixes: the {} list has {got}: {min} to {PREFIXES_MAX} are accepted", kind.name())]
    Number {
        /// The list's kind.
        kind: ListKind,
        /// How many it has.
        got: usize,
        /// How many it must have.
        min: usize,
    },
    /// A prefix has host bits, so something else may be meant.
    #[error("prefixes: {given} has host bits set; {meant} is accepted")]
    HostBits {
        /// The prefix.
        given: IpNet,
        /// The network that it lies in.
        meant: IpNet,
    },
    /// A domestic prefix is wider than any country's.
    #[error("prefixes: {net} is too wide to be domestic: {min} bits or more are accepted")]
    Wide {
        /// The prefix.
        net: IpNet,
        /// Fewest bits.
        min: u8,
    },
    /// A key is not one.
    #[error("{field}: {digits} hexadecimal digits of an Ed25519 {what} are accepted")]
    Hex {
        /// Where.
        field: &'static str,
        /// Of what.
        what: &'static str,
        /// How many.
        digits: usize,
    },
    /// Signed by a key that is none of the zone's.
    #[error("key: {0} is none of the zone's keys")]
    Stranger(String),
    /// The signature is not of this list.
    #[error("signature: it is not one of this list by the key {0}")]
    Forged(String),
    /// The list is of the other kind.
    #[error("kind: it is {}, and {} is accepted here", got.name(), need.name())]
    Kind {
        /// Its kind.
        got: ListKind,
        /// What is needed.
        need: ListKind,
    },
    /// It is not newer than what is in force.
    #[error("version: it is {got}, and {} or more is accepted: {in_force} is in force", in_force.saturating_add(1))]
    Old {
        /// Its version.
        got: u64,
        /// The version in force.
        in_force: u64,
    },
}

/// A list that may be put in force: its prefixes make sense. Whether it comes from the zone, its signature says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixList {
    kind: ListKind,
    version: u64,
    prefixes: Vec<IpNet>,
}

impl PrefixList {
    /// A list of these prefixes; they may touch and overlap.
    ///
    /// # Errors
    /// [`ListError::Number`], also for a domestic list that is empty: it would cut everybody off. [`ListError::HostBits`].
    /// [`ListError::Wide`] below 8 bits of IPv4 and 12 of IPv6 in a domestic list.
    pub fn new(kind: ListKind, version: u64, prefixes: Vec<IpNet>) -> Result<Self, ListError> {
        let min = usize::from(kind == ListKind::Domestic);
        if !(min..=PREFIXES_MAX).contains(&prefixes.len()) {
            return Err(ListError::Number { kind, got: prefixes.len(), min });
        }
        for net in &prefixes {
            if *net != net.trunc() {
                return Err(ListError::HostBits { given: *net, meant: net.trunc() });
            }
            let min = if matches!(net, IpNet::V4(_)) { 8 } else { 12 };
            if kind == ListKind::Domestic && net.prefix_len() < min {
                return Err(ListError::Wide { net: *net, min });
            }
        }
        Ok(Self { kind, version, prefixes })
    }

    /// What it is of.
    #[must_use]
    pub fn kind(&self) -> ListKind {
        self.kind
    }

    /// Its version: a list is followed only by one of a higher version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Its prefixes.
    #[must_use]
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    /// What is signed.
    fn message(&self) -> Vec<u8> {
        let mut text = format!("{CONTEXT}\n{}\n{}\n", self.kind.name(), self.version);
        for net in &self.prefixes {
            let _ = writeln!(text, "{net}");
        }
        text.into_bytes()
    }

    /// Signs it.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> SignedList {
        SignedList {
            kind: self.kind,
            version: self.version,
            prefixes: self.prefixes.clone(),
            key: to_hex(key.verifying_key().as_bytes()),
            signature: to_hex(&key.sign(&self.message()).to_bytes()),
        }
    }
}

/// A list as it is handed over, in a file or a request: unchecked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedList {
    /// What it is of.
    pub kind: ListKind,
    /// Its version.
    pub version: u64,
    /// Its prefixes, IPv4 and IPv6.
    #[schema(value_type = Vec<String>)]
    pub prefixes: Vec<IpNet>,
    /// The public key of who signed it, in hexadecimal.
    pub key: String,
    /// The Ed25519 signature, in hexadecimal.
    pub signature: String,
}

impl SignedList {
    /// Reads one from JSON.
    ///
    /// # Errors
    /// [`ListError::Bytes`], [`ListError::Json`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ListError> {
        if bytes.len() > LIST_BYTES_MAX {
            return Err(ListError::Bytes { got: bytes.len() });
        }
        serde_json::from_slice(bytes).map_err(|source| ListError::Json { source })
    }

    /// The list, if one of `keys` signed it and it makes sense.
    ///
    /// # Errors
    /// [`ListError::Hex`], [`ListError::Stranger`], [`ListError::Forged`]; what [`PrefixList::new`] refuses.
    pub fn verify(self, keys: &[VerifyingKey]) -> Result<PrefixList, ListError> {
        let signer = parse_key(&self.key)?;
        let signature: [u8; 64] = from_hex(&self.signature).ok_or(ListError::Hex {
            field: "signature",
            what: "signature",
            digits: 128,
        })?;
        if !keys.contains(&signer) {
            return Err(ListError::Stranger(self.key));
        }
        let list = PrefixList::new(self.kind, self.version, self.prefixes)?;
        match signer.verify_strict(&list.message(), &Signature::from_bytes(&signature)) {
            Ok(()) => Ok(list),
            Err(_) => Err(ListError::Forged(self.key)),
        }
    }
}

/// Reads a public key of the zone.
///
/// # Errors
/// [`ListError::Hex`].
pub fn parse_key(hex: &str) -> Result<VerifyingKey, ListError> {
    let bytes: Option<[u8; 32]> = from_hex(hex.trim());
    let key = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
    key.ok_or(ListError::Hex { field: "key", what: "public key", digits: 64 })
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn from_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if hex.len() != 2 * N || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn list(kind: ListKind, version: u64, nets: &[&str]) -> Result<PrefixList, ListError> {
        PrefixList::new(kind, version, nets.iter().map(|net| net.parse().unwrap()).collect())
    }

    fn signed() -> SignedList {
        list(ListKind::Domestic, 7, &["203.0.113.0/24", "2001:db8::/32"]).unwrap().sign(&key(1))
    }

    #[test]
    fn a_list_of_the_zone_is_accepted_however_its_json_is_laid_out() {
        let json = serde_json::to_vec_pretty(&signed()).unwrap();
        let list =
            SignedList::parse(&json).unwrap().verify(&[key(2).verifying_key(), key(1).verifying_key()]);
        let list = list.unwrap();
        assert_eq!((list.kind(), list.version(), list.prefixes().len()), (ListKind::Domestic, 7, 2));
        assert!(parse_key(&signed().key).is_ok());
    }

    #[test]
    fn whatever_is_changed_after_signing_is_found() {
        let zone = [key(1).verifying_key()];
        let forged = |change: fn(&mut SignedList)| {
            let mut list = signed();
            change(&mut list);
            matches!(list.verify(&zone), Err(ListError::Forged(_)))
        };
        assert!(forged(|list| list.version += 1));
        assert!(forged(|list| list.kind = ListKind::Denied));
        assert!(forged(|list| list.prefixes.reverse()));
        assert!(forged(|list| list.prefixes.truncate(1)));
        assert!(forged(|list| list.prefixes.push("198.51.100.0/24".parse().unwrap())));
        assert!(forged(|list| list.signature = "0".repeat(128)));
    }

    #[test]
    fn a_strangers_list_is_refused_though_its_signature_is_good() {
        let error = signed().verify(&[key(2).verifying_key()]).unwrap_err();
        assert!(matches!(error, ListError::Stranger(_)), "{error}");
        let mut list = signed();
        list.key = "xy".to_owned();
        assert!(matches!(list.verify(&[]), Err(ListError::Hex { field: "key", .. })));
        let mut list = signed();
        list.signature = "é".repeat(64);
        assert!(matches!(list.verify(&[]), Err(ListError::Hex { field: "signature", .. })));
    }

    #[test]
    fn a_list_that_makes_no_sense_is_refused_though_the_zone_signed_it() {
        let refused = |nets: &[&str]| list(ListKind::Domestic, 1, nets).unwrap_err();
        assert!(matches!(refused(&[]), ListError::Number { got: 0, min: 1, .. }));
        assert!(matches!(refused(&["10.0.0.1/8"]), ListError::HostBits { .. }));
        assert!(matches!(refused(&["0.0.0.0/0"]), ListError::Wide { .. }));
        assert!(matches!(refused(&["2000::/3"]), ListError::Wide { .. }));
        assert!(list(ListKind::Denied, 1, &[]).is_ok(), "a zone may deny nothing");
        assert!(list(ListKind::Denied, 1, &["0.0.0.0/0"]).is_ok(), "or everything");
        let nets = vec!["10.0.0.0/24".parse().unwrap(); PREFIXES_MAX + 1];
        assert!(PrefixList::new(ListKind::Denied, 1, nets).is_err());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in
            ["", "{", "[]", r#"{"kind":"foreign"}"#, r#"{"kind":"denied","version":1,"prefixes":["x"]}"#]
        {
            assert!(matches!(SignedList::parse(text.as_bytes()), Err(ListError::Json { .. })), "{text}");
        }
        assert!(matches!(SignedList::parse(&vec![b' '; LIST_BYTES_MAX + 1]), Err(ListError::Bytes { .. })));
    }
}
