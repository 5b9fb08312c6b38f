//! Terminal sessions: each has a pool of its own, at the same addresses as every other's, which only its processes see.

use std::collections::BTreeMap;

use super::places::Map;
use super::small::{self, World};
use super::{range, tags};
use crate::isf::{IsfError, Type};
use crate::kernel::books::{PoolKind, Usage, sums, usages};
use crate::kernel::builder::Builder;
use crate::kernel::pool::{BigPage, TagRow, tag};
use crate::kernel::random::Random;
use crate::kernel::truth::{LargeBlock, Session, SmallBlock, SmallState};

const SPACE: &str = "_MM_SESSION_SPACE";
const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;

/// Places within session space.
const STRUCTURE: u64 = MIB;
const TAGS: u64 = 2 * MIB;
const EXPANSION: u64 = 3 * MIB;
const BIG_PAGES: u64 = 4 * MIB;
const HEAPS: u64 = 16 * MIB;
const POOL: u64 = 0xc000_0000;
const LARGE: u64 = 0xd000_0000;
const END: u64 = 0xe000_0000;

/// The names of a session's processes.
pub(crate) const PROCESSES: [&str; 2] = ["csrss.exe", "winlogon.exe"];

/// How many sessions the machine has: none where the table does not have their types.
pub(crate) fn count(builder: &Builder) -> usize {
    let region = builder.isf.enums.get("_MI_ASSIGNED_REGION_TYPES");
    let gone = region.is_some_and(|kinds| !kinds.constants.contains_key("AssignedRegionSession"));
    let known = !gone && builder.isf.size(SPACE).is_ok() && builder.isf.offset("_EPROCESS", "Session").is_ok();
    if known { 2 } else { 0 }
}

/// Gives each of the sessions, which are lists of their processes, an address space and a pool. Whatever else is mapped
/// in the kernel's half must be there already.
pub(crate) fn write(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    world: &World,
    sessions: &[Vec<u64>],
) -> Result<Vec<Session>, IsfError> {
    let Some(space) = map.session.clone() else { return Ok(Vec::new()) };
    // The structures themselves lie in session space too, or where all processes see them.
    let shared = random.once_in(2);
    let slots = slots(builder)?;
    let variable = tags_place(builder)?;
    if let TagsPlace::Variable = variable {
        builder.set_pointer("ExpSessionPoolTrackTable", space.start + TAGS)?;
    }
    builder.set_pointer("ExpSessionPoolTrackTableSize", slots + 1)?;
    builder.set_pointer("ExpSessionPoolTrackTableMask", slots - 1)?;
    let mut all = Vec::new();
    for (id, processes) in (random.below(3) as u32..).zip(sessions) {
        let address = if shared { map.room(builder.isf.size(SPACE)?) } else { space.start + STRUCTURE };
        // The kernel's half must have this entry before it is copied.
        let mut object = builder.object(SPACE)?;
        if shared {
            builder.store(address, &object);
        }
        let own = builder.memory.address_space(&[]);
        let kernel = builder.memory.enter(own);
        let values = [
            ("SessionId", u64::from(id)),
            ("ReferenceCount", processes.len() as u64),
            ("PagedPoolStart", space.start + POOL),
            ("PagedPoolEnd", space.start + END - 1),
        ];
        builder.fields(&mut object, &values)?;
        builder.store(address, &object);
        let next = map.move_to(space.start + HEAPS);
        let pool = range(space.start + POOL, LARGE - POOL);
        let (small, mut pages) = small::write_session(builder, map, random, world, address, &pool)?;
        map.move_to(next);
        if world.build < 17763 {
            large(random, space.start, &mut pages);
        }
        let large = table(builder, address, space.start, &pages)?;
        let live = counts(&small, &pages);
        let tags = tags(builder, random, address, space.start, slots, &live, world.balanced)?;
        builder.memory.enter(kernel);
        processes_of(builder, address, own, processes)?;
        all.push(Session { id, address, processes: processes.clone(), tags, large, small });
    }
    Ok(all)
}

/// Where a version has the first row of a session's tag table.
enum TagsPlace {
    /// In the structure.
    Inside,
    /// A pointer there.
    Pointer,
    /// A variable of the kernel's.
    Variable,
}

fn tags_place(builder: &Builder) -> Result<TagsPlace, IsfError> {
    Ok(match builder.isf.member(SPACE, "PoolTags") {
        Ok((_, Type::Pointer { .. })) => TagsPlace::Pointer,
        Ok(_) => TagsPlace::Inside,
        Err(_) => TagsPlace::Variable,
    })
}

/// What the blocks of a session are, by tag.
fn counts(small: &[SmallBlock], pages: &[BigPage]) -> BTreeMap<u32, Usage> {
    let small = small.iter().filter(|block| block.state == SmallState::Live);
    let small = small.map(|block| (block.tag, block.outer.map_or(block.bytes, |outer| outer.bytes)));
    let large = pages.iter().filter(|page| !page.freed).map(|page| (page.tag, page.bytes.next_multiple_of(PAGE)));
    let mut counts: BTreeMap<u32, Usage> = BTreeMap::new();
    for (tag, bytes) in small.chain(large) {
        let usage = counts.entry(tag).or_default();
        usage.allocs += 1;
        usage.bytes += bytes;
    }
    counts
}

/// Rows of a tag table, without the last.
fn slots(builder: &Builder) -> Result<u64, IsfError> {
    let TagsPlace::Inside = tags_place(builder)? else { return Ok(64) };
    let (_, ty) = builder.isf.member(SPACE, "PoolTags")?;
    let rows = builder.isf.size_of(ty)? / builder.isf.size("_POOL_TRACKER_TABLE")?;
    Ok(1 << (rows - 1).ilog2())
}

fn tags(
    builder: &mut Builder,
    random: &mut Random,
    address: u64,
    space: u64,
    slots: u64,
    live: &BTreeMap<u32, Usage>,
    balanced: bool,
) -> Result<Vec<crate::kernel::TagUsage>, IsfError> {
    let (_, counter) = builder.isf.member("_POOL_TRACKER_TABLE", "NonPagedAllocs")?;
    let wide = builder.isf.size_of(counter)? == 8;
    let mut rows: Vec<TagRow> =
        live.iter().map(|(tag, paged)| TagRow { tag: *tag, nonpaged: Usage::default(), paged: *paged }).collect();
    for _ in 0..slots / 2 + random.below(slots / 4) {
        let row = tags::row(tags::name(random), wide, balanced, random);
        // Some places stay free: a search ends there.
        if (rows.len() as u64) < slots / 4 * 3 && rows.iter().all(|other| other.tag != row.tag) {
            rows.push(row);
        }
    }
    let last = tags::row(tag(b"Ovfl"), wide, balanced, random);
    let expansion: Vec<TagRow> = (0..random.below(5))
        .map(|number| {
            let name = if number % 2 == 0 { random.pick(&rows).tag } else { tags::name(random) };
            tags::row(name, wide, balanced, random)
        })
        .collect();
    let mut bytes = Vec::new();
    for row in builder.tag_places(slots, &rows, Some(&last)) {
        bytes.extend(builder.tag_row(row)?);
    }
    let table = match tags_place(builder)? {
        TagsPlace::Inside => address + builder.isf.offset(SPACE, "PoolTags")?,
        TagsPlace::Pointer => {
            builder.put_pointer(address + builder.isf.offset(SPACE, "PoolTags")?, space + TAGS);
            space + TAGS
        }
        TagsPlace::Variable => space + TAGS,
    };
    builder.memory.put(table, &bytes);
    let mut bytes = Vec::new();
    for row in &expansion {
        bytes.extend(builder.tag_row(Some(row))?);
    }
    if !expansion.is_empty() {
        builder.memory.put(space + EXPANSION, &bytes);
        builder.put_pointer(address + builder.isf.offset(SPACE, "PoolTrackTableExpansion")?, space + EXPANSION);
    }
    let size = address + builder.isf.offset(SPACE, "PoolTrackTableExpansionSize")?;
    builder.put_pointer(size, expansion.len() as u64);
    rows.push(last);
    Ok(usages(&sums(rows.iter().chain(&expansion))))
}

/// Large blocks where no heap has them.
fn large(random: &mut Random, space: u64, pages: &mut Vec<BigPage>) {
    let texts: [&[u8; 4]; 5] = [b"Gh05", b"Usqu", b"GTmp", b"Leak", b"Pro\xe3"];
    let mut at = space + LARGE;
    for _ in 0..20 + random.below(60) {
        let bytes = 0x1000 + 16 * random.below(0x800);
        pages.push(BigPage {
            address: at,
            tag: u32::from_le_bytes(**random.pick(&texts)),
            kind: PoolKind::PagedSession,
            bytes,
            freed: random.once_in(4),
        });
        at += bytes.next_multiple_of(PAGE) + PAGE * random.below(8);
    }
}

/// The table of large blocks.
fn table(builder: &mut Builder, address: u64, space: u64, pages: &[BigPage]) -> Result<Vec<LargeBlock>, IsfError> {
    let slots = (2 * pages.len() as u64).next_power_of_two();
    let used = builder.big_page_table(space + BIG_PAGES, slots, pages)?;
    for (member, value) in [("PoolTrackBigPages", space + BIG_PAGES), ("PoolTrackBigPagesSize", slots)] {
        builder.put_pointer(address + builder.isf.offset(SPACE, member)?, value);
    }
    let entries = address + builder.isf.offset(SPACE, "PoolBigEntriesInUse")?;
    builder.memory.put(entries, &(used as u32).to_le_bytes());
    let block =
        |page: &BigPage| LargeBlock { address: page.address, bytes: page.bytes, tag: page.tag, freed: page.freed };
    Ok(pages.iter().map(block).collect())
}

/// Puts processes into a session: each has page tables of its own, in which the session's are the same.
fn processes_of(builder: &mut Builder, address: u64, own: u64, processes: &[u64]) -> Result<(), IsfError> {
    let mut links = Vec::new();
    for (number, process) in processes.iter().enumerate() {
        let root = match number {
            0 => own,
            _ => {
                let kernel = builder.memory.enter(own);
                let root = builder.memory.address_space(&[]);
                builder.memory.enter(kernel);
                root
            }
        };
        let place = |path| Ok::<u64, IsfError>(process + builder.isf.offset("_EPROCESS", path)?);
        let (session, base) = (place("Session")?, place("Pcb.DirectoryTableBase")?);
        links.push(place("SessionProcessLinks")?);
        builder.put_pointer(session, address);
        builder.put_pointer(base, root);
    }
    let kernel = builder.memory.enter(own);
    links.insert(0, address + builder.isf.offset(SPACE, "ProcessList")?);
    builder.link(&links);
    builder.memory.enter(kernel);
    Ok(())
}
