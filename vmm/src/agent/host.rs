//! What the server has, and what of it can be given out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::config::Config;
use super::model::{Capacity, HugePages, NumaNode};
use super::state::{Limits, MIB};

/// What the server has.
#[derive(Clone, Debug)]
pub struct Resources {
    /// CPUs.
    pub cpus: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The disk of the state directory, in MiB.
    pub disk_mib: u64,
    /// Which version of cgroups, and which controllers a VM's cgroup can have.
    pub cgroup: Cgroups,
}

/// The host's cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// 1 or 2; 0 without.
    pub version: u8,
    /// Controllers that are there.
    pub controllers: Vec<String>,
}

impl Resources {
    /// Looks.
    ///
    /// # Errors
    /// What the host says.
    pub fn read(config: &Config) -> io::Result<Self> {
        let cpus = std::thread::available_parallelism()?.get() as u64;
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let disk = nix::sys::statvfs::statvfs(&config.state_dir)?;
        Ok(Self {
            cpus,
            memory_mib: meminfo_kib(&meminfo, "MemTotal").unwrap_or(0) / 1024,
            disk_mib: disk.blocks() * disk.fragment_size() / MIB,
            cgroup: Cgroups::read(Path::new("/sys/fs/cgroup")),
        })
    }

    /// What VMs can be given.
    #[must_use]
    pub fn limits(&self, config: &Config) -> Limits {
        let part = |total: u64, reserved: u64, percent: u64| total.saturating_sub(reserved) * percent / 100;
        Limits {
            vcpus: part(self.cpus, config.reserved_cpus, config.cpu_overcommit_percent),
            memory_mib: part(self.memory_mib, config.reserved_memory_mib, config.memory_overcommit_percent),
            disk_mib: part(self.disk_mib, config.reserved_disk_mib, config.disk_overcommit_percent),
        }
    }

    /// The same in the form it is shown in: vCPUs, memory, volumes.
    #[must_use]
    pub fn capacities(&self, config: &Config, allocated: Limits) -> [Capacity; 3] {
        let limits = self.limits(config);
        let capacity =
            |total, reserved, allocatable, allocated| Capacity { total, reserved, allocatable, allocated };
        [
            capacity(self.cpus, config.reserved_cpus, limits.vcpus, allocated.vcpus),
            capacity(self.memory_mib, config.reserved_memory_mib, limits.memory_mib, allocated.memory_mib),
            capacity(self.disk_mib, config.reserved_disk_mib, limits.disk_mib, allocated.disk_mib),
        ]
    }
}

impl Cgroups {
    fn read(mount: &Path) -> Self {
        if let Ok(controllers) = fs::read_to_string(mount.join("cgroup.controllers")) {
            let controllers = controllers.split_whitespace().map(str::to_owned).collect();
            return Self { version: 2, controllers };
        }
        let known = ["memory", "pids", "cpu"];
        let there: Vec<String> = known
            .iter()
            .filter(|name| mount.join(name).join("cgroup.procs").exists())
            .map(|name| (*name).to_owned())
            .collect();
        Self { version: u8::from(!there.is_empty()), controllers: there }
    }

    /// Cgroups of VMs, in the directory of this name: with version 1 one in each hierarchy.
    #[must_use]
    pub fn below(&self, name: &str) -> Vec<PathBuf> {
        let mount = Path::new("/sys/fs/cgroup");
        let roots = match self.version {
            2 => vec![mount.join(name)],
            _ => self.controllers.iter().map(|controller| mount.join(controller).join(name)).collect(),
        };
        let entries = roots.iter().filter_map(|root| fs::read_dir(root).ok()).flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    /// What a VM's cgroup is given: a bound on its memory (guest, VMM and page tables), on its processes, and its share of
    /// the CPUs.
    #[must_use]
    pub fn settings(&self, vcpus: u8, memory_mib: u64) -> Vec<String> {
        // A thread for each vCPU (32), queue of a drive (256 together) and device (31), and what the kernel has for io_uring.
        const PIDS_MAX: u32 = 512;
        // The VMM's own memory is a few MiB; page tables are a 512th of the guest's memory, for KVM and for the process.
        let memory = (memory_mib + memory_mib / 128 + 64) * MIB;
        // cgroup weights: 100 is the default of one.
        let weight = u64::from(vcpus) * 100;
        let wanted = match self.version {
            2 => [
                ("memory", format!("memory.max={memory}")),
                ("pids", format!("pids.max={PIDS_MAX}")),
                ("cpu", format!("cpu.weight={}", weight.min(10_000))),
            ],
            1 => [
                ("memory", format!("memory.limit_in_bytes={memory}")),
                ("pids", format!("pids.max={PIDS_MAX}")),
                ("cpu", format!("cpu.shares={}", weight * 1024 / 100)),
            ],
            _ => return Vec::new(),
        };
        let there = |name: &str| self.controllers.iter().any(|controller| controller == name);
        wanted.into_iter().filter(|(name, _)| there(name)).map(|(_, setting)| setting).collect()
    }
}

fn meminfo_kib(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// NUMA nodes, as `/sys/devices/system/node` has them; one of everything where there is none.
#[must_use]
pub fn numa_nodes() -> Vec<NumaNode> {
    nodes_in(Path::new("/sys/devices/system/node"))
}

fn nodes_in(dir: &Path) -> Vec<NumaNode> {
    let mut nodes = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("node")?.parse().ok());
        let Some(id) = id else { continue };
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        // Each line begins with "Node N ".
        let meminfo: String = read("meminfo")
            .lines()
            .filter_map(|line| line.splitn(3, ' ').nth(2))
            .flat_map(|l| [l, "\n"])
            .collect();
        let mib = |key| meminfo_kib(&meminfo, key).unwrap_or(0) / 1024;
        nodes.push(NumaNode {
            id,
            cpus: read("cpulist").trim().to_owned(),
            memory_mib: mib("MemTotal"),
            memory_free_mib: mib("MemFree"),
            hugepages: huge_pages(&entry.path().join("hugepages")),
        });
    }
    nodes.sort_by_key(|node| node.id);
    nodes
}

fn huge_pages(dir: &Path) -> Vec<HugePages> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size =
            name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok());
        let Some(size_kib) = size else { continue };
        let number = |file: &str| {
            fs::read_to_string(entry.path().join(file)).ok().and_then(|text| text.trim().parse().ok())
        };
        let (total, free) = (number("nr_hugepages").unwrap_or(0), number("free_hugepages").unwrap_or(0));
        sizes.push(HugePages { size_kib, total, free });
    }
    sizes.sort_by_key(|size| size.size_kib);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_not_given_out_and_overcommit_counts_what_is_left() {
        let resources = Resources { cpus: 10, memory_mib: 1000, disk_mib: 500, cgroup: Cgroups::default() };
        let config = Config {
            reserved_cpus: 2,
            reserved_memory_mib: 200,
            reserved_disk_mib: 600,
            cpu_overcommit_percent: 250,
            memory_overcommit_percent: 100,
            ..Config::new("/x".into())
        };
        assert_eq!(resources.limits(&config), Limits { vcpus: 20, memory_mib: 800, disk_mib: 0 });
    }

    #[test]
    fn cgroups_of_both_versions_bound_memory_processes_and_cpu_with_the_controllers_that_are_there() {
        let all = ["memory", "pids", "cpu"].map(str::to_owned).to_vec();
        let two = Cgroups { version: 2, controllers: all.clone() };
        let memory = (128 + 1 + 64) * MIB;
        assert_eq!(
            two.settings(2, 128),
            [format!("memory.max={memory}"), "pids.max=512".into(), "cpu.weight=200".into()]
        );
        let one = Cgroups { version: 1, controllers: vec!["pids".to_owned()] };
        assert_eq!(one.settings(1, 128), ["pids.max=512"]);
        assert!(Cgroups::default().settings(1, 128).is_empty());
    }

    #[test]
    fn numa_nodes_have_their_cpus_memory_and_huge_pages() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (node, cpus, free) in [("node10", "8-15\n", 2048), ("node0", "0-7\n", 1024)] {
            write(&format!("{node}/cpulist"), cpus);
            let number = &node[4..];
            write(
                &format!("{node}/meminfo"),
                &format!(
                    "Node {number} MemTotal:        4194304 kB\nNode {number} MemFree:   {} kB\n",
                    free * 1024
                ),
            );
        }
        for (size, total, free) in [(2048, 512, 100), (1_048_576, 4, 0)] {
            write(&format!("node0/hugepages/hugepages-{size}kB/nr_hugepages"), &format!("{total}\n"));
            write(&format!("node0/hugepages/hugepages-{size}kB/free_hugepages"), &format!("{free}\n"));
        }
        write("possible", "0,10\n");
        let pages = |size_kib, total, free| HugePages { size_kib, total, free };
        let node = |id, cpus: &str, memory_free_mib, hugepages| NumaNode {
            id,
            cpus: cpus.to_owned(),
            memory_mib: 4096,
            memory_free_mib,
            hugepages,
        };
        let expected = [
            node(0, "0-7", 1024, vec![pages(2048, 512, 100), pages(1_048_576, 4, 0)]),
            node(10, "8-15", 2048, Vec::new()),
        ];
        assert_eq!(nodes_in(dir.path()), expected);
        assert!(nodes_in(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn this_host_has_something() {
        let config = Config::new(std::env::temp_dir());
        let resources = Resources::read(&config).unwrap();
        assert!(resources.cpus > 0 && resources.memory_mib > 0 && resources.disk_mib > 0);
    }
}
