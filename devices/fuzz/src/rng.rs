//! An entropy device under a hostile driver, and a control thread that changes its limits.

use devices::limiter::LimiterSpec;
use devices::testing::queue::take;
use devices::testing::ram;
use devices::virtio::rng::Rng;

use crate::Input;
use crate::guest::{Guest, limits, play};

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let rng = Rng::new(&limits(&mut input));
    let handle = rng.handle();
    let extra = |input: &mut Input, _: &mut Guest| handle.set_limits(limits(input));
    let mut guest = play(rng, 1, &mut input, extra, || handle.set_limits(LimiterSpec::default()));
    // An honest driver gets what it asks for.
    const DATA: u64 = 0x1_0000;
    ram::write(&guest.ram, DATA, &[0; 64]);
    assert_eq!(guest.ask(0, &[take(DATA, 64)]), 64);
    assert_ne!(ram::read(&guest.ram, DATA, 64), [0; 64]);
}
