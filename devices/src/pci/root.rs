//! The root of the only bus: which function an access means.
//!
//! ```text
//!   ports 0xcf8, 0xcfc ── PciPorts ──┐
//!                                    ├── PciRoot: 32 slots, function 0 of each ── PciFunction
//!   ECAM, 4 KiB a function ── PciEcam┤        slot 0: the host bridge
//!   BARs, one window a slot ─ PciBars┘        (memory and ports, each at its own place)
//! ```
//! An absent function reads as all ones, with one look at an array. Functions may come and go while the guest runs: a lock a
//! slot, held for as long as its function is looked up.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::config::{Identity, PciConfig};
use crate::bus::BusDevice;

/// Slots on the bus.
pub const SLOTS: usize = 32;
/// First of the ports of configuration mechanism #1.
pub const PORTS_BASE: u64 = 0xcf8;
/// How many ports they are.
pub const PORTS_LEN: u64 = 8;
/// Bytes of address space of the ECAM of one bus.
pub const ECAM_SIZE: u64 = 1 << 20;

/// Bytes of configuration space of a function.
const FUNCTION_SIZE: u64 = 1 << 12;
/// Offset of the data port.
const DATA: u64 = 4;
/// Bit of the address port: configuration accesses are enabled.
const ENABLE: u32 = 1 << 31;

/// The BARs that a function may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// BAR 0.
    Memory,
    /// BAR 1.
    Ports,
}

/// A function on the bus, seen through its configuration space.
///
/// `offset + data.len()` is at most 4096, and `data` is 1, 2 or 4 bytes.
pub trait PciFunction: Send + Sync {
    /// Fills `data`.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Takes `data`.
    fn config_write(&self, offset: u16, data: &[u8]);

    /// What answers in a BAR, if the function has it.
    fn bar(&self, _bar: Bar) -> Option<&dyn BusDevice> {
        None
    }
}

/// Why a function could not be added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Another function is there, or the bus has no such slot.
    #[error("slot {0} is taken, or not one of the bus's 32")]
    Unusable(usize),
    /// Every slot is taken.
    #[error("all 32 slots of the bus are taken")]
    Full,
}

/// The host bridge, 00:00.0: it only says that it is there.
struct HostBridge(PciConfig);

impl PciFunction for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn config_write(&self, _offset: u16, _data: &[u8]) {}
}

type Slot = Option<Arc<dyn PciFunction>>;

/// The bus and what sits on it, shared between the ways of access. Functions are added and removed from any thread.
pub struct PciRoot {
    slots: [RwLock<Slot>; SLOTS],
}

impl Default for PciRoot {
    fn default() -> Self {
        Self::new()
    }
}

impl PciRoot {
    /// A bus with a host bridge in slot 0 and nothing else.
    #[must_use]
    pub fn new() -> Self {
        let bridge = PciConfig::new(&Identity {
            vendor: 0x8086,
            device: 0x0d57,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        let root = Self { slots: [const { RwLock::new(None) }; SLOTS] };
        *root.write_slot(0) = Some(Arc::new(HostBridge(bridge)));
        root
    }

    fn read_slot(&self, slot: usize) -> RwLockReadGuard<'_, Slot> {
        self.slots[slot].read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_slot(&self, slot: usize) -> RwLockWriteGuard<'_, Slot> {
        self.slots[slot].write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is in a slot.
    #[must_use]
    pub fn is_free(&self, slot: usize) -> bool {
        self.function(slot).is_none()
    }

    /// The first slot where nothing is.
    #[must_use]
    pub fn free_slot(&self) -> Option<usize> {
        (0..SLOTS).find(|slot| self.read_slot(*slot).is_none())
    }

    /// Puts `function` into the first free slot, which is returned.
    ///
    /// # Errors
    /// [`SlotError::Full`].
    pub fn add(&self, function: Arc<dyn PciFunction>) -> Result<usize, SlotError> {
        let slot = self.free_slot().ok_or(SlotError::Full)?;
        self.insert(slot, function).map(|()| slot)
    }

    /// Puts `function` into `slot`.
    ///
    /// # Errors
    /// [`SlotError::Unusable`]; the bus is unchanged then.
    pub fn insert(&self, slot: usize, function: Arc<dyn PciFunction>) -> Result<(), SlotError> {
        if slot >= SLOTS {
            return Err(SlotError::Unusable(slot));
        }
        match &mut *self.write_slot(slot) {
            free @ None => {
                *free = Some(function);
                Ok(())
            }
            Some(_) => Err(SlotError::Unusable(slot)),
        }
    }

    /// Takes the function out of `slot`: for the guest it is gone when this returns, but for an access that is under way.
    pub fn remove(&self, slot: usize) -> Option<Arc<dyn PciFunction>> {
        (slot < SLOTS).then(|| self.write_slot(slot).take()).flatten()
    }

    /// The function in a slot.
    fn function(&self, slot: usize) -> Slot {
        (slot < SLOTS).then(|| self.read_slot(slot).clone()).flatten()
    }

    /// The function at this bus, device and function number, packed as bits 15:8, 7:3 and 2:0.
    fn find(&self, bdf: usize) -> Slot {
        if bdf & 7 != 0 {
            return None;
        }
        self.function(bdf >> 3)
    }

    /// All accesses end here; `address` is as in the ECAM.
    fn read(&self, address: u64, data: &mut [u8]) {
        let (function, offset) = self.decode(address);
        match function {
            Some(function) => {
                data.fill(0);
                for (at, piece) in (offset..).step_by(4).zip(data.chunks_mut(4)) {
                    if usize::from(at) + piece.len() <= 4096 {
                        function.config_read(at, piece);
                    }
                }
            }
            None => data.fill(0xff),
        }
    }

    fn write(&self, address: u64, data: &[u8]) {
        if let (Some(function), offset) = self.decode(address) {
            for (at, piece) in (offset..).step_by(4).zip(data.chunks(4)) {
                if usize::from(at) + piece.len() <= 4096 {
                    function.config_write(at, piece);
                }
            }
        }
    }

    fn decode(&self, address: u64) -> (Slot, u16) {
        let offset = u16::try_from(address % FUNCTION_SIZE).expect("below 4096");
        (usize::try_from(address / FUNCTION_SIZE).ok().and_then(|bdf| self.find(bdf)), offset)
    }
}

/// Configuration mechanism #1: an address port and a data port. Put it at [`PORTS_BASE`], [`PORTS_LEN`] long.
pub struct PciPorts {
    root: Arc<PciRoot>,
    address: AtomicU32,
}

impl PciPorts {
    /// The ports of `root`.
    #[must_use]
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self { root, address: AtomicU32::new(0) }
    }

    /// Where in the ECAM an access to the data port goes, `None` if accesses are disabled or it is to another port.
    fn target(&self, offset: u64, len: usize) -> Option<u64> {
        let address = self.address.load(Ordering::Acquire);
        let lane = offset.checked_sub(DATA)?;
        let fits = lane + u64::try_from(len).ok()? <= 4;
        // Bus, device and function in bits 23:8, register in bits 7:2.
        let target = (u64::from(address) >> 8 & 0xffff) << 12 | u64::from(address) & 0xfc | lane;
        (fits && address & ENABLE != 0).then_some(target)
    }
}

impl BusDevice for PciPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = self.address.load(Ordering::Acquire).to_le_bytes();
        } else if let Some(target) = self.target(offset, data.len()) {
            self.root.read(target, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            // Bits 30:24 and 1:0 are reserved.
            self.address.store(u32::from_le_bytes(data) & 0x80ff_fffc, Ordering::Release);
        } else if let Some(target) = self.target(offset, data.len()) {
            self.root.write(target, data);
        }
    }
}

/// Memory-mapped configuration of bus 0 (PCI Express 7.2.2). Put it where the MCFG table says, [`ECAM_SIZE`] long.
pub struct PciEcam(Arc<PciRoot>);

impl PciEcam {
    /// The window onto `root`.
    #[must_use]
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self(root)
    }
}

impl BusDevice for PciEcam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// The memory of all functions, or their ports: as many windows of one size as there are slots, in their order, each of which is the
/// slot's BAR. Put it where slot 0's window begins.
pub struct PciBars {
    root: Arc<PciRoot>,
    bar: Bar,
    size: u64,
}

impl PciBars {
    /// Windows of `size` bytes each. What is beyond a function's BAR in its window, or has no function, reads as all ones.
    #[must_use]
    pub fn new(root: Arc<PciRoot>, bar: Bar, size: u32) -> Self {
        Self { root, bar, size: size.into() }
    }

    /// Bytes of all windows.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size * SLOTS as u64
    }

    fn find(&self, offset: u64) -> Slot {
        self.root.function(usize::try_from(offset / self.size).ok()?)
    }
}

impl BusDevice for PciBars {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset).as_ref().and_then(|function| function.bar(self.bar)) {
            Some(bar) => bar.read(offset % self.size, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(bar) = self.find(offset).as_ref().and_then(|function| function.bar(self.bar)) {
            bar.write(offset % self.size, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Stub;
    impl PciFunction for Stub {
        fn config_read(&self, offset: u16, data: &mut [u8]) {
            assert!(usize::from(offset) + data.len() <= 4096 && matches!(data.len(), 1 | 2 | 4));
            data.fill(7);
        }
        fn config_write(&self, offset: u16, data: &[u8]) {
            assert!(usize::from(offset) + data.len() <= 4096 && matches!(data.len(), 1 | 2 | 4));
        }
    }

    fn rig() -> (PciPorts, PciEcam) {
        let root = PciRoot::new();
        assert_eq!(root.add(Arc::new(Stub)), Ok(1));
        assert_eq!(root.insert(1, Arc::new(Stub)), Err(SlotError::Unusable(1)));
        assert_eq!(root.insert(32, Arc::new(Stub)), Err(SlotError::Unusable(32)));
        assert_eq!(root.insert(31, Arc::new(Stub)), Ok(()));
        let root = Arc::new(root);
        (PciPorts::new(Arc::clone(&root)), PciEcam::new(root))
    }

    fn port_read(ports: &PciPorts, address: u32) -> u32 {
        let mut data = [0; 4];
        ports.write(0, &address.to_le_bytes());
        ports.read(DATA, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn both_ways_find_the_same_functions_and_all_ones_elsewhere() {
        let (ports, ecam) = rig();
        for (slot, expected) in [(0u32, 0x0d57_8086u32), (1, 0x0707_0707), (2, u32::MAX), (31, 0x0707_0707)] {
            let mut data = [0; 4];
            ecam.read(u64::from(slot) << 15, &mut data);
            assert_eq!(u32::from_le_bytes(data), expected);
            assert_eq!(port_read(&ports, ENABLE | slot << 11), expected);
            // Function 1 of it, and the same slot on bus 1.
            assert_eq!(port_read(&ports, ENABLE | slot << 11 | 1 << 8), u32::MAX);
            assert_eq!(port_read(&ports, ENABLE | 1 << 16 | slot << 11), u32::MAX);
        }
    }

    #[test]
    fn ports_answer_only_while_enabled_and_keep_the_address() {
        let (ports, _) = rig();
        assert_eq!(port_read(&ports, 0), u32::MAX);
        ports.write(0, &u32::MAX.to_le_bytes());
        let mut data = [0; 4];
        ports.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x80ff_fffc);
        // A byte written to 0xcf9 or 0xcfb is no address.
        ports.write(3, &[1]);
        ports.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x80ff_fffc);
    }

    #[test]
    fn the_host_bridge_says_its_class_and_ignores_writes() {
        let (ports, _) = rig();
        assert_eq!(port_read(&ports, ENABLE | 8), 0x0600_0000);
        ports.write(DATA, &[0xff; 4]);
        assert_eq!(port_read(&ports, ENABLE | 8), 0x0600_0000);
    }

    #[test]
    fn a_full_bus_refuses_one_more() {
        let root = PciRoot::new();
        for slot in 1..SLOTS {
            assert_eq!(root.add(Arc::new(Stub)), Ok(slot));
        }
        assert_eq!(root.add(Arc::new(Stub)), Err(SlotError::Full));
    }

    proptest! {
        #[test]
        fn any_access_is_answered(offset in 0..ECAM_SIZE, address: u32, lane in 0u64..8, width in 0usize..4) {
            let (ports, ecam) = rig();
            let mut data = [0u8; 8];
            let data = &mut data[..1 << width];
            ecam.write(offset, data);
            ecam.read(offset, data);
            ports.write(0, &(address | ENABLE).to_le_bytes());
            ports.write(lane, data);
            ports.read(lane, data);
        }
    }
}
