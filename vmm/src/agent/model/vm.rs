//! VMs: what is wanted, what is, and why they differ.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Name;

/// Where packets of an interface may go, besides the tenant's own VMs. Everything that is not allowed by it is dropped.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EgressClass {
    /// Nowhere.
    #[default]
    Isolated,
    /// To the prefixes of the zone's domestic list.
    Domestic,
    /// Everywhere, except what the zone denies to all.
    International,
}

impl EgressClass {
    /// All of them, the narrowest first.
    pub const ALL: [Self; 3] = [Self::Isolated, Self::Domestic, Self::International];

    /// As it is spelt in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
            Self::Domestic => "domestic",
            Self::International => "international",
        }
    }
}

/// Whether a VM is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// It is to run.
    #[default]
    Running,
    /// It is to exist, with its vCPUs standing still.
    Paused,
    /// It is not to run.
    Stopped,
}

/// What to do when a VM ends that is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Nothing: this generation of it is over. A start, or a newer generation, begins it again.
    #[default]
    Never,
    /// Start it again unless the guest switched itself off.
    OnFailure,
    /// Start it again.
    Always,
}

/// What a drain of the host does to a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrainPolicy {
    /// Its power button, then its stop timeout, then its end.
    #[default]
    Stop,
    /// Its end at once.
    Kill,
    /// It is left alone.
    Keep,
}

/// A network interface that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InterfaceSpec {
    /// Its name within the VM.
    pub name: Name,
    /// The tenant's subnet it is in.
    pub subnet: Name,
    /// Where its packets may go.
    #[serde(default)]
    pub class: EgressClass,
    /// Its IPv4 address; the next free one, if it is missing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address; the next free one, if it is missing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub ipv6: Option<Ipv6Addr>,
}

/// A volume among a VM's disks, in the order of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeAttachment {
    /// Which of the tenant's.
    pub volume: Name,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Whether it is the root file system, in the place of the image's.
    #[serde(default)]
    pub root: bool,
}

fn default_vcpus() -> u8 {
    1
}

fn default_memory_mib() -> u64 {
    128
}

fn default_stop_timeout() -> u32 {
    30
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What is wanted of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// vCPUs, 1 to 32.
    #[serde(default = "default_vcpus")]
    pub vcpus: u8,
    /// Memory, in MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// Its image, by id or name.
    pub image: String,
    /// Added to the image's command line of the kernel.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel_args: String,
    /// Its disks, after the image's root file system. One that a running VM is given comes after those that it has, until its next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeAttachment>,
    /// Its interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<InterfaceSpec>,
    /// cloud-init user data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Keys that may log in, one each, as in `authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Whether it is to run.
    #[serde(default)]
    pub power: Power,
    /// What to do when it ends.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: RestartPolicy,
    /// It is stopped, and wanted stopped, so many seconds after it was first started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Whether it is removed then.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ttl_deletes: bool,
    /// How long a stop waits for the guest, in seconds, before it is killed: 3600 at most.
    #[serde(default = "default_stop_timeout")]
    pub stop_timeout_seconds: u32,
    /// What a drain of the host does to it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub drain: DrainPolicy,
}

/// Body of `PUT /v1/tenants/{tenant}/vms/{vm}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmPut {
    /// Generation of this spec, up to 2^53 - 1. Newer than the present one: it is taken. The present one, with the same spec: nothing
    /// changes. Else: refused. If it is missing, it is the next one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub generation: Option<u64>,
    /// What is wanted.
    pub spec: VmSpec,
}

/// What a VM actually does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActualState {
    /// It does not run.
    Stopped,
    /// Its process is being made.
    Starting,
    /// It runs.
    Running,
    /// Its vCPUs stand still.
    Paused,
    /// It is on its way to `stopped`.
    Stopping,
    /// It can't be started, or ended otherwise than it should; it is not started again by itself.
    Failed,
    /// Its process lives, and does not answer. Nothing is done to it.
    Unknown,
    /// It is being removed.
    Deleting,
}

impl ActualState {
    /// As it is spelt in JSON.
    #[must_use]
    pub fn in_a_word(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Deleting => "deleting",
        }
    }
}

/// How an incarnation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ended {
    /// Exit status of its process; missing if a signal ended it, or nobody could see.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<i32>,
    /// The signal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<i32>,
    /// In words: what the guest did, or what the VMM said last.
    pub reason: String,
    /// When.
    pub at: String,
}

/// A network interface that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStatus {
    /// Its name within the VM.
    pub name: Name,
    /// The TAP device on the host.
    pub tap: String,
    /// MAC address.
    pub mac: String,
    /// IPv4 address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub ipv6: Option<Ipv6Addr>,
    /// Where its packets may go.
    pub class: EgressClass,
}

/// What a VM actually is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmStatus {
    /// What it does.
    pub state: ActualState,
    /// Why that is not what is wanted; empty if it is.
    pub reason: String,
    /// Since when it does that.
    pub since: String,
    /// Generation of the spec it was started with, or has taken up since; of the present one, if it does not run.
    pub observed_generation: u64,
    /// How often it was started; each start is an incarnation.
    pub incarnation: u64,
    /// The VMM's process.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<i32>,
    /// When this incarnation began.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started_at: Option<String>,
    /// When its time to live is over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_at: Option<String>,
    /// How the last incarnation ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_end: Option<Ended>,
    /// How often it was started again by its policy since it was last wanted otherwise.
    pub restarts: u64,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceStatus>,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Whose it is.
    pub tenant: Name,
    /// Its name.
    pub name: Name,
    /// Its id, which no other VM ever has: `vm-` and 16 hexadecimal digits.
    pub id: String,
    /// Generation of the spec.
    pub generation: u64,
    /// What is wanted.
    pub spec: VmSpec,
    /// What is.
    pub status: VmStatus,
    /// The operation under way.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operation: Option<String>,
    /// When it was made.
    pub created_at: String,
}

/// What to do with a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is to run from now on.
    Start,
    /// Power button, then the timeout, then its end. It is not to run from now on.
    Stop,
    /// Its end at once. It is not to run from now on.
    Kill,
    /// Its vCPUs stand still.
    Pause,
    /// They go on.
    Resume,
    /// Its end at once, and a new incarnation.
    Reset,
}

/// Body of `POST /v1/tenants/{tenant}/vms/{vm}/actions`. Answered with an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActionRequest {
    /// What to do.
    pub action: Action,
    /// For `stop`: seconds, in the place of the spec's; 3600 at most.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub timeout_seconds: Option<u32>,
}

/// Body of `PUT /v1/tenants/{tenant}/vms/{vm}/interfaces/{interface}/class`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassChange {
    /// Where its packets may go from now on.
    pub class: EgressClass,
}

/// Counters of the present incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmStats {
    /// Whose it is.
    pub tenant: Name,
    /// Its name.
    pub name: Name,
    /// What it does.
    pub state: ActualState,
    /// vCPUs.
    pub vcpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// CPU time of its vCPUs, in nanoseconds.
    pub vcpu_ns: u64,
    /// Memory its process takes on the host, in KiB.
    pub rss_kib: u64,
    /// Bytes read from its disks.
    pub disk_read_bytes: u64,
    /// Bytes written to its disks.
    pub disk_written_bytes: u64,
    /// Requests to its disks.
    pub disk_operations: u64,
    /// Bytes its guest received.
    pub net_rx_bytes: u64,
    /// Bytes its guest sent.
    pub net_tx_bytes: u64,
    /// Seconds since this incarnation began.
    pub uptime_seconds: u64,
}
