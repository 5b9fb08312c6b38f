use bytes::Bytes;
use kd_wire::message::{Direction, Message};

/// One input.
pub fn run(data: &[u8]) {
    let Some((kind, payload)) = data.split_first() else { return };
    let payload = Bytes::copy_from_slice(payload);
    for direction in [Direction::HostToTarget, Direction::TargetToHost] {
        let packet_type = u16::from(*kind).into();
        if let Ok(message) = Message::decode(packet_type, direction, &payload) {
            message.fields();
            let (encoded_type, bytes) = message.encode();
            assert_eq!(encoded_type, packet_type);
            assert_eq!(Message::decode(packet_type, direction, &bytes.into()), Ok(message));
        }
    }
}
