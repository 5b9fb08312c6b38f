//! Bytes as a capture file, and what is in it as a conversation: what `kdpool decode` does.

use kd_link::{CaptureReader, CapturedData};
use kd_wire::dissect::{Dissector, SerialDissector};
use kd_wire::message::Direction;

/// One input.
pub fn run(data: &[u8]) {
    let Ok(mut reader) = CaptureReader::new(data) else { return };
    let Ok(key) = "1.2.3.4".parse() else { return };
    let mut kdnet = Dissector::new(key);
    let mut serial = SerialDissector::new(Direction::TargetToHost);
    let mut taken = 0;
    for captured in reader.by_ref() {
        taken += 1;
        match captured {
            Ok(captured) => match captured.data {
                CapturedData::Datagram { payload, .. } => drop(kdnet.datagram(&payload).fields()),
                CapturedData::Bytes(bytes) => serial.bytes(&bytes).iter().for_each(|found| drop(found.fields())),
            },
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    // The least that a packet takes in a file.
    assert!(taken <= data.len() / 8 + 1);
    let _ = reader.skipped();
}
