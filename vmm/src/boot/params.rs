//! The structures through which a kernel learns its command line, initrd, memory map and ACPI tables.

use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::kernel::Kernel;
use crate::arch::x86_64::layout::{self, MapEntry};
use crate::arch::x86_64::regs::Entry;

/// What is to be told.
pub struct BootInfo<'a> {
    /// The command line, without a NUL.
    pub cmdline: &'a str,
    /// The initrd's place and size.
    pub initrd: Option<(GuestAddress, u64)>,
    /// The memory map.
    pub map: &'a [MapEntry],
    /// The ACPI root pointer.
    pub rsdp: GuestAddress,
}

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

fn kind(entry: &MapEntry) -> u32 {
    if entry.usable { E820_RAM } else { E820_RESERVED }
}

/// Writes what the kernel's entry expects.
///
/// # Panics
/// If the first MiB is not RAM, the command line is longer than its room, or the map longer than the boot protocol's.
pub fn write(ram: &GuestMemoryMmap<()>, kernel: &Kernel, info: &BootInfo<'_>) {
    assert!(info.cmdline.len() < layout::CMDLINE_SIZE_MAX, "checked when it was put together");
    let mut cmdline = info.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    ram.write_slice(&cmdline, layout::CMDLINE).expect("the first MiB is RAM");
    match kernel.entry {
        Entry::Linux64(_) => write_zero_page(ram, kernel, info),
        Entry::Pvh(_) => write_start_info(ram, info),
    }
}

fn u32_of(value: u64) -> u32 {
    u32::try_from(value).expect("placed below 4 GiB")
}

/// Linux `Documentation/arch/x86/zero-page.rst`.
fn write_zero_page(ram: &GuestMemoryMmap<()>, kernel: &Kernel, info: &BootInfo<'_>) {
    let mut params = boot_params::default();
    match kernel.setup_header {
        Some(header) => params.hdr = header,
        None => {
            params.hdr.boot_flag = 0xaa55;
            params.hdr.header = 0x5372_6448;
            params.hdr.kernel_alignment = 0x100_0000;
        }
    }
    params.hdr.type_of_loader = 0xff;
    params.hdr.cmd_line_ptr = u32_of(layout::CMDLINE.0);
    params.hdr.cmdline_size = u32::try_from(info.cmdline.len() + 1).expect("at most 2048");
    if let Some((start, size)) = info.initrd {
        params.hdr.ramdisk_image = u32_of(start.0);
        params.hdr.ramdisk_size = u32_of(size);
    }
    params.acpi_rsdp_addr = info.rsdp.0;
    for (slot, entry) in params.e820_table.iter_mut().zip(info.map) {
        slot.addr = entry.start;
        slot.size = entry.len;
        slot.r#type = kind(entry);
    }
    params.e820_entries = u8::try_from(info.map.len()).expect("a handful");
    ram.write_obj(params, layout::ZERO_PAGE).expect("the first MiB is RAM");
}

/// Xen `public/arch-x86/hvm/start_info.h`.
fn write_start_info(ram: &GuestMemoryMmap<()>, info: &BootInfo<'_>) {
    let in_ram = "the first MiB is RAM";
    let mut start_info = hvm_start_info {
        magic: 0x336e_c578,
        version: 1,
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: info.rsdp.0,
        memmap_paddr: layout::PVH_MEMMAP.0,
        memmap_entries: u32::try_from(info.map.len()).expect("a handful"),
        ..Default::default()
    };
    if let Some((start, size)) = info.initrd {
        start_info.nr_modules = 1;
        start_info.modlist_paddr = layout::PVH_MODULES.0;
        let module = hvm_modlist_entry { paddr: start.0, size, ..Default::default() };
        ram.write_obj(module, layout::PVH_MODULES).expect(in_ram);
    }
    for (slot, entry) in (0u64..).zip(info.map) {
        let at = GuestAddress(layout::PVH_MEMMAP.0 + slot * size_of::<hvm_memmap_table_entry>() as u64);
        let entry =
            hvm_memmap_table_entry { addr: entry.start, size: entry.len, type_: kind(entry), reserved: 0 };
        ram.write_obj(entry, at).expect(in_ram);
    }
    ram.write_obj(start_info, layout::PVH_INFO).expect(in_ram);
}
