//! A file or FIFO that is written without ever waiting for a reader.

use std::fs::File;
use std::io::{self, Write};

/// Where JSON lines go. A line is written whole: what a full FIFO did not take is written before the next line.
pub(super) struct Sink {
    file: File,
    rest: Vec<u8>,
}

impl Sink {
    pub(super) fn new(file: File) -> Self {
        Self { file, rest: Vec::new() }
    }

    /// Writes a line, or nothing of it.
    pub(super) fn write_line(&mut self, line: String) -> io::Result<()> {
        self.write_rest()?;
        self.rest = line.into_bytes();
        let len = self.rest.len();
        match self.write_rest() {
            // Begun, and finished before the next one: counts as written.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.rest.len() < len => Ok(()),
            Err(error) => {
                self.rest.clear();
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    fn write_rest(&mut self) -> io::Result<()> {
        while !self.rest.is_empty() {
            match self.file.write(&self.rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.rest.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
