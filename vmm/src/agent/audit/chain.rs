//! A record as a line, and whether a line follows the one before.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use super::entry::Entry;

/// Longest line without its end, in bytes: every text at its bound, and each byte of them escaped (`\u0000`).
pub const LINE_LEN_MAX: usize = 128 << 10;

const HASH: &[u8] = b",\"hash\":\"";
const END: &[u8] = b"\"}";

/// A SHA-256, shown and read as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// What the first record of a chain has before it.
    pub const NONE: Self = Self([0; 32]);

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not as many lower-case hexadecimal digits as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {digits} lower-case hexadecimal digits")]
pub struct NotHex {
    /// How many there should be.
    pub digits: usize,
}

impl FromStr for Digest {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Self, NotHex> {
        from_hex(text.as_bytes()).map(Self)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// `bytes` as lower-case hexadecimal digits.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

/// The bytes that `text` shows. One spelling each: capitals are refused, so that no byte of a file can change unseen.
pub(super) fn from_hex<const N: usize>(text: &[u8]) -> Result<[u8; N], NotHex> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(NotHex { digits: 2 * N }),
    };
    if text.len() != 2 * N {
        return Err(NotHex { digits: 2 * N });
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

/// Splits a line into what its last member covers and that member's value: `…,"hash":"VALUE"}`.
pub(super) fn split_last<'a>(line: &'a [u8], member: &[u8], len: usize) -> Option<(&'a [u8], &'a [u8])> {
    let rest = line.strip_suffix(END)?;
    let (rest, value) = rest.split_at_checked(rest.len().checked_sub(len)?)?;
    Some((rest.strip_suffix(member)?, value))
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Longer than any that is written.
    #[error("it is longer than {LINE_LEN_MAX} bytes")]
    TooLong,
    /// It breaks off.
    #[error("it has no end: the file was cut, or is still being written")]
    Torn,
    /// Not of the form that is written.
    #[error("it is not a record: {0}")]
    Malformed(String),
    /// Its bytes are not those that were hashed.
    #[error("it was changed: its bytes hash to {computed}, and it says {said}")]
    Changed {
        /// Of its bytes.
        computed: Digest,
        /// What it says.
        said: Digest,
    },
    /// Records before it are gone, repeated, inserted or in another order.
    #[error("it is record {got} where record {want} belongs: lines were removed, added or moved")]
    Misplaced {
        /// Its number.
        got: u64,
        /// The number that follows.
        want: u64,
    },
    /// It was written after another record than the one before it.
    #[error(
        "it follows a record with hash {said}, and the one before it has {before}: one of them was put in"
    )]
    Unlinked {
        /// What it says of the record before.
        said: Digest,
        /// The hash of the record before.
        before: Digest,
    },
    /// The last line is not a footer.
    #[error("a footer belongs here: the file's end was removed")]
    NoFooter,
    /// Not of the form that is written.
    #[error("it is not a footer: {0}")]
    MalformedFooter(String),
    /// It is about other records than those above it.
    #[error(
        "the footer says {field} {said}, and the records above it {found}: records were removed or added"
    )]
    FooterMismatch {
        /// What differs.
        field: &'static str,
        /// As the footer has it.
        said: String,
        /// As the records have it.
        found: String,
    },
    /// Signed by another key than it should be.
    #[error("it is signed by key {found}, and key {expected} was expected")]
    OtherKey {
        /// The footer's.
        found: String,
        /// The one asked for.
        expected: String,
    },
    /// The signature is not over this footer, or not by its key.
    #[error("the signature does not fit the footer and its key: the footer was changed")]
    Signature,
    /// The log ends before the record that was appended last.
    #[error("the log ends with record {last}, and record {newest} was appended: its end was removed")]
    CutShort {
        /// The last that is there.
        last: u64,
        /// The last that was appended.
        newest: u64,
    },
    /// Something follows the footer.
    #[error("nothing belongs after the footer")]
    AfterFooter,
}

/// The last record of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: Digest,
}

/// What every record has, whatever version wrote it.
#[derive(Deserialize)]
struct Link {
    seq: u64,
    prev: Digest,
}

#[derive(Serialize)]
struct Unsealed<'a> {
    seq: u64,
    time: &'a str,
    #[serde(flatten)]
    entry: &'a Entry,
    prev: Digest,
}

impl Head {
    /// Before the first record.
    pub const START: Self = Self { seq: 0, hash: Digest::NONE };

    /// The line, with its end, that says `entry` after this record, and the head it makes.
    ///
    /// # Errors
    /// If the entry can't be written as JSON.
    pub fn seal(&self, time: &str, entry: &Entry) -> Result<(Vec<u8>, Self), serde_json::Error> {
        let seq = self.seq + 1;
        let mut line = serde_json::to_vec(&Unsealed { seq, time, entry, prev: self.hash })?;
        line.pop(); // the closing brace
        let hash = Digest::of(&line);
        line.extend(HASH);
        line.extend(to_hex(&hash.0).bytes());
        line.extend(END);
        line.push(b'\n');
        Ok((line, Self { seq, hash }))
    }
}

/// Lines one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    last: Option<Head>,
}

impl Chain {
    /// A chain whose next line follows `head`.
    #[must_use]
    pub fn after(head: Head) -> Self {
        Self { last: Some(head) }
    }

    /// A chain of which the beginning is not here: its first line is taken for what it says of the one before it.
    #[must_use]
    pub fn anywhere() -> Self {
        Self { last: None }
    }

    /// Takes the next line, without its end. After an error the chain is as it was.
    ///
    /// # Errors
    /// [`Fault`], for a line that was changed or does not follow.
    pub fn follow(&mut self, line: &[u8]) -> Result<Head, Fault> {
        let malformed = |why: &str| Fault::Malformed(why.to_owned());
        let (covered, said) =
            split_last(line, HASH, 64).ok_or_else(|| malformed("its last member is not \"hash\""))?;
        let said = Digest(from_hex(said).map_err(|error| malformed(&format!("\"hash\" is {error}")))?);
        let computed = Digest::of(covered);
        if computed != said {
            return Err(Fault::Changed { computed, said });
        }
        let link: Link = serde_json::from_slice(line).map_err(|error| malformed(&error.to_string()))?;
        // Number 1 has nothing before it, wherever it stands.
        let before = if link.seq == 1 { Some(self.last.unwrap_or(Head::START)) } else { self.last };
        if let Some(before) = before {
            let want = before.seq.saturating_add(1);
            if link.seq != want {
                return Err(Fault::Misplaced { got: link.seq, want });
            }
            if link.prev != before.hash {
                return Err(Fault::Unlinked { said: link.prev, before: before.hash });
            }
        }
        let head = Head { seq: link.seq, hash: said };
        self.last = Some(head);
        Ok(head)
    }
}
