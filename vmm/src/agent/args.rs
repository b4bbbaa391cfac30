//! The command line of `yund`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use ed25519_dalek::VerifyingKey;

use super::config::{Config, STATE_DIR_DEFAULT};
use super::net::list::parse_key;

/// Where the socket is unless told otherwise.
pub const SOCKET_DEFAULT: &str = "/run/yun/yund.sock";

/// The agent of a server: boots tenants' microVMs, and answers on a Unix socket. VMs outlive it: stop it, kill it, replace
/// it, and the next one finds them again.
#[derive(Clone, Debug, Parser)]
#[command(name = "yund", version, max_term_width = 110)]
pub struct Args {
    /// Unix socket to answer on; one that systemd passes is used instead
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    pub socket: PathBuf,
    /// Where everything is that must last: store, images, volumes, jails, consoles, audit log
    #[arg(long, value_name = "DIR", default_value = STATE_DIR_DEFAULT)]
    pub state_dir: PathBuf,
    /// Executable of the VMM
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/yun-vmm")]
    pub vmm: PathBuf,
    /// Executable of the jailer
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/yun-jailer")]
    pub jailer: PathBuf,
    /// User, by number, that may do everything, besides root; repeatable
    #[arg(long, value_name = "UID")]
    pub admin_uid: Vec<u32>,
    /// Group, by number, whose members may do everything; repeatable
    #[arg(long, value_name = "GID")]
    pub admin_gid: Vec<u32>,
    /// Group, by name in /etc/group, whose members may do everything; repeatable
    #[arg(long, value_name = "NAME")]
    pub admin_group: Vec<String>,
    /// First of the users that VMMs run as; each VM has one of its own
    #[arg(long, value_name = "UID", default_value_t = 1_000_000)]
    pub uid_base: u32,
    /// Memory set aside for the host, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub reserve_memory_mib: u64,
    /// CPUs set aside for the host
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub reserve_cpus: u64,
    /// Room on the disk set aside for the host, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub reserve_disk_mib: u64,
    /// vCPUs given out for each 100 CPUs that are not set aside
    #[arg(long, value_name = "PERCENT", default_value_t = 400)]
    pub overcommit_cpu: u64,
    /// MiB of memory given out for each 100 that are not set aside
    #[arg(long, value_name = "PERCENT", default_value_t = 100)]
    pub overcommit_memory: u64,
    /// MiB of volumes given out for each 100 that are not set aside
    #[arg(long, value_name = "PERCENT", default_value_t = 200)]
    pub overcommit_disk: u64,
    /// Have no networks: VMs with interfaces are refused, and neither nft nor /dev/net/tun is needed
    #[arg(long)]
    pub no_network: bool,
    /// Interface by which guests' packets leave the server; repeatable. Without any: that of the default route
    #[arg(long, value_name = "NAME")]
    pub uplink: Vec<String>,
    /// Hide tenants' IPv4 addresses behind the host's on the way out
    #[arg(long)]
    pub masquerade: bool,
    /// Have the host's kernel move guests' frames (vhost-net): quicker than by the VMM, but guests then talk to the kernel's own code
    #[arg(long, conflicts_with = "no_network")]
    pub vhost_net: bool,
    /// Name server that guests are told of; repeatable
    #[arg(long, value_name = "ADDRESS")]
    pub nameserver: Vec<IpAddr>,
    /// Public key, of which one signs each list of prefixes, 64 hexadecimal digits; repeatable. Without any none is taken
    #[arg(long, value_name = "HEX", value_parser = parse_key)]
    pub list_key: Vec<VerifyingKey>,
    /// The `nft` program
    #[arg(long, value_name = "FILE", default_value = "/usr/sbin/nft")]
    pub nft: PathBuf,
    /// Seconds between two records of usage
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub usage_interval: u64,
    /// Days for which records of usage are kept
    #[arg(long, value_name = "DAYS", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    pub usage_keep_days: u32,
    /// Milliseconds that a VMM may take to answer
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub vmm_timeout_ms: u64,
    /// VMs that start at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub starts_at_once: u16,
    /// Connections at the same time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(4..))]
    pub connections_max: u16,
    /// Least severe level that is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LevelFilter,
    /// Print the description of the API (OpenAPI 3.1), and end
    #[arg(long)]
    pub openapi: bool,
    /// Put an audit log whose chain is broken aside, which no agent would add to, and end: the next agent begins a new one
    #[arg(long)]
    pub set_aside_audit: bool,
    /// Repair and read a copy of a store, and end: what the agent does with itself before it opens one
    #[arg(long, value_name = "FILE", hide = true)]
    pub try_store: Option<PathBuf>,
}

/// A name that no group has.
#[derive(Debug, thiserror::Error)]
#[error("--admin-group {0:?}: /etc/group has no such group")]
pub struct UnknownGroup(String);

impl Args {
    /// What they decide. `groups` is the text of /etc/group.
    ///
    /// # Errors
    /// [`UnknownGroup`].
    pub fn config(&self, groups: &str) -> Result<Config, UnknownGroup> {
        let mut admin_gids = self.admin_gid.clone();
        for name in &self.admin_group {
            admin_gids.push(gid_of(groups, name).ok_or_else(|| UnknownGroup(name.clone()))?);
        }
        Ok(Config {
            vmm: self.vmm.clone(),
            jailer: self.jailer.clone(),
            admin_uids: self.admin_uid.clone(),
            admin_gids,
            uid_base: self.uid_base,
            reserved_memory_mib: self.reserve_memory_mib,
            reserved_cpus: self.reserve_cpus,
            reserved_disk_mib: self.reserve_disk_mib,
            cpu_overcommit_percent: self.overcommit_cpu,
            memory_overcommit_percent: self.overcommit_memory,
            disk_overcommit_percent: self.overcommit_disk,
            network: !self.no_network,
            uplinks: self.uplink.clone(),
            masquerade: self.masquerade,
            vhost_net: self.vhost_net,
            nameservers: self.nameserver.clone(),
            list_keys: self.list_key.clone(),
            nft: self.nft.clone(),
            usage_interval: Duration::from_secs(self.usage_interval),
            usage_keep: Duration::from_secs(u64::from(self.usage_keep_days) * 86_400),
            vmm_timeout: Duration::from_millis(self.vmm_timeout_ms),
            starts_at_once: usize::from(self.starts_at_once),
            connections_max: usize::from(self.connections_max),
            ..Config::new(self.state_dir.clone())
        })
    }
}

/// A group's number (group(5)). Read from the file: a static program has no other way that works everywhere.
fn gid_of(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_a_wrong_one_is_named() {
        let groups = "root:x:0:\nyun-admin:x:998:alice,bob\n";
        let args = Args::try_parse_from(["yund", "--admin-group", "yun-admin", "--admin-gid", "7"]).unwrap();
        assert_eq!(args.config(groups).unwrap().admin_gids, [7, 998]);
        let args = Args::try_parse_from(["yund", "--admin-group", "nobody"]).unwrap();
        assert!(args.config(groups).unwrap_err().to_string().contains("\"nobody\""));
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_configuration() {
        let args = Args::try_parse_from(["yund"]).unwrap();
        let (ours, theirs) = (args.config("").unwrap(), Config::new("/var/lib/yun".into()));
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }
}
