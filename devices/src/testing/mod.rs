//! What tests and fuzz targets put around a device: interrupts that count, a guest driver over either transport.

pub mod irq;
