//! TAP devices (Linux `Documentation/networking/tuntap.rst`): opened by name or taken over as a descriptor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use devices::mem::VolatileSlice;
use devices::virtio::net::{FrameIo, Offloads};

use crate::kvm::tun;
use crate::mem::vectored;

/// `struct virtio_net_hdr_mrg_rxbuf`, which is `virtio_net_hdr_v1`: what precedes each frame, in bytes.
const VNET_HEADER: libc::c_int = 12;

/// A TAP device with a vnet header, non-blocking. Clones share the descriptor.
#[derive(Debug, Clone)]
pub struct Tap {
    file: Arc<File>,
    name: Option<Arc<str>>,
}

fn request(name: &str, flags: libc::c_int) -> io::Result<libc::ifreq> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0', ' ', '%']) {
        return Err(invalid("an interface name has 1 to 15 bytes, without '/', '%', space or NUL"));
    }
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let ifru_flags = libc::c_short::try_from(flags).map_err(|_| invalid("flags"))?;
    Ok(libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } })
}

impl Tap {
    /// Opens the TAP device `name`; it is created if it does not exist and this process may.
    ///
    /// # Errors
    /// What the kernel said: EBUSY if another process has it, EPERM, ENODEV without the tun module, ...
    pub fn open(name: &str) -> io::Result<Self> {
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let single = request(name, flags)?;
        let mut result = tun::set_interface(&file, &single);
        if result == Err(nix::Error::EINVAL) {
            // It was made for several queues; one of them will do.
            let multi = request(name, flags | libc::IFF_MULTI_QUEUE)?;
            result = tun::set_interface(&file, &multi);
        }
        result?;
        Self::prepare(file, Some(name))
    }

    /// Takes over an open TAP device.
    ///
    /// # Errors
    /// If it is not a TAP device, or has no vnet header.
    pub fn of(file: File) -> io::Result<Self> {
        let flags = tun::flags(&file)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("not a TAP device: {e}")))?;
        let need = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & need != need {
            let why = "the TAP device must be open with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Self::prepare(file, None)
    }

    fn prepare(file: File, name: Option<&str>) -> io::Result<Self> {
        tun::set_vnet_header_len(&file, VNET_HEADER)?;
        Ok(Self { file: Arc::new(file), name: name.map(Arc::from) })
    }

    /// The name it was opened by.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Its descriptor, for another process to take over.
    ///
    /// # Errors
    /// If clones share it and no more descriptors can be had.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        Arc::try_unwrap(self.file).or_else(|shared| shared.try_clone()).map(OwnedFd::from)
    }

    /// Its file, for the kernel to take frames from.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FrameIo for Tap {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectored::writev(Tap::fd(self), frame)
    }

    fn recv(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectored::readv(Tap::fd(self), into)
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        const TUN_F_CSUM: libc::c_int = 1;
        const TUN_F_TSO4: libc::c_int = 2;
        const TUN_F_TSO6: libc::c_int = 4;
        const TUN_F_TSO_ECN: libc::c_int = 8;
        const TUN_F_UFO: libc::c_int = 0x10;
        let bit = |on: bool, flag| if on { flag } else { 0 };
        let flags = bit(offloads.csum, TUN_F_CSUM)
            | bit(offloads.tso4, TUN_F_TSO4)
            | bit(offloads.tso6, TUN_F_TSO6)
            | bit(offloads.ecn, TUN_F_TSO_ECN)
            | bit(offloads.ufo, TUN_F_UFO);
        tun::set_offload(&self.file, flags)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused_before_the_kernel_is_asked() {
        for name in ["", "sixteen-bytes-ab", "a/b", "a b", "tap%d"] {
            let error = Tap::open(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}: {error}");
        }
    }

    #[test]
    fn a_descriptor_that_is_no_tap_device_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(Tap::of(file).unwrap_err().to_string().starts_with("not a TAP device"));
    }
}
