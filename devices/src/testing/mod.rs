//! What tests and fuzz targets put around a device: interrupts that count, an owner without threads, a guest driver over
//! either transport.

pub mod fake;
pub mod irq;
pub mod owner;
pub mod transport;
//! What tests and fuzz targets put around a device: the guest's side of a queue, RAM without KVM, interrupts that count,
//! back ends that fail on purpose.

pub mod block;
pub mod irq;
pub mod net;
pub mod queue;
pub mod ram;
pub mod seed;
