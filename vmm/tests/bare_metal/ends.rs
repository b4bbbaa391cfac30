//! How a guest ends, and how its process does: status, log line, last event.

use super::common::{Bus, Vm};
use super::{boot, kvm};
use crate::over_both_transports;

over_both_transports!(kvm:
    poweroff_ends_with_0,
    reset_register_ends_with_0,
    keyboard_controllers_reset_ends_with_0,
    panic_ends_with_10,
    triple_fault_ends_with_11,
    reset_in_place_starts_the_guest_again,
);

fn guest_that_ends_by(bus: Bus, how: &str, status: i32, reason: &str) {
    let mut vm = Vm::start(bus.flags());
    boot(&vm, &format!("do=hello end={how}"));
    vm.ends_with(status, reason);
    assert!(vm.console().contains("bare-metal guest\ndone\n"), "{}", vm.console());
    let kinds: Vec<_> = vm.events().iter().map(|e| e["event"].clone()).collect();
    assert_eq!(kinds, ["started", "shutdown"]);
}

fn poweroff_ends_with_0(bus: Bus) {
    guest_that_ends_by(bus, "poweroff", 0, "poweroff");
}

fn reset_register_ends_with_0(bus: Bus) {
    guest_that_ends_by(bus, "reboot", 0, "reboot");
}

fn keyboard_controllers_reset_ends_with_0(bus: Bus) {
    guest_that_ends_by(bus, "keyboard", 0, "reboot");
}

fn panic_ends_with_10(bus: Bus) {
    guest_that_ends_by(bus, "panic", 10, "panic");
}

fn triple_fault_ends_with_11(bus: Bus) {
    guest_that_ends_by(bus, "triple", 11, "triple_fault");
}

fn reset_in_place_starts_the_guest_again(bus: Bus) {
    let mut flags = vec!["--on-reboot", "reset"];
    flags.extend(bus.flags());
    let mut vm = Vm::start(&flags);
    let before = vm.path("disk");
    std::fs::write(&before, b"Yun!".repeat(1024)).unwrap();
    vm.put_drive("d", &before, &serde_json::json!({}));
    vm.put("/entropy", &serde_json::json!({}));
    boot(&vm, "do=blk end=reboot");
    // Each life finds its devices as they are after power-on.
    super::common::eventually("three resets", || {
        (vm.events().iter().filter(|e| e["event"] == "reset").count() >= 3).then_some(())
    });
    let lives = vm.console().matches("sector 1 written and read back\ndone\n").count();
    assert!(lives >= 3, "{lives} lives\n{}", vm.console());
    assert!(!vm.console().contains("FAIL"), "{}", vm.console());
    // One reset too many is what ends it.
    vm.signal(nix::sys::signal::Signal::SIGTERM);
    vm.ends_with(0, "reboot");
}
