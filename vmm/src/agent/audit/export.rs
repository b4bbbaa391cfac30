//! A range of records with a footer of its own, for somebody else to verify.

use std::io::{self, BufReader, Read, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::chain::{Chain, Fault, Head};
use super::footer::{Footer, Tally, is_footer};
use super::lines::Lines;
use super::log::{AuditLog, Part};

/// Why an export was not completed. What was written until then has no footer, so nobody takes it for whole.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The log was changed: the host does not sign that.
    #[error("{}, line {line}: {fault}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The first bad line; the first of a file is 1. 0 for what is missing at its end.
        line: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The log can't be read.
    #[error("can't read the audit log")]
    Read(#[source] io::Error),
    /// The export can't be written.
    #[error("can't write the export")]
    Write(#[source] io::Error),
    /// The footer has no JSON form.
    #[error("can't write the footer as JSON")]
    Json(#[from] serde_json::Error),
}

impl AuditLog {
    /// Writes the records with numbers in `range` that there are to `to`, and a signed footer. Each file it touches is
    /// checked on the way. Appends go on meanwhile; what they append is not in it.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export(&self, range: RangeInclusive<u64>, to: impl Write) -> Result<Footer, ExportError> {
        let (files, newest) = self.files_from(*range.start()).map_err(ExportError::Read)?;
        let mut copy =
            Copy { range, to, chain: Chain::anywhere(), last: Head::START, tally: Tally::default() };
        let mut is_done = false;
        for Part { path, file, len } in files {
            is_done = is_done || copy.file(&path, file.take(len))?;
        }
        // Whole lines cut off the end leave a chain as good as any; but it is known where it should end.
        if !is_done && newest.seq >= *copy.range.start() && copy.last != newest {
            let fault = Fault::CutShort { last: copy.last.seq, newest: newest.seq };
            return Err(ExportError::Broken { path: self.path().to_owned(), line: 0, fault });
        }
        let (line, footer) = copy.tally.sign(self.key())?;
        copy.to.write_all(&line).and_then(|()| copy.to.flush()).map_err(ExportError::Write)?;
        Ok(footer)
    }
}

struct Copy<W> {
    range: RangeInclusive<u64>,
    to: W,
    chain: Chain,
    /// The last record that was seen.
    last: Head,
    /// The records that were written.
    tally: Tally,
}

impl<W: Write> Copy<W> {
    /// Copies what belongs into the export. Says whether the end of the range was passed.
    fn file(&mut self, path: &Path, file: impl Read) -> Result<bool, ExportError> {
        let mut lines = Lines::of(BufReader::new(file));
        let (mut of_file, mut is_sealed) = (Tally::default(), false);
        while let Some(line) = lines.read().map_err(ExportError::Read)? {
            let taken = line.and_then(|line| {
                if is_sealed {
                    return Err(Fault::AfterFooter);
                }
                if is_footer(line) {
                    is_sealed = true;
                    Footer::open(line, None)?.fits(&of_file)?;
                    return Ok(None);
                }
                let head = self.chain.follow(line)?;
                of_file.add(head);
                Ok(Some((line, head)))
            });
            let (line, head) = match taken {
                Ok(Some(taken)) => taken,
                Ok(None) => continue,
                Err(fault) => {
                    let (path, line) = (path.to_owned(), lines.number());
                    return Err(ExportError::Broken { path, line, fault });
                }
            };
            self.last = head;
            if head.seq > *self.range.end() {
                return Ok(true);
            }
            if self.range.contains(&head.seq) {
                let written = self.to.write_all(line).and_then(|()| self.to.write_all(b"\n"));
                written.map_err(ExportError::Write)?;
                self.tally.add(head);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
