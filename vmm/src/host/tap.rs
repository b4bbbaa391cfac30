//! TAP devices (Linux `Documentation/networking/tuntap.rst`): opened by name, with one queue or several, or taken over as a
//! descriptor.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::mem::VolatileSlice;
use devices::virtio::net::{FrameIo, Offloads};

use crate::kvm::tun;
use crate::mem::vectored;

/// `struct virtio_net_hdr_mrg_rxbuf`, which is `virtio_net_hdr_v1`: what precedes each frame, in bytes.
const VNET_HEADER: libc::c_int = 12;

/// A TAP device with a vnet header, non-blocking, of one queue or several. Clones share the descriptors.
///
/// As a [`FrameIo`] it is its first queue; [`Tap::into_queues`] gives all of them.
#[derive(Debug, Clone)]
pub struct Tap {
    first: Arc<Queue>,
    /// Its queues beyond the first.
    more: Vec<Arc<Queue>>,
    name: Option<Arc<str>>,
}

/// An open queue of a TAP device.
#[derive(Debug)]
struct Queue {
    file: File,
    /// Whether frames come to it. Kept here, as it outlives the machines that use the queue.
    attached: AtomicBool,
}

impl Queue {
    /// One that was just opened.
    fn new(file: File) -> io::Result<Arc<Self>> {
        tun::set_vnet_header_len(&file, VNET_HEADER)?;
        Ok(Arc::new(Self { file, attached: AtomicBool::new(true) }))
    }
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

/// Opens the file that becomes a queue of a TAP device.
fn open_tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// Opens `count` queues of the TAP device `name`, which is made for several.
fn open_several(name: &str, count: usize) -> io::Result<Vec<Arc<Queue>>> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let several = request(name, flags)?;
    let open = |_| {
        let file = open_tun()?;
        tun::set_interface(&file, &several).map_err(|error| match error {
            nix::Error::EINVAL => io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{name} was made for one queue, num_queue_pairs asks for more: give 1, or make it with \
                     `ip tuntap add {name} mode tap multi_queue`"
                ),
            ),
            other => other.into(),
        })?;
        Queue::new(file)
    };
    (0..count).map(open).collect()
}

impl Tap {
    /// Opens the TAP device `name`; it is created if it does not exist and this process may.
    ///
    /// # Errors
    /// What the kernel said: EBUSY if another process has it, EPERM, ENODEV without the tun module, ...
    pub fn open(name: &str) -> io::Result<Self> {
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let file = open_tun()?;
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

    /// Opens `queues` queues of the TAP device `name`; for one as [`Tap::open`], for several it has to be made for several.
    ///
    /// # Errors
    /// As above; also if it was made for one.
    pub fn open_queues(name: &str, queues: NonZeroU16) -> io::Result<Self> {
        match queues.get() {
            1 => Self::open(name),
            count => {
                let mut queues = open_several(name, count.into())?.into_iter();
                let first = queues.next().ok_or(io::ErrorKind::InvalidInput)?;
                Ok(Self { first, more: queues.collect(), name: Some(Arc::from(name)) })
            }
        }
    }

    /// The same device, if it was opened by name, with `queues` queues: those it has, and new ones if these are too few.
    ///
    /// # Errors
    /// As above.
    pub fn with_queues(&self, queues: NonZeroU16) -> io::Result<Self> {
        let mut tap = self.clone();
        let more = usize::from(queues.get() - 1);
        tap.more.truncate(more);
        if let Some(name) = self.name.as_deref().filter(|_| tap.more.len() < more) {
            tap.more.extend(open_several(name, more - tap.more.len())?);
        }
        Ok(tap)
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
        Ok(Self { first: Queue::new(file)?, more: Vec::new(), name: name.map(Arc::from) })
    }

    /// The name it was opened by.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Its queues, each by itself; one at least.
    #[must_use]
    pub fn into_queues(mut self) -> Vec<Self> {
        let more = std::mem::take(&mut self.more);
        let queue = |first| Self { first, more: Vec::new(), name: self.name.clone() };
        let more: Vec<_> = more.into_iter().map(queue).collect();
        std::iter::once(self).chain(more).collect()
    }

    /// Its descriptor, for another process to take over.
    ///
    /// # Errors
    /// If clones share it and no more descriptors can be had.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        Arc::try_unwrap(self.first)
            .map(|queue| queue.file)
            .or_else(|shared| shared.file.try_clone())
            .map(OwnedFd::from)
    }

    /// Its file, for the kernel to take frames from.
    pub(super) fn file(&self) -> &File {
        &self.first.file
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.first.file.as_fd()
    }
}

impl FrameIo for Tap {
    fn fd(&self) -> RawFd {
        self.first.file.as_raw_fd()
    }

    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectored::writev(Tap::fd(self), frame)
    }

    fn recv(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectored::readv(Tap::fd(self), into)
    }

    /// Tried out: Linux 6.2 and newer know it, and nothing else tells.
    fn takes_uso(&mut self) -> bool {
        let uso = Offloads { csum: true, uso: true, ..Offloads::default() };
        let takes = self.set_offloads(uso).is_ok();
        if takes && let Err(error) = self.set_offloads(Offloads::default()) {
            log::warn!("the offloads of a TAP device can't be taken back before its guest comes: {error}");
        }
        takes
    }

    fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        if self.first.attached.load(Ordering::Acquire) != attached {
            tun::set_attached(&self.first.file, attached)?;
            self.first.attached.store(attached, Ordering::Release);
        }
        Ok(())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        const TUN_F_CSUM: libc::c_int = 1;
        const TUN_F_TSO4: libc::c_int = 2;
        const TUN_F_TSO6: libc::c_int = 4;
        const TUN_F_TSO_ECN: libc::c_int = 8;
        const TUN_F_UFO: libc::c_int = 0x10;
        const TUN_F_USO: libc::c_int = 0x20 | 0x40; // TUN_F_USO4, TUN_F_USO6
        let bit = |on: bool, flag| if on { flag } else { 0 };
        let flags = bit(offloads.csum, TUN_F_CSUM)
            | bit(offloads.tso4, TUN_F_TSO4)
            | bit(offloads.tso6, TUN_F_TSO6)
            | bit(offloads.ecn, TUN_F_TSO_ECN)
            | bit(offloads.ufo, TUN_F_UFO)
            | bit(offloads.uso, TUN_F_USO);
        tun::set_offload(&self.first.file, flags)?;
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
