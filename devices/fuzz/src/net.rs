//! A network card of one pair of queues or two, under a hostile driver and wires that fail, and yield frames of all sizes.

use std::io;

use devices::limiter::LimiterSpec;
use devices::testing::net::FakeTap;
use devices::testing::queue::{give, take};
use devices::testing::ram;
use devices::virtio::net::{FrameIo, Net, NetOptions};

use crate::Input;
use crate::guest::{Guest, limits, play};

/// Errors that wait for the next calls, at most.
const ERRORS_MAX: usize = 8;
/// Frames that wait on a wire, at most.
const FRAMES_MAX: usize = 64;

/// A driver that means a command, more or less: any class, mostly the known ones, on any queue, mostly the right one.
fn command(input: &mut Input, guest: &mut Guest) {
    const AT: u64 = 0x1_8000;
    let place = AT + u64::from(input.byte() % 16) * 0x100;
    let class = match input.byte() % 4 {
        0 | 1 => [4, 0],
        2 => [3, 0],
        _ => input.take::<2>(),
    };
    let raw = [&class[..], &[input.byte() % 4, 0, 0, 0, 0, 0]].concat();
    ram::write(&guest.ram, place, &raw);
    let len = match input.byte() {
        0..192 if class == [4, 0] => 4,
        0..192 => 2,
        len => u32::from(len % 9),
    };
    let last = guest.drivers.len() - 1;
    let queue = if input.byte() < 224 { last } else { usize::from(input.byte()) % (last + 1) };
    guest.drivers[queue].send(&[
        give(place, len.min(1)),
        give(place + 1, len - len.min(1)),
        take(place + 0x80, 1),
    ]);
    if input.chance() {
        guest.kick(queue as u16);
    }
}

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let first = input.byte();
    let pairs = if first & 2 != 0 { 2 } else { 1 };
    let taps: Vec<_> = (0..pairs).map(|_| FakeTap::new()).collect();
    let options = NetOptions {
        name: "fuzz".into(),
        mac: (first & 1 != 0).then_some([2, 0, 0, 0, 0, 1]),
        mtu: input.chance().then_some(1500),
        rx_limits: limits(&mut input),
        tx_limits: limits(&mut input),
        group: None,
    };
    let wires = taps.iter().map(|tap| Box::new(tap.clone()) as Box<dyn FrameIo>).collect();
    let net = Net::with_pairs(wires, &options);
    let handle = net.handle();
    let queues = devices::virtio::Idle::queue_sizes_max(&net).len() as u64;
    let extra = |input: &mut Input, guest: &mut Guest| {
        taps.iter().for_each(|tap| tap.traffic().sent.clear());
        let choice = input.byte();
        let pair = usize::from(choice & 1) % pairs;
        match choice {
            0..16 => taps[pair].traffic().incoming.clear(),
            16..32 => {
                let mut traffic = taps[pair].traffic();
                if traffic.errors.len() < ERRORS_MAX {
                    traffic.errors.push_back(match input.byte() % 4 {
                        0 => io::ErrorKind::Interrupted,
                        1 => io::ErrorKind::InvalidInput,
                        2 => io::ErrorKind::WouldBlock,
                        _ => io::ErrorKind::Other,
                    });
                }
            }
            32..48 => {
                let (rx, tx) = (input.chance(), input.chance());
                handle.set_limits(rx.then(|| limits(input)), tx.then(|| limits(input)));
            }
            48..64 => command(input, guest),
            64..72 => guest.source_is_ready(pair),
            72..74 => guest.lose_part(u16::from(input.byte())),
            74..78 => handle.announce(),
            len => {
                let mut traffic = taps[pair].traffic();
                if traffic.incoming.len() < FRAMES_MAX && traffic.attached {
                    let len = usize::from(len) * 16 + usize::from(input.byte());
                    traffic.incoming.push_back(vec![choice; len]);
                }
            }
        }
    };
    let mut guest = play(net, queues, &mut input, extra, || {
        for tap in &taps {
            let mut traffic = tap.traffic();
            traffic.errors.clear();
            traffic.incoming.clear();
            traffic.sent.clear();
        }
        handle.set_limits(Some(LimiterSpec::default()), Some(LimiterSpec::default()));
    });
    // An honest driver sends a frame and gets one.
    const FRAME: u64 = 0x1_0000;
    ram::write(&guest.ram, FRAME, &[0; 12 + 60]);
    guest.ask(1, &[give(FRAME, 12 + 60)]);
    assert_eq!(taps[0].traffic().sent.iter().map(Vec::len).collect::<Vec<_>>(), [72]);
    taps[0].traffic().incoming.push_back(vec![7; 100]);
    assert_eq!(guest.ask(0, &[take(FRAME, 2048)]), 100);
    assert_eq!(ram::read(&guest.ram, FRAME + 12, 88), [7; 88]);
    assert!(taps[1..].iter().all(|tap| !tap.traffic().attached), "this driver uses one pair");
}
