//! From a record to a running guest: one straight line.
//!
//! ```text
//!   jailer is spawned ──> (caller notes its process) ──> API answers ──> configured ──> InstanceStart
//! ```
//! The jailer becomes the VMM, so the process that is noted is the VMM's from the first moment. Everything it may use is
//! handed over open: its jail has no file in it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};

use super::client::{VmmClient, VmmError};
use super::console::VmmEnds;

/// First descriptor that is handed over.
const FIRST_FD: i32 = 3;
/// How long to wait between two looks whether the API is there.
const PROBE: Duration = Duration::from_millis(1);

/// A disk, opened.
#[derive(Debug)]
pub struct DiskPart {
    /// Its id for the VMM.
    pub id: String,
    /// The file.
    pub file: File,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether it is the root file system.
    pub root: bool,
    /// Whether what the guest discards goes back to the host.
    pub discard: bool,
}

/// An interface, plugged in.
#[derive(Debug)]
pub struct NetPart {
    /// Its id for the VMM.
    pub id: String,
    /// Its MAC address.
    pub mac: String,
    /// The TAP device.
    pub tap: OwnedFd,
}

/// Everything a microVM is made of.
#[derive(Debug)]
pub struct Parts {
    /// vCPUs.
    pub vcpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The kernel.
    pub kernel: File,
    /// The initrd.
    pub initrd: Option<File>,
    /// The kernel's command line.
    pub kernel_args: String,
    /// Its disks, in order.
    pub disks: Vec<DiskPart>,
    /// Its interfaces, in order.
    pub nets: Vec<NetPart>,
}

/// Where and as whom it lives.
#[derive(Debug)]
pub struct Place<'a> {
    /// The jailer.
    pub jailer: &'a Path,
    /// The VMM.
    pub vmm: &'a Path,
    /// The directory of all jails.
    pub jails: &'a Path,
    /// Name of the jail.
    pub id: &'a str,
    /// User and group.
    pub uid: u32,
    /// Values for its cgroup, and which version.
    pub cgroup: &'a Cgroup,
    /// Whether the kernel's vhost-net moves the frames of its interfaces.
    pub vhost_net: bool,
}

/// What its cgroup is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// 1 or 2.
    pub version: u8,
    /// The cgroup that it is in.
    pub parent: String,
    /// `file=value`; none without a cgroup.
    pub settings: Vec<String>,
}

impl Place<'_> {
    /// The jail's directory.
    #[must_use]
    pub fn jail(&self) -> PathBuf {
        jail_dir(self.jails, self.vmm, self.id)
    }

    /// The API's socket, from outside.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.jail().join("root/run/firecracker.socket")
    }
}

/// The directory of the jail of an incarnation.
#[must_use]
pub fn jail_dir(jails: &Path, vmm: &Path, id: &str) -> PathBuf {
    let name = vmm.file_name().unwrap_or("yun-vmm".as_ref());
    jails.join(name).join(id)
}

/// What to ask of the API to have what was handed over.
#[derive(Debug)]
pub struct Requests(Vec<(String, Value)>);

/// Starts the jailer, which becomes the VMM. `log` takes what both have to say.
///
/// # Errors
/// What the host says.
pub fn spawn(place: &Place<'_>, parts: Parts, ends: VmmEnds, log: File) -> io::Result<(Child, Requests)> {
    let mut mappings = Vec::new();
    let mut lend = |file: OwnedFd| {
        let child_fd = FIRST_FD + i32::try_from(mappings.len()).expect("descriptors are far fewer");
        mappings.push(FdMapping { parent_fd: file, child_fd });
        format!("fd:{child_fd}")
    };
    let log_path = lend(log.try_clone()?.into());
    let mut requests = vec![(
        "/machine-config".to_owned(),
        json!({ "vcpu_count": parts.vcpus, "mem_size_mib": parts.memory_mib }),
    )];
    let mut boot = json!({ "kernel_image_path": lend(parts.kernel.into()), "boot_args": parts.kernel_args });
    if let Some(initrd) = parts.initrd {
        boot["initrd_path"] = lend(initrd.into()).into();
    }
    requests.push(("/boot-source".to_owned(), boot));
    for disk in parts.disks {
        let body = json!({
            "drive_id": disk.id, "path_on_host": lend(disk.file.into()), "is_root_device": disk.root,
            "is_read_only": disk.read_only, "cache_type": "Writeback", "discard": disk.discard,
        });
        requests.push((format!("/drives/{}", disk.id), body));
    }
    for net in parts.nets {
        let mut body = json!({ "iface_id": net.id, "host_dev_name": lend(net.tap), "guest_mac": net.mac });
        if place.vhost_net {
            body["vhost"] = true.into();
        }
        requests.push((format!("/network-interfaces/{}", net.id), body));
    }
    requests.push(("/entropy".to_owned(), json!({})));
    let mut command = Command::new(place.jailer);
    command.args(words(place, mappings.len(), &log_path));
    command.env_clear().stdin(ends.stdin).stdout(ends.stdout).stderr(Stdio::from(log));
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    Ok((command.spawn()?, Requests(requests)))
}

fn words(place: &Place<'_>, fds: usize, log_path: &str) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let mut say = |flag: &str, value: OsString| words.extend([flag.into(), value]);
    say("--id", place.id.into());
    say("--exec-file", place.vmm.into());
    say("--uid", place.uid.to_string().into());
    say("--gid", place.uid.to_string().into());
    say("--chroot-base-dir", place.jails.into());
    for setting in &place.cgroup.settings {
        say("--cgroup", setting.into());
    }
    if !place.cgroup.settings.is_empty() {
        say("--parent-cgroup", (&place.cgroup.parent).into());
        say("--cgroup-version", place.cgroup.version.to_string().into());
    }
    for fd in 0..fds {
        say("--keep-fd", (FIRST_FD as usize + fd).to_string().into());
    }
    // The agent's end is nothing to it, whatever state it is in.
    words.push("--new-session".into());
    // TAP devices come open; the VMM has nothing to do with any network itself.
    words.push("--new-netns".into());
    if place.vhost_net {
        words.push("--vhost-net".into());
    }
    words.push("--".into());
    words.extend(["--enable-pci", "--log-path", log_path, "--show-level"].map(OsString::from));
    words
}

/// Waits until the API is there.
///
/// # Errors
/// The last [`VmmError`], if it is not within `within`.
pub async fn answers(client: &VmmClient, within: Duration) -> Result<String, VmmError> {
    let deadline = tokio::time::Instant::now() + within;
    loop {
        match client.info().await {
            Ok(info) => return Ok(info.state),
            Err(error @ VmmError::Unreachable(_)) if tokio::time::Instant::now() < deadline => {
                log::trace!("not yet: {error}");
                tokio::time::sleep(PROBE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

impl Requests {
    /// Configures the VMM.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn configure(&self, client: &VmmClient) -> Result<(), VmmError> {
        for (path, body) in &self.0 {
            client.put(path, body).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the jailer is started with, and the VMM is asked for, of a VM with an interface.
    fn launched(vhost_net: bool) -> (String, Vec<(String, Value)>) {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said");
        let null = || File::options().read(true).write(true).open("/dev/null").unwrap();
        let nets = vec![NetPart { id: "eth0".into(), mac: "02:00:00:00:00:01".into(), tap: null().into() }];
        let parts = Parts {
            vcpus: 1,
            memory_mib: 64,
            kernel: null(),
            initrd: None,
            kernel_args: String::new(),
            disks: Vec::new(),
            nets,
        };
        let cgroup = Cgroup::default();
        let place = Place {
            jailer: "/bin/echo".as_ref(),
            vmm: "/vmm".as_ref(),
            jails: dir.path(),
            id: "vm-1",
            uid: 7,
            cgroup: &cgroup,
            vhost_net,
        };
        let ends = VmmEnds { stdin: null(), stdout: File::create(&said).unwrap() };
        let (mut child, requests) = spawn(&place, parts, ends, null()).unwrap();
        assert!(child.wait().unwrap().success());
        (std::fs::read_to_string(said).unwrap(), requests.0)
    }

    #[test]
    fn the_jail_has_vhost_net_and_the_vmm_is_asked_for_it_only_where_the_host_allows_it() {
        for vhost_net in [false, true] {
            let (words, requests) = launched(vhost_net);
            assert_eq!(words.split(" -- ").next().unwrap().contains(" --vhost-net"), vhost_net, "{words}");
            let interface = requests.iter().find(|(path, _)| path == "/network-interfaces/eth0").unwrap();
            assert_eq!(interface.1["vhost"] == true, vhost_net, "{interface:?}");
        }
    }
}
