//! What a machine is to be made of: everything checked, everything opened.

use std::fs::File;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use devices::limiter::{Group, LimiterSpec};
use devices::virtio::block::BlockOptions;

use crate::arch::x86_64::cpuid::Topology;
use crate::boot::cmdline::Root;
use crate::host::disk::Disk;
use crate::host::tap::Tap;
use crate::host::vsock::UnixHost;
use crate::mem::ram::Backing;
use crate::sandbox::seccomp::Seccomp;

/// A machine to be built.
pub struct Plan {
    /// vCPUs and how they share cores.
    pub topology: Topology,
    /// RAM in bytes.
    pub memory: u64,
    /// What RAM is made of.
    pub backing: Backing,
    /// RAM is not to be swapped out.
    pub lock_memory: bool,
    /// Whether the threads confine themselves.
    pub seccomp: Seccomp,
    /// The kernel image.
    pub kernel: File,
    /// The initrd.
    pub initrd: Option<File>,
    /// The caller's part of the command line.
    pub boot_args: String,
    /// The root device, if one is named.
    pub root: Option<Root>,
    /// Block devices, in the guest's order.
    pub drives: Vec<DrivePlan>,
    /// Network interfaces, in the guest's order.
    pub nets: Vec<NetPlan>,
    /// Rate limits of the entropy device, if there is one.
    pub entropy: Option<LimiterSpec>,
    /// The socket device, if there is one.
    pub vsock: Option<VsockPlan>,
    /// virtio-pci with MSI-X rather than virtio-mmio.
    pub pci: bool,
    /// Firecracker's boot timer.
    pub boot_timer: bool,
    /// The CPU that each vCPU stays on, if they are to.
    pub vcpu_cpus: Vec<u16>,
    /// The CPUs that devices' threads stay on, if they are to.
    pub io_cpus: Arc<[u16]>,
}

/// A block device.
pub struct DrivePlan {
    /// Its name in the API.
    pub id: String,
    /// Its image.
    pub disk: Disk,
    /// How it presents itself. Its queues are those below.
    pub options: BlockOptions,
    /// Its queues; `None` for as many as vCPUs.
    pub queues: Option<NonZeroU16>,
    /// For how long its threads look for more before they sleep.
    pub poll: Duration,
}

/// A network interface.
pub struct NetPlan {
    /// Its name in the API.
    pub id: String,
    /// The host's side.
    pub tap: Tap,
    /// The guest's hardware address; the guest makes one up without it.
    pub mac: Option<[u8; 6]>,
    /// What the guest is told of the link's MTU.
    pub mtu: Option<u16>,
    /// The host's kernel moves its frames.
    pub vhost: bool,
    /// Limits of what the guest receives.
    pub rx_limits: LimiterSpec,
    /// Limits of what the guest sends.
    pub tx_limits: LimiterSpec,
    /// Limits that it has together with other devices.
    pub group: Option<Group>,
    /// For how long its thread looks for more before it sleeps.
    pub poll: Duration,
}

/// A socket device.
pub struct VsockPlan {
    /// The guest's address.
    pub guest_cid: u32,
    /// The host's side.
    pub host: UnixHost,
    /// Limits of both directions together.
    pub limits: LimiterSpec,
    /// For how long its thread looks for work before it sleeps.
    pub poll: Duration,
}
