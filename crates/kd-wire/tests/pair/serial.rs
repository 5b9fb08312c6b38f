//! What only serial lines do.

use std::time::Duration;

use kd_wire::message::Message;
use kd_wire::message::manipulate::{ManipulateReply, Reply, Request, continue_api, read_virtual_memory, search_memory};
use kd_wire::packet::{INITIAL_ID, Packet, PacketType, SYNC};
use kd_wire::session::{Diagnostic, Event, HostSession, RequestFailure, SerialConfig, TargetSession};

use crate::network::*;

const SECOND: Duration = Duration::from_secs(1);

fn is_stop(event: &Event) -> bool {
    matches!(event, Event::StateChange(_))
}

fn drain(host: &mut HostSession) -> (Vec<Vec<u8>>, Vec<Event>) {
    let transmits = std::iter::from_fn(|| host.poll_transmit()).map(|transmit| transmit.data.to_vec()).collect();
    (transmits, std::iter::from_fn(|| host.poll_event()).collect())
}

fn vector(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

#[test]
fn waiting_at_boot_behind_boot_text() {
    let mut pair = Pair::serial(1);
    pair.inject(target_address(), b"Booting... 0x30 i\r\n");
    let (stop, now) = (pair.stop.clone(), pair.now);
    pair.target.send(now, Message::StateChange(stop));
    pair.attach(5 * SECOND);
    assert!(pair.has_diagnostic(|diagnostic| matches!(diagnostic, Diagnostic::SerialNoise { .. })));
    assert!(!pair.has(|event| *event == Event::TargetRestarted));
    assert_eq!(pair.read(0x1000, 32), memory(0x1000, 32));
}

#[test]
fn running() {
    let mut pair = Pair::serial(1);
    pair.attach(5 * SECOND);
    assert_eq!(pair.read(0x1000, 32), memory(0x1000, 32));
    pair.go();
    let now = pair.now;
    pair.host.break_in(now);
    assert!(pair.run(SECOND, |pair| pair.has(is_stop)));
}

#[test]
fn stopped_by_a_debugger_that_is_gone() {
    let mut pair = Pair::serial(1);
    pair.attach(5 * SECOND);
    for index in 0..5 {
        pair.read(0x1000 + index, 4);
    }
    pair.host = HostSession::serial(SerialConfig::default());
    pair.attach(10 * SECOND);
    assert_eq!(pair.read(0x2000, 32), memory(0x2000, 32));
}

#[test]
fn sync_in_the_middle_of_a_session_restarts_both_directions() {
    let mut pair = Pair::serial(1);
    pair.attach(5 * SECOND);
    pair.read(0x1000, 4);
    let now = pair.now;
    pair.host.request(now, 0, read(0x2000, 4)).unwrap();
    pair.target = TargetSession::serial();
    pair.stop = exception(0xffff_f800_0000_9000);
    let stop = pair.stop.clone();
    pair.target.send(now, Message::StateChange(stop));
    assert!(pair.run(5 * SECOND, |pair| pair.has(is_stop)), "{:?}", pair.events);
    assert!(pair.has(|event| *event == Event::TargetRestarted));
    let failed = Event::RequestFailed { reason: RequestFailure::TargetRestarted };
    assert!(pair.take_event(|event| *event == failed).is_some());
    assert_eq!(pair.read(0x3000, 4), memory(0x3000, 4));
}

/// The acknowledgement of the SYNC packet is lost: it comes again, and is no second restart.
#[test]
fn a_repeated_sync_packet_is_one_event() {
    let mut host = HostSession::serial(SerialConfig::default());
    let print = vector("303030300300130000088080400100003032000000000000030000000000000068690aaa");
    for _ in 0..3 {
        host.handle_bytes(Duration::ZERO, &print);
    }
    let (transmits, events) = drain(&mut host);
    let ack = vector("69696969040000000000808000000000");
    assert_eq!(transmits, [ack.clone(), ack.clone(), ack]);
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Print { .. })).count(), 1);
    assert!(!events.contains(&Event::TargetRestarted));
}

#[test]
fn the_bytes_are_those_of_the_facts() {
    assert_eq!(Packet::control(PacketType::Reset, 0).encode_serial(), vector("69696969060000000000000000000000"));
    assert_eq!(Packet::control(PacketType::Resend, 0).encode_serial(), vector("69696969050000000000000000000000"));
    let ack = Packet::control(PacketType::Acknowledge, INITIAL_ID);
    assert_eq!(ack.encode_serial(), vector("69696969040000000000808000000000"));

    let mut host = HostSession::serial(SerialConfig::default());
    host.request(Duration::ZERO, 0, read(0xffff_f800_0000_1000, 16)).unwrap();
    let expected = vector(
        "303030300200380000008080770300003031000000000000000000000000000000100000\
         00f8ffff1000000000000000000000000000000000000000000000000000000000000000aa",
    );
    assert_eq!(drain(&mut host).0, [expected]);
    host.break_in(Duration::ZERO);
    assert_eq!(drain(&mut host).0, [vec![0x62]]);
}

/// Listens first; then the break-in is repeated, and now and then a RESET goes out for a target that stands. In the end
/// it gets a second without a byte, in which one that waits for the rest of a packet gives that up.
#[test]
fn break_ins_are_repeated_and_a_reset_now_and_then() {
    let mut host = HostSession::serial(SerialConfig { baud: None, resets: 2 });
    host.synchronise(Duration::ZERO, true);
    let (mut sent, mut last) = (Vec::new(), Duration::ZERO);
    for step in 0..40 {
        let now = host.poll_timeout().unwrap();
        assert_eq!(now - last, Duration::from_millis(if step == 24 { 1200 } else { 100 }));
        last = now;
        host.handle_timeout(now);
        sent.extend(drain(&mut host).0.into_iter().map(|bytes| bytes.len()));
    }
    assert_eq!(sent[..17], [1, 1, 1, 1, 1, 1, 1, 16, 1, 1, 1, 1, 1, 1, 1, 16, 1]);
    // resets=2
    assert_eq!(sent.iter().filter(|length| **length == 16).count(), 2);
    // Without a break-in and after the last allowed RESET nothing is sent any more.
    let mut host = HostSession::serial(SerialConfig { baud: None, resets: 2 });
    host.synchronise(Duration::ZERO, false);
    let mut sent = 0;
    for _ in 0..10 {
        let now = host.poll_timeout().unwrap();
        host.handle_timeout(now);
        sent += drain(&mut host).0.len();
    }
    assert_eq!(sent, 2);
}

/// Whatever id the session before ended on, the first request is not taken for its repetition.
#[test]
fn the_next_debugger_costs_no_more_for_any_parity() {
    for requests in 0..5 {
        let mut pair = Pair::serial(1);
        pair.attach(5 * SECOND);
        for index in 0..requests {
            pair.read(0x1000 + index, 4);
        }
        pair.go();
        pair.host = HostSession::serial(SerialConfig::default());
        pair.attach(SECOND);
        let started = pair.now;
        assert_eq!(pair.read(0x2000, 32), memory(0x2000, 32));
        assert!(pair.now - started < Duration::from_millis(20), "{requests}: {:?}", pair.now - started);
        let started = pair.now;
        pair.go();
        assert!(pair.now - started < Duration::from_millis(20), "{requests}: {:?}", pair.now - started);
        assert!(!pair.target.is_stopped());
    }
}

/// One flipped bit makes the SYNC of a target that started anew. It counts when the packet comes so twice.
#[test]
fn a_flipped_bit_is_no_restart() {
    let mut pair = Pair::serial(1);
    pair.attach(5 * SECOND);
    pair.read(0x1000, 4);
    pair.go();
    let (packet_type, payload) = print("x").encode();
    let next = pair.target_sent.iter().rev().find(|bytes| bytes[0] == 0x30).unwrap();
    let id = u32::from_le_bytes(next[8..12].try_into().unwrap()) ^ 1;
    for id in [id | SYNC, id] {
        let bytes = Packet::data(packet_type, id, payload.clone()).encode_serial();
        pair.inject(target_address(), &bytes);
        pair.run_for(Duration::from_millis(10));
    }
    assert_eq!(pair.count(|event| matches!(event, Event::Print { .. })), 1);
    assert!(!pair.has(|event| *event == Event::TargetRestarted));
}

#[test]
fn damage_asks_for_the_packet_again() {
    let print = vector("303030300300130000088080400100003032000000000000030000000000000068690aaa");
    let resend = vector("69696969050000000000000000000000");
    for damaged in [20, 35] {
        let mut host = HostSession::serial(SerialConfig::default());
        // Anything that shows that a target is there; before, noise is not answered.
        host.handle_bytes(Duration::ZERO, &vector("69696969050000000000000000000000"));
        let mut bytes = print.clone();
        bytes[damaged] ^= 1;
        host.handle_bytes(Duration::ZERO, &bytes);
        let (transmits, events) = drain(&mut host);
        assert_eq!(transmits, std::slice::from_ref(&resend));
        assert!(!events.iter().any(|event| matches!(event, Event::Print { .. })));
    }
}

/// A packet that breaks off is noticed by the clock.
#[test]
fn a_packet_that_breaks_off_is_asked_for_again() {
    let mut host = HostSession::serial(SerialConfig::default());
    host.handle_bytes(Duration::ZERO, &vector("69696969050000000000000000000000"));
    host.handle_bytes(Duration::ZERO, &vector("3030303003001300000880804001000030320000"));
    let now = host.poll_timeout().unwrap();
    host.handle_timeout(now);
    assert_eq!(drain(&mut host).0, [vector("69696969050000000000000000000000")]);
    host.handle_bytes(now, &vector("303030300300130000088080400100003032000000000000030000000000000068690aaa"));
    assert!(drain(&mut host).1.iter().any(|event| matches!(event, Event::Print { .. })));
}

/// A host whose packets come with any toggle bit takes a target's that was debugged before.
#[test]
fn any_first_id_is_taken() {
    for id in [INITIAL_ID, INITIAL_ID | 1, INITIAL_ID | SYNC] {
        let mut host = HostSession::serial(SerialConfig::default());
        let (packet_type, payload) = print("x").encode();
        host.handle_bytes(Duration::ZERO, &Packet::data(packet_type, id, payload).encode_serial());
        let (transmits, events) = drain(&mut host);
        assert_eq!(transmits, [Packet::control(PacketType::Acknowledge, id & !SYNC).encode_serial()]);
        assert!(events.iter().any(|event| matches!(event, Event::Print { .. })));
    }
}

#[test]
fn a_reset_out_of_the_blue_is_answered_once() {
    let mut host = HostSession::serial(SerialConfig::default());
    let reset = vector("69696969060000000000000000000000");
    host.handle_bytes(Duration::ZERO, &reset);
    assert_eq!(drain(&mut host).0, std::slice::from_ref(&reset));
    // What follows is the answer to our answer.
    host.handle_bytes(Duration::ZERO, &reset);
    assert_eq!(drain(&mut host).0, Vec::<Vec<u8>>::new());
}

/// A reply to the search of one page of memory: found there, or not found.
fn found(at: u64, status: u32) -> Vec<u8> {
    let body =
        Reply::SearchMemory(search_memory::Reply { found_address: at, search_length: 0x1000, pattern_length: 4 });
    Message::Reply(ManipulateReply { processor: 0, return_status: status, body }).encode().1
}

fn search(address: u64) -> Request {
    let (search_length, pattern_length, data) = (0x1000, 4, (&b"Leak"[..]).into());
    Request::SearchMemory(search_memory::Request { search_address: address, search_length, pattern_length, data })
}

/// A host that has asked its target once, over a line that takes a millisecond each way, and the time.
fn measured() -> (HostSession, Duration) {
    let mut host = HostSession::serial(SerialConfig::default());
    host.request(Duration::ZERO, 0, search(0x1000)).unwrap();
    let now = Duration::from_millis(2);
    host.handle_bytes(now, &Packet::control(PacketType::Acknowledge, INITIAL_ID).encode_serial());
    host.handle_bytes(now, &Packet::data(PacketType::StateManipulate, INITIAL_ID, found(0x1800, 0)).encode_serial());
    assert!(drain(&mut host).1.iter().any(|event| matches!(event, Event::Reply(_))));
    (host, now)
}

/// Our acknowledgement of a reply became a RESET on its way, by one flipped bit: the target says the reply again, under an
/// id that the next one would have. It is not the answer to the request that went out meanwhile.
#[test]
fn what_is_said_again_after_a_reset_answers_nothing() {
    let (mut host, now) = measured();
    host.request(now, 0, search(0x2000)).unwrap();
    drain(&mut host);
    host.handle_bytes(now, &Packet::control(PacketType::Reset, 0).encode_serial());
    host.handle_bytes(now, &Packet::data(PacketType::StateManipulate, INITIAL_ID, found(0x1800, 0)).encode_serial());
    let (transmits, events) = drain(&mut host);
    assert!(transmits.contains(&Packet::control(PacketType::Acknowledge, INITIAL_ID).encode_serial().to_vec()));
    assert!(!events.iter().any(|event| matches!(event, Event::Reply(_))), "{events:?}");
    // The answer itself comes behind it, and may be the same: acknowledged, it is another.
    host.handle_bytes(now, &Packet::control(PacketType::Acknowledge, INITIAL_ID).encode_serial());
    let answer = Packet::data(PacketType::StateManipulate, INITIAL_ID | 1, found(0x1800, 0));
    host.handle_bytes(now, &answer.encode_serial());
    assert!(drain(&mut host).1.iter().any(|event| matches!(event, Event::Reply(_))));
}

/// The acknowledgement that is waited for becomes a RESET by one flipped bit. A real one is sent again.
#[test]
fn a_flipped_bit_is_no_reset() {
    let (mut host, now) = measured();
    host.request(now, 0, search(0x2000)).unwrap();
    drain(&mut host);
    let mut flipped = Packet::control(PacketType::Acknowledge, INITIAL_ID | 1).encode_serial().to_vec();
    flipped[4] ^= 2;
    host.handle_bytes(now, &flipped);
    assert_eq!(drain(&mut host).0, [Packet::control(PacketType::Resend, 0).encode_serial()]);
    host.handle_bytes(now, &flipped);
    let (transmits, events) = drain(&mut host);
    assert_eq!(transmits[0], Packet::control(PacketType::Reset, 0).encode_serial());
    assert!(events.contains(&Event::Diagnostic(Diagnostic::Resynchronised)), "{events:?}");
}

/// What the target works at is asked for soon, also after an answer that was lost took a second to come: each loss would
/// cost that much from then on.
#[test]
fn a_lost_answer_does_not_make_the_next_one_slow() {
    let (mut host, mut now) = measured();
    for round in 0..8 {
        // Two ids, of which the first packets took one each.
        let (ours, theirs) = (INITIAL_ID | (round + 1) & 1, INITIAL_ID | (round + 1) & 1);
        host.request(now, 0, search(0x2000)).unwrap();
        drain(&mut host);
        host.handle_bytes(now, &Packet::control(PacketType::Acknowledge, ours).encode_serial());
        let first = host.poll_timeout().unwrap();
        assert!(first - now <= Duration::from_millis(60), "{round}: {:?}", first - now);
        let mut asked = 0;
        while host.poll_timeout().unwrap() < now + SECOND {
            let at = host.poll_timeout().unwrap();
            host.handle_timeout(at);
            asked += drain(&mut host).0.len();
        }
        assert!((1..=6).contains(&asked), "{asked}");
        now += SECOND;
        let reply = Packet::data(PacketType::StateManipulate, theirs, found(0x2000 + u64::from(round), 0));
        host.handle_bytes(now, &reply.encode_serial());
        assert!(drain(&mut host).1.iter().any(|event| matches!(event, Event::Reply(_))));
    }
}

/// Asks and is answered, with so long a way to the acknowledgement and from there to the answer; under which ids.
fn ask(host: &mut HostSession, now: Duration, round: u32, way: Duration, answer: Duration) -> Duration {
    let id = INITIAL_ID | (round + 1) & 1;
    host.request(now, 0, search(0x2000)).unwrap();
    drain(host);
    let at = now + way;
    if answer > Duration::ZERO {
        host.handle_bytes(at, &Packet::control(PacketType::Acknowledge, id).encode_serial());
    }
    let at = at + answer;
    host.handle_bytes(at, &Packet::data(PacketType::StateManipulate, id, found(u64::from(round), 0)).encode_serial());
    assert!(drain(host).1.iter().any(|event| matches!(event, Event::Reply(_))));
    at
}

/// Where a line is slow, a continue whose acknowledgement was lost is still known to have been taken: before it is given
/// up, as what may leave the target standing.
#[test]
fn a_lost_acknowledgement_of_a_continue_is_made_up_for_on_a_slow_line() {
    let (mut host, mut now) = measured();
    for round in 0..40 {
        now = ask(&mut host, now, round, Duration::from_millis(180 + u64::from(round % 4) * 20), SECOND / 100);
    }
    let began = now;
    host.request(now, 0, Request::Continue(continue_api::Request { continue_status: 0x0001_0002 })).unwrap();
    let event = loop {
        now = host.poll_timeout().unwrap();
        host.handle_timeout(now);
        let ends = |event: &Event| matches!(event, Event::Sent | Event::RequestFailed { .. });
        if let Some(event) = drain(&mut host).1.into_iter().find(ends) {
            break event;
        }
    };
    assert_eq!(event, Event::Sent, "after {:?}", now - began);
    assert!(now - began < 8 * SECOND);
}

/// A target that takes its time on a line that lost nothing is not asked again and again: what it does not read while it
/// runs stands before the next debugger's break-in.
#[test]
fn a_late_acknowledgement_on_a_good_line_makes_no_noise() {
    let (mut host, now) = measured();
    host.request(now, 0, Request::Continue(continue_api::Request { continue_status: 0x0001_0002 })).unwrap();
    assert_eq!(drain(&mut host).0.len(), 1);
    let late = now + Duration::from_millis(80);
    while let Some(at) = host.poll_timeout().filter(|at| *at < late) {
        host.handle_timeout(at);
    }
    host.handle_bytes(late, &Packet::control(PacketType::Acknowledge, INITIAL_ID | 1).encode_serial());
    let (transmits, events) = drain(&mut host);
    assert!(transmits.is_empty() && events.contains(&Event::Sent), "{transmits:?} {events:?}");
    assert!(!host.is_lossy());
}

/// Both copies of a packet are acknowledged: it was not lost, and the line is not bad.
#[test]
fn a_slow_moment_is_no_loss() {
    let (mut host, now) = measured();
    let acknowledgement = Packet::control(PacketType::Acknowledge, INITIAL_ID | 1).encode_serial();
    host.request(now, 0, search(0x2000)).unwrap();
    let now = host.poll_timeout().unwrap();
    host.handle_timeout(now);
    assert_eq!(drain(&mut host).0.len(), 2);
    host.handle_bytes(now, &acknowledgement);
    assert!(host.is_lossy());
    host.handle_bytes(now, &acknowledgement);
    assert!(!host.is_lossy());
    // One more says nothing of another packet.
    host.handle_bytes(now, &acknowledgement);
    host.handle_bytes(now, &Packet::control(PacketType::Resend, 0).encode_serial());
    assert!(!host.is_lossy());
}

/// An answer that comes although its acknowledgement was lost took longer than one: the line is not slower for that.
#[test]
fn an_answer_is_no_measure_of_acknowledgements() {
    let (mut host, mut now) = measured();
    for round in 0..40 {
        let lost = round % 2 == 0;
        // It comes just before the clock would have the request sent again.
        let way = if lost { Duration::from_millis(3) } else { Duration::from_millis(1) };
        now = ask(&mut host, now, round, way, if lost { Duration::ZERO } else { SECOND / 500 });
    }
    host.request(now, 0, search(0x2000)).unwrap();
    let wait = host.poll_timeout().unwrap() - now;
    assert_eq!(wait, Duration::from_millis(4));
}

/// The answer to a long read comes damaged again and again: less is asked for, and the target goes on with the next id. A
/// short one is asked for until it comes.
#[test]
fn a_long_answer_that_comes_damaged_is_done_without() {
    for (length, given_up) in [(2000, true), (200, false)] {
        let (mut host, now) = measured();
        let read = |length| read(0x2000, length);
        host.request(now, 0, read(length)).unwrap();
        drain(&mut host);
        host.handle_bytes(now, &Packet::control(PacketType::Acknowledge, INITIAL_ID | 1).encode_serial());
        let answer = |length: u32| {
            let data = memory(0x2000, length as usize).into();
            let reply = read_virtual_memory::Reply {
                target_base_address: 0x2000,
                transfer_count: length,
                actual_bytes_read: length,
                data,
            };
            let body = Reply::ReadVirtualMemory(reply);
            Message::Reply(ManipulateReply { processor: 0, return_status: 0, body }).encode().1
        };
        let mut bytes =
            Packet::data(PacketType::StateManipulate, INITIAL_ID | 1, answer(length)).encode_serial().to_vec();
        bytes[100] ^= 1;
        for _ in 0..2 {
            host.handle_bytes(now, &bytes);
            let resend = Packet::control(PacketType::Resend, 0).encode_serial();
            assert_eq!(drain(&mut host).0, [resend]);
        }
        host.handle_bytes(now, &bytes);
        let (transmits, events) = drain(&mut host);
        let failed = Event::RequestFailed { reason: RequestFailure::Damaged };
        assert_eq!(events.contains(&failed), given_up, "{events:?}");
        if given_up {
            assert_eq!(transmits, [Packet::control(PacketType::Acknowledge, INITIAL_ID | 1).encode_serial()]);
            host.request(now, 0, read(1000)).unwrap();
            assert_eq!(drain(&mut host).0.len(), 1);
            host.handle_bytes(now, &Packet::control(PacketType::Acknowledge, INITIAL_ID).encode_serial());
            let less = Packet::data(PacketType::StateManipulate, INITIAL_ID, answer(1000)).encode_serial();
            host.handle_bytes(now, &less);
            assert!(drain(&mut host).1.iter().any(|event| matches!(event, Event::Reply(_))));
        }
    }
}

/// A target that waits for the rest of a packet swallows what comes: it gets a second without a byte, soon. What it asks
/// for after that it gets at once.
#[test]
fn a_target_that_swallows_gets_time_to_notice() {
    let (mut host, now) = measured();
    host.request(now, 0, search(0x2000)).unwrap();
    drain(&mut host);
    let (mut last, mut longest) = (now, Duration::ZERO);
    while longest < SECOND {
        let at = host.poll_timeout().unwrap();
        host.handle_timeout(at);
        if !drain(&mut host).0.is_empty() {
            longest = longest.max(at - last);
            last = at;
        }
        assert!(last < now + 2 * SECOND, "nothing but repetitions");
    }
    for _ in 0..3 {
        host.handle_bytes(last, &Packet::control(PacketType::Resend, 0).encode_serial());
        assert_eq!(drain(&mut host).0.len(), 1);
    }
}

/// A stop that repeats because of one RESET or break-in too many is acknowledged and otherwise ignored.
#[test]
fn a_repeated_stop_is_one_event() {
    let mut pair = Pair::serial(1);
    pair.attach(5 * SECOND);
    let (stop, now) = (pair.stop.clone(), pair.now);
    pair.target.send(now, Message::StateChange(stop));
    pair.run_for(3 * SECOND);
    assert!(!pair.has(is_stop));
    assert_eq!(pair.read(0x1000, 4), memory(0x1000, 4));
}
