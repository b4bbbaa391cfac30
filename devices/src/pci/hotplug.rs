//! Functions that come and go while the guest runs: the registers that its ACPI methods use (ACPI 6.4 §5.6.6, §6.3).
//!
//! ```text
//!   machine ── plugged(slot) ──┐                        ┌── APPEARED: Notify(slot, 1), the guest looks into the slot
//!                              ├── event, _EVT reads ───┤
//!   machine ── wanted(slot) ───┘                        └── WANTED:   Notify(slot, 3), the guest stops using it ...
//!   machine <── on_eject(slot) ──────────────────────────── EJECT  <─ _EJ0: ... and lets go of it
//! ```
//! A guest that ejects what nobody wants back changes nothing: its function stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::root::{PciRoot, SLOTS};
use crate::bus::BusDevice;

/// Offset of the register whose bits are slots where a function has appeared; reading it clears it.
pub const APPEARED: u64 = 0;
/// Offset of the register whose bits are slots whose function is wanted back; reading it clears it.
pub const WANTED: u64 = 4;
/// Offset of the register that is written with the bits of slots to eject.
pub const EJECT: u64 = 8;
/// Bytes of all registers.
pub const SIZE: u64 = 12;

/// Called, on a vCPU's thread, when a function was ejected: its slot is empty by then.
pub type OnEject = Box<dyn Fn(usize) + Send + Sync>;

/// See the [module](self). Its methods may be called from any thread.
pub struct PciHotplug {
    root: Arc<PciRoot>,
    appeared: AtomicU32,
    wanted: AtomicU32,
    /// What may be ejected: it has been wanted back since it came.
    ejectable: AtomicU32,
    on_eject: OnEject,
}

impl PciHotplug {
    /// For the functions of `root`.
    #[must_use]
    pub fn new(root: Arc<PciRoot>, on_eject: OnEject) -> Self {
        let none = || AtomicU32::new(0);
        Self { root, appeared: none(), wanted: none(), ejectable: none(), on_eject }
    }

    /// There is a function in `slot` by now. The caller has the guest look, by the event that runs `_EVT`.
    pub fn plugged(&self, slot: usize) {
        self.ejectable.fetch_and(!bit(slot), Ordering::AcqRel);
        self.appeared.fetch_or(bit(slot), Ordering::AcqRel);
    }

    /// The function in `slot` is wanted back; as above. May be said again.
    pub fn wanted(&self, slot: usize) {
        self.ejectable.fetch_or(bit(slot), Ordering::AcqRel);
        self.wanted.fetch_or(bit(slot), Ordering::AcqRel);
    }

    /// The function in `slot` is not wanted back any more: the guest may keep it.
    pub fn kept(&self, slot: usize) {
        self.ejectable.fetch_and(!bit(slot), Ordering::AcqRel);
        self.wanted.fetch_and(!bit(slot), Ordering::AcqRel);
    }
}

fn bit(slot: usize) -> u32 {
    u32::try_from(slot).ok().and_then(|slot| 1u32.checked_shl(slot)).unwrap_or(0)
}

impl BusDevice for PciHotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Whole registers only: half of one that clears itself would be lost.
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        *data = match offset {
            APPEARED => self.appeared.swap(0, Ordering::AcqRel),
            WANTED => self.wanted.swap(0, Ordering::AcqRel),
            _ => 0,
        }
        .to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (EJECT, Ok(slots)) = (offset, <[u8; 4]>::try_from(data).map(u32::from_le_bytes)) else { return };
        for slot in (0..SLOTS).filter(|slot| slots & bit(*slot) != 0) {
            // Of two vCPUs that eject the same one does.
            if self.ejectable.fetch_and(!bit(slot), Ordering::AcqRel) & bit(slot) != 0
                && self.root.remove(slot).is_some()
            {
                (self.on_eject)(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::root::PciFunction;
    use super::*;

    struct Stub;
    impl PciFunction for Stub {
        fn config_read(&self, _offset: u16, _data: &mut [u8]) {}
        fn config_write(&self, _offset: u16, _data: &[u8]) {}
    }

    struct Rig {
        root: Arc<PciRoot>,
        hotplug: PciHotplug,
        ejected: Arc<Mutex<Vec<usize>>>,
    }

    fn rig() -> Rig {
        let root = Arc::new(PciRoot::new());
        (1..4).for_each(|slot| assert_eq!(root.add(Arc::new(Stub)), Ok(slot)));
        let ejected = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ejected);
        let on_eject = Box::new(move |slot| seen.lock().unwrap().push(slot));
        Rig { hotplug: PciHotplug::new(Arc::clone(&root), on_eject), root, ejected }
    }

    impl Rig {
        fn read(&self, offset: u64) -> u32 {
            let mut data = [0; 4];
            self.hotplug.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn eject(&self, slots: u32) -> Vec<usize> {
            self.hotplug.write(EJECT, &slots.to_le_bytes());
            std::mem::take(&mut *self.ejected.lock().unwrap())
        }
    }

    #[test]
    fn what_appeared_and_what_is_wanted_is_told_once() {
        let rig = rig();
        rig.hotplug.plugged(1);
        rig.hotplug.plugged(3);
        rig.hotplug.wanted(2);
        // Too narrow a look takes nothing away.
        rig.hotplug.read(APPEARED, &mut [0; 2]);
        assert_eq!((rig.read(APPEARED), rig.read(WANTED)), (0b1010, 0b100));
        assert_eq!((rig.read(APPEARED), rig.read(WANTED), rig.read(EJECT)), (0, 0, 0));
    }

    #[test]
    fn only_what_is_wanted_back_is_ejected_and_only_once() {
        let rig = rig();
        assert_eq!(rig.eject(u32::MAX), [0; 0], "the host bridge neither");
        rig.hotplug.wanted(2);
        assert_eq!(rig.eject(0b1010), [0; 0]);
        assert_eq!(rig.eject(u32::MAX), [2]);
        assert_eq!(rig.eject(u32::MAX), [0; 0]);
        assert_eq!(rig.root.free_slot(), Some(2));
        // Another one in the same place is another one.
        rig.root.add(Arc::new(Stub)).unwrap();
        rig.hotplug.plugged(2);
        assert_eq!(rig.eject(u32::MAX), [0; 0]);
    }

    #[test]
    fn what_may_be_kept_after_all_is_kept() {
        let rig = rig();
        rig.hotplug.wanted(1);
        rig.hotplug.kept(1);
        assert_eq!((rig.read(WANTED), rig.eject(0b10)), (0, vec![]));
    }
}
