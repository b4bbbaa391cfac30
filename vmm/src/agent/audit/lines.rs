//! Lines out of a reader, none longer than a record can be: a file that is one endless line costs no memory.

use std::io::{self, BufRead, Read};

use super::chain::{Fault, LINE_LEN_MAX};

/// Reads lines.
#[derive(Debug)]
pub struct Lines<R> {
    from: R,
    line: Vec<u8>,
    number: u64,
    end: u64,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `from`.
    pub fn of(from: R) -> Self {
        Self { from, line: Vec::new(), number: 0, end: 0 }
    }

    /// The number of the line that was read last; the first is 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Where the line that was read last ends, in bytes from the beginning.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// What there is of the line that was read last.
    pub fn bytes(&self) -> &[u8] {
        &self.line
    }

    /// Reads a line; `None` at the end. The line is without its end.
    ///
    /// # Errors
    /// What the reader says. Inside, [`Fault::Torn`] for a line without an end and [`Fault::TooLong`].
    pub fn read(&mut self) -> io::Result<Option<Result<&[u8], Fault>>> {
        self.line.clear();
        let bound = LINE_LEN_MAX as u64 + 1;
        let got = Read::by_ref(&mut self.from).take(bound).read_until(b'\n', &mut self.line)?;
        if got == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.end += u64::try_from(got).expect("a length in memory");
        Ok(Some(if self.line.last() == Some(&b'\n') {
            self.line.pop();
            Ok(&self.line)
        } else if self.line.len() > LINE_LEN_MAX {
            Err(Fault::TooLong)
        } else {
            Err(Fault::Torn)
        }))
    }
}
