//! Everything the agent knows, in memory, and the questions that need nothing else. No I/O.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::model::{
    ActualState, Denial, DenialCode, DrainPolicy, EgressClass, HostState, InterfaceStatus, Name, Power,
    QuotaUse, Subnet, Tenant, Vm, VmSpec, VmStatus, Volume, VolumeAttachment,
};
use super::records::{
    Given, GivenVolume, HostRecord, InterfaceRecord, Phase, Runtime, SubnetRecord, TenantRecord, VmRecord,
    VolumeRecord, VolumeState,
};
use super::vms::decide::{Plug, plug};
use super::vms::differ::{NEXT_START, volumes};
use super::vms::live::Live;

/// A tenant's thing, by name.
pub type Key = (Name, Name);

/// A VM: wanted, actual, and what only this process knows of it.
#[derive(Debug)]
pub struct VmEntry {
    /// As it is wanted.
    pub record: VmRecord,
    /// As it is.
    pub runtime: Runtime,
    /// Its task and console.
    pub live: Arc<Live>,
}

/// Everything.
#[derive(Debug, Default)]
pub struct State {
    /// The host.
    pub host: HostRecord,
    /// Tenants.
    pub tenants: BTreeMap<Name, TenantRecord>,
    /// Subnets.
    pub subnets: BTreeMap<Key, SubnetRecord>,
    /// Volumes.
    pub volumes: BTreeMap<Key, VolumeRecord>,
    /// VMs.
    pub vms: BTreeMap<Key, VmEntry>,
}

/// What a host can give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// vCPUs.
    pub vcpus: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Volumes, in MiB.
    pub disk_mib: u64,
}

/// What an incarnation has, and its VM with it, however little is wanted meanwhile; nothing if there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// vCPUs.
    pub vcpus: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Interfaces.
    pub interfaces: u64,
}

impl Taken {
    /// What is counted for a VM that has this, and is wanted so.
    fn and(self, spec: &VmSpec) -> Self {
        Self {
            vcpus: self.vcpus.max(u64::from(spec.vcpus)),
            memory_mib: self.memory_mib.max(spec.memory_mib),
            interfaces: self.interfaces.max(spec.interfaces.len() as u64),
        }
    }
}

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// The range of one tenant's things.
pub fn of_tenant<'a, T>(
    map: &'a BTreeMap<Key, T>,
    tenant: &'a Name,
) -> impl Iterator<Item = (&'a Name, &'a T)> {
    map.iter().filter(move |((owner, _), _)| owner == tenant).map(|((_, name), value)| (name, value))
}

impl State {
    /// A tenant.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`].
    pub fn tenant(&self, name: &Name) -> Result<&TenantRecord, Denial> {
        self.tenants.get(name).ok_or_else(|| Denial::not_found("tenant", name))
    }

    /// A VM.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`].
    pub fn vm(&self, key: &Key) -> Result<&VmEntry, Denial> {
        self.vms.get(key).ok_or_else(|| Denial::not_found("VM", format!("{}/{}", key.0, key.1)))
    }

    /// A volume.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`].
    pub fn volume(&self, key: &Key) -> Result<&VolumeRecord, Denial> {
        self.volumes.get(key).ok_or_else(|| Denial::not_found("volume", format!("{}/{}", key.0, key.1)))
    }

    /// What a tenant uses.
    #[must_use]
    pub fn used_by(&self, tenant: &Name) -> QuotaUse {
        let mut used = QuotaUse::default();
        for (_, vm) in of_tenant(&self.vms, tenant) {
            let counted = vm.taken().and(&vm.record.spec);
            used.vms += 1;
            used.vcpus += counted.vcpus;
            used.memory_mib += counted.memory_mib;
            used.interfaces += counted.interfaces;
        }
        for (_, volume) in of_tenant(&self.volumes, tenant) {
            used.disk_mib += volume.size_bytes.div_ceil(MIB);
        }
        used
    }

    /// What all VMs that are wanted running, or run, were given.
    #[must_use]
    pub fn allocated(&self) -> Limits {
        let mut sum = Limits::default();
        for vm in self.vms.values() {
            let given = vm.runtime.phase != Phase::Stopped || vm.record.spec.power != Power::Stopped;
            if given {
                let counted = vm.taken().and(&vm.record.spec);
                sum.vcpus += counted.vcpus;
                sum.memory_mib += counted.memory_mib;
            }
        }
        sum.disk_mib = self.volumes.values().map(|volume| volume.size_bytes.div_ceil(MIB)).sum();
        sum
    }

    /// Whether a VM that has `taken` may be what `new` says, in the place of `old`: quota of its tenant, capacity of the host.
    ///
    /// # Errors
    /// [`DenialCode::QuotaExceeded`], [`DenialCode::CapacityExceeded`]; both say what was asked, what is left, and whose limit
    /// it is. [`DenialCode::Unavailable`] if the host drains.
    pub fn admit_vm(
        &self,
        tenant: &Name,
        old: Option<&VmSpec>,
        taken: Taken,
        new: &VmSpec,
        host: Limits,
    ) -> Result<(), Denial> {
        let quota = self.tenant(tenant)?.spec.quota;
        let used = self.used_by(tenant);
        let before = old.map_or_else(Taken::default, |old| taken.and(old));
        let after = taken.and(new);
        let vcpus = after.vcpus.saturating_sub(before.vcpus);
        let memory_mib = after.memory_mib.saturating_sub(before.memory_mib);
        let interfaces = after.interfaces.saturating_sub(before.interfaces);
        let whose = format!("tenant {tenant}");
        within("VMs", u64::from(old.is_none()), used.vms, quota.vms, &whose)?;
        within("vCPUs", vcpus, used.vcpus, quota.vcpus, &whose)?;
        within("MiB of memory", memory_mib, used.memory_mib, quota.memory_mib, &whose)?;
        within("interfaces", interfaces, used.interfaces, quota.interfaces, &whose)?;
        if new.power == Power::Stopped {
            return Ok(());
        }
        let begins = old.is_none_or(|old| old.power == Power::Stopped);
        if begins && self.host.state != HostState::Active {
            let text = format!("the host is {}: it starts no VM", in_words(self.host.state));
            return Err(Denial::new(DenialCode::Unavailable, text).hint(
                "place it elsewhere, or ask for power `stopped`; `yun host undrain` takes the host back",
            ));
        }
        // What does not run and is not wanted running was given nothing of the host.
        let before = if begins && taken == Taken::default() { Taken::default() } else { before };
        let vcpus = after.vcpus.saturating_sub(before.vcpus);
        let memory_mib = after.memory_mib.saturating_sub(before.memory_mib);
        let allocated = self.allocated();
        capacity("vCPUs", vcpus, allocated.vcpus, host.vcpus)?;
        capacity("MiB of memory", memory_mib, allocated.memory_mib, host.memory_mib)
    }

    /// Whether a tenant may have `more_mib` more of volumes.
    ///
    /// # Errors
    /// As [`State::admit_vm`].
    pub fn admit_disk(&self, tenant: &Name, more_mib: u64, host: Limits) -> Result<(), Denial> {
        let quota = self.tenant(tenant)?.spec.quota;
        let used = self.used_by(tenant);
        within("MiB of volumes", more_mib, used.disk_mib, quota.disk_mib, &format!("tenant {tenant}"))?;
        capacity("MiB of volumes", more_mib, self.allocated().disk_mib, host.disk_mib)
    }

    /// Whether a drain or shutdown of the host is to stop a VM.
    #[must_use]
    pub fn holds(&self, policy: DrainPolicy) -> bool {
        match self.host.state {
            HostState::Active => false,
            HostState::Draining | HostState::Drained => policy != DrainPolicy::Keep,
            HostState::ShuttingDown => true,
        }
    }

    /// The lowest number that no VM has.
    #[must_use]
    pub fn free_slot(&self) -> u32 {
        let mut taken: Vec<u32> = self.vms.values().map(|vm| vm.record.slot).collect();
        taken.sort_unstable();
        let mut free = 0;
        for slot in taken {
            if slot > free {
                break;
            }
            free = slot + 1;
        }
        free
    }

    /// Addresses that interfaces have in a subnet, except those of the VM `but`.
    pub fn addresses<'a>(
        &'a self,
        tenant: &'a Name,
        subnet: &'a Name,
        but: Option<&'a Name>,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        of_tenant(&self.vms, tenant)
            .filter(move |(name, _)| Some(*name) != but)
            .flat_map(|(_, vm)| vm.interfaces())
            .filter(move |interface| interface.subnet == *subnet)
            .flat_map(|interface| {
                [interface.ipv4.map(IpAddr::from), interface.ipv6.map(IpAddr::from)].into_iter().flatten()
            })
    }

    /// A VM of a tenant's with an interface whose class is wider than this.
    #[must_use]
    pub fn wider_than(&self, tenant: &Name, class: EgressClass) -> Option<Name> {
        let wider = |vm: &VmEntry| vm.interfaces().any(|interface| interface.class > class);
        of_tenant(&self.vms, tenant).find(|(_, vm)| wider(vm)).map(|(name, _)| name.clone())
    }

    /// What is next to be done with the volumes of a VM that runs.
    #[must_use]
    pub fn plug(&self, vm: &VmEntry) -> Option<(Plug, GivenVolume)> {
        let given = vm.given().filter(|_| vm.runtime.phase == Phase::Running)?;
        let wanted = self.to_give(&vm.record);
        let next = plug(&given.volumes, &wanted.volumes, &vm.runtime.refusals, vm.runtime.paused);
        next.map(|(plug, volume)| (plug, volume.clone()))
    }

    /// VMs whose incarnation has a volume open or may have, wanted or not, and how.
    pub fn having<'a>(
        &'a self,
        tenant: &'a Name,
        volume: &'a Name,
        id: &'a str,
    ) -> impl Iterator<Item = (&'a VmEntry, GivenVolume)> {
        of_tenant(&self.vms, tenant).filter_map(move |(_, vm)| Some((vm, vm.has(volume, id)?)))
    }

    /// What a new incarnation of a VM is given.
    #[must_use]
    pub fn to_give(&self, record: &VmRecord) -> Given {
        let volume = |wanted: &VolumeAttachment| {
            let known = self.volumes.get(&(record.tenant.clone(), wanted.volume.clone()))?;
            Some(given_volume(&known.id, wanted))
        };
        Given {
            image: record.image.clone(),
            vcpus: record.spec.vcpus,
            memory_mib: record.spec.memory_mib,
            volumes: record.spec.volumes.iter().filter_map(volume).collect(),
        }
    }

    /// VMs that have a volume among their disks.
    #[must_use]
    pub fn attached(&self, key: &Key) -> Vec<Name> {
        let has = |vm: &VmEntry| vm.record.spec.volumes.iter().any(|volume| volume.volume == key.1);
        of_tenant(&self.vms, &key.0).filter(|(_, vm)| has(vm)).map(|(name, _)| name.clone()).collect()
    }

    /// What is shown of a tenant.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`].
    pub fn tenant_view(&self, name: &Name) -> Result<Tenant, Denial> {
        let record = self.tenant(name)?;
        Ok(Tenant {
            name: name.clone(),
            quota: record.spec.quota,
            used: self.used_by(name),
            access: record.spec.access.clone(),
            egress: record.spec.egress,
            created_at: record.created_at.clone(),
        })
    }

    /// What is shown of a subnet.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`].
    pub fn subnet_view(&self, key: &Key) -> Result<Subnet, Denial> {
        let record = self
            .subnets
            .get(key)
            .ok_or_else(|| Denial::not_found("subnet", format!("{}/{}", key.0, key.1)))?;
        let interfaces = of_tenant(&self.vms, &key.0)
            .flat_map(|(_, vm)| vm.interfaces())
            .filter(|interface| interface.subnet == key.1)
            .count() as u64;
        Ok(Subnet { name: key.1.clone(), tenant: key.0.clone(), spec: record.spec.clone(), interfaces })
    }

    /// What is shown of a volume.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`].
    pub fn volume_view(&self, key: &Key, allocated_bytes: u64) -> Result<Volume, Denial> {
        let record = self.volume(key)?;
        let state = match record.state {
            VolumeState::Creating => "creating",
            VolumeState::Ready => "ready",
            VolumeState::Resizing => "resizing",
            VolumeState::Deleting => "deleting",
        };
        Ok(Volume {
            name: key.1.clone(),
            tenant: key.0.clone(),
            id: record.id.clone(),
            size_mib: record.size_bytes / MIB,
            allocated_bytes,
            preallocated: record.preallocated,
            attached_to: self.attached(key),
            state: state.to_owned(),
            created_at: record.created_at.clone(),
        })
    }
}

/// A host's state in a sentence.
#[must_use]
pub fn in_words(state: HostState) -> &'static str {
    match state {
        HostState::Active => "active",
        HostState::Draining => "draining",
        HostState::Drained => "drained",
        HostState::ShuttingDown => "shutting down",
    }
}

fn within(what: &str, more: u64, used: u64, limit: Option<u64>, whose: &str) -> Result<(), Denial> {
    match limit {
        // What is less than before is never refused, also if a limit was lowered meanwhile.
        Some(limit) if more > 0 && used.saturating_add(more) > limit => {
            let left = limit.saturating_sub(used);
            let text = format!(
                "{more} more {what} asked for, {left} left: the quota of {whose} is {limit}, {used} are used"
            );
            Err(Denial::new(DenialCode::QuotaExceeded, text)
                .hint("ask for less, remove something, or have the quota raised"))
        }
        _ => Ok(()),
    }
}

fn capacity(what: &str, more: u64, used: u64, limit: u64) -> Result<(), Denial> {
    if more == 0 || used.saturating_add(more) <= limit {
        return Ok(());
    }
    let left = limit.saturating_sub(used);
    let text =
        format!("{more} more {what} asked for, {left} left: the host can give {limit}, {used} are given out");
    Err(Denial::new(DenialCode::CapacityExceeded, text).hint("place it elsewhere, or stop something"))
}

fn given_volume(id: &str, wanted: &VolumeAttachment) -> GivenVolume {
    GivenVolume {
        id: id.to_owned(),
        name: Some(wanted.volume.clone()),
        read_only: wanted.read_only,
        root: wanted.root,
        moving: None,
    }
}

impl VmEntry {
    /// What its incarnation was given.
    fn given(&self) -> Option<&Given> {
        self.runtime.given.as_ref().filter(|_| self.runtime.phase != Phase::Stopped)
    }

    /// What its incarnation has.
    #[must_use]
    pub fn taken(&self) -> Taken {
        let given = self.given().map(|given| (u64::from(given.vcpus), given.memory_mib));
        let (vcpus, memory_mib) = given.unwrap_or_default();
        let runs = self.runtime.phase != Phase::Stopped;
        let interfaces = if runs { self.runtime.interfaces.len() as u64 } else { 0 };
        Taken { vcpus, memory_mib, interfaces }
    }

    /// vCPUs and MiB of memory of its incarnation; without one, of its next.
    #[must_use]
    pub fn size(&self) -> (u8, u64) {
        let spec = &self.record.spec;
        self.given().map_or((spec.vcpus, spec.memory_mib), |given| (given.vcpus, given.memory_mib))
    }

    /// Whether it is to have an image, or its incarnation has it until it ends.
    #[must_use]
    pub fn has_image(&self, id: &str) -> bool {
        self.record.image == id || self.given().is_some_and(|given| given.image == id)
    }

    /// Interfaces that it is to have, and those that its incarnation has until it ends.
    pub fn interfaces(&self) -> impl Iterator<Item = &InterfaceRecord> {
        let wanted = &self.record.interfaces;
        let had = self.runtime.interfaces.iter().filter(|_| self.runtime.phase != Phase::Stopped);
        wanted.iter().chain(had.filter(|had| wanted.iter().all(|wanted| wanted.tap != had.tap)))
    }

    /// How its incarnation has a volume.
    fn has(&self, volume: &Name, id: &str) -> Option<GivenVolume> {
        if self.runtime.phase == Phase::Stopped {
            return None;
        }
        match self.given() {
            Some(given) => given.volumes.iter().find(|has| has.id == id).cloned(),
            None => {
                let wanted = self.record.spec.volumes.iter().find(|wanted| wanted.volume == *volume);
                wanted.map(|wanted| given_volume(id, wanted))
            }
        }
    }

    /// What is shown of it.
    #[must_use]
    pub fn view(&self) -> Vm {
        let (record, runtime) = (&self.record, &self.runtime);
        let activity = self.live.activity();
        let state = actual(record, runtime, &activity);
        let interfaces = record.interfaces.iter().map(|interface| InterfaceStatus {
            name: interface.name.clone(),
            tap: interface.tap.clone(),
            mac: interface.mac.clone(),
            ipv4: interface.ipv4,
            ipv6: interface.ipv6,
            class: interface.class,
        });
        Vm {
            tenant: record.tenant.clone(),
            name: record.name.clone(),
            id: record.id.clone(),
            generation: record.generation,
            spec: record.spec.clone(),
            status: VmStatus {
                state,
                reason: reason(record, runtime, state, &activity),
                since: runtime.since.clone(),
                observed_generation: match runtime.phase {
                    Phase::Stopped => record.generation,
                    _ => runtime.observed_generation,
                },
                incarnation: runtime.incarnation,
                pid: runtime.process.as_ref().map(|process| process.pid),
                started_at: runtime.started_at.clone(),
                expires_at: self.live.expires_at(),
                last_end: runtime.last_end.clone(),
                restarts: runtime.restarts,
                interfaces: interfaces.collect(),
            },
            operation: self.live.operation(),
            created_at: record.created_at.clone(),
        }
    }
}

/// What a VM's task is doing, for those who look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// Nothing.
    #[default]
    None,
    /// It makes an incarnation.
    Starting,
    /// It has asked the guest to switch itself off.
    Stopping,
    /// It attaches or detaches a volume, in these words.
    Plugging(String),
    /// It waits before it starts it again.
    BackingOff,
    /// The process lives, and its API does not answer, in these words.
    Silent(String),
    /// The host holds it, for this reason.
    Held(&'static str),
    /// Its time to live is over.
    Expired,
}

fn actual(record: &VmRecord, runtime: &Runtime, activity: &Activity) -> ActualState {
    match (runtime.phase, activity) {
        _ if record.deleting => ActualState::Deleting,
        (Phase::Running, Activity::Stopping) => ActualState::Stopping,
        (Phase::Running, Activity::Silent(_)) => ActualState::Unknown,
        (Phase::Running, _) if runtime.paused => ActualState::Paused,
        (Phase::Running, _) => ActualState::Running,
        (Phase::Starting, _) => ActualState::Starting,
        (Phase::Stopped, Activity::Starting) => ActualState::Starting,
        (Phase::Stopped, _) if runtime.over.is_some() && runtime.failure.is_some() => ActualState::Failed,
        (Phase::Stopped, _) => ActualState::Stopped,
    }
}

/// Why wanted and actual state differ; empty if they don't.
fn reason(record: &VmRecord, runtime: &Runtime, state: ActualState, activity: &Activity) -> String {
    let wanted = match record.spec.power {
        Power::Running => ActualState::Running,
        Power::Paused => ActualState::Paused,
        Power::Stopped => ActualState::Stopped,
    };
    let ended = || runtime.last_end.as_ref().map_or(String::new(), |end| end.reason.clone());
    match activity {
        _ if state == ActualState::Deleting => "it is being removed".to_owned(),
        Activity::Silent(why) => {
            format!("its process lives and does not answer ({why}); nothing is done to it")
        }
        _ if runtime.reset => "it is being reset".to_owned(),
        Activity::Plugging(what) if state == wanted => what.clone(),
        _ if state == wanted
            && runtime.observed_generation != record.generation
            && state != ActualState::Stopped =>
        {
            NEXT_START.to_owned()
        }
        _ if state == wanted => volumes(record, runtime),
        Activity::Starting => "it is being started".to_owned(),
        Activity::Stopping => "its guest was asked to switch itself off".to_owned(),
        Activity::BackingOff => format!("it is started again soon; before, {}", ended()),
        Activity::Held(why) => (*why).to_owned(),
        Activity::Expired => "its time to live is over".to_owned(),
        Activity::None | Activity::Plugging(_) => match (&runtime.failure, runtime.over) {
            (Some(failure), Some(_)) => format!("it could not be started: {failure}"),
            (_, Some(_)) => format!("it ended, and its restart policy leaves it at that: {}", ended()),
            _ => "its turn will come".to_owned(),
        },
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
