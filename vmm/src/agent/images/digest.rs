//! SHA-256 of files, and the names that come of it.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use crate::agent::files::copy::{BUFFER, Piece};

/// Characters of a digest: two for each of 32 bytes.
pub const DIGEST_LEN: usize = 64;

/// A SHA-256, as 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(example = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
pub struct Digest(String);

/// Why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no SHA-256: 64 lower-case hexadecimal digits are accepted")]
pub struct NoDigest(String);

impl Digest {
    /// Of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.0.update(bytes);
        hasher.finish()
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Digest {
    type Error = NoDigest;

    fn try_from(text: String) -> Result<Self, NoDigest> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if digits && text.len() == DIGEST_LEN { Ok(Self(text)) } else { Err(NoDigest(text)) }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which image: the digest of its manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct ImageId(pub Digest);

impl ImageId {
    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A digest on the way.
#[derive(Debug, Default)]
pub(super) struct Hasher(Sha256);

impl Hasher {
    /// Takes `range` of `file` in, which is all of `piece`'s kind. Holes need not be read.
    pub(super) fn update(&mut self, file: &File, range: Range<u64>, piece: Piece) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let mut offset = range.start;
        while offset < range.end {
            let length = buffer.len().min(usize::try_from(range.end - offset).unwrap_or(usize::MAX));
            if piece == Piece::Data {
                file.read_exact_at(&mut buffer[..length], offset)?;
            }
            self.0.update(&buffer[..length]);
            offset += length as u64;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Digest {
        use fmt::Write;
        let mut text = String::with_capacity(DIGEST_LEN);
        for byte in self.0.finalize() {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Digest(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_known_ones_and_nothing_else_is_one() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"").as_str(), empty);
        assert_eq!(Digest::of(b"abc").as_str(), abc);
        assert!(Digest::try_from(abc.to_owned()).is_ok());
        for wrong in ["", "../x", &abc[1..], &abc.to_uppercase(), &format!("{abc}0"), &abc.replace('b', "g")]
        {
            assert!(Digest::try_from((*wrong).to_owned()).is_err(), "{wrong}");
            assert!(serde_json::from_value::<ImageId>(serde_json::json!(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_hole_counts_as_the_zeros_that_it_reads_as() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(700_000).unwrap();
        let (mut hole, mut data) = (Hasher::default(), Hasher::default());
        hole.update(&file, 0..700_000, Piece::Hole).unwrap();
        data.update(&file, 0..700_000, Piece::Data).unwrap();
        let digest = hole.finish();
        assert_eq!(digest, data.finish());
        assert_eq!(digest, Digest::of(&vec![0; 700_000]));
    }
}
