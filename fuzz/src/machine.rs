//! Whole machines whose memory the input changes here and there.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kd_fake::isf::CARRIED;
use nt_memory::{Fault, Memory, Search};
use nt_pool::Kernel;
use nt_symbols::{Enumeration, Isf, Layout, Symbol, SymbolFile, SymbolKind};

/// A symbol table that is asked the same again and again: each answer is looked up once. What the tables themselves do
/// with a damaged file is the business of other targets.
struct Known {
    table: Isf,
    symbols: Mutex<HashMap<String, Option<Symbol>>>,
    layouts: Mutex<HashMap<String, Option<Arc<Layout>>>>,
}

fn once<T: Clone>(known: &Mutex<HashMap<String, T>>, name: &str, find: impl FnOnce() -> T) -> T {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    match known.get(name) {
        Some(found) => found.clone(),
        None => known.entry(name.to_owned()).or_insert_with(find).clone(),
    }
}

impl SymbolFile for Known {
    fn kind(&self) -> SymbolKind {
        self.table.kind()
    }

    fn path(&self) -> &Path {
        self.table.path()
    }

    fn symbol(&self, name: &str) -> Option<Symbol> {
        once(&self.symbols, name, || self.table.symbol(name))
    }

    fn around(&self, rva: u32) -> (Option<Symbol>, Option<Symbol>) {
        self.table.around(rva)
    }

    fn matching(&self, pattern: &str) -> Vec<Symbol> {
        self.table.matching(pattern)
    }

    fn layout(&self, type_name: &str) -> Option<Arc<Layout>> {
        once(&self.layouts, type_name, || self.table.layout(type_name))
    }

    fn enumeration(&self, enum_name: &str) -> Option<Arc<Enumeration>> {
        self.table.enumeration(enum_name)
    }
}

/// Where changes are made.
#[derive(Clone, Copy)]
pub(crate) enum Places {
    /// Everything that there is to walk.
    All,
    /// The table of large allocations.
    BigPages,
    /// Verifier's log.
    Log,
}

pub(crate) struct Machine {
    symbols: Known,
    kernel: kd_fake::kernel::Kernel,
    pointer_size: u8,
    all: Vec<u64>,
    big_pages: Vec<u64>,
    log: Vec<u64>,
}

/// As small as a machine can be that still has everything: what is walked for each input costs time.
fn machine(name: &str, json: &[u8]) -> Machine {
    let table = kd_fake::isf::Isf::from_json(json).expect("a table");
    let options = kd_fake::kernel::SeededOptions {
        log_length: 0x20,
        big_slots: 0x40,
        operations: 40,
        small_operations: 1500,
        processors: Some(2),
        private_pool: true,
        ..Default::default()
    };
    let (kernel, truth) = kd_fake::kernel::seeded(&table, 1, &options).expect("a machine");
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
    let all = places.union(&led).copied().collect();
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
    let symbols = Known {
        table: Isf::parse(name, json.to_vec()).expect("a table"),
        symbols: Mutex::default(),
        layouts: Mutex::default(),
    };
    Machine { symbols, kernel, pointer_size: width as u8, all, big_pages, log }
}

thread_local! {
    /// Each is built when an input first asks for it.
    static MACHINES: [OnceCell<Machine>; CARRIED.len()] = const { [const { OnceCell::new() }; CARRIED.len()] };
}

/// A machine's memory with bytes of its own over it.
pub(crate) struct Changed<'m> {
    machine: &'m Machine,
    pub(crate) bytes: BTreeMap<u64, u8>,
    /// Whether the target's stub searches by itself.
    searches: bool,
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

    /// The target's own search does not see the changes: it may find what a read does not, and the other way round.
    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        if !self.searches {
            return Ok(Search::Unsupported);
        }
        Ok(self.machine.kernel.search(address, length, pattern).map_or(Search::NotFound, Search::Found))
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(self.machine.kernel.read_physical(address, buffer))
    }
}

/// The first byte chooses the machine, and whether it searches by itself; every eight that follow are a place (page, byte
/// in it) and four bytes that are written there.
pub(crate) fn with(data: &[u8], places: Places, look: impl Fn(&Kernel<'_>, &Changed<'_>)) {
    let Some((&choice, changes)) = data.split_first() else { return };
    MACHINES.with(|machines| {
        let number = usize::from(choice & 0x7f) % CARRIED.len();
        let machine = machines[number].get_or_init(|| machine(CARRIED[number].0, CARRIED[number].1));
        let pages = match places {
            Places::All => &machine.all,
            Places::BigPages => &machine.big_pages,
            Places::Log => &machine.log,
        };
        if pages.is_empty() {
            return;
        }
        let mut bytes = BTreeMap::new();
        for change in changes.chunks_exact(8).take(64) {
            let page = usize::from(u16::from_le_bytes([change[0], change[1]])) % pages.len();
            let at = pages[page] + u64::from(u16::from_le_bytes([change[2], change[3]]) & 0xfff);
            bytes.extend((at..).zip(change[4..].iter().copied()));
        }
        let memory = Changed { machine, bytes, searches: choice & 0x80 != 0 };
        let facts = machine.kernel.facts();
        let (symbols, pointer_size) = (&machine.symbols, machine.pointer_size);
        look(&Kernel::new(&memory, symbols, facts.kernel_base, pointer_size, facts.build), &memory);
    });
}
