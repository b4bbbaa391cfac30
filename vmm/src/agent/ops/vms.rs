//! VMs: what is wanted of them, and what they are made of.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::clock;
use super::super::core::{Agent, blocking};
use super::super::events::Happened;
use super::super::images::{Digest, ImageId};
use super::super::model::{
    Action, ActionRequest, ActualState, Denial, DenialCode, Name, OperationKind, Power, Vm, VmPut, VmSpec,
    VolumeAttachment,
};
use super::super::operations::{About, Op, new_id};
use super::super::progress::Work;
use super::super::records::{GivenVolume, Phase, Runtime, VmRecord, VolumeRecord, VolumeState};
use super::super::seed::{self, Seed};
use super::super::state::{Key, State, VmEntry};
use super::super::steps::reached;
use super::super::store::{Batch, Table};
use super::super::vms::launch::{DiskPart, Parts};
use super::super::vms::live::Live;
use super::super::vms::supervise;
use super::super::volumes::{VolumeError, VolumeKey};
use super::volumes::{STILL_HAS, drive_id};
use super::{image_denial, volume_denial};
use crate::sandbox::jail::in_words;

/// How long what is about to end may keep a volume.
const DYING: Duration = Duration::from_secs(2);
/// vCPUs of a VM.
const VCPUS_MAX: u8 = 32;
/// Volumes of a VM.
const VOLUMES_MAX: usize = 16;
/// Interfaces of a VM.
const INTERFACES_MAX: usize = 8;
/// Highest generation that is taken: the last whole number that every reader of JSON knows, and far from the last there is,
/// since each action counts on.
const GENERATION_MAX: u64 = (1 << 53) - 1;
/// Longest time that a stop waits for a guest, in seconds: a drain and a shutdown of the host wait as long.
const STOP_TIMEOUT_MAX: u32 = 3600;
/// Bytes that the kernel's command line may have.
const KERNEL_ARGS_LEN_MAX: usize = 1024;

fn happened(key: &Key, kind: &'static str, requestor: &str, detail: impl Into<String>) -> Happened {
    Happened {
        kind,
        tenant: Some(key.0.clone()),
        target: Some(key.1.to_string()),
        requestor: requestor.to_owned(),
        detail: detail.into(),
    }
}

fn check_stop_timeout(field: &str, seconds: u32) -> Result<(), Denial> {
    if seconds > STOP_TIMEOUT_MAX {
        return Err(Denial::invalid(format!("{field} {seconds}: 0 to {STOP_TIMEOUT_MAX} are accepted")));
    }
    Ok(())
}

/// What a spec says that can be checked by itself.
fn check(spec: &VmSpec) -> Result<(), Denial> {
    let invalid = |text: String| Err(Denial::invalid(text));
    if spec.vcpus == 0 || spec.vcpus > VCPUS_MAX {
        return invalid(format!("spec.vcpus {}: 1 to {VCPUS_MAX} are accepted", spec.vcpus));
    }
    if spec.memory_mib == 0 || spec.memory_mib > 1 << 24 {
        return invalid(format!("spec.memory_mib {}: 1 to {} are accepted", spec.memory_mib, 1 << 24));
    }
    let printable = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if spec.kernel_args.len() > KERNEL_ARGS_LEN_MAX || !printable(&spec.kernel_args) {
        return invalid(format!(
            "spec.kernel_args: at most {KERNEL_ARGS_LEN_MAX} printable ASCII characters are accepted"
        ));
    }
    if spec.ttl_seconds == Some(0) {
        return invalid("spec.ttl_seconds 0: 1 or more is accepted".to_owned());
    }
    check_stop_timeout("spec.stop_timeout_seconds", spec.stop_timeout_seconds)?;
    if spec.ttl_deletes && spec.ttl_seconds.is_none() {
        return invalid("spec.ttl_deletes needs spec.ttl_seconds".to_owned());
    }
    if spec.volumes.len() > VOLUMES_MAX {
        return invalid(format!("spec.volumes: at most {VOLUMES_MAX} are accepted"));
    }
    if spec.volumes.iter().filter(|volume| volume.root).count() > 1 {
        return invalid("spec.volumes: at most one is the root file system".to_owned());
    }
    let names: BTreeSet<_> = spec.volumes.iter().map(|volume| &volume.volume).collect();
    if names.len() < spec.volumes.len() {
        return invalid("spec.volumes: each is named once".to_owned());
    }
    if spec.interfaces.len() > INTERFACES_MAX {
        return invalid(format!("spec.interfaces: at most {INTERFACES_MAX} are accepted"));
    }
    let names: BTreeSet<_> = spec.interfaces.iter().map(|interface| &interface.name).collect();
    if names.len() < spec.interfaces.len() {
        return invalid("spec.interfaces: each has a name of its own".to_owned());
    }
    Ok(())
}

/// What a spec says of other things of the tenant's.
fn check_among(state: &State, key: &Key, spec: &VmSpec) -> Result<(), Denial> {
    let widest = state.tenant(&key.0)?.spec.egress;
    for interface in &spec.interfaces {
        if interface.class > widest {
            let text = format!(
                "spec.interfaces: {} asks for class {}, and tenant {} may have at most {}",
                interface.name,
                interface.class.name(),
                key.0,
                widest.name()
            );
            return Err(Denial::new(DenialCode::Forbidden, text)
                .hint("an administrator may widen `egress` of the tenant"));
        }
    }
    for attachment in &spec.volumes {
        let volume_key = (key.0.clone(), attachment.volume.clone());
        let record = state.volume(&volume_key)?;
        if record.state == VolumeState::Creating || record.state == VolumeState::Deleting {
            let text = format!("volume {} is not ready", attachment.volume);
            return Err(Denial::new(DenialCode::State, text).hint("wait until it is"));
        }
        for other in state.attached(&volume_key).iter().filter(|name| **name != key.1) {
            let shared = attachment.read_only
                && state.vms.get(&(key.0.clone(), other.clone())).is_some_and(|vm| {
                    vm.record.spec.volumes.iter().any(|v| v.volume == attachment.volume && v.read_only)
                });
            if !shared {
                let text = format!("volume {} is attached to VM {other}", attachment.volume);
                return Err(Denial::new(DenialCode::InUse, text)
                    .hint("several VMs may have a volume if all of them only read it"));
            }
        }
        // What a guest has not let go of yet is nobody else's.
        let mut having = state.having(&key.0, &attachment.volume, &record.id);
        let other =
            having.find(|(vm, had)| vm.record.name != key.1 && !(attachment.read_only && had.read_only));
        if let Some((other, _)) = other {
            let text = format!(
                "volume {} is detached from VM {}, which runs and still has it",
                attachment.volume, other.record.name
            );
            return Err(Denial::new(DenialCode::InUse, text).hint(STILL_HAS));
        }
    }
    Ok(())
}

/// Whether a guest that runs can be given `new` in the place of `old`: volumes come, at the end, and go.
fn can_plug(old: &[VolumeAttachment], new: &[VolumeAttachment]) -> bool {
    let is_in = |volumes: &[VolumeAttachment], name: &Name| volumes.iter().any(|v| v.volume == *name);
    let kept = old.iter().filter(|volume| is_in(new, &volume.volume));
    let as_before = new.iter().filter(|volume| is_in(old, &volume.volume));
    let root = |volumes: &[VolumeAttachment]| volumes.iter().find(|volume| volume.root).cloned();
    kept.eq(as_before) && root(old) == root(new)
}

/// Whether a VM that runs as `old` has to be started again to be as `new`. `plugs`: it is known which volumes it has.
fn needs_start(old: &VmSpec, new: &VmSpec, plugs: bool) -> bool {
    // Everything that is taken up at once, made equal.
    let mut same = VmSpec {
        power: new.power,
        restart: new.restart,
        ttl_seconds: new.ttl_seconds,
        ttl_deletes: new.ttl_deletes,
        stop_timeout_seconds: new.stop_timeout_seconds,
        drain: new.drain,
        ..old.clone()
    };
    for (interface, wanted) in same.interfaces.iter_mut().zip(&new.interfaces) {
        interface.class = wanted.class;
    }
    if plugs && can_plug(&old.volumes, &new.volumes) {
        same.volumes.clone_from(&new.volumes);
    }
    same != *new
}

impl Agent {
    /// Takes note of what is wanted of a VM; whether it is new. With `dry_run` it only checks.
    ///
    /// # Errors
    /// [`DenialCode::Invalid`], [`DenialCode::StaleGeneration`], [`DenialCode::NotFound`] of what it names, quota, capacity.
    pub async fn put_vm(
        self: &Arc<Self>,
        key: &Key,
        put: VmPut,
        dry_run: bool,
        requestor: &str,
    ) -> Result<(Vm, bool), Denial> {
        check(&put.spec)?;
        let _turn = self.admission.lock().await;
        let before = {
            let state = self.state();
            state.tenant(&key.0)?;
            state.vms.get(key).map(|vm| (vm.record.clone(), vm.view()))
        };
        let image = match &before {
            // What a name meant when it was taken is what it means as long as nobody says otherwise.
            Some((record, _)) if record.spec.image == put.spec.image => record.image.clone(),
            _ => self.image(&put.spec.image)?.id.as_str().to_owned(),
        };
        let generation = match (&before, put.generation) {
            (Some((record, _)), _) if record.deleting => {
                let text = format!("VM {}/{} is being removed", key.0, key.1);
                return Err(Denial::new(DenialCode::State, text).hint("wait until it is, and make it again"));
            }
            (Some((record, view)), given)
                if record.spec == put.spec && given.is_none_or(|given| given == record.generation) =>
            {
                let again = if dry_run { None } else { self.try_again(key, requestor).await? };
                return Ok((again.unwrap_or_else(|| view.clone()), false));
            }
            (Some((record, _)), Some(given)) if given <= record.generation => {
                let text = format!("generation {given} is stale: the present one is {}", record.generation);
                return Err(Denial::new(DenialCode::StaleGeneration, text)
                    .hint("read the VM, and give a higher generation if it is still to be changed"));
            }
            (Some((record, _)), Some(given)) if given == record.generation + 1 => given,
            (_, Some(given)) if given == 0 || given > GENERATION_MAX => {
                let text = format!("generation {given}: 1 to {GENERATION_MAX} are accepted");
                return Err(Denial::invalid(text));
            }
            (_, Some(given)) => given,
            (Some((record, _)), None) => record.generation + 1,
            (None, None) => 1,
        };
        let old = before.as_ref().map(|(record, _)| record);
        {
            let state = self.state();
            check_among(&state, key, &put.spec)?;
            let limits = self.resources.limits(&self.config);
            let taken = state.vms.get(key).map(VmEntry::taken).unwrap_or_default();
            state.admit_vm(&key.0, old.map(|record| &record.spec), taken, &put.spec, limits)?;
        }
        let id = old.map_or_else(|| new_id("vm"), |record| record.id.clone());
        let interfaces = self.choose_interfaces(key, &put.spec, old)?;
        let slot = old.map_or_else(|| self.state().free_slot(), |record| record.slot);
        let record = VmRecord {
            tenant: key.0.clone(),
            name: key.1.clone(),
            id: id.clone(),
            generation,
            spec: put.spec,
            image,
            slot,
            interfaces,
            deleting: false,
            created_at: old.map_or_else(clock::now, |record| record.created_at.clone()),
        };
        self.check_seed(&record)?;
        if dry_run {
            let runtime = before.as_ref().and_then(|_| {
                let state = self.state();
                state.vms.get(key).map(|vm| vm.runtime.clone())
            });
            let live = Live::new(self.config.vm_dir(&id), self.config.console_bytes);
            let entry = VmEntry { record, runtime: runtime.unwrap_or_default(), live };
            return Ok((entry.view(), before.is_none()));
        }
        let op = self.operations.begin(About {
            kind: OperationKind::VmReconcile,
            tenant: Some(key.0.clone()),
            target: key.1.to_string(),
            unit: "steps",
            // To cancel it is to have the VM stopped: not what anyone wants of a change to one that runs.
            cancellable: !before.as_ref().is_some_and(|(_, view)| {
                matches!(view.status.state, ActualState::Running | ActualState::Paused | ActualState::Unknown)
            }) || record.spec.power == Power::Stopped,
            requestor: requestor.to_owned(),
        })?;
        let changed = match self.change_classes(key, &record.interfaces).await {
            Ok(changed) => changed,
            Err(denial) => {
                op.end(Err(denial.clone()));
                return Err(denial);
            }
        };
        match self.store_vm(key, record, |runtime| runtime.refusals.clear(), requestor).await {
            Ok(_) => {
                let state = self.state();
                let vm = state.vm(key)?;
                vm.live.begin(op);
                Ok((vm.view(), before.is_none()))
            }
            Err(denial) => {
                op.end(Err(denial.clone()));
                // What is not stored is not in force.
                if changed && let Some(old) = old {
                    self.change_classes(key, &old.interfaces).await?;
                }
                Err(denial)
            }
        }
    }

    /// Has what a running guest refused tried again, if there is anything. Under the admission lock.
    async fn try_again(self: &Arc<Self>, key: &Key, requestor: &str) -> Result<Option<Vm>, Denial> {
        let record = {
            let state = self.state();
            let vm = state.vm(key)?;
            if vm.runtime.refusals.is_empty() {
                return Ok(None);
            }
            vm.record.clone()
        };
        let op = self.operations.begin(About {
            kind: OperationKind::VmReconcile,
            tenant: Some(key.0.clone()),
            target: key.1.to_string(),
            unit: "steps",
            cancellable: false,
            requestor: requestor.to_owned(),
        })?;
        if let Err(denial) = self.store_vm(key, record, |runtime| runtime.refusals.clear(), requestor).await {
            op.end(Err(denial.clone()));
            return Err(denial);
        }
        let state = self.state();
        let vm = state.vm(key)?;
        vm.live.begin(op);
        Ok(Some(vm.view()))
    }

    /// Stores a VM's record, and sets its task to work. Under the admission lock.
    async fn store_vm(
        self: &Arc<Self>,
        key: &Key,
        record: VmRecord,
        change: impl FnOnce(&mut Runtime),
        requestor: &str,
    ) -> Result<Vm, Denial> {
        let dir = self.config.vm_dir(&record.id);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| Denial::host(format!("can't make the directory {}: {error}", dir.display())))?;
        let mut batch = Batch::new();
        batch.put(Table::Vms, record.id.as_str(), &record);
        let before = self.state().vms.get(key).map(|vm| (vm.record.clone(), Arc::clone(&vm.live)));
        let is_new = before.is_none();
        let mut changed = None;
        let mut saving = None;
        if let Some((before, live)) = &before {
            saving = Some(live.saving.lock().await);
            let now = self.state().vms.get(key).map(|vm| vm.runtime.clone());
            changed = now.clone();
            if let Some(runtime) = &mut changed {
                // What is taken up at once makes no incarnation older.
                if runtime.observed_generation == before.generation
                    && !needs_start(&before.spec, &record.spec, runtime.given.is_some())
                {
                    runtime.observed_generation = record.generation;
                }
                change(runtime);
            }
            changed = changed.filter(|changed| Some(changed) != now.as_ref());
            if let Some(runtime) = &changed {
                batch.put(Table::Runtimes, record.id.as_str(), runtime);
            }
        }
        let kind = if is_new { "vm.created" } else { "vm.changed" };
        let told = happened(key, kind, requestor, format!("generation {}", record.generation));
        if let Err(denial) = self.commit(batch, [told]).await {
            if is_new {
                let _ = fs::remove_dir(&dir);
            }
            return Err(denial);
        }
        reached("vm.stored");
        let mut state = self.state();
        if let Some(vm) = state.vms.get_mut(key) {
            vm.record = record;
            if let Some(runtime) = changed {
                vm.runtime = runtime;
            }
            drop(saving);
            vm.live.changed.notify_one();
            return Ok(vm.view());
        }
        let live = Live::new(dir, self.config.console_bytes);
        let runtime = Runtime { since: clock::now(), ..Runtime::default() };
        let entry = VmEntry { record, runtime, live };
        let view = entry.view();
        state.vms.insert(key.clone(), entry);
        drop(state);
        supervise::spawn(Arc::clone(self), key.clone(), supervise::Found::default());
        Ok(view)
    }

    /// From now on a VM is being removed.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`], and what the store says.
    pub(in super::super) async fn mark_deleting(
        self: &Arc<Self>,
        key: &Key,
        requestor: &str,
    ) -> Result<(), Denial> {
        let _turn = self.admission.lock().await;
        let record = self.state().vm(key)?.record.clone();
        if !record.deleting {
            self.store_vm(key, VmRecord { deleting: true, ..record }, |_| (), requestor).await?;
            reached("delete.intent");
        }
        Ok(())
    }

    /// Removes a VM: its process, then everything of it but its volumes.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`], and what the store says.
    pub async fn delete_vm(self: &Arc<Self>, key: &Key, requestor: &str) -> Result<Arc<Op>, Denial> {
        let op = self.begin_vm(OperationKind::VmDelete, key, requestor)?;
        if let Err(denial) = self.mark_deleting(key, requestor).await {
            op.end(Err(denial.clone()));
            return Err(denial);
        }
        let live = Arc::clone(&self.state().vm(key)?.live);
        live.begin(Arc::clone(&op));
        Ok(op)
    }

    fn begin_vm(&self, kind: OperationKind, key: &Key, requestor: &str) -> Result<Arc<Op>, Denial> {
        self.state().vm(key)?;
        self.operations.begin(About {
            kind,
            tenant: Some(key.0.clone()),
            target: key.1.to_string(),
            unit: "steps",
            cancellable: matches!(kind, OperationKind::VmStart | OperationKind::VmReconcile),
            requestor: requestor.to_owned(),
        })
    }

    /// Has something done with a VM.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`]; [`DenialCode::State`] if it can't be done now; quota and capacity. What fails later is in the
    /// operation.
    pub async fn act(
        self: &Arc<Self>,
        key: &Key,
        request: &ActionRequest,
        requestor: &str,
    ) -> Result<Arc<Op>, Denial> {
        if request.timeout_seconds.is_some() && request.action != Action::Stop {
            return Err(Denial::invalid("timeout_seconds: only `stop` has one"));
        }
        check_stop_timeout("timeout_seconds", request.timeout_seconds.unwrap_or(0))?;
        let kind = match request.action {
            Action::Start => OperationKind::VmStart,
            Action::Stop => OperationKind::VmStop,
            Action::Kill => OperationKind::VmKill,
            Action::Pause => OperationKind::VmPause,
            Action::Resume => OperationKind::VmResume,
            Action::Reset => OperationKind::VmReset,
        };
        let op = self.begin_vm(kind, key, requestor)?;
        match self.take_action(key, request, requestor).await {
            Ok(live) => {
                live.set_stop_timeout(request.timeout_seconds);
                live.begin(Arc::clone(&op));
                Ok(op)
            }
            Err(denial) => {
                op.end(Err(denial.clone()));
                Err(denial)
            }
        }
    }

    async fn take_action(
        self: &Arc<Self>,
        key: &Key,
        request: &ActionRequest,
        requestor: &str,
    ) -> Result<Arc<Live>, Denial> {
        let _turn = self.admission.lock().await;
        let (mut record, view, live) = {
            let state = self.state();
            let vm = state.vm(key)?;
            (vm.record.clone(), vm.view(), Arc::clone(&vm.live))
        };
        if record.deleting {
            return Err(Denial::new(DenialCode::State, format!("VM {}/{} is being removed", key.0, key.1)));
        }
        let state = view.status.state;
        let runs = matches!(state, ActualState::Running | ActualState::Paused | ActualState::Unknown);
        let refuse = |needs: &str| {
            let text = format!("VM {}/{} is {}", key.0, key.1, state.in_a_word());
            Err(Denial::new(DenialCode::State, text).hint(needs.to_owned()))
        };
        match request.action {
            Action::Pause | Action::Resume | Action::Reset if !runs => {
                return refuse("a VM that runs is accepted: start it");
            }
            _ => {}
        }
        let power = match request.action {
            Action::Start if state == ActualState::Paused => Power::Running,
            Action::Start if record.spec.power == Power::Paused && runs => Power::Running,
            Action::Start | Action::Resume => Power::Running,
            Action::Stop | Action::Kill => Power::Stopped,
            Action::Pause => Power::Paused,
            Action::Reset => record.spec.power,
        };
        // Also where nothing changes: a start that is over is begun again by it.
        let anew = request.action == Action::Start && !runs;
        if power != record.spec.power || anew {
            let spec = VmSpec { power, ..record.spec.clone() };
            let limits = self.resources.limits(&self.config);
            let old = VmSpec {
                power: if anew { Power::Stopped } else { record.spec.power },
                ..record.spec.clone()
            };
            let admits = {
                let state = self.state();
                state.admit_vm(&key.0, Some(&old), state.vm(key)?.taken(), &spec, limits)
            };
            // What is given out already because it is wanted is not needed twice.
            if record.spec.power == Power::Stopped || !anew {
                admits?;
            } else if let Err(denial) = admits
                && denial.code == DenialCode::Unavailable
            {
                return Err(denial);
            }
            record.spec = spec;
            record.generation += 1;
        }
        let action = request.action;
        // With the record, in one commit: a kill whose `stopped` were lost would be a reset.
        let change = move |runtime: &mut Runtime| {
            if anew {
                runtime.first_start = None;
                runtime.restarts = 0;
            }
            if runtime.phase == Phase::Running {
                runtime.reset |= action == Action::Reset;
                runtime.kill |= action == Action::Kill;
            }
        };
        self.store_vm(key, record, change, requestor).await?;
        Ok(live)
    }

    /// Takes back what an operation wanted of a VM, as far as that can be: a start becomes a stop.
    ///
    /// # Errors
    /// [`DenialCode::State`] if it can't be.
    pub async fn cancel(self: &Arc<Self>, op: &Arc<Op>, requestor: &str) -> Result<(), Denial> {
        let about = op.about();
        if !op.view().cancellable {
            let text = format!(
                "operation {} can't be cancelled{}",
                op.id(),
                if op.is_running() { "" } else { ": it has ended" }
            );
            return Err(Denial::new(DenialCode::State, text));
        }
        op.work().cancel().ask();
        if let (OperationKind::VmStart | OperationKind::VmReconcile, Some(tenant)) =
            (about.kind, &about.tenant)
            && let Ok(name) = about.target.parse()
        {
            let request = ActionRequest { action: Action::Kill, timeout_seconds: None };
            let key = (tenant.clone(), name);
            self.take_action(&key, &request, requestor).await?.changed.notify_one();
            op.cancelled("it was cancelled; the VM is wanted stopped");
        }
        Ok(())
    }

    fn seed_of(record: &VmRecord, network_config: Option<String>) -> Option<Seed> {
        let spec = &record.spec;
        let needed = spec.user_data.is_some() || !spec.ssh_keys.is_empty() || !record.interfaces.is_empty();
        needed.then(|| Seed {
            instance_id: record.id.clone(),
            hostname: record.name.to_string(),
            user_data: spec.user_data.clone(),
            network_config,
            ssh_keys: spec.ssh_keys.clone(),
        })
    }

    fn check_seed(&self, record: &VmRecord) -> Result<(), Denial> {
        match Self::seed_of(record, None) {
            Some(seed) => {
                seed.check().map_err(|error| Denial::invalid(format!("spec: {}", in_words(&error))))
            }
            None => Ok(()),
        }
    }

    /// Opens everything a VM is made of, and plugs its interfaces in.
    ///
    /// # Errors
    /// What is missing, damaged or in use.
    pub(in super::super) async fn parts(self: &Arc<Self>, record: &VmRecord) -> Result<Parts, Denial> {
        let (agent, record) = (Arc::clone(self), record.clone());
        blocking(move || agent.open_parts(&record)).await
    }

    /// Opens a volume. A process of the incarnation before may be about to end, and have it as long: waited for. Blocks.
    fn open_volume(&self, volume: &VolumeKey, read_only: bool) -> Result<File, VolumeError> {
        let deadline = Instant::now() + DYING;
        loop {
            match self.volumes.open_for_use(volume, read_only) {
                Err(VolumeError::InUse { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(DYING / 100);
                }
                opened => return opened,
            }
        }
    }

    /// Opens a volume for a VM that runs.
    ///
    /// # Errors
    /// What the host says; [`DenialCode::InUse`].
    pub(in super::super) async fn open_late(
        self: &Arc<Self>,
        tenant: &Name,
        volume: &GivenVolume,
    ) -> Result<OwnedFd, Denial> {
        let key = VolumeKey::new(tenant.as_str(), &volume.id).map_err(|e| Denial::host(e.to_string()))?;
        let (agent, read_only) = (Arc::clone(self), volume.read_only);
        blocking(move || {
            let file = agent.open_volume(&key, read_only).map_err(|error| volume_denial(&error))?;
            Ok(file.into())
        })
        .await
    }

    fn open_parts(&self, record: &VmRecord) -> Result<Parts, Denial> {
        let digest =
            Digest::try_from(record.image.clone()).map_err(|error| Denial::host(error.to_string()))?;
        let opened = self.images.open_for_use(&ImageId(digest), &Work::new());
        let opened = opened.map_err(|error| image_denial(&error))?;
        let mut disks = Vec::new();
        let has_root = record.spec.volumes.iter().any(|volume| volume.root);
        if let Some(file) = opened.rootfs.filter(|_| !has_root) {
            disks.push(DiskPart {
                id: "rootfs".to_owned(),
                file,
                read_only: true,
                root: true,
                discard: false,
            });
        }
        let ordered = record.spec.volumes.iter().filter(|volume| volume.root);
        for attachment in ordered.chain(record.spec.volumes.iter().filter(|volume| !volume.root)) {
            let key = (record.tenant.clone(), attachment.volume.clone());
            let VolumeRecord { id, preallocated, .. } = self.state().volume(&key)?.clone();
            let file = self.open_volume(&self.volume_key(&key, &id)?, attachment.read_only);
            disks.push(DiskPart {
                id: drive_id(&id),
                file: file.map_err(|error| volume_denial(&error))?,
                read_only: attachment.read_only,
                root: attachment.root,
                discard: !preallocated,
            });
        }
        let (network_config, ip_arg) = self.guest_network(record);
        if let Some(seed) = Self::seed_of(record, network_config) {
            let path = self.config.vm_dir(&record.id).join("seed.img");
            seed::write(&path, &seed).map_err(|error| Denial::host(in_words(&error)))?;
            let file = File::open(&path).map_err(|error| Denial::host(error.to_string()))?;
            disks.push(DiskPart {
                id: "cidata".to_owned(),
                file,
                read_only: true,
                root: false,
                discard: false,
            });
        }
        let manifest = &opened.image.manifest;
        let mut kernel_args = vec![manifest.kernel_args.clone(), record.spec.kernel_args.clone()];
        kernel_args.extend(ip_arg.filter(|_| manifest.wants_ip));
        kernel_args.retain(|args| !args.is_empty());
        let nets = self.plug(record)?;
        Ok(Parts {
            vcpus: record.spec.vcpus,
            memory_mib: record.spec.memory_mib,
            kernel: opened.kernel,
            initrd: opened.initrd,
            kernel_args: kernel_args.join(" "),
            disks,
            nets,
        })
    }
}
