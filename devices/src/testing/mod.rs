//! What tests and fuzz targets put around a device: the guest's side of a queue, RAM without KVM, interrupts that count, a
//! clock that stands still, an owner without threads, a guest driver over either transport, back ends that fail on purpose.

pub mod block;
pub mod clock;
pub mod engine;
pub mod fake;
pub mod irq;
pub mod net;
pub mod owner;
pub mod queue;
pub mod ram;
pub mod seed;
pub mod transport;
pub mod vsock;
