#![no_main]

use kd_wire::packet::{Deframed, Deframer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    let mut deframer = Deframer::new();
    let mut accounted = 0;
    for bytes in stream.chunks(usize::from(*piece).max(1)) {
        deframer.push(bytes, |deframed| {
            accounted += match deframed {
                Deframed::Noise(count) => count,
                _ => 16,
            };
        });
    }
    assert!(accounted <= stream.len());
});
