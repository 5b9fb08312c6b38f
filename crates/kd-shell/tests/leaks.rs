//! `!leak` on a live fake target whose pool changes while it runs, over a serial line on TCP.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use kd_fake::isf::Isf;
use kd_fake::kernel::{
    self, Article, Carrier, FREE_STACK, FREEING_THREAD, Kernel, LEAK_BYTES, LEAK_STACK, LEAK_TAG, LEAK_THREAD,
    Mutation, PoolKind, Residence, SeededOptions, SmallBlock, SmallState,
};
use serde_json::Value;
use target::{Live, Screen, session};

mod target;

/// The stack of another place in the driver.
fn other_stack() -> Vec<u64> {
    let mut stack = LEAK_STACK.to_vec();
    stack[2] += 0x40;
    stack
}

fn leak(kernel: &mut Kernel) -> u64 {
    kernel.allocate_large(LEAK_TAG, LEAK_BYTES, PoolKind::Paged, &LEAK_STACK, LEAK_THREAD).unwrap()
}

const FREED: u64 = 0xffff_f8a0_06a0_0000;
const REUSED: u64 = 0xffff_f8a0_0620_0000;
const STILL: u64 = 0xffff_f8a0_0580_0000;

/// One block freed, one freed and allocated again elsewhere in the driver, two new.
fn change(live: &Live) -> [u64; 2] {
    live.fake.with_kernel(|kernel| {
        let new = [leak(kernel), leak(kernel)];
        kernel.free_large(FREED, &FREE_STACK, FREEING_THREAD).unwrap();
        kernel.free_large(REUSED, &FREE_STACK, FREEING_THREAD).unwrap();
        let again =
            kernel.allocate_large_at(REUSED, LEAK_TAG, LEAK_BYTES, PoolKind::Paged, &other_stack(), LEAK_THREAD);
        assert_eq!(again, Some(REUSED));
        new
    })
}

fn block(result: &Value, address: u64) -> &Value {
    let address = format!("{address:#x}");
    result["blocks"].as_array().unwrap().iter().find(|block| block["address"] == address.as_str()).unwrap()
}

#[test]
fn a_mark_and_a_check() {
    let mut live = Live::article();
    let file = live.file("m1.json");
    let text = live.text(&format!("!leak mark m1 Leak -file {file}"));
    assert!(text.starts_with("Mark m1: 23 blocks of Leak, 23552000 bytes\n"), "{text}");

    live.text("g");
    let new = change(&live);
    live.text(".sleep 0n50; .break");
    let checked = live.json("!leak check m1");
    let result = &checked["result"];
    assert_eq!(checked["ok"], true, "{checked}");
    assert_eq!(result["mark"], "m1");
    assert_eq!(result["summary"], serde_json::json!({"still": 21, "freed": 1, "reused": 1, "new": 2, "unknown": 0}));
    assert_eq!(result["log_wrapped"], false);
    assert!(result["elapsed_ms"].as_u64().is_some_and(|ms| ms >= 40), "{}", result["elapsed_ms"]);
    for (address, verdict, evidence) in [
        (FREED, "freed", "log"),
        (REUSED, "reused", "log"),
        (STILL, "still", "counters"),
        (new[0], "new", "log"),
        (new[1], "new", "log"),
    ] {
        let block = block(result, address);
        assert_eq!(block["verdict"], verdict, "{block}");
        assert!(block["evidence"].as_array().unwrap().iter().any(|word| word == evidence), "{block}");
        assert_eq!(block["tag"], "Leak");
        assert!(block["stack"].as_str().unwrap().starts_with("BackTrace"));
    }
    assert_ne!(block(result, REUSED)["stack"], block(result, STILL)["stack"]);
    let stacks = result["stacks"].as_array().unwrap();
    assert_eq!(stacks.len(), 2);
    // 23 + 2 - 1 - 1 by the leak's stack, one by the other.
    let growth = |stack: &Value| (stack["count"].clone(), stack["delta_count"].clone(), stack["delta_bytes"].clone());
    assert_eq!(growth(&stacks[0]), (1.into(), 1.into(), 0xfa000.into()));
    assert_eq!(growth(&stacks[1]), (23.into(), 0.into(), 0.into()));
    assert_eq!(stacks[1]["frames"][2]["symbol"], "myfault+0x11f6");

    // The same from the file, as another process does it.
    live.shell.session = session(&live.directory);
    let again = live.json(&format!("!leak check m1 -file {file}"));
    assert_eq!(again["result"]["blocks"], result["blocks"]);
    assert_eq!(again["result"]["stacks"], result["stacks"]);

    let (html, svg, folded) = (live.file("r.html"), live.file("r.svg"), live.file("r.folded"));
    let text = live.text(&format!("!leak check m1 -d -html {html} -svg {svg} -folded {folded}"));
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.starts_with("+ 1024000 (1024000 - 0) 1 allocs BackTrace")).unwrap();
    assert!(lines[at + 1].starts_with("+ 1 (1 - 0) BackTrace") && lines[at + 1].ends_with(" allocations"));
    assert_eq!(lines[at + 2], "\tmyfault+0x1236");
    assert!(lines.contains(&"Total increase == 1024000"), "{text}");
    let folded = fs::read_to_string(folded).unwrap();
    assert!(folded.contains(";myfault+0x11f6;nt!VerifierExAllocatePoolEx+0x1d;"), "{folded}");
    assert!(folded.lines().any(|line| line.ends_with(" 23552000")), "{folded}");
    let svg = fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("<title>myfault+0x11f6: 23552000"));
    let html = fs::read_to_string(html).unwrap();
    assert!(
        html.starts_with("<!DOCTYPE html>")
            && html.contains("fffff8a006200000")
            && !html.contains("http://www.w3.org/1999")
    );
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    live.leave();
}

/// Who freed it, newest first.
#[test]
fn the_history_of_a_freed_block() {
    let mut live = Live::article();
    live.fake.with_kernel(|kernel| kernel.free_large(STILL, &FREE_STACK, FREEING_THREAD)).unwrap();
    live.text("g; .sleep 0n20; .break");
    let freed = live.json(&format!("!leak freed {STILL:x}"));
    let result = &freed["result"];
    assert_eq!(result["state"], "free", "{freed}");
    let operations: Vec<&str> =
        result["history"].as_array().unwrap().iter().map(|entry| entry["operation"].as_str().unwrap()).collect();
    assert_eq!(operations, ["free", "allocate", "free"]);
    assert_eq!(result["history"][0]["frames"][1]["symbol"], "nt!ExDeferredFreePool+0x107b");
    assert_eq!(result["history"][1]["frames"][2]["symbol"], "myfault+0x11f6");
    live.leave();
}

#[test]
fn setup_says_what_is_covered() {
    let mut live = Live::article();
    assert_eq!(live.json("!leak setup myfault.sys")["result"]["covered"], true);
    let other = live.json("!leak setup ntfs");
    assert_eq!(other["result"]["covered"], false);
    assert_eq!(other["result"]["commands"][0]["command"], "verifier /volatile /flags 0x8 /adddriver ntfs.sys");
    assert!(live.text("!leak setup ntfs.sys").contains("the verifier does not verify this driver"));
    live.leave();
}

#[test]
fn a_restart_voids_the_mark_and_bad_files_are_named() {
    let mut live = Live::article();
    let file = live.file("m.json");
    live.text(&format!("!leak mark m Leak -file {file}"));
    let good = fs::read_to_string(&file).unwrap();
    let error = |live: &mut Live, text: &str| {
        let path = live.file("bad.json");
        fs::write(&path, text).unwrap();
        live.run(&format!("!leak check m -file {path}")).0.errors
    };
    assert!(error(&mut live, &good[..good.len() / 2]).contains("truncated"));
    assert!(error(&mut live, "").contains("truncated"));
    assert!(
        error(&mut live, &good.replacen("0xfffff8a006a00000", "0xfffff8a006a00001", 1)).contains("changed or damaged")
    );
    assert!(error(&mut live, &good.replacen("\"version\":2", "\"version\":99", 1)).contains("newer kdpool"));
    assert!(error(&mut live, "{\"format\":\"x\",\"version\":1}").contains("no mark of kdpool"));
    assert!(error(&mut live, "[]").contains("no mark of kdpool"));
    assert!(live.run("!leak check nobody").0.errors.contains("there is no mark nobody"));
    assert_eq!(live.result("!leak check")["mark"], "m", "the last mark, where none is named");

    // Nothing is left of it after a restart, however alike the machine looks.
    live.text("g");
    live.fake.reboot();
    live.text(".sleep 0n2000; .break");
    let errors = live.run("!leak check m").0.errors;
    assert!(errors.contains("restarted since the mark"), "{errors}");
    live.leave();
}

#[test]
fn a_watch_confirms_a_leak() {
    let mut live = Live::article_with(|options| {
        let mut since = Duration::ZERO;
        options.evolve = Some(Box::new(move |kernel, passed| {
            since += passed;
            while since >= Duration::from_millis(100) {
                since -= Duration::from_millis(100);
                leak(kernel);
            }
        }));
    });
    let watched = live.json("!leak watch Leak -every 300ms -times 4");
    let result = &watched["result"];
    assert_eq!(watched["ok"], true, "{watched}");
    assert_eq!(result["outcome"], "confirmed", "{}", result["reasons"]);
    assert_eq!(result["checks"].as_array().unwrap().len(), 4);
    assert_eq!(result["last"]["summary"]["still"], result["at_mark"]["blocks"]);
    assert_eq!(result["last"]["summary"]["unknown"], 0);
    assert!(result["last"]["summary"]["new"].as_u64().is_some_and(|new| new >= 8), "{}", result["last"]["summary"]);
    assert_eq!(result["target"], "running");
    assert!(result["bytes_per_minute"].as_f64().is_some_and(|rate| rate > 1e8));
    let text = live.text("!leak watch Leak -every 200ms -until-confirmed -times 20");
    assert!(text.contains("myfault.sys+0x11f6 leaks ") && text.contains(", confirmed by "), "{text}");

    // Ctrl+C ends it with the target running, and what was seen is shown.
    let interrupt = live.interrupt.clone();
    let presser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(900));
        interrupt.raise();
    });
    let watched = live.json("!leak watch Leak -every 300ms");
    presser.join().unwrap();
    assert_eq!((&watched["ok"], &watched["result"]["target"]), (&true.into(), &"running".into()), "{watched}");
    assert!(!watched["result"]["checks"].as_array().unwrap().is_empty());
    assert_eq!(live.shell.prompt(), None);
    live.leave();
}

/// A table of which nothing can be read has no blocks to remember: no mark is saved that says there were none.
#[test]
fn a_mark_whose_table_cannot_be_read_is_refused() {
    let mut live = Live::article();
    let mut number = |expression: &str| {
        let text = live.text(&format!("? {expression}"));
        let digits = text.trim_end().rsplit(" = ").next().unwrap().replace('`', "");
        u64::from_str_radix(&digits, 16).unwrap()
    };
    let (table, slots) = (number("poi(nt!PoolBigPageTable)"), number("poi(nt!PoolBigPageTableSize)"));
    live.text("g");
    live.fake.with_kernel(|kernel| {
        (table & !0xfff..table + slots * 0x18).step_by(0x1000).for_each(|page| kernel.page_out(page));
    });
    live.text(".break");
    let file = live.file("none.json");
    let (screen, failed, _) = live.run(&format!("!leak mark none CM31 -file {file}"));
    assert!(failed && screen.errors.starts_with("there is nothing to mark: "), "{}{}", screen.text, screen.errors);
    assert!(!std::path::Path::new(&file).exists() && !screen.text.contains("Mark none"), "{}", screen.text);
    // A watch of it has nothing to go by either.
    let (screen, failed, _) = live.run("!leak watch CM31 -every 100ms -times 3");
    assert!(failed && screen.errors.starts_with("there is nothing to mark: "), "{}{}", screen.text, screen.errors);
    // The verifier's own list has every block of its drivers, as the counters confirm: that is a mark.
    live.text(".break");
    let text = live.text(&format!("!leak mark some Leak -file {file}"));
    assert!(text.starts_with("Mark some: 23 blocks of Leak, 23552000 bytes\n"), "{text}");
    live.leave();
}

#[test]
fn a_watch_whose_target_restarts_or_is_stable() {
    let mut live = Live::article();
    let watched = live.json("!leak watch Leak -every 100ms -times 3");
    assert_eq!(watched["result"]["outcome"], "stable");
    live.text(".break");
    std::thread::scope(|scope| {
        let fake = &live.fake;
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(1500));
            fake.reset();
        });
        let mut screen = Screen::default();
        live.shell.execute("!leak watch Leak -every 400ms -times 30", &mut screen);
        assert!(screen.errors.contains("restarted since the mark"), "{}", screen.errors);
        assert!(screen.text.contains(" 23 still "), "{}", screen.text);
        assert!(screen.text.ends_with("The target is running.\n"), "{}", screen.text);
    });
    live.leave();
}

/// A machine with a log of 65,536 records and 23 blocks of a verified driver, and how to go on with it.
struct Leaky {
    live: Live,
    build: u16,
    tag: u32,
    leak: Vec<u64>,
    other: Vec<u64>,
    free: Vec<u64>,
}

impl Leaky {
    fn new(isf: &mut Isf) -> Leaky {
        isf.identity = kernel::seeded_identity(isf, 5);
        let options =
            SeededOptions { log_length: 0x10000, operations: 600, small_operations: 200, ..SeededOptions::default() };
        let (mut kernel, truth) = kernel::seeded(isf, 5, &options).unwrap();
        let log = kernel.pool_log();
        // The longest stack there is; on Windows 11 a reply does not carry four of them.
        let allocations = log.iter().filter(|record| !record.free);
        let leak = allocations.clone().max_by_key(|record| record.frames.len()).unwrap().frames.clone();
        let mut others = allocations.filter(|record| record.frames.iter().all(|frame| !leak[2..6].contains(frame)));
        let other = others.next().unwrap().frames.clone();
        let free = log.iter().find(|record| record.free).unwrap().frames.clone();
        // A tag that the kernel counts, and that has no block.
        let has_no_block = |tag: u32| {
            let mut used = truth.large.iter().map(|life| life.tag).chain(truth.small.iter().map(|small| small.tag));
            tag.to_le_bytes().iter().all(u8::is_ascii_alphanumeric) && used.all(|used| used != tag)
        };
        let tag = truth.tags.iter().map(|usage| usage.tag).find(|tag| has_no_block(*tag)).unwrap();
        for _ in 0..23 {
            kernel.allocate_large(tag, LEAK_BYTES, PoolKind::Paged, &leak, LEAK_THREAD).unwrap();
        }
        let directory = tempfile::TempDir::new().unwrap();
        kernel::write_pdb(directory.path(), isf).unwrap();
        // As KDNET carries it.
        let live = Live::attach(kernel, directory, |options| options.max_data = Some(1352));
        Leaky { live, build: truth.build, tag, leak, other, free }
    }

    /// 100 records: `new` allocations of the tag, `again` blocks of the mark freed and allocated again, and others'.
    fn operate(&mut self, new: usize, again: usize) {
        let Leaky { live, leak, other, free, tag, .. } = self;
        let tag = *tag;
        live.text("g");
        live.fake.with_kernel(|kernel| {
            let marked: Vec<u64> = kernel.large().filter(|life| life.tag == tag).map(|life| life.address).collect();
            for _ in 0..(100 - new - 2 * again) / 2 {
                let place = kernel.allocate_large(SCRATCH, 0x3000, PoolKind::NonPaged, other, 1).unwrap();
                kernel.free_large(place, free, FREEING_THREAD).unwrap();
            }
            for &address in &marked[..again] {
                kernel.free_large(address, free, FREEING_THREAD).unwrap();
                let kind = PoolKind::Paged;
                kernel.allocate_large_at(address, tag, LEAK_BYTES, kind, leak, LEAK_THREAD).unwrap();
            }
            for _ in 0..new {
                kernel.allocate_large(tag, LEAK_BYTES, PoolKind::Paged, leak, LEAK_THREAD).unwrap();
            }
        });
        live.text(".break");
    }
}

const SCRATCH: u32 = u32::from_le_bytes(*b"TcpB");

/// After 100 records in a log of 65,536, of 13 frames and of 50: at most 64 KB, and a watch's stops are short. (40
/// requests and no more: `a_check_costs_little`. The tag tables here are so full that one may have to be read whole.)
#[test]
fn what_a_check_and_a_stop_cost() {
    let number = |cost: &Value, name: &str| cost[name].as_u64().unwrap();
    println!("{:<8}{:>6}{:>7}{:>10}{:>8}", "build", "new", "again", "requests", "bytes");
    let is_long = |isf: &Isf| isf.size("_VF_POOL_TRACE").unwrap() > 0x80;
    let is_first = |isf: &Isf| !isf.symbols.contains_key("ExpPoolQuotaCookie");
    for mut isf in target::tables().into_iter().filter(|isf| is_long(isf) || is_first(isf)) {
        let mut leaky = Leaky::new(&mut isf);
        let tag = String::from_utf8(leaky.tag.to_le_bytes().to_vec()).unwrap();
        for (new, again) in [(0, 0), (6, 0), (0, 2)] {
            let file = leaky.live.file("m.json");
            let marked = leaky.live.result(&format!("!leak mark m {tag} -file {file}"));
            let blocks = marked["blocks"].as_u64().unwrap();
            leaky.operate(new, again);
            let checked = leaky.live.json("!leak check m");
            let (new, again) = (new as u64, again as u64);
            let summary = serde_json::json!(
                {"still": blocks - again, "freed": 0, "reused": again, "new": new, "unknown": 0}
            );
            let what = format!("{}: {}", leaky.build, checked["result"]["summary"]);
            assert_eq!(checked["result"]["summary"], summary, "{what}");
            let (requests, bytes) = (number(&checked["cost"], "requests"), number(&checked["cost"], "bytes_read"));
            println!("{:<8}{new:>6}{again:>7}{requests:>10}{bytes:>8}", leaky.build);
            assert!(requests <= 64 && bytes <= 64 << 10, "{what}: {requests} requests, {bytes} bytes");
            // A block whose record was read in part has all of its stack, and so the same as the others.
            assert_eq!(marked["with_stack"], blocks, "{what}: {marked}");
            assert_eq!(checked["result"]["stacks"].as_array().unwrap().len(), 1, "{what}");
            assert_eq!(checked["result"]["unattributed"], Value::Null, "{what}");
        }
        let watched = leaky.live.json(&format!("!leak watch {tag} -every 100ms -times 2"));
        for stop in watched["result"]["checks"].as_array().unwrap() {
            // 0.25 ms from a request to its reply, and 1 Gbit/s.
            let modelled = number(stop, "requests") as f64 * 0.25 + number(stop, "bytes_read") as f64 / 100_000.0;
            assert!(modelled < 50.0, "{stop}");
        }
        leaky.live.leave();
    }
}

/// Where the log has no record: the caller from the verifier's list, and why.
#[test]
fn a_stack_that_the_log_does_not_hold() {
    let mut live = Live::with_articles_symbols(Article { log_length: 0x40 }.build(), |_| {});
    let file = live.file("m.json");
    let text = live.text(&format!("!leak mark m Leak -file {file}"));
    assert!(text.contains("The verifier's log has the call stacks of 0 of them."), "{text}");
    let marked = live.result(&format!("!leak mark m Leak -file {file}"));
    assert_eq!((&marked["with_caller"], &marked["with_stack"]), (&23.into(), &0.into()));
    live.text("g; .sleep 0n20; .break");
    let checked = live.json("!leak check m");
    let blocks = checked["result"]["blocks"].as_array().unwrap();
    let from = |word: &str| blocks.iter().filter(|block| block["stack_from"] == word).count();
    assert_eq!((from("verifier"), from("log")), (23, 0), "{checked}");
    for block in blocks {
        assert_eq!(block["no_stack"], "wrapped", "{block}");
    }
    let text = live.text("!leak check m");
    assert!(text.contains("(the caller only; not in the log: the log has come round since)"), "{text}");
    live.leave();
}

/// Code that nobody watches frees one block and allocates it again: which one it was is not known of the others.
fn silent_reuse(kernel: &mut Kernel, address: u64, tag: u32) {
    kernel.free_large(address, &[], FREEING_THREAD).unwrap();
    kernel.allocate_large_at(address, tag, LEAK_BYTES, PoolKind::Paged, &[], LEAK_THREAD).unwrap();
}

/// Weak evidence is named where nothing else is there, and decides nothing.
#[test]
fn contents_are_weak_evidence() {
    let mut live = Live::article();
    let file = live.file("m.json");
    let silent = u32::from_le_bytes(*b"Mute");
    let blocks: Vec<u64> = live.fake.with_kernel(|kernel| {
        let mut block = || kernel.allocate_large(silent, LEAK_BYTES, PoolKind::Paged, &[], LEAK_THREAD).unwrap();
        vec![block(), block(), block()]
    });
    live.text(&format!("!leak mark m Mute -file {file}"));
    live.text("g");
    live.fake.with_kernel(|kernel| {
        silent_reuse(kernel, blocks[1], silent);
        // Its owner writes to it.
        assert_eq!(kernel.write_virtual(blocks[2], &[0x5a; 64]), 64);
    });
    live.text(".break");
    let checked = live.json("!leak check m");
    let seen = |address| {
        let block = block(&checked["result"], address);
        (block["verdict"].clone(), block["evidence"].clone())
    };
    assert_eq!(seen(blocks[0]), ("unknown".into(), serde_json::json!(["content", "address"])), "{checked}");
    // The fake target's new block looks otherwise.
    assert_eq!(seen(blocks[1]), ("unknown".into(), serde_json::json!(["address"])), "{checked}");
    assert_eq!(seen(blocks[2]), ("unknown".into(), serde_json::json!(["address"])), "{checked}");
    live.leave();
}

/// The pool header of a small block, on every kernel.
#[test]
fn headers_are_weak_evidence() {
    for mut isf in target::tables() {
        // A tag with a small block that can be read, and not many more: not every machine has one.
        let machine = (9..40).find_map(|seed| {
            isf.identity = kernel::seeded_identity(&isf, seed);
            let (kernel, truth) = kernel::seeded(&isf, seed, &SeededOptions::default()).unwrap();
            let of_tag = |tag: u32| truth.small.iter().filter(|block| block.tag == tag).count();
            let good = |block: &&SmallBlock| {
                (block.state, block.residence) == (SmallState::Live, Residence::Present)
                    && block.carrier != Carrier::Special
                    && (2..100).contains(&of_tag(block.tag))
            };
            let &SmallBlock { address, tag, .. } = truth.small.iter().find(good)?;
            Some((kernel, truth, address, tag))
        });
        let (mut kernel, truth, address, tag) = machine.expect("a machine with such a block");
        let large = kernel.allocate_large(tag, LEAK_BYTES, PoolKind::Paged, &[], LEAK_THREAD).unwrap();
        let directory = tempfile::TempDir::new().unwrap();
        kernel::write_pdb(directory.path(), &isf).unwrap();
        let mut live = Live::attach(kernel, directory, |_| {});
        let file = live.file("m.json");
        let name = String::from_utf8_lossy(&tag.to_le_bytes()).into_owned();
        let marked = live.result(&format!("!leak mark m '{name}' -small -file {file}"));
        live.text("g");
        live.fake.with_kernel(|kernel| silent_reuse(kernel, large, tag));
        live.text(".break");
        let checked = live.json("!leak check m");
        let block = block(&checked["result"], address);
        assert_eq!(block["verdict"], "unknown", "{}: {marked} {block}", truth.build);
        println!("{} {name} {}", truth.build, block["evidence"]);
        assert!(block["evidence"].as_array().unwrap().contains(&"header".into()), "{}: {block}", truth.build);
        live.leave();
    }
}

/// A machine whose pool breaks a rule, so that a book does not balance: nothing is concluded of the blocks that the book is
/// of, and why is said. On the machine as it should be the same blocks are there still.
#[test]
fn where_the_books_do_not_balance_there_is_no_verdict() {
    let (_, json) = kd_fake::isf::CARRIED.into_iter().find(|(name, _)| *name == "x64-26100").unwrap();
    let mut isf = Isf::from_json(json).unwrap();
    isf.identity = kernel::seeded_identity(&isf, 3);
    let rules = [
        None,
        Some(Mutation::LfhFreeCount),
        Some(Mutation::VsPreviousSize),
        Some(Mutation::HeaderSize),
        Some(Mutation::BigPageBytes),
    ];
    for mutation in rules {
        let options = SeededOptions { balanced: true, mutation, ..SeededOptions::default() };
        let (kernel, truth) = kernel::seeded(&isf, 3, &options).unwrap();
        // What the verifier tracks has books of its own.
        let tracked = truth.verifier_drivers.iter().flat_map(|driver| &driver.allocations);
        let tracked: BTreeSet<u64> = tracked.map(|block| block.address).collect();
        let small = truth.small.iter().map(|block| block.address).filter(|address| !tracked.contains(address));
        let small: BTreeSet<String> = small.map(|address| format!("{address:#x}")).collect();
        let large: BTreeSet<String> = truth.large.iter().map(|block| format!("{:#x}", block.address)).collect();
        let directory = tempfile::TempDir::new().unwrap();
        kernel::write_pdb(directory.path(), &isf).unwrap();
        let mut live = Live::attach(kernel, directory, |_| {});
        let file = live.file("m.json");
        let marked = live.json(&format!("!leak mark m -all -file {file}"));
        live.text("g");
        live.text(".break");
        let checked = live.json("!leak check m");
        let summary = &checked["result"]["summary"];
        let said = |answer: &Value| {
            let warnings = answer["warnings"].as_array().unwrap();
            warnings.iter().any(|warning| warning.as_str().unwrap().contains("their books do not balance"))
        };
        println!("{mutation:?}: {summary} {}", marked["warnings"]);
        let blocks = checked["result"]["blocks"].as_array().unwrap();
        // Of small blocks, or of large ones.
        let of = if mutation == Some(Mutation::BigPageBytes) { &large } else { &small };
        let about = |block: &&Value| of.contains(block["address"].as_str().unwrap());
        let judged = blocks.iter().filter(about).filter(|block| block["verdict"] != "unknown").count();
        match mutation {
            None => assert!(judged > 0 && !said(&marked) && !said(&checked), "{summary} {marked}"),
            Some(mutation) => {
                assert!(said(&marked) || said(&checked), "{mutation}: {} {}", marked["warnings"], checked["warnings"]);
                assert_eq!(judged, 0, "{mutation}: {summary}");
            }
        }
        live.leave();
    }
}

/// A mark of all pool lists the small blocks that somebody has, on every kernel: page by page, in subsegments of both
/// kinds, and in special pool.
#[test]
fn small_blocks_are_marked() {
    for mut isf in target::tables() {
        isf.identity = kernel::seeded_identity(&isf, 11);
        let options = SeededOptions { small_operations: 2_000, ..SeededOptions::default() };
        let (kernel, truth) = kernel::seeded(&isf, 11, &options).unwrap();
        let directory = tempfile::TempDir::new().unwrap();
        kernel::write_pdb(directory.path(), &isf).unwrap();
        let mut live = Live::attach(kernel, directory, |_| {});
        let file = live.file("m.json");
        let marked = live.json(&format!("!leak mark m -all -file {file}"));
        let saved: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let number = |value: &Value| u64::from_str_radix(&value.as_str().unwrap()[2..], 16).unwrap();
        let listed: BTreeMap<u64, &Value> = saved["body"]["snapshot"]["blocks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|block| (number(&block["address"]), block))
            .collect();
        let (mut found, mut wrong) = (BTreeMap::new(), Vec::new());
        for small in &truth.small {
            match (small.state, listed.get(&small.address)) {
                (SmallState::Live, Some(block)) => {
                    let tag = block["tag"].as_u64().unwrap() as u32;
                    if (tag ^ small.tag) & 0x7fff_ffff != 0 {
                        wrong.push((small, "another tag"));
                    }
                    *found.entry(format!("{:?}", small.carrier)).or_insert(0) += 1;
                }
                (SmallState::Live, None) if small.residence == Residence::Present && small.process.is_none() => {
                    wrong.push((small, "missing"))
                }
                (SmallState::Free, Some(_)) => wrong.push((small, "free")),
                _ => {}
            }
        }
        println!("{}: {found:?} {}", truth.build, marked["result"]["small_complete"]);
        assert!(wrong.is_empty(), "{}: {} of {}: {:?}", truth.build, wrong.len(), truth.small.len(), wrong[0]);
        let carriers: Vec<&str> = found.keys().map(String::as_str).collect();
        match truth.build {
            0..=17134 => assert!(carriers.contains(&"Page"), "{carriers:?}"),
            // A later pool is one of heaps.
            _ => assert!(carriers.contains(&"Lfh") && carriers.contains(&"Vs"), "{carriers:?}"),
        }
        // Nothing has happened since.
        live.text("g; .sleep 0n20; .break");
        let checked = live.json("!leak check m");
        let summary = &checked["result"]["summary"];
        assert_eq!((&summary["freed"], &summary["reused"], &summary["new"]), (&0.into(), &0.into(), &0.into()));
        println!("{}: {summary}", truth.build);
        live.leave();
    }
}
