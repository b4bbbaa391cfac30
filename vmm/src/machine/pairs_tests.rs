//! Pairs of queues on a TAP device of the kernel's, each served by its thread, with the guest's side in this process.

use std::net::{Ipv4Addr, UdpSocket};
use std::num::NonZeroU16;
use std::process::Command;
use std::time::{Duration, Instant};

use devices::mem::Ram;
use devices::testing::irq::CountingIrq;
use devices::testing::queue::{Driver, give, take};
use devices::testing::ram;
use devices::virtio::net::{F_HOST_USO, FrameIo, Net, NetHandle, NetOptions};
use devices::virtio::queue::F_EVENT_IDX;
use devices::virtio::{Granted, Idle, Owner};

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use super::worker::{Habits, Worker};
use crate::host::tap::Tap;

const PAIRS: u16 = 2;
const CONTROL: u16 = 2 * PAIRS;
/// Buffers of each receive queue.
const SIZE: u16 = 128;
const RINGS: u64 = 0x2000;
const COMMAND: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;

/// Name of the TAP device of test `n`, and the addresses of the host and its only neighbour: of this process alone.
fn place(n: u32) -> (String, [String; 2]) {
    let id = (std::process::id() * 4 + n) % (1 << 14);
    let [_, _, high, low] = (id * 4).to_be_bytes();
    let address = |last| format!("198.18.{high}.{}", low + last);
    (format!("yunpairs{id}"), [address(1), address(2)])
}

/// A TAP device of two queues with an address, whose only neighbour is there without having to be asked for; `None` if this
/// process may not make one.
fn tap(name: &str, [host, guest]: &[String; 2]) -> Option<Tap> {
    let tap = match Tap::open_queues(name, NonZeroU16::new(PAIRS)?) {
        Ok(tap) => tap,
        Err(error) => {
            eprintln!("skipped: no TAP device can be made here: {error}");
            return None;
        }
    };
    for command in [
        // Nobody else is to say anything there.
        format!("sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1"),
        format!("ip link set {name} addrgenmode none"),
        format!("ip addr add {host}/30 dev {name}"),
        format!("ip link set {name} up"),
        format!("ip neigh add {guest} lladdr 02:00:00:00:00:02 dev {name}"),
    ] {
        let mut words = command.split(' ');
        let _ = Command::new(words.next()?).args(words).status();
    }
    Some(tap)
}

struct Guest {
    ram: Ram,
    rings: Vec<Driver>,
    owner: super::worker::Handle,
    next: u64,
}

impl Guest {
    /// Starts `idle`, whose handle is `handle`, for a driver that gives every receive queue all the buffers it can.
    fn start(idle: Box<dyn Idle>, handle: &NetHandle, worker: &Worker) -> Self {
        let ram = ram::flat(0x10_0000);
        let mut rings: Vec<_> =
            (0..=CONTROL).map(|queue| Driver::new(&ram, RINGS * u64::from(queue), SIZE)).collect();
        let mut next = DATA;
        for pair in 0..usize::from(PAIRS) {
            for _ in 0..SIZE {
                rings[2 * pair].send(&[take(next, 2048)]);
                next += 2048;
            }
        }
        let granted = Granted {
            ram: Ram::clone(&ram),
            features: idle.offered() & !F_EVENT_IDX,
            queues: rings.iter().map(|driver| Some(driver.queue())).collect(),
            interrupt: CountingIrq::new(),
        };
        let Ok(device) = idle.start(granted) else { panic!("a TAP device takes offloads") };
        let mut owner = worker.handle().clone();
        let served = || handle.pairs()[1].rx_queue_events.get();
        let before = served();
        owner.run(device, &(0..=CONTROL).collect::<Vec<_>>());
        // The second pair's thread has the kernel bring it frames for a moment, to watch the descriptor, and lets go when it first serves.
        eventually(|| served() > before);
        Self { ram, rings, owner, next }
    }

    fn used(&mut self, queue: u16) -> u32 {
        self.owner.kick(queue);
        let mut used = None;
        eventually(|| {
            used = self.rings[usize::from(queue)].used();
            used.is_some()
        });
        used.unwrap().1
    }

    fn use_pairs(&mut self, count: u8) {
        ram::write(&self.ram, COMMAND, &[4, 0, count, 0, 0xAA]);
        self.rings[usize::from(CONTROL)].send(&[give(COMMAND, 4), take(COMMAND + 4, 1)]);
        assert_eq!(self.used(CONTROL), 1);
        assert_eq!(ram::read(&self.ram, COMMAND + 4, 1), [0], "{count} pairs");
    }

    fn sends(&mut self, pair: u16) {
        ram::write(&self.ram, self.next, &[0; 72]);
        self.rings[usize::from(2 * pair + 1)].send(&[give(self.next, 72)]);
        self.used(2 * pair + 1);
    }
}

fn eventually(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends `FLOWS` datagrams to the guest, each of a flow of its own.
fn flows([host, guest]: &[String; 2]) {
    for _ in 0..FLOWS {
        let socket = UdpSocket::bind((host.as_str(), 0)).unwrap();
        socket.send_to(b"flow", (guest.as_str(), 9)).unwrap();
    }
}

const FLOWS: u64 = 32;

fn received(handle: &NetHandle) -> [u64; PAIRS as usize] {
    let pairs: Vec<_> = handle.pairs().iter().map(|pair| pair.rx_frames.get()).collect();
    pairs.try_into().unwrap()
}

#[test]
fn the_kernel_brings_frames_to_the_pairs_in_use_and_to_no_others() {
    let (name, addresses) = place(0);
    let Some(tap) = tap(&name, &addresses) else { return };
    let wires = |tap: &Tap| -> Vec<Box<dyn FrameIo>> {
        tap.clone().into_queues().into_iter().map(|queue| Box::new(queue) as Box<dyn FrameIo>).collect()
    };
    let net = Net::with_pairs(wires(&tap), &NetOptions::default());
    let handle = net.handle();
    let worker = Worker::plain("pairs", usize::from(CONTROL) + 1, &Habits::default());
    let mut guest = Guest::start(Box::new(net), &handle, &worker);
    let to_the_first = |handle: &NetHandle| {
        let [first, second] = received(handle);
        flows(&addresses);
        eventually(|| received(handle)[0] >= first + FLOWS);
        assert_eq!(received(handle)[1], second, "a pair that is not in use gets nothing");
    };
    // Of 32 flows some go either way.
    let to_both = |handle: &NetHandle| {
        let [first, second] = received(handle);
        flows(&addresses);
        eventually(|| received(handle).iter().sum::<u64>() >= first + second + FLOWS);
        assert!(received(handle)[1] > second, "{:?}", received(handle));
    };
    to_the_first(&handle);
    guest.use_pairs(2);
    to_both(&handle);
    for pair in 0..PAIRS {
        guest.sends(pair);
    }
    let sent: Vec<_> =
        handle.pairs().iter().map(|pair| (pair.tx_frames.get(), pair.tx_failures.get())).collect();
    assert_eq!(sent, [(1, 0); PAIRS as usize]);
    guest.use_pairs(1);
    to_the_first(&handle);

    // Another driver, and after that, as after a reset of the machine, another device on the same queues.
    guest.use_pairs(2);
    let idle = guest.owner.halt().unwrap();
    let mut guest = Guest::start(idle, &handle, &worker);
    to_the_first(&handle);
    guest.use_pairs(2);
    drop(worker);
    let net = Net::with_pairs(wires(&tap), &NetOptions::default());
    let handle = net.handle();
    let worker = Worker::plain("pairs", usize::from(CONTROL) + 1, &Habits::default());
    let mut guest = Guest::start(Box::new(net), &handle, &worker);
    to_the_first(&handle);
    guest.use_pairs(2);
    to_both(&handle);
}

#[test]
fn queues_of_a_tap_device_are_added_and_left_out_and_one_made_for_one_has_one() {
    let count = |n| NonZeroU16::new(n).unwrap();
    let (name, addresses) = place(1);
    let Some(tap) = tap(&name, &addresses) else { return };
    assert_eq!(tap.clone().into_queues().len(), 2);
    assert_eq!(tap.with_queues(count(1)).unwrap().into_queues().len(), 1);
    assert_eq!(tap.with_queues(count(4)).unwrap().into_queues().len(), 4);
    let single_name = format!("{name}s");
    let single = Tap::open(&single_name).unwrap();
    let refusal = single.with_queues(count(2)).unwrap_err().to_string();
    assert!(refusal.contains(&format!("{single_name} was made for one queue")), "{refusal}");
    assert!(refusal.contains(&format!("ip tuntap add {single_name} mode tap multi_queue")), "{refusal}");
}

/// The Internet's checksum (RFC 1071) over `bytes`, not yet inverted.
fn sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// A frame of UDP over IPv4 whose `payload` is to be cut every `segment` bytes, its checksum to be completed by the host.
fn segmented(
    to_mac: &[u8],
    from: Ipv4Addr,
    to: Ipv4Addr,
    port: u16,
    payload: &[u8],
    segment: u16,
) -> Vec<u8> {
    let datagram = u16::try_from(8 + payload.len()).unwrap();
    let mut ip = [&[0x45, 0][..], &(20 + datagram).to_be_bytes(), &[0, 0, 0x40, 0, 64, 17, 0, 0]].concat();
    ip.extend([from.octets(), to.octets()].concat());
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let pseudo = sum(&[&from.octets()[..], &to.octets(), &[0, 17], &datagram.to_be_bytes()].concat());
    // Flags: the checksum at byte 6 from byte 34 on is missing. Type: VIRTIO_NET_HDR_GSO_UDP_L4. Headers: 42 bytes.
    let header = [&[1, 5, 42, 0][..], &segment.to_le_bytes(), &[34, 0, 6, 0, 0, 0]].concat();
    let udp = [9, port, datagram, pseudo].map(u16::to_be_bytes).concat();
    [&header, to_mac, &[2, 0, 0, 0, 0, 2, 8, 0], &ip, &udp, payload].concat()
}

#[test]
fn udp_passes_in_segments_both_ways_where_the_kernel_has_that() {
    let (name, addresses) = place(2);
    let Some(tap) = tap(&name, &addresses) else { return };
    let wires = tap.into_queues().into_iter().map(|queue| Box::new(queue) as Box<dyn FrameIo>).collect();
    let net = Net::with_pairs(wires, &NetOptions::default());
    let handle = net.handle();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let version: Vec<u32> = release.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    let offered = net.offered() & F_HOST_USO != 0;
    assert_eq!(offered, version >= vec![6, 2], "Linux {release}");
    if !offered {
        return eprintln!("skipped: Linux {release} has no UDP segments for TAP devices");
    }
    let worker = Worker::plain("uso", usize::from(CONTROL) + 1, &Habits::default());
    let mut guest = Guest::start(Box::new(net), &handle, &worker);

    // One frame of three segments, in as many buffers as it takes.
    let socket = UdpSocket::bind((addresses[0].as_str(), 0)).unwrap();
    setsockopt(&socket, UdpGsoSegment, &1000).unwrap();
    socket.send_to(&[7; 2500], (addresses[1].as_str(), 9)).unwrap();
    let bytes = guest.used(0) + guest.used(0);
    assert_eq!(bytes, 12 + 14 + 20 + 8 + 2500);
    let header = ram::read(&guest.ram, DATA, 12);
    assert_eq!((header[1], &header[4..6]), (5, &1000u16.to_le_bytes()[..]));

    let mac = std::fs::read_to_string(format!("/sys/class/net/{name}/address")).unwrap();
    let mac: Vec<u8> = mac.trim().split(':').map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    let [to, from] = addresses.map(|address| address.parse().unwrap());
    let frame = segmented(&mac, from, to, socket.local_addr().unwrap().port(), &[9; 2500], 1000);
    ram::write(&guest.ram, guest.next, &frame);
    let len = u32::try_from(frame.len()).unwrap();
    guest.rings[1].send(&[give(guest.next, len)]);
    guest.used(1);
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let received: Vec<_> = (0..3).map(|_| socket.recv(&mut [0; 4096]).unwrap()).collect();
    assert_eq!(received, [1000, 1000, 500]);
}
