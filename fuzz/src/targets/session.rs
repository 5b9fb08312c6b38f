use std::time::Duration;

use kd_wire::message::manipulate::{Request, get_version};
use kd_wire::session::{HostSession, SerialConfig};

/// One input.
pub fn run(data: &[u8]) {
    let mut host = HostSession::serial(SerialConfig::default());
    let mut now = Duration::ZERO;
    host.synchronise(now, true);
    let mut rest = data;
    while let Some((step, bytes)) = rest.split_first() {
        let (piece, after) = bytes.split_at(bytes.len().min(usize::from(step & 0x3f)));
        rest = after;
        now += Duration::from_millis(u64::from(step >> 6) * 300);
        if step & 1 == 1 {
            let _ = host.request(now, 0, Request::GetVersion(get_version::Request {}));
        }
        host.handle_bytes(now, piece);
        host.handle_timeout(now);
        while host.poll_transmit().is_some() {}
        while host.poll_event().is_some() {}
    }
}
