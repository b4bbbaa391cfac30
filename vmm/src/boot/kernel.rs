//! Kernel images: ELF (entered by PVH or Linux's 64-bit entry) and bzImage, and the initrd beside them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::arch::x86_64::layout;
use crate::arch::x86_64::regs::Entry;

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

/// Loads the kernel image into guest RAM.
///
/// # Errors
/// [`KernelError`]; guest RAM may hold a part of the image then, so it is not to be used.
pub fn load(ram: &GuestMemoryMmap<()>, image: &mut File) -> Result<Kernel, KernelError> {
    let in_ram = |entry: u64| {
        let found = vm_memory::GuestMemoryBackend::address_in_range(ram, GuestAddress(entry));
        if found { Ok(entry) } else { Err(KernelError::EntryOutsideRam(entry)) }
    };
    match format_of(image)? {
        Format::Elf64 => {
            let loaded = Elf::load(ram, None, image, Some(layout::HIMEM)).map_err(KernelError::Load)?;
            let entry = match loaded.pvh_boot_cap {
                PvhBootCapability::PvhEntryPresent(entry) => Entry::Pvh(in_ram(entry.0)?),
                _ => Entry::Linux64(in_ram(loaded.kernel_load.0)?),
            };
            Ok(Kernel { entry, end: loaded.kernel_end, setup_header: None })
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
    let too_large = KernelError::InitrdTooLarge { size, kernel_end: kernel.end, limit };
    let Some(start) = limit.checked_sub(size).map(|start| start & !(PAGE - 1)).filter(|s| *s >= kernel.end)
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
