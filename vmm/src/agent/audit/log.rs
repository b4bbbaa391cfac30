//! The file that is appended to.
//!
//! One write a record, at the file's end. A record of a change is on the disk before [`AuditLog::append`] returns; several
//! that wait share one `fdatasync`. Whatever fails in a way that leaves open what is in the file stops the log for good:
//! opening it anew finds out.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ed25519_dalek::{SigningKey, VerifyingKey};

use super::chain::{Digest, Fault, Head};
use super::entry::Entry;
use super::files::{self, ScanError, beside};
use super::footer::Tally;
use crate::utc::Utc;

/// Records that may be in the file and not yet on the disk: then the next one is waited for.
pub const UNSYNCED_MAX: u64 = 256;
/// Files that [`AuditLog::set_aside`] puts away at most.
const ASIDE_MAX: usize = 1000;

/// How a log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// A file that would become longer is full, in bytes. A single record may be longer.
    pub file_len_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { file_len_max: 64 << 20 }
    }
}

/// When a record has to be on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before the append returns: for what changes anything.
    Durable,
    /// Some time later, with others: for what only reads. See [`AuditLog::flush`].
    Batched,
}

/// Why a log can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process writes to it.
    #[error("{} is locked: another process writes to this audit log", .0.display())]
    Busy(PathBuf),
    /// A file is not what was written: it is left as it is.
    #[error("{}, line {line} (0: the last): {fault}; nothing is appended to a broken chain: look into it, then have yund put it aside by --set-aside-audit", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The first bad line; the first of a file is 1. 0 for the footer of a full file.
        line: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The host refuses.
    #[error("can't {op} {}", path.display())]
    Host {
        /// What was done.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// What happened to the log could not be recorded in it.
    #[error("can't record what was found in {}", path.display())]
    Note {
        /// The log.
        path: PathBuf,
        /// Why.
        source: AppendError,
    },
}

/// Why something was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The host refuses; the log is as it was.
    #[error("can't {op} {}", path.display())]
    Host {
        /// What was done.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Something failed earlier, after which it is not known what is in the file or on the disk.
    #[error("the audit log stopped when it could not {0}; open it anew")]
    Stopped(&'static str),
    /// The entry has no JSON form.
    #[error("can't write the record as JSON")]
    Json(#[from] serde_json::Error),
}

#[derive(Debug)]
struct State {
    file: Arc<File>,
    len: u64,
    tally: Tally,
    head: Head,
    /// The last record that was on the disk when somebody last looked.
    synced: u64,
    stopped: Option<&'static str>,
}

/// A file of the log, opened to be read.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// How many of its bytes count: what is appended later does not.
    pub(super) len: u64,
}

/// An open log. It can be shared between threads; every call may wait for the disk.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    key: SigningKey,
    options: Options,
    state: Mutex<State>,
    /// Held while the disk is waited for, and before `state` by who takes both.
    syncing: Mutex<()>,
    /// Locked as long as this is open.
    _lock: File,
}

impl AuditLog {
    /// Opens the log `path`, or begins one. A last line that breaks off, as a kill or a power cut leaves it, is cut off, and
    /// a record says so; a file that was full and not yet put away is put away.
    ///
    /// # Errors
    /// [`OpenError::Busy`], [`OpenError::Broken`] (the way out is [`Self::set_aside`]), [`OpenError::Host`].
    pub fn open(path: &Path, key: SigningKey, options: Options) -> Result<Self, OpenError> {
        let host = |op| move |source| OpenError::Host { op, path: path.to_owned(), source };
        let lock_path = beside(path, ".lock");
        let lock = files::open_live(&lock_path).map_err(host("open the lock of"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Busy(lock_path)),
            Err(TryLockError::Error(source)) => return Err(host("lock")(source)),
        }
        let head = match files::list_full(path).map_err(host("list the files of"))?.pop() {
            None => Head::START,
            Some((_, full)) => files::head_of_full(&full).map_err(|error| broken(&full, error))?,
        };
        let file = files::open_live(path).map_err(host("open"))?;
        let scan = files::scan(&file, head).map_err(|error| broken(path, error))?;
        if scan.torn.is_some() {
            file.set_len(scan.len).and_then(|()| file.sync_all()).map_err(host("cut"))?;
        }
        let head = scan.tally.last.unwrap_or(head);
        let state =
            State { file: Arc::new(file), len: scan.len, tally: scan.tally, head, synced: 0, stopped: None };
        let (state, syncing) = (Mutex::new(state), Mutex::new(()));
        let log = Self { path: path.to_owned(), key, options, state, syncing, _lock: lock };
        let note = |source| OpenError::Note { path: path.to_owned(), source };
        if scan.is_sealed {
            log.put_away(&mut log.state()).map_err(note)?;
        }
        if let Some(torn) = scan.torn {
            let text = format!("cut {} bytes of a line without an end", torn.len());
            log.note("RECOVER", path, Some(Digest::of(&torn)), text).map_err(note)?;
        }
        Ok(log)
    }

    /// Opens the log `path` and gives each file in which the chain is broken another name, `….broken-N`, where it stays. The
    /// chain goes on from the last file before those, with a record for each that says its name, length and SHA-256.
    /// Returns the new names too.
    ///
    /// # Errors
    /// As [`Self::open`], except for [`OpenError::Broken`] after a thousand files.
    pub fn set_aside(
        path: &Path,
        key: SigningKey,
        options: Options,
    ) -> Result<(Self, Vec<PathBuf>), OpenError> {
        let mut aside: Vec<(PathBuf, Digest, u64)> = Vec::new();
        loop {
            let bad = match Self::open(path, key.clone(), options) {
                Err(OpenError::Broken { path, .. }) if aside.len() < ASIDE_MAX => path,
                Err(error) => return Err(error),
                Ok(log) => {
                    for (name, digest, len) in &aside {
                        let text = format!("set aside: its chain was broken; {len} bytes");
                        log.note("SET-ASIDE", name, Some(*digest), text)
                            .map_err(|source| OpenError::Note { path: path.to_owned(), source })?;
                    }
                    return Ok((log, aside.into_iter().map(|(name, ..)| name).collect()));
                }
            };
            let host = |op, source| OpenError::Host { op, path: bad.clone(), source };
            let (digest, len) = files::digest(&bad).map_err(|error| host("read", error))?;
            let name = (1..).map(|n| beside(&bad, &format!(".broken-{n}"))).find(|name| !name.exists());
            let name = name.expect("numbers do not end");
            files::rename_new(&bad, &name).map_err(|error| host("set aside", error))?;
            aside.push((name, digest, len));
        }
    }

    /// Appends a record and returns its number. Texts that are longer than they may be are cut.
    ///
    /// # Errors
    /// [`AppendError::Host`]: nothing was appended. [`AppendError::Stopped`]: nothing will be appended, and whether this
    /// record is in the file is found out by opening it anew.
    pub fn append(&self, entry: Entry, durability: Durability) -> Result<u64, AppendError> {
        let entry = entry.bounded();
        let mut state = self.state();
        running(&state)?;
        let time = format!("{}Z", Utc::now());
        let (mut line, mut head) = state.head.seal(&time, &entry)?;
        if state.tally.count > 0 && state.len + len_of(&line) > self.options.file_len_max {
            self.rotate_held(&mut state)?;
            (line, head) = state.head.seal(&time, &entry)?;
        }
        self.write(&mut state, &line)?;
        state.head = head;
        state.tally.add(head);
        let is_due = head.seq - state.synced.min(head.seq) >= UNSYNCED_MAX;
        drop(state);
        if durability == Durability::Durable || is_due {
            self.sync_to(head.seq)?;
        }
        Ok(head.seq)
    }

    /// Waits until every record so far is on the disk. To be called each second or so, and before the end.
    ///
    /// # Errors
    /// [`AppendError::Stopped`], if the disk fails.
    pub fn flush(&self) -> Result<(), AppendError> {
        let seq = self.state().head.seq;
        self.sync_to(seq)
    }

    /// Ends the file with a signed footer, gives it the name of a full one and begins the next. Nothing, if it has no
    /// record yet.
    ///
    /// # Errors
    /// [`AppendError::Host`]: the file is as it was. [`AppendError::Stopped`]: opening the log anew completes it.
    pub fn rotate(&self) -> Result<(), AppendError> {
        let mut state = self.state();
        running(&state)?;
        if state.tally.count > 0 { self.rotate_held(&mut state) } else { Ok(()) }
    }

    /// The number of the last record; 0 before the first.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.state().head.seq
    }

    /// The key by which exports are signed: to be published where they are verified.
    #[must_use]
    pub fn public_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The files as they are between two appends, oldest first. Full ones that end before record `first` are left out.
    pub(super) fn files_from(&self, first: u64) -> io::Result<(Vec<Part>, Head)> {
        let state = self.state();
        let full = files::list_full(&self.path)?;
        let names = full.into_iter().filter(|(last, _)| *last >= first).map(|(_, name)| name);
        let mut found = Vec::new();
        for name in names {
            let file = File::open(&name)?;
            let len = file.metadata()?.len();
            found.push(Part { path: name, file, len });
        }
        let file = File::open(&self.path)?;
        found.push(Part { path: self.path.clone(), file, len: state.len });
        Ok((found, state.head))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a thread that panicked left is judged by `stopped` alone.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(
        &self,
        method: &str,
        path: &Path,
        subject: Option<Digest>,
        text: String,
    ) -> Result<u64, AppendError> {
        log::warn!("audit: {}: {text}", path.display());
        self.append(Entry::of_agent(method, path.display().to_string(), subject, text), Durability::Durable)
    }

    /// Writes `line` at the end of the file, in one go. What was written of a line that did not fit is taken back.
    fn write(&self, state: &mut State, line: &[u8]) -> Result<(), AppendError> {
        let mut file = &*state.file;
        let written = loop {
            match file.write(line) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(len) if len < line.len() => break Err(io::ErrorKind::StorageFull.into()),
                other => break other,
            }
        };
        match written {
            Ok(_) => {
                state.len += len_of(line);
                Ok(())
            }
            Err(source) => {
                if state.file.set_len(state.len).is_err() {
                    state.stopped = Some("take back half a record");
                }
                Err(AppendError::Host { op: "append to", path: self.path.clone(), source })
            }
        }
    }

    /// Waits until record `seq` is on the disk, and with it all that were written meanwhile.
    fn sync_to(&self, seq: u64) -> Result<(), AppendError> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, head) = {
            let state = self.state();
            running(&state)?;
            if state.synced >= seq {
                return Ok(());
            }
            (Arc::clone(&state.file), state.head.seq)
        };
        let synced = file.sync_data();
        let mut state = self.state();
        match synced {
            Ok(()) => {
                state.synced = state.synced.max(head);
                Ok(())
            }
            Err(error) => {
                // The kernel may have dropped the pages: another try would succeed and mean nothing.
                log::error!("audit: can't sync {}: {error}", self.path.display());
                state.stopped = Some("write records to the disk");
                running(&state)
            }
        }
    }

    fn rotate_held(&self, state: &mut State) -> Result<(), AppendError> {
        let (line, _) = state.tally.sign(&self.key)?;
        self.write(state, &line)?;
        if let Err(error) = state.file.sync_data() {
            log::error!("audit: can't sync {}: {error}", self.path.display());
            state.stopped = Some("write records to the disk");
            return running(state);
        }
        state.synced = state.head.seq;
        self.put_away(state)
    }

    /// Gives a file that has its footer its name, and begins the next.
    fn put_away(&self, state: &mut State) -> Result<(), AppendError> {
        let renamed = files::rename_new(&self.path, &files::full(&self.path, state.head.seq));
        match renamed.and_then(|()| files::open_live(&self.path)) {
            Ok(file) => {
                (state.file, state.len, state.tally) = (Arc::new(file), 0, Tally::default());
                Ok(())
            }
            Err(error) => {
                log::error!("audit: can't put away {}: {error}", self.path.display());
                state.stopped = Some("put a full file away");
                running(state)
            }
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            log::error!("audit: {error}");
        }
    }
}

fn running(state: &State) -> Result<(), AppendError> {
    state.stopped.map_or(Ok(()), |what| Err(AppendError::Stopped(what)))
}

fn broken(path: &Path, error: ScanError) -> OpenError {
    let path = path.to_owned();
    match error {
        ScanError::Line { line, fault } => OpenError::Broken { path, line, fault },
        ScanError::Read(source) => OpenError::Host { op: "read", path, source },
    }
}

fn len_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("a length in memory")
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
