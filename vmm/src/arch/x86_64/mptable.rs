//! The MultiProcessor table (Intel MPS 1.4), for kernels without ACPI or booted with `acpi=off`: processors, the I/O
//! APIC and the ISA interrupts. It lies in the extended BIOS data area, where such kernels look.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;

const APIC_VERSION: u8 = 0x14;
const PINS: u8 = 24;

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

/// The floating pointer and the configuration table behind it, to lie at [`layout::EBDA`].
///
/// # Panics
/// For more than 32 vCPUs: the table would not fit its room.
#[must_use]
pub fn table(vcpus: u8) -> Vec<u8> {
    assert!(vcpus <= 32, "the machine configuration allows 32");
    let ioapic_id = vcpus;
    let mut body = Vec::new();
    for id in 0..vcpus {
        // Processor entry: enabled, the first is the boot processor; CPU signature and features (FPU, APIC).
        let flags = 1 | u8::from(id == 0) << 1;
        body.extend([0, id, APIC_VERSION, flags]);
        body.extend(0x600u32.to_le_bytes());
        body.extend(0x201u32.to_le_bytes());
        body.extend([0; 8]);
    }
    body.extend([1, 0]);
    body.extend(b"ISA   ");
    body.extend([2, ioapic_id, APIC_VERSION, 1]);
    body.extend(layout::IOAPIC.to_le_bytes());
    // I/O interrupts: type INT, polarity and trigger as the bus has them, ISA IRQ n at pin n.
    for irq in 0..PINS {
        body.extend([3, 0, 0, 0, 0, irq, ioapic_id, irq]);
    }
    // Local interrupts: ExtINT at LINT0 of the boot processor, NMI at LINT1 of all.
    body.extend([4, 3, 0, 0, 0, 0, 0, 0]);
    body.extend([4, 1, 0, 0, 0, 0, 0xff, 1]);

    let mut header = Vec::with_capacity(44);
    header.extend(b"PCMP");
    header.extend(u16::try_from(44 + body.len()).expect("under 1 KiB").to_le_bytes());
    header.extend([4, 0]); // revision 1.4, checksum
    header.extend(b"YUN     ");
    header.extend(b"MICROVM     ");
    header.extend([0; 6]); // OEM table
    let entries = u16::from(vcpus) + 2 + u16::from(PINS) + 2;
    header.extend(entries.to_le_bytes());
    header.extend(layout::LAPIC.to_le_bytes());
    header.extend([0; 4]);
    header.extend(body);
    header[7] = checksum(&header);

    let mut out = Vec::with_capacity(16 + header.len());
    out.extend(b"_MP_");
    out.extend(u32::try_from(layout::EBDA + 16).expect("in the first MiB").to_le_bytes());
    out.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    out[10] = checksum(&out);
    out.extend(header);
    out
}

/// Writes the table into guest RAM.
///
/// # Panics
/// If the first MiB is not RAM.
pub fn write(ram: &GuestMemoryMmap<()>, vcpus: u8) {
    ram.write_slice(&table(vcpus), GuestAddress(layout::EBDA)).expect("the first MiB is RAM");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_table_fits_the_ebda_and_both_checksums_hold() {
        for vcpus in [1, 2, 32] {
            let table = table(vcpus);
            assert!(table.len() as u64 <= layout::EBDA_END - layout::EBDA, "{} bytes", table.len());
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!((sum(&table[..16]), sum(&table[16..])), (0, 0));
            assert_eq!(usize::from(u16::from_le_bytes([table[20], table[21]])), table.len() - 16);
        }
    }
}
