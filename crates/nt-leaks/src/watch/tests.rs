//! Every outcome, by hand.

use super::*;

const MS: u64 = 1000;

/// In use at the mark: 10 blocks of 1,000 bytes, of a tag that frees nothing.
fn start() -> Start {
    Start { outstanding: Some(10), bytes: 10_000, blocks: 10, frees: 0, uptime_ms: 1_000_000, earlier: Vec::new() }
}

/// Bytes and frees at each look, a second apart; allocations are what they come to.
fn looks(watch: &mut Watch, seen: &[(u64, u64)]) {
    for (i, &(bytes, frees)) in seen.iter().enumerate() {
        let grown = (bytes as i64 - watch.start.bytes as i64) / 1000;
        watch.add(Look {
            elapsed_ms: MS * (i as u64 + 1),
            bytes: Some(bytes),
            allocs: Some((grown + frees as i64) as u64),
            frees: Some(frees),
            at_least: 10u64.saturating_sub(frees),
            ..Look::default()
        });
    }
}

fn outcome(terms: Terms, start: Start, seen: &[(u64, u64)]) -> (Outcome, Vec<String>) {
    let mut watch = Watch::new(terms, start, None);
    looks(&mut watch, seen);
    let Verdict { outcome, reasons } = watch.verdict();
    (outcome, reasons.iter().filter(|reason| reason.is_doubt()).map(Reason::to_string).collect())
}

type Row<'r> = (Terms, Start, &'r [(u64, u64)], Outcome, &'r [&'r str]);

#[test]
fn every_outcome() {
    let grows: &[(u64, u64)] = &[(12_000, 0), (14_000, 0), (16_000, 0), (18_000, 0)];
    let old = |frees, outstanding| Start { frees, outstanding: Some(outstanding), ..start() };
    let aged = |ms| Terms { min_age: Some(Duration::from_millis(ms)), ..Terms::default() };
    let plain = Terms::default();
    // What was asked, what was there, what was seen, what it comes to, and why not more.
    let table: &[Row<'_>] = &[
        (plain, start(), grows, Outcome::Confirmed, &[]),
        (plain, start(), &grows[..3], Outcome::Confirmed, &[]),
        (plain, start(), &grows[..2], Outcome::Growing, &["2 checks are too few for a verdict (at least 3)"]),
        (plain, start(), &[], Outcome::Unknown, &["no check was made"]),
        // What a survey saw is told, and is no verdict.
        (
            plain,
            Start { earlier: vec![(3000, 4000), (1000, 8000)], ..start() },
            &[],
            Outcome::Unknown,
            &["no check was made"],
        ),
        (plain, start(), &[(10_000, 0); 3], Outcome::Stable, &[]),
        (plain, start(), &[(12_000, 0), (9_000, 3)], Outcome::Shrinking, &[]),
        (
            plain,
            start(),
            &[(10_000, 0), (10_000, 0), (12_000, 0), (12_000, 0), (14_000, 0)],
            Outcome::Growing,
            &["it grew in 2 of 5 intervals only: longer ones tell more"],
        ),
        (
            plain,
            start(),
            &[(14_000, 0), (12_000, 2), (16_000, 2), (20_000, 2)],
            Outcome::Growing,
            &["in between it fell by 2.0 KB"],
        ),
        (
            plain,
            start(),
            &[(90_000, 0), (91_000, 0), (92_000, 0)],
            Outcome::Growing,
            &["nearly all of the growth came at once"],
        ),
        (
            plain,
            start(),
            &[(12_000, 5), (14_000, 10), (16_000, 15)],
            Outcome::Growing,
            &["of 21 allocations since the mark, or others, 15 were freed: what stays is not proved"],
        ),
        // A few frees are of others that use the tag.
        (plain, start(), &[(17_000, 0), (24_000, 0), (31_000, 1)], Outcome::Confirmed, &[]),
        (
            plain,
            start(),
            &[(12_000, 0), (14_000, 0), (16_000, 1)],
            Outcome::Growing,
            &["it grew by no more than a tag that is allocated and freed as often as this one may by chance"],
        ),
        (aged(4001), start(), grows, Outcome::Growing, &["no survivor is older than 4.0 s: 4.0 s were asked for"]),
        (aged(4000), start(), grows, Outcome::Confirmed, &[]),
        // 10 in use, 100 freed in 1,000 s: one lives for 100 s, and some for longer.
        (
            plain,
            old(100, 10),
            grows,
            Outcome::Growing,
            &["its blocks may live for 5 min and be freed then; it was watched for 4.0 s"],
        ),
        // Who gives an age knows the tag; and a tag that keeps half of what it allocates has no usual life.
        (aged(1000), old(100, 10), grows, Outcome::Confirmed, &[]),
        (plain, old(10, 10), grows, Outcome::Confirmed, &[]),
        // 40 frees were to be expected in 4 s.
        (
            aged(1000),
            old(10_000, 10),
            grows,
            Outcome::Growing,
            &["it grew by no more than a tag that is allocated and freed as often as this one may by chance"],
        ),
        // A tag that had nothing: what the first check saw stays.
        (plain, Start { outstanding: Some(0), bytes: 0, blocks: 0, ..start() }, grows, Outcome::Confirmed, &[]),
    ];
    for (terms, start, seen, wanted, doubts) in table {
        let (found, told) = outcome(*terms, start.clone(), seen);
        assert_eq!((found, told), (*wanted, doubts.iter().map(ToString::to_string).collect()), "{seen:?}");
    }
}

/// It breathed before the mark: that it grew since is one of its breaths.
#[test]
fn looks_before_the_mark_count() {
    let breathed = Start { earlier: vec![(3000, 9_000), (2000, 19_000), (1000, 8_000)], ..start() };
    let grows = [(12_000, 0), (14_000, 0), (16_000, 0)];
    assert_eq!(outcome(Terms::default(), breathed, &grows).0, Outcome::Growing);
    let grew = Start { earlier: vec![(3000, 4_000), (2000, 6_000), (1000, 8_000)], ..start() };
    assert_eq!(outcome(Terms::default(), grew, &grows).0, Outcome::Confirmed);
}

#[test]
fn what_cannot_be_counted_has_no_verdict() {
    let mut watch = Watch::new(Terms::default(), start(), None);
    watch.add(Look { elapsed_ms: 1000, ..Look::default() });
    assert_eq!(watch.verdict(), Verdict { outcome: Outcome::Unknown, reasons: vec![Reason::NotCounted] });
}

/// Counters that cannot be compared: the blocks that are proved to be there decide.
#[test]
fn without_counters_blocks_prove_it() {
    let watch = |at_least| {
        let mut watch = Watch::new(Terms::default(), start(), None);
        for i in 1..=3 {
            let (elapsed_ms, bytes) = (MS * i, Some(10_000 + 1000 * i));
            watch.add(Look { elapsed_ms, bytes, at_least, ..Look::default() });
        }
        watch.verdict().outcome
    };
    assert_eq!((watch(9), watch(8), watch(0)), (Outcome::Confirmed, Outcome::Growing, Outcome::Growing));
}

/// Half of a tag's blocks come and go, and one place keeps all that it allocates.
#[test]
fn a_stack_that_keeps_all_is_found_among_others() {
    let stack = |n: u64| {
        let frame = crate::Frame { address: n, module: Some("driver".into()), offset: n, symbol: None };
        crate::Stacks::default().add(vec![frame])
    };
    let (leak, other) = (stack(1), stack(2));
    let watch = |loses: bool| {
        let mut watch = Watch::new(Terms::default(), Start { outstanding: Some(4), ..start() }, None);
        for i in 1..=4u64 {
            let mut kept: BTreeSet<u64> = (0..2 * i).collect();
            if loses && i == 3 {
                kept.remove(&1);
            }
            let passing = BTreeSet::from([100 + i]);
            watch.add(Look {
                elapsed_ms: MS * i,
                bytes: Some(10_000 + 2000 * i),
                allocs: Some(12 * i),
                frees: Some(10 * i),
                listed: [(Some(leak), kept), (Some(other), passing)].into(),
                ..Look::default()
            });
        }
        watch.verdict()
    };
    let found = watch(false);
    assert_eq!(found.outcome, Outcome::Confirmed, "{found:?}");
    assert!(found.reasons.contains(&Reason::StackKeeps { stack: leak, blocks: 6 }), "{found:?}");
    assert_eq!(watch(true).outcome, Outcome::Growing);
}

#[test]
fn when_it_ends() {
    let seconds = Duration::from_secs;
    let grown = |terms| {
        let mut watch = Watch::new(terms, start(), None);
        looks(&mut watch, &[(12_000, 0), (14_000, 0), (16_000, 0)]);
        watch
    };
    let over = |terms, ran| grown(terms).is_over(seconds(ran));
    assert!(!over(Terms { times: Some(4), ..Terms::default() }, 1000));
    assert!(over(Terms { times: Some(3), ..Terms::default() }, 1));
    assert!(over(Terms { run_for: Some(seconds(5)), ..Terms::default() }, 5));
    assert!(!over(Terms { run_for: Some(seconds(5)), ..Terms::default() }, 4));
    assert!(over(Terms { until_confirmed: true, ..Terms::default() }, 0));
    // Where nobody says when, it ends when it knows.
    let looks_of = |seen: &[(u64, u64)]| {
        let mut watch = Watch::new(Terms::default(), start(), None);
        (1..30).find(|n| {
            looks(&mut watch, &seen[n - 1..*n]);
            watch.is_over(seconds(1000))
        })
    };
    let grows: Vec<(u64, u64)> = (0..30).map(|i| (12_000 + 1000 * i, 0)).collect();
    let breathes: Vec<(u64, u64)> = (0..30).map(|i| (12_000 + 5000 * (i % 2), 3 * i)).collect();
    assert_eq!(looks_of(&grows), Some(LOOKS_OF_A_LEAK));
    assert_eq!(looks_of(&breathes), Some(MOST_LOOKS));
    assert_eq!(looks_of(&[(10_000, 0); 30]), Some(LOOKS_WITHOUT));
}

#[test]
fn the_next_look_comes_when_it_should() {
    let look = |bytes, log: Option<(u32, u64)>| Look {
        bytes: Some(bytes),
        log: log.map(|(written, ran)| LogGain { written, length: 1000, ran: Duration::from_millis(ran) }),
        ..Look::default()
    };
    let after = |watch: &Watch| watch.next_interval().after.as_millis();
    let mut watch = Watch::new(Terms::default(), start(), None);
    assert_eq!(after(&watch), 1000);
    let mut seen = Vec::new();
    for bytes in [10_000, 10_000, 11_000, 11_000, 11_000, 11_000, 11_000, 11_000] {
        watch.add(look(bytes, None));
        seen.push(after(&watch));
    }
    assert_eq!(seen, [2000, 4000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);

    // Who says how long is obeyed, unless the log would come round.
    let every = Terms { every: Some(Duration::from_secs(10)), ..Terms::default() };
    let mut watch = Watch::new(every, start(), None);
    watch.add(look(10_000, Some((400, 10_000))));
    assert_eq!((after(&watch), watch.next_interval().log), (10_000, None));
    watch.add(look(10_000, Some((2000, 10_000))));
    assert_eq!(after(&watch), 2500);
    assert_eq!(watch.next_interval().log.map(|log| log.written), Some(2000));
    watch.add(look(10_000, Some((1, 2500))));
    assert_eq!((after(&watch), watch.next_interval().log), (2500, None));
    watch.add(look(10_000, Some((u32::MAX, 1))));
    assert_eq!(after(&watch), 100, "no stop follows on another at once");
    let at_once = Terms { every: Some(Duration::ZERO), ..Terms::default() };
    assert_eq!(after(&Watch::new(at_once, start(), None)), 100);
}

/// One free more than allocations: a processor was stopped in between.
#[test]
fn counters_are_subtracted_in_their_own_width() {
    let counters = |allocs, frees| crate::Counters { allocs, frees, bytes: 0 };
    assert_eq!(counters(5, 6).outstanding(Some(32)), -1);
    assert_eq!(counters(5, 6).outstanding(None), -1);
    assert_eq!(counters(2, u64::from(u32::MAX)).outstanding(Some(32)), 3);
    assert_eq!(counters(1 << 40, 1).outstanding(Some(64)), (1 << 40) - 1);
    assert_eq!(counters(1 << 40, 1).outstanding(None), (1 << 40) - 1);
}

#[test]
fn how_long_it_lasts() {
    let mut watch = Watch::new(Terms::default(), start(), Some(60_000));
    looks(&mut watch, &[(11_000, 0)]);
    assert_eq!((watch.rate(), watch.exhausted()), (60_000.0, Some(1.0)));
}
