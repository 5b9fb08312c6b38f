//! Datagrams to a KDNET host session: raw, and sealed with the known key, so that authentication does not stop the fuzzer.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use kd_wire::kdnet::{DataKey, Key, Offer, Ping, Sealed, open, seal};
use kd_wire::message::Direction;
use kd_wire::session::{HostSession, KdnetConfig};

use crate::play::{Sent, play};

const FROM: Direction = Direction::TargetToHost;

/// One input: the protocol's version and whether the target is waited for, and steps. A raw step's upper bits say how it
/// is sealed: not at all, for the control channel, for the data channel; and from which address it comes.
pub fn run(data: &[u8]) {
    let Ok(key) = "1.2.3.4".parse::<Key>() else { return };
    let Some((&first, steps)) = data.split_first() else { return };
    let version = 2 + first % 5;
    let peer = SocketAddr::from(([10, 0, 0, 2], 50000));
    let moved = SocketAddr::from(([10, 0, 0, 3], 50001));
    let targets = if first & 0x80 == 0 { Vec::new() } else { vec![peer] };
    let mut host = HostSession::kdnet(KdnetConfig { key: key.clone(), targets, seed: [1; 32] });
    let mut now = Duration::ZERO;
    let data_key: RefCell<Option<DataKey>> = RefCell::default();
    // The key of the newest response.
    let learn = |bytes: &[u8]| {
        if let Ok(control) = open(&key, None, Direction::HostToTarget, bytes)
            && !control.body.is_empty()
        {
            *data_key.borrow_mut() = Some(key.data_key(&control.body));
        }
    };

    let offer = Offer { nonce: [5; 32], target: peer, configured: peer, connected: None }.encode();
    let raw = seal(&key, Sealed { version, data_key: None, from: FROM, sequence: 3, body: &offer });
    host.handle_datagram(now, peer, &raw);
    while let Some(transmit) = host.poll_transmit() {
        learn(&transmit.data);
    }
    let ping = Ping { last_sequence: 0, host: 1 }.encode();
    let sealed = |sequence, body: &[u8], on_data: bool| {
        let data_key = data_key.borrow();
        let data_key = if on_data { data_key.as_ref() } else { None };
        seal(&key, Sealed { version, data_key, from: FROM, sequence, body })
    };
    host.handle_datagram(now, peer, &sealed(1, &ping, true));
    host.synchronise(now, true);

    let mut sequence = 1;
    let send = |host: &mut HostSession, now, sent: Sent<'_>, how: u8| {
        // Now and then one is missing, or comes again.
        sequence += [1, 1, 1, 3, 0][usize::from(how >> 2) % 5];
        let (body, how) = match sent {
            Sent::Raw(bytes) => (Bytes::copy_from_slice(bytes), how),
            Sent::Packet(packet) => (packet.encode(), 2),
        };
        let peer = if how & 0x10 == 0 { peer } else { moved };
        match how & 3 {
            0 => host.handle_datagram(now, peer, &body),
            1 => host.handle_datagram(now, peer, &sealed(sequence, &body, false)),
            _ => host.handle_datagram(now, peer, &sealed(sequence, &body, true)),
        }
    };
    play(&mut host, &mut now, steps, send, learn);
}
