#![no_main]

//! Bytes as the files that a user brings: pooltag.txt, a mark or a report, a capture.

use kd_link::CaptureReader;
use libfuzzer_sys::fuzz_target;
use nt_leaks::Saved;
use nt_pool::Tag;
use nt_pool::pooltag::PoolTags;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 3 {
        0 => {
            if let Ok(tags) = PoolTags::parse(bytes) {
                let _ = tags.describe(Tag(*b"Leak"));
            }
        }
        1 => {
            let file = std::env::temp_dir().join(format!("kdpool-fuzz-{}", std::process::id()));
            if std::fs::write(&file, bytes).is_ok() {
                let _ = Saved::load(&file);
            }
        }
        _ => {
            if let Ok(reader) = CaptureReader::new(bytes) {
                for captured in reader.take(1000) {
                    let _ = captured;
                }
            }
        }
    }
});
