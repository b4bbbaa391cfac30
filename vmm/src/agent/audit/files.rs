//! The files of a log: their names, and what is in one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::chain::{Chain, Digest, Fault, Head, LINE_LEN_MAX};
use super::footer::{Footer, Tally, is_footer};
use super::lines::Lines;

/// Digits of the number of its last record in the name of a full file: any number has room, so names sort as numbers do.
const DIGITS: usize = 20;

/// `path` with `suffix` after its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The name of a full file that ends with record `seq`.
pub(super) fn full(path: &Path, seq: u64) -> PathBuf {
    beside(path, &format!(".{seq:0DIGITS$}"))
}

/// The directory that `path` is in.
fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes names in the directory of `path` last, whatever happens to the host.
pub(super) fn sync_dir_of(path: &Path) -> io::Result<()> {
    File::open(dir_of(path))?.sync_all()
}

/// Opens the file that is appended to, and makes it if need be.
pub(super) fn open_live(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    sync_dir_of(path)?;
    Ok(file)
}

/// The full files of the log `path` and the numbers of their last records, oldest first.
pub(super) fn list_full(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut prefix: OsString = path.file_name().unwrap_or_default().to_owned();
    prefix.push(".");
    let mut found = Vec::new();
    for entry in fs::read_dir(dir_of(path))? {
        let entry = entry?;
        let name = entry.file_name();
        let digits = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes()).unwrap_or_default();
        let seq = str::from_utf8(digits).ok().filter(|digits| digits.len() == DIGITS);
        if let Some(seq) = seq.and_then(|digits| digits.parse().ok()) {
            found.push((seq, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Gives the file `from` the name `to`, unless there is such a file.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)?;
    sync_dir_of(to)
}

/// SHA-256 of a whole file, and its length in bytes.
pub(super) fn digest(path: &Path) -> io::Result<(Digest, u64)> {
    use sha2::{Digest as _, Sha256};
    let (mut file, mut hasher) = (File::open(path)?, Sha256::new());
    let (mut buffer, mut len) = (vec![0; 64 << 10], 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((Digest(hasher.finalize().into()), len)),
            Ok(got) => {
                hasher.update(&buffer[..got]);
                len += u64::try_from(got).expect("a length in memory");
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Where a file stops being what it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScanError {
    #[error("line {line}: {fault}")]
    Line { line: u64, fault: Fault },
    #[error("can't read it")]
    Read(#[from] io::Error),
}

/// What a live file holds.
#[derive(Debug)]
pub(super) struct Scan {
    /// Its records.
    pub(super) tally: Tally,
    /// Whether a footer ends it: it is full, and whoever was to rename it did not get there.
    pub(super) is_sealed: bool,
    /// Bytes of whole lines.
    pub(super) len: u64,
    /// The line after those, if it breaks off.
    pub(super) torn: Option<Vec<u8>>,
}

/// Reads a live file from its beginning. Its first record follows `head`.
pub(super) fn scan(file: &File, head: Head) -> Result<Scan, ScanError> {
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    let mut lines = Lines::of(BufReader::new(file));
    let mut chain = Chain::after(head);
    let mut found = Scan { tally: Tally::default(), is_sealed: false, len: 0, torn: None };
    while let Some(line) = lines.read()? {
        let taken = match line {
            Err(Fault::Torn) => {
                found.torn = Some(lines.bytes().to_vec());
                break;
            }
            Err(fault) => Err(fault),
            Ok(_) if found.is_sealed => Err(Fault::AfterFooter),
            Ok(line) if is_footer(line) && found.tally.count == 0 => {
                Err(Fault::MalformedFooter("it ends a file without records".to_owned()))
            }
            Ok(line) if is_footer(line) => {
                found.is_sealed = true;
                Footer::open(line, None).and_then(|footer| footer.fits(&found.tally))
            }
            Ok(line) => chain.follow(line).map(|head| found.tally.add(head)),
        };
        taken.map_err(|fault| ScanError::Line { line: lines.number(), fault })?;
        found.len = lines.end();
    }
    Ok(found)
}

/// The last record of a full file, as its footer has it.
pub(super) fn head_of_full(path: &Path) -> Result<Head, ScanError> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let from = len.saturating_sub(LINE_LEN_MAX as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LINE_LEN_MAX as u64).read_to_end(&mut bytes)?;
    let fault = |fault| ScanError::Line { line: 0, fault };
    let text = bytes.strip_suffix(b"\n").ok_or_else(|| fault(Fault::Torn))?;
    let line = text.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    if !is_footer(line) {
        return Err(fault(Fault::NoFooter));
    }
    let footer = Footer::open(line, None).map_err(fault)?;
    Ok(Head { seq: footer.last_seq, hash: footer.head })
}
