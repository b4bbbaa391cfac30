//! The host, the domestic and the foreign Internet as network namespaces, and guests.
//!
//! Whether something did *not* arrive is told without waiting: all threads of a test share one CPU, so what is sent later
//! over the same way arrives later. [`World::fence`] sends it, by a guest that may, and waits for the echo.

use std::cell::Cell;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::{Pid, gettid};
use tempfile::TempDir;
use vmm::agent::net::list::{ListKind, PrefixList};
use vmm::agent::net::model::{EgressClass, GATEWAY_MAC, Interface, InterfaceId, Subnet};
use vmm::agent::net::{HostNet, Setup};

use super::frames::{self, MacBytes, Seen, ethernet};

/// How long anything may take that has no reason to take long.
const PATIENCE: Duration = Duration::from_secs(20);
/// The port of all servers.
pub const PORT: u16 = 7;

pub fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs shell commands in the namespace of the calling thread.
pub fn sh(commands: &str) -> String {
    let output = Command::new("sh").args(["-ec", commands]).output().unwrap();
    assert!(output.status.success(), "{commands}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The host's neighbour entries on guests' links; those of groups come and go.
pub fn neighbours() -> Vec<String> {
    let ours = |line: &&str| line.contains(" dev yun") && !line.contains("NOARP");
    sh("ip neigh show nud all; ip -6 neigh show nud all").lines().filter(ours).map(str::to_owned).collect()
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with a thread in it.
struct Namespace {
    tid: Pid,
    jobs: Sender<Job>,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, todo) = channel::<Job>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(gettid()).unwrap();
            todo.into_iter().for_each(|job| job());
        });
        Self { tid: told.recv().unwrap(), jobs }
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.jobs.send(Box::new(move || tell.send(job()).unwrap())).unwrap();
        told.recv().unwrap()
    }
}

/// UDP servers that note down what they get, then echo it.
pub struct Servers {
    pub sockets: Vec<UdpSocket>,
    log: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Servers {
    /// On these addresses, in the namespace of the calling thread.
    fn start(addresses: &[&str]) -> Self {
        let bind = |address: &&str| {
            let socket = UdpSocket::bind(SocketAddr::new(addr(address), PORT)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let sockets: Vec<UdpSocket> = addresses.iter().map(bind).collect();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (serving, noted) = (sockets.iter().map(|s| s.try_clone().unwrap()).collect(), log.clone());
        std::thread::spawn(move || Self::serve(serving, &noted));
        Self { sockets, log }
    }

    fn serve(sockets: Vec<UdpSocket>, log: &Mutex<Vec<Vec<u8>>>) {
        loop {
            let mut fds: Vec<PollFd> =
                sockets.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
            poll(&mut fds, PollTimeout::NONE).unwrap();
            // All that is there is noted down before the first echo: an echo says that nothing sent before is outstanding.
            let mut echoes = Vec::new();
            for socket in &sockets {
                let mut buffer = [0; 2048];
                while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    log.lock().unwrap().push(buffer[..len].to_vec());
                    echoes.push((socket, from, buffer[..len].to_vec()));
                }
            }
            for (socket, from, payload) in echoes {
                let _ = socket.send_to(&payload, from);
            }
        }
    }

    pub fn got(&self, payload: &[u8]) -> bool {
        self.log.lock().unwrap().iter().any(|one| one == payload)
    }
}

/// A guest: its end of the TAP.
pub struct Guest {
    pub interface: Interface,
    tap: File,
    /// What was read and not asked for yet.
    backlog: Mutex<Vec<Vec<u8>>>,
}

impl Guest {
    pub fn id(&self) -> InterfaceId {
        self.interface.id()
    }

    pub fn mac(&self) -> MacBytes {
        self.id().mac().0
    }

    pub fn ipv4(&self) -> Ipv4Addr {
        self.interface.ipv4().unwrap().addr()
    }

    pub fn ipv6(&self) -> Ipv6Addr {
        self.interface.ipv6().unwrap().addr()
    }

    /// Its address of the family of `other`.
    pub fn like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.ipv4().into() } else { self.ipv6().into() }
    }

    /// Sends a frame as it is.
    pub fn send_frame(&self, frame: &[u8]) {
        (&self.tap).write_all(&[&[0; 12], frame].concat()).unwrap();
    }

    /// Sends a packet to the gateway.
    pub fn send(&self, (kind, packet): (u16, Vec<u8>)) {
        self.send_frame(&ethernet(GATEWAY_MAC.0, self.mac(), kind, &packet));
    }

    /// Sends a UDP datagram.
    pub fn say(&self, to: IpAddr, payload: &[u8]) {
        self.send(frames::udp((self.like(to), 4000), (to, PORT), payload));
    }

    fn read(&self) {
        let mut buffer = [0; 4096];
        loop {
            match (&self.tap).read(&mut buffer) {
                Ok(len) => self.backlog.lock().unwrap().push(buffer[12..len].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the TAP is gone: {error}"),
            }
        }
    }

    /// All frames that came since the last look.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        self.read();
        std::mem::take(&mut *self.backlog.lock().unwrap())
    }

    /// All IP packets that came since the last look.
    pub fn packets(&self) -> Vec<Seen> {
        self.frames().iter().filter_map(|frame| frames::seen(frame)).collect()
    }

    /// Waits for a packet; what comes before it is gone.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = self.packets().into_iter().find(&wanted) {
                return packet;
            }
            assert!(Instant::now() < deadline, "no {what} came");
            let mut fds = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
        }
    }

    /// Waits for the echo of what [`Self::say`] sent.
    pub fn wait_for_echo(&self, from: IpAddr, payload: &[u8]) {
        self.wait_for(&format!("echo from {from}"), |packet| {
            packet.from == from && packet.protocol == 17 && packet.payload.get(8..) == Some(payload)
        });
    }
}

/// All of it. The calling thread is in the host's namespace.
pub struct World {
    pub net: HostNet,
    pub setup: Setup,
    pub subnets: Vec<Subnet>,
    pub host: Servers,
    pub domestic: Servers,
    pub foreign: Servers,
    /// Who may send everywhere.
    witness: Option<Guest>,
    namespaces: [Namespace; 2],
    serial: Cell<u32>,
    cpus: CpuSet,
    _lists: TempDir,
}

pub fn zone_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub const DOMESTIC: [&str; 2] = ["1.2.3.2", "2a0d::2"];
pub const FOREIGN: [&str; 2] = ["9.9.9.2", "2a09::2"];
/// What the zone denies: in the foreign and in the domestic Internet.
pub const DENIED: [[&str; 2]; 2] = [["9.9.9.66", "2a09::66"], ["1.2.3.66", "2a0d::66"]];
/// Where only the witness sends to, in both.
const FENCE: [[&str; 2]; 2] = [["1.2.3.99", "2a0d::99"], ["9.9.9.99", "2a09::99"]];
/// What is global for nobody, in the foreign Internet.
pub const PRIVATE: [&str; 2] = ["203.0.113.7", "2001:db8::7"];
pub const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
/// The host's own, and the gateway.
pub const HOST: [[&str; 2]; 3] = [["1.2.3.1", "2a0d::1"], ["9.9.9.1", "2a09::1"], ["169.254.1.1", "fe80::1"]];

pub fn signed(kind: ListKind, version: u64, nets: &[&str]) -> vmm::agent::net::list::SignedList {
    let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
    PrefixList::new(kind, version, nets).unwrap().sign(&zone_key())
}

impl World {
    /// With lists in force, tenants `a` and `b`, and a witness; no other guest.
    pub fn new() -> Self {
        let mut one = CpuSet::new();
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        one.set((0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();

        let namespaces = [Namespace::new(), Namespace::new()];
        sh("ip link set lo up");
        let sides: [(&str, [&str; 2], Vec<&str>); 2] = [
            ("dom", HOST[0], [&DOMESTIC[..], &DENIED[1], &FENCE[0]].concat()),
            ("for", HOST[1], [&FOREIGN[..], &DENIED[0], &FENCE[1], &METADATA, &PRIVATE].concat()),
        ];
        let servers = [0, 1].map(|nth| {
            let (name, gateways, ref addresses) = sides[nth];
            let len = |address: &str| if address.contains(':') { "/64 nodad" } else { "/24" };
            sh(&format!(
                "ip link add {name} type veth peer name inet netns {}; ip link set {name} up",
                namespaces[nth].tid
            ));
            let mut inside = "ip link set lo up; ip link set inet up;".to_owned();
            for gateway in gateways {
                sh(&format!("ip addr add {gateway}{} dev {name}", len(gateway)));
            }
            for address in addresses {
                inside += &format!("ip addr add {address}{} dev inet;", len(address));
            }
            for gateway in gateways {
                inside += &format!("ip route add default via {gateway};");
            }
            let addresses: Vec<String> = addresses.iter().map(|&address| address.to_owned()).collect();
            namespaces[nth].run(move || {
                sh(&inside);
                Servers::start(&addresses.iter().map(String::as_str).collect::<Vec<_>>())
            })
        });
        let [domestic, foreign] = servers;
        // They would be reached if the rules let them.
        for address in METADATA.iter().chain(&PRIVATE) {
            sh(&format!("ip route add {address} dev for"));
        }

        let lists = TempDir::new().unwrap();
        let setup = Setup {
            uplinks: vec!["dom".to_owned(), "for".to_owned()],
            masquerade: false,
            lists: lists.path().to_owned(),
            keys: vec![zone_key().verifying_key()],
            nft: PathBuf::from("/usr/sbin/nft"),
        };
        let net = HostNet::new(setup.clone());
        net.prepare().unwrap();
        let subnets = [("a", "10.1.0.0/24"), ("a", "fd01::/64"), ("b", "10.2.0.0/24"), ("b", "fd02::/64")];
        let subnets = subnets.into_iter().chain([("w", "10.3.0.0/24"), ("w", "fd03::/64")]);
        let subnets: Vec<Subnet> =
            subnets.map(|(t, net)| Subnet::new(t, net.parse().unwrap()).unwrap()).collect();
        net.set_subnets(&subnets).unwrap();
        let denied: Vec<String> = DENIED
            .iter()
            .flatten()
            .map(|address| format!("{address}/{}", if address.contains(':') { 128 } else { 32 }))
            .collect();
        let denied: Vec<&str> = denied.iter().map(String::as_str).collect();
        net.load_list(&signed(ListKind::Domestic, 1, &["1.2.3.0/24", "2a0d::/64"])).unwrap();
        net.load_list(&signed(ListKind::Denied, 1, &denied)).unwrap();
        let host = Servers::start(&["::"]); // IPv4 too
        let mut world = Self {
            net,
            setup,
            subnets,
            host,
            domestic,
            foreign,
            witness: None,
            namespaces,
            serial: Cell::new(0),
            cpus: allowed,
            _lists: lists,
        };
        world.witness = Some(world.guest("w", 2, EgressClass::International));
        world
    }

    /// The interface of a guest whose addresses end in `number`; its id tells its tenant too.
    pub fn interface(&self, tenant: &str, number: u64, class: EgressClass) -> Interface {
        let nth = match tenant {
            "a" => 1,
            "b" => 2,
            _ => 3,
        };
        let id = InterfaceId::new(nth << 8 | number).unwrap();
        let ipv4 = format!("10.{nth}.0.{number}").parse().unwrap();
        let ipv6 = format!("fd0{nth}::{number:x}").parse().unwrap();
        Interface::new(id, tenant, Some(ipv4), Some(ipv6), class, &self.subnets).unwrap()
    }

    /// Plugs a guest.
    pub fn guest(&self, tenant: &str, number: u64, class: EgressClass) -> Guest {
        let interface = self.interface(tenant, number, class);
        let tap = self.net.plug(&interface).unwrap().into();
        Guest { interface, tap, backlog: Mutex::default() }
    }

    /// Bytes that nobody has sent yet.
    pub fn payload(&self) -> Vec<u8> {
        self.serial.set(self.serial.get() + 1);
        format!("payload {}", self.serial.get()).into_bytes()
    }

    /// Returns when all that was sent before has arrived, or never will.
    pub fn fence(&self) {
        let witness = self.witness.as_ref().unwrap();
        for to in FENCE.iter().flatten() {
            let payload = self.payload();
            witness.say(addr(to), &payload);
            witness.wait_for_echo(addr(to), &payload);
        }
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(b"fence", ("127.0.0.1", PORT)).unwrap();
        socket.recv(&mut [0; 16]).expect("the host serves itself");
    }

    /// Whether a server anywhere got this.
    pub fn served(&self, payload: &[u8]) -> bool {
        self.fence();
        [&self.host, &self.domestic, &self.foreign].iter().any(|servers| servers.got(payload))
    }

    /// Lets what the calling thread starts run on all CPUs again. Nothing can be told of what did not arrive then.
    pub fn unpin(&self) {
        sched_setaffinity(Pid::from_raw(0), &self.cpus).unwrap();
    }

    /// The foreign Internet has no route to tenants' IPv4 prefixes any more.
    pub fn forget_the_way_back(&self) {
        self.namespaces[1].run(|| sh("ip -4 route del default"));
    }

    /// A TCP listener in the domestic Internet.
    pub fn domestic_listener(&self, address: SocketAddr) -> TcpListener {
        self.namespaces[0].run(move || TcpListener::bind(address).unwrap())
    }
}
