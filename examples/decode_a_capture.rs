//! What debugger and target said to each other, from a capture file: `kdpool --capture`, Wireshark and tcpdump write them.
//!
//! `cargo run -p kdpool-examples --bin decode_a_capture -- session.pcapng 1.2.3.4`
//!
//! The key is KDNET's; a capture of a serial line needs none, and takes any.

use std::fs::File;

use kd_link::{CaptureReader, CapturedData, Direction};
use kd_wire::dissect::{Dissection, Dissector, SerialDissector};
use kd_wire::message;
use kdpool_examples::{Failure, words};

fn main() -> Result<(), Failure> {
    let [file, key] = words("decode_a_capture FILE KEY")?;
    // A dissector follows one conversation: it learns the session's keys from what it sees.
    let mut kdnet = Dissector::new(key.parse()?);
    let mut from_target = SerialDissector::new(message::Direction::TargetToHost);
    let mut to_target = SerialDissector::new(message::Direction::HostToTarget);
    for captured in CaptureReader::new(File::open(file)?)? {
        let captured = captured?;
        let packets = match &captured.data {
            CapturedData::Datagram { payload, .. } => vec![kdnet.datagram(payload)],
            CapturedData::Bytes(bytes) if captured.direction == Some(Direction::Outbound) => to_target.bytes(bytes),
            CapturedData::Bytes(bytes) => from_target.bytes(bytes),
        };
        packets.iter().for_each(show);
    }
    Ok(())
}

fn show(packet: &Dissection) {
    let direction = match packet.direction {
        Some(message::Direction::HostToTarget) => "-->",
        Some(message::Direction::TargetToHost) => "<--",
        None => "???",
    };
    let fields: Vec<String> = packet.fields().iter().map(|(name, value)| format!("{name}={value}")).collect();
    println!("{direction} {} {}", packet.name(), fields.join(" "));
}
