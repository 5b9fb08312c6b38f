//! A KDNET target that says exactly what the test tells it to say.

use std::net::SocketAddr;
use std::time::Duration;

use kd_wire::kdnet::{DataKey, Offer, Ping, Sealed, open, seal};
use kd_wire::message::manipulate::{ManipulateReply, Reply, Request, continue_api, get_context, read_virtual_memory};
use kd_wire::message::{Direction, Message};
use kd_wire::packet::{Body, Packet, PacketType};
use kd_wire::session::{Event, HostSession};

use crate::network::*;

struct Script {
    host: HostSession,
    data_key: DataKey,
    sequence: u64,
    now: Duration,
}

impl Script {
    /// Attached: the first state change, id 0, is acknowledged.
    fn attached() -> Self {
        let mut host = HostSession::kdnet(host_config());
        let data_key = answer(&mut host, Duration::ZERO, 3, 0, None).unwrap();
        let mut script = Script { host, data_key, sequence: 0, now: Duration::from_secs(1) };
        script.body(&Ping { last_sequence: 0, host: 1 }.encode());
        assert_eq!(script.heard(), [Packet::control(PacketType::Resend, 0)]);
        let (packet_type, payload) = Message::StateChange(exception(0x1000)).encode();
        script.say(Packet::data(packet_type, 0, payload));
        assert_eq!(script.heard(), [Packet::control(PacketType::Acknowledge, 0)]);
        script.events();
        script
    }

    fn body(&mut self, body: &[u8]) {
        self.sequence += 1;
        let (from, sequence) = (Direction::TargetToHost, self.sequence);
        let raw = seal(&key(), Sealed { version: 4, data_key: Some(&self.data_key), from, sequence, body });
        self.host.handle_datagram(self.now, target_address(), &raw);
    }

    fn say(&mut self, packet: Packet) {
        self.body(&packet.encode());
    }

    fn acknowledge(&mut self, id: u32) {
        self.say(Packet::control(PacketType::Acknowledge, id));
    }

    fn heard(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some(transmit) = self.host.poll_transmit() {
            let from = Direction::HostToTarget;
            let datagram = open(&key(), Some(&self.data_key), from, &transmit.data).unwrap();
            packets.push(Packet::parse(&datagram.body).unwrap());
        }
        packets
    }

    fn events(&mut self) -> Vec<Event> {
        let events = std::iter::from_fn(|| self.host.poll_event());
        events.filter(|event| !matches!(event, Event::Diagnostic(_))).collect()
    }

    fn wait(&mut self) {
        self.now = self.host.poll_timeout().unwrap();
        self.host.handle_timeout(self.now);
    }
}

/// Offers; returns the data key that the answer makes.
fn answer(
    host: &mut HostSession,
    now: Duration,
    sequence: u64,
    count: u8,
    connected: Option<SocketAddr>,
) -> Option<DataKey> {
    let mut nonce = [5; 32];
    nonce[0] = count;
    let offer = Offer { nonce, target: target_address(), configured: host_address(), connected }.encode();
    let content = Sealed { version: 4, data_key: None, from: Direction::TargetToHost, sequence, body: &offer };
    host.handle_datagram(now, target_address(), &seal(&key(), content));
    let response = open(&key(), None, Direction::HostToTarget, &host.poll_transmit()?.data).unwrap();
    Some(key().data_key(&response.body))
}

fn get_context() -> Request {
    Request::GetContext(get_context::Request::default())
}

fn context() -> Vec<u8> {
    let body = Reply::GetContext(get_context::Reply { data: vec![7; 0x4d0].into() });
    Message::Reply(ManipulateReply { processor: 0, return_status: 0, body }).encode().1
}

fn id_of(packet: &Packet) -> u32 {
    assert!(matches!(packet.body, Body::Data(_)), "{packet:?}");
    packet.id
}

/// Two offers were under way and both got an answer: the target takes the first, and then the second.
#[test]
fn two_answers_leave_the_key_of_the_later_one() {
    let mut host = HostSession::kdnet(host_config());
    let first = answer(&mut host, Duration::ZERO, 3, 0, None).unwrap();
    let second = answer(&mut host, Duration::ZERO, 3, 1, None).unwrap();
    let mut script = Script { host, data_key: first, sequence: 0, now: Duration::from_millis(1) };
    script.body(&Ping { last_sequence: 0, host: 1 }.encode());
    assert_eq!(script.heard(), [Packet::control(PacketType::Resend, 0)]);
    (script.data_key, script.sequence) = (second, 0);
    script.body(&Ping { last_sequence: 0, host: 1 }.encode());
    assert_eq!(script.heard(), [Packet::control(PacketType::Resend, 0)]);
    assert!(matches!(&script.events()[..], [Event::Connected { .. }]));
}

/// Keep-alives of a target whose data we cannot open: it took an answer whose key we no longer have.
#[test]
fn keys_that_came_apart_are_made_anew() {
    let mut script = Script::attached();
    let ours = std::mem::replace(&mut script.data_key, key().data_key(&[1; 322]));
    let ping = Ping { last_sequence: 0, host: 1 }.encode();
    script.body(&ping);
    // It may have been damaged on its way; under our key the target does not understand that either.
    assert!(script.host.poll_transmit().is_some());
    assert!(answer(&mut script.host, script.now, 6, 1, Some(host_address())).is_none(), "too early to tell");
    script.now += Duration::from_secs(3);
    script.body(&ping);
    assert!(script.host.poll_transmit().is_some());
    let anew = answer(&mut script.host, script.now, 9, 2, Some(host_address())).expect("an answer");
    (script.data_key, script.sequence) = (anew, 0);
    script.body(&ping);
    assert_eq!(script.heard(), [Packet::control(PacketType::Resend, 0)]);
    assert!(script.events().is_empty(), "the target did not restart");
    // A target that only sends something strange now and then keeps its key.
    let mut script = Script::attached();
    script.data_key = key().data_key(&[1; 322]);
    script.body(&ping);
    script.data_key = ours;
    script.sequence = 10;
    script.body(&ping);
    script.heard();
    script.now += Duration::from_secs(3);
    assert!(answer(&mut script.host, script.now, 6, 1, Some(host_address())).is_none());
}

/// The one loss of the recorded session: the reply never arrives. WinDbg asked anew after half a second. We ask the
/// target for its last packet as soon as the reply is late; one that waits for its acknowledgement repeats it.
#[test]
fn the_recorded_loss() {
    let mut script = Script::attached();
    script.host.request(script.now, 0, get_context()).unwrap();
    let asked = script.heard();
    assert_eq!((asked.len(), id_of(&asked[0])), (1, 0x8000_0000));
    script.acknowledge(0x8000_0000);
    // The reply, id 2, is lost.
    assert!(script.heard().is_empty());
    let before = script.now;
    script.wait();
    assert!(script.now - before < Duration::from_millis(250));
    assert_eq!(script.heard(), [Packet::control(PacketType::Resend, 0)]);
    script.say(Packet::data(PacketType::StateManipulate, 2, context()));
    assert_eq!(script.heard(), [Packet::control(PacketType::Acknowledge, 2)]);
    assert!(matches!(&script.events()[..], [Event::Reply(reply)] if reply.return_status == 0));
    script.host.request(script.now, 0, get_context()).unwrap();
    assert_eq!(id_of(&script.heard()[0]), 0x8000_0002);
}

/// The target takes a repetition of the request for the acknowledgement of its reply, which we never got: it asks for
/// the request again, and goes on with its next id.
#[test]
fn a_gap_that_our_own_packet_left() {
    let mut script = Script::attached();
    script.host.request(script.now, 0, get_context()).unwrap();
    let asked = script.heard();
    script.wait();
    assert_eq!(script.heard(), asked);
    script.say(Packet::control(PacketType::Resend, 0));
    assert_eq!(script.heard(), asked);
    script.acknowledge(0x8000_0000);
    script.say(Packet::data(PacketType::StateManipulate, 4, context()));
    assert_eq!(script.heard(), [Packet::control(PacketType::Acknowledge, 4)]);
    assert!(matches!(&script.events()[..], [Event::Reply(_)]));
}

/// An id that nothing explains is not taken: the target says which one it means, and the packet again.
#[test]
fn an_id_that_jumps_is_asked_about() {
    for wrong in [2u32 ^ 0x5000, 0x8000, 0xffff_ff00] {
        let mut script = Script::attached();
        script.host.request(script.now, 0, get_context()).unwrap();
        script.heard();
        script.acknowledge(0x8000_0000);
        script.say(Packet::data(PacketType::StateManipulate, wrong, context()));
        assert_eq!(script.heard(), [Packet::control(PacketType::Reset, 0x8000_0002)], "{wrong:x}");
        script.say(Packet::control(PacketType::Reset, 2));
        script.say(Packet::data(PacketType::StateManipulate, 2, context()));
        assert_eq!(script.heard(), [Packet::control(PacketType::Acknowledge, 2)]);
        assert!(matches!(&script.events()[..], [Event::Reply(_)]));
    }
    // A target that never means another one is taken at its word in the end.
    let mut script = Script::attached();
    let (packet_type, payload) = print("x").encode();
    for _ in 0..20 {
        script.say(Packet::data(packet_type, 0x5000, payload.clone()));
    }
    assert_eq!(script.heard().pop(), Some(Packet::control(PacketType::Acknowledge, 0x5000)));
    assert_eq!(script.events().len(), 1);
}

/// The same, with the RESET handshake that the recorded WinDbg made: the target starts it here.
#[test]
fn a_reset_names_the_next_id() {
    let mut script = Script::attached();
    script.say(Packet::control(PacketType::Reset, 0x62));
    assert_eq!(script.heard(), [Packet::control(PacketType::Reset, 0x8000_0000)]);
    let (packet_type, payload) = print("x").encode();
    script.say(Packet::data(packet_type, 0x62, payload));
    assert_eq!(script.heard(), [Packet::control(PacketType::Acknowledge, 0x62)]);
    assert!(matches!(&script.events()[..], [Event::Print { .. }]));
}

/// A packet that was under way when the RESET went out comes before the answer. The answer is still one: answered in
/// its turn it would make the target repeat its packet, and so on for the rest of the session.
#[test]
fn a_late_answer_to_a_reset_is_not_answered() {
    let mut script = Script::attached();
    script.say(Packet::control(PacketType::Reset, 2));
    assert_eq!(script.heard(), [Packet::control(PacketType::Reset, 0x8000_0000)]);
    let (packet_type, payload) = print("x").encode();
    script.say(Packet::data(packet_type, 2, payload.clone()));
    script.say(Packet::control(PacketType::Reset, 2));
    script.say(Packet::data(packet_type, 2, payload));
    let acknowledged = Packet::control(PacketType::Acknowledge, 2);
    assert_eq!(script.heard(), [acknowledged.clone(), acknowledged]);
    assert!(matches!(&script.events()[..], [Event::Print { .. }]));
}

/// A packet whose acknowledgement was lost comes again under its old id.
#[test]
fn an_old_id_is_acknowledged_and_dropped() {
    let mut script = Script::attached();
    let (packet_type, payload) = print("x").encode();
    for _ in 0..2 {
        script.say(Packet::data(packet_type, 2, payload.clone()));
        assert_eq!(script.heard(), [Packet::control(PacketType::Acknowledge, 2)]);
    }
    assert_eq!(script.events().len(), 1);
}

/// An acknowledgement counts only for its own packet: bit 0x800 is nothing special on KDNET.
#[test]
fn another_packets_acknowledgement_is_ignored() {
    let mut script = Script::attached();
    script.host.request(script.now, 0, get_context()).unwrap();
    let asked = script.heard();
    script.acknowledge(0x8000_0800);
    script.wait();
    assert_eq!(script.heard(), asked);
}

/// The stop is told again after the request was acknowledged: its answer is lost for good, and asked for at once.
#[test]
fn a_repeated_stop_repeats_the_request() {
    let mut script = Script::attached();
    script.host.request(script.now, 0, get_context()).unwrap();
    script.heard();
    script.acknowledge(0x8000_0000);
    let (packet_type, payload) = Message::StateChange(exception(0x1000)).encode();
    script.say(Packet::data(packet_type, 2, payload));
    let heard = script.heard();
    assert_eq!(heard[0], Packet::control(PacketType::Acknowledge, 2));
    assert_eq!(id_of(&heard[1]), 0x8000_0002);
    assert!(script.events().is_empty());
}

/// A reply to an earlier issue ends the request; the reply to the last issue, which comes as well, does not end the
/// next request, although that one reads the same place.
#[test]
fn the_second_reply_of_a_repeated_request_is_dropped() {
    let mut script = Script::attached();
    let reply = |byte: u8| {
        let body = Reply::ReadVirtualMemory(read_virtual_memory::Reply {
            target_base_address: 0x1000,
            transfer_count: 1,
            actual_bytes_read: 1,
            data: vec![byte].into(),
        });
        Message::Reply(ManipulateReply { processor: 0, return_status: 0, body }).encode().1
    };
    script.host.request(script.now, 0, read(0x1000, 1)).unwrap();
    script.heard();
    script.acknowledge(0x8000_0000);
    let (packet_type, payload) = Message::StateChange(exception(0x1000)).encode();
    script.say(Packet::data(packet_type, 2, payload));
    assert_eq!(id_of(&script.heard()[1]), 0x8000_0002);
    script.say(Packet::data(PacketType::StateManipulate, 4, reply(1)));
    assert!(matches!(&script.events()[..], [Event::Reply(_)]));
    script.heard();

    script.host.request(script.now, 0, read(0x1000, 1)).unwrap();
    // Held back until what is on its way is settled.
    assert!(script.heard().is_empty());
    script.acknowledge(0x8000_0002);
    assert!(script.heard().is_empty());
    script.say(Packet::data(PacketType::StateManipulate, 6, reply(2)));
    let heard = script.heard();
    assert_eq!((heard.len(), id_of(&heard[1])), (2, 0x8000_0004));
    assert!(script.events().is_empty());
    script.acknowledge(0x8000_0004);
    script.say(Packet::data(PacketType::StateManipulate, 8, reply(3)));
    let events = script.events();
    let [Event::Reply(ManipulateReply { body: Reply::ReadVirtualMemory(reply), .. })] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(reply.prefix()[..], [3]);
}

/// To get over a break instruction its program counter was set. It tells of its stop from there, because it has not got the
/// continue: that is no other stop.
#[test]
fn a_stop_told_from_where_it_was_moved_is_the_same() {
    for (to, same) in [(0x1001, true), (0x1002, false)] {
        let mut script = Script::attached();
        script.host.moves(0x1001);
        let request = Request::Continue(continue_api::Request { continue_status: 0x0001_0002 });
        script.host.request(script.now, 0, request).unwrap();
        script.heard();
        script.wait();
        script.acknowledge(0x8000_0000);
        script.heard();
        let (packet_type, payload) = Message::StateChange(exception(to)).encode();
        script.say(Packet::data(packet_type, 2, payload));
        let (heard, events) = (script.heard(), script.events());
        assert_eq!(heard.len(), if same { 2 } else { 1 }, "{heard:?}");
        let is_told = events.iter().any(|event| matches!(event, Event::StateChange(_)));
        assert_eq!((is_told, events.contains(&Event::Sent)), (!same, !same), "{events:?}");
    }
}

/// Every continue is acknowledged, and does nothing: the target stands where it stood. However often that happens, who let
/// it go hears of the stop after he heard that the continue was taken: else the target would stand with nobody to know.
#[test]
fn a_continue_that_does_nothing_is_not_taken_for_one_that_did() {
    let mut script = Script::attached();
    let stop = exception(0x1000);
    let mut id = 0;
    for round in 0..5 {
        let request = Request::Continue(continue_api::Request { continue_status: 0x0001_0002 });
        script.host.request(script.now, 0, request).unwrap();
        let mut heard = Vec::new();
        for _ in 0..20 {
            for packet in script.heard().iter().filter(|packet| matches!(packet.body, Body::Data(_))) {
                script.acknowledge(packet.id);
                id += 2;
                let (packet_type, payload) = Message::StateChange(stop.clone()).encode();
                script.say(Packet::data(packet_type, id, payload));
            }
            heard.extend(script.events());
            if heard.len() == 2 {
                break;
            }
            script.now += Duration::from_millis(1);
        }
        assert_eq!(heard, [Event::Sent, Event::StateChange(stop.clone())], "round {round}");
    }
}
