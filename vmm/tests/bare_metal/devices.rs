//! Memory, block and entropy devices as a guest sees them, over both transports.

use std::fs;

use serde_json::json;

use super::common::{Bus, Vm, eventually, zeros};
use super::{boot, kvm, load};
use crate::over_both_transports;

over_both_transports!(kvm:
    all_memory_of_3_4_and_6_gib_is_usable,
    block_reads_writes_and_flushes_reach_the_file,
    block_without_cache_type_offers_no_flush_and_still_works,
    the_guest_sees_the_size_of_a_new_image,
    a_limited_drive_is_throttled_until_the_limit_is_taken_away,
    a_group_holds_its_drive_and_threads_stay_on_their_cpus,
    a_drive_whose_thread_looks_for_work_works,
    entropy_arrives,
    the_guest_finds_as_many_drives_as_the_transport_has_room_for,
);

fn all_memory_of_3_4_and_6_gib_is_usable(bus: Bus) {
    for gib in [3u64, 4, 6] {
        let mut vm = Vm::start(bus.flags());
        vm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": gib * 1024}));
        boot(&vm, "do=memory");
        vm.ends_with(0, "poweroff");
        // All but what a PC keeps for its firmware: 0x9fc00 to 0x100000.
        let usable = (gib << 30) - (0x10_0000 - 0x9_fc00);
        assert!(
            vm.console().contains(&format!("usable memory {usable:#x}\n")),
            "{gib} GiB: {}",
            vm.console()
        );
    }
}

fn sector_the_guest_writes() -> Vec<u8> {
    (0..512u32).map(|i| (i * 7).to_le_bytes()[0]).collect()
}

fn block_reads_writes_and_flushes_reach_the_file(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let (disk, metrics) = (vm.path("disk"), vm.path("metrics"));
    fs::write(&disk, b"Yun!".repeat(8 * 128)).unwrap();
    vm.put("/metrics", &json!({ "metrics_path": metrics }));
    vm.put_drive("d", &disk, &json!({"cache_type": "Writeback"}));
    boot(&vm, "do=blk");
    vm.ends_with(0, "poweroff");
    assert!(
        vm.console().contains("sector 0 begins with Yun!\nsector 1 written and read back\n"),
        "{}",
        vm.console()
    );
    let mut expected = b"Yun!".repeat(8 * 128);
    expected.splice(512..1024, sector_the_guest_writes());
    assert!(fs::read(&disk).unwrap() == expected, "the file differs elsewhere than in sector 1");
    let text = fs::read_to_string(metrics).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let block = &last["block_d"];
    let counted = ["read_count", "read_bytes", "write_count", "write_bytes", "flush_count"]
        .map(|n| block[n].as_u64().unwrap());
    assert_eq!(counted, [2, 1024, 1, 512, 1], "{block}");
}

fn block_without_cache_type_offers_no_flush_and_still_works(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let disk = zeros(&vm.path("disk"), 4096);
    vm.put_drive("d", &disk, &json!({}));
    boot(&vm, "do=blk");
    vm.ends_with(0, "poweroff");
    assert!(fs::read(&disk).unwrap()[512..1024] == sector_the_guest_writes());
}

fn the_guest_sees_the_size_of_a_new_image(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let (small, large) = (zeros(&vm.path("small"), 64 << 10), zeros(&vm.path("large"), 5 << 30));
    vm.put_drive("d", &small, &json!({}));
    boot(&vm, "do=capacity");
    vm.prints("sectors 0x80\n");
    vm.patch("/drives/d", &json!({"drive_id": "d", "path_on_host": large}));
    vm.prints("sectors 0xa00000\n");
    assert_eq!(vm.get("/vm/config")["drives"][0]["path_on_host"], json!(large));
    let refusal = vm.refused("PATCH", "/drives/d", r#"{"drive_id":"d","path_on_host":"foo.bar"}"#);
    assert!(
        refusal
            .contains("Error manipulating the backing file: No such file or directory (os error 2) foo.bar"),
        "{refusal}"
    );
    assert_eq!(vm.get("/vm/config")["drives"][0]["path_on_host"], json!(large));
    // The old image is free, the new one is not.
    let other = Vm::start(bus.flags());
    other.put_drive("d", &small, &json!({}));
    let body = json!({"drive_id": "e", "path_on_host": large, "is_root_device": false});
    assert!(
        other.refused("PUT", "/drives/e", &body.to_string()).contains("locked by another virtual machine")
    );
    // The same file, which has grown, read anew.
    zeros(&large, 6 << 30);
    vm.patch("/drives/d", &json!({"drive_id": "d", "path_on_host": large}));
    vm.prints("sectors 0xc00000\n");
}

fn a_limited_drive_is_throttled_until_the_limit_is_taken_away(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let disk = zeros(&vm.path("disk"), 4096);
    let hour = json!({"ops": {"size": 1, "refill_time": 3_600_000}});
    vm.put_drive("d", &disk, &json!({ "rate_limiter": hour }));
    boot(&vm, "do=blk");
    // The first request spends the only token there is for an hour.
    vm.prints("sector 0 begins with");
    eventually("throttling", || {
        (vm.metric("yun_block_rate_limiter_throttled_events_total") > 0).then_some(())
    });
    assert!(!vm.console().contains("sector 1"));
    assert_eq!(vm.get("/vm/config")["drives"][0]["rate_limiter"]["ops"]["size"], 1);
    let none = json!({"ops": {"size": 0, "refill_time": 0}});
    vm.patch("/drives/d", &json!({"drive_id": "d", "rate_limiter": none}));
    vm.ends_with(0, "poweroff");
    assert!(vm.console().contains("sector 1 written and read back"));
}

fn entropy_arrives(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    vm.put("/entropy", &json!({}));
    boot(&vm, "do=rng");
    vm.ends_with(0, "poweroff");
    assert!(vm.console().contains("32 bytes of entropy\n"), "{}", vm.console());
}

fn the_guest_finds_as_many_drives_as_the_transport_has_room_for(bus: Bus) {
    let max = match bus {
        Bus::Mmio => 18,
        Bus::Pci => 31,
    };
    let vm = Vm::start(bus.flags());
    for n in 0..=max {
        let disk = zeros(&vm.path(&format!("disk{n}")), 4096);
        vm.put_drive(&format!("d{n}"), &disk, &json!({}));
    }
    load(&vm, "do=blk");
    let refusal = vm.start_refused();
    let words = format!("{} virtio devices were asked for; at most {max} fit", max + 1);
    assert!(refusal.contains(&words), "{refusal}");
    let mut vm = Vm::start(bus.flags());
    for n in 0..max {
        let disk = zeros(&vm.path(&format!("disk{n}")), 4096);
        vm.put_drive(&format!("d{n}"), &disk, &json!({}));
    }
    boot(&vm, "do=blk");
    vm.ends_with(0, "poweroff");
}

/// The CPUs that a thread of the VMM's may run on, as the kernel writes them.
fn cpus_of(vm: &Vm, thread: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", vm.pid())).unwrap().map(|task| task.unwrap().path());
    let mut of = tasks.filter(|task| fs::read_to_string(task.join("comm")).unwrap().trim() == thread);
    let status = fs::read_to_string(of.next().expect(thread).join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap().trim().to_owned()
}

fn a_group_holds_its_drive_and_threads_stay_on_their_cpus(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let disk = zeros(&vm.path("disk"), 4096);
    let hour = json!({"ops": {"size": 1, "refill_time": 3_600_000}});
    let drive =
        json!({"drive_id": "d", "path_on_host": disk, "is_root_device": false, "rate_limiter_group": "g"});
    let refusal = vm.refused("PUT", "/drives/d", &drive.to_string());
    assert!(refusal.contains("make it with PUT /rate-limiter-groups/g first"), "{refusal}");
    vm.put("/rate-limiter-groups/g", &hour);
    vm.put("/drives/d", &drive);
    let affinity = |cpu: u16| json!({"vcpu_count": 1, "mem_size_mib": 128, "vcpu_affinity": [cpu], "io_affinity": [cpu]});
    vm.put("/machine-config", &affinity(1023));
    load(&vm, "do=blk");
    let refusal = vm.start_refused();
    assert!(
        refusal.contains(
            "vcpu_affinity: CPU 1023 is not online, or not one that this process may use; accepted are ["
        ),
        "{refusal}"
    );
    let first: u16 = refusal.rsplit('[').next().unwrap().split([',', ']']).next().unwrap().parse().unwrap();
    vm.put("/machine-config", &affinity(first));
    vm.act("InstanceStart");
    eventually("throttling", || {
        (vm.metric("yun_block_rate_limiter_throttled_events_total") > 0).then_some(())
    });
    for thread in ["yun_vcpu 0", "yun_d"] {
        assert_eq!(cpus_of(&vm, thread), first.to_string(), "{thread}");
    }
    assert_eq!(vm.get("/rate-limiter-groups/g")["ops"]["size"], 1);
    assert!(vm.refused("DELETE", "/rate-limiter-groups/g", "").contains("in use by \"d\""));
    vm.patch("/rate-limiter-groups/g", &json!({"ops": {"size": 0, "refill_time": 0}}));
    vm.ends_with(0, "poweroff");
    assert!(vm.console().contains("sector 1 written and read back"));
}

fn a_drive_whose_thread_looks_for_work_works(bus: Bus) {
    for engine in ["Sync", "Async"] {
        let mut vm = Vm::start(bus.flags());
        let disk = zeros(&vm.path("disk"), 4096);
        let options = json!({"cache_type": "Writeback", "poll_us": 1000, "io_engine": engine});
        vm.put_drive("d", &disk, &options);
        assert_eq!(vm.get("/vm/config")["drives"][0]["poll_us"], 1000);
        boot(&vm, "do=blk");
        vm.ends_with(0, "poweroff");
        assert!(fs::read(&disk).unwrap()[512..1024] == sector_the_guest_writes());
    }
}
