//! Why a command was not carried out: the texts that clients see as `fault_message`.
//!
//! They are Firecracker's where it has one, because clients match on them.

use std::io;

use crate::spec::{DriveSpecError, MachineConfigError, NetSpecError, VsockSpecError};

/// Why a command was not carried out. Its text is the `fault_message`; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The command needs a microVM that was started.
    #[error("The requested operation is not supported before starting the microVM.")]
    BeforeStart,
    /// The command is about what is configured before the start.
    #[error("The requested operation is not supported after starting the microVM.")]
    AfterStart,
    /// A device is to come or go while the guest runs, and there is no bus for that.
    #[error(
        "The requested operation is not supported after starting the microVM. PCI is not enabled: with --enable-pci \
         devices come and go while the guest runs."
    )]
    NoPci,
    /// A device that is to go is not there.
    #[error("Device not found: {0}")]
    NoDevice(String),
    /// The root device is to go.
    #[error("Cannot unplug root device: {0}")]
    RootDevice(String),
    /// The guest keeps a device that is to go.
    #[error(
        "The guest has not let go of device {id} within {seconds} s: it keeps it. Have the guest stop using it, then try again."
    )]
    Kept {
        /// Which.
        id: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The guest is no more; the process is about to end.
    #[error("The microVM has ended.")]
    Ended,
    /// Whoever was to answer did not.
    #[error("The microVM did not answer: it is gone.")]
    Gone,
    /// `PUT /boot-source`.
    #[error("Boot source error: {0}")]
    BootSource(#[from] BootSourceError),
    /// `/machine-config`.
    #[error("Machine config error: {0}")]
    MachineConfig(#[from] MachineConfigError),
    /// `/drives`.
    #[error("Drive config error: {0}")]
    Drive(#[from] DriveError),
    /// `/network-interfaces`.
    #[error("Network config error: {0}")]
    Net(#[from] NetError),
    /// `/rate-limiter-groups`.
    #[error("Rate limiter group error: {0}")]
    Group(#[from] GroupError),
    /// `/entropy`.
    #[error("Entropy device error: {0}")]
    Entropy(String),
    /// `/vsock`.
    #[error("Vsock config error: {0}")]
    Vsock(#[from] VsockError),
    /// `PUT /logger`.
    #[error("Logger error: {0}")]
    Logger(String),
    /// `PUT /metrics`.
    #[error("Metrics error: {0}")]
    Metrics(String),
    /// `InstanceStart`. The configuration is kept, and may be changed and tried again.
    #[error("Start microvm error: {0}")]
    Start(String),
    /// Anything else that failed in a started microVM.
    #[error("Internal VMM error: {0}")]
    Internal(String),
}

impl Denial {
    /// `InstanceStart` without a boot source.
    pub fn no_kernel() -> Self {
        Self::Start("Cannot start microvm without kernel configuration.".to_owned())
    }
}

/// Why a boot source was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootSourceError {
    /// The kernel can't be opened.
    #[error("The kernel file cannot be opened: {0}")]
    Kernel(String),
    /// The initrd can't be opened.
    #[error("The initrd file cannot be opened due to invalid path or invalid permissions. {0}")]
    Initrd(String),
    /// The command line can't be passed on.
    #[error("The kernel command line is invalid: {0}")]
    CommandLine(String),
}

/// Why a group of rate limits was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// There is no such group.
    #[error("There is no rate limiter group {0:?}: make it with PUT /rate-limiter-groups/{0} first.")]
    Unknown(String),
    /// A group that is to go has a device in it.
    #[error(
        "The rate limiter group {id:?} is in use by {device:?}: only one that no device names can be removed."
    )]
    InUse {
        /// The group.
        id: String,
        /// A drive or an interface.
        device: String,
    },
    /// One too many.
    #[error("There can be at most {0} rate limiter groups.")]
    TooMany(usize),
}

/// Why a drive was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    /// The description can't be met.
    #[error("Unable to create the virtio block device: {0}")]
    Spec(#[from] DriveSpecError),
    /// The image can't be opened.
    #[error(
        "Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: {error} {path}"
    )]
    Open {
        /// What the host said.
        error: String,
        /// The image.
        path: String,
    },
    /// Its `rate_limiter_group`.
    #[error("Unable to create the virtio block device: rate_limiter_group: {0}")]
    Group(#[from] GroupError),
    /// A drive that is to come while the guest runs is there already.
    #[error("Device ID in use: {0}")]
    IdInUse(String),
    /// A drive that is to come while the guest runs can't be what it has booted from.
    #[error("is_root_device: a root device can only be there from the start; accepted is false")]
    LateRoot,
    /// The drive can't come while the guest runs.
    #[error("Unable to hot-plug the block device: {0}")]
    Plug(String),
    /// Another drive is the root device.
    #[error("A root block device already exists!")]
    SecondRoot,
    /// A change at run time names another image that can't be opened.
    #[error(
        "Unable to patch the block device: Device manager error: Virtio backend error: Error manipulating the backing \
         file: {error} {path} Please verify the request arguments."
    )]
    PatchOpen {
        /// What the host said.
        error: String,
        /// The image.
        path: String,
    },
    /// A change at run time that changes nothing.
    #[error(
        "Unable to patch the block device: Device manager error: Running method expected different backend. \
         Please verify the request arguments."
    )]
    PatchNothing,
    /// A change at run time of a drive that isn't there.
    #[error(
        "Unable to patch the block device: Device manager error: Device not found: {0}. \
         Please verify the request arguments."
    )]
    PatchUnknown(String),
    /// The device did not take the change.
    #[error(
        "Unable to patch the block device: Device manager error: {0} Please verify the request arguments."
    )]
    PatchFailed(String),
}

impl DriveError {
    pub(super) fn open(error: &io::Error, path: &str) -> Self {
        Self::Open { error: error.to_string(), path: path.to_owned() }
    }

    pub(super) fn patch_open(error: &io::Error, path: &str) -> Self {
        Self::PatchOpen { error: error.to_string(), path: path.to_owned() }
    }
}

/// Why a network interface was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The description can't be met.
    #[error("Could not create the network device: {0}")]
    Spec(#[from] NetSpecError),
    /// The TAP device can't be opened.
    #[error(
        "Could not create the network device: Open tap device failed: Error while creating ifreq structure: {error}. \
         Invalid TUN/TAP Backend provided by {name}. Check our documentation on setting up the network devices."
    )]
    OpenTap {
        /// What the host said.
        error: String,
        /// The device.
        name: String,
    },
    /// Its `rate_limiter_group`.
    #[error("Could not create the network device: rate_limiter_group: {0}")]
    Group(#[from] GroupError),
    /// The kernel is to move its frames, and can't.
    #[error("Could not create the network device: vhost: {0}. Without it only `vhost: false` is accepted.")]
    Vhost(String),
    /// The kernel is to move its frames, and others' limits are to hold for them.
    #[error(
        "Could not create the network device: vhost: it can't keep the limits of a rate_limiter_group; leave out one of the two."
    )]
    VhostInGroup,
    /// An interface that is to come while the guest runs is there already.
    #[error("Device ID in use: {0}")]
    IdInUse(String),
    /// The interface can't come while the guest runs.
    #[error("Unable to hot-plug the network device: {0}")]
    Plug(String),
    /// Another interface has the address.
    #[error("The MAC address is already in use: {0}")]
    MacInUse(String),
    /// A change at run time of an interface that isn't there.
    #[error("Unable to update the net device: Device manager error: Device not found: {0}")]
    PatchUnknown(String),
    /// The device did not take the change.
    #[error("Unable to update the net device: {0}")]
    PatchFailed(String),
}

/// Why a socket device was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VsockError {
    /// The description can't be met.
    #[error("Cannot create vsock device: {0}")]
    Spec(#[from] VsockSpecError),
    /// The host's side can't listen.
    #[error("Cannot create backend for vsock device: Error binding to the host-side Unix socket: {0}")]
    Bind(String),
    /// It is to change, and there is none.
    #[error("This microVM has no vsock device: it gets one by PUT /vsock before the start.")]
    Absent,
}
