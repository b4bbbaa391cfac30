//! The ioctls of TAP devices (linux/if_tun.h), for [`crate::host::tap`]: here because they are `unsafe` to make. On a file that
//! is no TUN or TAP device each answers an error, ENOTTY or EBADFD.

use std::os::fd::{AsFd, AsRawFd};

#[allow(missing_docs)] // the macros make the functions public, this module does not
mod ioctls {
    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_read_bad!(
        tungetiff,
        nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(tunsetoffload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    nix::ioctl_write_ptr_bad!(
        tunsetqueue,
        nix::request_code_write!(b'T', 217, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_ptr_bad!(
        tunsetvnethdrsz,
        nix::request_code_write!(b'T', 216, size_of::<libc::c_int>()),
        libc::c_int
    );
}

/// Makes an open `/dev/net/tun` the interface that `request` names, with its flags (TUNSETIFF).
///
/// # Errors
/// What the kernel says.
pub fn set_interface(file: &impl AsFd, request: &libc::ifreq) -> nix::Result<()> {
    let mut copy = *request;
    // SAFETY: the kernel reads an ifreq and writes it back, name included; `copy` is one, and outlives the call.
    unsafe { ioctls::tunsetiff(file.as_fd().as_raw_fd(), &raw mut copy) }.map(drop)
}

/// The flags of an interface (TUNGETIFF).
///
/// # Errors
/// What the kernel says.
pub fn flags(file: &impl AsFd) -> nix::Result<libc::c_int> {
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: 0 };
    let mut got = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    // SAFETY: the kernel writes one ifreq, which `got` is.
    unsafe { ioctls::tungetiff(file.as_fd().as_raw_fd(), &raw mut got) }?;
    // SAFETY: any bits are a value of this member, and TUNGETIFF has filled it.
    Ok(libc::c_int::from(unsafe { got.ifr_ifru.ifru_flags }))
}

/// Takes this queue out of an interface that has several, or back into it (TUNSETQUEUE).
///
/// # Errors
/// What the kernel says: EINVAL if it is so already, or the interface has but one.
pub fn set_attached(file: &impl AsFd, attached: bool) -> nix::Result<()> {
    let flags = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    let ifru_flags = libc::c_short::try_from(flags).map_err(|_| nix::Error::EINVAL)?;
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags };
    let request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    // SAFETY: the kernel reads one ifreq, which `request` is, and outlives the call.
    unsafe { ioctls::tunsetqueue(file.as_fd().as_raw_fd(), &raw const request) }.map(drop)
}

/// Sets the length of the header before each frame, in bytes (TUNSETVNETHDRSZ).
///
/// # Errors
/// What the kernel says.
pub fn set_vnet_header_len(file: &impl AsFd, len: libc::c_int) -> nix::Result<()> {
    // SAFETY: the kernel reads an int, which outlives the call.
    unsafe { ioctls::tunsetvnethdrsz(file.as_fd().as_raw_fd(), &raw const len) }.map(drop)
}

/// Says what the reader of frames takes (TUNSETOFFLOAD, `TUN_F_*`).
///
/// # Errors
/// What the kernel says.
pub fn set_offload(file: &impl AsFd, flags: libc::c_int) -> nix::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    unsafe { ioctls::tunsetoffload(file.as_fd().as_raw_fd(), flags) }.map(drop)
}
