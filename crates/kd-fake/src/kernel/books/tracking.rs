//! Verifier's list of the allocations that each verified driver has, and its counters.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use serde::Serialize;

use super::{Life, add};
use crate::isf::{IsfError, Type};
use crate::kernel::PoolKind;
use crate::kernel::builder::{Builder, Place};
use crate::kernel::memory::Memory;
use crate::kernel::verifier::{DRIVER_OF_VISTA, POOL_TRACKING, VerifiedDriver};

const PAGE: u64 = 0x1000;

/// Counters of one kind of pool: allocations, their peak, bytes, their peak. Offset and width of each.
type Current = [(u64, usize); 4];

struct Driver {
    name: &'static str,
    loads: u64,
    unloads: u64,
    /// Empty when it is not loaded.
    image: Range<u64>,
    /// `_VF_TARGET_VERIFIED_DRIVER_DATA`; 0 when it is not loaded.
    data: u64,
    /// Free `_VI_POOL_ENTRY`s, the next to be used first.
    free: VecDeque<u64>,
    /// The block's, and where its entry is.
    used: BTreeMap<u64, (TrackedBlock, u64)>,
}

/// An allocation of a verified driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrackedBlock {
    /// Of the block's first byte.
    pub address: u64,
    /// Usable bytes.
    pub bytes: u64,
    /// As the allocation gave it.
    pub tag: u32,
    /// Where the driver called the allocation routine from.
    pub caller: u64,
}

/// What Verifier keeps of a driver to be verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifierDriver {
    /// `BaseName`.
    pub name: String,
    /// Base and size of its image, when it is loaded.
    pub image: Option<(u64, u64)>,
    /// How often it was loaded.
    pub loads: u64,
    /// How often it was unloaded.
    pub unloads: u64,
    /// The integers of its `_VF_TARGET_VERIFIED_DRIVER_DATA`, by name; empty when it is not loaded.
    pub counters: BTreeMap<String, u64>,
    /// What it has allocated and not freed, by address.
    pub allocations: Vec<TrackedBlock>,
}

pub(crate) struct Tracking {
    drivers: Vec<Driver>,
    /// Pool tracking is on: the last pointer of a block leads to its entry.
    pub(crate) points_back: bool,
    /// Bytes that it takes at the end of a block.
    pub(crate) pointer: u64,
    /// `MmVerifierData`.
    totals: u64,
    /// In `MmVerifierData` and in a driver's data: nonpaged, paged.
    total_counters: [Current; 2],
    driver_counters: [Current; 2],
    /// AllocationsAttempted, AllocationsSucceeded.
    attempts: [(u64, usize); 2],
    /// AllocationFreed, where the version has it.
    freed: Option<(u64, usize)>,
    /// PoolPageHeaders, in a driver's data.
    pages: u64,
    entry: u64,
    /// VirtualAddress, CallingAddress, NumberOfBytes, Tag of `_VI_POOL_ENTRY`.
    fields: [Place; 4],
    /// NextPage, VerifierEntry, Signature of `_VI_POOL_PAGE_HEADER`.
    header: [Place; 3],
    /// The integers of `MmVerifierData` and of a driver's data.
    total_integers: Integers,
    driver_integers: Integers,
}

/// The integers of a structure, by name.
struct Integers {
    size: usize,
    places: Vec<(String, Place)>,
}

impl Integers {
    fn of(builder: &Builder, ty: &str) -> Result<Integers, IsfError> {
        let fields = &builder.isf.user_type(ty)?.fields;
        let integers = fields.iter().filter(|(_, field)| matches!(field.ty, Type::Base { .. }));
        let places = integers.map(|(name, _)| Ok((name.clone(), Place::of(&builder.isf, ty, name)?)));
        Ok(Integers { size: builder.isf.size(ty)? as usize, places: places.collect::<Result<_, IsfError>>()? })
    }

    fn read(&self, memory: &Memory, at: u64) -> BTreeMap<String, u64> {
        let mut bytes = vec![0; self.size];
        memory.read(at, &mut bytes);
        self.places.iter().map(|(name, place)| (name.clone(), place.get(&bytes))).collect()
    }
}

impl Tracking {
    pub(crate) fn open(
        builder: &Builder,
        drivers: &[VerifiedDriver],
        verified: &[Option<u64>],
    ) -> Result<Tracking, IsfError> {
        let isf = &builder.isf;
        let totals = "_MM_DRIVER_VERIFIER_DATA";
        let vista = isf.size(DRIVER_OF_VISTA).is_ok();
        let data = if vista { DRIVER_OF_VISTA } else { "_VF_TARGET_VERIFIED_DRIVER_DATA" };
        let counter = |ty, name: &str| -> Result<(u64, usize), IsfError> {
            let (offset, ty) = isf.member(ty, name)?;
            Ok((offset, isf.size_of(ty)? as usize))
        };
        let current = |ty, pool: &str| -> Result<Current, IsfError> {
            Ok([
                counter(ty, &format!("Current{pool}PoolAllocations"))?,
                counter(ty, &format!("Peak{pool}PoolAllocations"))?,
                counter(ty, &format!("{pool}Bytes"))?,
                counter(ty, &format!("Peak{pool}Bytes"))?,
            ])
        };
        let entry = |name| Place::of(isf, "_VI_POOL_ENTRY", name);
        let header = |name| Place::of(isf, "_VI_POOL_PAGE_HEADER", name);
        let at = builder.symbol("MmVerifierData")?;
        let mut level = [0; 4];
        builder.memory.read(at, &mut level);
        let mut tracking = Tracking {
            drivers: Vec::new(),
            points_back: u64::from(u32::from_le_bytes(level)) & POOL_TRACKING != 0,
            pointer: builder.width(),
            totals: at,
            total_counters: [current(totals, "NonPaged")?, current(totals, "Paged")?],
            driver_counters: [current(data, "NonPaged")?, current(data, "Paged")?],
            attempts: [counter(totals, "AllocationsAttempted")?, counter(totals, "AllocationsSucceeded")?],
            freed: counter(totals, "AllocationFreed").ok(),
            pages: isf.offset(data, "PoolPageHeaders")?,
            entry: isf.size("_VI_POOL_ENTRY")?,
            fields: [
                entry("InUse.VirtualAddress")?,
                entry("InUse.CallingAddress")?,
                entry("InUse.NumberOfBytes")?,
                entry("InUse.Tag")?,
            ],
            header: [header("NextPage")?, header("VerifierEntry")?, header("Signature")?],
            total_integers: Integers::of(builder, totals)?,
            driver_integers: Integers::of(builder, data)?,
        };
        for (driver, data) in drivers.iter().zip(verified) {
            let (base, size) = driver.image.unwrap_or_default();
            let mut known = Driver {
                name: driver.name,
                loads: driver.loads,
                unloads: driver.unloads,
                image: base..base + size,
                data: data.unwrap_or_default(),
                free: VecDeque::new(),
                used: BTreeMap::new(),
            };
            let mut page = data.map_or(0, |data| builder.first_of(data + tracking.pages));
            while page != 0 {
                for place in tracking.entries(page) {
                    let mut bytes = vec![0; tracking.entry as usize];
                    builder.memory.read(place, &mut bytes);
                    let [address, caller, size, tag] = tracking.fields.map(|field| field.get(&bytes));
                    if size & 1 == 1 {
                        known.free.push_back(place);
                    } else {
                        let block = TrackedBlock { address, bytes: size, tag: tag as u32, caller };
                        known.used.insert(address, (block, place));
                    }
                }
                page = builder.pointer(page);
            }
            tracking.drivers.push(known);
        }
        Ok(tracking)
    }

    fn entries(&self, page: u64) -> impl Iterator<Item = u64> + use<> {
        let size = self.entry;
        (1..PAGE / size).map(move |slot| page + slot * size)
    }

    /// The verified driver in whose code a frame is.
    pub(crate) fn driver(&self, stack: &[u64]) -> Option<(usize, u64)> {
        stack.iter().find_map(|frame| {
            let driver = self.drivers.iter().position(|driver| driver.image.contains(frame))?;
            Some((driver, *frame))
        })
    }

    pub(crate) fn is_full(&self, driver: usize) -> bool {
        self.drivers[driver].free.is_empty()
    }

    /// Tracks a block (address, bytes, tag) that was allocated from `driver` and its frame.
    pub(crate) fn allocated(
        &mut self,
        memory: &mut Memory,
        (driver, caller): (usize, u64),
        (address, bytes, tag): (u64, u64, u32),
        kind: PoolKind,
    ) -> Option<u64> {
        let at = self.drivers[driver].free.pop_front()?;
        let mut entry = vec![0; self.entry as usize];
        for (field, value) in self.fields.iter().zip([address, caller, bytes, tag.into()]) {
            field.put(&mut entry, value);
        }
        memory.write(at, &entry);
        self.drivers[driver].used.insert(address, (TrackedBlock { address, bytes, tag, caller }, at));
        for (offset, width) in self.attempts {
            add(memory, self.totals + offset, width, 1);
        }
        self.count(memory, driver, kind, 1, bytes);
        Some(at)
    }

    pub(crate) fn freed(&mut self, memory: &mut Memory, life: &Life) {
        let found = self.drivers.iter_mut().position(|driver| driver.used.contains_key(&life.address));
        let Some(driver) = found else { return };
        let Some((_, at)) = self.drivers[driver].used.remove(&life.address) else { return };
        let mut entry = vec![0; self.entry as usize];
        // A free entry: the next free one, and an odd size.
        let next = self.drivers[driver].free.front().copied().unwrap_or_default();
        self.fields[0].put(&mut entry, next);
        self.fields[2].put(&mut entry, 1);
        memory.write(at, &entry);
        self.drivers[driver].free.push_front(at);
        if let Some((offset, width)) = self.freed {
            add(memory, self.totals + offset, width, 1);
        }
        self.count(memory, driver, life.kind, u64::MAX, life.bytes.wrapping_neg());
    }

    fn count(&self, memory: &mut Memory, driver: usize, kind: PoolKind, blocks: u64, bytes: u64) {
        let paged = usize::from(kind.is_paged());
        for (base, counters) in
            [(self.totals, &self.total_counters[paged]), (self.drivers[driver].data, &self.driver_counters[paged])]
        {
            for (pair, change) in counters.chunks(2).zip([blocks, bytes]) {
                let now = add(memory, base + pair[0].0, pair[0].1, change);
                let peak = add(memory, base + pair[1].0, pair[1].1, 0);
                if now > peak {
                    memory.write(base + pair[1].0, &now.to_le_bytes()[..pair[1].1]);
                }
            }
        }
    }

    /// The integers of `MmVerifierData`, by name.
    pub(crate) fn settings(&self, memory: &Memory) -> BTreeMap<String, u64> {
        self.total_integers.read(memory, self.totals)
    }

    pub(crate) fn drivers(&self, memory: &Memory) -> Vec<VerifierDriver> {
        let driver = |driver: &Driver| VerifierDriver {
            name: driver.name.to_owned(),
            image: (driver.data != 0).then(|| (driver.image.start, driver.image.end - driver.image.start)),
            loads: driver.loads,
            unloads: driver.unloads,
            counters: match driver.data {
                0 => BTreeMap::new(),
                data => self.driver_integers.read(memory, data),
            },
            allocations: driver.used.values().map(|(block, _)| block.clone()).collect(),
        };
        self.drivers.iter().map(driver).collect()
    }

    /// Puts a page in front of a driver's pages.
    pub(crate) fn add_page(&mut self, memory: &mut Memory, driver: usize, page: u64) {
        let list = self.drivers[driver].data + self.pages;
        let mut entry = vec![0; self.entry as usize];
        let values = [memory.first_of(list), self.drivers[driver].data, 0x2132_1345];
        for (field, value) in self.header.iter().zip(values) {
            field.put(&mut entry, value);
        }
        memory.write(page, &entry);
        memory.push_entry(list, page);
        let entries: Vec<u64> = self.entries(page).collect();
        for (at, place) in entries.iter().enumerate() {
            let mut entry = vec![0; self.entry as usize];
            self.fields[0].put(&mut entry, entries.get(at + 1).copied().unwrap_or_default());
            self.fields[2].put(&mut entry, 1);
            memory.write(*place, &entry);
        }
        self.drivers[driver].free.extend(entries);
    }
}
