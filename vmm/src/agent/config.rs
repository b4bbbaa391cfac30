//! How an agent is told to work.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ed25519_dalek::VerifyingKey;

use super::images::Digest;

/// Where everything is that must last, unless told otherwise.
pub const STATE_DIR_DEFAULT: &str = "/var/lib/yun";

/// Everything `yund`'s command line decides.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is that must last: store, images, volumes, jails, consoles, audit.
    pub state_dir: PathBuf,
    /// Where VMMs' executables are.
    pub vmm: PathBuf,
    /// The jailer.
    pub jailer: PathBuf,
    /// Users that may do everything, besides root.
    pub admin_uids: Vec<u32>,
    /// Groups that may do everything.
    pub admin_gids: Vec<u32>,
    /// First of the users that VMMs run as; each VM has one of its own.
    pub uid_base: u32,
    /// Memory set aside for the host, in MiB.
    pub reserved_memory_mib: u64,
    /// CPUs set aside for the host.
    pub reserved_cpus: u64,
    /// Room on the disk set aside for the host, in MiB.
    pub reserved_disk_mib: u64,
    /// vCPUs that are given out for each CPU, in percent: 400 is four.
    pub cpu_overcommit_percent: u64,
    /// Memory that is given out, in percent of what there is.
    pub memory_overcommit_percent: u64,
    /// Volume space that is given out, in percent of what there is.
    pub disk_overcommit_percent: u64,
    /// Whether there are networks; without, interfaces are refused.
    pub network: bool,
    /// Interfaces by which guests' packets leave the server; that of the default route, if there is none.
    pub uplinks: Vec<String>,
    /// Whether tenants' IPv4 addresses are hidden behind the host's on the way out.
    pub masquerade: bool,
    /// Whether the kernel's vhost-net moves the frames of guests' interfaces.
    pub vhost_net: bool,
    /// Name servers that guests are told of.
    pub nameservers: Vec<IpAddr>,
    /// Keys of which one signs each list of prefixes; without any none is taken.
    pub list_keys: Vec<VerifyingKey>,
    /// The `nft` program.
    pub nft: PathBuf,
    /// How often usage is recorded.
    pub usage_interval: Duration,
    /// How long records of usage are kept.
    pub usage_keep: Duration,
    /// How long a VMM may take until its API answers, and for one request.
    pub vmm_timeout: Duration,
    /// VMs that start at the same time.
    pub starts_at_once: usize,
    /// Bytes of a console that are kept, twice.
    pub console_bytes: u64,
    /// Largest body of a request, in bytes.
    pub body_len_max: usize,
    /// Connections at the same time.
    pub connections_max: usize,
    /// Time in which a request's head and body have to be there.
    pub request_timeout: Duration,
}

impl Config {
    /// The defaults, with everything below `state_dir`.
    #[must_use]
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            vmm: "/usr/bin/yun-vmm".into(),
            jailer: "/usr/bin/yun-jailer".into(),
            admin_uids: Vec::new(),
            admin_gids: Vec::new(),
            uid_base: 1_000_000,
            reserved_memory_mib: 512,
            reserved_cpus: 0,
            reserved_disk_mib: 1024,
            cpu_overcommit_percent: 400,
            memory_overcommit_percent: 100,
            disk_overcommit_percent: 200,
            network: true,
            uplinks: Vec::new(),
            masquerade: false,
            vhost_net: false,
            nameservers: Vec::new(),
            list_keys: Vec::new(),
            nft: "/usr/sbin/nft".into(),
            usage_interval: Duration::from_secs(300),
            usage_keep: Duration::from_secs(400 * 86_400),
            vmm_timeout: Duration::from_secs(10),
            starts_at_once: 8,
            console_bytes: 64 << 10,
            body_len_max: 1 << 20,
            connections_max: 256,
            request_timeout: Duration::from_secs(10),
        }
    }

    /// Where the jails are.
    #[must_use]
    pub fn jails(&self) -> PathBuf {
        self.state_dir.join("jails")
    }

    /// Name of the cgroup that the cgroups of this agent's VMs are in: no other agent of the host has it.
    #[must_use]
    pub fn cgroup(&self) -> String {
        if self.state_dir == Path::new(STATE_DIR_DEFAULT) {
            return "yun".to_owned();
        }
        let digest = Digest::of(self.state_dir.as_os_str().as_encoded_bytes());
        format!("yun-{}", digest.as_str().get(..8).unwrap_or_default())
    }

    /// A VM's own directory: console, log, seed.
    #[must_use]
    pub fn vm_dir(&self, id: &str) -> PathBuf {
        self.state_dir.join("vms").join(id)
    }
}
