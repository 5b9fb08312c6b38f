#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kdpool_fuzz::targets::deframer::run(data));
