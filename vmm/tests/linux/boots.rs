//! Ways into the kernel, vCPUs, memory, command line.

use std::path::Path;

use serde_json::json;

use super::common::{Bus, Vm};
use super::{boot, image, linux, load, printed, succeeds, vmlinux_without_pvh, words};
use crate::over_both_transports;

over_both_transports!(linux:
    a_vmlinux_is_entered_by_pvh_with_1_vcpu_and_3_gib,
    a_vmlinux_is_entered_at_64_bit_with_2_vcpus_and_4_gib,
    a_bzimage_is_entered_with_4_vcpus_and_6_gib,
    the_longest_command_line_arrives_whole_and_a_longer_one_is_refused,
    without_acpi_the_kernel_reaches_init_on_the_serial_port_and_reboots,
    what_is_typed_on_the_console_reaches_the_shell,
);

/// What the kernel calls whoever loaded it (x86 boot protocol, type_of_loader): PVH's is its own.
const LOADER_PVH: u32 = 0xb0;

/// All that was given is there: the kernel's own map has it to the page, and most of it is free for use.
fn comes_up(bus: Bus, kernel: &Path, vcpus: u32, gib: u64) -> u32 {
    let mut vm = Vm::start(bus.flags());
    vm.put("/machine-config", &json!({"vcpu_count": vcpus, "mem_size_mib": gib * 1024}));
    let script = "echo loader=$(cat /proc/sys/kernel/bootloader_type); echo cpus=$(nproc)
        echo total=$(awk '/MemTotal/{print $2}' /proc/meminfo)
        echo ram=$(awk '/System RAM/{print $1}' /proc/iomem)";
    load(&vm, kernel, &words("", script));
    vm.act("InstanceStart");
    succeeds(&mut vm);
    assert_eq!(printed(&vm, "cpus"), vcpus.to_string());
    let hex = |text| u64::from_str_radix(text, 16).unwrap();
    let ranges = printed(&vm, "ram");
    let ranges = ranges.split(' ').map(|range| range.split_once('-').unwrap());
    let ram: u64 = ranges.map(|(first, last)| hex(last) + 1 - hex(first)).sum();
    // Without the first page, which the kernel never uses, and what a PC keeps for its firmware.
    assert_eq!(ram, (gib << 30) - 0x1000 - (0x10_0000 - 0x9_fc00), "{}", printed(&vm, "ram"));
    let total: u64 = printed(&vm, "total").parse().unwrap();
    assert!(total << 10 > (gib << 30) / 100 * 94, "MemTotal is {total} KiB of {gib} GiB");
    printed(&vm, "loader").parse().unwrap()
}

fn a_vmlinux_is_entered_by_pvh_with_1_vcpu_and_3_gib(bus: Bus) {
    assert_eq!(comes_up(bus, &image("vmlinux"), 1, 3), LOADER_PVH);
}

fn a_vmlinux_is_entered_at_64_bit_with_2_vcpus_and_4_gib(bus: Bus) {
    assert_ne!(comes_up(bus, vmlinux_without_pvh(), 2, 4), LOADER_PVH);
}

fn a_bzimage_is_entered_with_4_vcpus_and_6_gib(bus: Bus) {
    assert_ne!(comes_up(bus, &image("bzImage"), 4, 6), LOADER_PVH);
}

fn the_longest_command_line_arrives_whole_and_a_longer_one_is_refused(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let limit = 2047
        - match bus {
            Bus::Mmio => " pci=off".len(),
            Bus::Pci => 0,
        };
    let short = words("", "echo length=$(wc -c </proc/cmdline); grep -q ' yun.last=word' /proc/cmdline");
    let line = |len: usize| format!("{short} {} yun.last=word", "x".repeat(len - short.len() - 15));
    load(&vm, &image("vmlinux"), &line(limit + 1));
    assert!(
        vm.start_refused()
            .contains("is 2048 bytes long with what the machine adds to it; the kernel takes at most 2047")
    );
    load(&vm, &image("vmlinux"), &line(limit));
    vm.act("InstanceStart");
    succeeds(&mut vm);
    assert_eq!(printed(&vm, "length"), "2048", "with its line end");
}

fn without_acpi_the_kernel_reaches_init_on_the_serial_port_and_reboots(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    boot(&vm, "acpi=off yun.then=reboot", "[ ! -e /sys/firmware/acpi ]");
    vm.ends_with(0, "reboot");
    assert!(vm.console().contains("command ended with 0\r\n"), "{}", vm.console());
}

fn what_is_typed_on_the_console_reaches_the_shell(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    boot(&vm, "", "echo listening; read -r line; echo got=$line; read -r line; echo long=${#line}");
    vm.prints("listening");
    vm.types(b"hello world\n");
    vm.prints("got=hello world");
    vm.types(format!("{}\n", "0123456789".repeat(100)).as_bytes());
    succeeds(&mut vm);
    assert_eq!(printed(&vm, "long"), "1000");
}
