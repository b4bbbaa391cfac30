//! What of vhost-net an interface uses (linux/vhost.h): the rings of one pair, given to the kernel and taken back.

use std::fs::{File, OpenOptions};
use std::io;
use std::time::Duration;

use devices::mem::{GuestMemoryBackend, Ram};
use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueState;
use vm_memory::GuestMemoryRegion;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::host::tap::Tap;
use crate::kvm::vhost as vhost_ioctls;

/// The device node.
pub const PATH: &str = "/dev/vhost-net";

/// Why the kernel does not serve an interface.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// There is no vhost-net here for this process.
    #[error(
        "{PATH} can't be opened: {0}; the host needs the module vhost_net, this process permission to read and write the node, \
         and in a jail yun-jailer the flag --vhost-net"
    )]
    Open(#[source] io::Error),
    /// It refuses what it is asked for.
    #[error("vhost-net does not {doing}: {source}")]
    Refused {
        /// What it does not do.
        doing: &'static str,
        /// What it says.
        source: vhost::Error,
    },
}

fn refused(doing: &'static str) -> impl FnOnce(vhost::Error) -> VhostError {
    move |source| VhostError::Refused { doing, source }
}

/// The eventfds of one ring.
pub struct Signals<'a> {
    /// The driver has made buffers available.
    pub kick: &'a EventFd,
    /// The kernel has used buffers, and the driver wants to hear of it.
    pub call: &'a EventFd,
    /// The ring can't be used.
    pub error: &'a EventFd,
}

/// vhost-net, serving one pair of rings. Called on the device's thread.
pub trait Kernel: Send {
    /// The virtio features that it knows.
    fn features(&self) -> u64;

    /// Sets the features that were agreed on, of those it takes part in. No ring is served meanwhile.
    ///
    /// # Errors
    /// [`VhostError::Refused`].
    fn prepare(&mut self, features: u64) -> Result<(), VhostError>;

    /// Has it serve ring `queue` of the pair (0 receives) from the indices in `ring` on. It looks at once whether there is
    /// something to do.
    ///
    /// # Errors
    /// [`VhostError::Refused`]; the ring is not served then.
    fn start(&mut self, queue: usize, ring: &QueueState, signals: &Signals<'_>) -> Result<(), VhostError>;

    /// Takes ring `queue` back: the index of the next available entry. Nothing of the ring, nor of the guest's memory by way of it, is
    /// touched after this, and its kick no longer heard.
    ///
    /// # Errors
    /// [`VhostError::Refused`].
    fn stop(&mut self, queue: usize) -> Result<u16, VhostError>;
}

/// Whether this process can have vhost-net.
///
/// # Errors
/// [`VhostError::Open`].
pub fn available() -> Result<(), VhostError> {
    OpenOptions::new().read(true).write(true).open(PATH).map(drop).map_err(VhostError::Open)
}

/// The vhost-net of the host's kernel. It lets go of everything when it is dropped.
pub struct Vhost {
    // Holds the RAM after its descriptor, so that the kernel never has an address of memory that is gone.
    net: Net<Ram>,
    features: u64,
    tap: Tap,
    /// Nobody signals it: the kick of a ring that is not served.
    silence: EventFd,
}

impl Vhost {
    /// A new one, between `tap` and a guest with this RAM. Where it has nothing to do it looks for more for as long as `poll` says
    /// before it sleeps, in whole microseconds.
    ///
    /// # Errors
    /// [`VhostError`].
    pub fn open(ram: Ram, tap: Tap, poll: Duration) -> Result<Self, VhostError> {
        let net = Net::new(ram).map_err(|error| match error {
            vhost::Error::VhostOpen(error) => VhostError::Open(error),
            source => VhostError::Refused { doing: "open", source },
        })?;
        net.set_owner().map_err(refused("accept this process"))?;
        if let us @ 1.. = u32::try_from(poll.as_micros()).unwrap_or(u32::MAX) {
            for queue in [0, 1] {
                let set = vhost_ioctls::set_busyloop_timeout(&net, queue, us);
                set.map_err(|e| vhost::Error::IOError(e.into()))
                    .map_err(refused("look for work before it sleeps"))?;
            }
        }
        let features = net.get_features().map_err(refused("say what it knows"))?;
        let silence = EventFd::new(EFD_NONBLOCK).map_err(vhost::Error::IOError);
        let silence = silence.map_err(refused("get a descriptor"))?;
        Ok(Self { net, features, tap, silence })
    }

    fn backend(&self, queue: usize, tap: Option<&File>) -> Result<(), vhost::Error> {
        self.net.set_backend(queue, tap)
    }
}

impl Kernel for Vhost {
    fn features(&self) -> u64 {
        self.features
    }

    fn prepare(&mut self, features: u64) -> Result<(), VhostError> {
        self.net.set_features(features).map_err(refused("take the features"))?;
        let ram = vhost::vhost_kern::VhostKernBackend::mem(&self.net);
        let mut regions = Vec::new();
        for region in ram.iter() {
            let host = ram.get_host_address(region.start_addr()).map_err(|_| VhostError::Refused {
                doing: "find guest memory",
                source: vhost::Error::InvalidGuestMemory,
            })?;
            regions.push(VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host as u64,
                mmap_offset: 0,
                mmap_handle: -1,
            });
        }
        self.net.set_mem_table(&regions).map(drop).map_err(refused("take guest memory"))
    }

    fn start(&mut self, queue: usize, ring: &QueueState, signals: &Signals<'_>) -> Result<(), VhostError> {
        let place = VringConfigData {
            queue_max_size: ring.max_size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: ring.desc_table,
            used_ring_addr: ring.used_ring,
            avail_ring_addr: ring.avail_ring,
            log_addr: None,
        };
        let net = &self.net;
        net.set_vring_num(queue, ring.size).map_err(refused("take the size of a ring"))?;
        net.set_vring_base(queue, ring.next_avail).map_err(refused("take the index of a ring"))?;
        net.set_vring_addr(queue, &place).map_err(refused("take the addresses of a ring"))?;
        net.set_vring_call(queue, signals.call).map_err(refused("take the call of a ring"))?;
        net.set_vring_err(queue, signals.error).map_err(refused("take the error of a ring"))?;
        net.set_vring_kick(queue, signals.kick).map_err(refused("take the kick of a ring"))?;
        self.backend(queue, Some(self.tap.file())).map_err(refused("take the TAP device"))
    }

    fn stop(&mut self, queue: usize) -> Result<u16, VhostError> {
        self.backend(queue, None).map_err(refused("give the TAP device back"))?;
        self.net.set_vring_kick(queue, &self.silence).map_err(refused("let go of the kick of a ring"))?;
        let base = self.net.get_vring_base(queue).map_err(refused("say how far a ring was served"))?;
        #[allow(clippy::cast_possible_truncation, reason = "an index of a split ring has 16 bits")]
        Ok(base as u16)
    }
}
