//! virtio-mmio (virtio 1.2 §4.2): the registers, decoded.
//!
//! Interrupts are kept in two words. The device's thread sets bits of `pending`; the guest's read of InterruptStatus moves
//! them to `seen` and answers with it; InterruptACK clears bits of `seen` only. So an acknowledgement that arrives late (the
//! machine may coalesce these writes) can't swallow an event that the driver has not read yet. Both registers do without
//! the core's lock.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::spec::{interrupt, mmio as reg};
use super::super::{Idle, Owner};
use super::core::{Core, Half, Outlet, Signal};
use super::rings::Area;
use crate::bus::BusDevice;
use crate::irq::Line;
use crate::mem::Ram;

/// Bytes of address space that one device takes.
pub const SIZE: u64 = 0x1000;
/// Where a driver writes a queue's index to kick it: the machine binds an ioeventfd per queue here, 4 bytes wide, matching
/// the index.
pub const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;
/// Where a driver acknowledges interrupts, 4 bytes wide; the machine may coalesce writes to it.
pub const INTERRUPT_ACK: u64 = reg::INTERRUPT_ACK;
/// What VendorID answers: "yun".
pub const VENDOR: u32 = u32::from_le_bytes(*b"yun\0");

/// The two words and the line.
struct MmioSignal {
    pending: AtomicU32,
    seen: AtomicU32,
    line: Arc<dyn Line>,
}

impl MmioSignal {
    fn raise(&self, bit: u32) {
        self.pending.fetch_or(bit, Ordering::AcqRel);
        self.line.trigger();
    }

    /// InterruptStatus is read.
    fn look(&self) -> u32 {
        let new = self.pending.swap(0, Ordering::AcqRel);
        self.seen.fetch_or(new, Ordering::AcqRel) | new
    }

    /// InterruptACK is written.
    fn acknowledge(&self, bits: u32) {
        self.seen.fetch_and(!bits, Ordering::AcqRel);
    }
}

impl Signal for MmioSignal {
    fn queue(&self, _index: u16) {
        self.raise(interrupt::QUEUE);
    }

    fn config(&self) {
        self.raise(interrupt::CONFIG);
    }

    fn clear(&self) {
        self.pending.store(0, Ordering::Release);
        self.seen.store(0, Ordering::Release);
    }
}

/// One virtio device behind a window of [`SIZE`] bytes and one interrupt line.
pub struct MmioTransport {
    core: Mutex<Core<MmioSignal>>,
    outlet: Arc<Outlet<MmioSignal>>,
}

impl MmioTransport {
    /// Puts `device` behind registers; `owner` runs it once a driver is there, and `line` reaches that driver.
    ///
    /// # Panics
    /// If a queue of the device has a maximum size that is no power of two.
    #[must_use]
    pub fn new(device: Box<dyn Idle>, ram: Ram, owner: Box<dyn Owner>, line: Arc<dyn Line>) -> Self {
        let signal = MmioSignal { pending: AtomicU32::new(0), seen: AtomicU32::new(0), line };
        let outlet = Outlet::new(signal);
        Self { core: Mutex::new(Core::new(device, ram, owner, Arc::clone(&outlet))), outlet }
    }

    /// Resets the device as a driver's write of 0 to Status does: for the machine, with no vCPU running.
    pub fn reset(&self) {
        self.core().reset();
    }

    /// How many queues the device has, and so how many ioeventfds it can use.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        self.core().queue_count()
    }

    fn core(&self) -> MutexGuard<'_, Core<MmioSignal>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION_REG => reg::VERSION,
            reg::DEVICE_ID => self.core().kind() as u32,
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => self.core().device_features(),
            reg::QUEUE_NUM_MAX => self.core().queue().map_or(0, |queue| u32::from(queue.max())),
            reg::QUEUE_READY => self.core().queue().map_or(0, |queue| u32::from(queue.ready)),
            reg::INTERRUPT_STATUS => self.outlet.signal.look(),
            reg::STATUS => u32::from(self.core().status()),
            // No shared memory region exists: its length reads as -1 (§4.2.2).
            reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => self.core().config_generation(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.core().device_features_select = value,
            reg::DRIVER_FEATURES => self.core().want_features(value),
            reg::DRIVER_FEATURES_SEL => self.core().driver_features_select = value,
            reg::QUEUE_SEL => self.core().queue_select = value,
            reg::QUEUE_NUM => self.core().set_queue_size(value),
            reg::QUEUE_READY => self.core().set_queue_ready(value & 1 != 0),
            reg::QUEUE_NOTIFY => {
                if let Ok(queue) = u16::try_from(value) {
                    self.core().kick(queue);
                }
            }
            reg::INTERRUPT_ACK => self.outlet.signal.acknowledge(value),
            reg::STATUS => self.core().set_status(value.to_le_bytes()[0]),
            reg::QUEUE_DESC_LOW => self.core().set_queue_area(Area::Descriptors, Half::Low, value),
            reg::QUEUE_DESC_HIGH => self.core().set_queue_area(Area::Descriptors, Half::High, value),
            reg::QUEUE_DRIVER_LOW => self.core().set_queue_area(Area::Driver, Half::Low, value),
            reg::QUEUE_DRIVER_HIGH => self.core().set_queue_area(Area::Driver, Half::High, value),
            reg::QUEUE_DEVICE_LOW => self.core().set_queue_area(Area::Device, Half::Low, value),
            reg::QUEUE_DEVICE_HIGH => self.core().set_queue_area(Area::Device, Half::High, value),
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            return self.core().read_config(offset, data);
        }
        data.fill(0);
        // Registers are 32 bits wide, aligned, and read that way only (§4.2.2.2).
        if let Ok(data) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            return self.core().write_config(offset, data);
        }
        if let Ok(data) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::irq::CountingLine;

    use super::*;

    fn signal() -> (Arc<CountingLine>, MmioSignal) {
        let line = CountingLine::new();
        let wired = Arc::clone(&line) as Arc<dyn Line>;
        (line, MmioSignal { pending: AtomicU32::new(0), seen: AtomicU32::new(0), line: wired })
    }

    #[test]
    fn a_late_acknowledgement_leaves_an_event_that_was_not_read_yet() {
        let (line, signal) = signal();
        signal.queue(0);
        assert_eq!(signal.look(), interrupt::QUEUE);
        signal.queue(0);
        signal.acknowledge(interrupt::QUEUE);
        assert_eq!(signal.look(), interrupt::QUEUE);
        assert_eq!(line.edges(), 2);
    }

    #[test]
    fn what_is_not_acknowledged_is_seen_again() {
        let (_line, signal) = signal();
        signal.queue(3);
        signal.config();
        assert_eq!(signal.look(), interrupt::QUEUE | interrupt::CONFIG);
        signal.acknowledge(interrupt::QUEUE);
        assert_eq!(signal.look(), interrupt::CONFIG);
        signal.clear();
        assert_eq!(signal.look(), 0);
    }
}
