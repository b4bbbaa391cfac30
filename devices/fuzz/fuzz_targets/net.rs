//! A network card under a hostile driver and a wire that yields frames of all sizes.
#![no_main]

use devices::testing::net::FakeTap;
use devices::virtio::net::{Net, NetOptions};
use devices_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let tap = FakeTap::new();
    let net = Net::new(Box::new(tap.clone()), &NetOptions::default());
    play(net, 2, &mut input, |input| match input.byte() {
        0..16 => tap.traffic().incoming.clear(),
        len => tap.traffic().incoming.push_back(vec![len; usize::from(len) * 16]),
    });
});
