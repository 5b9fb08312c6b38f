//! The demonstration's machines: still until they begin, then leaking, with books that agree.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod host;
#[allow(dead_code)]
#[path = "seeded/reader.rs"]
mod reader;
#[allow(dead_code)]
#[path = "seeded/small.rs"]
mod small;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use host::Host;
use kd_fake::kernel::{Demo, DemoWindows, LEAK_BYTES, LEAK_STACK, LEAK_TAG, PoolKind, SmallState, Truth, demo};
use kd_fake::{FakeOptions, FakeTarget, FakeTransport};
use reader::Reader;

const ALL: [DemoWindows; 3] = [DemoWindows::Seven, DemoWindows::Ten, DemoWindows::Eleven];
const TICK: Duration = Duration::from_millis(10);

fn key(text: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*text)
}

/// Blocks and bytes of a tag, nonpaged and paged, as the blocks are and as the counters say.
fn books(truth: &Truth, tag: u32) -> [[(u64, u64); 2]; 2] {
    let mut blocks = [(0, 0); 2];
    let mut count = |kind, bytes| {
        let (number, sum): &mut (u64, u64) = &mut blocks[usize::from(kind == PoolKind::Paged)];
        (*number, *sum) = (*number + 1, *sum + bytes);
    };
    for life in truth.large.iter().filter(|life| life.tag == tag) {
        count(life.kind, life.bytes.next_multiple_of(0x1000));
    }
    for block in truth.small.iter().filter(|block| block.tag == tag && block.state == SmallState::Live) {
        count(block.kind, block.bytes);
    }
    let usage = truth.tags.iter().find(|usage| usage.tag == tag);
    let counted = usage.map_or([(0, 0); 2], |usage| {
        [usage.nonpaged, usage.paged].map(|usage| (usage.allocs.wrapping_sub(usage.frees), usage.bytes))
    });
    [blocks, counted]
}

#[test]
fn nothing_happens_before_it_begins_and_then_the_books_agree() {
    for windows in ALL {
        let Demo { mut kernel, symbols, mut activity, begin, .. } = demo(windows).unwrap();
        let before = serde_json::to_string(&kernel.truth()).unwrap();
        for _ in 0..20 {
            activity(&mut kernel, TICK);
        }
        assert_eq!(serde_json::to_string(&kernel.truth()).unwrap(), before, "{windows:?}");
        let leaked = |truth: &Truth| truth.large.iter().filter(|life| life.tag == LEAK_TAG).count();
        let small = |truth: &Truth| truth.small.iter().filter(|block| block.tag == key(b"LkSm")).count();
        assert_eq!(leaked(&kernel.truth()), 23);
        // Whoever asks for a tag at the first prompt finds it.
        assert_eq!(small(&kernel.truth()), if symbols.is_some() { 20 } else { 0 });

        begin.now();
        let mut outstanding = BTreeMap::new();
        for tick in 0..300 {
            activity(&mut kernel, TICK);
            if tick % 60 == 0 {
                let truth = kernel.truth();
                for tag in [LEAK_TAG, key(b"TcpB"), key(b"LkSm")] {
                    let [blocks, counted] = books(&truth, tag);
                    assert_eq!(blocks, counted, "{windows:?} {tag:#x}");
                }
                outstanding.insert(tick, books(&truth, key(b"TcpB"))[0][0].0);
            }
        }
        let truth = kernel.truth();
        assert_eq!(leaked(&truth), 33, "a block each 300 ms");
        assert!(outstanding.values().all(|blocks| (1..20).contains(blocks)), "{outstanding:?}");
        assert_eq!(small(&truth), if symbols.is_some() { 80 } else { 0 });

        // The log's newest record of each leaked block is its allocation, and its driver has it in its books.
        let records = &truth.pool_log.as_ref().unwrap().records;
        let driver = truth.verifier_drivers.iter().find(|driver| driver.name == "myfault.sys").unwrap();
        let (base, _) = driver.image.unwrap();
        for life in truth.large.iter().filter(|life| life.tag == LEAK_TAG) {
            let record = records.iter().find(|record| record.address == life.address).unwrap();
            assert!(!record.free && record.size == LEAK_BYTES && record.frames[2] == base + 0x11f6);
            assert!(driver.allocations.iter().any(|block| block.address == life.address && block.tag == LEAK_TAG));
        }
        assert_eq!(driver.allocations.len(), 33);
        if let Some(isf) = &symbols {
            small::compare(&Reader { kernel: &kernel, isf }, &truth);
        }
    }
}

fn start(windows: DemoWindows) -> (FakeTarget, Host, Demo) {
    let Demo { kernel, symbols, call, activity, begin } = demo(windows).unwrap();
    begin.now();
    let (call, period) = (call.0, Duration::from_millis(30));
    let mut options = FakeOptions::new(FakeTransport::TcpListen(SocketAddr::from(([127, 0, 0, 1], 0))), kernel);
    options.break_in_silence = Duration::from_millis(50);
    options.clock_tick = Duration::from_millis(1);
    options.call = Some((call, period));
    options.evolve = Some(activity);
    let target = FakeTarget::start(options).unwrap();
    let stream = TcpStream::connect(target.address().unwrap()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    // The same once more, for its symbols and addresses.
    let twin = demo(windows).unwrap();
    (target, Host::serial(stream), Demo { symbols, ..twin })
}

#[test]
fn breakpoints_and_the_tag_are_hit_on_the_way_to_the_leak() {
    for windows in ALL {
        let (target, mut host, demo) = start(windows);
        let truth = demo.kernel.truth();
        host.break_in();
        let stop = host.stop();
        let driver = truth.modules.iter().find(|module| module.name == "myfault.sys").unwrap();
        let leak = driver.base + 0x11c0;
        assert_eq!(host.request(0x3134, &[(16, leak)], &[]).status, 0);
        host.leave(&stop);
        let hit = host.stop();
        assert_eq!((hit.code, hit.pc), (0x8000_0003, leak), "{windows:?}");
        // The stop took the breakpoint out.

        let symbol = |name| match &demo.symbols {
            Some(isf) => demo.kernel.facts().kernel_base + isf.symbol(name).unwrap(),
            None if name == "PoolHitTag" => 0xffff_f800_015f_7018,
            None => 0xffff_f800_0144_6fc0,
        };
        let tag = symbol("PoolHitTag");
        target.with_kernel(|kernel| kernel.write_virtual(tag, &LEAK_TAG.to_le_bytes()));
        host.tell(0x313c, &[(16, 0x0001_0002), (24, 0x400), (32, 1)], &[]);
        let hit = host.stop();
        // Inside the allocator, which returns into the verifier.
        assert_eq!((hit.code, hit.pc), (0x8000_0003, symbol("ExAllocatePoolWithTag") + 1), "{windows:?}");
        target.with_kernel(|kernel| kernel.write_virtual(tag, &[0; 4]));
        if demo.symbols.is_none() {
            let stack = host.request(0x3132, &[], &[]).data;
            let rsp = host::u64_at(&stack, 0x98);
            let returns = host::u64_at(&host.read(rsp, 8).data, 0);
            assert!(returns < LEAK_STACK[0] && returns > LEAK_STACK[0] - 0x2b6);
        }
        host.set_pc(hit.pc + 1);
        host.tell(0x313c, &[(16, 0x0001_0002), (24, 0x400), (32, 1)], &[]);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!target.stats().halted, "the tag is not asked for any more");
    }
}
