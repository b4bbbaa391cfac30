//! How a device reaches the guest's CPU.

/// The interrupts of one virtio device (virtio 1.2 §2.3, §4.1.4.5, §4.2.2).
///
/// Callable from any thread; never blocks. A transport implements it over whatever line or vectors the machine gave it.
pub trait Interrupt: Send + Sync {
    /// Tells the driver that queue `index` has new used buffers.
    fn queue(&self, index: u16);

    /// Tells the driver that the device's configuration changed; the transport's config generation is already new.
    fn config(&self);

    /// Sets DEVICE_NEEDS_RESET and tells the driver (virtio 1.2 §2.1.2): the driver broke the rules of a queue, or the
    /// device can't go on. The device serves nothing more until it is reset.
    fn needs_reset(&self);
}

/// One interrupt line or vector of the machine, edge triggered: each call is one edge.
///
/// Callable from any thread; never blocks. Under KVM this is an eventfd bound by `KVM_IRQFD`.
pub trait Line: Send + Sync {
    /// Raises one edge.
    fn trigger(&self);
}
