//! The agent itself: what it holds, how it starts, how a change becomes lasting.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ed25519_dalek::SigningKey;
use tokio::sync::Semaphore;

use super::audit::{self, AuditLog, load_or_create_key};
use super::clock;
use super::config::Config;
use super::events::{Events, Happened};
use super::fresh::Fresh;
use super::host::Resources;
use super::images::Images;
use super::metering::Traffic;
use super::model::{Denial, DenialCode, HostState, Name};
use super::net::HostNet;
use super::network;
use super::operations::Operations;
use super::records::{HostRecord, Runtime, SubnetRecord, TenantRecord, VmRecord, VolumeRecord, VolumeState};
use super::state::{Key, State, VmEntry};
use super::store::{Batch, Store, StoreError, Table, Trial};
use super::usage::Position;
use super::vms::live::Live;
use super::vms::supervise;
use super::volumes::{VolumeKey, Volumes};
use crate::sandbox::jail::in_words;

/// Key of the only record of [`Table::Host`].
pub const HOST: &str = "host";

/// A file of the audit log is closed, signed and followed by another when it is as long as this, in bytes.
const AUDIT_OPTIONS: audit::Options = audit::Options { file_len_max: 64 << 20 };

/// Long work with files that is done at the same time.
const COPIES_AT_ONCE: usize = 4;
/// How often the store is copied, and how many copies are kept.
const BACK_UP: std::time::Duration = std::time::Duration::from_secs(86_400);
const BACK_UPS: usize = 3;
/// How often the audit log is flushed.
const AUDIT_FLUSH: std::time::Duration = std::time::Duration::from_secs(1);

/// Who asks, in events and operations, where it is the agent itself.
pub const AGENT: &str = "agent";

/// The agent of a server.
#[derive(Debug)]
pub struct Agent {
    /// How it was told to work.
    pub config: Config,
    /// What lasts.
    pub store: Store,
    /// What happened.
    pub events: Events,
    /// What is under way.
    pub operations: Operations,
    /// Images.
    pub images: Images,
    /// Volumes.
    pub volumes: Volumes,
    /// What was asked, by whom, and what came of it.
    pub audit: AuditLog,
    /// Guests' networks, if there are any.
    pub(super) net: Option<HostNet>,
    /// What the host has.
    pub resources: Resources,
    /// Which boot of the host this is.
    pub boot: String,
    /// When it started.
    pub started_at: String,
    /// Long work with files that may be done at the same time: the threads that block are everybody's.
    pub(super) copies: Arc<Semaphore>,
    /// VMs that may start at the same time.
    pub(super) starts: Semaphore,
    /// Held by whoever checks and makes a change of what is wanted: checks hold until the change is stored.
    pub(super) admission: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    meters: Mutex<BTreeMap<String, Position>>,
    /// Held while a volume's usage is read and recorded.
    pub(super) sampling_volumes: tokio::sync::Mutex<()>,
    /// The interfaces' counters.
    pub(super) traffic_read: Fresh<Traffic>,
    /// When usage was sampled last because somebody read it, in time since boot.
    pub(super) sampled_for_readers: Mutex<Option<std::time::Duration>>,
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something of the host.
    #[error("can't {doing}")]
    Host {
        /// To do what.
        doing: String,
        /// What the host says.
        source: io::Error,
    },
    /// Images or volumes.
    #[error("{0}")]
    Files(String),
    /// Networks.
    #[error("{0}; --no-network does without")]
    Network(String),
}

fn host<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> StartError {
    let doing = doing.into();
    move |source| StartError::Host { doing, source: source.into() }
}

/// Makes a directory that only root can look into, and those above it.
fn private_dir(path: &Path) -> Result<(), StartError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(host(format!("make the directory {}", path.display())))
}

/// Splits a record's key; those that are stored have two names in them.
fn names(path: &Path, key: &str) -> Result<Key, StoreError> {
    let damaged = || StoreError::Damaged { path: path.to_owned(), why: format!("the key {key:?}") };
    let (tenant, name) = key.split_once('/').ok_or_else(damaged)?;
    match (Name::parse(tenant), Name::parse(name)) {
        (Ok(tenant), Ok(name)) => Ok((tenant, name)),
        _ => Err(damaged()),
    }
}

/// Where the audit log is, and the key that signs it.
fn audit_parts(state_dir: &Path) -> Result<(PathBuf, SigningKey), StartError> {
    let key = load_or_create_key(&state_dir.join("host.key"));
    let key = key.map_err(|error| StartError::Files(in_words(&error)))?;
    Ok((state_dir.join("audit.jsonl"), key))
}

/// Puts the files of an audit log whose chain is broken aside, for an agent to begin a new one, whose first records say what
/// was put aside; where they are now. Nothing is done to a log that is whole.
///
/// # Errors
/// [`StartError::Files`], also if an agent is running.
pub fn set_audit_aside(state_dir: &Path) -> Result<Vec<PathBuf>, StartError> {
    let (log, key) = audit_parts(state_dir)?;
    match AuditLog::set_aside(&log, key, AUDIT_OPTIONS) {
        Ok((_, aside)) => Ok(aside),
        Err(error) => Err(StartError::Files(in_words(&error))),
    }
}

/// A record's key.
#[must_use]
pub fn key_of(key: &Key) -> String {
    format!("{}/{}", key.0, key.1)
}

impl Agent {
    /// Opens the store, and finds again or brings up what it says. Returns once every VM has been looked for; what has to
    /// be started is started by then, or about to be. To be called on a `LocalSet` or current-thread runtime.
    ///
    /// # Errors
    /// [`StartError`]; then nothing was changed but directories made.
    pub async fn start(config: Config, trial: &Trial) -> Result<Arc<Self>, StartError> {
        private_dir(&config.state_dir)?;
        for dir in [config.jails(), config.state_dir.join("vms")] {
            // A jail's user passes through, and may list nothing.
            let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(&dir);
            made.map_err(host(format!("make the directory {}", dir.display())))?;
        }
        let path = config.state_dir.join("yund.redb");
        let (store, loaded) = Store::open(&path, trial)?;
        let boot = clock::boot_id().map_err(host("find out which boot this is"))?;
        let mut state = State {
            host: loaded.all(&path, Table::Host)?.remove(HOST).unwrap_or_default(),
            ..State::default()
        };
        for (name, record) in loaded.all::<TenantRecord>(&path, Table::Tenants)? {
            let damaged = |error: super::model::NameError| StoreError::Damaged {
                path: path.clone(),
                why: error.to_string(),
            };
            state.tenants.insert(Name::parse(&name).map_err(damaged)?, record);
        }
        for (key, record) in loaded.all::<SubnetRecord>(&path, Table::Subnets)? {
            state.subnets.insert(names(&path, &key)?, record);
        }
        for (key, record) in loaded.all::<VolumeRecord>(&path, Table::Volumes)? {
            state.volumes.insert(names(&path, &key)?, record);
        }
        let mut runtimes: BTreeMap<String, Runtime> = loaded.all(&path, Table::Runtimes)?;
        for (id, record) in loaded.all::<VmRecord>(&path, Table::Vms)? {
            let runtime = runtimes.remove(&id).unwrap_or_default();
            let live = Live::new(config.vm_dir(&id), config.console_bytes);
            let key = (record.tenant.clone(), record.name.clone());
            state.vms.insert(key, VmEntry { record, runtime, live });
        }
        let files = |error: &dyn std::error::Error| StartError::Files(in_words(error));
        let images = Images::open(&config.state_dir.join("images")).map_err(|e| files(&e))?;
        let volumes = Volumes::open(&config.state_dir.join("volumes")).map_err(|e| files(&e))?;
        let (log, key) = audit_parts(&config.state_dir)?;
        let audit = AuditLog::open(&log, key, AUDIT_OPTIONS).map_err(|e| files(&e))?;
        let resources = Resources::read(&config).map_err(host("find out what the host has"))?;
        let net = config.network.then(|| network::of(&config)).transpose().map_err(StartError::Network)?;
        let agent = Arc::new(Self {
            events: Events::load(&store).await?,
            operations: Operations::default(),
            copies: Arc::new(Semaphore::new(COPIES_AT_ONCE)),
            starts: Semaphore::new(config.starts_at_once),
            admission: tokio::sync::Mutex::default(),
            sampling_volumes: tokio::sync::Mutex::default(),
            traffic_read: Fresh::default(),
            sampled_for_readers: Mutex::default(),
            state: Mutex::new(state),
            meters: Mutex::new(loaded.all(&path, Table::Samples)?),
            started_at: clock::now(),
            config,
            store,
            images,
            volumes,
            audit,
            net,
            resources,
            boot,
        });
        agent.recover().await?;
        Ok(agent)
    }

    /// What is known. Never held across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where counting is. Never held across an await.
    pub(super) fn meters(&self) -> MutexGuard<'_, BTreeMap<String, Position>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes changes last, and tells what happened.
    ///
    /// # Errors
    /// [`DenialCode::Host`], [`DenialCode::NoSpace`]; then nothing was changed.
    pub async fn commit(
        &self,
        mut batch: Batch,
        happened: impl IntoIterator<Item = Happened>,
    ) -> Result<(), Denial> {
        let noted: Vec<_> =
            happened.into_iter().map(|happened| self.events.note(&mut batch, happened)).collect();
        self.store.commit(batch).await.map_err(|error| store_denial(&error))?;
        noted.into_iter().for_each(super::events::Noted::publish);
        Ok(())
    }

    /// Writes down what can still be lost with the host's power. VMs go on.
    pub async fn close(self: &Arc<Self>) {
        self.sample_all().await;
        let agent = Arc::clone(self);
        let flushed = blocking(move || agent.audit.flush().map_err(|error| Denial::host(in_words(&error))));
        if let Err(denial) = flushed.await {
            log::error!("{denial}");
        }
    }

    /// Finds again what the store says there is.
    async fn recover(self: &Arc<Self>) -> Result<(), StartError> {
        self.return_of_the_host().await?;
        self.finish_volumes().await;
        self.network_in_force().await.map_err(StartError::Network)?;
        let keys: Vec<Key> = self.state().vms.keys().cloned().collect();
        let mut looking = tokio::task::JoinSet::new();
        for key in keys {
            let agent = Arc::clone(self);
            looking.spawn(async move {
                let found = supervise::find(&agent, &key).await;
                supervise::spawn(agent, key, found);
            });
        }
        while looking.join_next().await.is_some() {}
        self.forget_closed().await;
        let batch = Batch::new();
        let happened = Happened {
            kind: "agent.started",
            requestor: AGENT.to_owned(),
            detail: format!("version {}", env!("CARGO_PKG_VERSION")),
            ..Happened::default()
        };
        if let Err(denial) = self.commit(batch, [happened]).await {
            log::error!("{denial}");
        }
        tokio::spawn(Arc::clone(self).meter());
        tokio::spawn(Arc::clone(self).watch_network());
        tokio::spawn(Arc::clone(self).flush_audit());
        tokio::spawn(Arc::clone(self).back_up());
        Ok(())
    }

    /// Copies the store now and every day, so that one that gets damaged has a way out.
    async fn back_up(self: Arc<Self>) {
        loop {
            let path = self.config.state_dir.join("yund.redb");
            let copies = (1..=BACK_UPS).map(|n| path.with_extension(format!("redb.{n}")));
            let age = |copy: &PathBuf| fs::metadata(copy).and_then(|metadata| metadata.modified()).ok();
            // One that is not there first, then the oldest.
            if let Some(oldest) = copies.min_by_key(age)
                && let Err(error) = self.store.back_up(oldest).await
            {
                log::error!("the store can't be copied: {}", in_words(&error));
            }
            tokio::time::sleep(BACK_UP).await;
        }
    }

    /// What only looked is on the disk a second later.
    async fn flush_audit(self: Arc<Self>) {
        let mut flushed = self.audit.last_seq();
        loop {
            tokio::time::sleep(AUDIT_FLUSH).await;
            let (last, agent) = (self.audit.last_seq(), Arc::clone(&self));
            if last != flushed {
                let result =
                    blocking(move || agent.audit.flush().map_err(|e| Denial::host(in_words(&e)))).await;
                match result {
                    Ok(()) => flushed = last,
                    Err(denial) => log::error!("{denial}"),
                }
            }
        }
    }

    /// After a planned shutdown and a new boot VMs are taken again.
    async fn return_of_the_host(&self) -> Result<(), StartError> {
        let record = self.state().host.clone();
        if record.state == HostState::ShuttingDown && record.shutdown_boot.as_ref() != Some(&self.boot) {
            let record = HostRecord::default();
            let mut batch = Batch::new();
            batch.put(Table::Host, HOST, &record);
            self.store.commit(batch).await?;
            self.state().host = record;
        }
        Ok(())
    }

    /// Goes on with, or undoes, what was being done to volumes.
    async fn finish_volumes(self: &Arc<Self>) {
        let unfinished: Vec<(Key, VolumeRecord)> = self
            .state()
            .volumes
            .iter()
            .filter(|(_, record)| record.state != VolumeState::Ready)
            .map(|(key, record)| (key.clone(), record.clone()))
            .collect();
        for (key, record) in unfinished {
            let result = match record.state {
                VolumeState::Ready => Ok(()),
                VolumeState::Resizing => self.grow_volume(&key, &record).await,
                VolumeState::Creating | VolumeState::Deleting => self.forget_volume(&key, AGENT).await,
            };
            if let Err(denial) = result {
                log::error!("volume {}: {denial}", key_of(&key));
            }
        }
    }

    /// The file of a volume.
    ///
    /// # Errors
    /// None that a stored record leads to.
    pub(super) fn volume_key(&self, key: &Key, id: &str) -> Result<VolumeKey, Denial> {
        VolumeKey::new(key.0.as_str(), id).map_err(|error| Denial::host(error.to_string()))
    }
}

/// A failing store, to a caller.
#[must_use]
pub fn store_denial(error: &StoreError) -> Denial {
    let text = in_words(error);
    if text.contains("No space left") {
        return Denial::new(DenialCode::NoSpace, format!("nothing was changed: {text}"))
            .hint("make room on the disk of the agent's --state-dir");
    }
    Denial::host(format!("nothing was changed: {text}"))
}

/// A refusal for what an error says, or for want of room if that is what it came from.
#[must_use]
pub fn host_denial(code: DenialCode, error: &(dyn Error + 'static)) -> Denial {
    let text = in_words(error);
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::StorageFull) {
            let hint = "make room on the disk of the agent's --state-dir";
            return Denial::new(DenialCode::NoSpace, text).hint(hint);
        }
        cause = error.source();
    }
    Denial::new(code, text)
}

/// Does blocking work elsewhere.
///
/// # Errors
/// Its own, or [`DenialCode::Host`] if it panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Denial> + Send + 'static,
) -> Result<T, Denial> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Denial::host(format!("a mistake of the agent's: {error}"))),
    }
}
