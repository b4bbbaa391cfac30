//! Guest RAM on the host: anonymous private mappings, aligned so that huge pages fit.

use std::sync::Arc;

use devices::mem::Ram;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Alignment that lets a transparent huge page back guest memory at both levels of address translation.
const HUGE_PAGE: usize = 2 << 20;

/// How guest RAM is backed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// 4 KiB pages only: the densest, the slowest to fault in.
    Small,
    /// Open to transparent huge pages.
    #[default]
    Transparent,
    /// 2 MiB pages of hugetlbfs, reserved when the guest is built.
    Huge2M,
}

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host refused the mapping.
    #[error("Cannot create mmap region: {}", in_firecrackers_words(.0))]
    Map(std::io::Error),
    /// The ranges don't make an address space.
    #[error("Cannot create guest memory: {0}")]
    Regions(vm_memory::GuestRegionCollectionError),
    /// The host does not let that much memory be locked.
    #[error(
        "guest memory can't be locked: {0}; RLIMIT_MEMLOCK has to be as large as it, or the process needs CAP_IPC_LOCK"
    )]
    Lock(std::io::Error),
    /// A range is larger than the host's address space.
    #[error("a memory region of {0} bytes is larger than the host can address")]
    TooLarge(u64),
}

/// Clients look for the text that another C library than ours has for ENOMEM.
fn in_firecrackers_words(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => format!("Out of memory (os error {})", libc::ENOMEM),
        _ => error.to_string(),
    }
}

/// One anonymous mapping, unmapped when dropped.
struct Mapping {
    start: *mut libc::c_void,
    len: usize,
}

// SAFETY: the pointer is only ever given to munmap; nothing is tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: no method takes `&self`.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize, backing: Backing) -> Result<Self, RamError> {
        let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // hugetlbfs aligns by itself, and its pages must be reserved now: a later fault would be SIGBUS.
        let slack = if backing == Backing::Huge2M {
            flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
            0
        } else {
            HUGE_PAGE
        };
        let whole = len.checked_add(slack).ok_or(RamError::TooLarge(len as u64))?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice; nothing else is touched.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), whole, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(RamError::Map(std::io::Error::last_os_error()));
        }
        Ok(Self { start, len: whole })
    }

    fn aligned(&self) -> *mut u8 {
        let start = self.start.cast::<u8>();
        start.wrapping_add(start.align_offset(HUGE_PAGE))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are those of a mapping made in `new`, and [`GuestRam::drop`] lets go of it only once
        // no region refers to it any more.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

/// Guest RAM and the mappings behind it.
pub struct GuestRam {
    ram: Ram,
    mappings: Vec<Mapping>,
}

impl GuestRam {
    /// Maps `ranges` (start, bytes), zeroed. With `lock` no page that the guest has touched is ever swapped out.
    ///
    /// # Errors
    /// [`RamError`]; nothing stays mapped then.
    pub fn new(ranges: &[(GuestAddress, u64)], backing: Backing, lock: bool) -> Result<Self, RamError> {
        let mut mappings = Vec::with_capacity(ranges.len());
        let mut regions = Vec::with_capacity(ranges.len());
        for &(start, bytes) in ranges {
            let len = usize::try_from(bytes).map_err(|_| RamError::TooLarge(bytes))?;
            let mapping = Mapping::new(len, backing)?;
            let host = mapping.aligned();
            let advise = |advice| {
                // SAFETY: `host..host + len` lies in `mapping`, which is alive.
                unsafe { libc::madvise(host.cast(), len, advice) };
            };
            // Advice only: a kernel without huge pages or with core dumps of its own mind is no error.
            match backing {
                Backing::Transparent => advise(libc::MADV_HUGEPAGE),
                Backing::Small => advise(libc::MADV_NOHUGEPAGE),
                Backing::Huge2M => {}
            }
            advise(libc::MADV_DONTDUMP);
            if lock {
                // SAFETY: as above. Locked as it is touched: a guest does not pay for memory that it never uses.
                let result = unsafe { libc::mlock2(host.cast(), len, libc::MLOCK_ONFAULT) };
                if result != 0 {
                    return Err(RamError::Lock(std::io::Error::last_os_error()));
                }
            }
            // SAFETY: `host..host + len` lies in `mapping`: `new` asked for HUGE_PAGE more than `len` unless the kernel
            // aligns. `GuestRam` keeps the mapping until nobody holds the region.
            let builder = unsafe { MmapRegionBuilder::<()>::new(len).with_raw_mmap_pointer(host) };
            let region: MmapRegion<()> =
                builder.build().map_err(|e| RamError::Map(std::io::Error::other(e.to_string())))?;
            regions.push(GuestRegionMmap::new(region, start).ok_or(RamError::TooLarge(bytes))?);
            mappings.push(mapping);
        }
        let ram = GuestMemoryMmap::from_regions(regions).map_err(RamError::Regions)?;
        Ok(Self { ram: Arc::new(ram), mappings })
    }

    /// The RAM as devices use it.
    #[must_use]
    pub fn ram(&self) -> &Ram {
        &self.ram
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // A device or a vCPU that still holds the RAM must not see it unmapped. The machine stops them all first, so
        // this leaks only if that failed.
        if Arc::get_mut(&mut self.ram).is_none() {
            log::error!("guest memory is still in use; leaving it mapped");
            std::mem::take(&mut self.mappings).into_iter().for_each(std::mem::forget);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    #[test]
    fn ram_is_zeroed_writable_to_its_last_byte_and_aligned_for_huge_pages() {
        let ram = GuestRam::new(
            &[(GuestAddress(0), 5 << 20), (GuestAddress(1 << 32), 1 << 20)],
            Backing::default(),
            false,
        );
        let ram = ram.unwrap();
        for last in [(5 << 20) - 1, (1 << 32) + (1 << 20) - 1] {
            assert_eq!(ram.ram().read_obj::<u8>(GuestAddress(last)).unwrap(), 0);
            ram.ram().write_obj(7u8, GuestAddress(last)).unwrap();
        }
        assert!(ram.ram().write_obj(7u8, GuestAddress(5 << 20)).is_err());
        let host = ram.ram().get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(host as usize % HUGE_PAGE, 0);
    }

    #[test]
    fn absurd_sizes_are_an_error_not_an_abort() {
        let error = GuestRam::new(&[(GuestAddress(0), 1 << 60)], Backing::default(), false)
            .err()
            .unwrap()
            .to_string();
        assert_eq!(error, "Cannot create mmap region: Out of memory (os error 12)");
    }
}
