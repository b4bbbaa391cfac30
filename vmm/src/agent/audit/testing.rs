//! What the tests of this room share.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ed25519_dalek::SigningKey;

use super::{AuditLog, Decision, Digest, Durability, Entry, Options, Who};

pub(super) struct Rig {
    dir: tempfile::TempDir,
    pub(super) options: Options,
}

/// The host's key: made once, for without optimisation that takes longer than most tests.
pub(super) fn key() -> SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::from_bytes(&[7; 32])).clone()
}

pub(super) fn entry(path: &str) -> Entry {
    Entry {
        who: Who { uid: 1000, gid: 1000, pid: 4711, groups: vec![27, 1000], name: Some("li".to_owned()) },
        tenant: Some("acme".to_owned()),
        method: "PUT".to_owned(),
        path: path.to_owned(),
        request_sha256: Some(Digest::of(path.as_bytes())),
        decision: Decision::Allowed,
        rule: "tenant-group".to_owned(),
        status: 201,
        error: None,
        note: None,
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        // Thousands of syncs go to memory where there is a file system in it.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        Self { dir: dir.unwrap(), options: Options::default() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("audit.jsonl")
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn open(&self) -> AuditLog {
        AuditLog::open(&self.path(), key(), self.options).unwrap()
    }

    /// A log with `count` records.
    pub(super) fn filled(&self, count: u64) -> AuditLog {
        let log = self.open();
        append(&log, count);
        log
    }

    /// The live file, and the full ones, by name.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> =
            std::fs::read_dir(self.dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.retain(|name| name.extension().is_none_or(|extension| extension != "lock"));
        names.sort();
        names
    }
}

pub(super) fn append(log: &AuditLog, count: u64) {
    for n in 0..count {
        log.append(entry(&format!("/v1/tenants/acme/vms/{n}")), Durability::Batched).unwrap();
    }
}

pub(super) fn export(log: &AuditLog) -> Vec<u8> {
    let mut bytes = Vec::new();
    log.export(0..=u64::MAX, &mut bytes).unwrap();
    bytes
}

pub(super) fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').collect()
}
