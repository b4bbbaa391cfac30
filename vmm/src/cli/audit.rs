//! `yun audit`: the agent's record of who asked for what, and a check of an exported one that needs no agent.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Context;
use super::args::host::Audit;
use super::client::with_query;
use super::error::Failure;
use super::output::{print, print_bytes};
use crate::agent::audit;
use crate::sandbox::jail::in_words;

/// Checks an exported file: whether anything was edited, removed or moved, and whether the host with this public key (64
/// hexadecimal digits) signed it. What is said of it is for stdout.
///
/// # Errors
/// [`Failure::File`], [`Failure::Usage`]; [`Failure::Failed`] names the first line that is not what was written.
pub fn verify(path: &Path, key: Option<&str>) -> Result<String, Failure> {
    let key = key.map(audit::key_from_hex).transpose().map_err(|message| Failure::Usage {
        message: format!("--key: {message}"),
        hint: "the public key is shown by `yun audit verify`, on the host or of a file you trust".to_owned(),
    })?;
    let failed = |source| Failure::File { what: "can't read", path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let verified = audit::verify(BufReader::new(file), key.as_ref()).map_err(|error| Failure::Failed {
        message: format!("{} is not what the agent wrote: {}", path.display(), in_words(&error)),
        hint: Some("compare it with an earlier export, or export it again".to_owned()),
    })?;
    let footer = &verified.footer;
    let signer = if verified.key_expected { "by the key that was given" } else { "by the key" };
    Ok(format!(
        "{}: {} records, {} to {}, none edited, removed or moved; signed {signer} {}",
        path.display(),
        footer.count,
        footer.first_seq,
        footer.last_seq,
        footer.host_key,
    ))
}

/// `yun audit`.
pub(crate) async fn audit(context: &Context, command: Audit) -> Result<(), Failure> {
    match command {
        Audit::Verify { file, key } => print(&verify(&file, key.as_deref())?),
        Audit::Export { from, to, output } => {
            let numbers = [("from", from.map(|n| n.to_string())), ("to", to.map(|n| n.to_string()))];
            let mut stream = context.client.stream(&with_query("/v1/audit", &numbers)).await?;
            let Some(path) = output else {
                while let Some(bytes) = stream.next().await? {
                    print_bytes(&bytes)?;
                }
                return Ok(());
            };
            // Nobody else's to read, and what is there is not overwritten.
            let failed = |source| Failure::File { what: "can't write", path: path.clone(), source };
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
            while let Some(bytes) = stream.next().await? {
                file.write_all(&bytes).map_err(failed)?;
            }
            file.sync_all().map_err(failed)
        }
        Audit::Tail { lines } => {
            let mut stream = context.client.stream("/v1/audit").await?;
            let mut tail = Tail::new(lines);
            while let Some(bytes) = stream.next().await? {
                tail.feed(&bytes);
            }
            print_bytes(&tail.end())
        }
    }
}

/// The last lines of a stream.
struct Tail {
    lines: usize,
    kept: VecDeque<Vec<u8>>,
    pending: Vec<u8>,
}

impl Tail {
    fn new(lines: usize) -> Self {
        Self { lines, kept: VecDeque::new(), pending: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.pending);
                self.keep(line);
            }
        }
    }

    fn keep(&mut self, line: Vec<u8>) {
        self.kept.push_back(line);
        if self.kept.len() > self.lines {
            self.kept.pop_front();
        }
    }

    fn end(mut self) -> Vec<u8> {
        if !self.pending.is_empty() {
            let mut line = std::mem::take(&mut self.pending);
            line.push(b'\n');
            self.keep(line);
        }
        self.kept.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_last_lines_however_they_arrive() {
        let tail = |lines, pieces: &[&str]| {
            let mut tail = Tail::new(lines);
            pieces.iter().for_each(|piece| tail.feed(piece.as_bytes()));
            String::from_utf8(tail.end()).unwrap()
        };
        assert_eq!(tail(2, &["a\nb\nc\n"]), "b\nc\n");
        assert_eq!(tail(2, &["a\nb", "b\n", "c"]), "bb\nc\n");
        assert_eq!(tail(9, &["a\n", "\n"]), "a\n\n");
        assert_eq!(tail(0, &["a\nb\n"]), "");
    }
}
