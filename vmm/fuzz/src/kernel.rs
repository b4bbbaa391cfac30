//! A kernel image of any bytes: two bytes that say how many zeros follow it (in units of 64), then the image.

use devices_fuzz::Input;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm::arch::x86_64::layout;
use vmm::arch::x86_64::regs::Entry;
use vmm::boot::kernel;

use crate::memory::{blank_outside, file, with_ram};

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let zeros = 64 * u64::from(input.word());
    let mut image = file(input.0, zeros);
    with_ram(|ram| match kernel::load(ram, &mut image) {
        Ok(kernel) => {
            let (Entry::Linux64(entry) | Entry::Pvh(entry)) = kernel.entry;
            assert!(ram.address_in_range(GuestAddress(entry)), "the entry {entry:#x} is not RAM");
            assert!(blank_outside(ram, &(layout::HIMEM.0..kernel.end)), "written outside what it says");
            assert!(kernel.cmdline_max() < layout::CMDLINE_SIZE_MAX);
        }
        Err(error) => assert_ne!(error.to_string(), ""),
    });
}
