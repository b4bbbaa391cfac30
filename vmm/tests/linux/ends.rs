//! How a guest with a kernel ends. (That poweroff ends with 0, the other rooms show in passing.)

use nix::sys::signal::Signal;

use super::common::{Bus, Vm};
use super::{boot, linux};
use crate::over_both_transports;

over_both_transports!(linux:
    reboot_ends_with_0,
    a_kernel_panic_ends_with_10,
    sigterm_makes_the_guest_switch_itself_off,
    the_power_button_makes_the_guest_switch_itself_off_even_if_it_was_paused,
    ctrl_alt_del_reboots_the_guest,
);

fn reboot_ends_with_0(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    boot(&vm, "yun.then=reboot", "true");
    vm.ends_with(0, "reboot");
}

fn a_kernel_panic_ends_with_10(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    boot(&vm, "yun.then=panic", "true");
    vm.ends_with(10, "panic");
    assert!(vm.console().contains("stopping (panic)"), "{}", vm.console());
}

fn sigterm_makes_the_guest_switch_itself_off(bus: Bus) {
    let mut vm = Vm::start(&[bus.flags(), &["--shutdown-timeout-ms", "200000"]].concat());
    boot(&vm, "yun.then=stay", "echo waiting");
    vm.prints("command ended");
    vm.signal(Signal::SIGTERM);
    vm.ends_with(0, "stopped");
    assert!(vm.console().contains("yun-guest: power button"), "{}", vm.console());
}

fn the_power_button_makes_the_guest_switch_itself_off_even_if_it_was_paused(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    boot(&vm, "yun.then=stay", "echo waiting");
    vm.prints("command ended");
    vm.patch("/vm", &serde_json::json!({"state": "Paused"}));
    vm.act("PressPowerButton");
    vm.patch("/vm", &serde_json::json!({"state": "Resumed"}));
    vm.ends_with(0, "poweroff");
    assert!(vm.console().contains("yun-guest: power button"), "{}", vm.console());
}

fn ctrl_alt_del_reboots_the_guest(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    boot(&vm, "yun.then=stay", "echo 1 >/proc/sys/kernel/ctrl-alt-del; echo ready for the keys");
    vm.prints("ready for the keys");
    vm.act("SendCtrlAltDel");
    vm.ends_with(0, "reboot");
}
