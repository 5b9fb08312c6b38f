//! Pages of special pool, with the block at either end.

use nt_pool::special_page::{self, SpecialBlock};
use nt_pool::{PoolKind, Tag};
use proptest::prelude::*;

use crate::support::*;

const OVERRUNS: [Version; 4] = [VISTA_X86, WIN7_X64, WIN10_1903, WIN11_21H2];

/// A page with one block, by facts/pool-internals.md 6.1 and 6.2.
fn page(world: &mut World, size: u64, underruns: bool, tracked: bool, paged: bool, fill: u8) -> SpecialBlock {
    let narrow = world.version.pointer == 4;
    let room = if narrow { 8 } else { 0x10 };
    let page = world.pool(0);
    world.write(page, &[fill; 0x1000]);
    let header = if underruns { page + 0x1000 - room } else { page };
    let data = if underruns { page } else { (page + 0x1000 - size) & !(room - 1) };
    let bits = size | u64::from(tracked) << 14 | u64::from(paged) << 15 | u64::from(fill) << 16;
    world.write(header, &vec![0; room as usize]);
    world.put(header, bits, 4);
    world.write(header + 4, b"Scbf");
    if tracked {
        let pointer = world.version.pointer;
        let at = if underruns { header - u64::from(pointer) } else { header + room };
        world.put(at, world.pool(7), pointer);
    }
    world.write(data, &vec![0xee; size as usize]);
    SpecialBlock {
        header,
        address: data,
        size,
        tag: Tag(*b"Scbf"),
        kind: if paged { PoolKind::Paged } else { PoolKind::NonPaged },
        tracked,
        fill,
        overwritten: vec![],
    }
}

proptest! {
    #![proptest_config(cases(192))]

    #[test]
    fn the_block_is_found_at_either_end(
        version in prop::sample::select(OVERRUNS.to_vec()),
        size in 1..0xf00u64,
        underruns in any::<bool>(),
        tracked in any::<bool>(),
        paged in any::<bool>(),
        fill in (0..=0xffu8).prop_map(|byte| byte | 1),
    ) {
        let underruns = underruns && version.build < 18362;
        let mut world = World::new(version);
        let expected = page(&mut world, size, underruns, tracked, paged && version.build < 18362, fill);
        let found = special_page::read(&world.kernel(), world.pool(0) + 0x800).unwrap();
        prop_assert_eq!(found, Some(expected));
    }

    #[test]
    fn any_page_is_decoded_without_harm(version in prop::sample::select(OVERRUNS.to_vec()), bytes in prop::collection::vec(any::<u8>(), 0x20), size in any::<u16>()) {
        let world = World::new(version);
        let mut page = bytes.repeat(0x80);
        page[..2].copy_from_slice(&size.to_le_bytes());
        page[8..16].fill(0);
        if let Some(block) = special_page::decode(&world.kernel(), world.pool(0), &page) {
            prop_assert!(block.address + block.size <= world.pool(0) + 0x1000);
        }
    }
}

#[test]
fn a_byte_behind_the_block_is_seen() {
    let mut world = World::new(WIN7_X64);
    let mut expected = page(&mut world, 0x3c, false, true, false, 0x5b);
    // The sample of a block of 0x3c bytes ends four bytes before the page does.
    assert_eq!(expected.address & 0xfff, 0xfc0);
    let behind = expected.address + 0x3c;
    world.write(behind, &[0]);
    expected.overwritten = vec![behind];
    assert_eq!(special_page::read(&world.kernel(), behind).unwrap(), Some(expected));
}

#[test]
fn a_page_of_zeros_is_none() {
    let mut world = World::new(WIN7_X64);
    let page = world.pool(0);
    world.write(page, &[0; 0x1000]);
    assert_eq!(special_page::read(&world.kernel(), page).unwrap(), None);
}
