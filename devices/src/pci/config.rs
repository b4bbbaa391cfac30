//! The configuration space of one function: type 0 header, a memory BAR and one of ports, a list of capabilities.
//!
//! Every bit is what the machine put there unless a mask says that the guest may write it.

/// Bytes of a conventional configuration space; beyond it a PCI Express one reads as zeros: no extended capabilities.
const LEN: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

const BAR1: usize = 0x14;

/// Command register: I/O space, memory space, bus master and interrupt disable can be written; they are remembered, nothing more.
const COMMAND_WRITABLE: u16 = 1 | 1 << 1 | 1 << 2 | 1 << 10;
/// Status register: there is a capability list.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Enhanced Allocation's capability ID.
const ENHANCED_ALLOCATION: u8 = 0x14;
/// The first word of an entry: two words follow (bits 2:0), it is what BAR 0 would be (7:4) and memory (15:8), for a reader
/// that does not know this kind there is no second best (23:16), and it is enabled (31).
const EA_ENTRY_BAR0: u32 = 2 | 0xff << 16 | 1 << 31;
/// Likewise what BAR 1 would be, and I/O space.
const EA_ENTRY_BAR1: u32 = 2 | 1 << 4 | 2 << 8 | 0xff << 16 | 1 << 31;

/// What a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, subclass and programming interface: 0x00ccsspp.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// A BAR: of 32-bit memory, or of ports.
#[derive(Debug, Clone, Copy)]
struct Bar {
    /// Where it is in the configuration space.
    at: usize,
    /// Bit 0: it is one of ports. Reads have it, whatever is written.
    kind: u32,
    address: u32,
    size: u32,
    /// The guest wrote ones into every address bit: the next reads answer the size (§6.2.5.1).
    sizing: bool,
}

impl Bar {
    fn value(&self) -> u32 {
        let address = if self.sizing { !(self.size - 1) } else { self.address };
        address | self.kind
    }

    fn write(&mut self, value: u32) {
        let address_bits = !(self.size - 1);
        self.sizing = value & address_bits == address_bits;
    }
}

/// Where a function's memory and its ports are, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// First address of its memory.
    pub memory: u32,
    /// Bytes of it: a power of two of at least 16.
    pub memory_size: u32,
    /// Its first port.
    pub ports: u16,
    /// How many there are: a power of two from 4 to 256.
    pub ports_size: u16,
}

impl Resources {
    fn assert_sound(&self) {
        let Self { memory, memory_size, ports, ports_size } = *self;
        assert!(memory_size.is_power_of_two() && memory_size >= 16, "{memory_size:#x} bytes of memory");
        assert!(memory.is_multiple_of(memory_size), "{memory:#x} is aligned to {memory_size:#x}");
        assert!(ports_size.is_power_of_two() && (4..=256).contains(&ports_size), "{ports_size} ports");
        assert!(ports.is_multiple_of(ports_size), "{ports:#x} is aligned to {ports_size:#x}");
    }
}

/// One function's configuration space.
#[derive(Debug)]
pub struct PciConfig {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    bars: Vec<Bar>,
    /// Where the next capability's offset goes.
    link: usize,
    /// The first byte that no capability takes.
    free: usize,
}

impl PciConfig {
    /// A function without BAR and capabilities. It has no interrupt pin.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut config = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            bars: Vec::new(),
            link: CAPABILITIES,
            free: FIRST_CAPABILITY,
        };
        config.put(0, &identity.vendor.to_le_bytes());
        config.put(2, &identity.device.to_le_bytes());
        config.put(REVISION, &[identity.revision]);
        config.put(CLASS, &identity.class.to_le_bytes()[..3]);
        config.put(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        config.put(SUBSYSTEM, &identity.subsystem.to_le_bytes());
        config.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        config.writable[INTERRUPT_LINE] = 0xff;
        config
    }

    fn put(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Gives the function BAR 0, of 32-bit memory, and BAR 1, of ports, for good.
    ///
    /// # Panics
    /// If `resources` are not of the sizes that they say, or not aligned to them.
    pub fn set_bars(&mut self, resources: &Resources) {
        resources.assert_sound();
        let Resources { memory, memory_size, ports, ports_size } = *resources;
        self.bars = vec![
            Bar { at: BAR0, kind: 0, address: memory, size: memory_size, sizing: false },
            Bar { at: BAR1, kind: 1, address: ports.into(), size: ports_size.into(), sizing: false },
        ];
    }

    /// Gives the function memory and ports, for good, in the place of BARs 0 and 1, which read zero: Enhanced Allocation
    /// (PCI Express 5.0 §7.8.5). For functions that come while the guest runs: a guest that finds a BAR then gives it an address
    /// of its own choice, and this says that there is none to be made.
    ///
    /// # Panics
    /// As [`PciConfig::set_bars`] and [`PciConfig::add_capability`].
    pub fn set_fixed(&mut self, resources: &Resources) {
        resources.assert_sound();
        let Resources { memory, memory_size, ports, ports_size } = *resources;
        let entries = [
            [EA_ENTRY_BAR0, memory, memory_size - 4],
            [EA_ENTRY_BAR1, ports.into(), u32::from(ports_size) - 4],
        ];
        let mut body = vec![2, 0]; // entries
        for word in entries.as_flattened() {
            body.extend(word.to_le_bytes());
        }
        self.add_capability(ENHANCED_ALLOCATION, &body, &[]);
    }

    /// Appends a capability: its ID, and `body`, which follows the two bytes of ID and link. The guest may write the bits of
    /// `writable`, which is as long as `body` or shorter. Returns the capability's offset.
    ///
    /// # Panics
    /// If there is no room left.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let offset = self.free;
        let end = offset + 2 + body.len();
        assert!(end <= LEN && writable.len() <= body.len(), "capabilities fit in the configuration space");
        self.bytes[self.link] = u8::try_from(offset).expect("below 256");
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.put(offset, &[id, 0]);
        self.put(offset + 2, body);
        self.writable[offset + 2..offset + 2 + writable.len()].copy_from_slice(writable);
        self.link = offset + 1;
        self.free = end.next_multiple_of(4);
        u16::try_from(offset).expect("below 256")
    }

    /// The byte at `offset`; zero past the end.
    fn byte(&self, offset: usize) -> u8 {
        match self.bars.iter().find(|bar| (bar.at..bar.at + 4).contains(&offset)) {
            Some(bar) => bar.value().to_le_bytes()[offset - bar.at],
            None => self.bytes.get(offset).copied().unwrap_or(0),
        }
    }

    /// Fills `data` from `offset`; zeros past the end.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.byte(at);
        }
    }

    /// The little-endian 16 bits at `offset`.
    #[must_use]
    pub fn read_u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// The little-endian 32 bits at `offset`.
    #[must_use]
    pub fn read_u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Takes the writable bits of `data`.
    ///
    /// BARs do not move: a write of ones to all address bits of one asks for its size, any other puts it back to its place.
    /// A guest that wanted to move it finds out by reading back, as Linux does, and keeps what was assigned.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let offset = usize::from(offset);
        if let Some(bar) = self.bars.iter_mut().find(|bar| bar.at == offset)
            && let Ok(value) = <[u8; 4]>::try_from(data)
        {
            bar.write(u32::from_le_bytes(value));
        }
        for (at, byte) in (offset..).zip(data) {
            if let (Some(held), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *held = *held & !mask | byte & mask;
            }
        }
    }

    /// Clears every bit that the guest may write, as a reset of the bus does.
    pub fn reset(&mut self) {
        for (held, mask) in self.bytes.iter_mut().zip(&self.writable) {
            *held &= !mask;
        }
        self.bars.iter_mut().for_each(|bar| bar.sizing = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOURCES: Resources =
        Resources { memory: 0xe000_0000, memory_size: 0x8000, ports: 0x1080, ports_size: 0x80 };

    fn config() -> PciConfig {
        let mut config = PciConfig::new(&Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_8000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1042,
        });
        config.set_bars(&RESOURCES);
        config
    }

    #[test]
    fn fixed_resources_are_told_by_enhanced_allocation_and_bars_are_not_there() {
        let mut config = PciConfig::new(&Identity {
            vendor: 1,
            device: 2,
            revision: 0,
            class: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        config.set_fixed(&Resources { memory: 0xe100_8000, ..RESOURCES });
        let at = u16::from(config.read_u32(0x34).to_le_bytes()[0]);
        // Two entries; of an entry: its kind, where it begins, and its last 32-bit word.
        let words = [0, 4, 8, 12, 16, 20, 24].map(|word| config.read_u32(at + word));
        assert_eq!(words, [0x0002_0014, 0x80ff_0002, 0xe100_8000, 0x7ffc, 0x80ff_0212, 0x1080, 0x7c]);
        for value in [0xffff_ffff, 0xe200_0000u32] {
            for bar in [0x10, 0x14] {
                config.write(bar, &value.to_le_bytes());
                config.write(at + 8, &value.to_le_bytes());
                assert_eq!((config.read_u32(bar), config.read_u32(at + 8)), (0, 0xe100_8000));
            }
        }
    }

    #[test]
    fn a_guest_learns_the_size_of_the_bar_and_can_not_move_it() {
        let mut config = config();
        assert_eq!(config.read_u32(0x10), 0xe000_0000);
        for ones in [u32::MAX, 0xffff_fff0] {
            config.write(0x10, &ones.to_le_bytes());
            assert_eq!(config.read_u32(0x10), 0xffff_8000);
            config.write(0x10, &0xe000_0000u32.to_le_bytes());
            assert_eq!(config.read_u32(0x10), 0xe000_0000);
        }
        config.write(0x10, &0xd000_0000u32.to_le_bytes());
        assert_eq!(config.read_u32(0x10), 0xe000_0000);
        for ones in [u32::MAX, 0xffff_fffc] {
            config.write(0x14, &ones.to_le_bytes());
            assert_eq!(config.read_u32(0x14), 0xffff_ff81);
            config.write(0x14, &0x1081u32.to_le_bytes());
            assert_eq!(config.read_u32(0x14), 0x1081);
        }
        for absent in 2..6 {
            config.write(0x10 + 4 * absent, &[0xff; 4]);
            assert_eq!(config.read_u32(0x10 + 4 * absent), 0);
        }
    }

    #[test]
    fn only_masked_bits_can_be_written_wherever_a_guest_tries() {
        let mut config = config();
        let cap = config.add_capability(0x11, &[0; 10], &[0x00, 0xc0]);
        for offset in 0..260 {
            for width in [1, 2, 4] {
                if !matches!(offset, 0x10 | 0x14) || width != 4 {
                    config.write(offset, &[0xff; 4][..width]);
                }
            }
        }
        assert_eq!(config.read_u32(0), 0x1042_1af4);
        assert_eq!(config.read_u32(4), 0x0010_0000 | u32::from(COMMAND_WRITABLE));
        assert_eq!(config.read_u32(8), 0x0180_0001);
        assert_eq!((config.read_u32(0x10), config.read_u32(0x14)), (0xe000_0000, 0x1081));
        assert_eq!(config.read_u32(0x3c), 0xff);
        assert_eq!(config.read_u32(cap), 0xc000_0011);
        assert_eq!(config.read_u32(0xfe), 0);
        config.reset();
        assert_eq!(config.read_u32(4), 0x0010_0000);
        assert_eq!(config.read_u32(cap), 0x0000_0011);
    }

    #[test]
    fn capabilities_are_linked_in_order_and_aligned() {
        let mut config = config();
        let first = config.add_capability(0x09, &[1, 2, 3], &[]);
        let second = config.add_capability(0x11, &[4; 10], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(config.read_u32(0x34), 0x40);
        assert_eq!(config.read_u32(first), 0x0201_4809);
        assert_eq!(config.read_u16(second), 0x0011);
    }
}
