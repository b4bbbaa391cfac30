//! Kernel images: ELF (entered by PVH or Linux's 64-bit entry) and bzImage, and the initrd beside them.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::arch::x86_64::layout;
use crate::arch::x86_64::regs::Entry;

/// Program headers of an ELF image, at most: several times what Linux has. Each costs reads of the file.
const SEGMENTS_MAX: u16 = 64;
/// Bytes of ELF notes, at most: a hundred times what Linux has. They are read one by one.
const NOTES_MAX: u64 = 64 << 10;

/// Why an image could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading the file failed.
    #[error("cannot read the kernel image: {0}")]
    Read(std::io::Error),
    /// Neither an ELF file nor a bzImage.
    #[error("the kernel image is neither a 64-bit x86 ELF file (vmlinux) nor a bzImage")]
    NotAKernel,
    /// It says it is one, but it is damaged or does not fit the guest's memory.
    #[error("cannot load the kernel image: {0}")]
    Load(linux_loader::loader::Error),
    /// An old or 32-bit bzImage.
    #[error("the bzImage has no 64-bit entry point (boot protocol 2.12 or later is needed)")]
    No64BitEntry,
    /// The entry point is not in RAM.
    #[error("the kernel's entry point {0:#x} lies outside the guest's memory")]
    EntryOutsideRam(u64),
    /// The file ends before the headers do.
    #[error("cannot load the kernel image: its headers are cut off")]
    CutOff,
    /// More program headers than any kernel has.
    #[error("cannot load the kernel image: it has {0} program headers; at most {SEGMENTS_MAX} are accepted")]
    TooManySegments(u16),
    /// A segment that has no room.
    #[error(
        "cannot load the kernel image: its segment of {in_file} bytes in the file and {in_memory} in memory at \
         {address:#x} does not fit into the guest's memory from {:#x} on", layout::HIMEM.0
    )]
    Segment {
        /// Where it is to be.
        address: u64,
        /// Bytes that are loaded.
        in_file: u64,
        /// Bytes that it takes.
        in_memory: u64,
    },
    /// Segments that the file can't hold, unless they share bytes of it.
    #[error("cannot load the kernel image: its segments hold {loaded} bytes, its file only {file}")]
    LargerThanFile {
        /// Bytes of all segments.
        loaded: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// Notes that would take long to look through.
    #[error("cannot load the kernel image: it has {0} bytes of notes; at most {NOTES_MAX} are accepted")]
    Notes(u64),
    /// Reading the initrd failed.
    #[error("cannot read the initrd: {0}")]
    ReadInitrd(std::io::Error),
    /// No room between the kernel and the end of low memory.
    #[error(
        "the initrd of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {limit:#x}"
    )]
    InitrdTooLarge {
        /// Bytes.
        size: u64,
        /// First free address.
        kernel_end: u64,
        /// First address that is too high.
        limit: u64,
    },
}

/// A loaded kernel.
pub struct Kernel {
    /// How to enter it.
    pub entry: Entry,
    /// First address past everything it uses before it knows the memory map.
    pub end: u64,
    /// The header of a bzImage.
    pub setup_header: Option<setup_header>,
}

impl Kernel {
    /// The longest command line it takes, without the NUL.
    #[must_use]
    pub fn cmdline_max(&self) -> usize {
        let own = self.setup_header.map_or(0, |header| header.cmdline_size as usize);
        if own == 0 { layout::CMDLINE_SIZE_MAX - 1 } else { own.min(layout::CMDLINE_SIZE_MAX - 1) }
    }

    /// First address that an initrd must stay below, for a guest whose low memory ends at `low_ram_end`.
    fn initrd_limit(&self, low_ram_end: u64) -> u64 {
        const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
        match self.setup_header {
            Some(header) if header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G == 0 => {
                low_ram_end.min(u64::from(header.initrd_addr_max) + 1)
            }
            _ => low_ram_end,
        }
    }
}

/// What kind of image a file holds.
#[derive(Debug, PartialEq, Eq)]
enum Format {
    Elf64,
    BzImage,
}

fn format_of(image: &mut File) -> Result<Format, KernelError> {
    let mut head = [0u8; 0x206];
    image.seek(SeekFrom::Start(0)).map_err(KernelError::Read)?;
    let mut filled = 0;
    while filled < head.len() {
        match image.read(&mut head[filled..]).map_err(KernelError::Read)? {
            0 => break,
            n => filled += n,
        }
    }
    let head = &head[..filled];
    // ELF magic, 64-bit, little-endian; e_machine x86-64.
    if head.starts_with(b"\x7fELF\x02\x01") && head.get(18..20) == Some(&[0x3e, 0]) {
        return Ok(Format::Elf64);
    }
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(Format::BzImage);
    }
    Err(KernelError::NotAKernel)
}

/// Looks at the program headers of an ELF image: what the loader is about to do is bounded by the size of the file, and stays
/// in the guest's memory from [`layout::HIMEM`] on. The end of the last segment.
fn check_segments(ram: &GuestMemoryMmap<()>, image: &mut File) -> Result<u64, KernelError> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const LOAD: u32 = 1;
    const NOTE: u32 = 4;
    let u16_at = |bytes: &[u8], at| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
    let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let read = |error: std::io::Error| match error.kind() {
        // The latter is about an offset that no file reaches.
        ErrorKind::UnexpectedEof | ErrorKind::InvalidInput => KernelError::CutOff,
        _ => KernelError::Read(error),
    };
    let file = image.seek(SeekFrom::End(0)).map_err(KernelError::Read)?;
    let mut header = [0u8; HEADER];
    image.seek(SeekFrom::Start(0)).and_then(|_| image.read_exact(&mut header)).map_err(read)?;
    let (offset, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if usize::from(size) != PROGRAM_HEADER {
        return Err(KernelError::NotAKernel);
    }
    if count > SEGMENTS_MAX {
        return Err(KernelError::TooManySegments(count));
    }
    image.seek(SeekFrom::Start(offset)).map_err(read)?;
    let (mut end, mut loaded, mut notes) = (None, 0u64, 0u64);
    for _ in 0..count {
        let mut segment = [0u8; PROGRAM_HEADER];
        image.read_exact(&mut segment).map_err(read)?;
        let [address, in_file, in_memory] = [24, 32, 40].map(|at| u64_at(&segment, at));
        match u32_at(&segment, 0) {
            LOAD if in_file | in_memory != 0 => {
                let past = address.checked_add(in_memory).filter(|_| {
                    address >= layout::HIMEM.0
                        && in_file <= in_memory
                        && usize::try_from(in_memory)
                            .is_ok_and(|len| ram.check_range(GuestAddress(address), len))
                });
                end = end.max(Some(past.ok_or(KernelError::Segment { address, in_file, in_memory })?));
                loaded = loaded.saturating_add(in_file);
            }
            NOTE => notes = notes.saturating_add(in_file),
            _ => {}
        }
    }
    if loaded > file {
        return Err(KernelError::LargerThanFile { loaded, file });
    }
    if notes > NOTES_MAX {
        return Err(KernelError::Notes(notes));
    }
    end.ok_or(KernelError::NotAKernel)
}

/// Loads the kernel image into guest RAM.
///
/// # Errors
/// [`KernelError`]; guest RAM may hold a part of the image then, so it is not to be used.
pub fn load(ram: &GuestMemoryMmap<()>, image: &mut File) -> Result<Kernel, KernelError> {
    let in_ram = |entry: u64| {
        let found = ram.address_in_range(GuestAddress(entry));
        if found { Ok(entry) } else { Err(KernelError::EntryOutsideRam(entry)) }
    };
    match format_of(image)? {
        Format::Elf64 => {
            let end = check_segments(ram, image)?;
            let loaded = Elf::load(ram, None, image, Some(layout::HIMEM)).map_err(KernelError::Load)?;
            let entry = match loaded.pvh_boot_cap {
                PvhBootCapability::PvhEntryPresent(entry) => Entry::Pvh(in_ram(entry.0)?),
                _ => Entry::Linux64(in_ram(loaded.kernel_load.0)?),
            };
            Ok(Kernel { entry, end, setup_header: None })
        }
        Format::BzImage => {
            const XLF_KERNEL_64: u16 = 1;
            const ENTRY_64: u64 = 0x200;
            let loaded = BzImage::load(ram, None, image, Some(layout::HIMEM)).map_err(KernelError::Load)?;
            let header = loaded.setup_header.ok_or(KernelError::NotAKernel)?;
            if header.version < 0x20c || header.xloadflags & XLF_KERNEL_64 == 0 {
                return Err(KernelError::No64BitEntry);
            }
            // The decompressor works in place up to init_size past where it runs.
            let start = loaded.kernel_load.0.max(header.pref_address);
            let end = loaded.kernel_end.max(start.saturating_add(u64::from(header.init_size)));
            let entry = Entry::Linux64(in_ram(loaded.kernel_load.0 + ENTRY_64)?);
            Ok(Kernel { entry, end, setup_header: Some(header) })
        }
    }
}

/// Loads the initrd as high in low memory as the kernel allows; where, and its size.
///
/// # Errors
/// [`KernelError::InitrdTooLarge`] and [`KernelError::ReadInitrd`].
pub fn load_initrd(
    ram: &GuestMemoryMmap<()>,
    kernel: &Kernel,
    initrd: &mut File,
    low_ram_end: u64,
) -> Result<(GuestAddress, u64), KernelError> {
    const PAGE: u64 = 4096;
    let size = initrd.seek(SeekFrom::End(0)).map_err(KernelError::ReadInitrd)?;
    initrd.seek(SeekFrom::Start(0)).map_err(KernelError::ReadInitrd)?;
    let limit = kernel.initrd_limit(low_ram_end);
    let kernel_end = kernel.end.max(layout::HIMEM.0);
    let too_large = KernelError::InitrdTooLarge { size, kernel_end, limit };
    let Some(start) = limit.checked_sub(size).map(|start| start & !(PAGE - 1)).filter(|s| *s >= kernel_end)
    else {
        return Err(too_large);
    };
    let Ok(len) = usize::try_from(size) else { return Err(too_large) };
    ram.read_exact_volatile_from(GuestAddress(start), initrd, len)
        .map_err(|e| KernelError::ReadInitrd(std::io::Error::other(e)))?;
    Ok((GuestAddress(start), size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn ram() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// An ELF64 file with one segment of `payload` at 2 MiB, entered there.
    fn elf(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; 64 + 56];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16..20].copy_from_slice(&[2, 0, 0x3e, 0]);
        bytes[24..32].copy_from_slice(&0x20_0000u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[52..58].copy_from_slice(&[64, 0, 56, 0, 1, 0]);
        let ph = &mut bytes[64..];
        ph[0] = 1;
        ph[8..16].copy_from_slice(&120u64.to_le_bytes());
        ph[24..32].copy_from_slice(&0x20_0000u64.to_le_bytes());
        ph[32..40].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        ph[40..48].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn an_elf_image_lands_where_its_headers_say() {
        let ram = ram();
        let kernel = load(&ram, &mut file(&elf(b"payload"))).unwrap();
        assert_eq!(kernel.entry, Entry::Linux64(0x20_0000));
        assert_eq!(kernel.end, 0x20_0007);
        let mut loaded = [0u8; 7];
        ram.read_slice(&mut loaded, GuestAddress(0x20_0000)).unwrap();
        assert_eq!(&loaded, b"payload");
    }

    /// The program header `index` of an image, which has as many.
    fn segment(image: &mut [u8], index: usize, kind: u32, [offset, address, in_file, in_memory]: [u64; 4]) {
        image[56..58].copy_from_slice(&u16::try_from(index + 1).unwrap().to_le_bytes());
        let header = &mut image[64 + 56 * index..][..56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        for (at, value) in [(8, offset), (24, address), (32, in_file), (40, in_memory)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }

    #[test]
    fn the_kernels_end_is_past_all_that_it_has_in_memory_and_never_where_boot_structures_are() {
        let mut image = elf(&[0; 4096]);
        segment(&mut image, 0, 1, [1024, 0x20_0000, 16, 0x1000]);
        // Nothing of this one is in the file: zeroed memory.
        segment(&mut image, 1, 1, [0, 0x30_0000, 0, 0x5000]);
        // This one is nothing at all.
        segment(&mut image, 2, 1, [0; 4]);
        assert_eq!(load(&ram(), &mut file(&image)).unwrap().end, 0x30_5000);
        for end in [0, 0x9_f000, layout::HIMEM.0 - 1] {
            let kernel = Kernel { entry: Entry::Linux64(0), end, setup_header: None };
            let whole = vec![7; 16 << 20];
            assert!(load_initrd(&ram(), &kernel, &mut file(&whole), 16 << 20).is_err(), "{end:#x}");
        }
    }

    #[test]
    fn a_segment_outside_memory_or_where_boot_structures_are_or_larger_in_the_file_is_refused() {
        for [address, in_file, in_memory] in [
            [0, 16, 16],
            [0xf_fff0, 32, 32],
            [0x20_0000, 32, 31],
            [(16 << 20) - 16, 16, 17],
            [0x20_0000, 16, u64::MAX],
            [u64::MAX, 0, 16],
        ] {
            let mut image = elf(&[0; 4096]);
            segment(&mut image, 0, 1, [1024, address, in_file, in_memory]);
            let error = load(&ram(), &mut file(&image)).err();
            assert!(matches!(error, Some(KernelError::Segment { .. })), "{address:#x}: {error:?}");
        }
    }

    #[test]
    fn program_headers_past_the_files_end_are_cut_off() {
        for offset in [4096, 1 << 40, u64::MAX - 55, u64::MAX] {
            let mut image = elf(b"payload");
            image[32..40].copy_from_slice(&offset.to_le_bytes());
            assert!(matches!(load(&ram(), &mut file(&image)), Err(KernelError::CutOff)), "{offset:#x}");
        }
    }

    #[test]
    fn an_image_without_anything_to_load_is_no_kernel() {
        let mut image = elf(&[0; 64]);
        segment(&mut image, 0, 2, [120, 0x20_0000, 16, 16]);
        assert!(matches!(load(&ram(), &mut file(&image)), Err(KernelError::NotAKernel)));
    }

    #[test]
    fn headers_that_would_keep_the_loader_busy_for_hours_are_refused() {
        // The same segment over and over.
        let mut image = elf(&[0; 1 << 20]);
        for index in 0..3 {
            segment(&mut image, index, 1, [0, 0x20_0000, 1 << 19, 1 << 19]);
        }
        assert!(matches!(load(&ram(), &mut file(&image)), Err(KernelError::LargerThanFile { .. })));
        // Notes without end.
        let mut image = elf(&[0; 1 << 20]);
        segment(&mut image, 1, 4, [0, 0, 1 << 20, 1 << 20]);
        assert!(matches!(load(&ram(), &mut file(&image)), Err(KernelError::Notes(_))));
        // More headers than anybody has.
        let mut image = elf(&[0; 1 << 20]);
        segment(&mut image, usize::from(SEGMENTS_MAX), 2, [0; 4]);
        assert!(matches!(load(&ram(), &mut file(&image)), Err(KernelError::TooManySegments(_))));
    }

    #[test]
    fn what_is_no_kernel_is_refused_and_every_truncation_of_one_too() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &[0u8; 4096], b"\x7fELF\x01\x01\x01"] {
            assert!(matches!(load(&ram(), &mut file(bytes)), Err(KernelError::NotAKernel)), "{bytes:?}");
        }
        let whole = elf(b"payload");
        for len in 0..whole.len() {
            assert!(load(&ram(), &mut file(&whole[..len])).is_err(), "cut to {len} bytes");
        }
    }

    #[test]
    fn an_entry_point_outside_memory_is_refused() {
        let mut bytes = elf(b"payload");
        bytes[24..32].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(matches!(load(&ram(), &mut file(&bytes)), Err(KernelError::EntryOutsideRam(_))));
    }

    #[test]
    fn an_initrd_goes_to_the_top_of_low_memory_or_is_refused_with_the_room_there_is() {
        let ram = ram();
        let kernel = Kernel { entry: Entry::Linux64(0), end: 15 << 20, setup_header: None };
        let (start, size) = load_initrd(&ram, &kernel, &mut file(&[7; 5000]), 16 << 20).unwrap();
        assert_eq!((start.0, size), ((16 << 20) - 8192, 5000));
        let error = load_initrd(&ram, &kernel, &mut file(&vec![7; 2 << 20]), 16 << 20).unwrap_err();
        assert!(error.to_string().contains("2097152 bytes does not fit"), "{error}");
    }
}
