//! Arguments of what is done with images, volumes, networks and tenants.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;
use ipnet::{Ipv4Net, Ipv6Net};

use super::values::{CLASSES, Limit, Mib, MibLimit, ROLES, Which, one_of};
use super::{Sure, Waiting};
use crate::agent::model::{EgressClass, Name, Role};
use crate::cli::complete;

/// `yun image`.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// List images
    Ls,
    /// Show an image
    Show(ImageName),
    /// Take an image in from files of this server
    #[command(
        after_long_help = "Examples:\n  yun image import debian --kernel vmlinuz --initrd initrd.img --rootfs root.ext4 \
        --kernel-args 'console=ttyS0 root=/dev/vda'"
    )]
    Import(ImageImport),
    /// Hash an image's files again
    Verify {
        #[allow(missing_docs)]
        #[command(flatten)]
        image: ImageName,
        #[allow(missing_docs)]
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Remove an image that no VM uses
    Rm {
        #[allow(missing_docs)]
        #[command(flatten)]
        image: ImageName,
        #[allow(missing_docs)]
        #[command(flatten)]
        sure: Sure,
    },
}

/// Which image.
#[derive(Debug, Args)]
pub struct ImageName {
    /// Its name or id
    #[arg(add = ArgValueCandidates::new(complete::images))]
    pub image: String,
}

/// `yun image import`.
#[derive(Debug, Args)]
pub struct ImageImport {
    /// Its name, which no other image has
    pub name: Name,
    /// The kernel: ELF or bzImage
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// The initrd
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The root file system
    #[arg(long, value_name = "FILE")]
    pub rootfs: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub kernel_args: String,
    /// Tell the guest its addresses on the kernel's command line (ip=) too
    #[arg(long)]
    pub ip_arg: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub waiting: Waiting,
}

/// `yun volume`.
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// List volumes
    Ls,
    /// Show a volume
    Show(VolumeName),
    /// Make a volume
    #[command(after_long_help = "Examples:\n  yun volume create acme/data --size 10G\n  \
        yun volume create acme/root --from-image debian --size 4G")]
    Create(VolumeCreate),
    /// Make a volume larger, also while a VM uses it
    Resize {
        #[allow(missing_docs)]
        #[command(flatten)]
        volume: VolumeName,
        /// Its new size: 512M, 20G
        size: Mib,
        #[allow(missing_docs)]
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Make a volume that begins as a copy of another
    Copy {
        /// The one that is copied; no running VM writes to it
        #[arg(add = ArgValueCandidates::new(complete::volumes))]
        from: Which,
        /// The new one, of the same tenant
        to: Name,
        /// Its size, if it is to be larger
        #[arg(long)]
        size: Option<Mib>,
        #[allow(missing_docs)]
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Put a volume among a VM's disks, also while it runs
    Attach {
        #[allow(missing_docs)]
        #[command(flatten)]
        volume: VolumeName,
        /// The VM, of the same tenant
        vm: Name,
        /// The guest may only read it
        #[arg(long)]
        read_only: bool,
        #[allow(missing_docs)]
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Take a volume from a VM's disks; a guest that runs has to let go of it
    Detach {
        #[allow(missing_docs)]
        #[command(flatten)]
        volume: VolumeName,
        /// The VM, of the same tenant
        vm: Name,
        #[allow(missing_docs)]
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Remove a volume, and what is on it
    Rm {
        #[allow(missing_docs)]
        #[command(flatten)]
        volume: VolumeName,
        #[allow(missing_docs)]
        #[command(flatten)]
        sure: Sure,
    },
}

/// Which volume.
#[derive(Debug, Args)]
pub struct VolumeName {
    /// The volume: tenant/name, or name
    #[arg(add = ArgValueCandidates::new(complete::volumes))]
    pub volume: Which,
}

/// `yun volume create`.
#[derive(Debug, Args)]
pub struct VolumeCreate {
    /// Its name: tenant/name, or name
    pub volume: Which,
    /// Its size: 512M, 10G; that of what it is a copy of, if it is missing
    #[arg(long, required_unless_present_any = ["from_image", "from_volume"])]
    pub size: Option<Mib>,
    /// Begin as the root file system of this image
    #[arg(long, value_name = "IMAGE", conflicts_with = "from_volume",
        add = ArgValueCandidates::new(complete::images))]
    pub from_image: Option<String>,
    /// Begin as a copy of this volume of the same tenant
    #[arg(long, value_name = "VOLUME")]
    pub from_volume: Option<Name>,
    /// Take its room on the disk now
    #[arg(long)]
    pub preallocate: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub waiting: Waiting,
}

/// `yun net`.
#[derive(Debug, Subcommand)]
pub enum Net {
    /// List subnets
    Ls,
    /// Make a subnet
    #[command(after_long_help = "Examples:\n  yun net create acme/lan --ipv4 10.1.0.0/24 --ipv6 fd00:1::/64")]
    Create {
        /// Its name: tenant/name, or name
        subnet: Which,
        /// Its IPv4 prefix, /30 or shorter
        #[arg(long, value_name = "PREFIX", required_unless_present = "ipv6")]
        ipv4: Option<Ipv4Net>,
        /// Its IPv6 prefix, /120 or shorter
        #[arg(long, value_name = "PREFIX")]
        ipv6: Option<Ipv6Net>,
    },
    /// Remove a subnet that no interface is in
    Rm {
        /// Which: tenant/name, or name
        subnet: Which,
        #[allow(missing_docs)]
        #[command(flatten)]
        sure: Sure,
    },
    /// Change where an interface's packets may go, at once
    #[command(after_long_help = "Connections that the new class forbids end.\n\n\
        Examples:\n  yun net class acme/web eth0 isolated")]
    Class {
        /// Which VM
        #[arg(add = ArgValueCandidates::new(complete::vms))]
        vm: Which,
        /// Which of its interfaces
        interface: Name,
        /// Where its packets may go
        #[arg(value_parser = one_of::<EgressClass>(CLASSES))]
        class: EgressClass,
    },
    /// The lists of prefixes that egress classes go by
    #[command(subcommand)]
    List(NetList),
    /// Sign a list of prefixes, without an agent
    #[command(
        after_long_help = "Examples:\n  yun net sign --list domestic --version 7 --key zone.key prefixes.txt -o domestic.json"
    )]
    Sign(NetSign),
}

/// `yun net list`.
#[derive(Debug, Subcommand)]
pub enum NetList {
    /// Show the lists in force
    Show,
    /// Put a signed list in force; a bad one leaves the present one in force
    Load {
        /// Which list
        #[arg(value_parser = ["domestic", "denied"])]
        list: String,
        /// The signed list; - is stdin
        file: PathBuf,
    },
}

/// `yun net sign`.
#[derive(Debug, Args)]
pub struct NetSign {
    /// Which list it is
    #[arg(long, value_parser = ["domestic", "denied"])]
    pub list: String,
    /// Its version; only a newer one replaces one in force
    #[arg(long)]
    pub version: u64,
    /// The file of the secret key: 64 hexadecimal digits. One that is not there is made, for its owner only
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Where the signed list goes; stdout if it is missing
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The prefixes, one a line; - is stdin
    pub prefixes: PathBuf,
}

/// `yun tenant`.
#[derive(Debug, Subcommand)]
pub enum Tenant {
    /// List tenants
    Ls,
    /// Show a tenant
    Show(TenantName),
    /// Make a tenant, or set an existing one's limits
    #[command(
        visible_alias = "set",
        after_long_help = "Limits that are not given stay as they are.\n\nExamples:\n  yun tenant create acme --vms 20 --memory 64G --egress domestic"
    )]
    Create {
        #[allow(missing_docs)]
        #[command(flatten)]
        tenant: TenantName,
        #[allow(missing_docs)]
        #[command(flatten)]
        quota: QuotaFlags,
        /// The widest egress class that its interfaces may have; isolated if it was never said
        #[arg(long, value_parser = one_of::<EgressClass>(CLASSES))]
        egress: Option<EgressClass>,
    },
    /// Remove a tenant that has nothing any more
    Rm {
        #[allow(missing_docs)]
        #[command(flatten)]
        tenant: TenantName,
        #[allow(missing_docs)]
        #[command(flatten)]
        sure: Sure,
    },
    /// Let a user or group of this server use a tenant
    #[command(after_long_help = "Examples:\n  yun tenant grant acme --group acme-ops --role write")]
    Grant {
        #[allow(missing_docs)]
        #[command(flatten)]
        tenant: TenantName,
        #[allow(missing_docs)]
        #[command(flatten)]
        whom: Whom,
        /// To look, or to change too
        #[arg(long, value_parser = one_of::<Role>(ROLES), default_value = "read")]
        role: Role,
    },
    /// Take that away from them
    Revoke {
        #[allow(missing_docs)]
        #[command(flatten)]
        tenant: TenantName,
        #[allow(missing_docs)]
        #[command(flatten)]
        whom: Whom,
    },
    /// Show what a tenant uses of what it may, or set what it may
    Quota {
        #[allow(missing_docs)]
        #[command(flatten)]
        tenant: TenantName,
        #[allow(missing_docs)]
        #[command(flatten)]
        quota: QuotaFlags,
    },
}

/// Which tenant.
#[derive(Debug, Args)]
pub struct TenantName {
    /// The tenant
    #[arg(add = ArgValueCandidates::new(complete::tenants))]
    pub name: Name,
}

/// A user or a group.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Whom {
    /// A user, by name or number
    #[arg(long)]
    pub user: Option<String>,
    /// A group, by name or number
    #[arg(long)]
    pub group: Option<String>,
}

/// Limits of a tenant.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct QuotaFlags {
    /// VMs, whether they run or not; none takes the limit away
    #[arg(long, value_name = "N|none")]
    pub vms: Option<Limit>,
    /// vCPUs of its VMs
    #[arg(long, value_name = "N|none")]
    pub vcpus: Option<Limit>,
    /// Memory of its VMs: 64G
    #[arg(long, value_name = "SIZE|none")]
    pub memory: Option<MibLimit>,
    /// Size of its volumes: 1T
    #[arg(long, value_name = "SIZE|none")]
    pub disk: Option<MibLimit>,
    /// Interfaces of its VMs
    #[arg(long, value_name = "N|none")]
    pub interfaces: Option<Limit>,
}
