//! Where the memory manager's counts of pages are read: the variables of old kernels, the members of new ones.

use nt_pool::page_counts::{PageCount, PageCounts};

use crate::support::{Version, WIN7_X64, World, member, number};

const PAGES: u64 = 0x1000;

fn paged_pool_info(world: &mut World, count: u64) {
    world.layout("_MM_PAGED_POOL_INFO", count + 8, &[number("AllocatedPagedPool", count, 8)]);
}

fn count(pages: u64, source: &'static str) -> Option<PageCount> {
    Some(PageCount { bytes: pages * PAGES, source })
}

#[test]
fn up_to_8_1_they_are_variables() {
    let mut world = World::new(WIN7_X64);
    paged_pool_info(&mut world, 0x60);
    world.pointer_variable("MmAllocatedNonPagedPool", 7);
    world.pointer_variable("MmMdlPagesAllocated", 0);
    let info = world.variable("MmPagedPoolInfo", 0x68);
    world.put(info + 0x60, 9, 8);
    let counts = PageCounts::read(&world.kernel()).unwrap();
    assert_eq!(
        (counts.nonpaged, counts.paged, counts.mdl),
        (count(7, "MmAllocatedNonPagedPool"), count(9, "MmPagedPoolInfo"), None)
    );
    assert!(counts.notes.is_complete());
}

/// As on 19045: what lies behind the first member of `MiState` is 0x40 bytes above the place that the symbols give.
#[test]
fn later_ones_are_members_and_found_where_the_kernel_points() {
    let mut world = World::new(Version { build: 19045, ..WIN7_X64 });
    paged_pool_info(&mut world, 0x10);
    world.layout(
        "_MI_SYSTEM_INFORMATION",
        0x400,
        &[member("Pools", 0, 0xa8, "_MI_POOL_STATE"), member("Vs", 0x100, 0x200, "_MI_VISIBLE_STATE")],
    );
    world.layout("_MI_POOL_STATE", 0xa8, &[number("AllocatedNonPagedPool", 8, 8)]);
    let fields = [member("PagedPoolInfo", 0x18, 0x18, "_MM_PAGED_POOL_INFO"), number("MdlPagesAllocated", 0xb8, 8)];
    world.layout("_MI_VISIBLE_STATE", 0x200, &fields);
    let state = world.variable("MiState", 0x400);
    let visible = state + 0x140;
    world.pointer_variable("MiVisibleState", visible);
    world.put(state + 8, 7, 8);
    world.put(visible + 0x28, 9, 8);
    world.put(visible + 0xb8, 11, 8);
    let counts = PageCounts::read(&world.kernel()).unwrap();
    assert_eq!(
        (counts.nonpaged, counts.paged, counts.mdl),
        (count(7, "MiState"), count(9, "MiVisibleState"), count(11, "MiVisibleState"))
    );
}

#[test]
fn what_cannot_be_read_is_said() {
    let mut world = World::new(WIN7_X64);
    world.pointer_variable("MmAllocatedNonPagedPool", 7);
    let at = world.address_of("MmAllocatedNonPagedPool");
    world.unmap(at);
    let counts = PageCounts::read(&world.kernel()).unwrap();
    assert_eq!((counts.nonpaged, counts.paged), (None, None));
    let said = counts.notes.lines();
    assert!(said.len() == 1 && said[0].starts_with("MmAllocatedNonPagedPool: "), "{said:?}");
}

#[test]
fn a_pointer_that_leads_nowhere_is_said() {
    for (pointer, words) in [(0x1234, "MiVisibleState is 0000000000001234, "), (0, "MiVisibleState: ")] {
        let mut world = World::new(Version { build: 19045, ..WIN7_X64 });
        world.pointer_variable("MiVisibleState", pointer);
        if pointer == 0 {
            let at = world.address_of("MiVisibleState");
            world.unmap(at);
        }
        let counts = PageCounts::read(&world.kernel()).unwrap();
        let said = counts.notes.lines();
        assert!(said.len() == 1 && said[0].starts_with(words), "{said:?}");
    }
}
