//! The last line of an export and of a full file: what is above it, signed.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::chain::{Digest, Fault, Head, from_hex, split_last, to_hex};
use crate::utc::Utc;

/// What a footer begins with. It also keeps its signature from being one of anything else that the key signs.
const FORMAT: &str = "yun-audit/1";
const BEGINNING: &[u8] = b"{\"format\":";
const SIGNATURE: &[u8] = b",\"signature\":\"";

/// What a footer says of the records above it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Footer {
    /// `yun-audit/1`.
    pub format: String,
    /// Number of the first record; 0 if there is none.
    pub first_seq: u64,
    /// Number of the last record; 0 if there is none.
    pub last_seq: u64,
    /// How many records there are.
    pub count: u64,
    /// Hash of the last record; zeros if there is none.
    #[schema(value_type = String)]
    pub head: Digest,
    /// When it was signed: RFC 3339, UTC.
    pub time: String,
    /// The host's public key, in hexadecimal digits.
    pub host_key: String,
}

/// Records as they go by, for a footer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) first_seq: u64,
    pub(super) count: u64,
    pub(super) last: Option<Head>,
}

impl Tally {
    pub(super) fn add(&mut self, head: Head) {
        if self.count == 0 {
            self.first_seq = head.seq;
        }
        self.count += 1;
        self.last = Some(head);
    }

    /// The last record, or what stands for none.
    pub(super) fn head(&self) -> Head {
        self.last.unwrap_or(Head::START)
    }

    /// The line, with its end, that signs what went by.
    pub(super) fn sign(&self, key: &SigningKey) -> Result<(Vec<u8>, Footer), serde_json::Error> {
        let Head { seq: last_seq, hash: head } = self.head();
        let footer = Footer {
            format: FORMAT.to_owned(),
            first_seq: self.first_seq,
            last_seq,
            count: self.count,
            head,
            time: format!("{}Z", Utc::now()),
            host_key: key_to_hex(&key.verifying_key()),
        };
        let mut line = serde_json::to_vec(&footer)?;
        line.pop(); // the closing brace
        let signature = key.sign(&line);
        line.extend(SIGNATURE);
        line.extend(to_hex(&signature.to_bytes()).bytes());
        line.extend(b"\"}\n");
        Ok((line, footer))
    }
}

/// A public key as footers show it.
#[must_use]
pub fn key_to_hex(key: &VerifyingKey) -> String {
    to_hex(key.as_bytes())
}

/// The public key that `text` shows, as an operator gives it.
///
/// # Errors
/// In words, if it is none.
pub fn key_from_hex(text: &str) -> Result<VerifyingKey, String> {
    let bytes = from_hex(text.as_bytes()).map_err(|error| format!("key {text:?} is {error}"))?;
    VerifyingKey::from_bytes(&bytes).map_err(|_| format!("key {text:?} is not an ed25519 public key"))
}

/// Whether a line means to be a footer.
pub(super) fn is_footer(line: &[u8]) -> bool {
    line.starts_with(BEGINNING)
}

impl Footer {
    /// Reads a footer, without its line's end, and checks its signature by `expected`, or by the key that it names.
    ///
    /// # Errors
    /// [`Fault::MalformedFooter`], [`Fault::OtherKey`], [`Fault::Signature`].
    pub fn open(line: &[u8], expected: Option<&VerifyingKey>) -> Result<Self, Fault> {
        let malformed = Fault::MalformedFooter;
        let (covered, signature) = split_last(line, SIGNATURE, 128)
            .ok_or_else(|| malformed("its last member is not \"signature\"".to_owned()))?;
        let signature =
            from_hex(signature).map_err(|error| malformed(format!("\"signature\" is {error}")))?;
        let footer: Self = serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
        if footer.format != FORMAT {
            return Err(malformed(format!(
                "its format is {:?}, and {FORMAT:?} is understood",
                footer.format
            )));
        }
        let key = key_from_hex(&footer.host_key).map_err(malformed)?;
        if let Some(expected) = expected.filter(|expected| **expected != key) {
            return Err(Fault::OtherKey { found: footer.host_key, expected: key_to_hex(expected) });
        }
        match key.verify_strict(covered, &Signature::from_bytes(&signature)) {
            Ok(()) => Ok(footer),
            Err(_) => Err(Fault::Signature),
        }
    }

    /// Whether it is about the records that went by.
    pub(super) fn fits(&self, tally: &Tally) -> Result<(), Fault> {
        let Head { seq, hash } = tally.head();
        let pairs = [
            ("first_seq", self.first_seq.to_string(), tally.first_seq.to_string()),
            ("last_seq", self.last_seq.to_string(), seq.to_string()),
            ("count", self.count.to_string(), tally.count.to_string()),
            ("head", self.head.to_string(), hash.to_string()),
        ];
        match pairs.into_iter().find(|(_, said, found)| said != found) {
            None => Ok(()),
            Some((field, said, found)) => Err(Fault::FooterMismatch { field, said, found }),
        }
    }
}
