//! What is wrong, and what is left over: nothing here is destroyed that might be somebody's.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::core::{Agent, blocking};
use super::model::{ActualState, Denial, DoctorReport, Finding, GcReport, Leftover, Severity};
use super::records::Phase;
use super::vms::launch::jail_dir;
use super::vms::process::{self, Handle};
use super::volumes::VolumeKey;
use crate::sandbox::jail::in_words;

impl Agent {
    /// Looks whether everything is as it should be.
    ///
    /// # Errors
    /// What the host says.
    pub async fn doctor(self: &Arc<Self>) -> Result<DoctorReport, Denial> {
        let mut findings = Vec::new();
        let mut found = |check: &str, severity, message: String, hint: Option<&str>| {
            let hint = hint.map(str::to_owned);
            findings.push(Finding { check: check.to_owned(), severity, message, hint });
        };
        let kvm =
            ("kvm", "load kvm_intel or kvm_amd, and see that the firmware has virtualisation switched on");
        let vhost_net = ("vhost-net", "modprobe vhost_net, or start the agent without --vhost-net");
        for (check, hint) in [Some(kvm), self.config.vhost_net.then_some(vhost_net)].into_iter().flatten() {
            match fs::OpenOptions::new().read(true).write(true).open(format!("/dev/{check}")) {
                Ok(_) => found(check, Severity::Ok, format!("/dev/{check} can be opened"), None),
                Err(error) => {
                    found(
                        check,
                        Severity::Error,
                        format!("/dev/{check} can't be opened: {error}"),
                        Some(hint),
                    );
                }
            }
        }
        for (check, path) in [("vmm", &self.config.vmm), ("jailer", &self.config.jailer)] {
            if path.is_file() {
                found(check, Severity::Ok, format!("{} is there", path.display()), None);
            } else {
                found(
                    check,
                    Severity::Error,
                    format!("{} is no file", path.display()),
                    Some("install it, or say where it is with --vmm and --jailer"),
                );
            }
        }
        match self.resources.cgroup.version {
            2 => found("cgroups", Severity::Ok, "version 2".to_owned(), None),
            1 => found(
                "cgroups",
                Severity::Warning,
                format!("version 1, with {}", self.resources.cgroup.controllers.join(", ")),
                Some("boot the host with cgroups of version 2"),
            ),
            _ => found(
                "cgroups",
                Severity::Error,
                "there are none: nothing bounds a VMM's memory".to_owned(),
                Some("mount them at /sys/fs/cgroup"),
            ),
        }
        if let Ok(disk) = nix::sys::statvfs::statvfs(&self.config.state_dir) {
            let (free, all) = (disk.blocks_available(), disk.blocks().max(1));
            let percent = free * 100 / all;
            let message =
                format!("{percent} percent of the disk of {} are free", self.config.state_dir.display());
            if percent < 5 {
                found(
                    "disk",
                    Severity::Error,
                    message,
                    Some("make room: volumes grow, and changes are refused when it is full"),
                );
            } else {
                found("disk", Severity::Ok, message, None);
            }
        }
        let views: Vec<_> = self.state().vms.values().map(super::state::VmEntry::view).collect();
        for vm in &views {
            let bad = matches!(vm.status.state, ActualState::Failed | ActualState::Unknown);
            if bad {
                let message = format!(
                    "{}/{} is {}: {}",
                    vm.tenant,
                    vm.name,
                    vm.status.state.in_a_word(),
                    vm.status.reason
                );
                found("vm", Severity::Warning, message, Some("`yun explain` and `yun logs` say more"));
            }
        }
        let running = views.iter().filter(|vm| vm.status.state == ActualState::Running).count();
        found("vms", Severity::Ok, format!("{} VMs, {running} of them run", views.len()), None);
        let leftovers = self.leftovers().await?;
        if leftovers.is_empty() {
            found("leftovers", Severity::Ok, "none".to_owned(), None);
        } else {
            let message = format!("{} things belong to nothing", leftovers.len());
            found(
                "leftovers",
                Severity::Warning,
                message,
                Some("`yun gc --dry-run` lists them, `yun gc` removes them"),
            );
        }
        Ok(DoctorReport { findings })
    }

    /// What belongs to nothing any more.
    async fn leftovers(self: &Arc<Self>) -> Result<Vec<Leftover>, Denial> {
        let (ids, incarnations, volumes) = {
            let state = self.state();
            let ids: BTreeSet<String> = state.vms.values().map(|vm| vm.record.id.clone()).collect();
            let live = state.vms.values().filter(|vm| vm.runtime.phase != Phase::Stopped);
            let incarnations: BTreeSet<String> =
                live.map(|vm| vm.record.incarnation(vm.runtime.incarnation)).collect();
            let volumes: BTreeSet<(String, String)> = state
                .volumes
                .iter()
                .map(|((tenant, _), volume)| (tenant.to_string(), volume.id.clone()))
                .collect();
            (ids, incarnations, volumes)
        };
        let agent = Arc::clone(self);
        blocking(move || {
            let mut found = Vec::new();
            let leftover = |kind: &str, name: String, reason: &str| Leftover {
                kind: kind.to_owned(),
                name,
                reason: reason.to_owned(),
                removed: false,
            };
            let host = |error: std::io::Error| Denial::host(error.to_string());
            for name in names(&agent.config.state_dir.join("vms")).map_err(host)? {
                if !ids.contains(&name) {
                    found.push(leftover("file", format!("vms/{name}"), "there is no such VM"));
                }
            }
            let jails = jail_dir(&agent.config.jails(), &agent.config.vmm, "");
            for name in names(&jails).map_err(host)? {
                if incarnations.contains(&name) {
                    continue;
                }
                let jail = jails.join(&name);
                match process::of_jail(&jail) {
                    Some(id) => {
                        let reason = "its VMM runs, and no VM has this incarnation";
                        found.push(leftover("process", format!("{} {name}", id.pid), reason));
                    }
                    None => found.push(leftover("jail", name, "its VMM has ended")),
                }
            }
            for cgroup in agent.resources.cgroup.below(&agent.config.cgroup()) {
                let id =
                    cgroup.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let is_vm = id.starts_with("vm-") && !incarnations.contains(&id);
                // Of one with a process in it, the process is the leftover.
                let empty = fs::read_to_string(cgroup.join("cgroup.procs"))
                    .is_ok_and(|procs| procs.trim().is_empty());
                if is_vm && empty && !jails.join(&id).exists() {
                    let path = cgroup.display().to_string();
                    found.push(leftover("cgroup", path, "its VMM has ended"));
                }
            }
            let images = agent.images.leftovers().map_err(|error| Denial::host(in_words(&error)))?;
            found.extend(
                images.iter().map(|path| leftover("file", path.display().to_string(), "of no image")),
            );
            let known = |key: &VolumeKey| volumes.contains(&(key.tenant().to_owned(), key.id().to_owned()));
            let left = agent.volumes.leftovers(&known).map_err(|error| Denial::host(in_words(&error)))?;
            let unfinished = left.unfinished.iter();
            found.extend(unfinished.map(|path| leftover("file", path.display().to_string(), "half made")));
            let unknown = left.unknown.iter();
            found.extend(unknown.map(|key| leftover("volume", key.to_string(), "no record of it")));
            found.extend(agent.network_leftovers()?);
            Ok(found)
        })
        .await
    }

    /// Lists what belongs to nothing any more; without `dry_run` removes it, except volumes that nobody knows: those are
    /// somebody's data.
    ///
    /// # Errors
    /// What the host says.
    pub async fn gc(self: &Arc<Self>, dry_run: bool) -> Result<GcReport, Denial> {
        let mut leftovers = self.leftovers().await?;
        if dry_run {
            return Ok(GcReport { leftovers });
        }
        // No VM or volume is made meanwhile; those that were there may start.
        let _turn = self.admission.lock().await;
        for leftover in &mut leftovers {
            if self.has_an_owner(leftover) {
                leftover.reason = "it has an owner by now".to_owned();
                continue;
            }
            let result = self.remove_leftover(leftover).await;
            match result {
                Ok(()) => leftover.removed = leftover.kind != "volume",
                Err(error) => leftover.reason = format!("{}; it can't be removed: {error}", leftover.reason),
            }
        }
        let agent = Arc::clone(self);
        blocking(move || {
            agent.images.gc().map_err(|error| Denial::host(in_words(&error)))?;
            agent.volumes.gc().map_err(|error| Denial::host(in_words(&error)))?;
            Ok(())
        })
        .await?;
        Ok(GcReport { leftovers })
    }

    /// Whether something that was found without an owner has one: what is noted before it is made may have been noted
    /// after the state was looked at, and made before the host was.
    fn has_an_owner(&self, leftover: &Leftover) -> bool {
        let state = self.state();
        let name = leftover.name.rsplit([' ', '/']).next().unwrap_or(&leftover.name);
        state.vms.values().any(|vm| {
            let lives = vm.runtime.phase != Phase::Stopped;
            match leftover.kind.as_str() {
                "process" | "jail" | "cgroup" => {
                    lives && vm.record.incarnation(vm.runtime.incarnation) == name
                }
                "file" => vm.record.id == name,
                "tap" | "nft" => lives && vm.runtime.interfaces.iter().any(|i| i.tap.ends_with(name)),
                _ => false,
            }
        })
    }

    async fn remove_leftover(self: &Arc<Self>, leftover: &Leftover) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        match leftover.kind.as_str() {
            "process" => {
                let Some((_, name)) = leftover.name.split_once(' ') else { return Ok(()) };
                let jail = jail_dir(&self.config.jails(), &self.config.vmm, name);
                let Some(id) = process::of_jail(&jail) else { return Ok(()) };
                if let Some(handle) = Handle::open(&id).map_err(text)? {
                    handle.kill().map_err(text)?;
                    handle.ended().await;
                }
                Ok(())
            }
            "jail" => {
                let jail = jail_dir(&self.config.jails(), &self.config.vmm, &leftover.name);
                // A janitor may be at work on it.
                match tokio::task::spawn_blocking(move || fs::remove_dir_all(jail)).await {
                    Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
                    _ => Ok(()),
                }
            }
            "file" if leftover.name.starts_with("vms/") => {
                let path = self.config.state_dir.join(&leftover.name);
                tokio::task::spawn_blocking(move || fs::remove_dir_all(path))
                    .await
                    .map_err(|error| error.to_string())?
                    .map_err(text)
            }
            "cgroup" => fs::remove_dir(&leftover.name).map_err(text),
            "tap" | "nft" => self.remove_network_leftover(leftover).await,
            _ => Ok(()),
        }
    }
}

/// Names in a directory; none if there is no such directory.
fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
