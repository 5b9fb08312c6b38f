#![no_main]

//! Whole machines whose memory the input changes here and there: the pool's and Verifier's structures are walked through
//! damage. The first byte chooses the machine, every eight that follow are a place and what to write there.

use libfuzzer_sys::fuzz_target;
use nt_memory::{Fault, Memory};
use nt_pool::small_blocks::{self, Kinds, Limits};
use nt_pool::verifier::{self, LogKind};
use nt_pool::{Kernel, around, big_pages, lookaside, pool_log, sessions, tags};
use nt_symbols::Isf;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

struct Machine {
    symbols: Isf,
    kernel: kd_fake::kernel::Kernel,
    pointer_size: u8,
    /// Pages with something to walk.
    pages: Vec<u64>,
}

fn machine(name: &str, json: &[u8]) -> Machine {
    let table = kd_fake::isf::Isf::from_json(json).expect("a table");
    let options = kd_fake::kernel::SeededOptions {
        log_length: 0x40,
        big_slots: 0x80,
        operations: 60,
        small_operations: 600,
        ..Default::default()
    };
    let (kernel, truth) = kd_fake::kernel::seeded(&table, 1, &options).expect("a machine");
    let symbols = Isf::parse(name, json.to_vec()).expect("a table");
    let image = table.symbols.values().map(|symbol| kernel.facts().kernel_base + symbol.address);
    let blocks = truth.small.iter().map(|block| block.header);
    let places: BTreeSet<u64> = image.chain(blocks).map(|at| at & !0xfff).collect();
    // What the variables lead to: tables, heaps, lists.
    let width = table.machine.pointer();
    let mut led: BTreeSet<u64> = BTreeSet::new();
    for page in &places {
        let mut bytes = [0; 0x1000];
        kernel.read_virtual(*page, &mut bytes);
        for word in bytes.chunks(width) {
            let mut pointer = [0; 8];
            pointer[..width].copy_from_slice(word);
            let page = u64::from_le_bytes(pointer) & !0xfff;
            if kernel.read_virtual(page, &mut [0]) == 1 {
                led.insert(page);
            }
        }
    }
    let pages = places.union(&led).copied().collect();
    Machine { symbols, kernel, pointer_size: width as u8, pages }
}

thread_local! {
    static MACHINES: LazyLock<Vec<Machine>> =
        LazyLock::new(|| kd_fake::isf::CARRIED.iter().map(|(name, json)| machine(name, json)).collect());
}

/// A machine's memory with bytes of its own over it.
struct Changed<'m> {
    machine: &'m Machine,
    bytes: BTreeMap<u64, u8>,
}

impl Memory for Changed<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let read = self.machine.kernel.read_virtual(address, buffer);
        let end = address.saturating_add(read as u64);
        for (at, byte) in self.bytes.range(address..end) {
            buffer[(at - address) as usize] = *byte;
        }
        Ok(read)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(self.machine.kernel.read_physical(address, buffer))
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, changes)) = data.split_first() else { return };
    MACHINES.with(|machines| {
        let machine = &machines[usize::from(choice) % machines.len()];
        let mut bytes = BTreeMap::new();
        for change in changes.chunks_exact(8).take(64) {
            let page = usize::from(u16::from_le_bytes([change[0], change[1]])) % machine.pages.len();
            let at = machine.pages[page] + u64::from(u16::from_le_bytes([change[2], change[3]]) & 0xfff);
            bytes.extend((at..).zip(change[4..].iter().copied()));
        }
        let memory = Changed { machine, bytes };
        let facts = machine.kernel.facts();
        let (symbols, pointer_size) = (&machine.symbols, machine.pointer_size);
        let kernel = Kernel { memory: &memory, symbols, base: facts.kernel_base, pointer_size, build: facts.build };
        let limits = Limits { bytes: 16 << 20, blocks: 1 << 16, from: 0 };
        let _ = tags::read(&kernel, &|_| true);
        let large = big_pages::read(&kernel, &|_| true);
        let _ = small_blocks::find(&kernel, &|_| true, Kinds::ALL, limits);
        let _ = pool_log::read(&kernel, pool_log::Wanted::All);
        let _ = verifier::settings(&kernel);
        if let Ok(drivers) = verifier::drivers(&kernel) {
            for driver in &drivers.drivers {
                let _ = verifier::allocations(&kernel, driver);
            }
        }
        for kind in [
            LogKind::Faults,
            LogKind::Irql,
            LogKind::ForcedPending,
            LogKind::Irps,
            LogKind::CriticalRegions,
            LogKind::WatchedIrps,
        ] {
            let _ = verifier::log(&kernel, kind, pool_log::Wanted::All);
        }
        let _ = lookaside::all(&kernel);
        for session in sessions::all(&kernel).map_or(Vec::new(), |found| found.sessions) {
            let _ = sessions::tags(&kernel, &session, &|_| true);
            let large = sessions::big_pages(&kernel, &session, &|_| true).map_or(Vec::new(), |found| found.blocks);
            let _ = sessions::small_blocks(&kernel, &session, &|_| true, &large, limits);
        }
        let changed = memory.bytes.keys().take(4).copied();
        let starts = large.iter().flat_map(|large| large.blocks.iter().take(2)).map(|page| page.address);
        for address in changed.chain(starts) {
            let _ = around::read(&kernel, address);
        }
    });
});
