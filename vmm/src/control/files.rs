//! The host's files as a microVM's API names them: by path, or open already.

use std::io;
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;

use super::config::HostFiles;
use crate::host::direct::Direct;
use crate::host::disk::Disk;
use crate::host::lent::Received;
use crate::host::tap::Tap;
use crate::host::vhost_net;
use crate::host::vsock::VsockSockets;
use crate::sandbox::descriptors::inherited;
use crate::spec::{Drive, TapSource};

/// Opens what the API names.
#[derive(Default)]
pub struct Host {
    /// What came with the request that is being carried out.
    pub(super) received: Received,
}

impl HostFiles for Host {
    type Kernel = std::fs::File;
    type Initrd = std::fs::File;
    type Drive = Disk;
    type Tap = Tap;
    type Vsock = Arc<VsockSockets>;

    fn open_kernel(&mut self, path: &str) -> io::Result<Self::Kernel> {
        match self.received.open(path)? {
            Some(file) => crate::host::image(file),
            None => crate::host::open_image(path.as_ref()),
        }
    }

    fn open_initrd(&mut self, path: &str) -> io::Result<Self::Initrd> {
        self.open_kernel(path)
    }

    fn open_drive(&mut self, path: &str, spec: &Drive, replacing: Option<&Disk>) -> io::Result<Disk> {
        let file = match self.received.open(path)? {
            Some(file) => file,
            None => Disk::open_file(path.as_ref(), spec.read_only)?,
        };
        // Before the lock changes hands: whoever is refused keeps what it had.
        let direct = spec.direct.then(|| Direct::of(&file)).transpose()?;
        Ok(Disk::of(file, &path, spec.read_only, replacing)?.direct(direct))
    }

    fn open_tap(
        &mut self,
        source: TapSource<'_>,
        queues: NonZeroU16,
        replacing: Option<&Tap>,
    ) -> io::Result<Tap> {
        match source {
            // The kernel lends a TAP device once: an interface that keeps its own goes on with the same descriptor.
            TapSource::Name(name) => match replacing.filter(|tap| tap.name() == Some(name)) {
                Some(tap) => tap.with_queues(queues),
                None => match self.received.open(name)? {
                    Some(file) => Tap::of(file),
                    None => Tap::open_queues(name, queues),
                },
            },
            TapSource::Fd(fd) => Tap::of(inherited(fd)?.into()),
        }
    }

    fn find_vhost(&mut self) -> io::Result<()> {
        vhost_net::available().map_err(io::Error::other)
    }

    fn open_vsock(&mut self, path: &str, replacing: Option<&Self::Vsock>) -> io::Result<Self::Vsock> {
        match replacing.filter(|sockets| sockets.path() == Path::new(path)) {
            Some(sockets) => Ok(Arc::clone(sockets)),
            None => VsockSockets::bind(Path::new(path)).map(Arc::new),
        }
    }
}
