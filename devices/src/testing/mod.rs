//! What tests and fuzz targets put around a device: interrupts that count, an owner without threads, a guest driver over
//! either transport.

pub mod fake;
pub mod irq;
pub mod owner;
pub mod transport;
