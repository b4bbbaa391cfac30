//! One VM's task: looks at what is wanted and what is, does the next step, and waits for either to change.
//!
//! ```text
//!         ┌────────── changed, ended, time ──────────┐
//!         ▼                                          │
//!   Facts ──step()──> Start | Stop | Kill | ... ──> Rest (the operation ends)
//! ```
//! This task writes the VM's [`Runtime`]; who wants something of it changes it under the same lock. Whatever the task is
//! about to do is stored before it does it.

use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::clock;
use super::super::core::{AGENT, Agent};
use super::super::events::Happened;
use super::super::metering::End;
use super::super::model::{Denial, DenialCode, Ended, OperationKind, Power};
use super::super::records::{FirstStart, Phase, ProcessId, Runtime, VmRecord};
use super::super::state::{Activity, Key};
use super::super::steps::reached;
use super::super::store::{Batch, Table};
use super::client::VmmClient;
use super::decide::{After, Facts, Step, after_end, backoff_ms};
use super::launch::{self, Place, jail_dir};
use super::live::Live;
use super::process::{self, Handle};
use crate::sandbox::jail::in_words;
use crate::utc::Utc;

/// How long a jailer may take to get as far as its process being noted.
const JAILER: Duration = Duration::from_secs(5);
/// How often nobody is found at work on an incarnation before there is nobody.
const LOOKS: u32 = 20;
/// How often a VMM that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long after a failed write of the store the next is tried.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// A process found or made.
#[derive(Debug)]
pub struct Incarnation {
    pub(super) handle: Handle,
    /// If it is this process's child.
    child: Option<Child>,
    pub(super) client: VmmClient,
    pump: JoinHandle<()>,
}

impl Drop for Incarnation {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// What [`find`] found.
#[derive(Debug, Default)]
pub struct Found(Option<Incarnation>);

/// One VM's task.
pub(super) struct Task {
    pub(super) agent: Arc<Agent>,
    pub(super) key: Key,
    pub(super) id: String,
    pub(super) live: Arc<Live>,
    pub(super) incarnation: Option<Incarnation>,
    backoff_until: Option<Instant>,
    /// It was this task that ended the process.
    was_ended: bool,
}

pub(super) fn happened(key: &Key, kind: &'static str, detail: impl Into<String>) -> Happened {
    Happened {
        kind,
        tenant: Some(key.0.clone()),
        target: Some(key.1.to_string()),
        requestor: AGENT.to_owned(),
        detail: detail.into(),
    }
}

/// Ends a process in which no guest ran. Not while it is the jailer: one that is killed before it has its janitor leaves its
/// jail behind.
async fn end_half_made(handle: &Handle) {
    let deadline = Instant::now() + JAILER;
    while handle.id().lives() && process::is_jailer(handle.id().pid) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    if let Err(error) = handle.kill() {
        log::error!("{}: {error}", handle.id().pid);
    }
    handle.ended().await;
}

/// Looks for a VM's process after a start of the agent, and stores what it finds. Never ends a process that runs a guest.
pub async fn find(agent: &Arc<Agent>, key: &Key) -> Found {
    let Some(mut task) = Task::new(agent, key) else { return Found::default() };
    task.find().await;
    Found(task.incarnation.take())
}

/// Sets a VM's task to work.
pub fn spawn(agent: Arc<Agent>, key: Key, found: Found) {
    tokio::spawn(supervise(agent, key, found));
}

/// Does what is wanted of a VM until it is removed. Its process, if there is one, was [`find`]'s to find.
async fn supervise(agent: Arc<Agent>, key: Key, found: Found) {
    let Some(mut task) = Task::new(&agent, &key) else { return };
    task.incarnation = found.0;
    task.run().await;
}

impl Task {
    fn new(agent: &Arc<Agent>, key: &Key) -> Option<Self> {
        let state = agent.state();
        let vm = state.vms.get(key)?;
        Some(Self {
            agent: Arc::clone(agent),
            key: key.clone(),
            id: vm.record.id.clone(),
            live: Arc::clone(&vm.live),
            incarnation: None,
            backoff_until: None,
            was_ended: false,
        })
    }

    /// Changes what is stored of what is, and tells what happened. Tried until the store takes it: what is true stays true.
    pub(super) async fn save(&self, change: impl Fn(&mut Runtime), happened: Option<Happened>) {
        let _turn = self.live.saving.lock().await;
        loop {
            let Some(mut runtime) = self.runtime() else { return };
            change(&mut runtime);
            let mut batch = Batch::new();
            batch.put(Table::Runtimes, self.id.as_str(), &runtime);
            match self.agent.commit(batch, happened.clone()).await {
                Ok(()) => {
                    if let Some(vm) = self.agent.state().vms.get_mut(&self.key) {
                        vm.runtime = runtime;
                    }
                    return;
                }
                Err(denial) => log::error!("{}/{}: {denial}", self.key.0, self.key.1),
            }
            tokio::time::sleep(STORE_AGAIN).await;
        }
    }

    fn runtime(&self) -> Option<Runtime> {
        self.agent.state().vms.get(&self.key).map(|vm| vm.runtime.clone())
    }

    fn client(&self, incarnation: u64) -> VmmClient {
        let config = &self.agent.config;
        let jail = jail_dir(&config.jails(), &config.vmm, &format!("{}-{incarnation}", self.id));
        VmmClient::new(jail.join("root/run/firecracker.socket"), config.vmm_timeout)
    }

    fn adopt(&self, handle: Handle, child: Option<Child>, client: VmmClient) -> Incarnation {
        let console = Arc::clone(&self.live.console);
        let id = self.id.clone();
        let pump = tokio::spawn(async move {
            if let Err(error) = console.pump().await {
                log::error!("{id}: the console can't be read: {error}");
            }
        });
        Incarnation { handle, child, client, pump }
    }

    async fn find(&mut self) {
        let Some(runtime) = self.runtime() else { return };
        if runtime.phase == Phase::Stopped {
            return;
        }
        let client = self.client(runtime.incarnation);
        let handle = match self.process(&runtime).await {
            Ok(handle) => handle,
            Err(error) => {
                // Not knowing is no reason to do anything.
                self.live.does(Activity::Silent(format!("it can't be looked for: {error}")));
                return;
            }
        };
        let Some(handle) = handle else {
            self.ended(None, runtime.phase == Phase::Running).await;
            return;
        };
        let state = client.info().await;
        let id = handle.id().clone();
        match (&state, runtime.phase) {
            (Ok(info), _) if info.state != "Not started" => {
                let paused = info.state == "Paused";
                let told = (runtime.phase == Phase::Starting)
                    .then(|| happened(&self.key, "vm.started", "found running"));
                let first = self.first_start();
                self.save(
                    |runtime| {
                        runtime.phase = Phase::Running;
                        runtime.process = Some(id.clone());
                        runtime.paused = paused;
                        runtime.started_at.get_or_insert_with(clock::now);
                        runtime.started_ms.get_or_insert(first.since_boot_ms);
                        runtime.first_start.get_or_insert_with(|| first.clone());
                    },
                    told,
                )
                .await;
            }
            // It was being made, and no guest ever ran in it: what was half done is undone.
            (_, Phase::Starting) => {
                end_half_made(&handle).await;
                self.ended(None, false).await;
                return;
            }
            (Ok(_), _) => {}
            (Err(error), _) => self.live.does(Activity::Silent(in_words(error))),
        }
        self.incarnation = Some(self.adopt(handle, None, client));
    }

    /// The process of an incarnation: the one that was noted, or the one its jail's lock names.
    async fn process(&self, runtime: &Runtime) -> std::io::Result<Option<Handle>> {
        if let Some(id) = &runtime.process {
            return Handle::open(id);
        }
        let config = &self.agent.config;
        let name = format!("{}-{}", self.id, runtime.incarnation);
        let jail = jail_dir(&config.jails(), &config.vmm, &name);
        let deadline = Instant::now() + JAILER;
        let mut looks = 0;
        loop {
            if let Some(id) = process::of_jail(&jail) {
                return Handle::open(&id);
            }
            // A jailer at work names it soon. One that the agent before had only just forked has no name yet itself.
            looks += u32::from(process::with_id(|id| id == name)?.is_empty());
            if looks == LOOKS || Instant::now() > deadline {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn first_start(&self) -> FirstStart {
        FirstStart {
            boot: self.agent.boot.clone(),
            since_boot_ms: u64::try_from(clock::since_boot().as_millis()).unwrap_or(u64::MAX),
            wall_ms: Utc::now().as_millis(),
        }
    }

    /// What is known, and when that changes by itself.
    pub(super) fn facts(&self) -> Option<(Facts, Option<Instant>)> {
        let state = self.agent.state();
        let vm = state.vms.get(&self.key)?;
        let (record, runtime) = (&vm.record, &vm.runtime);
        let now = self.first_start();
        let expiry = record.spec.ttl_seconds.zip(runtime.first_start.as_ref()).map(|(ttl, first)| {
            let elapsed = first.elapsed_ms(&now.boot, now.since_boot_ms, now.wall_ms);
            (ttl.saturating_mul(1000)).saturating_sub(elapsed)
        });
        let expired = expiry == Some(0);
        let at = record.spec.ttl_seconds.zip(runtime.first_start.as_ref()).map(|(ttl, first)| {
            let ms = first.wall_ms.saturating_add(ttl.saturating_mul(1000));
            Utc::from_nanos(ms.saturating_mul(1_000_000)).to_rfc_3339()
        });
        self.live.set_expires_at(at);
        let held = state.holds(record.spec.drain);
        let backoff = self.backoff_until.filter(|until| *until > Instant::now());
        let facts = Facts {
            power: record.spec.power,
            deleting: record.deleting,
            expired,
            held,
            phase: runtime.phase,
            paused: runtime.paused,
            over: runtime.over == Some(record.generation),
            reset: runtime.reset,
            kill: runtime.kill,
            backing_off: backoff.is_some(),
            plug: state.plug(vm).map(|(plug, _)| plug),
        };
        let later = expiry
            .filter(|left| *left > 0)
            .map(|left| Instant::now() + Duration::from_millis(left.min(1 << 40)));
        Some((facts, [backoff, later].into_iter().flatten().min()))
    }

    async fn run(mut self) {
        while let Some((facts, until)) = self.facts() {
            match facts.step() {
                Step::Rest => self.rest(facts, until).await,
                Step::Start => self.start().await,
                Step::Stop => self.stop().await,
                Step::Kill => self.kill().await,
                Step::Pause => self.set_paused(true).await,
                Step::Resume => self.set_paused(false).await,
                Step::Plug => self.plug().await,
                Step::Remove => {
                    if self.remove().await {
                        return;
                    }
                }
            }
        }
    }

    /// Everything is as it should be, or has to wait.
    async fn rest(&mut self, facts: Facts, until: Option<Instant>) {
        if facts.expired {
            self.expire().await;
        }
        let silent = matches!(self.live.activity(), Activity::Silent(_)) && facts.phase == Phase::Running;
        if !silent {
            self.live.does(match facts.phase {
                Phase::Running => Activity::None,
                _ if facts.backing_off => Activity::BackingOff,
                _ if facts.expired => Activity::Expired,
                _ if facts.held => Activity::Held("the host is being drained or shut down"),
                _ => Activity::None,
            });
        }
        self.settle(facts);
        let wake = until.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400 * 365));
        let live = Arc::clone(&self.live);
        let ask_again = silent.then_some(ASK_AGAIN);
        tokio::select! {
            () = live.changed.notified() => {}
            () = tokio::time::sleep_until(wake) => {}
            () = async { tokio::time::sleep(ask_again.unwrap_or_default()).await }, if ask_again.is_some() => {
                self.ask_again().await;
            }
            () = async {
                if let Some(incarnation) = &self.incarnation { incarnation.handle.ended().await }
            }, if self.incarnation.is_some() => self.ended_by_itself().await,
        }
    }

    /// Ends the operation that led here.
    fn settle(&self, facts: Facts) {
        if facts.backing_off {
            return;
        }
        let Some(op) = self.live.take_operation() else { return };
        let runtime = self.runtime().unwrap_or_default();
        let changes = op.about().kind == OperationKind::VmReconcile;
        op.end(match runtime.failure.filter(|_| facts.over && facts.power != Power::Stopped) {
            Some(failure) => Err(Denial::host(failure)),
            None if changes && !runtime.refusals.is_empty() => {
                let why: Vec<_> = runtime.refusals.into_iter().map(|refusal| refusal.why).collect();
                Err(Denial::new(DenialCode::State, why.join("; ")))
            }
            None if facts.held && facts.power != Power::Stopped => {
                Err(Denial::new(DenialCode::Unavailable, "the host is being drained or shut down"))
            }
            None => Ok(()),
        });
    }

    async fn ask_again(&mut self) {
        // Where it could not be looked for before, it is looked for again.
        let Some(incarnation) = &self.incarnation else { return self.find().await };
        match incarnation.client.info().await {
            Ok(info) => {
                self.live.does(Activity::None);
                let paused = info.state == "Paused";
                self.save(|runtime| runtime.paused = paused, None).await;
            }
            Err(error) => self.live.does(Activity::Silent(in_words(&error))),
        }
    }

    async fn expire(&self) {
        let deletes = {
            let state = self.agent.state();
            state.vms.get(&self.key).is_some_and(|vm| vm.record.spec.ttl_deletes && !vm.record.deleting)
        };
        if deletes && let Err(denial) = self.agent.mark_deleting(&self.key, AGENT).await {
            log::error!("{}: {denial}", self.id);
        }
    }

    async fn start(&mut self) {
        self.live.does(Activity::Starting);
        let agent = Arc::clone(&self.agent);
        let Ok(_permit) = agent.starts.acquire().await else { return };
        // What is wanted may have changed while it waited for its turn.
        if self.facts().is_none_or(|(facts, _)| facts.step() != Step::Start) {
            return;
        }
        // What is wanted by the time of the intent: a change that was being stored meanwhile is among it.
        let begun = Mutex::new(None);
        self.save(
            |runtime| {
                let state = agent.state();
                let Some(vm) = state.vms.get(&self.key) else { return };
                let record = vm.record.clone();
                *runtime = Runtime {
                    incarnation: runtime.incarnation + 1,
                    phase: Phase::Starting,
                    since: clock::now(),
                    observed_generation: record.generation,
                    last_end: runtime.last_end.clone(),
                    restarts: runtime.restarts,
                    first_start: runtime.first_start.clone(),
                    interfaces: record.interfaces.clone(),
                    given: Some(state.to_give(&record)),
                    ..Runtime::default()
                };
                *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some((record, runtime.incarnation));
            },
            None,
        )
        .await;
        reached("start.intent");
        let begun = begun.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some((record, incarnation)) = begun else { return };
        match self.launch(record, incarnation).await {
            Ok(()) => self.live.does(Activity::None),
            Err(why) => {
                log::error!("{}/{} can't be started: {why}", self.key.0, self.key.1);
                if let Some(incarnation) = &self.incarnation {
                    end_half_made(&incarnation.handle).await;
                }
                self.ended(Some(why), false).await;
            }
        }
    }

    async fn launch(&mut self, record: VmRecord, incarnation: u64) -> Result<(), String> {
        let agent = Arc::clone(&self.agent);
        let name = record.incarnation(incarnation);
        let parts = agent.parts(&record).await.map_err(|denial| denial.message)?;
        reached("start.parts");
        let jails = agent.config.jails();
        let cgroup = launch::Cgroup {
            version: agent.resources.cgroup.version,
            parent: agent.config.cgroup(),
            settings: agent.resources.cgroup.settings(record.spec.vcpus, record.spec.memory_mib),
        };
        let uid = agent.config.uid_base + record.slot;
        let (config, console) = (agent.config.clone(), Arc::clone(&self.live.console));
        let log_path = agent.config.vm_dir(&self.id).join("vmm.log");
        let (child, requests) = tokio::task::spawn_blocking(move || {
            let ends = console.vmm_ends()?;
            let log = super::log_file(&log_path)?;
            let place = Place {
                jailer: &config.jailer,
                vmm: &config.vmm,
                jails: &jails,
                id: &name,
                uid,
                cgroup: &cgroup,
                vhost_net: config.vhost_net,
            };
            launch::spawn(&place, parts, ends, log)
        })
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("the jailer can't be run: {error}"))?;
        reached("start.spawned");
        let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
        let id = ProcessId::of(pid).map_err(|error| error.to_string())?;
        // The agent may be spared when memory runs out; a guest is not. The janitor is its sibling, and stays as it is.
        if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0") {
            log::debug!("{}: oom_score_adj: {error}", self.id);
        }
        let handle = Handle::open(&id).map_err(|error| error.to_string())?;
        let client = self.client(incarnation);
        let Some(handle) = handle else {
            let mut child = child;
            // It has ended.
            let _ = child.wait();
            return Err(format!("the VMM ended at once: {}", self.last_words()));
        };
        self.incarnation = Some(self.adopt(handle, Some(child), client.clone()));
        self.save(|runtime| runtime.process = Some(id.clone()), None).await;
        reached("start.noted");
        let Some(mine) = &self.incarnation else { return Err("it is gone".to_owned()) };
        let configure = async {
            launch::answers(&client, agent.config.vmm_timeout).await?;
            requests.configure(&client).await?;
            reached("start.configured");
            client.act("InstanceStart").await
        };
        tokio::select! {
            biased;
            result = configure => result.map_err(|error| in_words(&error))?,
            () = mine.handle.ended() => return Err(format!("the VMM ended: {}", self.last_words())),
        }
        reached("start.started");
        let first = self.first_start();
        let told = happened(&self.key, "vm.started", format!("incarnation {incarnation}"));
        self.save(
            |runtime| {
                let now = clock::now();
                runtime.phase = Phase::Running;
                runtime.since.clone_from(&now);
                runtime.started_at = Some(now);
                runtime.started_ms = Some(first.since_boot_ms);
                runtime.first_start.get_or_insert_with(|| first.clone());
            },
            Some(told),
        )
        .await;
        reached("start.running");
        Ok(())
    }

    async fn set_paused(&mut self, paused: bool) {
        let Some(incarnation) = &self.incarnation else { return self.lost().await };
        // Another may have begun when this has failed, such as a kill for that very reason.
        let op = self.live.under_way();
        let state = if paused { "Paused" } else { "Resumed" };
        let body = serde_json::json!({ "state": state });
        match incarnation.client.patch("/vm", &body, Vec::new()).await {
            Ok(()) => {
                let kind = if paused { "vm.paused" } else { "vm.resumed" };
                let told = happened(&self.key, kind, "");
                self.save(
                    |runtime| {
                        runtime.paused = paused;
                        runtime.since = clock::now();
                    },
                    Some(told),
                )
                .await;
            }
            Err(error) => {
                if let Some(op) = op {
                    op.end(Err(Denial::host(in_words(&error))));
                }
                self.live.does(Activity::Silent(in_words(&error)));
                self.pause_for_a_while().await;
            }
        }
    }

    /// After something failed: not again at once, unless something changes.
    pub(super) async fn pause_for_a_while(&mut self) {
        let live = Arc::clone(&self.live);
        tokio::select! {
            () = live.changed.notified() => {}
            () = tokio::time::sleep(ASK_AGAIN) => {}
            () = async {
                if let Some(incarnation) = &self.incarnation { incarnation.handle.ended().await }
            }, if self.incarnation.is_some() => self.ended_by_itself().await,
        }
    }

    /// It should have a process, and nobody knows whether it has: looked for again.
    pub(super) async fn lost(&mut self) {
        self.find().await;
        if self.incarnation.is_none() && self.runtime().is_some_and(|r| r.phase != Phase::Stopped) {
            self.pause_for_a_while().await;
        }
    }

    async fn stop(&mut self) {
        if self.incarnation.is_none() {
            return self.lost().await;
        }
        let said = self.live.take_stop_timeout();
        let default = {
            let state = self.agent.state();
            state.vms.get(&self.key).map_or(0, |vm| vm.record.spec.stop_timeout_seconds)
        };
        let deadline = Instant::now() + Duration::from_secs(u64::from(said.unwrap_or(default)));
        self.live.does(Activity::Stopping);
        let Some(incarnation) = &self.incarnation else { return };
        // A guest that stands still can't switch itself off.
        if self.runtime().is_some_and(|runtime| runtime.paused) {
            let body = serde_json::json!({ "state": "Resumed" });
            if let Err(error) = incarnation.client.patch("/vm", &body, Vec::new()).await {
                log::warn!("{}: {}", self.id, in_words(&error));
            }
        }
        if let Err(error) = incarnation.client.act("PressPowerButton").await {
            log::warn!("{}: its power button can't be pressed: {}", self.id, in_words(&error));
        }
        reached("stop.asked");
        let live = Arc::clone(&self.live);
        loop {
            tokio::select! {
                () = incarnation.handle.ended() => return self.ended(None, true).await,
                () = tokio::time::sleep_until(deadline) => {
                    log::warn!("{}: its guest did not switch itself off in time", self.id);
                    return self.kill().await;
                }
                () = live.changed.notified() => {
                    // A kill, or a removal, does not wait for the guest.
                    if self.facts().is_none_or(|(facts, _)| facts.step() == Step::Kill) {
                        return self.kill().await;
                    }
                }
            }
        }
    }

    async fn kill(&mut self) {
        if self.incarnation.is_some() {
            self.agent.sample_before_end(&self.key).await;
        }
        let Some(incarnation) = &self.incarnation else { return self.lost().await };
        match incarnation.handle.kill() {
            Ok(()) => {
                reached("kill.done");
                incarnation.handle.ended().await;
                self.was_ended = true;
                self.ended(None, true).await;
            }
            Err(error) => {
                self.live.does(Activity::Silent(format!("it can't be ended: {error}")));
                self.pause_for_a_while().await;
            }
        }
    }

    pub(super) async fn ended_by_itself(&mut self) {
        self.ended(None, true).await;
    }

    fn last_words(&self) -> String {
        super::last_line(&self.agent.config.vm_dir(&self.id).join("vmm.log"))
    }

    /// Notes that there is no process any more, and takes away what it had. `failure`: why it could not be started;
    /// `ran`: its guest ran.
    async fn ended(&mut self, failure: Option<String>, ran: bool) {
        reached("end.seen");
        let child = self.incarnation.as_mut().and_then(|incarnation| {
            incarnation.pump.abort();
            incarnation.child.take()
        });
        let status = match child {
            // Elsewhere: the kernel takes milliseconds to forget a process that much looked at, longer if the host is busy.
            Some(mut child) => tokio::task::spawn_blocking(move || child.wait().ok()).await.ok().flatten(),
            None => None,
        };
        let seen = if self.incarnation.is_some() { End::Seen } else { End::Unseen };
        self.agent.last_sample(&self.key, seen).await;
        self.incarnation = None;
        self.live.console.drain();
        let Some((record, runtime)) = ({
            let state = self.agent.state();
            state.vms.get(&self.key).map(|vm| (vm.record.clone(), vm.runtime.clone()))
        }) else {
            return;
        };
        self.agent.unplug(runtime.interfaces.clone(), &record).await;
        reached("end.unplugged");
        let other_boot = runtime.process.as_ref().is_some_and(|process| process.boot != self.agent.boot);
        let end = match &failure {
            Some(failure) => Ended { status: None, signal: None, reason: failure.clone(), at: clock::now() },
            None if other_boot => {
                let reason = "the host was restarted".to_owned();
                Ended { status: None, signal: None, reason, at: clock::now() }
            }
            None if std::mem::take(&mut self.was_ended) => {
                let reason = "it was ended by the agent, without its guest's consent".to_owned();
                Ended { status: None, signal: Some(libc::SIGKILL), reason, at: clock::now() }
            }
            None => super::how_it_ended(status, &self.last_words()),
        };
        let facts = self.facts().map(|(facts, _)| facts);
        let wanted = facts.is_some_and(|facts| facts.wants_process() && !facts.reset && !facts.kill);
        let clean = end.status == Some(0);
        let (mut over, mut restarts) = (None, runtime.restarts);
        self.backoff_until = None;
        // Half a start, or a host that was restarted, is no end of the VM's.
        if wanted && !other_boot && (ran || failure.is_some()) {
            match after_end(record.spec.restart, clean) {
                After::Over => over = Some(record.generation),
                After::Again => {
                    self.backoff_until = Some(Instant::now() + Duration::from_millis(backoff_ms(restarts)));
                    restarts += 1;
                }
            }
        }
        let told = (ran || failure.is_some()).then(|| {
            let kind = if failure.is_some() { "vm.failed" } else { "vm.ended" };
            happened(&self.key, kind, end.reason.clone())
        });
        self.save(
            |runtime| {
                runtime.phase = Phase::Stopped;
                runtime.process = None;
                runtime.interfaces.clear();
                runtime.given = None;
                runtime.refusals.clear();
                runtime.paused = false;
                runtime.since = clock::now();
                runtime.started_at = None;
                runtime.started_ms = None;
                if ran || failure.is_some() {
                    runtime.last_end = Some(end.clone());
                }
                runtime.failure.clone_from(&failure);
                runtime.over = over;
                runtime.restarts = restarts;
                (runtime.reset, runtime.kill) = (false, false);
            },
            told,
        )
        .await;
        self.agent.forget_ended(&record.incarnation(runtime.incarnation)).await;
        reached("end.stored");
    }

    /// Forgets the VM; whether that succeeded.
    async fn remove(&mut self) -> bool {
        let op = self.live.take_operation();
        let requestor = op.as_ref().map_or(AGENT.to_owned(), |op| op.about().requestor.clone());
        let dir = self.agent.config.vm_dir(&self.id);
        let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await;
        reached("delete.files");
        let failed = match removed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Denial::host(format!("its files can't be removed: {error}"))),
            Err(error) => Some(Denial::host(error.to_string())),
        };
        let result = match failed {
            Some(denial) => Err(denial),
            None => {
                let mut batch = Batch::new();
                batch.remove(Table::Vms, self.id.as_str()).remove(Table::Runtimes, self.id.as_str());
                let mut told = happened(&self.key, "vm.deleted", "");
                told.requestor = requestor;
                self.agent.commit(batch, [told]).await
            }
        };
        match result {
            Ok(()) => {
                self.agent.state().vms.remove(&self.key);
                // Also for who asked meanwhile.
                for op in [op, self.live.take_operation()].into_iter().flatten() {
                    op.end(Ok(()));
                }
                true
            }
            Err(denial) => {
                log::error!("{}: {denial}", self.id);
                if let Some(op) = op {
                    op.end(Err(denial));
                }
                self.pause_for_a_while().await;
                false
            }
        }
    }
}
