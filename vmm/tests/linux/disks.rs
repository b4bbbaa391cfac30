//! Block devices and entropy as Linux uses them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::common::{Bus, Vm, zeros};
use super::{boot, host, image, linux, printed, sha256, succeeds};
use crate::over_both_transports;

over_both_transports!(linux:
    data_survives_read_only_is_refused_serials_show_and_entropy_flows,
    a_root_file_system_is_entered_by_is_root_device_and_an_image_is_swapped,
    io_goes_on_unharmed_through_pauses,
    what_a_guest_trims_and_discards_is_given_back_to_the_host,
    drives_that_are_block_devices_are_written_discarded_and_grow,
    every_vcpu_has_its_queue_and_a_thread_behind_it,
    fio_finds_what_it_wrote_over_both_engines_through_pauses_and_changing_limits,
);

fn data_survives_read_only_is_refused_serials_show_and_entropy_flows(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let written = zeros(&vm.path("written"), 16 << 20);
    let fixed = vm.path("fixed");
    fs::write(&fixed, b"read me\n".repeat(1 << 16)).unwrap();
    vm.put_drive("first", &written, &json!({"cache_type": "Writeback"}));
    vm.put_drive("fixed", &fixed, &json!({"is_read_only": true}));
    vm.put_drive("third", &zeros(&vm.path("third"), 1 << 20), &json!({"serial": "YUN 20 characters ok"}));
    vm.put("/entropy", &json!({}));
    vm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 256}));
    let script = "cd /tmp; dd if=/dev/urandom of=a bs=64k count=128 2>/dev/null
        sum() { sha256sum | cut -d' ' -f1; }
        dd if=a of=/dev/vda bs=64k conv=fsync 2>/dev/null
        dd if=a of=/dev/vda bs=4k seek=2048 count=500 conv=fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        [ $(dd if=/dev/vda bs=64k count=128 2>/dev/null | sum) = $(sum <a) ]
        echo disk=$(sum </dev/vda); echo fixed=$(sum </dev/vdb)
        [ $(cat /sys/block/vdb/ro) = 1 ]
        if dd if=a of=/dev/vdb bs=512 count=1 2>/dev/null; then echo read-only was written; exit 1; fi
        echo serials=$(cat /sys/block/vda/serial),$(cat /sys/block/vdb/serial),$(cat /sys/block/vdc/serial)
        echo caches=$(cat /sys/block/vd[ac]/queue/write_cache)
        echo rng=$(cat /sys/class/misc/hw_random/rng_current)
        [ $(dd if=/dev/hwrng bs=512 count=4 2>/dev/null | wc -c) -gt 0 ]";
    boot(&vm, "", script);
    succeeds(&mut vm);
    assert_eq!(printed(&vm, "disk"), sha256(&written));
    assert_eq!(printed(&vm, "fixed"), sha256(&fixed));
    assert_eq!(printed(&vm, "serials"), "first,fixed,YUN 20 characters ok");
    assert_eq!(printed(&vm, "caches"), "write back write through");
    assert!(printed(&vm, "rng").starts_with("virtio_rng"));
}

fn a_root_file_system_is_entered_by_is_root_device_and_an_image_is_swapped(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let (root, small, large) = (vm.path("root"), vm.path("small"), vm.path("large"));
    fs::copy(image("root.ext4"), &root).unwrap();
    fs::write(&small, "small...".repeat(128)).unwrap();
    fs::write(&large, "large...".repeat(1024)).unwrap();
    // Named second, found first: the root device always is.
    vm.put_drive("data", &small, &json!({}));
    vm.put_drive("root", &root, &json!({"is_root_device": true}));
    let script = "grep -q '^/dev/root / ext4 rw\\|^/dev/vda / ext4 rw' /proc/mounts
        echo kept >/root/file; sync
        echo before=$(cat /sys/block/vdb/size),$(head -c 8 /dev/vdb)
        until [ $(cat /sys/block/vdb/size) = 16 ]; do sleep 0.1; done
        echo 3 >/proc/sys/vm/drop_caches
        echo after=$(tail -c 8 /dev/vdb)";
    boot(&vm, "", script);
    vm.prints("before=");
    vm.prints("small...");
    vm.patch("/drives/data", &json!({"drive_id": "data", "path_on_host": large}));
    succeeds(&mut vm);
    assert!(vm.console().contains("(root)"), "{}", vm.console());
    assert_eq!(printed(&vm, "before"), "2,small...");
    assert_eq!(printed(&vm, "after"), "large...");
    // The guest's own file, out of the image.
    let kept = super::host(&format!("debugfs -R 'cat /root/file' {} 2>/dev/null", root.display()));
    assert_eq!(kept, "kept\n");
}

fn io_goes_on_unharmed_through_pauses(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let disk = zeros(&vm.path("disk"), 32 << 20);
    vm.put_drive("d", &disk, &json!({"cache_type": "Writeback"}));
    let script =
        "cd /tmp; dd if=/dev/urandom of=a bs=64k count=32 2>/dev/null; echo working; trap 'go=' USR1; go=y
        (read -r word; kill -USR1 $$) </dev/console &
        while [ $go ]; do for i in 0 1 2 3; do
        dd if=a of=/dev/vda bs=8k seek=$((i * 256)) oflag=direct 2>/dev/null
        dd if=/dev/vda bs=8k skip=$((i * 256)) count=256 iflag=direct 2>/dev/null | cmp - a; done; done
        echo sum=$(sha256sum </dev/vda | cut -d' ' -f1)";
    boot(&vm, "", script);
    vm.prints("working");
    let moved = || vm.metric("yun_block_write_bytes_total") + vm.metric("yun_block_read_bytes_total");
    for _ in 0..8 {
        vm.patch("/vm", &json!({"state": "Paused"}));
        let before = moved();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(moved(), before, "a paused guest's disk moved data");
        vm.patch("/vm", &json!({"state": "Resumed"}));
        super::common::eventually("more data", || (moved() > before).then_some(()));
    }
    vm.types(b"enough\n");
    succeeds(&mut vm);
    assert_eq!(printed(&vm, "sum"), sha256(&disk));
}

fn what_a_guest_trims_and_discards_is_given_back_to_the_host(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let (trimmed, discarded) = (vm.path("trimmed"), vm.path("discarded"));
    fs::copy(image("root.ext4"), &trimmed).unwrap();
    fs::write(&discarded, vec![0xAA; 8 << 20]).unwrap();
    let held = |path: &std::path::Path| {
        fs::File::open(path).unwrap().sync_all().unwrap();
        fs::metadata(path).unwrap().blocks() * 512
    };
    vm.put_drive("trimmed", &trimmed, &json!({"cache_type": "Writeback"}));
    vm.put_drive("discarded", &discarded, &json!({"cache_type": "Writeback"}));
    vm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 256}));
    let script = "mkdir /tmp/m; mount -t ext4 /dev/vda /tmp/m
        dd if=/dev/urandom of=/tmp/m/f bs=64k count=64 conv=fsync 2>/dev/null
        echo filled=yes; head -c 1 >/dev/null
        rm /tmp/m/f; sync; fstrim /tmp/m; umount /tmp/m
        cd /sys/block/vdb; echo limits=$(cat queue/discard_max_bytes queue/write_zeroes_max_bytes queue/discard_granularity)
        blkdiscard -o 1048576 -l 4194304 /dev/vdb
        [ $(dd if=/dev/vdb bs=1M skip=1 count=4 2>/dev/null | tr -d '\\0' | wc -c) = 0 ]
        [ $(dd if=/dev/vdb bs=1M count=1 2>/dev/null | tr -d '\\252' | wc -c) = 0 ]
        echo 'write through' >cache_type; echo cache=$(cat cache_type)
        dd if=/dev/urandom of=/dev/vdb bs=4k count=4 conv=fsync 2>/dev/null";
    boot(&vm, "", script);
    vm.prints("filled=yes");
    let filled = held(&trimmed);
    vm.types(b"\n");
    succeeds(&mut vm);
    let after = held(&trimmed);
    assert!(after + (3 << 20) < filled, "{filled} bytes before, {after} after");
    assert_eq!(held(&discarded), 4 << 20);
    assert_eq!(printed(&vm, "limits"), "2147483648 16777216 4096");
    assert_eq!(printed(&vm, "cache"), "write through");
}

/// A block device of the host on a file, until this is dropped.
struct Loop {
    device: String,
    file: PathBuf,
}

impl Loop {
    fn new(file: PathBuf) -> Self {
        let device = host(&format!("losetup --find --show {}", file.display())).trim().to_owned();
        Self { device, file }
    }

    fn grow(&self, bytes: u64) {
        fs::File::options().write(true).open(&self.file).unwrap().set_len(bytes).unwrap();
        host(&format!("losetup --set-capacity {}", self.device));
    }

    /// Bytes that its file takes up.
    fn held(&self) -> u64 {
        host(&format!("blockdev --flushbufs {}", self.device));
        fs::File::open(&self.file).unwrap().sync_all().unwrap();
        fs::metadata(&self.file).unwrap().blocks() * 512
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

fn drives_that_are_block_devices_are_written_discarded_and_grow(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let drives = [
        ("cached", json!({"cache_type": "Writeback"})),
        ("direct", json!({"io_engine": "Async", "direct": true})),
    ];
    let loops = drives.map(|(name, options)| {
        let file = vm.path(name);
        fs::write(&file, vec![0xAA; 8 << 20]).unwrap();
        let device = Loop::new(file);
        vm.put_drive(name, Path::new(&device.device), &options);
        (name, device)
    });
    vm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 256}));
    let script = "for d in vda vdb; do
            dd if=/dev/urandom of=/dev/$d bs=64k seek=96 count=32 conv=fsync oflag=direct 2>/dev/null
            blkdiscard -o 1048576 -l 4194304 /dev/$d
            [ $(dd if=/dev/$d bs=1M skip=1 count=4 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c) = 0 ]
            [ $(dd if=/dev/$d bs=64k count=8 iflag=direct 2>/dev/null | tr -d '\\252' | wc -c) = 0 ]
        done; echo discarded=yes; head -c 1 >/dev/null
        for d in vda vdb; do
            until [ $(cat /sys/block/$d/size) = 24576 ]; do sleep 0.05; done
            dd if=/dev/urandom of=/dev/$d bs=64k seek=191 count=1 conv=fsync oflag=direct 2>/dev/null
            echo sum_$d=$(sha256sum </dev/$d | cut -d' ' -f1)
        done";
    boot(&vm, "", script);
    vm.prints("discarded=yes");
    for (name, device) in &loops {
        assert!(device.held() <= 4 << 20, "{} bytes of {name} are still there", device.held());
        device.grow(12 << 20);
        vm.patch(&format!("/drives/{name}"), &json!({"drive_id": name, "path_on_host": device.device}));
    }
    vm.types(b"\n");
    succeeds(&mut vm);
    for (sum, (_, device)) in ["sum_vda", "sum_vdb"].iter().zip(&loops) {
        assert_eq!(printed(&vm, sum), sha256(Path::new(&device.device)));
    }
}

/// The threads of a VMM that serve the drive `id`.
fn threads_of(vm: &Vm, id: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", vm.pid())).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    let mut names: Vec<_> = names
        .map(|name| name.trim().to_owned())
        .filter(|name| name.starts_with(&format!("yun_{id}")))
        .collect();
    names.sort();
    names
}

fn every_vcpu_has_its_queue_and_a_thread_behind_it(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    let [many, one, ring] = ["many", "one", "ring"].map(|name| zeros(&vm.path(name), 8 << 20));
    vm.put_drive("many", &many, &json!({"cache_type": "Writeback"}));
    vm.put_drive("one", &one, &json!({"cache_type": "Writeback", "num_queues": 1}));
    vm.put_drive("ring", &ring, &json!({"cache_type": "Writeback", "io_engine": "Async"}));
    vm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 256}));
    let script = "cd /tmp; dd if=/dev/urandom of=a bs=64k count=64 2>/dev/null
        echo queues=$(ls /sys/block/vda/mq | wc -l),$(ls /sys/block/vdb/mq | wc -l)
        for disk in vda vdb vdc; do
            taskset 1 dd if=a of=/dev/$disk bs=64k conv=fsync 2>/dev/null &
            taskset 2 dd if=a of=/dev/$disk bs=4k seek=1024 conv=fsync 2>/dev/null
            wait
        done
        echo 3 >/proc/sys/vm/drop_caches
        sum() { sha256sum | cut -d' ' -f1; }
        cat a a >both
        for disk in vda vdb vdc; do [ $(taskset 2 dd if=/dev/$disk bs=16k 2>/dev/null | sum) = $(sum <both) ]; done
        echo served=yes; head -c 1 >/dev/null";
    boot(&vm, "", script);
    vm.prints("served=yes");
    assert_eq!(printed(&vm, "queues"), "2,1");
    assert_eq!(threads_of(&vm, "many"), ["yun_many", "yun_many.1"]);
    assert_eq!(threads_of(&vm, "one"), ["yun_one"]);
    vm.types(b"\n");
    succeeds(&mut vm);
    assert_eq!(sha256(&many), sha256(&one));
    assert_eq!(sha256(&many), sha256(&ring));
}

fn fio_finds_what_it_wrote_over_both_engines_through_pauses_and_changing_limits(bus: Bus) {
    let mut vm = Vm::start(bus.flags());
    vm.put_drive("tools", &image("bench.ext4"), &json!({"is_read_only": true}));
    for (name, engine) in [("sync", "Sync"), ("ring", "Async")] {
        let options = json!({"cache_type": "Writeback", "io_engine": engine});
        vm.put_drive(name, &zeros(&vm.path(name), 8 << 20), &options);
    }
    vm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 256}));
    // Each disk has one job a vCPU, on its own half, sixteen requests in flight, a flush now and then.
    let script = "mkdir /tmp/t; mount -t ext4 -o ro,noload /dev/vda /tmp/t; mount --bind /dev /tmp/t/dev
        mount -t tmpfs none /tmp/t/tmp; mount -t proc none /tmp/t/proc
        for disk in vdb vdc; do
            chroot /tmp/t fio --name=$disk --filename=/dev/$disk --ioengine=libaio --direct=1 --iodepth=16 \\
                --rw=randwrite --bsrange=512-64k --bs_unaligned=0 --numjobs=2 --size=4m --offset_increment=4m \\
                --fsync=32 --verify=crc32c --do_verify=1 --verify_fatal=1 --output=/tmp/$disk.log || { cat /tmp/t/tmp/*.log; exit 1; }
        done
        echo verified=yes";
    boot(&vm, "", script);
    for round in 0..20 {
        thread::sleep(Duration::from_millis(100));
        if !vm.runs() || vm.console().contains("verified=yes") {
            break;
        }
        vm.patch("/vm", &json!({"state": "Paused"}));
        for drive in ["sync", "ring"] {
            let ops = json!({"size": 200 + 200 * round, "refill_time": 100});
            vm.patch(&format!("/drives/{drive}"), &json!({"drive_id": drive, "rate_limiter": {"ops": ops}}));
        }
        vm.patch("/vm", &json!({"state": "Resumed"}));
    }
    vm.prints("verified=yes");
    succeeds(&mut vm);
}
