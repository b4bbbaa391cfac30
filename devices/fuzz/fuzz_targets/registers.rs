#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| devices_fuzz::registers::run(data));
