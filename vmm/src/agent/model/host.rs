//! The server itself, and what happened on it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Name, Role};

/// Whether new VMs are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// They are.
    #[default]
    Active,
    /// They are refused, and VMs stop by their policy.
    Draining,
    /// They are refused, and no VM runs that a drain stops.
    Drained,
    /// The host is about to be switched off; what ran is started again when it returns.
    ShuttingDown,
}

/// An amount of one kind of resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    /// What the host has.
    pub total: u64,
    /// What is set aside for the host.
    pub reserved: u64,
    /// What VMs can be given, overcommit included.
    pub allocatable: u64,
    /// What VMs were given.
    pub allocated: u64,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HugePages {
    /// Size of a page, in KiB.
    pub size_kib: u64,
    /// How many there are.
    pub total: u64,
    /// How many are free.
    pub free: u64,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NumaNode {
    /// Its number.
    pub id: u32,
    /// Its CPUs, as Linux lists them: `0-3,8`.
    pub cpus: String,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// What of that is free, in MiB.
    pub memory_free_mib: u64,
    /// Its huge pages.
    pub hugepages: Vec<HugePages>,
}

/// The server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// Its host name.
    pub name: String,
    /// The agent's version.
    pub version: String,
    /// Whether new VMs are taken.
    pub state: HostState,
    /// vCPUs.
    pub vcpus: Capacity,
    /// Memory, in MiB.
    pub memory_mib: Capacity,
    /// Room for volumes, in MiB.
    pub disk_mib: Capacity,
    /// NUMA nodes.
    pub numa: Vec<NumaNode>,
    /// VMs, whether they run or not.
    pub vms: u64,
    /// VMs that run.
    pub vms_running: u64,
    /// When the agent started.
    pub agent_started_at: String,
    /// This boot of the host.
    pub boot_id: String,
}

/// Something that happened. `GET /v1/events?since=SEQ&follow=true` is a stream of them, one a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number, and the cursor: the first is 1, none is left out.
    pub seq: u64,
    /// When.
    pub at: String,
    /// What: `vm.created`, `vm.started`, `vm.ended`, `volume.created`, `host.draining` ...
    pub kind: String,
    /// Whose thing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tenant: Option<Name>,
    /// Which: the name of a VM, volume, subnet or image.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<String>,
    /// Who asked for it: `uid:0`, or `agent`.
    pub requestor: String,
    /// More, in words.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub detail: String,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Someone should look.
    Warning,
    /// Something does not work.
    Error,
}

/// One thing that `yun doctor` looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

/// Answer of `GET /v1/doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorReport {
    /// What was found.
    pub findings: Vec<Finding>,
}

/// Something that belongs to nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leftover {
    /// `process`, `tap`, `nft`, `cgroup`, `jail`, `file` or `volume` (which is somebody's data, and stays).
    pub kind: String,
    /// Which.
    pub name: String,
    /// Why it is one.
    pub reason: String,
    /// Whether it was removed.
    pub removed: bool,
}

/// Body of `POST /v1/gc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Whether leftovers are only listed.
    pub dry_run: bool,
}

/// Answer of `POST /v1/gc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GcReport {
    /// What was found.
    pub leftovers: Vec<Leftover>,
}

/// Answer of `GET /v1/whoami`: the caller, by the kernel's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    /// User.
    pub uid: u32,
    /// Groups.
    pub gids: Vec<u32>,
    /// Whether it may do everything.
    pub admin: bool,
    /// What it may do with which tenant.
    pub tenants: std::collections::BTreeMap<Name, Role>,
}
