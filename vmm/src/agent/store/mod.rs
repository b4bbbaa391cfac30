//! What the agent must still know after any death of its own: one redb file.
//!
//! Everything is read once at the start; from then on memory is what is asked, and the file is what is written before
//! anything is acknowledged. One thread writes: commits that wait for it are made together, in one transaction and one
//! flush. A [`Batch`] is in the file whole or not at all, and when [`Store::commit`] has returned it survives a power cut.
//!
//! A file that can't be understood, or that a newer agent wrote, is refused and never changed: [`StoreError`] says what to
//! do. Keys are text, values are JSON whose types tolerate fields that are missing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use redb::{
    CommitError, Database, DatabaseError, Durability, ReadOnlyDatabase, ReadableDatabase, StorageError,
    TableDefinition, TableError, TransactionError,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

/// Version of the tables and what is in them. It goes up when an older agent would misread what a newer one wrote.
pub const FORMAT: u32 = 1;
/// How long what is about to end may keep the store.
const DYING: Duration = Duration::from_secs(2);

/// Commits that are made together, at most.
const TOGETHER_MAX: usize = 128;
/// Cache of the database, in bytes: everything that is asked often is in memory anyway.
const CACHE: usize = 1 << 20;

/// A table: text to JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The store's own: its format.
    Meta,
    /// The host's state.
    Host,
    /// Tenants, by name.
    Tenants,
    /// Subnets, by `tenant/name`.
    Subnets,
    /// VMs as they are wanted, by id.
    Vms,
    /// VMs as they are, by id.
    Runtimes,
    /// Volumes, by `tenant/name`.
    Volumes,
    /// Signed lists in force, by kind.
    Lists,
    /// Events, by number.
    Events,
    /// Last samples of counters, by incarnation.
    Samples,
    /// Usage records, by end of period and id.
    Usage,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Meta,
        Self::Host,
        Self::Tenants,
        Self::Subnets,
        Self::Vms,
        Self::Runtimes,
        Self::Volumes,
        Self::Lists,
        Self::Events,
        Self::Samples,
        Self::Usage,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Host => "host",
            Self::Tenants => "tenants",
            Self::Subnets => "subnets",
            Self::Vms => "vms",
            Self::Runtimes => "runtimes",
            Self::Volumes => "volumes",
            Self::Lists => "lists",
            Self::Events => "events",
            Self::Samples => "samples",
            Self::Usage => "usage",
        }
    }

    fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

/// Why there is no store, or why something is not in it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another agent has it.
    #[error("{} is in use by another agent: stop that one, or give this one a --state-dir of its own", .0.display())]
    InUse(PathBuf),
    /// A newer agent wrote it.
    #[error(
        "{} has format {found}, written by a newer agent; this one understands up to {FORMAT}: start the newer version. \
         The file was not changed", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It is damaged.
    #[error(
        "{} is damaged ({why}) and was not changed. VMs that run go on running. Copy it aside, put the newest good one of \
         {} in its place, and start the agent again; it finds the VMs by their processes", path.display(),
        path.with_extension("redb.*").display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The host fails.
    #[error("the store {} fails", path.display())]
    Host {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The database can't go on, in its words.
    #[error("the store can't be written: {0}")]
    Write(String),
    /// Its thread has ended.
    #[error("the store is closed")]
    Closed,
}

/// Changes that are made together.
#[derive(Debug, Default)]
pub struct Batch(Vec<(Table, String, Option<Vec<u8>>)>);

impl Batch {
    /// No change.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes `value` under `key`.
    pub fn put(&mut self, table: Table, key: impl Into<String>, value: &impl Serialize) -> &mut Self {
        let json = serde_json::to_vec(value).expect("records have string keys, and no floats");
        self.0.push((table, key.into(), Some(json)));
        self
    }

    /// Removes what is under `key`.
    pub fn remove(&mut self, table: Table, key: impl Into<String>) -> &mut Self {
        self.0.push((table, key.into(), None));
        self
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

type Rows = Vec<(String, Vec<u8>)>;
type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    Commit(Batch, Reply<()>),
    Scan { table: Table, from: String, limit: usize, reply: Reply<Rows> },
    Backup(PathBuf, Reply<()>),
}

/// The store. Clones are the same.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
}

/// What is in a store's file, except the tables that only grow ([`Table::Events`], [`Table::Usage`]).
#[derive(Debug, Default)]
pub struct Loaded(BTreeMap<Table, Rows>);

impl Loaded {
    /// Everything in a table, by key.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a value is not what it should be.
    pub fn all<T: DeserializeOwned>(
        &self,
        path: &Path,
        table: Table,
    ) -> Result<BTreeMap<String, T>, StoreError> {
        self.0
            .get(&table)
            .into_iter()
            .flatten()
            .map(|(key, value)| match serde_json::from_slice(value) {
                Ok(value) => Ok((key.clone(), value)),
                Err(error) => Err(StoreError::Damaged {
                    path: path.to_owned(),
                    why: format!("{} {key}: {error}", table.name()),
                }),
            })
            .collect()
    }
}

/// Rows of a table that could be decoded, in order.
fn decode<T: DeserializeOwned>(table: Table, rows: Rows) -> Result<Vec<(String, T)>, StoreError> {
    rows.into_iter()
        .map(|(key, value)| match serde_json::from_slice(&value) {
            Ok(value) => Ok((key, value)),
            Err(error) => Err(StoreError::Write(format!("{} {key}: {error}", table.name()))),
        })
        .collect()
}

impl Store {
    /// Opens the store at `path`, or makes one, and reads it. One that was not closed is first copied, for `trial` to repair.
    /// One that is in use is waited for a little: a process that a killed agent was about to start has it open as long as it
    /// is not another program. Blocks.
    ///
    /// # Errors
    /// [`StoreError`]; then the file is as it was.
    pub fn open(path: &Path, trial: &Trial) -> Result<(Self, Loaded), StoreError> {
        let deadline = Instant::now() + DYING;
        let (database, loaded) = loop {
            match open(path, trial) {
                Err(StoreError::InUse(_)) if Instant::now() < deadline => thread::sleep(DYING / 100),
                opened => break opened?,
            }
        };
        let (jobs, inbox) = mpsc::channel();
        let path = path.to_owned();
        let writer = Writer { path: path.clone(), database: Some(database) };
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(|source| StoreError::Host { path, source })?;
        Ok((Self { jobs }, loaded))
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Makes changes. When this returns, they are on the disk.
    ///
    /// # Errors
    /// [`StoreError::Write`], [`StoreError::Closed`]; then none of them was made.
    pub async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.ask(|reply| Job::Commit(batch, reply)).await
    }

    /// Up to `limit` rows of a table from the key `from` on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn scan<T: DeserializeOwned>(
        &self,
        table: Table,
        from: impl Into<String>,
        limit: usize,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let from = from.into();
        let rows = self.ask(|reply| Job::Scan { table, from, limit, reply }).await?;
        decode(table, rows)
    }

    /// Copies the store to `to`, whole, as it is at one moment.
    ///
    /// # Errors
    /// [`StoreError`]; then there is no such copy.
    pub async fn back_up(&self, to: PathBuf) -> Result<(), StoreError> {
        self.ask(|reply| Job::Backup(to, reply)).await
    }
}

struct Writer {
    path: PathBuf,
    /// `None` after a failure, until it can be opened again.
    database: Option<Database>,
}

impl Writer {
    fn run(mut self, inbox: &mpsc::Receiver<Job>) {
        let mut put_back = None;
        while let Some(job) = put_back.take().or_else(|| inbox.recv().ok()) {
            match job {
                Job::Commit(batch, reply) => {
                    let mut together = vec![(batch, reply)];
                    while together.len() < TOGETHER_MAX {
                        match inbox.try_recv() {
                            Ok(Job::Commit(batch, reply)) => together.push((batch, reply)),
                            Ok(other) => {
                                put_back = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    let result = self.with(|database| write(database, together.iter().map(|(b, _)| b)));
                    for (_, reply) in together {
                        // Whoever asked may be gone.
                        let _ = reply.send(match &result {
                            Ok(()) => Ok(()),
                            Err(error) => Err(StoreError::Write(error.to_string())),
                        });
                    }
                }
                Job::Scan { table, from, limit, reply } => {
                    let result = self.with(|database| scan(database, table, &from, limit));
                    let _ = reply.send(result.map_err(|error| StoreError::Write(error.to_string())));
                }
                Job::Backup(to, reply) => {
                    // One that fails is no copy of anything.
                    let result = match self.with(|_| Ok(())) {
                        Ok(()) => back_up(&self.path, &to),
                        Err(error) => Err(io::Error::other(error)),
                    };
                    let _ = reply.send(result.map_err(|source| StoreError::Host { path: to, source }));
                }
            }
        }
    }

    /// Does something with the database. After a failure the database takes nothing more until it is opened anew, which the
    /// next one tries: a full disk may have room again by then.
    fn with<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let database = match &self.database {
            Some(database) => database,
            None => {
                let opened = builder().open(&self.path).map_err(redb::Error::from)?;
                self.database.insert(opened)
            }
        };
        let result = work(database);
        if result.is_err() {
            self.database = None;
        }
        result
    }
}

/// A key, and what becomes of it: a value, or nothing.
type Change<'a> = (&'a str, Option<&'a [u8]>);

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

fn write<'a>(database: &Database, batches: impl Iterator<Item = &'a Batch>) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write().map_err(redb_error::<TransactionError>)?;
    transaction.set_durability(Durability::Immediate).expect("no savepoint is taken in this transaction");
    let mut by_table: BTreeMap<Table, Vec<Change<'_>>> = BTreeMap::new();
    for (table, key, value) in batches.flat_map(|batch| &batch.0) {
        by_table.entry(*table).or_default().push((key, value.as_deref()));
    }
    for (table, changes) in by_table {
        let mut table = transaction.open_table(table.definition()).map_err(redb_error::<TableError>)?;
        for (key, value) in changes {
            match value {
                Some(value) => table.insert(key, value).map(drop),
                None => table.remove(key).map(drop),
            }
            .map_err(redb_error::<StorageError>)?;
        }
    }
    transaction.commit().map_err(redb_error::<CommitError>)
}

fn redb_error<E: Into<redb::Error>>(error: E) -> redb::Error {
    error.into()
}

fn scan(
    database: &impl ReadableDatabase,
    table: Table,
    from: &str,
    limit: usize,
) -> Result<Rows, redb::Error> {
    let transaction = database.begin_read().map_err(redb_error::<TransactionError>)?;
    let table = match transaction.open_table(table.definition()) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table.map_err(redb_error::<TableError>)?,
    };
    let mut rows = Vec::new();
    for row in table.range(from..).map_err(redb_error::<StorageError>)?.take(limit) {
        let (key, value) = row.map_err(redb_error::<StorageError>)?;
        rows.push((key.value().to_owned(), value.value().to_owned()));
    }
    Ok(rows)
}

/// Copies the file between two transactions: to whoever opens the copy it was never closed, and is repaired.
fn back_up(path: &Path, to: &Path) -> io::Result<()> {
    let part = to.with_extension("part");
    fs::copy(path, &part)?;
    fs::File::open(&part)?.sync_all()?;
    fs::rename(part, to)
}

/// Repairs and reads a store that nobody needs: [`try_here`], or the same in another process. Why it is damaged, if it is.
pub type Trial = dyn Fn(&Path) -> Result<(), String>;

/// Repairs and reads a store that nobody needs, in this process. The database panics over some that are damaged, which a
/// process that is built to abort does not survive.
///
/// # Errors
/// Why it is damaged.
pub fn try_here(copy: &Path) -> Result<(), String> {
    let tried = std::panic::catch_unwind(|| {
        let database = builder().open(copy).map_err(|error| error.to_string())?;
        load(copy, &database).map(drop).map_err(|error| match error {
            StoreError::Damaged { why, .. } => why,
            error => error.to_string(),
        })
    });
    tried.unwrap_or_else(|_| Err("the database can't make sense of it".to_owned()))
}

fn open(path: &Path, trial: &Trial) -> Result<(Database, Loaded), StoreError> {
    let damaged = |why: String| StoreError::Damaged { path: path.to_owned(), why };
    let host = |source| StoreError::Host { path: path.to_owned(), source };
    let is_new = match fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => return Err(damaged("it is empty".to_owned())),
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(host(error)),
    };
    let failed = |error: DatabaseError| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            host(source)
        }
        other => damaged(other.to_string()),
    };
    if is_new {
        let database = create(path).map_err(failed)?;
        return Ok((database, Loaded::default()));
    }
    // Opening one that was not closed repairs it, in place. Whether that will do is tried with a copy.
    let clean = match ReadOnlyDatabase::open(path) {
        Ok(database) => load(path, &database).map(drop),
        Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::InUse(path.to_owned())),
        Err(error) => Err(damaged(error.to_string())),
    };
    match clean {
        Err(StoreError::Damaged { .. }) => {
            let copy = path.with_extension("trial");
            let tried = fs::copy(path, &copy).map_err(host).map(|_| trial(&copy));
            let _ = fs::remove_file(&copy);
            tried?.map_err(damaged)?;
        }
        other => other?,
    }
    let database = builder().open(path).map_err(failed)?;
    let loaded = load(path, &database)?;
    Ok((database, loaded))
}

/// Reads everything but the tables that only grow.
fn load(path: &Path, database: &impl ReadableDatabase) -> Result<Loaded, StoreError> {
    let damaged = |why: String| StoreError::Damaged { path: path.to_owned(), why };
    let unreadable = |error: redb::Error| damaged(error.to_string());
    let mut loaded = Loaded::default();
    for table in Table::ALL {
        if matches!(table, Table::Events | Table::Usage) {
            // Only whether they can be read.
            scan(database, table, "", 1).map_err(unreadable)?;
        } else {
            loaded.0.insert(table, scan(database, table, "", usize::MAX).map_err(unreadable)?);
        }
    }
    match loaded.all::<u32>(path, Table::Meta)?.get("format").copied() {
        None => Err(damaged("it names no format".to_owned())),
        Some(found) if found > FORMAT => Err(StoreError::Newer { path: path.to_owned(), found }),
        Some(_) => Ok(loaded),
    }
}

/// Makes an empty store under another name, and only then gives it its own: a half made one is never taken for damaged.
fn create(path: &Path) -> Result<Database, DatabaseError> {
    let part = path.with_extension("part");
    let io = |source| DatabaseError::Storage(StorageError::Io(source));
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let database = builder().create(&part)?;
    let mut batch = Batch::new();
    batch.put(Table::Meta, "format", &FORMAT);
    write(&database, std::iter::once(&batch)).map_err(|error| io(io::Error::other(error)))?;
    // A link, not a rename: of two agents that make one at once, one finds it made.
    match fs::hard_link(&part, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(DatabaseError::DatabaseAlreadyOpen);
        }
        Err(error) => return Err(io(error)),
    }
    fs::remove_file(&part).map_err(io)?;
    if let Some(directory) = path.parent() {
        fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)?;
    }
    Ok(database)
}

#[cfg(test)]
mod tests;
