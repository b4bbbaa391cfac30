//! The one ioctl of vhost devices (linux/vhost.h) that the library has not, for [`crate::host::vhost_net`]: here because it is `unsafe`
//! to make. On a file that is no vhost device it answers ENOTTY.

use std::os::fd::AsRawFd;

use ioctls::vhost_vring_state;

#[allow(missing_docs)] // the macro makes the function public, this module does not
mod ioctls {
    /// `struct vhost_vring_state`.
    #[repr(C)]
    pub struct vhost_vring_state {
        pub index: libc::c_uint,
        pub num: libc::c_uint,
    }

    nix::ioctl_write_ptr!(vhost_set_vring_busyloop_timeout, 0xaf, 0x23, vhost_vring_state);
}

/// Has ring `index` looked at for `us` microseconds before its kernel thread sleeps (VHOST_SET_VRING_BUSYLOOP_TIMEOUT).
///
/// # Errors
/// What the kernel says.
pub fn set_busyloop_timeout(device: &impl AsRawFd, index: u32, us: u32) -> nix::Result<()> {
    let state = vhost_vring_state { index, num: us };
    // SAFETY: the kernel reads one vhost_vring_state, which `state` is, and outlives the call.
    unsafe { ioctls::vhost_set_vring_busyloop_timeout(device.as_raw_fd(), &raw const state) }.map(drop)
}
