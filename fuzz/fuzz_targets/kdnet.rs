#![no_main]

use std::net::SocketAddr;
use std::time::Duration;

use kd_wire::kdnet::{DataKey, Key, Offer, Ping, Sealed, open, seal};
use kd_wire::message::Direction;
use kd_wire::message::manipulate::{Request, get_version};
use kd_wire::session::{HostSession, KdnetConfig};
use libfuzzer_sys::fuzz_target;

const FROM: Direction = Direction::TargetToHost;

/// Works through the host's answers, and learns the key of the newest response.
fn drain(host: &mut HostSession, key: &Key, data_key: &mut Option<DataKey>) {
    while let Some(transmit) = host.poll_transmit() {
        if let Ok(control) = open(key, None, Direction::HostToTarget, &transmit.data)
            && !control.body.is_empty()
        {
            *data_key = Some(key.data_key(&control.body));
        }
    }
    while host.poll_event().is_some() {}
}

fuzz_target!(|data: &[u8]| {
    let Ok(key) = "1.2.3.4".parse::<Key>() else { return };
    let peer = SocketAddr::from(([10, 0, 0, 2], 50000));
    let mut host = HostSession::kdnet(KdnetConfig { key: key.clone(), targets: Vec::new(), seed: [1; 32] });
    let mut now = Duration::ZERO;
    let mut data_key = None;

    let offer = Offer { nonce: [5; 32], target: peer, configured: peer, connected: None }.encode();
    let raw = seal(&key, Sealed { version: 4, data_key: None, from: FROM, sequence: 3, body: &offer });
    host.handle_datagram(now, peer, &raw);
    drain(&mut host, &key, &mut data_key);
    let ping = Ping { last_sequence: 0, host: 1 }.encode();
    let content = Sealed { version: 4, data_key: data_key.as_ref(), from: FROM, sequence: 1, body: &ping };
    host.handle_datagram(now, peer, &seal(&key, content));
    host.synchronise(now, true);
    let _ = host.request(now, 0, Request::GetVersion(get_version::Request {}));

    let mut rest = data;
    let mut sequence = 1;
    while let [kind, length, bytes @ ..] = rest {
        let (body, after) = bytes.split_at(bytes.len().min(usize::from(*length)));
        rest = after;
        sequence += 1;
        now += Duration::from_millis(u64::from(kind >> 4) * 100);
        let sealed = |data_key| seal(&key, Sealed { version: 4, data_key, from: FROM, sequence, body });
        match kind & 3 {
            0 => host.handle_datagram(now, peer, body),
            1 => host.handle_datagram(now, peer, &sealed(None)),
            _ => host.handle_datagram(now, peer, &sealed(data_key.as_ref())),
        }
        host.handle_timeout(now);
        drain(&mut host, &key, &mut data_key);
    }
});
