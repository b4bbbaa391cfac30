//! A socket device under a hostile driver, a host that calls, hangs up, stalls and fails, and limits that change.

use std::io;
use std::time::Duration;

use devices::limiter::LimiterSpec;
use devices::mem::Ram;
use devices::testing::queue::{give, take};
use devices::testing::ram;
use devices::testing::vsock::{FakeHost, bytes_of};
use devices::virtio::vsock::{
    HEADER_BYTES, HOST_CID, Header, Kind, Op, RX_QUEUE, TX_QUEUE, Vsock, VsockOptions,
};

use crate::Input;
use crate::guest::{Guest, limits, play_in_ram};

/// The guest's address.
const CID: u32 = 3;
/// The ports that there are, on either side: few, so that packets meet.
const PORTS: u32 = 4;
/// Ends on the host that ever are, at most.
const ENDS_MAX: usize = 64;

/// A header that mostly makes sense, at a place where a chain may lie.
fn header(input: &mut Input) -> Header {
    let port = |input: &mut Input| match input.byte() {
        0..200 => u32::from(input.byte()) % PORTS,
        200..240 => (1 << 30 | 1024) + u32::from(input.byte()) % PORTS,
        _ => input.dword(),
    };
    let odd = input.byte();
    Header {
        src_cid: if odd == 1 { input.qword() } else { CID.into() }.into(),
        dst_cid: if odd == 2 { input.qword() } else { HOST_CID }.into(),
        src_port: port(input).into(),
        dst_port: port(input).into(),
        len: if odd & 4 == 0 { u32::from(input.byte()) } else { input.dword() }.into(),
        kind: if odd == 3 { input.word() } else { 1 + u16::from(input.byte() & 1) }.into(),
        op: (u16::from(input.byte()) % 9).into(),
        flags: u32::from(input.byte()).into(),
        buf_alloc: if odd & 8 == 0 { 1 << 16 } else { input.dword() }.into(),
        fwd_cnt: if odd & 8 == 0 { 0 } else { input.dword() }.into(),
    }
}

/// Something happens on the host.
fn event(host: &FakeHost, input: &mut Input) {
    let mut world = host.world();
    let what = input.byte() % 8;
    if what == 0 && world.ends.len() < ENDS_MAX {
        let kind = if input.chance() { Kind::Stream } else { Kind::SeqPacket };
        world.call(kind, u32::from(input.byte()) % PORTS);
    }
    if world.ends.len() >= ENDS_MAX {
        world.listeners.clear();
    }
    if world.ends.is_empty() {
        return;
    }
    let end = usize::from(input.byte()) % world.ends.len();
    world.ends[end].received.clear();
    match what {
        1 | 2 => {
            let len = usize::from(input.byte()) * if what == 1 { 1 } else { 300 };
            world.ends[end].incoming.truncate(8);
            world.say(end, &vec![7; len.max(1)]);
        }
        3 => world.finish(end),
        4 => world.hang_up(end),
        5 => world.make_room(end, usize::from(input.word())),
        6 => world.make_room(end, usize::MAX),
        7 => world.ends[end].errors.push_back(match input.byte() % 4 {
            0 => io::ErrorKind::WouldBlock,
            1 => io::ErrorKind::BrokenPipe,
            2 => io::ErrorKind::ConnectionReset,
            _ => io::ErrorKind::Other,
        }),
        _ => {}
    }
}

/// Plays one input.
///
/// # Panics
/// If the device does, or if an honest driver can't use it afterwards.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let host = FakeHost::new();
    let listen = |host: &FakeHost| {
        let mut world = host.world();
        for port in 0..PORTS - 1 {
            world.listen(Kind::Stream, port);
            world.listen(Kind::SeqPacket, port);
        }
    };
    listen(&host);
    let answer_timeout = if input.chance() { Duration::ZERO } else { Duration::from_secs(3600) };
    let options = VsockOptions { guest_cid: CID, answer_timeout, limits: LimiterSpec::default() };
    let device = Vsock::new(Box::new(host.clone()), &options);
    let handle = device.handle();
    let extra = |input: &mut Input, _: &mut Guest, ram: &Ram| match input.byte() {
        0xf0.. => handle.set_limits(&limits(input)),
        odd if odd & 1 != 0 => event(&host, input),
        _ => {
            // Where chains of the driver's may begin.
            let at = 0x4000 + u64::from(input.byte()) * 64;
            ram::write(ram, at, &bytes_of(&header(input)));
        }
    };
    let mut guest = play_in_ram(device, 3, &mut input, extra, || {
        handle.set_limits(&LimiterSpec::default());
        let mut world = host.world();
        world.give_up();
        for end in &mut world.ends {
            assert!(end.received.iter().all(|bytes| !bytes.is_empty()));
            end.errors.clear();
        }
    });
    assert!(host.world().ends.iter().all(|end| end.closed), "a reset closes all");
    // An honest driver connects and sends, and the host answers.
    listen(&host);
    const TX: u64 = 0x1_0000;
    const RX: u64 = 0x1_1000;
    let first = host.world().ends.len();
    let packet = |op: Op, len: u32| Header {
        src_cid: u64::from(CID).into(),
        dst_cid: HOST_CID.into(),
        src_port: 1.into(),
        dst_port: 1.into(),
        len: len.into(),
        kind: 1.into(),
        op: (op as u16).into(),
        flags: 0.into(),
        buf_alloc: (1 << 16).into(),
        fwd_cnt: 0.into(),
    };
    const HEADER: u32 = HEADER_BYTES as u32;
    ram::write(&guest.ram, TX, &bytes_of(&packet(Op::Request, 0)));
    guest.ask(TX_QUEUE, &[give(TX, HEADER)]);
    assert_eq!(guest.ask(RX_QUEUE, &[take(RX, 4096)]), HEADER);
    ram::write(&guest.ram, TX, &bytes_of(&packet(Op::Rw, 2)));
    ram::write(&guest.ram, TX + u64::from(HEADER), b"hi");
    guest.ask(TX_QUEUE, &[give(TX, HEADER + 2)]);
    assert_eq!(host.world().ends[first].bytes(), b"hi");
    host.world().say(first, b"hello");
    guest.host_event();
    assert_eq!(guest.ask(RX_QUEUE, &[take(RX, 4096)]), HEADER + 5);
    assert_eq!(ram::read(&guest.ram, RX + u64::from(HEADER), 5), b"hello");
}
