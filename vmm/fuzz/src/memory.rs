//! Guest RAM that shows where it was written, and files without a file system.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm::arch::x86_64::layout;

/// End of the RAM below the hole: little, for it is looked at as a whole.
pub const LOW_END: u64 = 0x14_0000;
/// Bytes of RAM past the hole.
const HIGH_BYTES: usize = 0x1_0000;
/// What untouched RAM holds.
const BLANK: u8 = 0xa5;

thread_local! {
    static RAM: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), usize::try_from(LOW_END).expect("little")),
        (GuestAddress(layout::HOLE_END), HIGH_BYTES),
    ]).expect("small and disjoint");
    /// As much blank memory as the larger range, and a place to copy it to.
    static BLANKS: RefCell<[Vec<u8>; 2]> = RefCell::new([BLANK, 0].map(|byte| {
        vec![byte; usize::try_from(LOW_END).expect("little")]
    }));
}

/// Lends blank guest RAM of two ranges, with the 32-bit hole between them.
pub fn with_ram(play: impl FnOnce(&GuestMemoryMmap<()>)) {
    RAM.with(|ram| {
        for region in ram.iter() {
            let len = usize::try_from(region.len()).expect("little");
            BLANKS.with_borrow(|[blank, _]| {
                ram.write_slice(&blank[..len], region.start_addr()).expect("it is RAM");
            });
        }
        play(ram);
    });
}

/// Whether nothing was written but in `written`.
pub fn blank_outside(ram: &GuestMemoryMmap<()>, written: &Range<u64>) -> bool {
    ram.iter().all(|region| {
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        let before = start..written.start.clamp(start, end);
        let after = written.end.clamp(start, end)..end;
        // Nothing was written: all of it is outside.
        let parts = if written.is_empty() { [start..end, end..end] } else { [before, after] };
        parts.iter().all(|part| {
            let len = usize::try_from(part.end - part.start).expect("little");
            BLANKS.with_borrow_mut(|[blank, copy]| {
                ram.read_slice(&mut copy[..len], GuestAddress(part.start)).expect("it is RAM");
                copy[..len] == blank[..len]
            })
        })
    })
}

/// A file of `bytes` and then `zeros` zeros.
pub fn file(bytes: &[u8], zeros: u64) -> File {
    let mut file = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("the host has memory"));
    file.write_all(bytes).expect("the host has memory");
    file.set_len(bytes.len() as u64 + zeros).expect("sparse");
    file.seek(SeekFrom::Start(0)).expect("a file can be rewound");
    file
}
