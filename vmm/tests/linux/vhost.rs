//! A network interface whose frames the host's kernel moves.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use super::common::{Bus, Vm, eventually, say};
use super::nets::Taps;
use super::{boot, host, printed, sha256, succeeds};
use crate::over_both_transports;

over_both_transports!(vhost:
    streams_pass_both_ways_through_the_kernel_around_pauses_and_resets_of_the_driver,
    limits_that_come_move_a_stream_to_userspace_where_they_hold,
    a_guest_of_two_vcpus_uses_two_pairs_in_the_kernel_and_keeps_them_when_limits_come,
);

/// Bytes of a stream.
const STREAM: usize = 4_000_000;

/// Whether Linux runs here and the host's kernel has vhost-net. Else tests pass and say that they are skipped; if
/// `$YUN_REQUIRE_LINUX` or `$YUN_REQUIRE_VHOST` is 1 they fail.
fn vhost() -> bool {
    if !super::linux() {
        return false;
    }
    let there = Path::new("/dev/vhost-net").exists();
    let required = ["YUN_REQUIRE_LINUX", "YUN_REQUIRE_VHOST"];
    let required = required.iter().any(|name| std::env::var_os(name).is_some_and(|value| value == "1"));
    assert!(
        there || !required,
        "there is no /dev/vhost-net, and YUN_REQUIRE_LINUX or YUN_REQUIRE_VHOST is set"
    );
    if !there {
        say(
            "skipped: there is no /dev/vhost-net (modprobe vhost_net): the kernel's network path was not tested",
        );
    }
    there
}

/// The host's end of streams to and from the guest: by turns it takes one to its end and gives one.
struct Server {
    rounds: JoinHandle<()>,
    /// Bytes that came so far.
    came: Arc<AtomicUsize>,
    /// Told after each round.
    done: Receiver<()>,
}

impl Server {
    fn start(vm: &Vm, address: &str, rounds: usize) -> Self {
        let listener = TcpListener::bind((address, 7000)).unwrap();
        let (received, sent) = (vm.path("received"), vm.path("sent"));
        host(&format!("head -c {STREAM} /dev/urandom >{}", sent.display()));
        let came = Arc::new(AtomicUsize::new(0));
        let (told, done) = channel();
        let rounds = thread::spawn({
            let came = Arc::clone(&came);
            move || {
                for round in 1..=rounds {
                    let (mut all, mut some) = (Vec::new(), [0; 1 << 16]);
                    let mut stream = listener.accept().unwrap().0;
                    loop {
                        let n = stream.read(&mut some).unwrap();
                        all.extend_from_slice(&some[..n]);
                        came.fetch_add(n, Ordering::SeqCst);
                        if n == 0 {
                            break;
                        }
                    }
                    drop(stream);
                    fs::write(received.with_extension(round.to_string()), all).unwrap();
                    listener.accept().unwrap().0.write_all(&fs::read(&sent).unwrap()).unwrap();
                    let _ = told.send(());
                }
            }
        });
        Self { rounds, came, done }
    }

    /// Waits until all rounds are over, whose streams must have come as they were sent.
    fn check(self, vm: &Vm, rounds: usize) {
        self.rounds.join().unwrap();
        for round in 1..=rounds {
            let received = sha256(&vm.path("received").with_extension(round.to_string()));
            assert_eq!(printed(vm, "sent"), received, "to the host, round {round}");
            assert_eq!(printed(vm, &format!("received{round}")), sha256(&vm.path("sent")), "round {round}");
        }
    }
}

/// What the guest's shell knows: `round N` has a stream each way, `up` configures the interface, `again` has its driver let go
/// of it and take it again.
fn script(subnet: &str) -> String {
    format!(
        "cd /tmp; H={subnet}.1; D=/sys/bus/virtio/drivers/virtio_net
        head -c {STREAM} /dev/urandom >a; echo sent=$(sha256sum <a | cut -d' ' -f1)
        up() {{ until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done; ip addr add {subnet}.2/24 dev eth0; ip link set eth0 up; }}
        again() {{ d=$(basename $(readlink -f /sys/class/net/eth0/device)); echo $d >$D/unbind; echo $d >$D/bind; up; }}
        round() {{ nc $H 7000 <a; nc $H 7000 </dev/null >b; echo received$1=$(sha256sum <b | cut -d' ' -f1); }}
        up; ping -c 3 -W 20 $H >/dev/null; echo begin\n"
    )
}

/// Frames that came to a TAP device from its guest.
fn frames(tap: &str) -> u64 {
    fs::read_to_string(format!("/sys/class/net/{tap}/statistics/rx_packets")).unwrap().trim().parse().unwrap()
}

fn active(vm: &Vm) -> u64 {
    vm.metric("yun_net_vhost_active")
}

fn streams_pass_both_ways_through_the_kernel_around_pauses_and_resets_of_the_driver(bus: Bus) {
    let n = if bus == Bus::Pci { 2 } else { 1 };
    let (tap, subnet) = (format!("yun-vhost{n}"), format!("172.20.{n}"));
    let _tap = Taps::add(&tap, &format!("{subnet}.1"));
    let mut vm = Vm::start(bus.flags());
    vm.put("/network-interfaces/eth0", &json!({"iface_id": "eth0", "host_dev_name": tap, "vhost": true}));
    assert_eq!(vm.get("/vm/config")["network-interfaces"][0]["vhost"], true);
    let server = Server::start(&vm, &format!("{subnet}.1"), 2);
    // Interrupts are masked, and go to another vCPU, all the time.
    vm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 256}));
    let rest = "(while :; do for c in 1 2; do for i in /proc/irq/*/smp_affinity; do echo $c >$i || :; done; sleep 0.1; done; done) 2>/dev/null &
        round 1; (while :; do ping -c 1 -W 1 $H; done >/dev/null 2>&1) &
        for turn in 1 2 3 4 5; do again; done; round 2; read -r line";
    boot(&vm, "", &(script(&subnet) + rest));
    vm.prints("begin");
    assert_eq!(active(&vm), 1, "{}", vm.log());
    let mut pauses = 0;
    while server.done.try_recv().is_err() {
        vm.patch("/vm", &json!({"state": "Paused"}));
        let before = frames(&tap);
        assert_eq!(active(&vm), 0);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(frames(&tap), before, "a guest that stands still sends nothing");
        vm.patch("/vm", &json!({"state": "Resumed"}));
        pauses += 1;
        thread::sleep(Duration::from_millis(50));
    }
    assert!(pauses > 1, "it was over before there was anything to hold");
    vm.prints("received2=");
    assert_eq!((active(&vm), vm.metric("yun_net_vhost_fallback_count_total")), (1, 0), "{}", vm.log());
    assert_eq!(vm.metric("yun_net_tx_packets_count_total"), 0, "none of it was the VMM's");
    assert_eq!(vm.metric("yun_net_needs_reset_count_total"), 0);
    let interrupts =
        vm.metric("yun_net_rx_interrupt_count_total") + vm.metric("yun_net_tx_interrupt_count_total");
    assert_eq!(interrupts == 0, bus == Bus::Pci, "{interrupts}: over PCI the kernel interrupts by itself");
    // The host begins, and comes through to a driver that was started again.
    host(&format!("busybox ping -c 3 -W 20 {subnet}.2"));
    vm.types(b"enough\n");
    succeeds(&mut vm);
    server.check(&vm, 2);
}

fn limits_that_come_move_a_stream_to_userspace_where_they_hold(bus: Bus) {
    let n = if bus == Bus::Pci { 4 } else { 3 };
    let (tap, subnet) = (format!("yun-vhost{n}"), format!("172.20.{n}"));
    let _tap = Taps::add(&tap, &format!("{subnet}.1"));
    let mut vm = Vm::start(bus.flags());
    vm.put("/network-interfaces/eth0", &json!({"iface_id": "eth0", "host_dev_name": tap, "vhost": true}));
    let server = Server::start(&vm, &format!("{subnet}.1"), 2);
    boot(&vm, "", &(script(&subnet) + "round 1; again; echo again=yes; read -r line; round 2"));
    vm.prints("begin");
    eventually("the middle of a stream", || (server.came.load(Ordering::SeqCst) > STREAM / 4).then_some(()));
    assert_eq!(active(&vm), 1);
    // A quarter of the stream a second, at most.
    let limit = json!({"bandwidth": {"size": STREAM / 4, "refill_time": 1000}});
    let limits = |limit| json!({"iface_id": "eth0", "tx_rate_limiter": limit});
    vm.patch("/network-interfaces/eth0", &limits(limit));
    let (came, since) = (server.came.load(Ordering::SeqCst), Instant::now());
    eventually("userspace", || (active(&vm) == 0).then_some(()));
    assert_eq!(vm.metric("yun_net_vhost_fallback_count_total"), 1);
    assert!(vm.log().contains("rate limits, which vhost-net does not know"), "{}", vm.log());
    eventually("the stream's end", || (server.came.load(Ordering::SeqCst) == STREAM).then_some(()));
    // The bucket was full, and what the kernel had sent before may have lain in the host's socket.
    let (left, seconds) = ((STREAM - came) as u64, since.elapsed().as_secs_f64());
    let least = left.saturating_sub(STREAM as u64 / 2) as f64 / (STREAM as f64 / 4.0);
    assert!(seconds >= least, "{left} bytes in {seconds} s, in less than {least} s");
    vm.prints("again=yes");
    assert_eq!(
        (active(&vm), vm.metric("yun_net_vhost_fallback_count_total")),
        (0, 2),
        "limits outlive a driver"
    );
    assert!(vm.metric("yun_net_tx_packets_count_total") > 0);
    vm.patch("/network-interfaces/eth0", &limits(json!({"bandwidth": {"size": 0, "refill_time": 0}})));
    vm.types(b"go\n");
    succeeds(&mut vm);
    server.check(&vm, 2);
}

/// How often each of the VMM's threads in the kernel has waited so far, in the order they were made in. From Linux 6.4 on they are
/// threads of the VMM, before that of the kernel.
fn waits(vm: &Vm) -> Vec<u64> {
    let name = format!("vhost-{}", vm.pid());
    let count = |task: &Path| -> Option<(u64, u64)> {
        let read = |file: &str| fs::read_to_string(task.join(file)).ok();
        let status = read("status").filter(|_| read("comm").is_some_and(|comm| comm.trim() == name))?;
        let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some((task.file_name()?.to_str()?.parse().ok()?, waits.trim().parse().ok()?))
    };
    let tasks = ["/proc".to_owned(), format!("/proc/{}/task", vm.pid())];
    let tasks = tasks.iter().flat_map(|all| fs::read_dir(all).unwrap());
    let mut found: Vec<_> = tasks.filter_map(|task| count(&task.ok()?.path())).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, waits)| waits).collect()
}

fn a_guest_of_two_vcpus_uses_two_pairs_in_the_kernel_and_keeps_them_when_limits_come(bus: Bus) {
    let n = if bus == Bus::Pci { 7 } else { 6 };
    let (tap, subnet) = (format!("yun-vhost{n}"), format!("172.20.{n}"));
    let _tap = Taps::add_multi_queue(&tap, &format!("{subnet}.1"));
    let mut vm = Vm::start(bus.flags());
    vm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 256}));
    // One pair more than vCPUs: the guest leaves it alone. The kernel's threads look for more before they wait.
    let interface =
        json!({"iface_id": "eth0", "host_dev_name": tap, "vhost": true, "num_queue_pairs": 3, "poll_us": 20});
    vm.put("/network-interfaces/eth0", &interface);
    let script = format!(
        "cd /sys/class/net/eth0/queues; echo queues=$(echo *); H={subnet}.1
        both() {{ for cpu in 1 2 1 2; do taskset $cpu ping -c 2 -i 0.2 -W 20 $H >/dev/null || return 1; done; echo $1=yes; }}
        ping -c 1 -W 20 $H >/dev/null; echo open=yes; read -r line
        both kernel; read -r line; both userspace; read -r line"
    );
    boot(&vm, &format!("yun.ip={subnet}.2/24"), &script);
    vm.prints("open=yes");
    assert_eq!(printed(&vm, "queues"), "rx-0 rx-1 tx-0 tx-1");
    assert_eq!(active(&vm), 1, "{}", vm.log());

    // 64 flows from the host, each of which goes to either pair; what the guest sends goes out by its vCPU's.
    let to_guest = || fs::read_to_string(format!("/sys/class/net/{tap}/statistics/tx_packets")).unwrap();
    let to_guest = || to_guest().trim().parse::<u64>().unwrap();
    let flows = || {
        for _ in 0..64 {
            let socket = std::net::UdpSocket::bind((format!("{subnet}.1"), 0)).unwrap();
            socket.send_to(b"flow", (format!("{subnet}.2"), 9)).unwrap();
        }
    };
    let (begun, frames) = (waits(&vm), to_guest());
    assert_eq!(begun.len(), 3, "a thread in the kernel for each pair");
    flows();
    eventually("64 frames", || (to_guest() >= frames + 64).then_some(()));
    eventually("a frame for the second pair", || (waits(&vm)[1] > begun[1]).then_some(()));
    let received = waits(&vm);
    vm.types(b"go\n");
    vm.prints("kernel=yes");
    let sent = waits(&vm);
    assert!(sent[0] > received[0] && sent[1] > received[1], "both pairs send: {received:?}, {sent:?}");
    assert_eq!(sent[2], begun[2], "the third is not in use");
    assert_eq!(vm.metric("yun_net_tx_packets_count_total"), 0, "none of it was the VMM's");

    // The host forgets where the guest is, and would learn it from a frame that nobody asked for.
    host(&format!("sysctl -qw net.ipv4.conf.{tap}.arp_accept=1"));
    let known = || host(&format!("ip neigh show {subnet}.2 dev {tap}"));
    vm.patch("/vm", &json!({"state": "Paused"}));
    host(&format!("ip neigh flush dev {tap}"));
    vm.patch("/vm", &json!({"state": "Resumed"}));
    eventually("an announcement", || known().contains("lladdr").then_some(()));
    eventually("its acknowledgement", || (vm.metric("yun_net_announce_count_total") == 1).then_some(()));
    assert_eq!((active(&vm), vm.metric("yun_net_vhost_fallback_count_total")), (1, 0), "{}", vm.log());

    let limit = json!({"ops": {"size": 1_000_000, "refill_time": 100}});
    vm.patch("/network-interfaces/eth0", &json!({"iface_id": "eth0", "tx_rate_limiter": limit}));
    eventually("userspace", || (active(&vm) == 0).then_some(()));
    let frames = vm.metric("yun_net_rx_packets_count_total");
    flows();
    eventually("64 frames", || (vm.metric("yun_net_rx_packets_count_total") >= frames + 64).then_some(()));
    vm.types(b"go\n");
    vm.prints("userspace=yes");
    assert_eq!(vm.metric("yun_net_needs_reset_count_total"), 0);
    assert_eq!(vm.metric("yun_net_rx_fails_total") + vm.metric("yun_net_tx_fails_total"), 0);
    vm.types(b"enough\n");
    succeeds(&mut vm);
}

#[test]
fn interfaces_of_the_kernels_come_and_go_and_leave_nothing() {
    if !vhost() {
        return;
    }
    let mut vm = Vm::start(Bus::Pci.flags());
    let script = "for round in 1 2 3 4 5 6; do until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done
        ip addr add 172.20.5.2/24 dev eth0; ip link set eth0 up; ping -c 1 -W 20 172.20.5.1 >/dev/null; echo round=$round.
        while [ -e /sys/class/net/eth0 ]; do sleep 0.05; done; done";
    boot(&vm, "", script);
    let count = |of: &str| fs::read_dir(format!("/proc/{}/{of}", vm.pid())).unwrap().count();
    let mut least = (usize::MAX, usize::MAX);
    let tap = Taps::add("yun-vhost5", "172.20.5.1");
    for round in 1..=6 {
        let body = json!({"iface_id": "late", "host_dev_name": "yun-vhost5", "vhost": true});
        vm.put("/network-interfaces/late", &body);
        eventually("a ping", || vm.console().contains(&format!("round={round}.")).then_some(()));
        assert_eq!(vm.metric("yun_net_vhost_active{id=\"late\"}"), 1);
        let reply = vm.ask("DELETE", "/network-interfaces/late", "");
        assert_eq!(reply.status, 204, "{}", reply.body);
        // Its thread in the kernel is one of the VMM's, where the kernel shows that.
        let now = || (count("fd"), count("task"));
        if round == 1 {
            least = now();
        }
        eventually("no more descriptors and threads than before", || {
            let now = now();
            (now.0 <= least.0 && now.1 <= least.1).then_some(())
        });
    }
    drop(tap);
    succeeds(&mut vm);
}
