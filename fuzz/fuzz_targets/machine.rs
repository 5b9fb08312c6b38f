//! Whole machines whose memory the input changes here and there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use nt_memory::{Fault, Memory};
use nt_pool::Kernel;
use nt_symbols::Isf;

#[allow(dead_code)] // Each target looks at some of it.
pub(crate) struct Machine {
    symbols: Isf,
    kernel: kd_fake::kernel::Kernel,
    pointer_size: u8,
    /// Pages with something to walk.
    pub(crate) pages: Vec<u64>,
    /// Those of the table of large allocations, and of Verifier's log.
    pub(crate) big_pages: Vec<u64>,
    pub(crate) log: Vec<u64>,
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
    // The variable's own page, and what it points to.
    let table_of = |variable: &str| -> Vec<u64> {
        let Some(symbol) = table.symbols.get(variable) else { return Vec::new() };
        let at = kernel.facts().kernel_base + symbol.address;
        let mut pointer = [0; 8];
        kernel.read_virtual(at, &mut pointer[..width]);
        let first = u64::from_le_bytes(pointer) & !0xfff;
        let pages = (0..4).map(|page| first + page * 0x1000).filter(|page| kernel.read_virtual(*page, &mut [0]) == 1);
        pages.chain([at & !0xfff]).collect()
    };
    let (big_pages, log) = (table_of("PoolBigPageTable"), table_of("VfPoolTraces"));
    Machine { symbols, kernel, pointer_size: width as u8, pages, big_pages, log }
}

thread_local! {
    static MACHINES: LazyLock<Vec<Machine>> =
        LazyLock::new(|| kd_fake::isf::CARRIED.iter().map(|(name, json)| machine(name, json)).collect());
}

/// A machine's memory with bytes of its own over it.
pub(crate) struct Changed<'m> {
    machine: &'m Machine,
    pub(crate) bytes: BTreeMap<u64, u8>,
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

/// Every eight bytes of the input are a place among `pages` and what to write there; the first byte chooses the machine.
pub(crate) fn with(data: &[u8], pages: impl Fn(&Machine) -> &[u64], look: impl Fn(&Kernel<'_>, &Changed<'_>)) {
    let Some((&choice, changes)) = data.split_first() else { return };
    MACHINES.with(|machines| {
        let machine = &machines[usize::from(choice) % machines.len()];
        let pages = pages(machine);
        if pages.is_empty() {
            return;
        }
        let mut bytes = BTreeMap::new();
        for change in changes.chunks_exact(8).take(64) {
            let page = usize::from(u16::from_le_bytes([change[0], change[1]])) % pages.len();
            let at = pages[page] + u64::from(u16::from_le_bytes([change[2], change[3]]) & 0xfff);
            bytes.extend((at..).zip(change[4..].iter().copied()));
        }
        let memory = Changed { machine, bytes };
        let facts = machine.kernel.facts();
        let (symbols, pointer_size) = (&machine.symbols, machine.pointer_size);
        let kernel = Kernel { memory: &memory, symbols, base: facts.kernel_base, pointer_size, build: facts.build };
        look(&kernel, &memory);
    });
}
