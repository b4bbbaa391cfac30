//! An address map from guest-physical (or port) ranges to devices: pure lookup, no device logic.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A device that answers reads and writes within a range of addresses.
///
/// Called on a vCPU's thread while that vCPU waits, from several vCPUs at once. `data` is 1, 2, 4 or 8 bytes, little-endian;
/// `offset` is relative to the start of the range; `offset + data.len()` may reach past the end of the range by a
/// straddling access: answer zeros there and ignore writes.
pub trait BusDevice: Send + Sync {
    /// Fills `data`. A device that has nothing at `offset` fills with zeros; it never leaves `data` as it was.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data`. What makes no sense is ignored.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a range could not be added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or wraps past the end of the address space.
    #[error("range {base:#x}+{len:#x} is empty or wraps")]
    BadRange {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
    },
    /// Another device answers there.
    #[error("range {base:#x}+{len:#x} overlaps one that is taken")]
    Overlap {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
    },
}

/// Ranges and the devices behind them.
#[derive(Default, Clone)]
pub struct Bus {
    ranges: BTreeMap<u64, (u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// A bus with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base..base + len`.
    ///
    /// # Errors
    /// [`BusError::BadRange`] and [`BusError::Overlap`]; the bus is unchanged then.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let end = base.checked_add(len).filter(|_| len > 0).ok_or(BusError::BadRange { base, len })?;
        if self.ranges.range(..end).next_back().is_some_and(|(start, (taken, _))| start + taken > base) {
            return Err(BusError::Overlap { base, len });
        }
        self.ranges.insert(base, (len, device));
        Ok(())
    }

    /// The device at `addr` and the offset into its range.
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<(u64, &dyn BusDevice)> {
        let (base, (len, device)) = self.ranges.range(..=addr).next_back()?;
        let offset = addr - base;
        (offset < *len).then_some((offset, &**device))
    }

    /// Reads at `addr`; what nobody answers reads as all ones, as on a real bus. False if nobody answered.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        match self.find(addr) {
            Some((offset, device)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes at `addr`; false if nobody answered.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        self.find(addr).map(|(offset, device)| device.write(offset, data)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl BusDevice for Echo {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    #[test]
    fn ranges_are_found_by_their_first_and_last_byte_and_not_past_them() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, Arc::new(Echo(1))).unwrap();
        bus.insert(0x1010, 1, Arc::new(Echo(2))).unwrap();
        assert_eq!(bus.find(0x1000).map(|(offset, _)| offset), Some(0));
        assert_eq!(bus.find(0x100f).map(|(offset, _)| offset), Some(0xf));
        let mut data = [0u8; 2];
        assert!(bus.read(0x1010, &mut data));
        assert_eq!(data, [2, 2]);
        assert!(!bus.read(0x1011, &mut data));
        assert_eq!(data, [0xff, 0xff]);
        assert!(!bus.write(0xfff, &data));
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, Arc::new(Echo(1))).unwrap();
        for (base, len) in [(0x1000, 1), (0xfff, 2), (0x100f, 1), (0xff0, 0x100)] {
            assert_eq!(bus.insert(base, len, Arc::new(Echo(2))), Err(BusError::Overlap { base, len }));
        }
        for (base, len) in [(0, 0), (u64::MAX, 2)] {
            assert_eq!(bus.insert(base, len, Arc::new(Echo(2))), Err(BusError::BadRange { base, len }));
        }
    }
}
