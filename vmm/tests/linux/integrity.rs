//! Data that stay what they were, whatever the host does to the machine meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::common::{Bus, Vm, zeros};
use super::{boot, image, linux, printed, succeeds};

/// How long the host keeps at it. Each boot, round of fio and hot-plug adds to that.
const BUSY_FOR: Duration = Duration::from_secs(20);

/// Drives that fio writes and verifies: both engines, with one queue and with one for each vCPU, with and without threads that look
/// for work.
const VERIFIED: [(&str, &str, u16, u16); 4] =
    [("sync", "Sync", 2, 0), ("single", "Sync", 1, 100), ("ring", "Async", 2, 100), ("ring1", "Async", 1, 0)];

/// Limits each of them, and all of them together.
fn limit(vm: &Vm, size: u32) {
    let ops = json!({"size": size, "refill_time": 100});
    let limiter = json!({"ops": ops, "bandwidth": {"size": size * 65_536, "refill_time": 100}});
    for (name, ..) in VERIFIED {
        vm.patch(&format!("/drives/{name}"), &json!({"drive_id": name, "rate_limiter": limiter}));
    }
    vm.patch("/rate-limiter-groups/all", &json!({"ops": {"size": 2 * size, "refill_time": 100}}));
}

#[test]
fn fio_finds_what_it_wrote_while_other_drives_come_go_grow_and_are_swapped_and_the_guest_is_paused_and_slowed()
 {
    if !linux() {
        return;
    }
    let mut vm = Vm::start(Bus::Pci.flags());
    vm.put_drive("tools", &image("bench.ext4"), &json!({"is_read_only": true}));
    vm.put("/rate-limiter-groups/all", &json!({}));
    for (name, engine, queues, poll) in VERIFIED {
        let options = json!({"cache_type": "Writeback", "io_engine": engine, "num_queues": queues, "poll_us": poll,
            "rate_limiter_group": "all"});
        vm.put_drive(name, &zeros(&vm.path(name), 4 << 20), &options);
    }
    let others = [1u64, 3, 2].map(|mib| zeros(&vm.path(&format!("other{mib}")), mib << 20));
    vm.put_drive("other", &others[0], &json!({"cache_type": "Writeback", "num_queues": 2}));
    vm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 256}));
    let script = "mkdir /tmp/t; mount -t ext4 -o ro,noload /dev/vda /tmp/t; mount --bind /dev /tmp/t/dev
        mount -t tmpfs none /tmp/t/tmp; mount -t proc none /tmp/t/proc
        { echo '[global]'; printf '%s\\n' ioengine=libaio direct=1 iodepth=16 rw=randwrite bsrange=512-64k bs_unaligned=0 size=4m \\
            fsync=32 verify=crc32c do_verify=1 verify_fatal=1 verify_state_save=0
          for disk in vdb vdc vdd vde; do printf '[%s]\\nfilename=/dev/%s\\n' $disk $disk; done; } >/tmp/t/tmp/jobs
        while :; do dd if=/dev/vdf of=/dev/null bs=64k iflag=direct 2>/dev/null; sleep 0.1; done &
        go=y; trap 'go=' USR1; (read -r word; kill -USR1 $$) </dev/console &
        rounds=0; echo working=yes
        while [ $go ]; do
            chroot /tmp/t fio --eta=never --output=/tmp/log /tmp/jobs || { cat /tmp/t/tmp/log; exit 1; }
            rounds=$((rounds + 1))
        done
        echo rounds=$rounds";
    boot(&vm, "", script);
    vm.prints("working=yes");
    let late = zeros(&vm.path("late"), 1 << 20);
    let end = Instant::now() + BUSY_FOR;
    let mut round = 0;
    while Instant::now() < end && vm.runs() {
        vm.patch("/vm", &json!({"state": "Paused"}));
        limit(&vm, [2, 50, 1000][round % 3]);
        vm.patch("/vm", &json!({"state": "Resumed"}));
        let other = &others[(round + 1) % others.len()];
        vm.patch("/drives/other", &json!({"drive_id": "other", "path_on_host": other}));
        let size = json!({"cache_type": "Writeback", "num_queues": 1 + round % 2});
        vm.put_drive("late", &late, &size);
        thread::sleep(Duration::from_millis(200));
        let reply = vm.ask("DELETE", "/drives/late", "");
        assert_eq!(reply.status, 204, "{}", reply.body);
        round += 1;
    }
    assert!(round >= 3, "{round} rounds");
    limit(&vm, 0);
    vm.types(b"enough\n");
    succeeds(&mut vm);
    let rounds: u32 = printed(&vm, "rounds").parse().unwrap();
    assert!(rounds >= 1, "fio went through {rounds} times");
}
