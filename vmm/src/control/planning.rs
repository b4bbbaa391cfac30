//! From what was configured to what is to be built: every file open, every number in the devices' units.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use devices::limiter::{BucketSpec, Group, LimiterSpec};
use devices::virtio::block::{BlockOptions, Cache};

use super::Denial;
use super::config::{DriveEntry, NetEntry, VsockEntry};
use super::driver::Driver;
use super::files::Host;
use crate::arch::x86_64::cpuid::Topology;
use crate::boot::cmdline::Root;
use crate::host::cpus;
use crate::host::vsock::UnixHost;
use crate::machine::plan::{DrivePlan, NetPlan, Plan, VsockPlan};
use crate::mem::ram::Backing;
use crate::spec::{CacheType, HugePages, IoEngine, RateLimiter, TokenBucket};

impl Driver {
    /// What a machine is to be made of, by what was configured.
    pub(super) fn plan(&self) -> Result<Plan, Denial> {
        let boot = self.resources.boot()?;
        let clone = |file: &std::fs::File| {
            file.try_clone().map_err(|e| Denial::Start(format!("a descriptor can't be duplicated: {e}")))
        };
        let config = self.resources.machine();
        let mib = config.mem_size_mib;
        let memory = (mib as u64).checked_mul(1 << 20);
        let vcpu_cpus = config.vcpu_affinity.clone().unwrap_or_default();
        let io_cpus = config.io_affinity.clone().unwrap_or_default();
        check_cpus("vcpu_affinity", &vcpu_cpus)?;
        check_cpus("io_affinity", &io_cpus)?;
        Ok(Plan {
            topology: Topology { vcpus: config.vcpu_count, threads_per_core: if config.smt { 2 } else { 1 } },
            memory: memory.ok_or_else(|| {
                Denial::Start(format!("Cannot create guest memory: {mib} MiB are more than can be addressed"))
            })?,
            backing: match config.huge_pages {
                HugePages::Hugetlbfs2M => Backing::Huge2M,
                HugePages::None if !self.options.transparent_huge_pages => Backing::Small,
                HugePages::None | HugePages::Transparent => Backing::Transparent,
            },
            lock_memory: self.options.lock_memory,
            seccomp: self.options.seccomp,
            kernel: clone(&boot.kernel)?,
            initrd: boot.initrd.as_ref().map(clone).transpose()?,
            boot_args: boot.spec.boot_args_or_default().to_owned(),
            root: self.resources.drives().first().and_then(root_of),
            drives: self.resources.drives().iter().map(|drive| self.drive_plan(drive)).collect(),
            nets: self.resources.nets().iter().map(|net| self.net_plan(net)).collect(),
            entropy: self.resources.entropy().map(|entropy| limits(entropy.rate_limiter)),
            vsock: self.resources.vsock().map(|vsock| self.vsock_plan(vsock)).transpose()?,
            pci: self.options.pci,
            boot_timer: self.options.boot_timer,
            vcpu_cpus,
            io_cpus: io_cpus.into(),
        })
    }

    fn vsock_plan(&self, vsock: &VsockEntry<Host>) -> Result<VsockPlan, Denial> {
        let host = UnixHost::new(Arc::clone(&vsock.sockets), self.options.descriptors_max).map_err(|e| {
            Denial::Start(format!("the socket device's host side can't wait for events: {e}"))
        })?;
        let limits = limits(vsock.spec.rate_limiter);
        let poll = Duration::from_micros(vsock.spec.poll_us.unwrap_or(0).into());
        Ok(VsockPlan { guest_cid: vsock.spec.guest_cid, host, limits, poll })
    }

    fn drive_plan(&self, drive: &DriveEntry<Host>) -> DrivePlan {
        drive_plan(drive, self.resources.group(drive.spec.group.as_ref()))
    }

    fn net_plan(&self, net: &NetEntry<Host>) -> NetPlan {
        net_plan(net, self.resources.group(net.spec.rate_limiter_group.as_ref()))
    }
}

fn root_of(drive: &DriveEntry<Host>) -> Option<Root> {
    let spec = &drive.spec;
    spec.root.then(|| Root {
        device: spec
            .partuuid
            .as_ref()
            .map_or_else(|| "/dev/vda".to_owned(), |uuid| format!("PARTUUID={uuid}")),
        read_only: spec.read_only,
    })
}

pub(super) fn drive_plan(drive: &DriveEntry<Host>, group: Option<&Group>) -> DrivePlan {
    let spec = &drive.spec;
    DrivePlan {
        id: spec.id.clone(),
        disk: drive.file.clone().asynchronous(spec.engine == IoEngine::Async),
        options: BlockOptions {
            name: spec.id.clone(),
            read_only: spec.read_only,
            discard: spec.discard,
            cache: match spec.cache {
                CacheType::Unsafe => Cache::Unsafe,
                CacheType::Writeback => Cache::Writeback,
            },
            serial: spec.serial.clone().unwrap_or_else(|| spec.id.clone()),
            limits: limits(spec.limiter),
            group: group.cloned(),
            queues: NonZeroU16::MIN,
        },
        queues: spec.queues,
        poll: Duration::from_micros(spec.poll_us.into()),
    }
}

pub(super) fn net_plan(net: &NetEntry<Host>, group: Option<&Group>) -> NetPlan {
    let spec = &net.spec;
    NetPlan {
        id: spec.iface_id.clone(),
        tap: net.tap.clone(),
        mac: spec.guest_mac.map(|mac| mac.0),
        mtu: spec.mtu,
        vhost: spec.vhost,
        rx_limits: limits(spec.rx_rate_limiter),
        tx_limits: limits(spec.tx_rate_limiter),
        group: group.cloned(),
        poll: Duration::from_micros(spec.poll_us.unwrap_or(0).into()),
    }
}

/// Whether threads can stay on `cpus`, which `field` names.
fn check_cpus(field: &str, cpus: &[u16]) -> Result<(), Denial> {
    if cpus.is_empty() {
        return Ok(());
    }
    let allowed = cpus::allowed().map_err(|e| Denial::Start(format!("{field} can't be checked: {e}")))?;
    match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => Err(Denial::Start(format!(
            "{field}: CPU {cpu} is not online, or not one that this process may use; accepted are {allowed:?}"
        ))),
        None => Ok(()),
    }
}

pub(super) fn bucket_spec(bucket: TokenBucket) -> BucketSpec {
    BucketSpec {
        size: bucket.size,
        refill_time_ms: bucket.refill_time,
        one_time_burst: bucket.one_time_burst.unwrap_or(0),
    }
}

/// What a limiter that may be missing is in the device's terms.
pub(super) fn limits(limiter: Option<RateLimiter>) -> LimiterSpec {
    limiter.map_or_else(LimiterSpec::default, limiter_spec)
}

fn limiter_spec(limiter: RateLimiter) -> LimiterSpec {
    LimiterSpec { bytes: limiter.bandwidth.map(bucket_spec), ops: limiter.ops.map(bucket_spec) }
}
