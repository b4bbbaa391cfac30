//! A network interface on a TAP device.
#![allow(unsafe_code)] // a device says its descriptor's number only

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::thread;

use devices::virtio::net::FrameIo;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::json;
use vmm::host::tap::Tap;

use super::common::{Bus, Setup, Vm, eventually};
use super::{boot, host, linux, printed, sha256, succeeds};
use crate::over_both_transports;

over_both_transports!(linux:
    frames_and_streams_pass_both_ways_on_a_tap_by_name_and_one_by_descriptor,
    a_limited_interface_is_silent_until_the_limit_is_taken_away,
    a_guest_of_two_vcpus_uses_two_pairs_of_queues_and_announces_itself_when_it_is_resumed,
);

/// A TAP device that is there until this is dropped.
pub struct Taps(String);

impl Taps {
    /// Makes one with an address of /24.
    pub fn add(name: &str, address: &str) -> Self {
        Self::make(name, address, "")
    }

    /// One that is made for several queues.
    pub fn add_multi_queue(name: &str, address: &str) -> Self {
        Self::make(name, address, "multi_queue")
    }

    fn make(name: &str, address: &str, more: &str) -> Self {
        host(&format!(
            "ip tuntap add {name} mode tap {more} && ip addr add {address}/24 dev {name} && ip link set {name} up"
        ));
        Self(name.to_owned())
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

fn number(bus: Bus) -> u8 {
    match bus {
        Bus::Mmio => 1,
        Bus::Pci => 2,
    }
}

fn frames_and_streams_pass_both_ways_on_a_tap_by_name_and_one_by_descriptor(bus: Bus) {
    let n = number(bus);
    let (name, lent) = (format!("yun-name{n}"), format!("yun-fd{n}"));
    let _tap = Taps::add(&name, &format!("172.16.{n}.1"));
    // Open here, and handed down to the VMM.
    let open = Tap::open(&lent).unwrap();
    host(&format!("ip addr add 172.17.{n}.1/24 dev {lent} && ip link set {lent} up"));
    // SAFETY: `open` owns the descriptor and outlives this.
    let descriptor = unsafe { BorrowedFd::borrow_raw(open.fd()) };
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut vm = Setup::new(bus.flags()).start();
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();

    let mac = "06:00:ac:10:00:02";
    vm.put(
        "/network-interfaces/eth0",
        &json!({"iface_id": "eth0", "host_dev_name": name, "guest_mac": mac, "mtu": 1400}),
    );
    vm.put(
        "/network-interfaces/eth1",
        &json!({"iface_id": "eth1", "host_dev_name": lent, "host_dev_fd": open.fd()}),
    );
    // Somebody else's TAP device is busy, whether the one who has it runs or not.
    let other = Vm::start(bus.flags());
    let body = json!({"iface_id": "eth0", "host_dev_name": name}).to_string();
    let refusal = other.refused("PUT", "/network-interfaces/eth0", &body);
    assert!(refusal.contains("Could not create the network device: Open tap device failed"), "{refusal}");
    assert!(refusal.contains("Device or resource busy"), "{refusal}");
    drop(other);

    // Takes what comes, then gives something else, each to its end.
    let listener = TcpListener::bind((format!("172.16.{n}.1"), 7000)).unwrap();
    let (received, sent) = (vm.path("received"), vm.path("sent"));
    host(&format!("head -c 4000000 /dev/urandom >{}", sent.display()));
    let server = thread::spawn({
        let (received, sent) = (received.clone(), sent.clone());
        move || {
            let mut bytes = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
            fs::write(received, bytes).unwrap();
            listener.accept().unwrap().0.write_all(&fs::read(sent).unwrap()).unwrap();
        }
    });
    let script = format!(
        "cd /tmp; echo mac=$(cat /sys/class/net/eth0/address); echo mtu=$(cat /sys/class/net/eth?/mtu)
        ping -c 3 -W 20 172.16.{n}.1 >/dev/null; ping -c 3 -W 20 172.17.{n}.1 >/dev/null; ping -s 1300 -c 1 -W 20 172.16.{n}.1 >/dev/null
        head -c 4000000 /dev/urandom >a; echo sent=$(sha256sum <a | cut -d' ' -f1)
        nc 172.16.{n}.1 7000 <a; nc 172.16.{n}.1 7000 </dev/null >b; echo received=$(sha256sum <b | cut -d' ' -f1)
        echo waiting for a ping; read -r line"
    );
    boot(&vm, &format!("yun.ip=172.16.{n}.2/24,172.17.{n}.2/24"), &script);
    vm.prints("waiting for a ping");
    for address in ["172.16", "172.17"] {
        host(&format!("busybox ping -c 3 -W 20 {address}.{n}.2"));
    }
    vm.types(b"enough\n");
    succeeds(&mut vm);
    server.join().unwrap();
    assert_eq!(printed(&vm, "mac"), mac);
    assert_eq!(printed(&vm, "mtu"), "1400 1500");
    assert_eq!(printed(&vm, "sent"), sha256(&received));
    assert_eq!(printed(&vm, "received"), sha256(&sent));
}

fn a_limited_interface_is_silent_until_the_limit_is_taken_away(bus: Bus) {
    let n = number(bus) + 2;
    let name = format!("yun-name{n}");
    let _tap = Taps::add(&name, &format!("172.16.{n}.1"));
    let mut vm = Vm::start(bus.flags());
    vm.put("/network-interfaces/eth0", &json!({"iface_id": "eth0", "host_dev_name": name}));
    let script = format!(
        "ping -c 1 -W 20 172.16.{n}.1 >/dev/null; echo open; read -r line
        ping -c 1 -W 1 172.16.{n}.1 >/dev/null || true
        if ping -c 1 -W 2 172.16.{n}.1 >/dev/null; then echo no limit; exit 1; fi; echo silent
        until ping -c 1 -W 2 172.16.{n}.1 >/dev/null; do true; done"
    );
    boot(&vm, &format!("yun.ip=172.16.{n}.2/24"), &script);
    vm.prints("open");
    let hour = json!({"ops": {"size": 1, "refill_time": 3_600_000}});
    vm.patch("/network-interfaces/eth0", &json!({"iface_id": "eth0", "tx_rate_limiter": hour}));
    assert_eq!(vm.get("/vm/config")["network-interfaces"][0]["tx_rate_limiter"]["ops"]["size"], 1);
    // The first that the guest has to say spends the one token there is.
    vm.types(b"go\n");
    eventually("throttling", || (vm.metric("yun_net_tx_rate_limiter_throttled_total") > 0).then_some(()));
    vm.prints("silent");
    let none = json!({"ops": {"size": 0, "refill_time": 0}});
    vm.patch("/network-interfaces/eth0", &json!({"iface_id": "eth0", "tx_rate_limiter": none}));
    succeeds(&mut vm);
}

/// Times that a thread of the VMM's has waited for something.
fn waits(vm: &Vm, thread: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", vm.pid())).unwrap();
    let found = tasks.flatten().find_map(|task| {
        let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let status = read("status");
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        (read("comm").trim() == thread).then(|| count.trim().parse().unwrap())
    });
    found.unwrap_or_else(|| panic!("no thread {thread}"))
}

fn a_guest_of_two_vcpus_uses_two_pairs_of_queues_and_announces_itself_when_it_is_resumed(bus: Bus) {
    let n = number(bus) + 4;
    let (name, single) = (format!("yun-pairs{n}"), format!("yun-pairs{n}s"));
    let _taps = (
        Taps::add_multi_queue(&name, &format!("172.16.{n}.1")),
        Taps::add(&single, &format!("172.17.{n}.1")),
    );
    let mut vm = Vm::start(bus.flags());
    vm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 256}));
    let interface =
        |name: &str, pairs: u16| json!({"iface_id": "eth0", "host_dev_name": name, "num_queue_pairs": pairs});
    let refusal = vm.refused("PUT", "/network-interfaces/eth0", &interface(&single, 2).to_string());
    assert!(refusal.contains(&format!("{single} was made for one queue")), "{refusal}");
    // More than vCPUs: the guest uses as many as it has.
    vm.put("/network-interfaces/eth0", &interface(&name, 3));
    assert_eq!(vm.get("/vm/config")["network-interfaces"][0]["num_queue_pairs"], 3);
    let script = format!(
        "cd /sys/class/net/eth0/queues; echo queues=$(echo *)
        ping -c 1 -W 20 172.16.{n}.1 >/dev/null; echo open=yes; read -r line
        for cpu in 1 2 1 2; do taskset $cpu ping -c 2 -i 0.2 -W 20 172.16.{n}.1 >/dev/null; done; echo sent=yes; read -r line"
    );
    boot(&vm, &format!("yun.ip=172.16.{n}.2/24"), &script);
    vm.prints("open=yes");
    assert_eq!(printed(&vm, "queues"), "rx-0 rx-1 tx-0 tx-1");

    // 64 flows from the host, each of which goes to either pair; what the guest sends goes out by its vCPU's.
    let second = "yun_eth0.2";
    let (before, frames) = (waits(&vm, second), vm.metric("yun_net_rx_packets_count_total"));
    for _ in 0..64 {
        let socket = std::net::UdpSocket::bind((format!("172.16.{n}.1"), 0)).unwrap();
        socket.send_to(b"flow", (format!("172.16.{n}.2"), 9)).unwrap();
    }
    eventually("64 frames", || (vm.metric("yun_net_rx_packets_count_total") >= frames + 64).then_some(()));
    let received = waits(&vm, second);
    assert!(received > before, "the second pair's thread received nothing");
    vm.types(b"go\n");
    vm.prints("sent=yes");
    assert!(waits(&vm, second) > received, "the second pair's thread sent nothing");
    assert_eq!(vm.metric("yun_net_rx_fails_total") + vm.metric("yun_net_tx_fails_total"), 0);

    // The host forgets where the guest is, and would learn it from a frame that nobody asked for.
    host(&format!("sysctl -qw net.ipv4.conf.{name}.arp_accept=1"));
    let known = || host(&format!("ip neigh show 172.16.{n}.2 dev {name}"));
    vm.patch("/vm", &json!({"state": "Paused"}));
    host(&format!("ip neigh flush dev {name}"));
    assert_eq!((known().trim(), vm.metric("yun_net_announce_count_total")), ("", 0));
    vm.patch("/vm", &json!({"state": "Resumed"}));
    eventually("an announcement", || known().contains("lladdr").then_some(()));
    eventually("its acknowledgement", || (vm.metric("yun_net_announce_count_total") == 1).then_some(()));
    vm.types(b"enough\n");
    succeeds(&mut vm);
}
