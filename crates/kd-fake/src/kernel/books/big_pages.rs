//! `PoolBigPageTable`: an open hash table by page number.

use crate::isf::IsfError;
use crate::kernel::Mutation;
use crate::kernel::builder::{Builder, Place};
use crate::kernel::memory::Memory;
use crate::kernel::pool::{BigPage, hash};
use crate::kernel::rules::Rules;
use crate::machine::Machine;

/// Where an entry of the table has what, by the kernel's own types.
#[derive(Clone, Copy)]
pub(crate) struct EntryLayout {
    size: usize,
    va: Place,
    key: Place,
    kind: Place,
    bytes: Place,
    /// Windows 10 and later.
    slush: Option<Place>,
    /// Server 2022 and later, with the cookie that hides it.
    billed: Option<(Place, u64)>,
    rules: Rules,
}

impl EntryLayout {
    pub(crate) fn of(builder: &Builder) -> Result<EntryLayout, IsfError> {
        let ty = "_POOL_TRACKER_BIG_PAGES";
        let place = |name| Place::of(&builder.isf, ty, name);
        let billed = match place("ProcessBilled") {
            Ok(billed) => Some((billed, builder.variable("ExpPoolQuotaCookie")?)),
            Err(_) => None,
        };
        Ok(EntryLayout {
            size: builder.isf.size(ty)? as usize,
            va: place("Va")?,
            key: place("Key")?,
            kind: place("PoolType").or_else(|_| place("PoolFlags"))?,
            bytes: place("NumberOfBytes")?,
            slush: place("SlushSize").ok(),
            billed,
            rules: builder.rules,
        })
    }

    /// Maps a table in which no slot was ever used.
    pub(crate) fn clear(&self, memory: &mut Memory, table: u64, slots: u64) {
        let mut entry = vec![0; self.size];
        self.va.put(&mut entry, self.rules.never_used);
        memory.put(table, &entry.repeat(slots as usize));
    }

    /// Where the search for a block starts.
    pub(crate) fn slot(&self, machine: Machine, address: u64, slots: u64) -> usize {
        let page = match self.rules.whole_page_numbers {
            true => address >> 12,
            false => u64::from((address >> 12) as u32),
        };
        hash(machine, page, self.rules.factor, slots - 1)
    }

    pub(crate) fn write(&self, page: &BigPage) -> Vec<u8> {
        let mut entry = vec![0; self.size];
        self.va.put(&mut entry, page.address | u64::from(page.freed));
        self.key.put(&mut entry, page.tag.into());
        let kind = if self.rules.pool_flags { page.kind.pool_flags() } else { page.kind.pool_type() };
        self.kind.put(&mut entry, kind);
        let surplus = if self.rules.breaks(Mutation::BigPageBytes) { 0x1000 } else { 0 };
        self.bytes.put(&mut entry, page.bytes + surplus);
        if let Some(slush) = self.slush {
            slush.put(&mut entry, page.bytes.wrapping_neg() & 0xfff);
        }
        // Nobody is billed.
        if let Some((billed, cookie)) = self.billed {
            billed.put(&mut entry, cookie ^ page.address);
        }
        entry
    }
}

/// The table, and the variables that lead to it.
pub(crate) struct BigPages {
    table: u64,
    slots: u64,
    used: u64,
    layout: EntryLayout,
    table_at: u64,
    slots_at: u64,
    used_at: u64,
}

impl BigPages {
    pub(crate) fn open(builder: &Builder) -> Result<BigPages, IsfError> {
        let mut used = [0; 4];
        let used_at = builder.symbol("ExpPoolBigEntriesInUse")?;
        builder.memory.read(used_at, &mut used);
        Ok(BigPages {
            table: builder.variable("PoolBigPageTable")?,
            slots: builder.variable("PoolBigPageTableSize")?,
            used: u32::from_le_bytes(used).into(),
            layout: EntryLayout::of(builder)?,
            table_at: builder.symbol("PoolBigPageTable")?,
            slots_at: builder.symbol("PoolBigPageTableSize")?,
            used_at,
        })
    }

    /// Searching gets slow when the table is nearly full.
    pub(crate) fn has_room(&self) -> bool {
        self.used < self.slots / 4 * 3
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.slots * self.layout.size as u64
    }

    /// Takes the first free slot from the hashed one on; there must be one.
    pub(crate) fn insert(&mut self, memory: &mut Memory, page: &BigPage) {
        let at = self.probe(page.address, |_, va| va == 0 || va & 1 == 1, memory);
        if let Some(at) = at {
            memory.write(at, &self.layout.write(page));
            self.count(memory, self.used + 1);
        }
    }

    /// The slot keeps its content, with bit 0 of the address set.
    pub(crate) fn remove(&mut self, memory: &mut Memory, address: u64) {
        if let Some(at) = self.probe(address, |address, va| va == address, memory) {
            memory.write(at, &[address as u8 | 1]);
            self.count(memory, self.used - 1);
        }
    }

    /// Moves to a table of twice the size.
    pub(crate) fn grow(&mut self, memory: &mut Memory, table: u64, live: &[BigPage]) {
        let old = (self.table, self.bytes());
        self.table = table;
        self.slots *= 2;
        self.used = 0;
        self.layout.clear(memory, table, self.slots);
        for page in live {
            self.insert(memory, page);
        }
        let width = memory.pointer();
        memory.write(self.table_at, &table.to_le_bytes()[..width]);
        memory.write(self.slots_at, &self.slots.to_le_bytes()[..width]);
        memory.unmap(old.0, old.1);
    }

    fn count(&mut self, memory: &mut Memory, used: u64) {
        self.used = used;
        memory.write(self.used_at, &(used as u32).to_le_bytes());
    }

    fn probe(&self, address: u64, wanted: impl Fn(u64, u64) -> bool, memory: &Memory) -> Option<u64> {
        let first = self.layout.slot(memory.machine(), address, self.slots) as u64;
        (0..self.slots).map(|step| self.table + ((first + step) & (self.slots - 1)) * self.layout.size as u64).find(
            |at| {
                let mut va = [0; 8];
                memory.read(*at, &mut va[..memory.pointer()]);
                wanted(address, u64::from_le_bytes(va))
            },
        )
    }
}
