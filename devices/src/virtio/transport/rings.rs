//! What a driver says about one queue, and the check that turns it into a queue a device may serve.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryBackend;

use super::super::spec::ring;
use crate::mem::{GuestAddress, Ram};

/// The three parts of a split queue (virtio 1.2 §2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Driver,
    /// The used ring.
    Device,
}

/// Why a queue can't be served. Every variant is reachable from a hostile guest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFault {
    /// Zero, no power of two, or more than the device offers.
    #[error("size {size} is no power of two from 1 to {max}")]
    BadSize {
        /// The driver's.
        size: u16,
        /// The device's.
        max: u16,
    },
    /// An area does not begin where its kind must.
    #[error("{area:?} area at {address:#x} is not aligned to {align}")]
    Misaligned {
        /// Which one.
        area: Area,
        /// Where the driver put it.
        address: u64,
        /// What §2.7 asks for.
        align: u64,
    },
    /// An area is not wholly in guest RAM.
    #[error("{area:?} area at {address:#x} of {len} bytes is not in RAM")]
    OutsideRam {
        /// Which one.
        area: Area,
        /// Where the driver put it.
        address: u64,
        /// Its length.
        len: u64,
    },
}

/// One queue as its driver has described it so far; nothing in here is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSetup {
    max: u16,
    /// The size the driver chose; the maximum until it does.
    pub size: u16,
    /// Whether the driver enabled the queue.
    pub ready: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl QueueSetup {
    /// A queue that no driver has touched.
    ///
    /// # Panics
    /// If `max` is no power of two up to 32768.
    #[must_use]
    pub fn new(max: u16) -> Self {
        assert!(max.is_power_of_two(), "a queue's maximum size is a power of two, not {max}");
        Self { max, size: max, ready: false, descriptors: 0, driver: 0, device: 0 }
    }

    /// Forgets the driver.
    pub fn reset(&mut self) {
        *self = Self::new(self.max);
    }

    /// The largest size on offer.
    #[must_use]
    pub fn max(&self) -> u16 {
        self.max
    }

    /// Where the driver put `area`.
    #[must_use]
    pub fn area(&self, area: Area) -> u64 {
        match area {
            Area::Descriptors => self.descriptors,
            Area::Driver => self.driver,
            Area::Device => self.device,
        }
    }

    /// The same, to be changed.
    pub fn area_mut(&mut self, area: Area) -> &mut u64 {
        match area {
            Area::Descriptors => &mut self.descriptors,
            Area::Driver => &mut self.driver,
            Area::Device => &mut self.device,
        }
    }

    /// The queue a device may serve; `None` if the driver did not enable it.
    ///
    /// # Errors
    /// [`QueueFault`] if the driver enabled a queue that makes no sense.
    pub fn grant(&self, ram: &Ram, event_idx: bool) -> Result<Option<Queue>, QueueFault> {
        if !self.ready {
            return Ok(None);
        }
        let bad_size = QueueFault::BadSize { size: self.size, max: self.max };
        let mut queue = Queue::new(self.max).expect("new checked the maximum");
        queue.try_set_size(self.size).map_err(|_| bad_size)?;
        // Stricter than Queue::is_valid, which looks at the end of an area only: it lets a ring begin below RAM or span a hole,
        // and refuses one that ends exactly where RAM does.
        let areas = [
            (Area::Descriptors, ring::DESCRIPTORS_ALIGN, ring::descriptors_len(self.size)),
            (Area::Driver, ring::DRIVER_ALIGN, ring::driver_len(self.size)),
            (Area::Device, ring::DEVICE_ALIGN, ring::device_len(self.size)),
        ];
        for (area, align, len) in areas {
            let address = self.area(area);
            if !address.is_multiple_of(align) {
                return Err(QueueFault::Misaligned { area, address, align });
            }
            let inside = address.checked_add(len).is_some()
                && usize::try_from(len)
                    .is_ok_and(|len| GuestMemoryBackend::check_range(&**ram, GuestAddress(address), len));
            if !inside {
                return Err(QueueFault::OutsideRam { area, address, len });
            }
        }
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).expect("alignment was checked");
        queue.try_set_avail_ring_address(GuestAddress(self.driver)).expect("alignment was checked");
        queue.try_set_used_ring_address(GuestAddress(self.device)).expect("alignment was checked");
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(Some(queue))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::mem::GuestMemoryMmap;

    use super::*;

    /// RAM of two parts with a hole between: 0x1000..0x4000 and 0x8000..0xa000.
    fn ram() -> Ram {
        let parts = [(GuestAddress(0x1000), 0x3000), (GuestAddress(0x8000), 0x2000)];
        Arc::new(GuestMemoryMmap::from_ranges(&parts).unwrap())
    }

    fn setup(size: u16, descriptors: u64, driver: u64, device: u64) -> QueueSetup {
        QueueSetup { max: 256, size, ready: true, descriptors, driver, device }
    }

    #[test]
    fn a_sound_queue_is_granted_as_described() {
        let queue = setup(16, 0x1000, 0x2002, 0x3004).grant(&ram(), true).unwrap().unwrap();
        assert_eq!((queue.size(), queue.max_size(), queue.ready()), (16, 256, true));
        assert_eq!((queue.desc_table(), queue.avail_ring(), queue.used_ring()), (0x1000, 0x2002, 0x3004));
        assert!(queue.event_idx_enabled());
    }

    #[test]
    fn a_queue_that_was_not_enabled_is_not_looked_at() {
        let queue = QueueSetup { ready: false, ..setup(0, 1, 1, 1) };
        assert_eq!(queue.grant(&ram(), false), Ok(None));
    }

    #[test]
    fn sizes_of_zero_of_no_power_of_two_and_above_the_maximum_are_refused() {
        for size in [0, 3, 255, 257, 512, u16::MAX] {
            let fault = setup(size, 0x1000, 0x2000, 0x3000).grant(&ram(), false);
            assert_eq!(fault, Err(QueueFault::BadSize { size, max: 256 }));
        }
    }

    #[test]
    fn areas_that_are_not_aligned_are_refused() {
        for (queue, area) in [
            (setup(16, 0x1008, 0x2000, 0x3000), Area::Descriptors),
            (setup(16, 0x1000, 0x2001, 0x3000), Area::Driver),
            (setup(16, 0x1000, 0x2000, 0x3002), Area::Device),
        ] {
            let fault = queue.grant(&ram(), false).unwrap_err();
            assert!(matches!(fault, QueueFault::Misaligned { area: a, .. } if a == area), "{fault}");
        }
    }

    #[test]
    fn areas_below_ram_past_it_in_its_hole_and_around_the_end_of_the_address_space_are_refused() {
        for bad in [0u64, 0xff0, 0x3ff0, 0x4000, 0x9ff0, 0xa000, u64::MAX - 15, 1 << 63] {
            for area in [Area::Descriptors, Area::Driver, Area::Device] {
                let mut queue = setup(16, 0x1000, 0x2000, 0x3000);
                *queue.area_mut(area) = bad;
                let fault = queue.grant(&ram(), false).unwrap_err();
                assert!(
                    matches!(fault, QueueFault::OutsideRam { area: a, address, .. }
                    if a == area && address == bad),
                    "{fault}"
                );
            }
        }
    }

    #[test]
    fn an_area_may_end_exactly_where_ram_does() {
        assert!(setup(16, 0x9f00, 0x2000, 0x3000).grant(&ram(), false).is_ok());
        assert!(setup(256, 0x3000, 0x8000, 0x9000).grant(&ram(), false).is_ok());
    }
}
