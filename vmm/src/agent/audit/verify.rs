//! An exported file, or a full one, checked alone: any host can do it, and needs nothing of the one that wrote it.

use std::io::{self, BufReader, Read};

use ed25519_dalek::VerifyingKey;
use serde::Serialize;

use super::chain::{Chain, Fault};
use super::footer::{Footer, Tally, is_footer};
use super::lines::Lines;

/// What a file that is whole says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Its footer. If no key was expected, `host_key` is only what the file says: compare it with the host's.
    pub footer: Footer,
    /// Whether it was signed by the key that was expected; false if none was.
    pub key_expected: bool,
}

/// Why a file is not taken for whole.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A line is not what was written, or not where it was written.
    #[error("line {line}: {fault}")]
    Line {
        /// The first that is wrong; the first of a file is 1.
        line: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The file can't be read.
    #[error("can't read what is to be verified")]
    Read(#[from] io::Error),
}

/// Checks an exported file: every line, their order, that none is missing or added anywhere, and the signature, by the key
/// `expected` or, without one, by the key that the file names.
///
/// # Errors
/// [`VerifyError`]: the first bad line, and why.
pub fn verify(reader: impl Read, expected: Option<&VerifyingKey>) -> Result<Verified, VerifyError> {
    let mut lines = Lines::of(BufReader::new(reader));
    let (mut chain, mut tally, mut footer) = (Chain::anywhere(), Tally::default(), None);
    while let Some(line) = lines.read()? {
        let taken = line.and_then(|line| {
            if footer.is_some() {
                return Err(Fault::AfterFooter);
            }
            if is_footer(line) {
                let opened = Footer::open(line, expected)?;
                opened.fits(&tally)?;
                footer = Some(opened);
            } else {
                tally.add(chain.follow(line)?);
            }
            Ok(())
        });
        taken.map_err(|fault| VerifyError::Line { line: lines.number(), fault })?;
    }
    let missing = VerifyError::Line { line: lines.number() + 1, fault: Fault::NoFooter };
    footer.map(|footer| Verified { footer, key_expected: expected.is_some() }).ok_or(missing)
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
