//! A whole session over a serial stream.

use std::time::Duration;

use kd_wire::session::{HostSession, SerialConfig};

use crate::play::{Sent, play};

/// One input: whether the line's rate is known, and steps.
pub fn run(data: &[u8]) {
    let Some((&first, steps)) = data.split_first() else { return };
    let baud = (first & 1 == 1).then_some(115_200);
    let mut host = HostSession::serial(SerialConfig { baud, resets: u32::from(first >> 1 & 3) });
    let mut now = Duration::ZERO;
    host.synchronise(now, true);
    let send = |host: &mut HostSession, now, sent: Sent<'_>, _| match sent {
        Sent::Raw(bytes) => host.handle_bytes(now, bytes),
        Sent::Packet(packet) => host.handle_bytes(now, &packet.encode_serial()),
    };
    play(&mut host, &mut now, steps, send, |_| {});
}
