//! Devices that come and go while Linux runs, which notices by itself.

use std::fs;

use serde_json::json;

use super::common::{Bus, Vm, eventually, zeros};
use super::nets::Taps;
use super::{boot, linux, printed, sha256, succeeds};

fn gone(vm: &Vm, path: &str) {
    let reply = vm.ask("DELETE", path, "");
    assert_eq!(reply.status, 204, "{path}: {}", reply.body);
}

/// Entries of a directory of the VMM's in /proc.
fn count(vm: &Vm, of: &str) -> usize {
    fs::read_dir(format!("/proc/{}/{of}", vm.pid())).unwrap().count()
}

#[test]
fn drives_and_interfaces_come_and_go_and_linux_notices_by_itself() {
    if !linux() {
        return;
    }
    let mut vm = Vm::start(Bus::Pci.flags());
    let late = zeros(&vm.path("late"), 2 << 20);
    vm.put_drive("first", &zeros(&vm.path("first"), 1 << 20), &json!({}));
    vm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 256}));
    let script = "cd /tmp; dd if=/dev/urandom of=a bs=64k count=32 2>/dev/null
        there() { until [ -e /sys/$1 ]; do sleep 0.05; done; }
        away() { while [ -e /sys/$1 ]; do sleep 0.05; done; }
        echo ready=yes
        there block/vdb; echo sectors=$(cat /sys/block/vdb/size); echo serial=$(cat /sys/block/vdb/serial)
        cat a >/dev/vdb; echo written=$(sha256sum <a | cut -d' ' -f1)
        away block/vdb
        there class/net/eth0; ip addr add 172.19.0.2/24 dev eth0; ip link set eth0 up
        ping -c 1 -W 20 172.19.0.1 >/dev/null; echo pinged=yes; away class/net/eth0
        for round in 1 2 3 4 5 6 7 8; do there block/vdb; cat /dev/vdb >/dev/null; echo round=$round.; away block/vdb; done
        away block/vda; echo first=gone";
    boot(&vm, "", script);
    vm.prints("ready=yes");

    vm.put_drive("late", &late, &json!({}));
    vm.prints("written=");
    // The guest has not flushed it: it does when it is asked to let go.
    gone(&vm, "/drives/late");
    assert_eq!((printed(&vm, "sectors"), printed(&vm, "serial")), ("4096".to_owned(), "late".to_owned()));
    assert_eq!(printed(&vm, "written"), sha256(&late));
    assert!(
        vm.metric("yun_block_write_bytes_total{id=\"removed-devices\"}") >= 2 << 20,
        "what a removed drive did still counts"
    );
    // Nobody has it open any more.
    let other = Vm::start(Bus::Pci.flags());
    other.put_drive("mine", &late, &json!({}));
    drop(other);

    let tap = Taps::add_multi_queue("yun-late", "172.19.0.1");
    let late_net = json!({"iface_id": "late", "host_dev_name": "yun-late", "num_queue_pairs": 2});
    vm.put("/network-interfaces/late", &late_net);
    vm.prints("pinged=yes");
    gone(&vm, "/network-interfaces/late");
    drop(tap);

    let (mut least, rounds) = ((usize::MAX, usize::MAX), 8);
    for round in 1..=rounds {
        vm.put_drive("late", &late, &json!({"is_read_only": round % 2 == 0}));
        vm.prints(&format!("round={round}."));
        gone(&vm, "/drives/late");
        // The API may not have seen the end of a connection yet.
        let now = || (count(&vm, "fd"), count(&vm, "task"));
        if round == 1 {
            least = now();
        }
        eventually("no more descriptors and threads than before", || {
            let now = now();
            (now.0 <= least.0 && now.1 <= least.1).then_some(())
        });
    }
    assert_eq!(vm.get("/vm/config")["drives"].as_array().unwrap().len(), 1);
    gone(&vm, "/drives/first");
    succeeds(&mut vm);
    assert_eq!(printed(&vm, "first"), "gone");
    let kinds: Vec<String> = vm.events().iter().map(|event| event["event"].to_string()).collect();
    let of = |kind: &str| kinds.iter().filter(|other| other.contains(kind)).count();
    assert_eq!((of("device_added"), of("device_removed")), (rounds + 2, rounds + 3), "{kinds:?}");
}
