//! What was configured before the start, and the host files opened for it.
//!
//! Files and TAP devices are opened when they are named, so that a wrong path is refused then and not at the start.
//! A request either takes effect whole or leaves everything as it was.

use std::io;
use std::num::NonZeroU16;

use super::groups::Groups;
use super::{BootSourceError, Configure, Denial, DriveError, NetError, Outcome, Unplug, VsockError};
use crate::machine::plug::Which;
use crate::spec::{
    BootSource, Drive, DrivePatch, DriveView, Entropy, MachineConfig, NetworkInterface,
    NetworkInterfacePatch, RateLimiter, Serial, TapSource, VmConfig, Vsock,
};

/// The host, as far as configuring a microVM needs it.
///
/// The handles stay in [`VmResources`] until the start; they are dropped when their resource is replaced.
pub trait HostFiles {
    /// An open kernel image.
    type Kernel;
    /// An open initrd.
    type Initrd;
    /// An open (and locked) drive image.
    type Drive;
    /// An open TAP device.
    type Tap;
    /// The sockets on which the host's side of a socket device listens.
    type Vsock;

    /// Opens a kernel image.
    ///
    /// # Errors
    /// What the host says; its text follows Firecracker's in the refusal.
    fn open_kernel(&mut self, path: &str) -> io::Result<Self::Kernel>;

    /// Opens an initrd.
    ///
    /// # Errors
    /// As above.
    fn open_initrd(&mut self, path: &str) -> io::Result<Self::Initrd>;

    /// Opens a drive image at `path`, for use as `spec` says. `replacing` is the handle that will be dropped if this succeeds: a
    /// lock that it holds on the same image is no conflict.
    ///
    /// # Errors
    /// As above.
    fn open_drive(
        &mut self,
        path: &str,
        spec: &Drive,
        replacing: Option<&Self::Drive>,
    ) -> io::Result<Self::Drive>;

    /// Opens a TAP device with `queues` queues, or takes one over. `replacing` is the handle that will be dropped if this succeeds: that it
    /// holds the same device is no conflict.
    ///
    /// # Errors
    /// As above.
    fn open_tap(
        &mut self,
        source: TapSource<'_>,
        queues: NonZeroU16,
        replacing: Option<&Self::Tap>,
    ) -> io::Result<Self::Tap>;

    /// Whether there is vhost-net. It is opened when the machine is built, which has its own each time.
    ///
    /// # Errors
    /// As above.
    fn find_vhost(&mut self) -> io::Result<()>;

    /// Listens at `path` for those who want to talk to the guest. `replacing` is the handle that will be dropped if this
    /// succeeds: that it listens there is no conflict.
    ///
    /// # Errors
    /// As above.
    fn open_vsock(&mut self, path: &str, replacing: Option<&Self::Vsock>) -> io::Result<Self::Vsock>;
}

/// The boot source and its open files.
pub struct BootEntry<H: HostFiles> {
    /// As asked for.
    pub spec: BootSource,
    /// The kernel.
    pub kernel: H::Kernel,
    /// The initrd, if there is one.
    pub initrd: Option<H::Initrd>,
}

/// A drive and its open image.
pub struct DriveEntry<H: HostFiles> {
    /// As asked for; kept up to date by `PATCH`.
    pub spec: Drive,
    /// The image.
    pub file: H::Drive,
}

/// A network interface and its open TAP device.
pub struct NetEntry<H: HostFiles> {
    /// As asked for; kept up to date by `PATCH`.
    pub spec: NetworkInterface,
    /// The TAP device.
    pub tap: H::Tap,
}

/// The socket device and the sockets of its host's side.
pub struct VsockEntry<H: HostFiles> {
    /// As asked for.
    pub spec: Vsock,
    /// Where it listens.
    pub sockets: H::Vsock,
}

/// A change to a drive of a started microVM, ready to be made.
pub struct DriveChange<'a, H: HostFiles> {
    /// The drive as it is, and the handle from before the start.
    pub drive: &'a DriveEntry<H>,
    /// Its place in [`VmResources::drives`].
    pub index: usize,
    /// The image to use from now on, if it changes.
    pub file: Option<&'a H::Drive>,
    /// The limits to use from now on.
    pub limiter: Option<RateLimiter>,
}

/// Everything configured so far.
pub struct VmResources<H: HostFiles> {
    machine: MachineConfig,
    boot: Option<BootEntry<H>>,
    drives: Vec<DriveEntry<H>>,
    nets: Vec<NetEntry<H>>,
    entropy: Option<Entropy>,
    vsock: Option<VsockEntry<H>>,
    serial: Serial,
    pub(super) groups: Groups,
}

impl<H: HostFiles> Default for VmResources<H> {
    fn default() -> Self {
        Self {
            machine: MachineConfig::default(),
            boot: None,
            drives: Vec::new(),
            nets: Vec::new(),
            entropy: None,
            vsock: None,
            serial: Serial::default(),
            groups: Groups::default(),
        }
    }
}

impl<H: HostFiles> VmResources<H> {
    /// vCPUs and memory.
    pub fn machine(&self) -> &MachineConfig {
        &self.machine
    }

    /// What the guest boots.
    ///
    /// # Errors
    /// The refusal of a start without a kernel.
    pub fn boot(&self) -> Result<&BootEntry<H>, Denial> {
        self.boot.as_ref().ok_or_else(Denial::no_kernel)
    }

    /// The drives, in the order in which the guest finds them: the root device, if there is one, first.
    pub fn drives(&self) -> &[DriveEntry<H>] {
        &self.drives
    }

    /// The network interfaces, in the order in which the guest finds them.
    pub fn nets(&self) -> &[NetEntry<H>] {
        &self.nets
    }

    /// The random number device.
    pub fn entropy(&self) -> Option<&Entropy> {
        self.entropy.as_ref()
    }

    /// The socket device.
    pub fn vsock(&self) -> Option<&VsockEntry<H>> {
        self.vsock.as_ref()
    }

    /// The serial console.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// What `GET /vm/config` shows.
    pub fn view(&self) -> VmConfig {
        VmConfig {
            drives: self.drives.iter().map(|drive| DriveView::from(&drive.spec)).collect(),
            boot_source: self.boot.as_ref().map(|boot| boot.spec.clone()).unwrap_or_default(),
            machine_config: self.machine.clone(),
            network_interfaces: self.nets.iter().map(|net| net.spec.clone()).collect(),
            entropy: self.entropy,
            vsock: self.vsock.as_ref().map(|vsock| vsock.spec.clone()),
            rate_limiter_groups: self.groups.view(),
            ..VmConfig::default()
        }
    }

    /// Takes up one thing to configure.
    ///
    /// # Errors
    /// [`Denial`]; then nothing has changed.
    pub fn configure(&mut self, host: &mut H, what: Configure) -> Result<Outcome, Denial> {
        match what {
            Configure::BootSource(spec) => self.put_boot_source(host, spec)?,
            Configure::Machine(patch) => self.machine = self.machine.patched(&patch)?,
            Configure::Drive(spec) => self.put_drive(host, spec)?,
            Configure::NetworkInterface(spec) => self.put_net(host, spec)?,
            Configure::Entropy(spec) => {
                self.entropy =
                    Some(Entropy { rate_limiter: spec.rate_limiter.and_then(RateLimiter::effective) });
            }
            Configure::Vsock(spec) => {
                let replacing = self.vsock.as_ref().map(|vsock| &vsock.sockets);
                let sockets = host
                    .open_vsock(&spec.uds_path, replacing)
                    .map_err(|error| VsockError::Bind(error.to_string()))?;
                self.vsock = Some(VsockEntry { spec, sockets });
            }
            Configure::Serial(spec) => self.serial = spec,
            Configure::RateLimiterGroup(id, limits) => self.groups.put(&id, limits)?,
        }
        Ok(Outcome::Done)
    }

    fn put_boot_source(&mut self, host: &mut H, spec: BootSource) -> Result<(), BootSourceError> {
        let kernel = host
            .open_kernel(&spec.kernel_image_path)
            .map_err(|error| BootSourceError::Kernel(error.to_string()))?;
        let initrd = match &spec.initrd_path {
            Some(path) => {
                Some(host.open_initrd(path).map_err(|error| BootSourceError::Initrd(error.to_string()))?)
            }
            None => None,
        };
        if let Some(bad) = spec.boot_args_or_default().chars().find(|c| !(' '..='~').contains(c)) {
            return Err(BootSourceError::CommandLine(format!(
                "it may not contain {bad:?}, only printable ASCII"
            )));
        }
        self.boot = Some(BootEntry { spec, kernel, initrd });
        Ok(())
    }

    /// Adds a drive to a started microVM: opens its image, lets `apply` add the device, and notes it, the last.
    ///
    /// # Errors
    /// [`Denial`], also if `apply` fails, with its text; then nothing has changed here.
    pub fn plug_drive(
        &mut self,
        host: &mut H,
        spec: Drive,
        apply: impl FnOnce(&DriveEntry<H>) -> Result<(), String>,
    ) -> Result<Outcome, Denial> {
        if self.drives.iter().any(|drive| drive.spec.id == spec.id) {
            return Err(DriveError::IdInUse(spec.id).into());
        }
        if spec.root {
            return Err(DriveError::LateRoot.into());
        }
        self.groups.check(spec.group.as_ref()).map_err(DriveError::from)?;
        let file =
            host.open_drive(&spec.path, &spec, None).map_err(|error| DriveError::open(&error, &spec.path))?;
        let entry = DriveEntry { spec, file };
        apply(&entry).map_err(DriveError::Plug)?;
        self.drives.push(entry);
        Ok(Outcome::Done)
    }

    /// Adds a network interface to a started microVM, likewise.
    ///
    /// # Errors
    /// As [`VmResources::plug_drive`].
    pub fn plug_net(
        &mut self,
        host: &mut H,
        spec: NetworkInterface,
        apply: impl FnOnce(&NetEntry<H>) -> Result<(), String>,
    ) -> Result<Outcome, Denial> {
        if self.nets.iter().any(|net| net.spec.iface_id == spec.iface_id) {
            return Err(NetError::IdInUse(spec.iface_id).into());
        }
        let entry = self.open_net(host, spec, None)?;
        apply(&entry).map_err(NetError::Plug)?;
        self.nets.push(entry);
        Ok(Outcome::Done)
    }

    /// The place of a device that is to go among those of its kind.
    ///
    /// # Errors
    /// [`Denial::NoDevice`], [`Denial::RootDevice`].
    pub fn place_of(&self, what: &Unplug) -> Result<Which, Denial> {
        let found = match what {
            Unplug::Drive(id) => self.drives.iter().position(|drive| drive.spec.id == *id).map(Which::Drive),
            Unplug::NetworkInterface(id) => {
                self.nets.iter().position(|net| net.spec.iface_id == *id).map(Which::Net)
            }
        };
        match found {
            None => Err(Denial::NoDevice(what.id().to_owned())),
            Some(Which::Drive(index)) if self.drives[index].spec.root => {
                Err(Denial::RootDevice(what.id().to_owned()))
            }
            Some(which) => Ok(which),
        }
    }

    /// Forgets a device that has gone, and closes its file.
    pub fn remove(&mut self, which: Which) {
        match which {
            Which::Drive(index) => drop(self.drives.remove(index)),
            Which::Net(index) => drop(self.nets.remove(index)),
        }
    }

    fn put_drive(&mut self, host: &mut H, spec: Drive) -> Result<(), DriveError> {
        let place = self.drives.iter().position(|drive| drive.spec.id == spec.id);
        let has_root = self.drives.first().is_some_and(|drive| drive.spec.root);
        if spec.root && has_root && place != Some(0) {
            return Err(DriveError::SecondRoot);
        }
        self.groups.check(spec.group.as_ref())?;
        let replacing = place.map(|index| &self.drives[index].file);
        let file = host
            .open_drive(&spec.path, &spec, replacing)
            .map_err(|error| DriveError::open(&error, &spec.path))?;
        let root = spec.root;
        let entry = DriveEntry { spec, file };
        match place {
            None if root => self.drives.insert(0, entry),
            None => self.drives.push(entry),
            Some(index) => {
                self.drives[index] = entry;
                if root {
                    self.drives.swap(0, index);
                }
            }
        }
        Ok(())
    }

    fn put_net(&mut self, host: &mut H, spec: NetworkInterface) -> Result<(), NetError> {
        let place = self.nets.iter().position(|net| net.spec.iface_id == spec.iface_id);
        let entry = self.open_net(host, spec, place)?;
        match place {
            None => self.nets.push(entry),
            Some(index) => self.nets[index] = entry,
        }
        Ok(())
    }

    /// Opens an interface that is to be in `place`, if one is there.
    fn open_net(
        &self,
        host: &mut H,
        spec: NetworkInterface,
        place: Option<usize>,
    ) -> Result<NetEntry<H>, NetError> {
        let mac_taken =
            |mac| self.nets.iter().any(|n| n.spec.iface_id != spec.iface_id && n.spec.guest_mac == Some(mac));
        if let Some(mac) = spec.guest_mac.filter(|mac| mac_taken(*mac)) {
            return Err(NetError::MacInUse(mac.to_string()));
        }
        self.groups.check(spec.rate_limiter_group.as_ref())?;
        if spec.vhost && spec.rate_limiter_group.is_some() {
            return Err(NetError::VhostInGroup);
        }
        if spec.vhost {
            host.find_vhost().map_err(|error| NetError::Vhost(error.to_string()))?;
        }
        let replacing = place.map(|index| &self.nets[index].tap);
        let tap =
            host.open_tap(spec.tap(), spec.queue_pairs(), replacing).map_err(|error| NetError::OpenTap {
                error: error.to_string(),
                name: match spec.tap() {
                    TapSource::Name(name) => name.to_owned(),
                    TapSource::Fd(fd) => format!("descriptor {fd}"),
                },
            })?;
        Ok(NetEntry { spec, tap })
    }

    /// Changes a drive of a started microVM: opens the new image if one is named, lets `apply` make the change in the
    /// device, and notes it.
    ///
    /// # Errors
    /// [`Denial`], also if `apply` fails, with its text; then nothing has changed here.
    pub fn patch_drive(
        &mut self,
        host: &mut H,
        patch: &DrivePatch,
        apply: impl FnOnce(DriveChange<'_, H>) -> Result<(), String>,
    ) -> Result<Outcome, Denial> {
        let index = self.drives.iter().position(|drive| drive.spec.id == patch.drive_id);
        let index = index.ok_or_else(|| DriveError::PatchUnknown(patch.drive_id.clone()))?;
        if patch.path_on_host.is_none() && patch.rate_limiter.is_none() {
            return Err(DriveError::PatchNothing.into());
        }
        let drive = &self.drives[index];
        let limiter = RateLimiter::merge(drive.spec.limiter, patch.rate_limiter);
        let file = match &patch.path_on_host {
            Some(path) => Some(
                host.open_drive(path, &drive.spec, Some(&drive.file))
                    .map_err(|error| DriveError::patch_open(&error, path))?,
            ),
            None => None,
        };
        apply(DriveChange { drive, index, file: file.as_ref(), limiter }).map_err(DriveError::PatchFailed)?;
        let drive = &mut self.drives[index];
        drive.spec.limiter = limiter;
        if let (Some(file), Some(path)) = (file, &patch.path_on_host) {
            drive.file = file;
            drive.spec.path.clone_from(path);
        }
        Ok(Outcome::Done)
    }

    /// Changes the limits of an interface of a started microVM: `apply` is given its place in [`VmResources::nets`] and
    /// the new limits (receive, send), and makes the change in the device.
    ///
    /// # Errors
    /// [`Denial`], also if `apply` fails, with its text; then nothing has changed here.
    pub fn patch_net(
        &mut self,
        patch: &NetworkInterfacePatch,
        apply: impl FnOnce(usize, Option<RateLimiter>, Option<RateLimiter>) -> Result<(), String>,
    ) -> Result<Outcome, Denial> {
        let index = self.nets.iter().position(|net| net.spec.iface_id == patch.iface_id);
        let index = index.ok_or_else(|| NetError::PatchUnknown(patch.iface_id.clone()))?;
        let spec = &mut self.nets[index].spec;
        let rx = RateLimiter::merge(spec.rx_rate_limiter, patch.rx_rate_limiter);
        let tx = RateLimiter::merge(spec.tx_rate_limiter, patch.tx_rate_limiter);
        apply(index, rx, tx).map_err(NetError::PatchFailed)?;
        (spec.rx_rate_limiter, spec.tx_rate_limiter) = (rx, tx);
        Ok(Outcome::Done)
    }

    /// Changes the limits of the random number device of a started microVM; `apply` is given what they are now.
    ///
    /// # Errors
    /// [`Denial::Entropy`] if there is no such device.
    pub fn patch_entropy(
        &mut self,
        change: RateLimiter,
        apply: impl FnOnce(Option<RateLimiter>),
    ) -> Result<Outcome, Denial> {
        let none = "this microVM has none: it gets one by PUT /entropy before the start.";
        let entropy = self.entropy.as_mut().ok_or_else(|| Denial::Entropy(none.to_owned()))?;
        entropy.rate_limiter = RateLimiter::merge(entropy.rate_limiter, Some(change));
        apply(entropy.rate_limiter);
        Ok(Outcome::Done)
    }

    /// The same of the socket device.
    ///
    /// # Errors
    /// [`VsockError::Absent`] if there is no such device.
    pub fn patch_vsock(
        &mut self,
        change: RateLimiter,
        apply: impl FnOnce(Option<RateLimiter>),
    ) -> Result<Outcome, Denial> {
        let spec = &mut self.vsock.as_mut().ok_or(VsockError::Absent)?.spec;
        spec.rate_limiter = RateLimiter::merge(spec.rate_limiter, Some(change));
        apply(spec.rate_limiter);
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
