//! The VMs: one task each that makes what is what is wanted.

pub mod client;
pub mod console;
pub mod decide;
pub mod differ;
pub mod launch;
pub mod live;
mod plug;
pub mod process;
pub mod supervise;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use super::clock;
use super::model::Ended;

/// A VMM's log is set aside when it is longer than this at a start, in bytes.
const LOG_LEN_MAX: u64 = 1 << 20;
/// How much of the end of a log is looked at for its last line, in bytes.
const TAIL: u64 = 4096;

/// Opens the log of a VM's processes, for appending. A long one is set aside first.
fn log_file(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_LEN_MAX) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Last line of a log, without its time and thread; empty if there is none.
fn last_line(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("");
    // "2026-11-23T01:02:03.123456789 [vm-1:main] words"
    let words = line
        .split_once("] ")
        .filter(|(head, _)| head.starts_with(|c: char| c.is_ascii_digit()) && head.contains(" ["))
        .map_or(line, |(_, words)| words);
    words.trim().to_owned()
}

/// How an incarnation ended: by its process's status where that is known, else by what its VMM said last.
fn how_it_ended(status: Option<ExitStatus>, last_words: &str) -> Ended {
    const SAID: &str = "The microVM ended: ";
    let said = last_words.strip_prefix(SAID).and_then(|rest| {
        let (reason, rest) = rest.rsplit_once(" (reason ")?;
        let status = rest.rsplit_once("exit status ")?.1.trim_end_matches(')').parse().ok()?;
        Some((reason.to_owned(), status))
    });
    let signal = status.and_then(|status| status.signal());
    let (reason, code) = match (said, status, signal) {
        (Some((reason, code)), None, _) => (reason, Some(code)),
        (Some((reason, _)), Some(status), None) => (reason, status.code()),
        (_, _, Some(signal)) => (format!("its VMM was ended by signal {signal}"), None),
        (None, Some(status), None) => {
            (format!("its VMM ended with {status}; it said last: {last_words}"), status.code())
        }
        (None, None, None) => ("its VMM was ended while nobody looked".to_owned(), None),
    };
    Ended { status: code, signal, reason, at: clock::now() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_by_the_status_and_in_the_vmms_words() {
        let words = "The microVM ended: the guest's kernel panicked (reason panic, exit status 10)";
        let end = how_it_ended(None, words);
        assert_eq!((end.status, end.reason.as_str()), (Some(10), "the guest's kernel panicked"));
        let end = how_it_ended(Some(ExitStatus::from_raw(10 << 8)), words);
        assert_eq!((end.status, end.reason.as_str()), (Some(10), "the guest's kernel panicked"));
        let end = how_it_ended(Some(ExitStatus::from_raw(9)), "something");
        assert_eq!(
            (end.status, end.signal, end.reason.as_str()),
            (None, Some(9), "its VMM was ended by signal 9")
        );
        let end = how_it_ended(Some(ExitStatus::from_raw(1 << 8)), "no room");
        assert!(end.reason.ends_with("it said last: no room"), "{}", end.reason);
        assert_eq!(how_it_ended(None, "x").status, None);
    }

    #[test]
    fn the_last_line_of_a_log_is_found_without_its_head() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmm.log");
        assert_eq!(last_line(&path), "");
        fs::write(&path, "2026-11-23T01:02:03.1 [vm-1:main:INFO] first\n2026 [vm-1:main] the [last] one\n\n")
            .unwrap();
        assert_eq!(last_line(&path), "the [last] one");
        fs::write(&path, "yun-jailer: can't [do] that\n").unwrap();
        assert_eq!(last_line(&path), "yun-jailer: can't [do] that");
    }

    #[test]
    fn a_long_log_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmm.log");
        fs::write(&path, vec![b'x'; 1 + (1 << 20)]).unwrap();
        log_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert!(dir.path().join("vmm.log.1").exists());
    }
}
