//! An entropy device under a hostile driver.
#![no_main]

use devices::limiter::LimiterSpec;
use devices::virtio::rng::Rng;
use devices_fuzz::{Input, play};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    play(Rng::new(&LimiterSpec::default()), 1, &mut Input(data), |_| ());
});
