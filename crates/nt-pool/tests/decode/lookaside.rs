//! Each processor's lookaside lists: elements by the type's own size, lists or pairs of pointers to lists, and what is
//! plausible as a whole.

use nt_pool::lookaside::{self, Lookasides, Place};

use crate::support::*;

const VERSIONS: [Version; 3] = [VISTA_X86, WIN7_X64, WIN10_1607];

/// One processor whose array has 32 elements, which the symbols say are `element` bytes long.
fn processor(version: Version, element: Option<u64>) -> (World, u64, u64) {
    let mut world = World::new(version);
    let size = lookaside_types(&mut world);
    let prcb = world.pool(0x50);
    world.u32_variable("KeNumberProcessors", 1);
    world.pointer_variable("KiProcessorBlock", prcb);
    world.layout("_KPRCB", 0x1000, &[array("PPNPagedLookasideList", 0x100, 32, element.unwrap_or(size))]);
    world.write(prcb, &[0; 0x1000]);
    (world, prcb + 0x100, size)
}

fn lists(world: &World) -> Lookasides {
    lookaside::per_processor(&world.kernel(), None).unwrap()
}

/// Whatever the array's element is said to have, a list is as long as its type.
#[test]
fn elements_have_the_size_of_their_type() {
    for version in VERSIONS {
        let (mut world, start, size) = processor(version, Some(0x70));
        let waiting = [world.pool(1), world.pool(2)];
        (0..32).for_each(|index| put_lookaside(&mut world, start + index * size, (index + 1) * 8, &waiting));
        let found = lists(&world);
        assert_eq!((found.lists.len(), found.notes.lines()), (32, vec![]));
        for (index, list) in (0u32..).zip(&found.lists) {
            let place = Place::Pool { processor: 0, member: "PPNPagedLookasideList", index };
            assert_eq!((list.place, list.address), (place, start + u64::from(index) * size));
            assert_eq!((list.size, list.current_depth), (u64::from(index + 1) * 8, 2));
        }
    }
}

/// An array of pairs of pointers: by its type, or although the type says that it has lists.
#[test]
fn pairs_of_pointers_lead_to_lists() {
    for version in VERSIONS {
        for by_type in [true, false] {
            let width = u64::from(version.pointer);
            let (mut world, start, _) = processor(version, by_type.then_some(2 * width));
            let lists_at = world.pool(8);
            for index in 0..32u64 {
                for (which, list) in [(0, 2 * index), (1, 2 * index + 1)] {
                    let at = lists_at + list * 0x80;
                    world.write(at, &[0; 0x80]);
                    put_lookaside(&mut world, at, (index + 1) * 8, &[]);
                    world.put(start + (2 * index + which) * width, at, version.pointer);
                }
            }
            let found = lists(&world);
            assert_eq!((found.lists.len(), found.notes.lines()), (64, vec![]), "{version:?}, by type {by_type}");
            assert!(found.lists.iter().all(|list| (8..=0x100).contains(&list.size)));
        }
    }
}

/// Lists with a size, a depth or a link that cannot be are not shown, and are one line.
#[test]
fn what_cannot_be_is_one_complaint() {
    for version in VERSIONS {
        let (mut world, start, size) = processor(version, None);
        let waiting = [world.pool(1)];
        (0..32).for_each(|index| put_lookaside(&mut world, start + index * size, (index + 1) * 8, &waiting));
        let head = if version.pointer == 4 { 8 } else { 0x10 };
        for index in 0..7 {
            world.put(start + index * size + head + 0x1c, 0xffff_f880, 4);
        }
        // A depth without a first block.
        let first = if version.pointer == 4 { 0 } else { 8 };
        world.put(start + 9 * size + first, 0, version.pointer);
        let found = lists(&world);
        assert_eq!(found.lists.len(), 24);
        assert!(found.lists.iter().all(|list| list.size <= 0x100));
        assert_eq!(found.notes.lines().len(), 1, "{:?}", found.notes.lines());
        assert!(found.notes.lines()[0].starts_with("8 of the pool's lookaside lists"), "{:?}", found.notes.lines());
    }
}
