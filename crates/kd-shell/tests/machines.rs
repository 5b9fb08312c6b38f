//! x86 (with and without PAE, old pool and segment heap), x64 and ARM64 machines over a live link: what a user sees of each is
//! in its own width, and is what the machine says of itself.

mod target;

use std::collections::{BTreeMap, BTreeSet};

use kd_fake::Machine;
use kd_fake::isf::{CARRIED, Isf};
use kd_fake::kernel::{
    Carrier, Kernel, Residence, SeededOptions, SmallState, Truth, seeded, seeded_identity, write_pdb,
};
use serde_json::Value;
use target::Live;

const SEED: u64 = 7;

/// An address as kd prints it: 8 digits of 32 bits.
fn address(machine: Machine, address: u64) -> String {
    match machine.pointer() {
        4 => format!("{address:08x}"),
        _ => format!("{:08x}`{:08x}", address >> 32, address & 0xffff_ffff),
    }
}

fn number(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("hexadecimal"),
        None => value.as_u64().expect("a number"),
    }
}

#[test]
fn other_processors_are_shown_in_their_own_words() {
    for (name, json) in CARRIED {
        println!("{name}");
        let mut isf = Isf::from_json(json).expect("a table");
        isf.identity = seeded_identity(&isf, SEED);
        let directory = tempfile::tempdir().expect("directory");
        write_pdb(directory.path(), &isf).expect("symbols");
        let (mut kernel, truth) = seeded(&isf, SEED, &SeededOptions::default()).expect("a machine");
        let planted = plant(&mut kernel, isf.machine, &truth);
        let mut live = Live::attach(kernel, directory, |_| {});
        the_machine(&mut live, isf.machine, &truth);
        the_pool(&mut live, isf.machine, &truth);
        the_verifier(&mut live, isf.machine, &truth);
        the_leak(&mut live, &truth);
        the_owner(&mut live, &truth, planted);
        for command in
            ["!verifier", "!verifier 0x40", "!verifier 0x100", "!vm", "!lookaside", "!process 0 0", "!pooltop"]
        {
            let text = live.text(command);
            assert!(!text.contains("cannot") && !text.contains("not in this version"), "{command}\n{text}");
        }
        live.leave();
    }
}

fn the_machine(live: &mut Live, machine: Machine, truth: &Truth) {
    let version = live.text("vertarget");
    let words = match machine {
        Machine::X86 | Machine::X86Pae => "x86 compatible",
        Machine::X64 => "x64",
        Machine::Arm64 => "ARM 64-bit (AArch64)",
    };
    assert!(version.contains(words), "{version}");
    assert!(version.contains(&format!("Kernel base = 0x{}", address(machine, truth.kernel_base))), "{version}");
    let modules = live.text("lm");
    for module in &truth.modules {
        let bounds = [module.base, module.base + module.size].map(|at| address(machine, at)).join(" ");
        assert!(modules.contains(&bounds), "{bounds} is not in\n{modules}");
    }
    let registers = live.text("r");
    let counter = match machine {
        Machine::X86 | Machine::X86Pae => "eip=",
        Machine::X64 => "rip=",
        Machine::Arm64 => "pc=",
    };
    assert!(registers.contains(counter) && registers.contains("nt!DbgBreakPointWithStatus"), "{registers}");
    let stack = live.text("k");
    let frames = ["nt!DbgBreakPointWithStatus", "nt!KiIdleLoop+0x10", "nt!KiSystemStartup+0x20"];
    // Of x64's image there are no unwind tables, without which only the first two are known.
    let frames = if machine == Machine::X64 { &frames[..2] } else { &frames[..] };
    assert!(machine == Machine::X64 || stack.lines().count() == 1 + frames.len(), "{stack}");
    assert!(stack.lines().skip(1).zip(frames).all(|(line, frame)| line.ends_with(frame)), "{stack}");
    // The kernel's first page, by the page tables.
    let tables = live.text("!pte nt");
    assert!(tables.contains("PTE at ") && tables.trim_end().ends_with('V'), "{tables}");
}

fn the_pool(live: &mut Live, machine: Machine, truth: &Truth) {
    let mut sums: BTreeMap<u32, u64> = BTreeMap::new();
    for usage in &truth.tags {
        let sum = sums.entry(usage.tag & 0x7fff_ffff).or_default();
        *sum = sum.wrapping_add(usage.nonpaged.bytes) & if machine.is_x86() { 0xffff_ffff } else { u64::MAX };
    }
    let mut wanted: Vec<u64> = sums.into_values().collect();
    wanted.sort_unstable();
    let used = live.result("!poolused 2");
    let rows = used["tags"].as_array().expect("rows").iter();
    let mut found: Vec<u64> = rows.map(|row| row["nonpaged"]["bytes"].as_u64().expect("bytes")).collect();
    found.sort_unstable();
    assert_eq!(found, wanted);

    let header = 2 * machine.pointer() as u64;
    let leak = |tag: u32| tag & 0x7fff_ffff == u32::from_le_bytes(*b"Leak");
    let small = truth
        .small
        .iter()
        .filter(|block| leak(block.tag) && block.state == SmallState::Live && block.residence != Residence::PagedOut);
    let size = |carrier, size, bytes| if carrier == Carrier::Special { size } else { bytes - header };
    let mut wanted: BTreeSet<(u64, u64)> =
        small.map(|block| (block.address, size(block.carrier, block.size, block.bytes))).collect();
    let large = truth.large.iter().filter(|life| leak(life.tag));
    wanted.extend(large.map(|life| (life.address, life.bytes)));
    // Sessions' blocks are compared in the tests of seeded machines.
    let blocks = live.result("!poolfind Leak -global");
    let blocks = blocks["blocks"].as_array().expect("blocks").iter();
    let found: BTreeSet<(u64, u64)> = blocks.map(|block| (number(&block["address"]), number(&block["size"]))).collect();
    assert_eq!(found, wanted);

    let plain = 2 * machine.pointer();
    for carrier in [Carrier::Page, Carrier::Vs, Carrier::Lfh] {
        let present = |block: &&kd_fake::kernel::SmallBlock| {
            block.state == SmallState::Live && block.residence == Residence::Present && block.carrier == carrier
        };
        let Some(block) = truth.small.iter().find(present) else { continue };
        let page = live.text(&format!("!pool {:x}", block.address));
        let wanted = format!("*{:0plain$x} size: {:4x}", block.header, block.bytes);
        assert!(page.lines().any(|line| line.starts_with(&wanted)), "{wanted} is not in\n{page}");
    }
}

fn the_verifier(live: &mut Live, machine: Machine, truth: &Truth) {
    let log = truth.pool_log.as_ref().expect("the log");
    let newest = &log.records[0];
    let digits = 2 * machine.pointer();
    let text = live.text("!verifier 0x80 1");
    let (block, size, thread) = (newest.address, newest.size, newest.thread);
    let line = format!("Pool block {block:0digits$x}, Size {size:0digits$x}, Thread {thread:0digits$x}");
    assert!(text.contains(&line), "{line} is not in\n{text}");
    for frame in &newest.frames {
        assert!(text.contains(&format!("{frame:0digits$x}")), "{frame:x} is not in\n{text}");
    }
}

fn the_leak(live: &mut Live, truth: &Truth) {
    let file = live.file("mark.json");
    live.text(&format!("!leak mark m Leak -file {file}"));
    let summary = live.result(&format!("!leak check m -file {file}"))["summary"].take();
    let large = truth.large.iter().filter(|life| life.tag & 0x7fff_ffff == u32::from_le_bytes(*b"Leak")).count();
    assert!(summary["still"].as_u64().is_some_and(|still| still >= large as u64), "{large} large ones: {summary}");
    assert_eq!((&summary["freed"], &summary["new"]), (&Value::from(0), &Value::from(0)), "{summary}");
}

/// Puts a tag into a driver's instructions; returns the driver's name and the place.
fn plant(kernel: &mut Kernel, machine: Machine, truth: &Truth) -> (String, u64) {
    let driver = truth.modules.iter().find(|module| module.base != truth.kernel_base).expect("a driver");
    let tag = *b"Zq7x";
    let code = match machine {
        // mov r8d,'x7qZ'
        Machine::X64 => [&[0x41, 0xb8][..], &tag, &[0xc3]].concat(),
        // push 'x7qZ'
        Machine::X86 | Machine::X86Pae => [&[0x68][..], &tag, &[0xc3]].concat(),
        // mov w2,#0x715a; movk w2,#0x7837,lsl #16
        Machine::Arm64 => [0x528e_2b42u32, 0x72af_06e2].map(u32::to_le_bytes).concat(),
    };
    let at = driver.base + 0x600;
    kernel.write_virtual(at, &code);
    let mut written = vec![0; code.len()];
    assert_eq!((kernel.read_virtual(at, &mut written), &written), (code.len(), &code), "the image is not in memory");
    (driver.name.split('.').next().expect("a name").into(), at)
}

fn the_owner(live: &mut Live, truth: &Truth, (name, at): (String, u64)) {
    let owners = live.result("!tagowner Zq7x");
    let places = owners["places"].as_array().expect("places");
    assert_eq!(places.len(), 1, "{owners}");
    assert_eq!(owners["searched"], truth.modules.len(), "{owners}");
    assert_eq!(places[0]["module"], name.as_str(), "{owners}");
    let address = number(&places[0]["address"]);
    assert!((at..at + 8).contains(&address), "{owners}");
    let none = live.text("!tagowner No0n");
    assert!(none.starts_with("No0n is in none of "), "{none}");
}
