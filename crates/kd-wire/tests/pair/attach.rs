//! Attaching over KDNET, in every state that a target can be in.

use std::time::Duration;

use kd_wire::dissect::{Content, Dissector};
use kd_wire::kdnet::{Offer, Response, Sealed, open, seal};
use kd_wire::message::manipulate::{Reply, Request, get_version};
use kd_wire::message::{Direction, Message};
use kd_wire::session::{Diagnostic, Event, HostSession, KdnetConfig, RequestFailure, TargetConfig, TargetSession};

use crate::network::*;

const SECOND: Duration = Duration::from_secs(1);

fn is_connected(event: &Event) -> bool {
    matches!(event, Event::Connected { .. })
}

fn is_stop(event: &Event) -> bool {
    matches!(event, Event::StateChange(_))
}

#[test]
fn waiting_at_boot() {
    let mut pair = Pair::kdnet(1);
    let (stop, now) = (pair.stop.clone(), pair.now);
    pair.target.send(now, print("BD: hello\n"));
    pair.target.send(now, Message::StateChange(stop));
    pair.attach(2 * SECOND);
    assert!(pair.has(is_connected));
    assert!(pair.has(|event| matches!(event, Event::Print { text, .. } if &text[..] == b"BD: hello\n")));
    let version = pair.ask(Request::GetVersion(get_version::Request {}), SECOND).unwrap();
    assert!(matches!(version.body, Reply::GetVersion(reply) if reply.machine_type == 0x8664));
    // No break-in was needed, so none stays pending.
    assert!(!names(&pair).contains(&"BreakIn"));
}

fn names(pair: &Pair) -> Vec<&'static str> {
    let mut dissector = Dissector::new(key());
    pair.host_sent.iter().map(|raw| dissector.datagram(raw).name()).collect()
}

#[test]
fn running() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    assert_eq!(pair.read(0xffff_f800_0000_0000, 64), memory(0xffff_f800_0000_0000, 64));
    pair.go();
    assert!(!pair.target.is_stopped());
    let now = pair.now;
    pair.host.break_in(now);
    assert!(pair.run(SECOND, |pair| pair.has(is_stop)));
    assert!(pair.target.is_stopped());
}

#[test]
fn without_break_in_a_running_target_keeps_running() {
    let mut pair = Pair::kdnet(1);
    let now = pair.now;
    pair.host.synchronise(now, false);
    pair.run_for(20 * SECOND);
    assert!(pair.has(is_connected) && !pair.has(is_stop));
    assert!(!names(&pair).contains(&"BreakIn"));
    let now = pair.now;
    pair.target.send(now, print("still here"));
    assert!(pair.run(SECOND, |pair| pair.has(|event| matches!(event, Event::Print { .. }))));
}

/// As the recorded WinDbg: a RESET tells the target our number, then the stop is acknowledged.
#[test]
fn already_broken_in_by_a_debugger_that_is_gone() {
    let config = TargetConfig { first_id: 0x926, ..target_config() };
    let mut pair = Pair::new(HostSession::kdnet(host_config()), TargetSession::kdnet(config), 1, false);
    let (stop, now) = (pair.stop.clone(), pair.now);
    pair.target.send(now, Message::StateChange(stop));
    pair.attach(3 * SECOND);
    assert!(names(&pair).contains(&"RESET"));
    assert_eq!(pair.read(0x1000, 16), memory(0x1000, 16));
    assert_eq!(pair.count(is_stop), 0);
}

#[test]
fn the_first_offer_may_name_a_debugger_that_is_gone() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    pair.go();
    // A second host on the same machine, with nothing but the key.
    pair.host = HostSession::kdnet(KdnetConfig { seed: [9; 32], ..host_config() });
    pair.events.clear();
    pair.attach(8 * SECOND);
    assert!(pair.has(is_connected));
    assert_eq!(pair.read(0x2000, 8), memory(0x2000, 8));
}

#[test]
fn a_keep_alive_is_not_answered() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    pair.run_for(60 * SECOND);
    assert_eq!(names(&pair).iter().filter(|name| **name == "Response").count(), 1);
    assert_eq!(pair.count(is_connected), 1);
    assert_eq!(pair.read(0x3000, 8), memory(0x3000, 8));
}

#[test]
fn a_restart_gives_new_keys_and_fails_the_request() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    let now = pair.now;
    pair.target = TargetSession::kdnet(TargetConfig { boot: [0x22; 24], ..target_config() });
    pair.target.send(now, print("booting"));
    pair.host.request(now, 0, read(0x1000, 4)).unwrap();
    assert!(pair.run(10 * SECOND, |pair| pair.has(|event| *event == Event::TargetRestarted)));
    let failed = Event::RequestFailed { reason: RequestFailure::TargetRestarted };
    assert!(pair.take_event(|event| *event == failed).is_some());
    assert!(pair.run(2 * SECOND, |pair| pair.has(|event| matches!(event, Event::Print { .. }))));
    pair.attach(3 * SECOND);
    assert_eq!(pair.read(0x4000, 8), memory(0x4000, 8));
}

#[test]
fn the_target_moves_to_another_port() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    pair.target_address.set_port(61000);
    let moved = pair.target_address;
    assert!(pair.run(5 * SECOND, |pair| pair.has(|event| *event == Event::PeerMoved { peer: moved })));
    assert_eq!(pair.read(0x5000, 8), memory(0x5000, 8));
    assert_eq!(names(&pair).iter().filter(|name| **name == "Response").count(), 1);
}

#[test]
fn an_ipv6_target() {
    let mut pair = Pair::kdnet(1);
    pair.target_address = "[fe80::1%3]:50000".parse().unwrap();
    pair.attach(3 * SECOND);
    assert_eq!(pair.read(0x6000, 8), memory(0x6000, 8));
}

/// What a second machine with the same key sends must not take the session over.
#[test]
fn another_machine_with_the_same_key_is_ignored() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    let stranger = "192.168.2.99:50000".parse().unwrap();
    let offer = Offer { nonce: [3; 32], target: stranger, configured: host_address(), connected: None }.encode();
    let content = Sealed { version: 4, data_key: None, from: Direction::TargetToHost, sequence: 900, body: &offer };
    let raw = seal(&key(), content);
    pair.inject(stranger, &raw);
    pair.run_for(SECOND);
    assert!(pair.has_diagnostic(|diagnostic| *diagnostic == Diagnostic::ForeignHost { peer: stranger }));
    assert_eq!(names(&pair).iter().filter(|name| **name == "Response").count(), 1);
    assert_eq!(pair.read(0x7000, 8), memory(0x7000, 8));
}

/// A recorded offer of the target's own boot, sent again by somebody on the path.
#[test]
fn a_replayed_boot_offer_does_not_cost_the_session() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    pair.run_for(12 * SECOND);
    let first = pair.target_sent[0].clone();
    pair.inject(target_address(), &first);
    pair.run_for(20 * SECOND);
    assert!(!pair.has(|event| *event == Event::TargetRestarted));
    assert_eq!(pair.read(0x8000, 8), memory(0x8000, 8));
}

#[test]
fn a_replayed_data_datagram_is_dropped() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    pair.go();
    let now = pair.now;
    pair.target.send(now, print("once"));
    pair.run_for(SECOND);
    for raw in pair.target_sent.clone() {
        pair.inject(target_address(), &raw);
    }
    pair.run_for(SECOND);
    assert_eq!(pair.count(|event| matches!(event, Event::Print { .. })), 1);
    assert!(pair.has_diagnostic(|diagnostic| matches!(diagnostic, Diagnostic::Replayed { .. })));
}

#[test]
fn a_wrong_key_is_said() {
    let mut pair = Pair::kdnet(1);
    pair.host = HostSession::kdnet(KdnetConfig { key: "9.9.9.9".parse().unwrap(), ..host_config() });
    let now = pair.now;
    pair.host.synchronise(now, true);
    pair.run_for(10 * SECOND);
    let peer = target_address();
    assert!(pair.has_diagnostic(|diagnostic| *diagnostic == Diagnostic::AuthenticationFailed { peer }));
    assert!(pair.host_sent.is_empty());
}

#[test]
fn something_else_on_the_port_is_said() {
    let mut pair = Pair::kdnet(1);
    let peer = "192.168.2.50:5353".parse().unwrap();
    pair.inject(peer, b"hello, is this DNS?");
    pair.run_for(Duration::from_millis(10));
    assert!(pair.has_diagnostic(|diagnostic| *diagnostic == Diagnostic::NotKdnet { peer, length: 19 }));
}

/// `target=`: an empty control datagram twice a second, until an offer comes.
#[test]
fn a_named_target_is_asked_for_an_offer() {
    let config = KdnetConfig { targets: vec![target_address()], ..host_config() };
    let mut pair = Pair::kdnet(1);
    pair.host = HostSession::kdnet(config);
    // The target makes its first offers to somebody else.
    pair.lose_of_target = vec![0];
    let now = pair.now;
    pair.host.synchronise(now, true);
    assert!(pair.run(SECOND, |pair| pair.has(is_connected)), "{:?}", pair.events);
    let mut dissector = Dissector::new(key());
    assert_eq!(dissector.datagram(&pair.host_sent[0]).content, Content::Poke);
}

#[test]
fn pokes_come_every_half_second() {
    let mut host = HostSession::kdnet(KdnetConfig { targets: vec![target_address()], ..host_config() });
    let mut pokes = 0;
    let mut now = Duration::from_secs(5);
    while now < Duration::from_secs(15) {
        host.handle_timeout(now);
        while host.poll_transmit().is_some() {
            pokes += 1;
        }
        now = host.poll_timeout().unwrap();
    }
    assert_eq!(pokes, 20);
}

/// Our own restart: the target goes on sending data of a session whose key is lost.
#[test]
fn data_of_an_unknown_session_is_answered_with_a_poke() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    pair.go();
    pair.host = HostSession::kdnet(KdnetConfig { seed: [9; 32], ..host_config() });
    pair.events.clear();
    let now = pair.now;
    pair.host.synchronise(now, true);
    pair.target.send(now, print("anybody?"));
    assert!(pair.run(SECOND, |pair| pair.has(is_connected)), "{:?}", pair.events);
    assert!(pair.has_diagnostic(|diagnostic| matches!(diagnostic, Diagnostic::UnknownSession { .. })));
}

#[test]
fn a_break_in_asked_for_too_early_is_remembered() {
    let mut pair = Pair::kdnet(1);
    let now = pair.now;
    pair.host.break_in(now);
    assert!(pair.run(2 * SECOND, |pair| pair.has(is_stop)), "{:?}", pair.events);
}

/// The third answer is lost, and the fourth: the target keeps offering and is answered again.
#[test]
fn a_lost_response_is_repeated() {
    let mut pair = Pair::kdnet(1);
    pair.lose_of_host = vec![0];
    pair.attach(10 * SECOND);
    assert_eq!(pair.read(0x9000, 8), memory(0x9000, 8));
}

#[test]
fn a_lost_ping_is_made_up_for() {
    let mut pair = Pair::kdnet(1);
    // Offer, then the ping that follows the response.
    pair.lose_of_target = vec![1];
    pair.attach(3 * SECOND);
    assert_eq!(pair.read(0xa000, 8), memory(0xa000, 8));
}

/// Two answers arrive, the older one last, and the ping under its key is lost: a target that runs says nothing under the key
/// that it has now, and hears no break-in under the one that we have.
#[test]
fn keys_that_came_apart_without_a_word_are_agreed_anew() {
    let mut pair = Pair::kdnet(1);
    let now = pair.now;
    pair.host.synchronise(now, false);
    assert!(pair.run(3 * SECOND, |pair| pair.has(is_connected)));
    pair.run_for(SECOND);
    let offer = open(&key(), None, Direction::TargetToHost, &pair.target_sent[0]).unwrap();
    let nonce = Offer::decode(&offer.body).unwrap().nonce;
    let body = Response { nonce, random: [7; 32] }.encode();
    let from = Direction::HostToTarget;
    let other = Sealed { version: offer.version, data_key: None, from, sequence: offer.sequence, body: &body };
    pair.lose_pings = true;
    let now = pair.now;
    pair.target.handle_datagram(now, host_address(), &seal(&key(), other));
    pair.run_for(SECOND);
    let now = pair.now;
    pair.host.break_in(now);
    let answers = |pair: &mut Pair| names(pair).iter().filter(|name| **name == "Response").count();
    assert!(pair.run(8 * SECOND, |pair| answers(pair) == 2), "{:?}", pair.events);
    pair.lose_pings = false;
    assert!(pair.run(3 * SECOND, |pair| pair.has(is_stop)), "{:?}", pair.events);
    assert_eq!(pair.read(0x9000, 8), memory(0x9000, 8));
}
