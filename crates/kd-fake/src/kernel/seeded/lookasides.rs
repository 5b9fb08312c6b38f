//! Lookaside lists with counters: the registered ones, those of the system, and each processor's for the pool, whose
//! blocks the pool's allocator puts there.

use super::places::Map;
use super::small::World;
use crate::isf::IsfError;
use crate::kernel::builder::Builder;
use crate::kernel::random::Random;
use crate::kernel::truth::{Lookaside, LookasidePlace};

/// Variables of the kernel that are registered lists, in versions that have them.
const REGISTERED: [(&str, &[u8; 4]); 3] =
    [("CcTwilightLookasideList", b"CcWk"), ("CcBitmapLookasideList", b"CcBm"), ("FsRtlFileLockLookasideList", b"FLfl")];

/// Lists that all processors share, by their place in `PPLookasideList`.
const SHARED: [(u32, &str, &[u8; 4]); 3] = [
    (1, "IopMediumIrpLookasideList", b"Irpm"),
    (2, "IopLargeIrpLookasideList", b"Irpl"),
    (3, "IopMdlLookasideList", b"Mdl "),
];

/// Writes the lists and says what they are.
pub(super) fn write(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    world: &World,
) -> Result<Vec<Lookaside>, IsfError> {
    let mut all = Vec::new();
    registered(builder, map, random, &mut all)?;
    system(builder, map, random, world, &mut all)?;
    pool(builder, random, world, &mut all)?;
    Ok(all)
}

/// Drivers' lists and the kernel's, in two circles.
fn registered(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    all: &mut Vec<Lookaside>,
) -> Result<(), IsfError> {
    let entry = builder.isf.offset("_GENERAL_LOOKASIDE", "ListEntry")?;
    for (head, types) in [("ExNPagedLookasideListHead", [0, 0x200]), ("ExPagedLookasideListHead", [1, 0x11])] {
        let mut circle = vec![builder.symbol(head)?];
        let mut places: Vec<(u64, u32)> = Vec::new();
        if types[0] == 0 {
            let named = REGISTERED.iter().filter_map(|(name, tag)| Some((builder.symbol(name).ok()?, tag)));
            places.extend(named.map(|(at, tag)| (at, u32::from_le_bytes(**tag))));
        }
        for _ in 0..1 + random.below(5) {
            let tag = *random.pick(&[b"Ntfs", b"Leak", b"NDpp", b"Fil\xf4"]);
            places.push((map.room(0x100), u32::from_le_bytes(*tag)));
        }
        for (address, tag) in places {
            let blocks = random.below(6);
            let list = lookaside(address, tag, *random.pick(&types), blocks, LookasidePlace::Registered, random);
            store(builder, map, "_GENERAL_LOOKASIDE", &list)?;
            circle.push(address + entry);
            all.push(list);
        }
        builder.link(&circle);
    }
    Ok(())
}

/// Every processor's own list for what the system allocates all the time, and the one behind them.
fn system(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    world: &World,
    all: &mut Vec<Lookaside>,
) -> Result<(), IsfError> {
    let array = builder.isf.offset("_KPRCB", "PPLookasideList")?;
    let size = builder.isf.size("_PP_LOOKASIDE_LIST")?;
    for (index, name, tag) in SHARED {
        let tag = u32::from_le_bytes(*tag);
        let shared = builder.symbol(name).unwrap_or_else(|_| map.room(0x100));
        let place = LookasidePlace::System { processor: 0, index, shared: true };
        let list = lookaside(shared, tag, 0, random.below(4), place, random);
        store(builder, map, "_GENERAL_LOOKASIDE", &list)?;
        all.push(list);
        for (number, prcb) in world.processors.iter().enumerate() {
            let own = map.room(0x100);
            let place = LookasidePlace::System { processor: number as u32, index, shared: false };
            let list = lookaside(own, tag, 0, random.below(4), place, random);
            store(builder, map, "_GENERAL_LOOKASIDE", &list)?;
            all.push(list);
            let pair = prcb + array + u64::from(index) * size;
            builder.put_pointer(pair, own);
            builder.put_pointer(pair + builder.width(), shared);
        }
    }
    Ok(())
}

/// The pool's lists: what waits in them is there already.
fn pool(builder: &mut Builder, random: &mut Random, world: &World, all: &mut Vec<Lookaside>) -> Result<(), IsfError> {
    let size = builder.isf.size("_GENERAL_LOOKASIDE_POOL")?;
    for (number, prcb) in world.processors.iter().enumerate() {
        for (member, pool_type) in
            [("PPNPagedLookasideList", 0), ("PPNxPagedLookasideList", 0x200), ("PPPagedLookasideList", 1)]
        {
            let Ok(offset) = builder.isf.offset("_KPRCB", member) else { continue };
            for index in 0..32 {
                let address = prcb + offset + u64::from(index) * size;
                let place = LookasidePlace::Pool { processor: number as u32, member, index };
                let tag = u32::from_le_bytes(*b"Pool");
                let mut list = lookaside(address, tag, pool_type, 0, place, random);
                list.size = (u64::from(index) + 1) * world.unit;
                list.current_depth = depth(builder, address);
                // Some sizes are never asked for.
                if random.once_in(3) && list.current_depth == 0 {
                    (list.total_allocates, list.allocate_misses, list.total_frees, list.free_misses) = (0, 0, 0, 0);
                }
                counters(builder, "_GENERAL_LOOKASIDE_POOL", &list)?;
                all.push(list);
            }
        }
    }
    Ok(())
}

fn lookaside(
    address: u64,
    tag: u32,
    pool_type: u32,
    current_depth: u64,
    place: LookasidePlace,
    random: &mut Random,
) -> Lookaside {
    let total_allocates = random.below(1 << 20);
    let total_frees = random.below(total_allocates + 1);
    Lookaside {
        address,
        tag,
        pool_type,
        size: 16 * (1 + random.below(0x80)),
        current_depth,
        depth: 4 + random.below(0xfc),
        maximum_depth: 0x100,
        total_allocates,
        allocate_misses: random.below(total_allocates + 1),
        total_frees,
        free_misses: random.below(total_frees + 1),
        place,
    }
}

/// The list with as many blocks as it says, which belong to nobody else.
fn store(builder: &mut Builder, map: &mut Map, ty: &'static str, list: &Lookaside) -> Result<(), IsfError> {
    let object = builder.object(ty)?;
    builder.store(list.address, &object);
    let room = map.room(list.size * list.current_depth.max(1));
    let blocks: Vec<u64> = (0..list.current_depth).map(|block| room + block * list.size).collect();
    builder.singly_linked(list.address, &blocks);
    counters(builder, ty, list)
}

/// All but the list's head.
fn counters(builder: &mut Builder, ty: &'static str, list: &Lookaside) -> Result<(), IsfError> {
    let mut object = builder.object(ty)?;
    let (mut allocates, mut frees) = (list.allocate_misses, list.free_misses);
    // The pool counts what its lists had, all others what they had not.
    if matches!(list.place, LookasidePlace::Pool { .. }) {
        (allocates, frees) = (list.total_allocates - allocates, list.total_frees - frees);
    }
    let values = [
        ("Depth", list.depth),
        ("MaximumDepth", list.maximum_depth),
        ("TotalAllocates", list.total_allocates),
        ("AllocateMisses", allocates),
        ("TotalFrees", list.total_frees),
        ("FreeMisses", frees),
        ("Type", list.pool_type.into()),
        ("Tag", list.tag.into()),
        ("Size", list.size),
    ];
    builder.fields(&mut object, &values)?;
    let from = builder.isf.offset(ty, "Depth")?;
    let to = builder.isf.offset(ty, "ListEntry")?;
    let bytes = object.into_bytes();
    builder.memory.put(list.address + from, &bytes[from as usize..to as usize]);
    Ok(())
}

/// Blocks in the list that stands at an address.
fn depth(builder: &Builder, head: u64) -> u64 {
    let mut count = 0;
    let mut at = builder.first_of(head);
    while at != 0 {
        count += 1;
        at = builder.pointer(at);
    }
    count
}
