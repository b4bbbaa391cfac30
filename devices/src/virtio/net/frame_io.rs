//! The wire behind a network card, as the device sees it.

use std::io;
use std::os::fd::RawFd;

use crate::mem::VolatileSlice;

/// Most slices a frame is ever scattered over: what one `readv` or `writev` takes (IOV_MAX).
pub const SLICES_MAX: usize = 1024;

/// What the guest is ready to receive: the TUN_F_ flags of a TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Frames whose checksum is yet to be completed.
    pub csum: bool,
    /// TCP over IPv4 in segments larger than the MTU; needs `csum`, as those below.
    pub tso4: bool,
    /// TCP over IPv6 in segments larger than the MTU.
    pub tso6: bool,
    /// TCP with congestion notification in such segments.
    pub ecn: bool,
    /// UDP fragments to be made by the guest.
    pub ufo: bool,
    /// UDP in segments, over IPv4 and IPv6: the host has no one without the other.
    pub uso: bool,
}

/// A non-blocking source and sink of frames, each led by the 12-byte header of virtio 1.2 §5.1.6: a TAP opened with
/// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR` whose vnet header size is 12, little-endian.
///
/// Called by one thread at a time. No call is given more than [`SLICES_MAX`] slices.
pub trait FrameIo: Send {
    /// What becomes readable when a frame comes in; the same for as long as this lives.
    fn fd(&self) -> RawFd;

    /// Sets what may be received from now on; called at each start of the device.
    ///
    /// # Errors
    /// What the host says; the device does not start then.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Whether it may carry UDP in segments (VIRTIO_NET_HDR_GSO_UDP_L4), both ways. Asked once, before any driver comes.
    fn takes_uso(&mut self) -> bool {
        false
    }

    /// Takes this wire out of an interface that has several, or back into it: the host spreads frames over those that are in.
    /// One that is out yields no frames, loses those it held and takes none. Nothing happens to one that is so already. The only
    /// wire of an interface is never taken out.
    ///
    /// # Errors
    /// What the host says; nothing has changed then.
    fn set_attached(&mut self, _attached: bool) -> io::Result<()> {
        Ok(())
    }

    /// Sends one frame, whole; returns its bytes.
    ///
    /// # Errors
    /// `WouldBlock` if the host is busy: the frame is tried again later. With any other error the frame is dropped.
    fn send(&mut self, frame: &[VolatileSlice]) -> io::Result<usize>;

    /// Receives one frame, cut off where `into` ends; returns the bytes stored. The last two bytes of the header, the
    /// number of buffers, are the device's to fill.
    ///
    /// # Errors
    /// `WouldBlock` if there is no frame.
    fn recv(&mut self, into: &[VolatileSlice]) -> io::Result<usize>;
}
