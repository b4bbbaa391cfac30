//! The lists of system calls, held against a microVM's life: it must get through it with what it is allowed, and make use
//! of all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::json;
use vmm::sandbox::seccomp::name_of;
use vmm::sandbox::seccomp::rules::{Arg, EVERY_THREAD, Kind, Rule};

use super::common::http::receive;
use super::common::{Bus, Setup, Vm, eventually, zeros};
use super::nets::Taps;
use super::sockets::call;
use super::{boot, linux};

/// A call as strace wrote it: its name and its arguments, those of them that are numbers.
type Call = (String, Vec<Option<u64>>);

/// All calls of a life, by the kind of thread that made them, from its filter on.
type Calls = BTreeMap<&'static str, BTreeSet<Call>>;

fn label(kind: Kind) -> &'static str {
    match kind {
        Kind::Process => "process",
        Kind::Driver => "driver",
        Kind::PciDriver => "driver with PCI",
        Kind::Api => "api",
        Kind::Vcpu => "vcpu",
        Kind::Device => "device",
        Kind::Vsock => "vsock",
    }
}

/// `123 name(1, 0x2, "three") = 4` as thread, name and arguments.
fn parse(line: &str) -> Option<(u32, Call)> {
    let (thread, rest) = line.split_once(' ')?;
    let (name, rest) = rest.trim_start().split_once('(')?;
    // The end of a call that was written before; what clone(2) takes first, strace shows second, with its name.
    if name.starts_with('<') {
        return None;
    }
    let rest = rest.split_once("flags=").filter(|_| name == "clone").map_or(rest, |(_, flags)| flags);
    let arguments = rest.split([',', ')']).map(|word| {
        let word = word.split_whitespace().next()?;
        match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        }
    });
    Some((thread.parse().ok()?, (name.to_owned(), arguments.collect())))
}

/// Who started each thread that a trace shows being started.
fn parents(trace: &str) -> BTreeMap<u32, u32> {
    let started = trace.lines().filter_map(|line| {
        let (parent, rest) = line.split_once(' ')?;
        let rest = rest.trim_start();
        let begun = rest.starts_with("clone(") || rest.starts_with("<... clone resumed");
        let (_, child) = rest.rsplit_once("= ").filter(|_| begun)?;
        Some((child.trim().parse().ok()?, parent.parse().ok()?))
    });
    started.collect()
}

/// Sorts a trace by kinds of threads. A thread is what its name says once it has a filter of its own; the first thread is
/// the process from its first filter on and the driver, of this kind, from its second. What another thread than the first starts is of that
/// thread's kind, whose filter it inherits: only devices' threads start any.
fn sorted(trace: &str, driver: Kind, into: &mut Calls) {
    let parents = parents(trace);
    let mut filters: BTreeMap<u32, u32> = BTreeMap::new();
    let mut names: BTreeMap<u32, Kind> = BTreeMap::new();
    let mut first = None;
    for line in trace.lines() {
        let Some((thread, call)) = parse(line) else { continue };
        let main = *first.get_or_insert(thread);
        let mains = filters.get(&main).copied().unwrap_or_default();
        let count = filters.entry(thread).or_default();
        let kind = match (thread == main, *count) {
            (true, 0) => None,
            (true, 1) => Some(Kind::Process),
            (true, _) => Some(driver),
            (false, 0) if parents.get(&thread).is_some_and(|parent| *parent != main) => Some(Kind::Device),
            (false, 0) if mains > 1 => Some(driver),
            (false, 0) => Some(Kind::Process),
            (false, _) => names.get(&thread).copied(),
        };
        // Installing a filter is still the work of the kind before.
        if call.0 == "seccomp" && call.1.first() == Some(&Some(1)) {
            *count += 1;
        }
        if call.0 == "prctl" && thread != main {
            let kind = if line.contains("\"yun_api\"") {
                Kind::Api
            } else if line.contains("\"yun_vcpu") {
                Kind::Vcpu
            } else if line.contains("\"yun_vsock\"") {
                Kind::Vsock
            } else {
                Kind::Device
            };
            names.entry(thread).or_insert(kind);
        }
        if let Some(kind) = kind {
            into.entry(label(kind)).or_default().insert(call);
        }
    }
}

fn life(bus: Bus, calls: &mut Calls) {
    let trace = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("life-{bus:?}.trace"));
    let setup = Setup::traced(bus.flags(), &trace);
    let tap = format!("yun-life{}", u8::from(bus == Bus::Pci));
    let _tap = Taps::add_multi_queue(&tap, "172.18.0.1");
    let of_kernel = format!("yun-lifev{}", u8::from(bus == Bus::Pci));
    let _of_kernel = Taps::add(&of_kernel, "172.18.3.1");
    let mut vm = setup.start();
    configure(&vm, &tap, &of_kernel);
    let affinity = json!({"vcpu_count": 2, "mem_size_mib": 256, "vcpu_affinity": [0, 0], "io_affinity": [0]});
    vm.put("/machine-config", &affinity);
    let script = "cd /tmp; dd if=/dev/urandom of=a bs=64k count=8 2>/dev/null
        dd if=a of=/dev/vda bs=4k conv=fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null
        taskset 2 dd if=a of=/dev/vda bs=4k oflag=direct 2>/dev/null; blkdiscard /dev/vda
        dd if=a of=/dev/vdb bs=4k conv=fsync 2>/dev/null
        dd if=/dev/hwrng of=/dev/null bs=512 count=4 2>/dev/null
        ping -c 3 -i 0.2 172.18.0.1 >/dev/null; ping -c 3 -i 0.2 172.18.3.1 >/dev/null; echo ping=answered
        vsock listen 52 </dev/null & vsock connect 53 </init
        head -c 1 >/dev/null; echo typed=yes; while :; do sleep 1; done";
    let listener = UnixListener::bind(vm.path("v_53")).unwrap();
    boot(&vm, "yun.modules=vsock yun.ip=172.18.0.2/24,172.18.3.2/24", script);
    vm.prints("ping=answered");
    listener.accept().unwrap().0.read_to_end(&mut Vec::new()).unwrap();
    let mut caller = call(&vm.path("v"), 52);
    caller.write_all(b"said=hello\n").unwrap();
    caller.shutdown(std::net::Shutdown::Write).unwrap();
    vm.prints("said=hello");
    every_request(&vm);
    if bus == Bus::Pci {
        come_and_go(&vm);
    }
    vm.types(b"\n");
    vm.prints("typed=yes");
    match bus {
        Bus::Mmio => vm.act("PressPowerButton"),
        Bus::Pci => vm.act("SendCtrlAltDel"),
    }
    vm.ends_with(0, if bus == Bus::Mmio { "poweroff" } else { "reboot" });
    let driver = if bus == Bus::Pci { Kind::PciDriver } else { Kind::Driver };
    sorted(&fs::read_to_string(trace).unwrap(), driver, calls);
}

fn configure(vm: &Vm, tap: &str, of_kernel: &str) {
    vm.put("/logger", &json!({"log_path": vm.path("log"), "level": "Debug"}));
    vm.put("/metrics", &json!({"metrics_path": vm.path("metrics")}));
    vm.put("/serial", &json!({"rate_limiter": {"size": 1 << 20, "refill_time": 100}}));
    vm.put("/rate-limiter-groups/io", &json!({"ops": {"size": 10_000, "refill_time": 100}}));
    let disk = json!({"cache_type": "Writeback", "poll_us": 50, "rate_limiter_group": "io"});
    vm.put_drive("disk", &zeros(&vm.path("disk"), 1 << 20), &disk);
    let ring = json!({"cache_type": "Writeback", "io_engine": "Async"});
    vm.put_drive("ring", &zeros(&vm.path("ring"), 1 << 20), &ring);
    let mac = "06:00:ac:12:00:02";
    let interface = json!({"iface_id": "eth0", "host_dev_name": tap, "guest_mac": mac, "num_queue_pairs": 2});
    vm.put("/network-interfaces/eth0", &interface);
    assert!(
        Path::new("/dev/vhost-net").exists(),
        "a whole life has an interface of vhost-net (modprobe vhost_net)"
    );
    vm.put(
        "/network-interfaces/eth1",
        &json!({"iface_id": "eth1", "host_dev_name": of_kernel, "vhost": true, "poll_us": 20}),
    );
    vm.put("/entropy", &json!({}));
    vm.put("/vsock", &json!({"guest_cid": 3, "uds_path": vm.path("v")}));
}

/// What the API offers while a guest runs, and what it refuses.
fn every_request(vm: &Vm) {
    for path in ["/", "/version", "/vm/config", "/machine-config", "/metrics", "/openapi.json"] {
        assert_eq!(vm.ask("GET", path, "").status, 200, "{path}");
    }
    let other = zeros(&vm.path("other"), 2 << 20);
    let done = |path: &str, body: serde_json::Value| {
        let reply = vm.ask("PATCH", path, &body.to_string());
        assert_eq!(reply.status, 204, "{path}: {}", reply.body);
    };
    done("/drives/disk", json!({"drive_id": "disk", "path_on_host": other}));
    let limit = json!({"bandwidth": {"size": 1 << 24, "refill_time": 100}});
    done("/drives/disk", json!({"drive_id": "disk", "rate_limiter": limit}));
    done(
        "/network-interfaces/eth0",
        json!({"iface_id": "eth0", "rx_rate_limiter": limit, "tx_rate_limiter": limit}),
    );
    done("/rate-limiter-groups/io", limit.clone());
    for path in ["/entropy", "/vsock"] {
        done(path, json!({"rate_limiter": limit}));
    }
    done("/vm", json!({"state": "Paused"}));
    done("/vm", json!({"state": "Resumed"}));
    done("/network-interfaces/eth1", json!({"iface_id": "eth1", "tx_rate_limiter": limit}));
    eventually("userspace", || {
        (vm.metric("yun_net_vhost_fallback_count_total{id=\"eth1\"}") == 1).then_some(())
    });
    vm.act("FlushMetrics");
    vm.refused("PUT", "/actions", &json!({"action_type": "InstanceStart"}).to_string());
    let mut stream = UnixStream::connect(vm.socket()).unwrap();
    stream.write_all(b"NONSENSE\r\n\r\n").unwrap();
    assert_eq!(receive(&mut stream).unwrap().status, 400);
}

/// Devices that are added to a guest that runs, and removed.
fn come_and_go(vm: &Vm) {
    let _tap = Taps::add("yun-life2", "172.18.2.1");
    vm.put_drive("late", &zeros(&vm.path("late"), 1 << 20), &json!({}));
    vm.put(
        "/network-interfaces/late",
        &json!({"iface_id": "late", "host_dev_name": "yun-life2", "vhost": true, "poll_us": 20}),
    );
    for path in ["/drives/late", "/network-interfaces/late"] {
        let reply = vm.ask("DELETE", path, "");
        assert_eq!(reply.status, 204, "{path}: {}", reply.body);
    }
}

/// Whether `call` is what `rule` allows, as far as a trace shows it.
fn fits(rule: &Rule, call: &Call) -> bool {
    let at = |place: u8| call.1.get(usize::from(place)).copied().flatten();
    let low = |value: u64, mask: u64| u32::try_from(value & mask).expect("masked");
    name_of(rule.call) == Some(&call.0)
        && match rule.arg {
            Arg::Any | Arg::Without(..) | Arg::OwnThread(_) | Arg::NoSuchCall => true,
            Arg::OneOf(place, values) => {
                at(place).is_some_and(|value| values.contains(&low(value, 0xffff_ffff)))
            }
            Arg::Ioctl(requests) => at(1).is_some_and(|value| requests.contains(&low(value, 0xffff))),
        }
}

/// Each value that a rule names is a rule of its own here: one that is never used has to go, too.
fn apart(rule: &Rule) -> Vec<Rule> {
    let with = |arg| Rule { arg, ..*rule };
    match rule.arg {
        Arg::OneOf(place, values) => values.chunks(1).map(|value| with(Arg::OneOf(place, value))).collect(),
        Arg::Ioctl(requests) => requests.chunks(1).map(|request| with(Arg::Ioctl(request))).collect(),
        _ => vec![*rule],
    }
}

#[test]
fn a_life_needs_every_call_on_the_lists_and_none_that_is_not_on_them() {
    if !linux() {
        return;
    }
    let mut calls = Calls::new();
    for bus in [Bus::Mmio, Bus::Pci] {
        life(bus, &mut calls);
    }
    let mut wrong = Vec::new();
    for kind in Kind::ALL {
        let made = &calls[label(kind)];
        let rules = kind.rules();
        for call in made.iter().filter(|call| !rules.iter().any(|rule| fits(rule, call))) {
            wrong.push(format!("{kind:?} makes {call:?}, which is on no list"));
        }
        for rule in kind.own().iter().filter(|rule| rule.rarely.is_none()).flat_map(apart) {
            if !made.iter().any(|call| fits(&rule, call)) {
                let name = name_of(rule.call).unwrap_or_default();
                wrong.push(format!("{kind:?} never makes {name} with {:x?}", rule.arg));
            }
        }
    }
    for rule in EVERY_THREAD.iter().filter(|rule| rule.rarely.is_none()) {
        if !calls.values().flatten().any(|call| fits(rule, call)) {
            wrong.push(format!("no thread ever makes {}", name_of(rule.call).unwrap_or_default()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
