//! What the guest boots: `PUT /boot-source`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The kernel command line of a boot source that names none; the same as Firecracker's.
pub const DEFAULT_BOOT_ARGS: &str =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// Kernel, initrd and kernel command line. Files are opened when the request is made; in place of a path, `fd:N` is a
/// descriptor that the VMM inherited, `received:N` the one with number N of those sent along with the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// Host path of the kernel: an ELF `vmlinux` or a bzImage.
    pub kernel_image_path: String,
    /// Host path of the initial RAM disk.
    pub initrd_path: Option<String>,
    /// Kernel command line; see the documentation for the default.
    pub boot_args: Option<String>,
}

impl BootSource {
    /// The command line to use: the given one, else [`DEFAULT_BOOT_ARGS`].
    pub fn boot_args_or_default(&self) -> &str {
        self.boot_args.as_deref().unwrap_or(DEFAULT_BOOT_ARGS)
    }
}
