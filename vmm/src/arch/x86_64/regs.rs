//! What the boot processor's registers hold when the kernel gets control.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::layout;

/// How the kernel wants to be entered, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit entry (Linux `Documentation/arch/x86/boot.rst`): long mode, RSI points at the zero page.
    Linux64(u64),
    /// PVH (Xen `docs/misc/pvh.pandoc`): 32-bit protected mode, EBX points at `hvm_start_info`.
    Pvh(u64),
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TSS: u64 = 0x0000_8b00_0000_0067;

/// General-purpose registers at the entry.
#[must_use]
pub fn general(entry: Entry) -> kvm_regs {
    let reserved = 2; // RFLAGS bit 1 reads as one
    match entry {
        Entry::Linux64(rip) => kvm_regs {
            rip,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            rsi: layout::ZERO_PAGE.0,
            rflags: reserved,
            ..Default::default()
        },
        Entry::Pvh(rip) => kvm_regs { rip, rbx: layout::PVH_INFO.0, rflags: reserved, ..Default::default() },
    }
}

/// Floating-point state after FNINIT.
#[must_use]
pub fn floating_point() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// The segment register that GDT entry `index` holding `descriptor` loads (Intel SDM vol. 3 §3.4.5).
#[allow(clippy::cast_possible_truncation)] // each field is masked to its width
fn segment(index: u16, descriptor: u64) -> kvm_segment {
    let flag = |bit: u32| (descriptor >> bit & 1) as u8;
    let g = flag(55);
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    kvm_segment {
        base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
        limit: if g == 1 { limit << 12 | 0xfff } else { limit },
        selector: index * 8,
        type_: (descriptor >> 40 & 0xf) as u8,
        present: flag(47),
        dpl: (descriptor >> 45 & 3) as u8,
        db: flag(54),
        s: flag(44),
        l: flag(53),
        g,
        avl: flag(52),
        unusable: 0,
        padding: 0,
    }
}

/// Writes the GDT, an empty IDT and, for the 64-bit entry, page tables that map the first GiB onto itself, and changes
/// `sregs` to use them.
///
/// # Panics
/// If the first MiB is not RAM.
pub fn set_up_tables(ram: &GuestMemoryMmap<()>, entry: Entry, sregs: &mut kvm_sregs) {
    let in_ram = "the first MiB is RAM";
    let code = if matches!(entry, Entry::Linux64(_)) { CODE64 } else { CODE32 };
    // Linux's boot protocol wants __BOOT_CS at 0x10 and __BOOT_DS at 0x18.
    let gdt = [0, 0, code, DATA, TSS];
    for (slot, descriptor) in (0u64..).zip(gdt) {
        ram.write_obj(descriptor, vm_memory::GuestAddress(layout::GDT.0 + slot * 8)).expect(in_ram);
    }
    ram.write_obj(0u64, layout::IDT).expect(in_ram);
    sregs.gdt.base = layout::GDT.0;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = layout::IDT.0;
    sregs.idt.limit = 7;
    sregs.cs = segment(2, code);
    let data = segment(3, DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(4, TSS);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if matches!(entry, Entry::Linux64(_)) {
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        ram.write_obj(layout::PDPTE.0 | PRESENT_WRITABLE, layout::PML4).expect(in_ram);
        ram.write_obj(layout::PDE.0 | PRESENT_WRITABLE, layout::PDPTE).expect(in_ram);
        let mut pde = [0u8; 4096];
        for (slot, bytes) in (0u64..).zip(pde.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&(slot << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes());
        }
        ram.write_slice(&pde, layout::PDE).expect(in_ram);
        sregs.cr3 = layout::PML4.0;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
}

const _: () = assert!(layout::GDT.0 + 5 * 8 <= layout::IDT.0 + 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_decode_to_the_segments_they_describe() {
        let code = segment(2, CODE64);
        assert_eq!((code.selector, code.base, code.limit, code.l, code.db), (0x10, 0, 0xffff_ffff, 1, 0));
        let code = segment(2, CODE32);
        assert_eq!((code.l, code.db, code.type_, code.s), (0, 1, 0xb, 1));
        let tss = segment(4, TSS);
        assert_eq!((tss.limit, tss.s, tss.type_, tss.present), (0x67, 0, 0xb, 1));
    }
}
