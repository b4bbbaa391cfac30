//! What goes beside a kernel that was loaded: the initrd, the command line, the structures of the boot protocols.

use std::io::Read;

use devices_fuzz::Input;
use linux_loader::loader::bootparam::{boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::arch::x86_64::acpi::MmioDevice;
use vmm::arch::x86_64::layout;
use vmm::arch::x86_64::regs::Entry;
use vmm::boot::cmdline::{Root, assemble};
use vmm::boot::kernel::{Kernel, load_initrd};
use vmm::boot::params::{BootInfo, write};

use crate::memory::{LOW_END, blank_outside, file, with_ram};

const CAN_BE_ABOVE_4G: u16 = 1 << 1;

/// A kernel as loading an image might leave it.
fn kernel(input: &mut Input) -> Kernel {
    let end = match input.byte() % 4 {
        0 => input.qword(),
        1 => u64::from(input.dword()),
        _ => layout::HIMEM.0 + u64::from(input.word()),
    };
    let entry = if input.chance() { Entry::Pvh(layout::HIMEM.0) } else { Entry::Linux64(layout::HIMEM.0) };
    let setup_header = input.chance().then(|| setup_header {
        version: input.word(),
        xloadflags: input.word(),
        initrd_addr_max: input.dword(),
        cmdline_size: input.dword(),
        ..Default::default()
    });
    Kernel { entry, end, setup_header }
}

/// The words of a command line as Linux's `next_arg` (lib/cmdline.c) sees them, as far as `--`, which ends the kernel's own.
fn kernels_own(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in line.chars().chain(Some(' ')) {
        if (c == ' ' || c == '\t') && !quoted {
            let bare = word.strip_prefix('"').map_or(&*word, |rest| rest.strip_suffix('"').unwrap_or(rest));
            if bare == "--" {
                break;
            }
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
        } else {
            quoted ^= c == '"';
            word.push(c);
        }
    }
    words
}

/// The initrd lies where nothing else does, whole.
fn check_initrd(
    input: &mut Input,
    ram: &GuestMemoryMmap<()>,
    kernel: &Kernel,
) -> Option<(GuestAddress, u64)> {
    let bytes = input.slice(usize::from(input.0.first().copied().unwrap_or(0)));
    let zeros = u64::from(input.word()) * if input.chance() { 64 } else { 1 };
    let mut initrd = file(bytes, zeros);
    let (start, size) = match load_initrd(ram, kernel, &mut initrd, LOW_END) {
        Ok(placed) => placed,
        Err(error) => {
            assert_ne!(error.to_string(), "");
            return None;
        }
    };
    let end = start.0 + size;
    assert_eq!((size, start.0 % 4096), (bytes.len() as u64 + zeros, 0));
    assert!(start.0 >= kernel.end && start.0 >= layout::HIMEM.0 && end <= LOW_END, "{start:?}..{end:#x}");
    if let Some(header) = kernel.setup_header.filter(|header| header.xloadflags & CAN_BE_ABOVE_4G == 0) {
        assert!(size == 0 || end - 1 <= u64::from(header.initrd_addr_max));
    }
    assert!(blank_outside(ram, &(start.0..end)), "written outside the initrd");
    let mut loaded = vec![0; usize::try_from(size).expect("little")];
    ram.read_slice(&mut loaded, start).expect("it is RAM");
    let mut whole = Vec::new();
    std::io::Seek::rewind(&mut initrd).and_then(|()| initrd.read_to_end(&mut whole)).expect("it can be read");
    assert!(loaded == whole, "the initrd arrived otherwise");
    Some((start, size))
}

/// What the kernel finds through its entry is what there is.
fn check_params(ram: &GuestMemoryMmap<()>, kernel: &Kernel, info: &BootInfo<'_>) {
    write(ram, kernel, info);
    let mut line = vec![0xff; info.cmdline.len() + 1];
    ram.read_slice(&mut line, layout::CMDLINE).expect("it is RAM");
    assert_eq!((&line[..info.cmdline.len()], line[info.cmdline.len()]), (info.cmdline.as_bytes(), 0));
    let initrd = info.initrd.map(|(start, size)| (start.0, size));
    let map: Vec<_> = info.map.iter().map(|entry| (entry.start, entry.len)).collect();
    match kernel.entry {
        Entry::Linux64(_) => {
            let params: boot_params = ram.read_obj(layout::ZERO_PAGE).expect("it is RAM");
            let (header, entries) = (params.hdr, params.e820_table);
            let (image, size) = (u64::from(header.ramdisk_image), u64::from(header.ramdisk_size));
            assert_eq!((image, size), initrd.unwrap_or_default());
            assert_eq!({ header.cmdline_size } as usize, info.cmdline.len() + 1);
            let told = entries[..usize::from(params.e820_entries)].iter();
            assert_eq!(told.map(|entry| (entry.addr, entry.size)).collect::<Vec<_>>(), map);
        }
        Entry::Pvh(_) => {
            let start_info: hvm_start_info = ram.read_obj(layout::PVH_INFO).expect("it is RAM");
            assert_eq!(start_info.nr_modules as usize, initrd.iter().count());
            if let Some(initrd) = initrd {
                let module: hvm_modlist_entry = ram.read_obj(layout::PVH_MODULES).expect("it is RAM");
                assert_eq!((module.paddr, module.size), initrd);
            }
            for (index, told) in (0..start_info.memmap_entries).zip(map) {
                let at = GuestAddress(layout::PVH_MEMMAP.0 + 24 * u64::from(index));
                let entry: hvm_memmap_table_entry = ram.read_obj(at).expect("it is RAM");
                assert_eq!((entry.addr, entry.size), told);
            }
        }
    }
}

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let kernel = kernel(&mut input);
    with_ram(|ram| {
        let initrd = check_initrd(&mut input, ram, &kernel);
        let flags = input.byte();
        let device = String::from_utf8_lossy(input.slice(usize::from(flags >> 4))).into_owned();
        let root = (flags & 1 != 0).then_some(Root { device, read_only: flags & 2 != 0 });
        let pci = flags & 4 != 0;
        let mmio: Vec<_> = (0..input.byte() % 19)
            .map(|index| MmioDevice { base: layout::VIRTIO_MMIO + 0x1000 * u64::from(index), gsi: 5 })
            .collect();
        let args = String::from_utf8_lossy(input.0);
        let max = kernel.cmdline_max();
        let line = match assemble(&args, root.as_ref(), pci, &mmio, max) {
            Ok(line) => line,
            Err(error) => return assert_ne!(error.to_string(), ""),
        };
        assert!(line.len() <= max && line.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t')), "{line:?}");
        let words = kernels_own(&line);
        let added = usize::from(!pci) + 2 * usize::from(root.is_some()) + mmio.len();
        let wanted = kernels_own(&args);
        // An unfinished quotation swallows whatever comes after it; whoever writes one has asked for that.
        if args.matches('"').count().is_multiple_of(2) && root.is_none_or(|root| !root.device.contains('"')) {
            assert_eq!(words[..wanted.len()], wanted, "{line:?}");
            assert_eq!(words.len(), wanted.len() + added, "{line:?}");
        }
        let map = layout::memory_map(LOW_END, pci);
        let rsdp = layout::ACPI_TABLES;
        check_params(ram, &kernel, &BootInfo { cmdline: &line, initrd, map: &map, rsdp });
    });
}
