//! What `InstanceStart` refuses. After a refusal everything is as it was: it can be changed and tried again.

use std::fs;

use serde_json::json;

use super::common::Vm;
use super::{guest, kvm, load};

/// The guest starts after all.
fn starts_now(mut vm: Vm) {
    load(&vm, "do=hello");
    vm.act("InstanceStart");
    vm.ends_with(0, "poweroff");
    assert!(vm.console().contains("done\n"));
}

#[test]
fn without_a_kernel_nothing_starts() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    assert_eq!(vm.start_refused(), "Start microvm error: Cannot start microvm without kernel configuration.");
    starts_now(vm);
}

#[test]
fn a_missing_kernel_is_refused_when_it_is_named() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    assert_eq!(
        vm.refused("PUT", "/boot-source", r#"{"kernel_image_path":"/nowhere/vmlinux"}"#),
        "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"
    );
    let body = json!({"kernel_image_path": guest(), "initrd_path": "/nowhere/initrd"}).to_string();
    assert_eq!(
        vm.refused("PUT", "/boot-source", &body),
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. \
         No such file or directory (os error 2)"
    );
    starts_now(vm);
}

#[test]
fn a_directory_is_refused_as_kernel_initrd_and_drive() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    let dir = vm.path("");
    let kernel = json!({ "kernel_image_path": dir }).to_string();
    let refusal = vm.refused("PUT", "/boot-source", &kernel);
    assert_eq!(refusal, "Boot source error: The kernel file cannot be opened: Is a directory (os error 21)");
    let initrd = json!({"kernel_image_path": guest(), "initrd_path": dir}).to_string();
    assert!(vm.refused("PUT", "/boot-source", &initrd).ends_with("Is a directory (os error 21)"));
    let drive = json!({"drive_id": "d", "path_on_host": dir, "is_root_device": false}).to_string();
    assert!(vm.refused("PUT", "/drives/d", &drive).contains("Is a directory (os error 21)"));
    starts_now(vm);
}

#[test]
fn files_that_are_no_kernels_are_refused_and_a_good_one_then_starts() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    let kernel = vm.path("kernel");
    let whole = fs::read(guest()).unwrap();
    for (what, bytes, text) in [
        ("empty", Vec::new(), "neither a 64-bit x86 ELF file (vmlinux) nor a bzImage"),
        ("text", b"#!/bin/sh\n".repeat(500), "neither a 64-bit x86 ELF file (vmlinux) nor a bzImage"),
        ("zeros", vec![0; 1 << 20], "neither a 64-bit x86 ELF file (vmlinux) nor a bzImage"),
        ("only its first header", whole[..64].to_vec(), "cannot load the kernel image"),
        ("only its headers", whole[..200].to_vec(), "cannot load the kernel image"),
        ("half of it", whole[..whole.len() / 2].to_vec(), "cannot load the kernel image"),
    ] {
        fs::write(&kernel, bytes).unwrap();
        vm.put("/boot-source", &json!({ "kernel_image_path": kernel }));
        let refusal = vm.start_refused();
        assert!(refusal.starts_with("Start microvm error: ") && refusal.contains(text), "{what}: {refusal}");
        assert_eq!(vm.get("/")["state"], "Not started");
    }
    starts_now(vm);
}

#[test]
fn a_kernel_cut_off_anywhere_is_refused_or_started_but_never_fatal_to_the_vmm() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    let kernel = vm.path("kernel");
    let whole = fs::read(guest()).unwrap();
    // Up to the end of its one segment's content, which nothing can do without.
    for len in (0..4096).step_by(61) {
        fs::write(&kernel, &whole[..len]).unwrap();
        vm.put("/boot-source", &json!({ "kernel_image_path": kernel }));
        vm.start_refused();
    }
    starts_now(vm);
}

#[test]
fn an_initrd_that_does_not_fit_is_refused_with_the_room_there_is() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    let initrd = super::common::zeros(&vm.path("initrd"), 200 << 20);
    vm.put("/boot-source", &json!({"kernel_image_path": guest(), "initrd_path": initrd}));
    let refusal = vm.start_refused();
    assert!(refusal.contains("the initrd of 209715200 bytes does not fit"), "{refusal}");
    starts_now(vm);
}

#[test]
fn a_command_line_past_the_kernels_limit_is_refused_with_both_lengths() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&["--enable-pci"]);
    let line = |len: usize| format!("do=hello {}", "x".repeat(len - "do=hello ".len()));
    load(&vm, &line(2048));
    let refusal = vm.start_refused();
    assert!(refusal.contains("is 2048 bytes long") && refusal.contains("takes at most 2047"), "{refusal}");
    load(&vm, &line(2047));
    vm.act("InstanceStart");
    vm.ends_with(0, "poweroff");
}

#[test]
fn a_command_line_that_is_not_printable_is_refused() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    for args in ["a\u{0}b", "a\nb", "caf\u{e9}"] {
        let body = json!({"kernel_image_path": guest(), "boot_args": args}).to_string();
        let refusal = vm.refused("PUT", "/boot-source", &body);
        assert!(refusal.starts_with("Boot source error: The kernel command line is invalid: "), "{refusal}");
    }
    starts_now(vm);
}

#[test]
fn memory_that_nobody_has_is_refused_and_less_then_starts() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    load(&vm, "do=hello");
    // The last two are 2^64 bytes and 2^64 bytes and 128 MiB: nothing and little, if they were not counted with care.
    for mib in [1u64 << 36, 1 << 43, u64::MAX, 1 << 44, (1 << 44) + 128] {
        vm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": mib}));
        let refusal = vm.start_refused();
        assert!(refusal.starts_with("Start microvm error: "), "{refusal}");
        assert_eq!(vm.get("/")["state"], "Not started", "{mib} MiB");
    }
    vm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 1u64 << 36}));
    let refusal = vm.start_refused();
    assert!(refusal.ends_with("Cannot create mmap region: Out of memory (os error 12)"), "{refusal}");
    vm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 128}));
    starts_now(vm);
}

#[test]
fn memory_too_small_for_the_kernel_is_refused() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    load(&vm, "do=hello");
    for mib in [1, 2] {
        vm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": mib}));
        vm.start_refused();
    }
    vm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 3}));
    starts_now(vm);
}

#[test]
fn thirty_two_vcpus_start_and_thirty_three_are_refused() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    let text = "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled.";
    for body in [
        json!({"vcpu_count": 33, "mem_size_mib": 128}),
        json!({"vcpu_count": 0, "mem_size_mib": 128}),
        json!({"vcpu_count": 3, "mem_size_mib": 128, "smt": true}),
    ] {
        assert_eq!(vm.refused("PUT", "/machine-config", &body.to_string()), text);
    }
    vm.put("/machine-config", &json!({"vcpu_count": 32, "mem_size_mib": 128}));
    starts_now(vm);
}

#[test]
fn the_configuration_shown_is_the_same_before_and_after_the_start() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    let disk = super::common::zeros(&vm.path("disk"), 4096);
    vm.put_drive(
        "d",
        &disk,
        &json!({"cache_type": "Writeback", "rate_limiter": {"ops": {"size": 9, "refill_time": 9}}}),
    );
    vm.put("/entropy", &json!({}));
    vm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 64}));
    load(&vm, "do=spin");
    let before = vm.get("/vm/config");
    vm.act("InstanceStart");
    vm.prints("bare-metal guest\n");
    assert_eq!(vm.get("/vm/config"), before);
    assert_eq!(before["machine-config"]["vcpu_count"], 2);
    assert_eq!(before["boot-source"]["boot_args"], "do=spin");
    assert_eq!(before["drives"][0]["path_on_host"], json!(disk));
}
