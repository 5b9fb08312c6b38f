//! A kernel built by hand: memory, names and types as the tables of the facts give them, one generation at a time.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use nt_memory::{Fault, Layer, Memory, Search, Through};
use nt_pool::around::{self, Contents};
use nt_pool::small_blocks::{BlockKind, BlockState, SmallBlock};
use nt_pool::{Kernel, freed};
use nt_symbols::{Enumeration, Field, Isf, Layout, Symbol, SymbolFile, SymbolKind};

/// A generation of Windows kernels: its pointer width and its build.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version {
    pub(crate) pointer: u8,
    pub(crate) build: u16,
    /// The real kernel's names and types, in place of those that a test describes by hand.
    pub(crate) real: Option<Real>,
}

#[derive(Clone, Copy)]
pub(crate) struct Real(pub(crate) &'static Isf);

impl std::fmt::Debug for Real {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.path().fmt(f)
    }
}

const fn version(pointer: u8, build: u16) -> Version {
    Version { pointer, build, real: None }
}

pub(crate) const VISTA_X86: Version = version(4, 6002);
pub(crate) const WIN7_X64: Version = version(8, 7601);
pub(crate) const WIN10_1607: Version = version(8, 14393);
pub(crate) const WIN10_1903: Version = version(8, 18362);
pub(crate) const WIN10_2004_X86: Version = version(4, 19041);
pub(crate) const SERVER_2022: Version = version(8, 20348);
pub(crate) const WIN11_21H2: Version = version(8, 22000);
pub(crate) const WIN11_23H2: Version = version(8, 22631);
pub(crate) const WIN11_24H2: Version = version(8, 26100);
/// The kernel whose layouts the facts call "later".
pub(crate) const LATER: Version = version(8, 29671);
pub(crate) const ALL: [Version; 7] =
    [VISTA_X86, WIN7_X64, WIN10_1607, WIN10_1903, WIN10_2004_X86, SERVER_2022, WIN11_21H2];

#[derive(Default)]
pub(crate) struct Symbols {
    real: Option<Real>,
    names: HashMap<String, u32>,
    layouts: HashMap<String, Arc<Layout>>,
    enumerations: HashMap<String, Arc<Enumeration>>,
}

impl SymbolFile for Symbols {
    fn kind(&self) -> SymbolKind {
        SymbolKind::PublicPdb
    }

    fn path(&self) -> &Path {
        Path::new("ntkrnlmp.pdb")
    }

    fn symbol(&self, name: &str) -> Option<Symbol> {
        if let Some(Real(real)) = self.real {
            return real.symbol(name);
        }
        self.names.get(name).map(|&rva| Symbol { name: name.into(), rva })
    }

    fn around(&self, rva: u32) -> (Option<Symbol>, Option<Symbol>) {
        if let Some(Real(real)) = self.real {
            return real.around(rva);
        }
        let symbol = |(name, &rva): (&String, &u32)| Symbol { name: name.clone(), rva };
        let before = self.names.iter().filter(|(_, at)| **at <= rva).max_by_key(|(_, at)| **at).map(symbol);
        let after = self.names.iter().filter(|(_, at)| **at > rva).min_by_key(|(_, at)| **at).map(symbol);
        (before, after)
    }

    fn matching(&self, _pattern: &str) -> Vec<Symbol> {
        Vec::new()
    }

    fn layout(&self, type_name: &str) -> Option<Arc<Layout>> {
        match self.real {
            Some(Real(real)) => real.layout(type_name),
            None => self.layouts.get(type_name).cloned(),
        }
    }

    fn enumeration(&self, enum_name: &str) -> Option<Arc<Enumeration>> {
        match self.real {
            Some(Real(real)) => real.enumeration(enum_name),
            None => self.enumerations.get(enum_name).cloned(),
        }
    }
}

/// Requests and bytes that a link with replies of `reply` bytes would have carried.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
}

pub(crate) struct World {
    pub(crate) version: Version,
    pub(crate) symbols: Symbols,
    pages: BTreeMap<u64, Box<[u8; 0x1000]>>,
    next_variable: u32,
    /// Whether the target searches its own memory.
    pub(crate) searches: bool,
    /// Bytes that one reply carries.
    pub(crate) reply: u64,
    cost: Cell<Cost>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("version", &self.version).finish_non_exhaustive()
    }
}

impl World {
    pub(crate) fn new(version: Version) -> Self {
        World {
            version,
            symbols: Symbols { real: version.real, ..Symbols::default() },
            pages: BTreeMap::new(),
            next_variable: 0x20_0000,
            searches: false,
            reply: 1296,
            cost: Cell::default(),
        }
    }

    pub(crate) fn base(&self) -> u64 {
        if self.version.pointer == 4 { 0x8280_0000 } else { 0xffff_f800_0140_0000 }
    }

    /// Some kernel memory that is not used for anything else; `n` picks the place.
    pub(crate) fn pool(&self, n: u64) -> u64 {
        let start = if self.version.pointer == 4 { 0x9000_0000 } else { 0xffff_fa80_0200_0000 };
        start + n * 0x100_0000
    }

    pub(crate) fn kernel(&self) -> Kernel<'_> {
        Kernel {
            memory: self,
            symbols: &self.symbols,
            base: self.base(),
            pointer_size: self.version.pointer,
            build: self.version.build,
        }
    }

    pub(crate) fn cost(&self) -> Cost {
        self.cost.get()
    }

    pub(crate) fn reset_cost(&self) {
        self.cost.set(Cost::default());
    }

    fn charge(&self, sent_and_received: u64) {
        let mut cost = self.cost.get();
        cost.requests += sent_and_received.div_ceil(self.reply).max(1);
        cost.bytes += sent_and_received;
        self.cost.set(cost);
    }

    /// Places a variable in the image and gives it a name.
    pub(crate) fn variable(&mut self, name: &str, size: u32) -> u64 {
        let rva = match self.version.real {
            Some(Real(real)) => real.symbol(name).expect("the real kernel has this variable").rva,
            None => self.next_variable,
        };
        self.next_variable += size.next_multiple_of(8);
        self.symbols.names.insert(name.into(), rva);
        let address = self.base() + u64::from(rva);
        self.write(address, &vec![0; size as usize]);
        address
    }

    pub(crate) fn pointer_variable(&mut self, name: &str, value: u64) {
        let address = self.variable(name, self.version.pointer.into());
        self.put(address, value, self.version.pointer);
    }

    pub(crate) fn u32_variable(&mut self, name: &str, value: u32) {
        let address = self.variable(name, 4);
        self.put(address, value.into(), 4);
    }

    pub(crate) fn forget_symbol(&mut self, name: &str) {
        self.symbols.names.remove(name);
    }

    pub(crate) fn forget_layout(&mut self, name: &str) {
        self.symbols.layouts.remove(name);
    }

    pub(crate) fn address_of(&self, name: &str) -> u64 {
        self.base() + u64::from(self.symbols.names[name])
    }

    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = address + done as u64;
            let page = self.pages.entry(at & !0xfff).or_insert_with(|| Box::new([0; 0x1000]));
            let from = (at & 0xfff) as usize;
            let count = (0x1000 - from).min(bytes.len() - done);
            page[from..from + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
    }

    pub(crate) fn put(&mut self, address: u64, value: u64, size: u8) {
        self.write(address, &value.to_le_bytes()[..usize::from(size)]);
    }

    /// Makes a page unreadable.
    pub(crate) fn unmap(&mut self, address: u64) {
        self.pages.remove(&(address & !0xfff));
    }

    /// The pages that are there.
    pub(crate) fn mapped(&self) -> Vec<u64> {
        self.pages.keys().copied().collect()
    }

    pub(crate) fn layout(&mut self, name: &str, size: u64, fields: &[Field]) {
        self.symbols.layouts.insert(name.into(), Arc::new(Layout { name: name.into(), size, fields: fields.to_vec() }));
    }

    pub(crate) fn enumeration(&mut self, name: &str, values: &[(&str, i64)]) {
        let values = values.iter().map(|(name, value)| (name.to_string(), *value)).collect();
        self.symbols.enumerations.insert(name.into(), Arc::new(Enumeration { name: name.into(), size: 4, values }));
    }

    fn byte(&self, address: u64) -> Option<u8> {
        self.pages.get(&(address & !0xfff)).map(|page| page[(address & 0xfff) as usize])
    }

    fn bytes(&self, address: u64, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            let at = address.wrapping_add(done as u64);
            let Some(page) = self.pages.get(&(at & !0xfff)) else { break };
            let from = (at & 0xfff) as usize;
            let count = (0x1000 - from).min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&page[from..from + count]);
            done += count;
        }
        done
    }
}

impl Memory for World {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let done = self.bytes(address, buffer);
        self.charge(done as u64);
        Ok(done)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        self.charge(pattern.len() as u64);
        if !self.searches {
            return Ok(Search::Unsupported);
        }
        let end = address.saturating_add(length) - pattern.len() as u64;
        // By its rarest byte: records are full of 00 and ff.
        let pivot = pattern.iter().position(|byte| !matches!(byte, 0 | 0xff)).unwrap_or(0);
        let hit = |at: u64| pattern.iter().enumerate().all(|(i, byte)| self.byte(at + i as u64) == Some(*byte));
        let offset = pivot as u64;
        let mut starts = occurrences(self, address + offset, end + offset, pattern[pivot]).map(|at| at - offset);
        Ok(starts.find(|at| hit(*at)).map_or(Search::NotFound, Search::Found))
    }
}

/// Memory of which everything was read before.
pub(crate) struct Kept<'m>(pub(crate) &'m dyn Memory);

impl Layer for Kept<'_> {
    fn below(&self) -> &dyn Memory {
        self.0
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.0.read(address, buffer)
    }

    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.0.reread(address, buffer)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        self.0.search(address, length, pattern)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.0.read_physical(address, buffer)
    }

    fn unread(&self, _: u64, _: u64) -> u64 {
        0
    }
}

/// Every block by its address, and what waits in lists by those: as a walk tells them.
pub(crate) fn told_by_address(kernel: &Kernel<'_>, blocks: &[SmallBlock]) {
    let kept = Through(Kept(kernel.memory));
    let kernel = Kernel { memory: &kept, ..*kernel };
    for block in blocks.iter().filter(|block| block.kind != BlockKind::Special) {
        let around = around::read(&kernel, block.address).unwrap();
        let Contents::Blocks(mut page) = around.contents else { panic!("{block:x?}: {around:x?}") };
        let told = freed::tell(&kernel, around.pool, &mut page).unwrap();
        assert_eq!((told.notes.lines(), told.undecided), (vec![], None), "{block:x?}");
        let here = page.iter().find(|here| here.contains(block.address)).unwrap_or_else(|| panic!("{block:x?}"));
        assert_eq!(here.allocated, block.state == BlockState::Allocated, "{block:x?} {here:x?}");
    }
}

/// A kernel that changes as soon as something is read of `after`: what `at` holds then is `value`.
pub(crate) struct Changing<'w> {
    pub(crate) world: &'w World,
    pub(crate) after: std::ops::Range<u64>,
    pub(crate) at: u64,
    pub(crate) value: u64,
    changed: Cell<bool>,
}

impl<'w> Changing<'w> {
    pub(crate) fn new(world: &'w World, after: std::ops::Range<u64>, at: u64, value: u64) -> Self {
        Changing { world, after, at, value, changed: Cell::new(false) }
    }

    pub(crate) fn kernel(&self) -> Kernel<'_> {
        Kernel { memory: self, ..self.world.kernel() }
    }

    pub(crate) fn has_changed(&self) -> bool {
        self.changed.get()
    }
}

impl Memory for Changing<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let read = self.world.read(address, buffer)?;
        if self.changed.get() {
            let value = self.value.to_le_bytes();
            for (byte, at) in value[..self.world.version.pointer.into()].iter().zip(self.at..) {
                if let Some(place) = at.checked_sub(address).filter(|offset| *offset < read as u64) {
                    buffer[place as usize] = *byte;
                }
            }
        }
        let end = address + read as u64;
        self.changed.set(self.changed.get() || address < self.after.end && end > self.after.start);
        Ok(read)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        let found = self.world.search(address, length, pattern)?;
        self.changed.set(self.changed.get() || self.after.contains(&address));
        Ok(found)
    }
}

/// Addresses from `start` to `end` that hold `byte`; passes over what does not hold it in strides, since a search of
/// eight megabytes must not take seconds.
fn occurrences(world: &World, start: u64, end: u64, byte: u8) -> impl Iterator<Item = u64> {
    world.pages.range(start & !0xfff..=end).flat_map(move |(page, bytes)| {
        let parts = bytes.chunks(64).enumerate().filter(move |(_, part)| part.contains(&byte));
        let hits = parts.flat_map(move |(n, part)| {
            part.iter().enumerate().filter(move |(_, b)| **b == byte).map(move |(i, _)| page + (n * 64 + i) as u64)
        });
        hits.filter(move |at| (start..=end).contains(at))
    })
}

pub(crate) fn field(name: &str, offset: u64, size: u64) -> Field {
    Field { name: name.into(), offset, size, bits: None, array: None, pointers: 0, type_name: "void".into() }
}

pub(crate) fn bits(name: &str, offset: u64, first: u8, count: u8) -> Field {
    Field { bits: Some((first, count)), ..field(name, offset, 4) }
}

pub(crate) fn array(name: &str, offset: u64, count: u64, element: u64) -> Field {
    Field { array: Some((count, element)), ..field(name, offset, count * element) }
}

/// How many cases a property is tried with; a failing one is printed, not kept in a file.
pub(crate) fn cases(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}

/// A structure inside a structure.
pub(crate) fn member(name: &str, offset: u64, size: u64, type_name: &str) -> Field {
    Field { type_name: type_name.into(), ..field(name, offset, size) }
}

/// A plain number.
pub(crate) fn number(name: &str, offset: u64, size: u64) -> Field {
    let type_name = if size == 8 { "unsigned long long" } else { "unsigned long" };
    member(name, offset, size, type_name)
}

/// `_POOL_HEADER` of x64. Windows 7 has one ULONG with four bit fields, later versions two USHORTs: the same bytes.
pub(crate) fn pool_header(world: &mut World) {
    world.layout(
        "_POOL_HEADER",
        0x10,
        &[
            bits("PreviousSize", 0, 0, 8),
            bits("PoolIndex", 0, 8, 8),
            bits("BlockSize", 0, 16, 8),
            bits("PoolType", 0, 24, 8),
            field("PoolTag", 4, 4),
            field("ProcessBilled", 8, 8),
        ],
    );
}

/// `_GENERAL_LOOKASIDE_POOL` and `_GENERAL_LOOKASIDE`, of which the first has no room for a list of lists; returns the
/// size of the first.
pub(crate) fn lookaside_types(world: &mut World) -> u64 {
    let (pool, general) = if world.version.pointer == 4 { (0x48, 0x80) } else { (0x60, 0x80) };
    let head = if world.version.pointer == 4 { 8 } else { 0x10 };
    for (name, size) in [("_GENERAL_LOOKASIDE_POOL", pool), ("_GENERAL_LOOKASIDE", general)] {
        let counters = ["TotalAllocates", "AllocateMisses", "TotalFrees", "FreeMisses"];
        let mut fields = vec![
            field("ListHead", 0, head),
            number("Depth", head, 2),
            number("MaximumDepth", head + 2, 2),
            number("Type", head + 0x14, 4),
            number("Tag", head + 0x18, 4),
            number("Size", head + 0x1c, 4),
        ];
        fields.extend(counters.iter().zip(1..).map(|(name, n)| number(name, head + 4 * n, 4)));
        world.layout(name, size, &fields);
    }
    pool
}

/// A list at `at` of blocks of `size` bytes, of which these wait.
pub(crate) fn put_lookaside(world: &mut World, at: u64, size: u64, waiting: &[u64]) {
    let width = world.version.pointer;
    let (depth, first, head) = if width == 4 { (4, 0, 8) } else { (0, 8, 0x10) };
    world.put(at + depth, waiting.len() as u64, 2);
    world.put(at + first, waiting.first().copied().unwrap_or(0), width);
    world.put(at + head, 4, 2);
    world.put(at + head + 2, 0x100, 2);
    world.put(at + head + 0x1c, size, 4);
}
