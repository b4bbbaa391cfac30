//! A wire in memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::mem::VolatileSlice;
use crate::virtio::net::{FrameIo, Offloads, SLICES_MAX};
use crate::virtio::queue::{copy_in, copy_out, total_len};

/// What goes over a wire in memory; shared with the test.
#[derive(Debug)]
pub struct Traffic {
    /// Frames to be received, each with its 12-byte header.
    pub incoming: VecDeque<Vec<u8>>,
    /// Frames that were sent, each with its header.
    pub sent: Vec<Vec<u8>>,
    /// What the device set.
    pub offloads: Option<Offloads>,
    /// Errors that the next calls return.
    pub errors: VecDeque<io::ErrorKind>,
    /// Whether the wire is in its interface.
    pub attached: bool,
    /// Whether it knows UDP in segments.
    pub uso: bool,
}

impl Default for Traffic {
    fn default() -> Self {
        let (incoming, sent, errors) = Default::default();
        Self { incoming, sent, offloads: None, errors, attached: true, uso: true }
    }
}

/// A TAP without a kernel. A clone is the same one.
#[derive(Debug, Clone, Default)]
pub struct FakeTap(Arc<Mutex<Traffic>>);

impl FakeTap {
    /// A wire with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What goes over it.
    pub fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traffic {
    fn stumble(&mut self) -> io::Result<()> {
        self.errors.pop_front().map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl FrameIo for FakeTap {
    fn fd(&self) -> RawFd {
        -1
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let mut traffic = self.traffic();
        traffic.stumble()?;
        traffic.offloads = Some(offloads);
        Ok(())
    }

    fn takes_uso(&mut self) -> bool {
        self.traffic().uso
    }

    /// As a TAP does: it forgets what it holds.
    fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        let mut traffic = self.traffic();
        if traffic.attached != attached {
            traffic.stumble()?;
            traffic.attached = attached;
            traffic.incoming.clear();
        }
        Ok(())
    }

    fn send(&mut self, frame: &[VolatileSlice]) -> io::Result<usize> {
        assert!(frame.len() <= SLICES_MAX, "one writev takes {SLICES_MAX} slices");
        let mut traffic = self.traffic();
        assert!(traffic.attached, "a wire that is out of its interface sends nothing");
        traffic.stumble()?;
        let mut bytes = vec![0; total_len(frame)];
        copy_out(frame, &mut bytes);
        traffic.sent.push(bytes);
        Ok(total_len(frame))
    }

    /// As a TAP does: the header's first ten bytes, two bytes left alone, the rest; cut off silently.
    fn recv(&mut self, into: &[VolatileSlice]) -> io::Result<usize> {
        assert!(into.len() <= SLICES_MAX, "one readv takes {SLICES_MAX} slices");
        let mut traffic = self.traffic();
        assert!(traffic.attached, "a wire that is out of its interface yields nothing");
        traffic.stumble()?;
        let Some(frame) = traffic.incoming.pop_front() else { return Err(io::ErrorKind::WouldBlock.into()) };
        copy_in(into, 0, &frame[..frame.len().min(10)]);
        copy_in(into, 12, frame.get(12..).unwrap_or_default());
        Ok(frame.len().min(total_len(into)))
    }
}
