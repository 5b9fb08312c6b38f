//! Datagrams and pieces of a line as `kdpool decode` explains them: raw, and sealed with the known key.

use kd_wire::dissect::{Dissector, SerialDissector};
use kd_wire::kdnet::{DataKey, Key, Response, Sealed, seal};
use kd_wire::message::Direction;

/// One input.
pub fn run(data: &[u8]) {
    let Ok(key) = "1.2.3.4".parse::<Key>() else { return };
    let mut kdnet = Dissector::new(key.clone());
    let directions = [Direction::TargetToHost, Direction::HostToTarget];
    let mut lines = directions.map(SerialDissector::new);
    let mut data_key: Option<DataKey> = None;
    let (mut rest, mut sequence) = (data, 0);
    while let [kind, length, bytes @ ..] = rest {
        // Bodies of up to 2 KB, where a bit says so: longer than what a datagram holds.
        let length = usize::from(*length) << if kind & 0x40 != 0 { 3 } else { 0 };
        let (body, after) = bytes.split_at(bytes.len().min(length));
        rest = after;
        sequence += 1;
        let from = directions[usize::from(kind >> 7)];
        let sealed = |data_key| seal(&key, Sealed { version: 4, data_key, from, sequence, body });
        let found = match kind & 7 {
            0 => kdnet.datagram(body),
            1 => {
                // Both sides know the data key from then on.
                if Response::decode(body).is_some() {
                    data_key = Some(key.data_key(body));
                }
                kdnet.datagram(&sealed(None))
            }
            2 | 3 => kdnet.datagram(&sealed(data_key.as_ref())),
            _ => {
                for found in lines[usize::from(kind >> 7)].bytes(body) {
                    let _ = (found.name(), found.fields());
                }
                continue;
            }
        };
        let _ = found.name();
        for (name, value) in found.fields() {
            assert!(!name.is_empty());
            let _ = value.to_string();
        }
    }
}
