//! Loss, and what else networks do.

use std::time::Duration;

use kd_wire::message::Message;
use kd_wire::message::file_io::{CreateFile, FileIoRequest};
use kd_wire::session::{Event, RequestFailure};

use crate::network::*;

const SECOND: Duration = Duration::from_secs(1);

/// Everything still comes through, and comes through right.
#[test]
fn a_bad_network_only_costs_time() {
    for seed in 1..=60 {
        let mut pair = Pair::kdnet(seed);
        pair.faults = Faults { lose: 10, repeat: 10, reorder: 20, damage: 5 };
        pair.attach(60 * SECOND);
        for index in 0..40u64 {
            let address = 0xffff_8000_0000_0000 + index * 0x100;
            assert_eq!(pair.read(address, 48), memory(address, 48), "seed {seed}, read {index}");
        }
        pair.go();
        assert!(!pair.has(|event| *event == Event::TargetRestarted), "seed {seed}");
    }
}

#[test]
fn a_line_that_damages_bytes_only_costs_time() {
    for seed in 1..=60 {
        let mut pair = Pair::serial(seed);
        pair.faults = Faults { damage: 4, ..Faults::default() };
        pair.attach(120 * SECOND);
        for index in 0..25u64 {
            let address = 0xffff_8000_0000_0000 + index * 0x100;
            assert_eq!(pair.read(address, 48), memory(address, 48), "seed {seed}, read {index}");
        }
        pair.go();
    }
}

/// The reply and its first retransmissions are lost.
#[test]
fn a_lost_reply_comes_in_the_end() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    pair.read(0x1000, 8);
    // The acknowledgement comes, the reply and its first retransmissions do not.
    let next = pair.target_sent.len();
    pair.lose_of_target = (next + 1..next + 4).collect();
    assert_eq!(pair.read(0x2000, 8), memory(0x2000, 8));
    pair.lose_of_target.clear();
    for index in 0..5 {
        assert_eq!(pair.read(0x3000 + index, 8), memory(0x3000 + index, 8));
    }
}

/// The acknowledgement is lost, the reply arrives: that is proof enough.
#[test]
fn a_reply_proves_that_the_request_arrived() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    let executed = pair.executed.len();
    pair.lose_of_target = vec![pair.target_sent.len()];
    assert_eq!(pair.read(0x1000, 8), memory(0x1000, 8));
    pair.run_for(5 * SECOND);
    assert_eq!(pair.executed.len(), executed + 1);
}

/// Nothing is retried for ever.
#[test]
fn a_dead_target_ends_the_request() {
    for mut pair in [Pair::kdnet(1), Pair::serial(1)] {
        pair.attach(5 * SECOND);
        pair.faults.lose = 100;
        let started = pair.now;
        let failed = pair.ask(read(0x1000, 4), 300 * SECOND).unwrap_err();
        assert_eq!(*failed, Event::RequestFailed { reason: RequestFailure::NotAcknowledged });
        assert!(pair.now - started < 60 * SECOND);
        assert!(pair.sent < 100);
    }
}

#[test]
fn a_target_that_never_answers_ends_the_request() {
    for mut pair in [Pair::kdnet(1), Pair::serial(1)] {
        pair.attach(5 * SECOND);
        pair.mute = true;
        let failed = pair.ask(read(0x1000, 4), 300 * SECOND).unwrap_err();
        assert_eq!(*failed, Event::RequestFailed { reason: RequestFailure::NotAnswered });
        assert!(pair.executed.len() <= 6);
        pair.mute = false;
        assert_eq!(pair.read(0x1000, 4), memory(0x1000, 4));
    }
}

/// A target that runs does not acknowledge the second Continue. It is not reported as lost.
#[test]
fn a_lost_acknowledgement_of_continue() {
    for mut pair in [Pair::kdnet(1), Pair::serial(1)] {
        pair.attach(5 * SECOND);
        pair.read(0x1000, 4);
        pair.lose_of_target = vec![pair.target_sent.len()];
        pair.go();
        assert!(!pair.target.is_stopped());
        assert_eq!(pair.executed.len(), 2);
        pair.host.break_in(pair.now);
        assert!(pair.run(5 * SECOND, |pair| pair.has(|event| matches!(event, Event::StateChange(_)))));
        assert_eq!(pair.read(0x2000, 4), memory(0x2000, 4));
    }
}

#[test]
fn prints_come_in_order_and_once() {
    for seed in 1..=20 {
        let mut pair = Pair::kdnet(seed);
        pair.attach(3 * SECOND);
        pair.go();
        pair.faults = Faults { lose: 15, repeat: 15, reorder: 30, damage: 5 };
        let now = pair.now;
        for index in 0..30 {
            pair.target.send(now, print(&index.to_string()));
        }
        pair.run_for(120 * SECOND);
        let texts: Vec<_> = pair
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Print { text, .. } => Some(String::from_utf8_lossy(text).into_owned()),
                _ => None,
            })
            .collect();
        let expected: Vec<_> = (0..30).map(|index| index.to_string()).collect();
        assert_eq!(texts, expected, "seed {seed}");
    }
}

#[test]
fn prompts_and_files_are_answered() {
    for mut pair in [Pair::kdnet(1), Pair::serial(1)] {
        pair.attach(5 * SECOND);
        pair.go();
        let questions =
            [prompt("Break, Ignore (bi)? "), Message::FileIoRequest(FileIoRequest::Create(CreateFile::default()))];
        for (index, question) in questions.into_iter().enumerate() {
            pair.target.send(pair.now, question);
            let answered = pair.run(10 * SECOND, |pair| {
                if let Some(Event::Prompt { text, .. }) = pair.take_event(|event| matches!(event, Event::Prompt { .. }))
                {
                    assert_eq!(&text[..], b"Break, Ignore (bi)? ");
                    pair.host.answer_prompt(pair.now, b"i");
                }
                if let Some(Event::FileIo(request)) = pair.take_event(|event| matches!(event, Event::FileIo(_))) {
                    pair.host.answer_file(pair.now, request.refuse());
                }
                pair.answers.len() > index
            });
            assert!(answered);
        }
        assert_eq!(pair.answers, [&b"i"[..], b"refused"]);
    }
}

/// A print between request and reply arrives before the reply.
#[test]
fn a_print_before_the_reply_is_delivered_first() {
    let mut pair = Pair::serial(1);
    pair.attach(5 * SECOND);
    let now = pair.now;
    pair.host.request(now, 0, read(0x1000, 4)).unwrap();
    pair.run(Duration::from_millis(1), |pair| !pair.executed.is_empty());
    pair.target.send(now, print("Received Unrecognized API"));
    pair.run_for(5 * SECOND);
    let order: Vec<_> =
        pair.events.iter().filter(|event| matches!(event, Event::Print { .. } | Event::Reply(_))).collect();
    assert_eq!(order.len(), 2);
}
