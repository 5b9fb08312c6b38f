//! `nt!VfPoolTraces`: ring order, every field, and an address looked for by containment.

use nt_pool::PoolError;
use nt_pool::pool_log::{self, Operation, Trace, Wanted};
use proptest::prelude::*;

use crate::support::*;

/// Size of a record and its number of frames.
fn layout(version: Version) -> (u64, u64) {
    match (version.pointer, version.build) {
        (4, _) => (0x40, 13),
        (_, 22000..) => (0x1a8, 50),
        _ => (0x80, 13),
    }
}

#[derive(Debug)]
struct Log {
    world: World,
    length: u32,
    index: u32,
    address: u64,
    /// Newest last.
    truth: Vec<Trace>,
}

impl Log {
    fn new(version: Version, length: u32, index: u32) -> Self {
        let mut world = World::new(version);
        let (size, frames) = layout(version);
        let pointer = u64::from(version.pointer);
        world.layout(
            "_VF_POOL_TRACE",
            size,
            &[
                field("Address", 0, pointer),
                field("Size", pointer, pointer),
                field("Thread", 2 * pointer, pointer),
                array("StackTrace", 3 * pointer, frames, pointer),
            ],
        );
        let address = world.pool(0);
        world.pointer_variable("VfPoolTraces", address);
        world.u32_variable("VfPoolTracesIndex", index);
        world.u32_variable("VfPoolTracesLength", length);
        world.write(address, &vec![0; (u64::from(length) * size) as usize]);
        Log { world, length, index, address, truth: Vec::new() }
    }

    /// Writes as the kernel does: count, then store.
    fn push(&mut self, address: u64, size: u64, thread: u64, frames: &[u64]) {
        self.index = self.index.wrapping_add(1);
        let (record, _) = layout(self.world.version);
        let at = self.address + u64::from(self.index % self.length) * record;
        let pointer = self.world.version.pointer;
        self.world.write(at, &vec![0; record as usize]);
        for (i, value) in [address, size, thread].iter().chain(frames).enumerate() {
            self.world.put(at + i as u64 * u64::from(pointer), *value, pointer);
        }
        self.truth.push(Trace { sequence: self.index, address, size, thread, frames: frames.to_vec() });
        if self.truth.len() > self.length as usize {
            self.truth.remove(0);
        }
        let index = self.world.address_of("VfPoolTracesIndex");
        self.world.put(index, self.index.into(), 4);
    }

    fn newest_first(&self, wanted: impl Fn(&Trace) -> bool) -> Vec<Trace> {
        self.truth.iter().rev().filter(|trace| wanted(trace)).cloned().collect()
    }
}

/// What a record holds: where its block lies (block number and offset in it), and its stack's depth.
type Entry = (u64, u64, u64, usize);

fn entries(count: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<Entry>> {
    let block = prop_oneof![0..8u64, 0..0x400u64];
    // Small blocks, blocks at a page's end, blocks of many pages, and a size that is only wrong.
    let size = prop_oneof![1..0x400u64, Just(0xfa000), Just(0u64), Just(0x20)];
    prop::collection::vec((block, 0..0x100u64, size, 0..=50usize), count)
}

prop_compose! {
    fn log()(
        version in prop::sample::select(&ALL[..]),
        searches in any::<bool>(),
        power in 3..10u32,
        start in prop_oneof![Just(0u32), Just(u32::MAX - 20), any::<u32>()],
        entries in entries(0..150usize),
    ) -> Log {
        // A log that did not start at 0 has come round many times, and holds whole rounds.
        let length = 1 << power;
        let mut log = Log::new(version, length, start);
        log.world.searches = searches;
        let rounds = if start == 0 { 0 } else { length as usize };
        let fill = (0..rounds).map(|i| (i as u64, 1, 0x10, 1));
        let (_, deepest) = layout(version);
        for (block, unit, size, depth) in fill.chain(entries) {
            let address = log.world.pool(5) + block * 0x1000 + unit * 0x10;
            let frames: Vec<u64> = (0..(depth as u64).min(deepest)).map(|i| log.world.base() + 0x10 + i).collect();
            log.push(address, size, log.world.pool(6), &frames);
        }
        log
    }
}

fn contains(trace: &Trace, address: u64) -> bool {
    trace.address <= address && address < trace.address + trace.size.max(1)
}

proptest! {
    #![proptest_config(cases(192))]

    #[test]
    fn all_records_newest_first(log in log()) {
        let read = pool_log::read(&log.world.kernel(), Wanted::All).unwrap().unwrap();
        prop_assert_eq!((read.length, read.index, read.parsed), (log.length, log.index, log.length));
        prop_assert_eq!(read.traces, log.newest_first(|_| true));
        prop_assert_eq!(read.notes.lines(), Vec::<String>::new());
    }

    #[test]
    fn the_newest_records(log in log(), count in 1..200u32) {
        let read = pool_log::read(&log.world.kernel(), Wanted::Newest(count)).unwrap().unwrap();
        let mut expected = log.newest_first(|_| true);
        expected.truncate(count as usize);
        prop_assert_eq!(read.traces, expected);
        prop_assert_eq!(read.notes.lines(), Vec::<String>::new());
    }

    #[test]
    fn an_address_is_found_by_containment(log in log(), pick in any::<prop::sample::Index>(), offset in 0..0x300u64) {
        let address = match log.truth.get(pick.index(log.truth.len().max(1))) {
            Some(trace) => trace.address + offset.min(trace.size),
            None => log.world.pool(5),
        };
        let read = pool_log::read(&log.world.kernel(), Wanted::Address(address)).unwrap().unwrap();
        prop_assert_eq!(read.traces, log.newest_first(|trace| contains(trace, address)));
        prop_assert_eq!(read.parsed, log.length);

        let found = pool_log::find(&log.world.kernel(), address).unwrap().unwrap();
        // It may have come across others while it looked.
        prop_assert!(found.log.traces.iter().all(|trace| contains(trace, address)));
        prop_assert!(found.log.traces.is_sorted_by_key(|trace| found.log.index.wrapping_sub(trace.sequence)));
        let promised: Vec<_> =
            found.log.traces.into_iter().filter(|trace| found.starts.contains(&trace.address)).collect();
        let expected = log.newest_first(|trace| contains(trace, address) && found.starts.contains(&trace.address));
        prop_assert_eq!(promised, expected);
        prop_assert!(found.starts.start <= address & !0xfff);
        prop_assert!(log.world.searches || found.starts.start == 0);
    }
}

pub(crate) fn check_ordinary(version: Version) {
    let mut log = Log::new(version, 64, 100);
    let (_, frames) = layout(version);
    let stack: Vec<u64> = (0..frames).map(|i| log.world.base() + i).collect();
    for n in 0..64 {
        log.push(log.world.pool(5) + n * 0x100, n, log.world.pool(6), &stack[..n as usize % stack.len() + 1]);
    }
    let read = pool_log::read(&log.world.kernel(), Wanted::All).unwrap().unwrap();
    assert_eq!((read.traces, read.notes.lines()), (log.newest_first(|_| true), vec![]), "{version:?}");
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn records_since_an_index(log in log(), back in 0..200u32, pick in any::<prop::sample::Index>()) {
        let index = log.index.wrapping_sub(back);
        let new = |trace: &Trace| log.index.wrapping_sub(trace.sequence) < back;
        let read = pool_log::read_since(&log.world.kernel(), index).unwrap().unwrap();
        prop_assert_eq!(read.traces, log.newest_first(new));
        prop_assert_eq!(read.notes.lines().is_empty(), back <= log.length);
        let Some(trace) = log.truth.get(pick.index(log.truth.len().max(1))) else { return Ok(()) };
        let address = trace.address;
        let found = pool_log::find_since(&log.world.kernel(), address, index).unwrap().unwrap();
        let promised: Vec<_> =
            found.log.traces.into_iter().filter(|trace| found.starts.contains(&trace.address)).collect();
        let expected =
            log.newest_first(|t| new(t) && contains(t, address) && found.starts.contains(&t.address));
        prop_assert_eq!(promised, expected);
    }
}

/// The article's log: 65,536 records, of which two concern its block.
fn article(version: Version, near: bool) -> (Log, u64) {
    let mut log = Log::new(version, 0x1_0000, 0x1234_0000);
    log.world.searches = true;
    let block = log.world.pool(16);
    let others = if near { log.world.pool(16) + 0x10_0000 } else { log.world.pool(32) };
    for n in 0..0x1_0000u64 {
        let (address, size) = match n {
            0x4000 => (block, 0x1000),
            0xf000 => (block, 0xfa000),
            _ => (others + n % 0x500 * 0x40, 0x40),
        };
        log.push(address, size, log.world.pool(7) + 0x60, &[log.world.base() + 0x2b6, log.world.base() + 0x1d]);
    }
    (log, block)
}

#[test]
fn two_hits_among_65536_cost_little() {
    for version in [WIN7_X64, WIN11_21H2] {
        for near in [false, true] {
            let (log, block) = article(version, near);
            log.world.reset_cost();
            let found = pool_log::find(&log.world.kernel(), block).unwrap().unwrap();
            assert_eq!(found.log.traces, log.newest_first(|trace| contains(trace, block)));
            assert_eq!(found.log.traces.len(), 2);
            let cost = log.world.cost();
            assert!(cost.requests <= 30 && cost.bytes <= 8 << 10, "{version:?} {near}: {cost:?}");
            assert!(found.starts.start <= block - 0x1_0000, "{:x?}", found.starts);
        }
    }
}

#[test]
fn a_second_look_costs_only_what_is_new() {
    for version in [WIN7_X64, WIN11_21H2] {
        let mut log = Log::new(version, 0x1000, 0x1fc0);
        log.world.searches = true;
        let block = log.world.pool(16);
        for n in 0..0x1000 {
            log.push(log.world.pool(32) + n * 0x40, 0x40, log.world.pool(7), &[log.world.base()]);
        }
        log.push(block, 0xfa000, log.world.pool(7), &[log.world.base()]);
        let first = pool_log::find(&log.world.kernel(), block).unwrap().unwrap();
        assert_eq!(first.log.traces.len(), 1);
        // Across the ring's end.
        for n in 0..100u64 {
            let address = if n == 77 { block } else { log.world.pool(32) + n * 0x40 };
            log.push(address, 0x1000, log.world.pool(7), &[log.world.base() + 1]);
        }
        log.world.reset_cost();
        let second = pool_log::find_since(&log.world.kernel(), block, first.log.index).unwrap().unwrap();
        let expected = log.newest_first(|trace| trace.sequence > first.log.index && contains(trace, block));
        assert_eq!((second.log.traces.len(), second.log.traces), (1, expected));
        assert_eq!((second.log.parsed, second.log.notes.lines()), (100, vec![]));
        let cost = log.world.cost();
        assert!(cost.requests <= 10, "{version:?}: {cost:?}");

        let all = pool_log::read_since(&log.world.kernel(), first.log.index).unwrap().unwrap();
        assert_eq!(all.traces, log.newest_first(|trace| trace.sequence > first.log.index));
        let late = pool_log::read_since(&log.world.kernel(), log.index.wrapping_sub(0x1001)).unwrap().unwrap();
        assert_eq!(late.traces.len(), 0x1000);
        assert!(late.notes.lines()[0].starts_with("4097 records were written since"), "{:?}", late.notes.lines());
    }
}

#[test]
fn a_whole_log_is_read_in_full_replies() {
    let (mut log, block) = article(WIN7_X64, true);
    log.world.searches = false;
    log.world.reset_cost();
    pool_log::read(&log.world.kernel(), Wanted::Address(block)).unwrap();
    let cost = log.world.cost();
    let bytes = 0x1_0000 * 0x80u64;
    assert!(cost.requests <= bytes.div_ceil(1296) + 8 && cost.bytes <= bytes + 64, "{cost:?}");
}

#[test]
fn the_newest_records_cost_only_themselves() {
    let (log, _) = article(WIN7_X64, true);
    log.world.reset_cost();
    let read = pool_log::read(&log.world.kernel(), Wanted::Newest(20)).unwrap().unwrap();
    assert_eq!(read.traces.len(), 20);
    let cost = log.world.cost();
    assert!(cost.bytes <= 20 * 0x80 + 0x80, "{cost:?}");
}

#[test]
fn no_log_is_no_error() {
    let mut log = Log::new(WIN7_X64, 16, 0);
    let table = log.world.address_of("VfPoolTraces");
    log.world.put(table, 0, 8);
    assert_eq!(pool_log::read(&log.world.kernel(), Wanted::All).unwrap(), None);
    log.world.forget_symbol("VfPoolTraces");
    assert_eq!(pool_log::read(&log.world.kernel(), Wanted::All).unwrap(), None);
}

#[test]
fn a_length_that_is_no_power_of_two_is_refused() {
    let mut log = Log::new(WIN7_X64, 16, 0);
    let length = log.world.address_of("VfPoolTracesLength");
    for wrong in [0u32, 3, 0x100_0000, u32::MAX] {
        log.world.put(length, wrong.into(), 4);
        let error = pool_log::read(&log.world.kernel(), Wanted::All).unwrap_err();
        assert!(matches!(error, PoolError::Unlikely(_)), "{error}");
    }
}

#[test]
fn a_hole_in_the_log_is_named() {
    let mut log = Log::new(WIN7_X64, 64, u32::MAX);
    for n in 0..64 {
        log.push(log.world.pool(5) + n * 0x1000, 8, 0, &[1]);
    }
    log.world.unmap(log.address);
    let read = pool_log::read(&log.world.kernel(), Wanted::All).unwrap().unwrap();
    assert_eq!(read.traces.len(), 32);
    assert_eq!(
        read.notes.lines(),
        [format!("nt!VfPoolTraces: 0x1000 bytes at {:016x} could not be read", log.address)]
    );
}

#[test]
fn the_stack_tells_the_operation() {
    let operation = |stack: &[&str]| {
        let frames = (0..stack.len() as u64).collect();
        let trace = Trace { sequence: 0, address: 0, size: 0, thread: 0, frames };
        pool_log::operation(&trace, &|frame| Some(stack[frame as usize].to_string()).filter(|s| !s.is_empty()))
    };
    for (stack, expected) in [
        (&["nt!VeAllocatePoolWithTagPriority+0x2b6", "nt!VerifierExAllocatePoolEx+0x1d"][..], Operation::Allocate),
        (&["nt!VfFreePoolNotification+0x4a", "nt!ExDeferredFreePool+0x107b"], Operation::Free),
        (&["nt!VfHandlePoolAlloc+0x40"], Operation::Allocate),
        (&["nt!VfPtFreePoolNotification+0x40"], Operation::Free),
        (&["nt!IovAllocateMdl+0x3d", "VerifierExt!IoAllocateMdl_internal_wrapper+0x35"], Operation::Allocate),
        (&["VerifierExt!ExAllocatePoolWithTag_internal_wrapper+0x35"], Operation::Allocate),
        (
            &["nt!VerifierExAllocatePoolWithTagPriority+0x5d", "ndis!ndisAllocateFromNPagedPool+0x1d"],
            Operation::Allocate,
        ),
        (&["ndis!ndisFreeToNPagedPool+0x39", "ndis!ndisPplFree+0x47"], Operation::Free),
        (&["myfault+0x11f6", "myfault+0x142f"], Operation::Free),
        (&["mydriver!ExAllocatePoolLookalike+0x1", "nt!ExAllocatePoolWithTag+0x20"], Operation::Allocate),
        (&["nt!KiSystemServiceCopyEnd+0x13"], Operation::Unknown),
        (&["", "nt!NtFlushKey+0x142"], Operation::Unknown),
        (&[], Operation::Unknown),
    ] {
        assert_eq!(operation(stack), expected, "{stack:?}");
    }
}

#[test]
fn a_record_by_its_number() {
    let mut log = Log::new(WIN7_X64, 8, 0xffff_fffc);
    assert_eq!(pool_log::record(&log.world.kernel(), 0xffff_fffc).unwrap(), None);
    for n in 0..12 {
        log.push(log.world.pool(3) + n, 0x10, 0, &[1]);
    }
    let kernel = log.world.kernel();
    assert_eq!(pool_log::position(&kernel).unwrap(), Some(pool_log::Position { length: 8, index: 8 }));
    for (sequence, offset) in [(8, Some(11)), (1, Some(4)), (0, None), (9, None), (0xffff_ffff, None)] {
        let found = pool_log::record(&kernel, sequence).unwrap();
        let expected = offset.map(|n| (sequence, log.world.pool(3) + n));
        assert_eq!(found.map(|trace| (trace.sequence, trace.address)), expected);
    }
    log.world.pointer_variable("VfPoolTraces", 0);
    assert_eq!(pool_log::position(&log.world.kernel()).unwrap(), None);
}
