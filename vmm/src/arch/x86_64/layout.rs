//! The guest-physical address map.
//!
//! ```text
//! 0x0000_0000  real-mode memory: boot structures below 0x9_fc00 (see below), EBDA with the MP table, ACPI tables
//! 0x0010_0000  RAM up to 3 GiB
//! 0xc000_0000  the 32-bit hole: devices
//!   0xd000_0000  boot timer, then one 4 KiB window per virtio-mmio device
//!   0xe000_0000  PCI ECAM (one bus: 1 MiB)
//!   0xe100_0000  PCI memory BARs
//!   0xfec0_0000  I/O APIC      0xfee0_0000  local APICs      0xfffb_d000  KVM's task state segment
//! 0x1_0000_0000 the rest of RAM
//! ```

use std::ops::Range;

use vm_memory::GuestAddress;

/// First address past the low RAM: the 32-bit hole begins.
pub const HOLE_START: u64 = 0xc000_0000;
/// RAM continues here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// The `boot_params` page of the Linux boot protocol.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// `hvm_start_info`, its module list and memory map (PVH).
pub const PVH_INFO: GuestAddress = GuestAddress(0x6000);
/// The PVH module list.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6040);
/// The PVH memory map.
pub const PVH_MEMMAP: GuestAddress = GuestAddress(0x6100);
/// Initial stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Global descriptor table at boot.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// Interrupt descriptor table at boot (empty).
pub const IDT: GuestAddress = GuestAddress(0x520);
/// Page tables at boot: one page each.
pub const PML4: GuestAddress = GuestAddress(0x9000);
/// See [`PML4`].
pub const PDPTE: GuestAddress = GuestAddress(0xa000);
/// See [`PML4`].
pub const PDE: GuestAddress = GuestAddress(0xb000);
/// The kernel's command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// `COMMAND_LINE_SIZE` of x86 Linux: the longest command line, its NUL included.
pub const CMDLINE_SIZE_MAX: usize = 2048;
/// End of conventional memory; the extended BIOS data area with the MP table begins.
pub const EBDA: u64 = 0x9_fc00;
/// End of the EBDA.
pub const EBDA_END: u64 = 0xa_0000;
/// The ACPI tables, in the range that firmware would have used.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// End of the room for ACPI tables.
pub const ACPI_TABLES_END: u64 = 0x10_0000;
/// Where RAM for the kernel begins.
pub const HIMEM: GuestAddress = GuestAddress(0x10_0000);

/// The boot timer: a guest writes 123 here when its init runs.
pub const BOOT_TIMER: u64 = 0xd000_0000;
/// Bytes of a virtio-mmio window and of the boot timer's.
pub const MMIO_WINDOW: u64 = 0x1000;
/// The first virtio-mmio window.
pub const VIRTIO_MMIO: u64 = BOOT_TIMER + MMIO_WINDOW;
/// PCI configuration space (one bus).
pub const ECAM: u64 = 0xe000_0000;
/// Bytes of [`ECAM`].
pub const ECAM_SIZE: u64 = 0x10_0000;
/// PCI memory BARs.
pub const PCI_MEMORY: Range<u64> = 0xe100_0000..0xf000_0000;
/// The I/O APIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages KVM needs on Intel hosts for a task state segment.
pub const KVM_TSS: usize = 0xfffb_d000;
/// One page KVM needs on Intel hosts for an identity map.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// First serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// Its interrupt.
pub const COM1_GSI: u32 = 4;
/// Keyboard controller: data at this port, command and status four above.
pub const I8042_PORT: u16 = 0x60;
/// Its interrupt.
pub const I8042_GSI: u32 = 1;
/// ACPI sleep control, sleep status, reset and event registers: four ports.
pub const ACPI_PORT: u16 = 0x600;
/// Registers of PCI slots whose functions come and go.
pub const PCI_HOTPLUG_PORT: u16 = 0x610;
/// PCI I/O BARs.
pub const PCI_PORTS: Range<u16> = 0x1000..0x2000;
/// Interrupt of ACPI's generic event device.
pub const ACPI_GSI: u32 = 9;
/// pvpanic.
pub const PVPANIC_PORT: u16 = 0x505;
/// The interrupts free for virtio-mmio devices: not the timer's, keyboard's, cascade's, COM1's or ACPI's.
pub const VIRTIO_GSIS: [u32; 18] = [5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

const _: () = {
    assert!(HOLE_START <= BOOT_TIMER && PCI_MEMORY.end <= IOAPIC as u64);
    assert!(VIRTIO_MMIO + VIRTIO_GSIS.len() as u64 * MMIO_WINDOW <= ECAM);
    assert!(ECAM + ECAM_SIZE <= PCI_MEMORY.start);
    assert!(PVH_MEMMAP.0 + 0x100 <= ZERO_PAGE.0 && CMDLINE.0 + CMDLINE_SIZE_MAX as u64 <= EBDA);
};

/// The RAM ranges of a guest with `bytes` of memory, as (start, length): one below the hole, one above it if need be.
#[must_use]
pub fn ram_ranges(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(HOLE_END), bytes - low));
    }
    ranges
}

/// One entry of the memory map handed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// RAM that the kernel may use; reserved otherwise.
    pub usable: bool,
}

/// The memory map of a guest with `bytes` of memory; `ecam` if it has a PCI bus.
#[must_use]
pub fn memory_map(bytes: u64, ecam: bool) -> Vec<MapEntry> {
    let entry = |start, end: u64, usable| MapEntry { start, len: end - start, usable };
    let mut map = vec![
        entry(0, EBDA, true),
        entry(EBDA, EBDA_END, false),
        entry(ACPI_TABLES.0, ACPI_TABLES_END, false),
        entry(HIMEM.0, bytes.min(HOLE_START), true),
    ];
    if ecam {
        map.push(entry(ECAM, ECAM + ECAM_SIZE, false));
    }
    if bytes > HOLE_START {
        map.push(entry(HOLE_END, HOLE_END + (bytes - HOLE_START), true));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ram_is_split_by_the_hole_and_none_of_it_is_lost() {
        for mib in [1, 128, 3071, 3072, 3073, 4096, 6144, 65536] {
            let ranges = ram_ranges(mib * MIB);
            assert_eq!(ranges.iter().map(|(_, len)| len).sum::<u64>(), mib * MIB);
            assert!(
                ranges.iter().all(|(start, len)| start.0 + len <= HOLE_START || start.0 >= HOLE_END),
                "{mib} MiB reaches into the hole: {ranges:?}"
            );
        }
        assert_eq!(ram_ranges(3072 * MIB).len(), 1);
        assert_eq!(ram_ranges(3073 * MIB)[1], (GuestAddress(HOLE_END), MIB));
    }

    #[test]
    fn the_memory_map_is_sorted_disjoint_and_only_claims_ram_that_is_there() {
        for mib in [64, 3072, 6144] {
            let map = memory_map(mib * MIB, true);
            assert!(map.windows(2).all(|w| w[0].start + w[0].len <= w[1].start), "{map:x?}");
            let usable: u64 = map.iter().filter(|e| e.usable).map(|e| e.len).sum();
            assert_eq!(usable, mib * MIB - (HIMEM.0 - EBDA));
        }
    }
}
