//! Where a version of Windows puts things in its address space.

use std::ops::Range;

use super::range;
use crate::isf::IsfError;
use crate::kernel::builder::Builder;
use crate::kernel::memory::SELF_MAP;
use crate::kernel::random::Random;
use crate::machine::Machine;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;
/// What one entry of the topmost page table spans.
const SLOT: u64 = 512 * GIB;
/// Room for tables behind that for large blocks.
const TABLES: u64 = 6 * MIB;
/// Session space before its place was chosen at each boot.
const SESSION: u64 = 0xffff_f900_0000_0000;

/// The address space. Pool proper is at the start of its region, large blocks 4 GiB on, the kernel's own
/// structures 8 GiB on; on 32 bits 64 MiB and 128 MiB.
pub(crate) struct Map {
    build: u16,
    machine: Machine,
    /// Where in a region the large blocks are, and how much room there is for them.
    large: (u64, u64),
    pub(crate) kernel: u64,
    pub(crate) self_map: u64,
    pub(crate) nonpaged: Range<u64>,
    pub(crate) paged: Range<u64>,
    /// Special pool: nonpaged, paged; the same one before 1703, none from 1903 on.
    pub(crate) special: Option<[Range<u64>; 2]>,
    /// Where each terminal session's own pages are; none on 32 bits.
    pub(crate) session: Option<Range<u64>>,
    next: u64,
    next_module: u64,
}

impl Map {
    pub(crate) fn new(machine: Machine, build: u16, random: &mut Random) -> Map {
        if machine.is_x86() {
            return Map::narrow(machine, build, random);
        }
        let kernel = 0xffff_f800_0000_0000 + 0x1000 * random.below(0x40000) + GIB;
        let modules = match build {
            ..10240 => 0xffff_f880_00c0_0000,
            _ => 0xffff_f804_0000_0000 + 0x20_0000 * random.below(0x1000),
        };
        let (self_map, nonpaged, paged, special, session) = match build {
            ..9200 => {
                let special = range(0xffff_f980_0000_0000 + 2 * MIB * random.below(0x100), SLOT / 2);
                (
                    SELF_MAP,
                    0xffff_fa80_0180_0000..0xffff_fac0_0000_0000,
                    0xffff_f8a0_0000_0000..0xffff_f8c0_0000_0000,
                    Some([special.clone(), special]),
                    SESSION,
                )
            }
            9200..14393 => {
                let special = range(0xffff_cf80_0000_0000 + 2 * MIB * random.below(0x100), SLOT / 2);
                let (nonpaged, paged) = (range(0xffff_e000_0000_0000, TIB), range(0xffff_c000_0000_0000, TIB));
                (SELF_MAP, nonpaged, paged, Some([special.clone(), special]), SESSION)
            }
            _ => {
                // Regions start at an entry of the topmost table that each boot chooses.
                let mut slot = 0xffff_8000_0000_0000 + SLOT * random.below(24);
                let mut next = |size: u64| {
                    let start = slot;
                    slot += size + SLOT * random.below(8);
                    range(start, size)
                };
                let (nonpaged, paged) = (next(16 * TIB), next(16 * TIB));
                let special = match build {
                    ..15063 => {
                        let special = next(SLOT);
                        Some([special.clone(), special])
                    }
                    15063..18362 => Some([next(SLOT), next(SLOT)]),
                    _ => None,
                };
                let session = next(SLOT).start;
                (0x180 + random.below(0x40), nonpaged, paged, special, session)
            }
        };
        let next = nonpaged.start + 8 * GIB;
        let large = (4 * GIB, 2 * GIB);
        // From 24H2 on there is no region of that name.
        let session = (build < 26100).then(|| range(session, SLOT));
        Map { build, machine, large, kernel, self_map, nonpaged, paged, special, session, next, next_module: modules }
    }

    /// 32 bits: regions are runs of page directory entries, and lie between the loader's images and the page tables.
    fn narrow(machine: Machine, build: u16, random: &mut Random) -> Map {
        let kernel = 0x8180_0000 + 0x1000 * random.below(0x200);
        let nonpaged = 0x8400_0000 + 4 * MIB * random.below(4);
        let paged = 0x9800_0000 + 4 * MIB * random.below(4);
        let special = (build < 17763).then(|| [range(0xac00_0000, 8 * MIB), range(0xad00_0000, 8 * MIB)]);
        let (nonpaged, paged) = (range(nonpaged, 256 * MIB), range(paged, 256 * MIB));
        Map {
            build,
            machine,
            large: (64 * MIB, 56 * MIB),
            kernel,
            self_map: 0,
            next: nonpaged.start + 128 * MIB,
            nonpaged,
            paged,
            special,
            session: None,
            next_module: 0xb000_0000,
        }
    }

    /// Where an IRP might be.
    pub(crate) fn irp(&self, random: &mut Random) -> u64 {
        self.nonpaged.start + 16 * random.below(0x100_0000)
    }

    /// Page-aligned room for one of the kernel's own structures.
    pub(crate) fn room(&mut self, bytes: u64) -> u64 {
        let at = self.next;
        // A hole behind each: a read past the end fails.
        self.next += bytes.next_multiple_of(0x1000) + 0x1000;
        at
    }

    /// Lets [`Map::room`] go on elsewhere; returns where it was.
    pub(crate) fn move_to(&mut self, at: u64) -> u64 {
        std::mem::replace(&mut self.next, at)
    }

    pub(crate) fn module(&mut self, size: u64, random: &mut Random) -> u64 {
        let at = self.next_module;
        self.next_module += size + 0x1000 * random.below(0x40);
        at
    }

    pub(crate) fn nonpaged_small(&self) -> Range<u64> {
        range(self.nonpaged.start, self.large.0)
    }

    pub(crate) fn paged_small(&self) -> Range<u64> {
        range(self.paged.start, self.large.0)
    }

    /// Room for large blocks; those of the first versions may lie behind it too.
    pub(crate) fn nonpaged_large(&self) -> Range<u64> {
        range(self.nonpaged.start + self.large.0, self.large.1)
    }

    pub(crate) fn paged_large(&self) -> Range<u64> {
        range(self.paged.start + self.large.0, self.large.1)
    }

    /// Of the room for large blocks, what is left for tables that grow; in versions without segment heaps, all of it.
    pub(crate) fn nonpaged_tables(&self) -> Range<u64> {
        self.tables(self.nonpaged.start)
    }

    pub(crate) fn paged_tables(&self) -> Range<u64> {
        self.tables(self.paged.start)
    }

    fn tables(&self, region: u64) -> Range<u64> {
        let start = if self.build < 17763 { self.large.0 } else { self.large.0 + self.large.1 };
        region + start..region + self.large.0 + self.large.1 + TABLES
    }

    /// 32 bits: a byte for each page directory entry says what is in its range.
    fn directory(&self, builder: &mut Builder) -> Result<(), IsfError> {
        let reach = if self.machine == Machine::X86Pae { 2 * MIB } else { 4 * MIB };
        let types = match builder.symbol("MiSystemVaType") {
            Ok(types) => types,
            Err(_) => {
                let visible = builder.symbol("MiState")? + builder.isf.offset("_MI_SYSTEM_INFORMATION", "Vs")?;
                builder.set_pointer("MiVisibleState", visible)?;
                visible + builder.isf.offset("_MI_VISIBLE_STATE", "SystemVaType")?
            }
        };
        let mut regions = vec![("NonPagedPool", self.nonpaged.clone()), ("PagedPool", self.paged.clone())];
        if let Some([nonpaged, paged]) = &self.special {
            regions.extend([("SpecialPoolNonPaged", nonpaged.clone()), ("SpecialPoolPaged", paged.clone())]);
        }
        for (name, region) in regions {
            let kinds = builder.isf.enums.get("_MI_SYSTEM_VA_TYPE");
            let Some(&kind) = kinds.and_then(|kinds| kinds.constants.get(&format!("MiVa{name}"))) else { continue };
            for at in region.step_by(reach as usize) {
                builder.memory.put(types + (at - 0x8000_0000) / reach, &[kind as u8]);
            }
        }
        Ok(())
    }

    /// Up to Windows 10 1511 there is no table of regions; special pool has one of two variables that lead to it.
    fn before_regions(&self, builder: &mut Builder, random: &mut Random) -> Result<(), IsfError> {
        const STATE: &str = "_MI_SYSTEM_INFORMATION";
        const POOL: &str = "_MI_SPECIAL_POOL";
        let Some([special, _]) = &self.special else { return Ok(()) };
        // Windows 8's symbols do not have the type; these members were in the same places before and after.
        let bitmap = |builder: &mut Builder, at: u64, range: &Range<u64>| {
            for (offset, value) in [(0x10, (range.end - range.start) >> 12), (0x20, range.start)] {
                builder.put_pointer(at + offset, value);
            }
        };
        let state = builder.symbol("MiState").ok();
        let inside = |builder: &Builder, name| Some(state? + builder.isf.offset(STATE, name).ok()?);
        if let Some(at) = inside(builder, "SystemVa.DynamicBitMapPagedPool") {
            bitmap(builder, at, &self.paged);
        }
        if let Some(at) = inside(builder, "Hardware.SystemNodeInformation") {
            let node = self.kernel - 0x10_0000;
            builder.memory.map(node, builder.isf.size("_MI_SYSTEM_NODE_INFORMATION")?);
            let first = builder.isf.offset("_MI_SYSTEM_NODE_INFORMATION", "NonPagedPoolFirstVa")?;
            builder.put_pointer(node + first, self.nonpaged.start);
            builder.put_pointer(at, node);
        }
        let variable = builder.symbol("MiDynamicBitMapSpecialPool").ok();
        let dynamic = variable.or_else(|| inside(builder, "SystemVa.DynamicBitMapSpecialPool"));
        let pool = builder.symbol("MiSpecialPool").ok();
        if let Some(at) = dynamic.filter(|_| pool.is_none() || random.once_in(2)) {
            bitmap(builder, at, special);
            return Ok(());
        }
        let Some(pool) = pool.filter(|_| !random.once_in(3) || self.build >= 9200) else { return Ok(()) };
        let entry = builder.memory.page_tables() + (special.start >> 9 & 0x7f_ffff_fff8);
        for name in ["PteBase", "NonPaged.PteBase", "Paged.PteBase"] {
            if let Ok(offset) = builder.isf.offset(POOL, name) {
                builder.put_pointer(pool + offset, entry);
            }
        }
        let bits = pool + builder.isf.offset(POOL, "SpecialPoolPdes.SizeOfBitMap")?;
        builder.memory.put(bits, &((special.end - special.start) / (2 * MIB)).to_le_bytes()[..4]);
        Ok(())
    }

    /// The variables and tables by which the version says where its pool is.
    pub(crate) fn write(&self, builder: &mut Builder, random: &mut Random) -> Result<(), IsfError> {
        let (nonpaged, paged) = (self.nonpaged.clone(), self.paged.clone());
        for (name, value) in [
            ("MmNonPagedPoolStart", nonpaged.start),
            ("MiNonPagedPoolStartAligned", nonpaged.start),
            ("MiNonPagedPoolEnd", nonpaged.end),
            ("MmMaximumNonPagedPoolInBytes", nonpaged.end - nonpaged.start),
            ("MiPagedPoolStart", paged.start),
            ("MmPagedPoolEnd", paged.end - 1),
            ("MmSizeOfPagedPoolInBytes", paged.end - paged.start),
            ("MmPteBase", builder.memory.page_tables()),
        ] {
            builder.set_known_pointer(name, value);
        }
        if self.machine.is_x86() {
            return self.directory(builder);
        }
        if self.build < 10240 {
            let entry = builder.memory.page_tables() + (paged.start >> 9 & 0x7f_ffff_fff8);
            let mut info = builder.object("_MM_PAGED_POOL_INFO")?;
            builder.field(&mut info, "FirstPteForPagedPool", entry)?;
            let at = builder.symbol("MmPagedPoolInfo")?;
            builder.store(at, &info);
        }
        if self.build < 14393 {
            return self.before_regions(builder, random);
        }
        let visible = builder.symbol("MiState")? + builder.isf.offset("_MI_SYSTEM_INFORMATION", "Vs")?;
        builder.set_pointer("MiVisibleState", visible)?;
        let mut regions = vec![("NonPagedPool", nonpaged), ("PagedPool", paged)];
        if let Some(session) = &self.session {
            regions.push(("Session", session.clone()));
        }
        if let Some([first, second]) = &self.special {
            regions.push(("SpecialPool", first.clone()));
            regions.push(("SpecialPoolNonPaged", first.clone()));
            regions.push(("SpecialPoolPaged", second.clone()));
        }
        let constant = |builder: &Builder, ty: &str, name: &str| {
            builder.isf.enums.get(ty).and_then(|kinds| kinds.constants.get(name)).map(|value| *value as u64)
        };
        for (name, region) in regions {
            let kind = constant(builder, "_MI_ASSIGNED_REGION_TYPES", &format!("AssignedRegion{name}"));
            if let Some(kind) = kind {
                let array = visible + builder.isf.offset("_MI_VISIBLE_STATE", "SystemVaRegions")?;
                let at = array + kind * builder.isf.size("_MI_SYSTEM_VA_ASSIGNMENT")?;
                builder.memory.put(at, &region.start.to_le_bytes());
                builder.memory.put(at + 8, &(region.end - region.start).to_le_bytes());
            }
            let types = builder.isf.offset("_MI_VISIBLE_STATE", "SystemVaType");
            let kind = constant(builder, "_MI_SYSTEM_VA_TYPE", &format!("MiVa{name}"));
            if let (Ok(types), Some(kind)) = (types, kind) {
                for slot in (region.start..region.end).step_by(SLOT as usize) {
                    builder.memory.put(visible + types + (slot >> 39 & 0xff), &[kind as u8]);
                }
            }
        }
        Ok(())
    }
}
