//! Whole machines whose memory the input changes here and there: the pool's and Verifier's structures are walked through
//! damage.
//!
//! The first byte chooses the machine, the second the question (one for each input: a fuzzer learns more from many quick
//! answers than from few slow ones), every eight that follow are a place and what to write there.

use nt_pool::find::{Bounds, Question, Quote, Silent};
use nt_pool::selfcheck::SelfCheck;
use nt_pool::small_blocks::{self, Kinds, Limits};
use nt_pool::verifier::{self, LogKind};
use nt_pool::tag_owner::{self, LoadedImage};
use nt_pool::{Kernel, Tag, around, bug_check, freed, lookaside, pool_log, pool_page, sessions, special_page, tags, unloaded};

use crate::machine::{self, Changed, Places};

/// How many questions there are.
pub const QUESTIONS: u8 = 13;

/// As much as a walk may read and keep here: every kind of block comes within it, and each page takes some
/// 20 us. Whoever walks for real sets limits of his own.
const LIMITS: Limits = Limits { bytes: 1 << 20, blocks: 1 << 12, from: 0 };

const LOGS: [LogKind; 6] = [
    LogKind::Faults,
    LogKind::Irql,
    LogKind::ForcedPending,
    LogKind::Irps,
    LogKind::CriticalRegions,
    LogKind::WatchedIrps,
];

/// One input.
pub fn run(data: &[u8]) {
    let [choice, question, changes @ ..] = data else { return };
    let mut input = vec![*choice];
    input.extend_from_slice(changes);
    machine::with(&input, Places::All, |kernel, memory| ask(kernel, memory, *question % QUESTIONS));
}

fn ask(kernel: &Kernel<'_>, memory: &Changed<'_>, question: u8) {
    match question {
        0 => {
            let _ = tags::read(kernel, &|_| true);
            let _ = tags::read_one(kernel, Tag(*b"Leak"));
        }
        1 => {
            let blocks = small_blocks::find(kernel, &|_| true, Kinds::ALL, LIMITS);
            if let Ok(blocks) = blocks {
                for block in blocks.blocks.iter().take(2) {
                    let _ = small_blocks::process(kernel, block);
                }
            }
        }
        2 => {
            let _ = small_blocks::find_tag(kernel, Tag(*b"Leak"), Kinds::ALL, LIMITS);
        }
        3 => find(kernel, "*"),
        4 => find(kernel, "Leak"),
        5 => {
            let _ = pool_log::read(kernel, pool_log::Wanted::All);
            for kind in LOGS {
                let _ = verifier::log(kernel, kind, pool_log::Wanted::All);
            }
        }
        6 => books(kernel),
        7 => {
            let _ = lookaside::all(kernel);
            let _ = lookaside::per_processor(kernel, None);
        }
        8 => of_sessions(kernel),
        9 => {
            for address in memory.bytes.keys().take(2) {
                let _ = around::read(kernel, *address);
                let _ = around::single_bit_errors(kernel, *address);
                if let Ok(mut page) = pool_page::read(kernel, *address) {
                    let _ = freed::tell(kernel, None, &mut page.blocks);
                }
                let _ = special_page::read(kernel, *address);
                let _ = lookaside::read(kernel, *address);
            }
        }
        10 => check_itself(kernel),
        11 => owners(kernel, memory),
        _ => {
            if let Ok(mut drivers) = unloaded::drivers(kernel) {
                for address in memory.bytes.keys().take(2) {
                    let _ = drivers.at(kernel, *address);
                }
                for driver in drivers.drivers.iter().take(4) {
                    let _ = driver.name(kernel);
                }
            }
        }
    }
}

fn find(kernel: &Kernel<'_>, pattern: &str) {
    let Ok(pattern) = pattern.parse::<nt_pool::TagPattern>() else { return };
    let mut question = Question::new(pattern);
    (question.free, question.process) = (true, false);
    let bounds = Bounds { bytes: LIMITS.bytes, budget: None };
    if let Ok(quote) = Quote::new(kernel, question, kernel.memory.spent())
        && let Ok(found) = quote.run(kernel, bounds, &mut Silent)
    {
        assert!(found.blocks.len() <= 2 * LIMITS.blocks + 0x1000);
    }
}

/// A step at a time, as a session does it that lets the target run between.
fn check_itself(kernel: &Kernel<'_>) {
    let mut check = SelfCheck::new(100);
    for _ in 0..2000 {
        if !check.step(kernel).is_ok_and(|more| more) {
            let _ = (check.state().name(), check.spent(), check.readings.lines());
            for part in &check.parts {
                let _ = (part.subject.name(), part.state(), part.is_sound(), part.damaged());
            }
            return;
        }
    }
    panic!("a self-check of 100 requests did not end");
}

/// Which images hold a tag; and what a bug check about such an address means.
fn owners(kernel: &Kernel<'_>, memory: &Changed<'_>) {
    let images: Vec<LoadedImage<'_>> = [0, 0x1_0000, 0x20_0000]
        .map(|offset| LoadedImage { base: kernel.base.wrapping_add(offset), size: 0x8000, file: None })
        .into();
    for machine in [0x14c, 0x8664, 0xaa64] {
        let _ = tag_owner::owners(kernel, machine, Tag(*b"Leak"), &images);
    }
    for (address, code) in memory.bytes.iter().take(8) {
        let parameters = [*address, u64::from(*code), address >> 8, 0];
        for code in [u32::from(*code), 0x19, 0xc2, 0xc4, 0xc5] {
            let _ = bug_check::describe(code, parameters);
        }
    }
}

fn books(kernel: &Kernel<'_>) {
    let settings = verifier::settings(kernel);
    let Ok(drivers) = verifier::drivers(kernel) else { return };
    if let Ok(settings) = &settings {
        for level in [0x9bb, 0xffff_ffff] {
            let _ = (verifier::flags(level, kernel.build).len(), verifier::flags_windows_7(level).len());
        }
        let _ = verifier::check_counters(settings, &drivers.drivers);
    }
    for driver in &drivers.drivers {
        if let Ok(tracked) = verifier::allocations(kernel, driver) {
            let _ = verifier::check(kernel, driver, &tracked);
        }
    }
}

fn of_sessions(kernel: &Kernel<'_>) {
    for session in sessions::all(kernel).map_or(Vec::new(), |found| found.sessions).iter().take(4) {
        let _ = sessions::tags(kernel, session, &|_| true);
        let large = sessions::big_pages(kernel, session, &|_| true).map_or(Vec::new(), |found| found.blocks);
        let _ = sessions::small_blocks(kernel, session, &|_| true, &large, LIMITS);
    }
}
