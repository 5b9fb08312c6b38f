//! The host's session against an independent peer, over a wire that does its worst: every placing of a few faults among
//! the packets of a whole session, and seeds at length.
//!
//! The peer (peer.rs) is written from the documents of real stubs and shares nothing with the session. What is checked
//! is what counts: a read gives the target's bytes or an error, within ten seconds; and once the session says that the
//! target runs, it runs.

#![allow(clippy::unwrap_used)]

mod peer;
mod wire;

use std::time::Duration;

use peer::Rules;
use wire::{Fault, Line, Run};

/// Runs the session with these faults; returns how many packets there were to spoil.
fn check(rules: Rules, faults: &[(usize, Fault)]) -> usize {
    let mut run = Run::new(rules, faults.to_vec());
    match run.session() {
        Ok(()) => run.packets(),
        Err(why) => {
            let mut again = Run::new(rules, faults.to_vec()).told();
            let _ = again.session();
            panic!("{rules:?} {faults:?}: {why}\n{}", again.story())
        }
    }
}

/// Every placing of up to `depth` more faults behind the last.
fn explore(rules: Rules, faults: &mut Vec<(usize, Fault)>, kinds: &[Fault], depth: usize, runs: &mut u64) {
    let packets = check(rules, faults);
    *runs += 1;
    if depth == 0 {
        return;
    }
    let first = faults.last().map_or(0, |(packet, _)| packet + 1);
    for packet in first..packets {
        for kind in kinds {
            faults.push((packet, *kind));
            explore(rules, faults, kinds, depth - 1, runs);
            faults.pop();
        }
    }
}

const STREAM: [Fault; 6] = [Fault::Lost, Fault::Twice, Fault::Payload, Fault::Id, Fault::BreakIn, Fault::Reset];
const DATAGRAM: [Fault; 5] = [Fault::Lost, Fault::Twice, Fault::Late, Fault::Payload, Fault::BreakIn];

#[test]
fn every_pair_of_faults() {
    let mut runs = 0;
    explore(Rules::Microsoft, &mut Vec::new(), &STREAM, 2, &mut runs);
    explore(Rules::ReactOs, &mut Vec::new(), &STREAM[..5], 2, &mut runs);
    explore(Rules::Kdnet2, &mut Vec::new(), &DATAGRAM, 2, &mut runs);
    explore(Rules::Kdnet4, &mut Vec::new(), &DATAGRAM, 2, &mut runs);
    println!("{runs} sessions");
    assert!(runs > 5000, "{runs}");
}

/// Losses alone go one deeper.
#[test]
fn every_three_losses() {
    let mut runs = 0;
    for rules in [Rules::Microsoft, Rules::ReactOs, Rules::Kdnet2, Rules::Kdnet4] {
        explore(rules, &mut Vec::new(), &[Fault::Lost], 3, &mut runs);
    }
    println!("{runs} sessions");
    assert!(runs > 1000, "{runs}");
}

/// By seeds: the rates of a bad wire, all at once. `KDPOOL_MODEL_SEEDS=100000` for long.
#[test]
fn seeds_at_length() {
    let seeds = std::env::var("KDPOOL_MODEL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(500u64);
    for rules in [Rules::Microsoft, Rules::ReactOs, Rules::Kdnet2, Rules::Kdnet4] {
        let kinds: &[Fault] = if rules.is_stream() { &STREAM[..5] } else { &DATAGRAM };
        for seed in 0..seeds {
            let faults = wire::random_faults(seed, kinds);
            check(rules, &faults);
        }
    }
}

/// Most of what is long comes damaged: it is asked for in pieces, under ids that fit, and each piece is right.
#[test]
fn long_reads_that_come_damaged() {
    let mut shortened = 0;
    for rules in [Rules::Microsoft, Rules::ReactOs] {
        for seed in 0..1000 {
            // On a line that loses and damages other packets too, or on one that does not.
            let mut faults = wire::random_faults(seed, &STREAM[..5]);
            faults.truncate(if seed % 2 == 0 { 0 } else { 6 });
            let mut run = Run::new(rules, faults.clone());
            run.damage = (70, seed);
            let ended = run.session();
            assert!(ended.is_ok(), "{rules:?}, seed {seed}: {ended:?}");
            shortened += run.shortened;
        }
    }
    println!("{shortened} reads were done without");
    assert!(shortened > 100, "{shortened}");
}

/// The time that one fault costs is a few round trips, not a second: the wire of the model takes a millisecond.
#[test]
fn one_loss_costs_little() {
    for rules in [Rules::Microsoft, Rules::ReactOs, Rules::Kdnet2, Rules::Kdnet4] {
        let mut run = Run::new(rules, Vec::new());
        run.session().unwrap();
        let (clean, packets) = (run.frozen(), run.packets());
        for packet in 0..packets {
            let mut run = Run::new(rules, vec![(packet, Fault::Lost)]);
            run.session().unwrap();
            let cost = run.frozen().saturating_sub(clean);
            assert!(cost < Duration::from_millis(600), "{rules:?}, packet {packet}: {cost:?}");
        }
    }
}

/// Nothing covers a header: each of its bits is flipped in each packet of a stream, alone and with one of the next packets
/// lost. A length that promises more than comes makes either end wait for it.
#[test]
fn every_bit_of_every_header() {
    const HEADER: usize = 16 * 8;
    let (mut longest, mut runs) = (Duration::ZERO, 0);
    for rules in [Rules::Microsoft, Rules::ReactOs] {
        let packets = check(rules, &[]);
        for (packet, bit) in (0..packets).flat_map(|packet| (0..HEADER).map(move |bit| (packet, bit))) {
            let flipped = (packet, Fault::Bit(bit));
            let mut run = Run::new(rules, vec![flipped]);
            if run.session().is_err() {
                check(rules, &[flipped]);
            }
            let frozen = run.frozen();
            assert!(frozen < Duration::from_secs(3), "{rules:?} {flipped:?}: {frozen:?}");
            longest = longest.max(run.frozen());
            for lost in packet + 1..packet + 6 {
                check(rules, &[flipped, (lost, Fault::Lost)]);
                runs += 1;
            }
        }
    }
    println!("{runs} sessions; the target stood for {longest:?} at most after one flipped bit");
    assert!(runs > 10_000, "{runs}");
}

/// With one packet of a hundred lost, reads keep at least 60 % of their rate on every carrier. In the model's time, so that
/// nothing but the session decides.
#[test]
fn one_percent_of_loss_leaves_most_of_the_rate() {
    const READS: u64 = 800;
    let fast = Line { transit: Duration::from_micros(100), byte: Duration::ZERO, baud: None };
    let slow = Line { transit: Duration::from_micros(200), byte: Duration::from_nanos(86_806), baud: Some(115_200) };
    for (name, rules, line, count, least) in [
        ("KDNET, Windows 8.1", Rules::Kdnet2, fast, 1300, 60),
        ("KDNET, Windows 10", Rules::Kdnet4, fast, 1300, 60),
        ("socket or TCP, Windows", Rules::Microsoft, fast, 3900, 60),
        ("socket or TCP, ReactOS", Rules::ReactOs, fast, 3900, 60),
        ("line of 115200 baud", Rules::Microsoft, slow, 3900, 90),
        ("the same behind TCP", Rules::Microsoft, Line { baud: None, ..slow }, 3900, 90),
    ] {
        let clean = Run::reads(rules, line, READS, count, 0, 0);
        let lossy: Vec<Duration> = (1..=5).map(|seed| Run::reads(rules, line, READS, count, 10, seed)).collect();
        let share = |lossy: Duration| clean.as_nanos() * 100 / lossy.as_nanos();
        let all = share(lossy.iter().sum::<Duration>() / 5);
        let (best, worst) = (lossy.iter().min().copied().map(share), lossy.iter().max().copied().map(share));
        println!("{name}: {:?} a read; at 1 % loss {all} % of the rate, {worst:?} to {best:?}", clean / READS as u32);
        assert!(all >= least, "{name}: {lossy:?}");
    }
}
