//! io_uring over guest RAM: several transfers of one file in flight, each of whose buffers is kept until it is over.
//!
//! The ring is made by the thread that uses it, and is restricted to reads, writes and fdatasync before it is enabled. Its file is
//! not registered: the kernel takes a ring apart some time after its process is gone, and a file that the ring holds keeps its
//! lock until then, so that a VMM that was killed would keep its successor from its images. One system call begins all that was
//! pushed and fetches all that is finished.
//!
//! Who waits for it waits for an eventfd, which is never read: each write is an edge. (The ring's own descriptor becomes readable
//! too late: with DEFER_TASKRUN nothing is finished before the thread asks.) The kernel writes it only while `armed`, that is
//! while this thread has seen everything and is about to sleep, so that what is finished at once wakes nobody.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use devices::mem::{GuestMemoryBackend, Ram, VolatileSlice};
use devices::virtio::block::{Engine, Finished, Transfer};
use io_uring::{IoUring, opcode, register::Restriction, types};
use vm_memory::GuestMemoryRegion;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Segments of one transfer: `IOV_MAX`.
const SEGMENTS_MAX: usize = 1024;
/// `IORING_ENTER_GETEVENTS`.
const GETEVENTS: u32 = 1;
/// Kernel threads that may do what can't be done without waiting; more would only wait for the same file.
const WORKERS_MAX: u32 = 4;
/// The tag of a transfer's completion has 16 bits.
const TAGS: u64 = 0xffff;

/// What a transfer in flight needs: the kernel reads the list of segments until the transfer has begun, and the segments
/// until it is over.
struct Kept {
    iovecs: Vec<libc::iovec>,
    _ram: Ram,
}

/// A ring over one file.
pub struct Uring {
    // First: it is closed before what its transfers need goes.
    ring: IoUring,
    /// By tag.
    kept: Vec<Option<Kept>>,
    in_flight: usize,
    finished: EventFd,
    /// Whether the kernel writes `finished` when something is.
    armed: bool,
    /// Transfers that the file would refuse, for their buffers are not aligned: their caller does them by other means.
    refused: Vec<u16>,
    /// What addresses and lengths of buffers are a multiple of.
    alignment: (usize, usize),
    file: Arc<File>,
}

// SAFETY: the iovecs point into guest RAM, which `Kept` owns a share of and which is no thread's own. The ring may be made
// and used by one thread only if it is SINGLE_ISSUER; a wrong thread gets an error from the kernel, nothing worse.
unsafe impl Send for Uring {}

impl Uring {
    /// A ring for up to `depth` transfers of `file`, made for the calling thread. Transfers whose buffers are not aligned to
    /// `memory` bytes, or not a multiple of `len` bytes long, end at once as `WouldBlock`.
    ///
    /// # Errors
    /// If the kernel has no io_uring, is told not to offer it, or can't restrict it.
    pub fn new(file: Arc<File>, depth: u16, memory: usize, len: usize) -> io::Result<Self> {
        let plain = || IoUring::builder().setup_r_disabled().build(depth.into());
        // From Linux 6.1 on: completions are worked on when this thread asks, not by interrupting it.
        let mut lazy = IoUring::builder();
        lazy.setup_r_disabled().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        let mut ring = lazy.build(depth.into()).or_else(|_| plain())?;
        ring.completion().disable_eventfd();
        let finished = EventFd::new(EFD_NONBLOCK)?;
        let submitter = ring.submitter();
        submitter.register_eventfd(finished.as_raw_fd())?;
        // Linux 5.15; without it the kernel has its own bound.
        let _ = submitter.register_iowq_max_workers(&mut [WORKERS_MAX, WORKERS_MAX]);
        let allowed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ];
        let mut restrictions = allowed.map(Restriction::sqe_op);
        submitter.register_restrictions(&mut restrictions)?;
        submitter.register_enable_rings()?;
        let kept = (0..depth).map(|_| None).collect();
        Ok(Self {
            ring,
            kept,
            in_flight: 0,
            finished,
            armed: false,
            refused: Vec::new(),
            alignment: (memory, len),
            file,
        })
    }

    /// Begins what was pushed and fetches what is finished; waits until `want` are.
    fn enter(&mut self, want: u32) -> io::Result<()> {
        if std::mem::take(&mut self.armed) {
            self.ring.completion().disable_eventfd();
        }
        let pushed = u32::try_from(self.ring.submission().len()).expect("as many as there are tags");
        loop {
            // SAFETY: no argument is passed along. Each entry in the queue describes memory that `kept` holds.
            let entered =
                unsafe { self.ring.submitter().enter::<libc::sigset_t>(pushed, want, GETEVENTS, None) };
            match entered {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Nobody else would wake who waits: let it try again.
                    let _ = self.finished.write(1);
                    return Err(error);
                }
            }
        }
    }

    /// Has the kernel write `finished` from now on; false if something may have finished before it did.
    fn arm(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        self.armed = true;
        // The kernel announces work first and looks at the flag then; this thread does the reverse. One of them sees the other.
        fence(Ordering::SeqCst);
        !self.ring.submission().taskrun() && self.ring.completion().is_empty()
    }
}

/// Whether `slice` lies in RAM: in one region of it.
fn is_in(ram: &Ram, slice: &VolatileSlice) -> bool {
    let start = slice.ptr_guard().as_ptr() as usize;
    ram.iter().any(|region| {
        let first = region.as_ptr() as usize;
        let len = usize::try_from(region.len()).unwrap_or(0);
        start.checked_sub(first).is_some_and(|at| at <= len && slice.len() <= len - at)
    })
}

impl Engine for Uring {
    fn push(&mut self, tag: u16, transfer: Transfer, ram: &Ram, data: &[VolatileSlice]) {
        if !are_aligned(data, self.alignment.0, self.alignment.1) {
            self.refused.push(tag);
            return;
        }
        let slot = &mut self.kept[usize::from(tag)];
        assert!(slot.is_none(), "a tag is used once at a time");
        let data = &data[..data.len().min(SEGMENTS_MAX)];
        assert!(data.iter().all(|slice| is_in(ram, slice)), "buffers are guest RAM");
        let iovec = |slice: &VolatileSlice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        };
        let kept = slot.insert(Kept { iovecs: data.iter().map(iovec).collect(), _ram: Ram::clone(ram) });
        let list = kept.iovecs.as_ptr();
        let count = u32::try_from(kept.iovecs.len()).expect("at most IOV_MAX");
        let file = types::Fd(self.file.as_raw_fd());
        let entry = match (transfer, kept.iovecs.as_slice()) {
            (Transfer::Read { offset }, [one]) => {
                opcode::Read::new(file, one.iov_base.cast(), length(one)).offset(offset).build()
            }
            (Transfer::Write { offset }, [one]) => {
                opcode::Write::new(file, one.iov_base.cast(), length(one)).offset(offset).build()
            }
            (Transfer::Read { offset }, _) => opcode::Readv::new(file, list, count).offset(offset).build(),
            (Transfer::Write { offset }, _) => opcode::Writev::new(file, list, count).offset(offset).build(),
            (Transfer::Flush, _) => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        };
        // SAFETY: the entry refers to the list and the segments in `kept`, which stay where they are until `pop` has taken
        // this tag's completion, or for ever: `drop` waits for all of them, and leaks what it could not wait for. Each
        // segment was just found to be RAM that the `Ram` in `kept` keeps mapped; that guests and other threads write it
        // meanwhile is the nature of guest RAM, and the kernel only copies.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(tag.into())) };
        pushed.expect("the queue has as many entries as there are tags");
        self.in_flight += 1;
    }

    fn poll(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    fn wait(&mut self) -> io::Result<()> {
        // What was refused is finished.
        self.enter(u32::from(self.refused.is_empty()))
    }

    fn pop(&mut self) -> Option<Finished> {
        if let Some(tag) = self.refused.pop() {
            return Some(Finished { tag, result: Err(io::ErrorKind::WouldBlock.into()) });
        }
        let completion = loop {
            let next = self.ring.completion().next();
            if let Some(completion) = next {
                break completion;
            }
            if self.in_flight == 0 || self.armed || self.arm() || self.enter(0).is_err() {
                return None;
            }
        };
        let tag = u16::try_from(completion.user_data() & TAGS).unwrap_or(u16::MAX);
        self.kept[usize::from(tag)] = None;
        self.in_flight -= 1;
        let result = match completion.result() {
            code @ ..0 => Err(io::Error::from_raw_os_error(-code)),
            n => Ok(usize::try_from(n).unwrap_or(0)),
        };
        Some(Finished { tag, result })
    }

    fn source(&self) -> RawFd {
        self.finished.as_raw_fd()
    }
}

/// Whether each of `slices` begins at a multiple of `memory` bytes and is a multiple of `len` bytes long.
#[must_use]
pub fn are_aligned(slices: &[VolatileSlice], memory: usize, len: usize) -> bool {
    slices.iter().all(|slice| {
        (slice.ptr_guard().as_ptr() as usize).is_multiple_of(memory) && slice.len().is_multiple_of(len)
    })
}

/// A transfer moves at most 2 GiB at a time anyway; the rest is a short one's.
fn length(iovec: &libc::iovec) -> u32 {
    u32::try_from(iovec.iov_len).unwrap_or(u32::MAX)
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if let Err(error) = self.wait() {
                // The kernel may still write to what these hold: it is never given back.
                log::error!("io_uring: {} transfers can't be waited for: {error}", self.in_flight);
                std::mem::take(&mut self.kept).into_iter().for_each(std::mem::forget);
                return;
            }
            while self.pop().is_some() {}
        }
    }
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
