//! Images: kernel, initrd and root file system, named by their content.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Name;

/// Body of `POST /v1/images`. Paths are of the host, and absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageImport {
    /// Its name, which no other image has.
    pub name: Name,
    /// The kernel's file: ELF or bzImage.
    pub kernel: String,
    /// The initrd's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub initrd: Option<String>,
    /// The root file system's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rootfs: Option<String>,
    /// The kernel's command line.
    #[serde(default)]
    pub kernel_args: String,
    /// Whether the guest learns its addresses from the kernel's command line (`ip=`) too.
    #[serde(default)]
    pub wants_ip_arg: bool,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// `sha256:` and 64 hexadecimal digits: the digest of its manifest.
    pub id: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<Name>,
    /// Digest of its kernel.
    pub kernel: String,
    /// Digest of its initrd.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub initrd: Option<String>,
    /// Digest of its root file system.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rootfs: Option<String>,
    /// The kernel's command line.
    pub kernel_args: String,
    /// Whether the guest gets `ip=`.
    pub wants_ip_arg: bool,
    /// Size of its files, in bytes.
    pub size_bytes: u64,
    /// VMs that name it, over all tenants.
    pub used_by: u64,
    /// When it was taken in.
    pub created_at: String,
}
