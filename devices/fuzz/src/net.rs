//! A network card under a hostile driver and a wire that fails, and yields frames of all sizes.

use std::io;

use devices::limiter::LimiterSpec;
use devices::testing::net::FakeTap;
use devices::testing::queue::{give, take};
use devices::testing::ram;
use devices::virtio::net::{Net, NetOptions};

use crate::Input;
use crate::guest::{Guest, limits, play};

/// Errors that wait for the next calls, at most.
const ERRORS_MAX: usize = 8;
/// Frames that wait on the wire, at most.
const FRAMES_MAX: usize = 64;

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let tap = FakeTap::new();
    let options = NetOptions {
        name: "fuzz".into(),
        mac: input.chance().then_some([2, 0, 0, 0, 0, 1]),
        mtu: input.chance().then_some(1500),
        rx_limits: limits(&mut input),
        tx_limits: limits(&mut input),
        group: None,
    };
    let net = Net::new(Box::new(tap.clone()), &options);
    let handle = net.handle();
    let extra = |input: &mut Input, _: &mut Guest| {
        let mut traffic = tap.traffic();
        traffic.sent.clear();
        match input.byte() {
            0..16 => traffic.incoming.clear(),
            16..32 if traffic.errors.len() < ERRORS_MAX => traffic.errors.push_back(match input.byte() % 4 {
                0 => io::ErrorKind::Interrupted,
                1 => io::ErrorKind::InvalidInput,
                2 => io::ErrorKind::WouldBlock,
                _ => io::ErrorKind::Other,
            }),
            32..48 => {
                let (rx, tx) = (input.chance(), input.chance());
                handle.set_limits(rx.then(|| limits(input)), tx.then(|| limits(input)));
            }
            len if traffic.incoming.len() < FRAMES_MAX => {
                traffic.incoming.push_back(vec![len; usize::from(len) * 16 + usize::from(input.byte())]);
            }
            _ => {}
        }
    };
    let mut guest = play(net, 2, &mut input, extra, || {
        let mut traffic = tap.traffic();
        traffic.errors.clear();
        traffic.incoming.clear();
        traffic.sent.clear();
        handle.set_limits(Some(LimiterSpec::default()), Some(LimiterSpec::default()));
    });
    // An honest driver sends a frame and gets one.
    const FRAME: u64 = 0x1_0000;
    ram::write(&guest.ram, FRAME, &[0; 12 + 60]);
    guest.ask(1, &[give(FRAME, 12 + 60)]);
    assert_eq!(tap.traffic().sent.iter().map(Vec::len).collect::<Vec<_>>(), [72]);
    tap.traffic().incoming.push_back(vec![7; 100]);
    assert_eq!(guest.ask(0, &[take(FRAME, 2048)]), 100);
    assert_eq!(ram::read(&guest.ram, FRAME + 12, 88), [7; 88]);
}
