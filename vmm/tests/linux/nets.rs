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
);

/// A TAP device that is there until this is dropped.
pub struct Taps(String);

impl Taps {
    /// Makes one with an address of /24.
    pub fn add(name: &str, address: &str) -> Self {
        host(&format!(
            "ip tuntap add {name} mode tap && ip addr add {address}/24 dev {name} && ip link set {name} up"
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
