//! What the store holds of VMs and the host. Fields that are added have defaults: a store that an older agent wrote is read.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::model::{EgressClass, Ended, HostState, Name, SubnetSpec, TenantSpec, VmSpec};

/// A process, so that another with its number is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Which boot of the host.
    pub boot: String,
    /// Its number.
    pub pid: i32,
    /// Clock ticks from boot to its start (proc(5)).
    pub start: u64,
}

/// The host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostRecord {
    /// Whether new VMs are taken.
    pub state: HostState,
    /// The boot during which it was told to shut down.
    pub shutdown_boot: Option<String>,
}

/// A tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRecord {
    /// Its id, which no other tenant ever has; empty if an agent of before there were any has made it.
    #[serde(default)]
    pub id: String,
    /// Number of the last event before it was made: those up to there are of others who had its name.
    #[serde(default)]
    pub after_event: u64,
    /// Its limits and users.
    pub spec: TenantSpec,
    /// When it was made.
    pub created_at: String,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetRecord {
    /// Its prefixes.
    pub spec: SubnetSpec,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its id, which is its file's name.
    pub id: String,
    /// Its size; while it grows, what it grows to.
    pub size_bytes: u64,
    /// What is being done to it.
    pub state: VolumeState,
    /// Whether its room on the disk was taken when it was made, and is kept: guests can't give it back.
    #[serde(default)]
    pub preallocated: bool,
    /// When it was made.
    pub created_at: String,
}

/// What is being done to a volume: an intent, until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Its file is being made. An agent that starts finds it half made, and removes it.
    Creating,
    /// It can be used.
    Ready,
    /// It grows to `size_bytes`. An agent that starts goes on.
    Resizing,
    /// It is being removed. An agent that starts goes on.
    Deleting,
}

/// An interface of a VM's, with everything that was chosen for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceRecord {
    /// Its name within the VM.
    pub name: Name,
    /// The tenant's subnet.
    pub subnet: Name,
    /// The TAP device, whose name no other has.
    pub tap: String,
    /// MAC address.
    pub mac: String,
    /// IPv4 address.
    #[serde(default)]
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// Where its packets may go.
    pub class: EgressClass,
}

/// A VM as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Whose it is.
    pub tenant: Name,
    /// Its name.
    pub name: Name,
    /// Its id.
    pub id: String,
    /// Generation of the spec.
    pub generation: u64,
    /// What is wanted.
    pub spec: VmSpec,
    /// Digest of the image that the spec named when it was taken: a name may mean another one later.
    pub image: String,
    /// Its number among all VMs, lower than any free one when it was made: its user is derived from it.
    pub slot: u32,
    /// Its interfaces.
    #[serde(default)]
    pub interfaces: Vec<InterfaceRecord>,
    /// Whether it is being removed.
    #[serde(default)]
    pub deleting: bool,
    /// When it was made.
    pub created_at: String,
}

/// Where an incarnation is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// There is none.
    #[default]
    Stopped,
    /// It is being made: an intent.
    Starting,
    /// It was seen running.
    Running,
}

/// A VM as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// Number of the present incarnation, or the last.
    pub incarnation: u64,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its process, once that is known.
    pub process: Option<ProcessId>,
    /// Since when it is in this phase.
    pub since: String,
    /// When this incarnation began.
    pub started_at: Option<String>,
    /// The same on the clock that never goes back, in milliseconds since boot.
    pub started_ms: Option<u64>,
    /// Generation of the spec it was started with.
    pub observed_generation: u64,
    /// How the last incarnation ended.
    pub last_end: Option<Ended>,
    /// The generation that is over: the guest ended, or the start failed, and its policy is to leave it at that.
    pub over: Option<u64>,
    /// Why it could not be started.
    pub failure: Option<String>,
    /// Starts by policy since it was last wanted otherwise.
    pub restarts: u64,
    /// When it was first started, for its time to live.
    pub first_start: Option<FirstStart>,
    /// The interfaces that this incarnation was given.
    pub interfaces: Vec<InterfaceRecord>,
    /// What else it was given; missing if an agent of before that was noted has started it.
    pub given: Option<Given>,
    /// Volumes that could not be attached to it or detached from it, until its spec is put again.
    pub refusals: Vec<Refusal>,
    /// Whether its vCPUs are to be taken as standing still.
    pub paused: bool,
    /// Whether this incarnation is to end and another to follow.
    pub reset: bool,
    /// Whether it is to end without being asked.
    pub kill: bool,
}

/// What an incarnation was given. It has that until it ends, whatever is wanted of its VM meanwhile; volumes come and go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Given {
    /// The image, by id.
    pub image: String,
    /// vCPUs.
    pub vcpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Volumes, by id.
    pub volumes: Vec<GivenVolume>,
}

/// A volume that an incarnation has, or may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenVolume {
    /// Its id.
    pub id: String,
    /// Its name; missing if an agent of before that was noted has given it.
    #[serde(default)]
    pub name: Option<Name>,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether it is the root file system.
    #[serde(default)]
    pub root: bool,
    /// On its way into the guest that runs, or out of it: an intent.
    #[serde(default)]
    pub moving: Option<Moving>,
}

/// Where a volume is on its way to. An agent that starts asks the VMM what it has, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moving {
    /// It is being attached.
    In,
    /// It is being detached.
    Out,
}

/// A volume that could not be attached or detached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Its id.
    pub volume: String,
    /// Its name, as in [`GivenVolume`].
    pub name: Option<Name>,
    /// What was tried, and what came of it.
    pub why: String,
}

/// When a VM was first started since it was last wanted so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstStart {
    /// During which boot of the host.
    pub boot: String,
    /// Milliseconds since that boot.
    pub since_boot_ms: u64,
    /// Milliseconds since 1970, for another boot.
    pub wall_ms: u64,
}

impl FirstStart {
    /// Milliseconds since then. Within a boot the clock on the wall does not matter.
    #[must_use]
    pub fn elapsed_ms(&self, boot: &str, since_boot_ms: u64, wall_ms: u64) -> u64 {
        if self.boot == boot {
            since_boot_ms.saturating_sub(self.since_boot_ms)
        } else {
            // At least as long as the host runs.
            wall_ms.saturating_sub(self.wall_ms).max(since_boot_ms)
        }
    }
}

impl VmRecord {
    /// Name of an incarnation, of its jail, and in its usage records.
    #[must_use]
    pub fn incarnation(&self, number: u64) -> String {
        format!("{}-{number}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_makes_no_time_to_live_longer() {
        let first = FirstStart { boot: "a".to_owned(), since_boot_ms: 1_000, wall_ms: 1_000_000 };
        assert_eq!(first.elapsed_ms("a", 61_000, 5), 60_000);
        assert_eq!(first.elapsed_ms("b", 10_000, 1_090_000), 90_000);
        assert_eq!(first.elapsed_ms("b", 10_000, 5), 10_000);
    }
}
