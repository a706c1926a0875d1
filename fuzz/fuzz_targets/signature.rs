#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kleap_fuzz::targets::image::signature(data));
