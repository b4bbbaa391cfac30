//! Volumes: an intent in the store, then the file, then its end in the store.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::super::clock;
use super::super::core::{Agent, blocking, key_of};
use super::super::events::Happened;
use super::super::images::ImageId;
use super::super::model::{
    AttachRequest, Denial, DenialCode, OperationKind, Vm, VmPut, Volume, VolumeAttachment, VolumeCreate,
    VolumeSource,
};
use super::super::operations::{About, Op, new_id};
use super::super::records::{GivenVolume, Phase, VolumeRecord, VolumeState};
use super::super::state::{Key, MIB};
use super::super::steps::reached;
use super::super::store::{Batch, Table};
use super::super::vms::client::{VmmClient, VmmError};
use super::super::vms::launch::jail_dir;
use super::super::volumes::{Allocation, Shrink, Source, VolumeError};
use super::{image_denial, volume_denial};
use crate::sandbox::jail::in_words;

/// What to do about a VM that has a volume which it is not to have any more.
pub(super) const STILL_HAS: &str = "wait until its guest has let go of it, or stop it";

/// What a new volume begins as.
enum Begins {
    Empty,
    Image(ImageId),
    Volume(Key, String),
}

/// A volume's id for a VMM: the same whatever else the VM has.
pub(in super::super) fn drive_id(volume_id: &str) -> String {
    volume_id.replace('-', "_")
}

fn about(kind: OperationKind, key: &Key, requestor: &str) -> About {
    About {
        kind,
        tenant: Some(key.0.clone()),
        target: key.1.to_string(),
        unit: "bytes",
        cancellable: kind == OperationKind::VolumeCreate,
        requestor: requestor.to_owned(),
    }
}

fn happened(key: &Key, kind: &'static str, requestor: &str) -> Happened {
    Happened {
        kind,
        tenant: Some(key.0.clone()),
        target: Some(key.1.to_string()),
        requestor: requestor.to_owned(),
        detail: String::new(),
    }
}

impl Agent {
    /// Makes a volume.
    ///
    /// # Errors
    /// [`DenialCode::Exists`], [`DenialCode::Invalid`], [`DenialCode::NotFound`], quota and capacity. What fails later is in
    /// the operation.
    pub async fn create_volume(
        self: &Arc<Self>,
        key: &Key,
        request: VolumeCreate,
        requestor: &str,
    ) -> Result<Arc<Op>, Denial> {
        let _turn = self.admission.lock().await;
        let (begins, least) = match &request.from {
            None => (Begins::Empty, 0),
            Some(VolumeSource::Image(asked)) => {
                let image = self.image(asked)?;
                let rootfs = image.manifest.rootfs.as_ref().ok_or_else(|| {
                    Denial::invalid(format!("from: image {asked:?} has no root file system to begin with"))
                })?;
                (Begins::Image(image.id.clone()), rootfs.size_bytes)
            }
            Some(VolumeSource::Volume(name)) => {
                let source = (key.0.clone(), name.clone());
                let record = self.state().volume(&source)?.clone();
                (Begins::Volume(source, record.id), record.size_bytes)
            }
        };
        let size_bytes = match request.size_mib {
            Some(mib) => mib.checked_mul(MIB).ok_or_else(|| Denial::invalid("size_mib: it is too large"))?,
            None => least.next_multiple_of(MIB),
        };
        if size_bytes == 0 || size_bytes < least {
            let text = format!("size_mib: at least {} is accepted", least.div_ceil(MIB).max(1));
            return Err(Denial::invalid(text));
        }
        {
            let state = self.state();
            if state.volumes.contains_key(key) {
                let text = format!("volume {} exists", key_of(key));
                return Err(Denial::new(DenialCode::Exists, text).hint("take another name, or resize it"));
            }
            state.admit_disk(&key.0, size_bytes / MIB, self.resources.limits(&self.config))?;
        }
        let record = VolumeRecord {
            id: new_id("vol"),
            size_bytes,
            state: VolumeState::Creating,
            preallocated: request.preallocate,
            created_at: clock::now(),
        };
        let op = self.operations.begin(about(OperationKind::VolumeCreate, key, requestor))?;
        let mut batch = Batch::new();
        batch.put(Table::Volumes, key_of(key), &record);
        if let Err(denial) = self.commit(batch, None).await {
            op.end(Err(denial.clone()));
            return Err(denial);
        }
        self.state().volumes.insert(key.clone(), record.clone());
        reached("volume.intent");
        let (agent, key, task_op) = (Arc::clone(self), key.clone(), Arc::clone(&op));
        let allocation = if request.preallocate { Allocation::Preallocated } else { Allocation::Sparse };
        tokio::spawn(async move {
            let result = agent.make_volume(&key, record, begins, allocation, &task_op).await;
            match result {
                Err(_) if task_op.work().cancel().is_asked() => task_op.cancelled("nothing of it is left"),
                result => task_op.end(result),
            }
        });
        Ok(op)
    }

    async fn make_volume(
        self: &Arc<Self>,
        key: &Key,
        record: VolumeRecord,
        begins: Begins,
        allocation: Allocation,
        op: &Arc<Op>,
    ) -> Result<(), Denial> {
        let (agent, file, op_of_work) = (Arc::clone(self), self.volume_key(key, &record.id)?, Arc::clone(op));
        let source = match &begins {
            Begins::Volume(key, id) => Some(self.volume_key(key, id)?),
            _ => None,
        };
        let size_bytes = record.size_bytes;
        let turn = Arc::clone(&self.copies).acquire_owned().await;
        let made = blocking(move || {
            let _turn = turn;
            let work = op_of_work.work();
            let denied = |error: VolumeError| volume_denial(&error);
            match (begins, source) {
                (Begins::Image(id), _) => {
                    let opened = agent.images.open_for_use(&id, work).map_err(|e| image_denial(&e))?;
                    let rootfs =
                        opened.rootfs.ok_or_else(|| Denial::host("the image lost its root file system"))?;
                    let named = std::path::PathBuf::from(format!("image {id}"));
                    agent.volumes.create(&file, size_bytes, Source::File(&rootfs, &named), allocation, work)
                }
                (_, Some(source)) => {
                    agent.volumes.create(&file, size_bytes, Source::Volume(&source), allocation, work)
                }
                (_, None) => agent.volumes.create(&file, size_bytes, Source::Empty, allocation, work),
            }
            .map_err(denied)
        })
        .await;
        reached("volume.made");
        if let Err(denial) = made {
            self.forget_volume(key, &op.about().requestor).await?;
            return Err(denial);
        }
        let record = VolumeRecord { state: VolumeState::Ready, ..record };
        let mut batch = Batch::new();
        batch.put(Table::Volumes, key_of(key), &record);
        self.commit(batch, [happened(key, "volume.created", &op.about().requestor)]).await?;
        self.state().volumes.insert(key.clone(), record);
        reached("volume.stored");
        Ok(())
    }

    /// Removes a volume's file, which may not be there, and then its record.
    ///
    /// # Errors
    /// What the host says.
    pub(in super::super) async fn forget_volume(
        self: &Arc<Self>,
        key: &Key,
        requestor: &str,
    ) -> Result<(), Denial> {
        let id = self.state().volume(key)?.id.clone();
        self.last_volume_sample(&id).await;
        let (agent, file) = (Arc::clone(self), self.volume_key(key, &id)?);
        blocking(move || match agent.volumes.remove(&file) {
            Ok(()) | Err(VolumeError::NotFound(_)) => Ok(()),
            Err(error) => Err(volume_denial(&error)),
        })
        .await?;
        let mut batch = Batch::new();
        batch.remove(Table::Volumes, key_of(key));
        self.commit(batch, [happened(key, "volume.deleted", requestor)]).await?;
        self.state().volumes.remove(key);
        self.forget_ended(&id).await;
        Ok(())
    }

    /// Removes a volume that no VM has.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`], [`DenialCode::InUse`].
    pub async fn delete_volume(self: &Arc<Self>, key: &Key, requestor: &str) -> Result<(), Denial> {
        let _turn = self.admission.lock().await;
        let record = {
            let state = self.state();
            let record = state.volume(key)?;
            let attached = state.attached(key);
            if let Some(vm) = attached.first() {
                let text = format!("volume {} is attached to VM {vm}", key_of(key));
                return Err(Denial::new(DenialCode::InUse, text).hint("detach it first"));
            }
            if let Some((vm, _)) = state.having(&key.0, &key.1, &record.id).next() {
                let text = format!(
                    "volume {} is detached from VM {}, which runs and still has it",
                    key_of(key),
                    vm.record.name
                );
                return Err(Denial::new(DenialCode::InUse, text).hint(STILL_HAS));
            }
            if record.state != VolumeState::Ready {
                let text = format!("volume {} is not ready: something is being done to it", key_of(key));
                return Err(
                    Denial::new(DenialCode::State, text).hint("wait for that operation, or cancel it")
                );
            }
            VolumeRecord { state: VolumeState::Deleting, ..record.clone() }
        };
        self.set_volume(key, &record).await?;
        let removed = self.forget_volume(key, requestor).await;
        if removed.is_err() && self.volumes.usage(&self.volume_key(key, &record.id)?).is_ok() {
            // Nothing was taken from it. If the store fails too, the next start of an agent goes on.
            let record = VolumeRecord { state: VolumeState::Ready, ..record };
            if let Err(denial) = self.set_volume(key, &record).await {
                log::error!("volume {}: {denial}", key_of(key));
            }
        }
        removed
    }

    /// Takes note of what a volume is.
    async fn set_volume(&self, key: &Key, record: &VolumeRecord) -> Result<(), Denial> {
        let mut batch = Batch::new();
        batch.put(Table::Volumes, key_of(key), record);
        self.commit(batch, None).await?;
        self.state().volumes.insert(key.clone(), record.clone());
        Ok(())
    }

    /// Makes a volume larger, also under running VMs.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`], [`DenialCode::Invalid`], quota and capacity. What fails later is in the operation.
    pub async fn resize_volume(
        self: &Arc<Self>,
        key: &Key,
        size_mib: u64,
        requestor: &str,
    ) -> Result<Arc<Op>, Denial> {
        let _turn = self.admission.lock().await;
        let before = self.state().volume(key)?.clone();
        if before.state != VolumeState::Ready {
            let text = format!("volume {} is not ready: something is being done to it", key_of(key));
            return Err(Denial::new(DenialCode::State, text).hint("wait for that operation"));
        }
        let size_bytes =
            size_mib.checked_mul(MIB).ok_or_else(|| Denial::invalid("size_mib: it is too large"))?;
        if size_bytes < before.size_bytes {
            let text =
                format!("size_mib {size_mib}: at least {} is accepted", before.size_bytes.div_ceil(MIB));
            return Err(
                Denial::invalid(text).hint("a volume does not shrink: copy what is in it to a smaller one")
            );
        }
        let more = size_mib - before.size_bytes.div_ceil(MIB).min(size_mib);
        self.state().admit_disk(&key.0, more, self.resources.limits(&self.config))?;
        let record = VolumeRecord { size_bytes, state: VolumeState::Resizing, ..before.clone() };
        let op = self.operations.begin(about(OperationKind::VolumeResize, key, requestor))?;
        let mut batch = Batch::new();
        batch.put(Table::Volumes, key_of(key), &record);
        if let Err(denial) = self.commit(batch, None).await {
            op.end(Err(denial.clone()));
            return Err(denial);
        }
        self.state().volumes.insert(key.clone(), record.clone());
        reached("resize.intent");
        let (agent, key, task_op) = (Arc::clone(self), key.clone(), Arc::clone(&op));
        tokio::spawn(async move {
            let result = agent.grow_volume(&key, &record).await;
            if result.is_err()
                && agent.state().volumes.get(&key).is_some_and(|now| now.state == VolumeState::Resizing)
            {
                // As large as its file is, so is it counted: what failed may be the store.
                let usage = agent.volume_key(&key, &before.id).map(|file| agent.volumes.usage(&file));
                let size_bytes = match usage {
                    Ok(Ok(usage)) => usage.size_bytes.max(before.size_bytes),
                    _ => before.size_bytes,
                };
                let record = VolumeRecord { size_bytes, ..before };
                if let Err(denial) = agent.set_volume(&key, &record).await {
                    log::error!("volume {}: {denial}", key_of(&key));
                }
            }
            task_op.end(result);
        });
        Ok(op)
    }

    /// Makes a volume's file as large as its record says, and tells who has it.
    ///
    /// # Errors
    /// What the host says. If somebody was not told, the volume is as large all the same.
    pub(in super::super) async fn grow_volume(
        self: &Arc<Self>,
        key: &Key,
        record: &VolumeRecord,
    ) -> Result<(), Denial> {
        let (agent, file) = (Arc::clone(self), self.volume_key(key, &record.id)?);
        let (size_bytes, op) = (record.size_bytes, Arc::new(super::super::progress::Work::new()));
        blocking(move || {
            let grown = agent.volumes.resize(&file, size_bytes, Shrink::Refused, Allocation::Sparse, &op);
            grown.map(drop).map_err(|error| volume_denial(&error))
        })
        .await?;
        reached("resize.done");
        let told = self.tell_of_size(key, record).await;
        reached("resize.told");
        let record = VolumeRecord { state: VolumeState::Ready, ..record.clone() };
        let mut batch = Batch::new();
        batch.put(Table::Volumes, key_of(key), &record);
        self.commit(batch, [happened(key, "volume.resized", super::super::core::AGENT)]).await?;
        self.state().volumes.insert(key.clone(), record);
        told
    }

    /// Gives a running VM's drive its own file again, which makes the VMM look at its size.
    async fn tell_of_size(self: &Arc<Self>, key: &Key, record: &VolumeRecord) -> Result<(), Denial> {
        let running: Vec<(VmmClient, GivenVolume)> = {
            let state = self.state();
            let having = state.having(&key.0, &key.1, &record.id);
            having
                .filter(|(vm, _)| vm.runtime.phase == Phase::Running)
                .map(|(vm, had)| {
                    let jails = self.config.jails();
                    let id = vm.record.incarnation(vm.runtime.incarnation);
                    let socket = jail_dir(&jails, &self.config.vmm, &id).join("root/run/firecracker.socket");
                    (VmmClient::new(socket, self.config.vmm_timeout), had)
                })
                .collect()
        };
        for (client, had) in running {
            let path = self.volumes.path(&self.volume_key(key, &record.id)?);
            let file = std::fs::OpenOptions::new().read(true).write(!had.read_only).open(&path);
            let file: OwnedFd =
                file.map_err(|error| Denial::host(format!("can't open {}: {error}", path.display())))?.into();
            let drive = drive_id(&record.id);
            let body = serde_json::json!({ "drive_id": drive, "path_on_host": "received:0" });
            match client.patch(&format!("/drives/{drive}"), &body, vec![file]).await {
                Ok(()) => {}
                // It does not have it yet, and sees the new size when it gets it; or not any more.
                Err(VmmError::Refused { .. }) if had.moving.is_some() => {}
                Err(error) => {
                    let text = format!("the volume has grown, and its VM was not told: {}", in_words(&error));
                    return Err(Denial::host(text).hint("the guest sees the new size at its next start"));
                }
            }
        }
        Ok(())
    }

    /// What is shown of a volume.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`].
    pub fn volume_view(&self, key: &Key) -> Result<Volume, Denial> {
        let id = self.state().volume(key)?.id.clone();
        // One that is being made has no file yet.
        let usage = self.volumes.usage(&self.volume_key(key, &id)?);
        self.state().volume_view(key, usage.map_or(0, |usage| usage.allocated_bytes))
    }

    /// Adds a volume to a VM's disks, or takes it away; what was refused by a running guest is tried again.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`], [`DenialCode::State`], and what [`Agent::put_vm`] refuses.
    pub async fn attach(
        self: &Arc<Self>,
        key: &Key,
        request: AttachRequest,
        detach: bool,
        requestor: &str,
    ) -> Result<Vm, Denial> {
        let vm_key = (key.0.clone(), request.vm);
        let (mut spec, mut generation, refused) = {
            let state = self.state();
            state.volume(key)?;
            let vm = state.vm(&vm_key)?;
            let refused = vm.runtime.refusals.iter().any(|refusal| refusal.name.as_ref() == Some(&key.1));
            (vm.record.spec.clone(), vm.record.generation, refused)
        };
        let position = spec.volumes.iter().position(|volume| volume.volume == key.1);
        match (detach, position) {
            // The same once more.
            (true, None) | (false, Some(_)) if refused => generation -= 1,
            (true, None) | (false, Some(_)) => {
                let is = if detach { "is not attached" } else { "is attached already" };
                return Err(Denial::new(
                    DenialCode::State,
                    format!("volume {} {is} to VM {}", key.1, vm_key.1),
                ));
            }
            (true, Some(position)) => drop(spec.volumes.remove(position)),
            (false, None) => spec.volumes.push(VolumeAttachment {
                volume: key.1.clone(),
                read_only: request.read_only,
                root: false,
            }),
        }
        let put = VmPut { generation: Some(generation + 1), spec };
        Ok(self.put_vm(&vm_key, put, false, requestor).await?.0)
    }
}
