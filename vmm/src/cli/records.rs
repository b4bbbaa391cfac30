//! Which columns the API's things have.

use super::operation::describe;
use super::output::{Column, Record, human_bytes, human_mib, word};
use crate::agent::model::{
    Capacity, Event, Finding, Host, Image, InterfaceStatus, Leftover, Operation, QuotaUse, Subnet, Tenant,
    Vm, VmStats, Volume,
};

fn or_empty(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

fn joined(items: impl IntoIterator<Item = String>, separator: &str) -> String {
    items.into_iter().collect::<Vec<_>>().join(separator)
}

fn addresses(vm: &Vm) -> String {
    let of = |interface: &InterfaceStatus| match (interface.ipv4, interface.ipv6) {
        (Some(address), _) => address.to_string(),
        (None, address) => or_empty(address.as_ref()),
    };
    joined(vm.status.interfaces.iter().map(of).filter(|text| !text.is_empty()), ",")
}

impl Record for Vm {
    const COLUMNS: &'static [Column] = &[
        Column::new("VM"),
        Column::new("STATE"),
        Column::new("WANTED"),
        Column::number("VCPUS"),
        Column::number("MEMORY"),
        Column::new("IMAGE"),
        Column::new("ADDRESS"),
        Column::new("SINCE"),
        Column::number("GENERATION").wide(),
        Column::number("RESTARTS").wide(),
        Column::number("PID").wide(),
        Column::new("ID").wide(),
        Column::new("CREATED").wide(),
        Column::new("REASON").wide(),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.key(),
            word(&self.status.state),
            word(&self.spec.power),
            self.spec.vcpus.to_string(),
            human_mib(self.spec.memory_mib),
            self.spec.image.clone(),
            addresses(self),
            self.status.since.clone(),
            self.generation.to_string(),
            self.status.restarts.to_string(),
            or_empty(self.status.pid.as_ref()),
            self.id.clone(),
            self.created_at.clone(),
            self.status.reason.clone(),
        ]
    }

    fn key(&self) -> String {
        format!("{}/{}", self.tenant, self.name)
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let mut details: Vec<_> = Self::COLUMNS.iter().map(Column::title).zip(self.cells()).collect();
        details.extend([
            ("observed generation", self.status.observed_generation.to_string()),
            ("incarnation", self.status.incarnation.to_string()),
            ("started", or_empty(self.status.started_at.as_ref())),
            ("expires", or_empty(self.status.expires_at.as_ref())),
            ("restart", word(&self.spec.restart)),
            ("stop timeout", format!("{} s", self.spec.stop_timeout_seconds)),
            ("operation", or_empty(self.operation.as_ref())),
        ]);
        for volume in &self.spec.volumes {
            let marks = [(volume.read_only, " (read-only)"), (volume.root, " (root)")];
            let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
            details.push(("volume", format!("{}{marks}", volume.volume)));
        }
        for net in &self.status.interfaces {
            let ends = [net.ipv4.map(|a| a.to_string()), net.ipv6.map(|a| a.to_string())];
            let ends = joined(ends.into_iter().flatten(), " ");
            details.push((
                "interface",
                format!("{} {} {ends} {} on {}", net.name, net.mac, word(&net.class), net.tap),
            ));
        }
        if let Some(end) = &self.status.last_end {
            details.push(("last end", ended(end)));
        }
        details.retain(|(_, value)| !value.is_empty());
        details
    }
}

/// How an incarnation ended, in words.
pub(crate) fn ended(end: &crate::agent::model::Ended) -> String {
    let how = match (end.status, end.signal) {
        (_, Some(signal)) => format!("signal {signal}"),
        (Some(status), None) => format!("status {status}"),
        (None, None) => "nobody saw how".to_owned(),
    };
    format!("{} ({how}) at {}", end.reason, end.at)
}

impl Record for Image {
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME"),
        Column::new("ID"),
        Column::number("SIZE"),
        Column::number("USED BY"),
        Column::new("CREATED"),
        Column::new("KERNEL ARGS").wide(),
        Column::new("KERNEL").wide(),
        Column::new("INITRD").wide(),
        Column::new("ROOTFS").wide(),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            or_empty(self.name.as_ref()),
            self.id.clone(),
            human_bytes(self.size_bytes),
            self.used_by.to_string(),
            self.created_at.clone(),
            self.kernel_args.clone(),
            self.kernel.clone(),
            or_empty(self.initrd.as_ref()),
            or_empty(self.rootfs.as_ref()),
        ]
    }

    fn key(&self) -> String {
        self.name.as_ref().map_or_else(|| self.id.clone(), ToString::to_string)
    }
}

impl Record for Volume {
    const COLUMNS: &'static [Column] = &[
        Column::new("VOLUME"),
        Column::new("STATE"),
        Column::number("SIZE"),
        Column::number("ON DISK"),
        Column::new("ATTACHED TO"),
        Column::new("CREATED"),
        Column::new("ID").wide(),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.key(),
            self.state.clone(),
            human_mib(self.size_mib),
            human_bytes(self.allocated_bytes),
            joined(self.attached_to.iter().map(ToString::to_string), ","),
            self.created_at.clone(),
            self.id.clone(),
        ]
    }

    fn key(&self) -> String {
        format!("{}/{}", self.tenant, self.name)
    }
}

impl Record for Subnet {
    const COLUMNS: &'static [Column] =
        &[Column::new("SUBNET"), Column::new("IPV4"), Column::new("IPV6"), Column::number("INTERFACES")];

    fn cells(&self) -> Vec<String> {
        let (ipv4, ipv6) = (or_empty(self.spec.ipv4.as_ref()), or_empty(self.spec.ipv6.as_ref()));
        vec![self.key(), ipv4, ipv6, self.interfaces.to_string()]
    }

    fn key(&self) -> String {
        format!("{}/{}", self.tenant, self.name)
    }
}

fn of_limit(used: u64, limit: Option<u64>, show: fn(u64) -> String) -> String {
    limit.map_or_else(|| show(used), |limit| format!("{} of {}", show(used), show(limit)))
}

fn plain(number: u64) -> String {
    number.to_string()
}

impl Record for Tenant {
    const COLUMNS: &'static [Column] = &[
        Column::new("TENANT"),
        Column::number("VMS"),
        Column::number("VCPUS"),
        Column::number("MEMORY"),
        Column::number("DISK"),
        Column::number("INTERFACES"),
        Column::new("EGRESS"),
        Column::new("CREATED").wide(),
        Column::new("ACCESS").wide(),
    ];

    fn cells(&self) -> Vec<String> {
        let QuotaUse { vms, vcpus, memory_mib, disk_mib, interfaces } = self.used;
        let access = self.access.iter().map(|access| {
            let who = match (access.uid, access.gid) {
                (Some(uid), _) => format!("uid:{uid}"),
                (None, Some(gid)) => format!("gid:{gid}"),
                (None, None) => "nobody".to_owned(),
            };
            format!("{who}={}", word(&access.role))
        });
        vec![
            self.name.to_string(),
            of_limit(vms, self.quota.vms, plain),
            of_limit(vcpus, self.quota.vcpus, plain),
            of_limit(memory_mib, self.quota.memory_mib, human_mib),
            of_limit(disk_mib, self.quota.disk_mib, human_mib),
            of_limit(interfaces, self.quota.interfaces, plain),
            word(&self.egress),
            self.created_at.clone(),
            joined(access, ","),
        ]
    }

    fn key(&self) -> String {
        self.name.to_string()
    }
}

impl Record for Operation {
    const COLUMNS: &'static [Column] = &[
        Column::new("OPERATION"),
        Column::new("STATE"),
        Column::new("WHAT"),
        Column::number("DONE"),
        Column::new("REQUESTOR"),
        Column::new("CREATED"),
        Column::new("ENDED"),
        Column::new("ERROR").wide(),
    ];

    fn cells(&self) -> Vec<String> {
        let show = |number| if self.unit == "bytes" { human_bytes(number) } else { plain(number) };
        let total = if self.total == 0 { String::new() } else { format!("/{}", show(self.total)) };
        vec![
            self.id.clone(),
            word(&self.state),
            describe(self),
            format!("{}{total} {}", show(self.done), if self.unit == "bytes" { "" } else { &self.unit })
                .trim_end()
                .to_owned(),
            self.requestor.clone(),
            self.created_at.clone(),
            or_empty(self.ended_at.as_ref()),
            self.error.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
        ]
    }

    fn key(&self) -> String {
        self.id.clone()
    }
}

impl Record for Event {
    const COLUMNS: &'static [Column] = &[
        Column::number("SEQ"),
        Column::new("AT"),
        Column::new("KIND"),
        Column::new("WHAT"),
        Column::new("REQUESTOR"),
        Column::new("DETAIL"),
    ];

    fn cells(&self) -> Vec<String> {
        let what = match (&self.tenant, &self.target) {
            (Some(tenant), Some(target)) => format!("{tenant}/{target}"),
            (Some(tenant), None) => tenant.to_string(),
            (None, target) => or_empty(target.as_ref()),
        };
        let detail = self.detail.clone();
        vec![self.key(), self.at.clone(), self.kind.clone(), what, self.requestor.clone(), detail]
    }

    fn key(&self) -> String {
        self.seq.to_string()
    }
}

impl Record for Finding {
    const COLUMNS: &'static [Column] =
        &[Column::new("SEVERITY"), Column::new("CHECK"), Column::new("FOUND"), Column::new("HINT")];

    fn cells(&self) -> Vec<String> {
        vec![word(&self.severity), self.check.clone(), self.message.clone(), or_empty(self.hint.as_ref())]
    }

    fn key(&self) -> String {
        self.check.clone()
    }
}

impl Record for Leftover {
    const COLUMNS: &'static [Column] =
        &[Column::new("KIND"), Column::new("NAME"), Column::new("RESULT"), Column::new("REASON")];

    fn cells(&self) -> Vec<String> {
        let result = if self.removed { "removed" } else { "left" };
        vec![self.kind.clone(), self.name.clone(), result.to_owned(), self.reason.clone()]
    }

    fn key(&self) -> String {
        self.name.clone()
    }
}

impl Record for Host {
    const COLUMNS: &'static [Column] = &[
        Column::new("HOST"),
        Column::new("STATE"),
        Column::new("VMS"),
        Column::new("VCPUS"),
        Column::new("MEMORY"),
        Column::new("DISK"),
        Column::new("VERSION"),
        Column::new("AGENT STARTED"),
        Column::new("BOOT ID"),
    ];

    fn cells(&self) -> Vec<String> {
        let show = |capacity: Capacity, unit: fn(u64) -> String| {
            let Capacity { total, reserved, allocatable, allocated } = capacity;
            let [total, reserved, allocatable, allocated] =
                [total, reserved, allocatable, allocated].map(unit);
            format!("{allocated} of {allocatable} allocated; {total} in all, {reserved} reserved")
        };
        vec![
            self.name.clone(),
            word(&self.state),
            format!("{} running of {}", self.vms_running, self.vms),
            show(self.vcpus, plain),
            show(self.memory_mib, human_mib),
            show(self.disk_mib, human_mib),
            self.version.clone(),
            self.agent_started_at.clone(),
            self.boot_id.clone(),
        ]
    }

    fn key(&self) -> String {
        self.name.clone()
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let mut details: Vec<_> = Self::COLUMNS.iter().map(Column::title).zip(self.cells()).collect();
        for node in &self.numa {
            let (free, all) = (human_mib(node.memory_free_mib), human_mib(node.memory_mib));
            let mut text = format!("node {}: CPUs {}, {free} free of {all}", node.id, node.cpus);
            for pages in &node.hugepages {
                let size = human_bytes(pages.size_kib.saturating_mul(1024));
                text.push_str(&format!(", {} free of {} pages of {size}", pages.free, pages.total));
            }
            details.push(("numa", text));
        }
        details
    }
}

impl Record for VmStats {
    const COLUMNS: &'static [Column] = &[Column::new("VM"), Column::new("STATE")];

    fn cells(&self) -> Vec<String> {
        vec![self.key(), word(&self.state)]
    }

    fn key(&self) -> String {
        format!("{}/{}", self.tenant, self.name)
    }
}
