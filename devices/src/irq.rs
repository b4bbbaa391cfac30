//! How a device reaches the guest's CPU.

use std::os::fd::AsRawFd;
use std::sync::Arc;

/// An eventfd: something that others write to, and that is known by its descriptor.
pub type Eventfd = Arc<dyn AsRawFd + Send + Sync>;

/// The interrupts of one virtio device (virtio 1.2 §2.3, §4.1.4.5, §4.2.2).
///
/// Callable from any thread; never blocks. A transport implements it over whatever line or vectors the machine gave it.
pub trait Interrupt: Send + Sync {
    /// Tells the driver that queue `index` has new used buffers.
    fn queue(&self, index: u16);

    /// Has each write to `eventfd` be an interrupt of queue `index` from now on, without a call of [`Interrupt::queue`]: for a queue that
    /// somebody outside of this process serves. One that is masked comes when it is unmasked. It is the interrupt that the
    /// driver has chosen by now: to be called when the device starts. False if the machine has no such thing, or the driver
    /// chose nothing it could be; then nothing has changed.
    fn connect(&self, _index: u16, _eventfd: &Eventfd) -> bool {
        false
    }

    /// Undoes [`Interrupt::connect`].
    fn disconnect(&self, _eventfd: &Eventfd) {}

    /// Tells the driver that the device's configuration changed; the transport's config generation is already new.
    fn config(&self);

    /// Sets DEVICE_NEEDS_RESET and tells the driver (virtio 1.2 §2.1.2): the driver broke the rules of a queue, or the
    /// device can't go on. The device serves nothing more until it is reset.
    fn needs_reset(&self);
}

/// One interrupt line or vector of the machine, edge triggered: each call is one edge.
///
/// Callable from any thread; waits for nobody but another that raises the same line. However many do, none of their edges is lost: what
/// the guest finds at an edge is what was there when it came, at least.
pub trait Line: Send + Sync {
    /// Raises one edge.
    fn trigger(&self);
}
