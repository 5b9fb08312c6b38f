//! `!verifier`: settings, drivers, their outstanding allocations, and the logs beside the pool's.

use nt_pool::Tag;
use nt_pool::pool_log::Wanted;
use nt_pool::verifier::{self, Allocation, Entry, LogKind, State};
use proptest::prelude::*;

use crate::support::*;

/// Where the members lie, by facts/pool-internals.md 7.4 and the isf files.
struct Layouts {
    /// VerifiedData in `_VF_TARGET_DRIVER`.
    verified_data: u64,
    target: u64,
    pool_pages: u64,
    current_paged: u64,
    data: u64,
    /// Tables in `_VF_AVL_TREE`; TablesNo follows.
    tables: u64,
    tree: u64,
    table: u64,
}

fn layouts(version: Version) -> Layouts {
    let of = |verified_data, target, pool_pages, current_paged, data, tables, tree, table| Layouts {
        verified_data,
        target,
        pool_pages,
        current_paged,
        data,
        tables,
        tree,
        table,
    };
    match version.build {
        ..9200 => of(0x28, 0x30, 0x30, 0x50, 0x100, 0x20, 0x40, 0x70),
        9200..14393 => of(0x30, 0x38, 0x30, 0x50, 0x100, 0x10, 0x20, 0xc0),
        14393..17134 => of(0x38, 0x40, 0x30, 0x50, 0x120, 0x10, 0x28, 0xc0),
        17134..19041 => of(0x38, 0x40, 0x40, 0x60, 0x120, 0x10, 0x28, 0xc0),
        19041..20348 => of(0x38, 0x40, 0x40, 0x68, 0x130, 0x10, 0x28, 0xc0),
        20348..22000 => of(0x30, 0x38, 0x40, 0x70, 0x130, 0x10, 0x28, 0xc0),
        _ => of(0x38, 0x40, 0x40, 0x70, 0x130, 0x10, 0x28, 0xc0),
    }
}

const NEW: [Version; 5] = [WIN7_X64, WIN10_1607, WIN10_1903, SERVER_2022, WIN11_21H2];

/// One driver as it is put into the kernel.
#[derive(Debug, Clone)]
struct Truth {
    name: String,
    loads: u32,
    unloads: u32,
    loaded: bool,
    current_paged: u32,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy)]
enum Slot {
    Live {
        size: u64,
        tag: [u8; 4],
    },
    /// The link leads to the slot after it, or nowhere; the rest is what the last allocation left.
    Free {
        last: bool,
    },
    Never,
}

fn slots() -> impl Strategy<Value = Vec<Slot>> {
    let slot = prop_oneof![
        3 => (1..0x2000u64, prop::sample::select(vec![*b"Vprt", *b"VMdl", *b"Leak"])).prop_map(|(size, tag)| Slot::Live { size, tag }),
        1 => any::<bool>().prop_map(|last| Slot::Free { last }),
        1 => Just(Slot::Never),
    ];
    prop::collection::vec(slot, 0..300)
}

fn truth() -> impl Strategy<Value = Truth> {
    ("[a-z]{1,12}\\.sys", 0..4u32, 0..4u32, any::<bool>(), any::<u32>(), slots()).prop_map(
        |(name, loads, unloads, loaded, current_paged, slots)| Truth {
            name,
            loads,
            unloads: unloads.min(loads),
            loaded,
            current_paged,
            slots,
        },
    )
}

/// Places things one behind the other.
struct Heap {
    world: World,
    next: u64,
}

impl Heap {
    fn new(version: Version) -> Self {
        let world = World::new(version);
        Heap { next: world.pool(1), world }
    }

    fn take(&mut self, size: u64, alignment: u64) -> u64 {
        let at = self.next.next_multiple_of(alignment);
        self.next = at + size;
        self.world.write(at, &vec![0; size as usize]);
        at
    }

    fn put(&mut self, address: u64, value: u64) {
        let pointer = self.world.version.pointer;
        self.world.put(address, value, pointer);
    }

    /// A `_UNICODE_STRING` at `address`.
    fn name(&mut self, address: u64, name: &str) {
        let bytes: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let buffer = self.take(bytes.len() as u64, 2);
        self.world.write(buffer, &bytes);
        let pointer = u64::from(self.world.version.pointer);
        self.world.put(address, bytes.len() as u64, 2);
        self.world.put(address + 2, bytes.len() as u64 + 2, 2);
        self.put(address + pointer, buffer);
    }

    /// A circular list through `links`, from its head.
    fn list(&mut self, head: u64, links: &[u64]) {
        let mut at = head;
        for &link in links {
            self.put(at, link);
            at = link;
        }
        self.put(at, head);
    }

    /// The driver's tracking pages; returns the first.
    fn tracking_pages(&mut self, owner: u64, slots: &[Slot], expected: &mut Vec<Allocation>) -> u64 {
        let pointer = u64::from(self.world.version.pointer);
        let slot_size = 4 * pointer;
        let per_page = (0x1000 / slot_size - 1) as usize;
        let mut first = 0;
        let mut link = 0;
        for (n, part) in slots.chunks(per_page).enumerate() {
            let page = self.take(0x1000, 0x1000);
            if n == 0 {
                first = page;
            } else {
                self.put(link, page);
            }
            link = page;
            self.put(page + pointer, owner);
            self.put(page + 2 * pointer, 0x2132_1345);
            for (i, slot) in part.iter().enumerate() {
                let at = page + (i as u64 + 1) * slot_size;
                let block = self.world.pool(9) + (n * per_page + i) as u64 * 0x4000 + 0x10;
                let caller = self.world.base() + 0x1000 + i as u64;
                match *slot {
                    Slot::Live { size, tag } => {
                        self.put(at, block);
                        self.put(at + pointer, caller);
                        self.put(at + 2 * pointer, size);
                        self.world.write(at + 3 * pointer, &tag);
                        expected.push(Allocation { address: block, size, tag: Tag(tag), caller });
                    }
                    Slot::Free { last } => {
                        self.put(at, if last { 0 } else { page + slot_size });
                        self.put(at + pointer, caller);
                        self.put(at + 2 * pointer, 0x41);
                        self.world.write(at + 3 * pointer, b"Gone");
                    }
                    Slot::Never => {}
                }
            }
        }
        first
    }

    fn tracking_types(&mut self) {
        let pointer = u64::from(self.world.version.pointer);
        self.world.layout(
            "_VI_POOL_PAGE_HEADER",
            3 * pointer,
            &[
                field("NextPage", 0, pointer),
                field("VerifierEntry", pointer, pointer),
                number("Signature", 2 * pointer, pointer),
            ],
        );
        let in_use = ["VirtualAddress", "CallingAddress", "NumberOfBytes", "Tag"];
        let members: Vec<_> = in_use.iter().zip(0..).map(|(name, i)| field(name, i * pointer, pointer)).collect();
        self.world.layout("_VI_POOL_ENTRY_INUSE", 4 * pointer, &members);
        self.world.layout("_VI_POOL_ENTRY", 4 * pointer, &[member("InUse", 0, 4 * pointer, "_VI_POOL_ENTRY_INUSE")]);
        self.world.layout(
            "_UNICODE_STRING",
            2 * pointer,
            &[number("Length", 0, 2), number("MaximumLength", 2, 2), field("Buffer", pointer, pointer)],
        );
    }
}

/// A kernel of Windows 7 or later with some drivers, for those who only want it to be there.
pub(crate) fn ordinary(version: Version) -> World {
    build(version, &[one("a.sys", 200), one("b.sys", 3), one("c.sys", 0), one("d.sys", 1)]).0
}

/// A kernel of Windows 7 or later with these drivers; its tree is a chain to the left and to the right in turn.
fn build(version: Version, drivers: &[Truth]) -> (World, Vec<Vec<Allocation>>) {
    let mut heap = Heap::new(version);
    let layouts = layouts(version);
    heap.tracking_types();
    heap.world.layout(
        "_VF_SUSPECT_DRIVER_ENTRY",
        0x28,
        &[
            member("Links", 0, 0x10, "_LIST_ENTRY"),
            number("Loads", 0x10, 4),
            number("Unloads", 0x14, 4),
            member("BaseName", 0x18, 0x10, "_UNICODE_STRING"),
        ],
    );
    heap.world.layout(
        "_RTL_BALANCED_LINKS",
        0x20,
        &[field("Parent", 0, 8), field("LeftChild", 8, 8), field("RightChild", 0x10, 8), number("Balance", 0x18, 1)],
    );
    heap.world.layout("_RTL_AVL_TABLE", 0x68, &[member("BalancedRoot", 0, 0x20, "_RTL_BALANCED_LINKS")]);
    heap.world.layout("_VF_AVL_TABLE", layouts.table, &[member("RtlTable", 0, 0x68, "_RTL_AVL_TABLE")]);
    let tables_no = number("TablesNo", layouts.tables + 8, 4);
    heap.world.layout("_VF_AVL_TREE", layouts.tree, &[field("Tables", layouts.tables, 8), tables_no]);
    heap.world.layout("_VF_AVL_TREE_NODE", 0x10, &[field("p", 0, 8), number("RangeSize", 8, 8)]);
    let (node, size) = if version.build < 14393 { ("_VF_AVL_TREE_NODE", 0x10) } else { ("_VF_AVL_TREE_NODE_EX", 0x18) };
    if version.build >= 14393 {
        let base = member("Base", 0, 0x10, "_VF_AVL_TREE_NODE");
        heap.world.layout(node, size, &[base, number("SessionId", 0x10, 4)]);
    }
    let tree_node = member("TreeNode", 0, size, node);
    let verified_data = field("VerifiedData", layouts.verified_data, 8);
    heap.world.layout("_VF_TARGET_DRIVER", layouts.target, &[tree_node, verified_data]);
    let at = layouts.current_paged;
    heap.world.layout(
        "_VF_TARGET_VERIFIED_DRIVER_DATA",
        layouts.data,
        &[
            field("SuspectDriverEntry", 0, 8),
            number("Signature", 0x28, 8),
            member("PoolPageHeaders", layouts.pool_pages, 0x10, "_SLIST_HEADER"),
            number("CurrentPagedPoolAllocations", at, 4),
            number("CurrentNonPagedPoolAllocations", at + 4, 4),
            number("PagedBytes", at + 0x10, 8),
            number("NonPagedBytes", at + 0x18, 8),
        ],
    );

    let head = heap.world.variable("VfSuspectDriversList", 16);
    let tree = heap.world.variable("ViTargetDriversAvl", layouts.tree as u32);
    let trees = 3;
    let tables = heap.take(trees * layouts.table, 16);
    heap.put(tree + layouts.tables, tables);
    heap.world.put(tree + layouts.tables + 8, trees, 4);

    let mut links = Vec::new();
    let mut expected = Vec::new();
    // Where the next node of each tree is hung: first the root's right child.
    let mut hooks: Vec<u64> = (0..trees).map(|n| tables + n * layouts.table + 0x10).collect();
    for (n, driver) in drivers.iter().enumerate() {
        let suspect = heap.take(0x28, 16);
        links.push(suspect);
        heap.world.put(suspect + 0x10, driver.loads.into(), 4);
        heap.world.put(suspect + 0x14, driver.unloads.into(), 4);
        heap.name(suspect + 0x18, &driver.name);
        let mut allocations = Vec::new();
        if driver.loaded {
            let node = heap.take(0x20 + layouts.target, 16);
            let hook = &mut hooks[n % trees as usize];
            heap.world.put(*hook, node, 8);
            *hook = node + if n % 2 == 0 { 8 } else { 0x10 };
            let data = heap.take(layouts.data, 16);
            heap.put(node + 0x20, 0xffff_f880_0400_0000 + n as u64 * 0x10_0000);
            heap.put(node + 0x28, 0x8000);
            heap.put(node + 0x20 + layouts.verified_data, data);
            heap.put(data, suspect);
            heap.world.put(data + layouts.current_paged, driver.current_paged.into(), 4);
            let pages = heap.tracking_pages(data, &driver.slots, &mut allocations);
            heap.put(data + layouts.pool_pages, 0x1234_0001);
            let link = if pages == 0 { 0 } else { pages | 1 };
            heap.put(data + layouts.pool_pages + 8, link);
        }
        expected.push(allocations);
    }
    // An image that is loaded and not verified.
    let node = heap.take(0x20 + layouts.target, 16);
    heap.world.put(hooks[0], node, 8);
    heap.list(head, &links);
    (heap.world, expected)
}

/// The same for Vista, where everything is in one entry.
fn build_vista(drivers: &[Truth]) -> (World, Vec<Vec<Allocation>>) {
    let mut heap = Heap::new(VISTA_X86);
    heap.tracking_types();
    heap.world.layout(
        "_MI_VERIFIER_DRIVER_ENTRY",
        0x58,
        &[
            member("Links", 0, 8, "_LIST_ENTRY"),
            number("Loads", 8, 4),
            number("Unloads", 0xc, 4),
            member("BaseName", 0x10, 8, "_UNICODE_STRING"),
            field("StartAddress", 0x18, 4),
            field("EndAddress", 0x1c, 4),
            member("PoolPageHeaders", 0x28, 8, "_SLIST_HEADER"),
            number("CurrentPagedPoolAllocations", 0x38, 4),
        ],
    );
    let head = heap.world.variable("MiSuspectDriverList", 8);
    let mut links = Vec::new();
    let mut expected = Vec::new();
    for (n, driver) in drivers.iter().enumerate() {
        let entry = heap.take(0x58, 8);
        links.push(entry);
        heap.put(entry + 8, driver.loads.into());
        heap.put(entry + 0xc, driver.unloads.into());
        heap.name(entry + 0x10, &driver.name);
        heap.put(entry + 0x18, 0x8600_0000 + n as u64 * 0x10_0000);
        heap.put(entry + 0x1c, 0x8600_8000 + n as u64 * 0x10_0000);
        heap.put(entry + 0x38, driver.current_paged.into());
        let mut allocations = Vec::new();
        let pages = heap.tracking_pages(entry, &driver.slots, &mut allocations);
        heap.put(entry + 0x28, pages);
        expected.push(allocations);
    }
    heap.list(head, &links);
    (heap.world, expected)
}

fn state(driver: &Truth) -> State {
    match (driver.loads, driver.loads - driver.unloads) {
        (0, _) => State::NeverLoaded,
        (_, 0) => State::Unloaded,
        (loads, live) if loads == live => State::Loaded,
        _ => State::LoadedAndUnloaded,
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn every_driver_with_every_allocation(
        version in prop::sample::select(NEW.to_vec()),
        drivers in prop::collection::vec(truth(), 0..7),
    ) {
        let (world, expected) = build(version, &drivers);
        let found = verifier::drivers(&world.kernel()).unwrap();
        prop_assert_eq!(&found.notes.lines(), &Vec::<String>::new());
        prop_assert_eq!(found.drivers.len(), drivers.len());
        for ((driver, truth), allocations) in found.drivers.iter().zip(&drivers).zip(expected) {
            prop_assert_eq!(&driver.name, &truth.name);
            prop_assert_eq!(driver.state(), state(truth));
            let current = driver.counters.get("CurrentPagedPoolAllocations");
            prop_assert_eq!(current, truth.loaded.then_some(truth.current_paged.into()));
            prop_assert_eq!(driver.image.as_ref().map(|image| image.end - image.start), truth.loaded.then_some(0x8000));
            let live = verifier::allocations(&world.kernel(), driver).unwrap();
            prop_assert_eq!(live.allocations, allocations);
            prop_assert_eq!(live.notes.lines(), Vec::<String>::new());
        }
    }

    #[test]
    fn every_driver_of_vista(drivers in prop::collection::vec(truth(), 0..7)) {
        let (world, expected) = build_vista(&drivers);
        let found = verifier::drivers(&world.kernel()).unwrap();
        prop_assert_eq!(found.drivers.len(), drivers.len());
        for ((driver, truth), allocations) in found.drivers.iter().zip(&drivers).zip(expected) {
            prop_assert_eq!((&driver.name, driver.state()), (&truth.name, state(truth)));
            prop_assert_eq!(driver.counters.get("CurrentPagedPoolAllocations"), Some(truth.current_paged.into()));
            prop_assert_eq!(verifier::allocations(&world.kernel(), driver).unwrap().allocations, allocations);
        }
    }
}

fn one(name: &str, slots: usize) -> Truth {
    let slots = vec![Slot::Live { size: 0x3c, tag: *b"Vprt" }; slots];
    Truth { name: name.into(), loads: 1, unloads: 0, loaded: true, current_paged: 1, slots }
}

pub(crate) fn check_ordinary(version: Version) {
    let drivers = [one("a.sys", 200), one("b.sys", 3), one("c.sys", 0), one("d.sys", 1)];
    let (world, expected) = build(version, &drivers);
    let found = verifier::drivers(&world.kernel()).unwrap();
    assert_eq!(found.notes.lines(), Vec::<String>::new(), "{version:?}");
    assert_eq!(found.drivers.len(), 4, "{version:?}");
    for ((driver, truth), allocations) in found.drivers.iter().zip(&drivers).zip(expected) {
        assert_eq!((&driver.name, driver.state()), (&truth.name, State::Loaded));
        assert_eq!(driver.counters.get("CurrentPagedPoolAllocations"), Some(1), "{version:?}");
        assert_eq!(driver.image.as_ref().map(|image| image.end - image.start), Some(0x8000));
        let live = verifier::allocations(&world.kernel(), driver).unwrap();
        assert_eq!((live.allocations, live.notes.lines()), (allocations, vec![]), "{version:?}");
    }
}

#[test]
fn a_list_that_comes_back_on_itself_ends() {
    let (mut world, _) = build(WIN7_X64, &[one("a.sys", 1), one("b.sys", 1)]);
    let found = verifier::drivers(&world.kernel()).unwrap();
    let first = nt_memory::Memory::read_u64(&world, world.address_of("VfSuspectDriversList")).unwrap();
    let second = nt_memory::Memory::read_u64(&world, first).unwrap();
    world.put(second, first, 8);
    let cyclic = verifier::drivers(&world.kernel()).unwrap();
    assert_eq!(cyclic.drivers, found.drivers);
    assert!(
        cyclic.notes.lines()[0].contains(&format!("the list comes back to {first:016x}")),
        "{:?}",
        cyclic.notes.lines()
    );
}

#[test]
fn a_page_that_is_not_the_drivers_ends_its_list() {
    let (mut world, _) = build(WIN7_X64, &[one("a.sys", 200)]);
    let driver = verifier::drivers(&world.kernel()).unwrap().drivers.remove(0);
    assert_eq!(verifier::allocations(&world.kernel(), &driver).unwrap().allocations.len(), 200);
    // The chain's second page loses its signature.
    let data = nt_memory::Memory::read_u64(&world, driver.entry + 0x28).unwrap();
    let first = nt_memory::Memory::read_u64(&world, data + 0x38).unwrap() & !0xf;
    let second = nt_memory::Memory::read_u64(&world, first).unwrap();
    world.put(second + 0x10, 0, 8);
    let found = verifier::allocations(&world.kernel(), &driver).unwrap();
    assert_eq!(found.allocations.len(), 127);
    assert!(
        found.notes.lines()[0].contains(&format!("the page at {second:016x} is not one of this driver's")),
        "{:?}",
        found.notes.lines()
    );
}

#[test]
fn a_driver_whose_name_is_paged_out_is_still_listed() {
    let (mut world, _) = build(WIN7_X64, &[one("a.sys", 1)]);
    let first = nt_memory::Memory::read_u64(&world, world.address_of("VfSuspectDriversList")).unwrap();
    world.put(first + 0x20, 0xffff_f8a0_0000_0000, 8);
    let found = verifier::drivers(&world.kernel()).unwrap();
    assert_eq!((found.drivers.len(), found.drivers[0].name.as_str()), (1, ""));
    assert!(found.notes.lines()[0].contains(&format!("{first:016x}")), "{:?}", found.notes.lines());
}

#[test]
fn the_settings_are_the_versions_own() {
    for (version, size, loads) in [(WIN7_X64, 0xa0, 0x30), (SERVER_2022, 0xb0, 0x34)] {
        let mut world = World::new(version);
        let mut fields = vec![
            number("Level", 0, 4),
            number("RaiseIrqls", 4, 4),
            number("Loads", loads, 4),
            number("PagedBytes", 0x58, 8),
            member("PreviousBucketName", 0x88, 0x10, "_UNICODE_STRING"),
        ];
        if version.build >= 20348 {
            fields.push(number("AllocationFreed", 0x30, 4));
        }
        world.layout("_MM_DRIVER_VERIFIER_DATA", size, &fields);
        let data = world.variable("MmVerifierData", size as u32);
        world.put(data, 0x9bb, 4);
        world.put(data + 4, 7, 4);
        world.put(data + loads, 3, 4);
        world.put(data + 0x58, 0x1_0000_0950, 8);
        world.u32_variable("VfOptionFlags", 2);
        let settings = verifier::settings(&world.kernel()).unwrap();
        assert_eq!((settings.level, settings.option_flags, settings.kernel_verified), (0x9bb, Some(2), None));
        let counters = &settings.counters;
        assert_eq!(counters.get("RaiseIrqls"), Some(7));
        assert_eq!(counters.get("Loads"), Some(3));
        assert_eq!(counters.get("PagedBytes"), Some(0x1_0000_0950));
        assert_eq!(counters.get("AllocationFreed"), (version.build >= 20348).then_some(0));
        assert_eq!(counters.get("PreviousBucketName"), None);
        assert_eq!(counters.iter().next(), Some(("Level", 0x9bb)));
    }
}

#[test]
fn the_irql_log_newest_first() {
    for version in [VISTA_X86, WIN7_X64] {
        let mut world = World::new(version);
        let pointer = u64::from(version.pointer);
        let narrow = version.pointer == 4;
        // x86 of Vista keeps the processor in one byte, later versions in two.
        let (size, processor, ticks, stack) = if narrow { (0x20, 1, 8, 0xc) } else { (0x38, 2, 0xc, 0x10) };
        let fields = [
            field("Thread", 0, pointer),
            number("OldIrql", pointer, 1),
            number("NewIrql", pointer + 1, 1),
            number("Processor", pointer + 2, processor),
            number("TickCount", ticks, 4),
            array("StackTrace", stack, 5, pointer),
        ];
        world.layout("_VI_TRACK_IRQL", size, &fields);
        let table = world.pool(0);
        world.pointer_variable("ViTrackIrqlQueue", table);
        world.u32_variable("ViTrackIrqlIndex", 9);
        world.u32_variable("ViTrackIrqlQueueLength", 8);
        world.write(table, &vec![0; 8 * size as usize]);
        let mut expected = Vec::new();
        for sequence in (2..=9u32).rev() {
            let at = table + u64::from(sequence % 8) * size;
            let thread = world.pool(3) + u64::from(sequence) * 0x100;
            world.put(at, thread, version.pointer);
            world.write(at + pointer, &[2, sequence as u8]);
            world.put(at + pointer + 2, 1, processor as u8);
            world.put(at + ticks, 0x495e, 4);
            world.put(at + stack, world.base() + 0x9a, version.pointer);
            expected.push(Entry {
                sequence,
                thread: Some(thread),
                old_irql: Some(2),
                new_irql: Some(sequence as u8),
                processor: Some(1),
                tick_count: Some(0x495e),
                frames: vec![world.base() + 0x9a],
                ..Entry::default()
            });
        }
        let log = verifier::log(&world.kernel(), LogKind::Irql, Wanted::All).unwrap().unwrap();
        assert_eq!((log.length, &log.entries), (8, &expected));
        let log = verifier::log(&world.kernel(), LogKind::Irql, Wanted::Newest(3)).unwrap().unwrap();
        assert_eq!(log.entries, expected[..3]);
        let thread = expected[4].thread.unwrap();
        let log = verifier::log(&world.kernel(), LogKind::Irql, Wanted::Address(thread)).unwrap().unwrap();
        assert_eq!(log.entries, expected[4..5]);
    }
}

#[test]
fn the_logs_are_read_without_a_type() {
    // Bytes of a record and where its stack is, on 64 and on 32 bits.
    for (kind, names, places) in [
        (LogKind::Irps, ["IovIrpTraces", "IovIrpTracesIndex", "IovIrpTracesLength"], [(0x80, 0x18), (0x40, 0x10)]),
        (
            LogKind::ForcedPending,
            ["VfForcedPendingLog", "VfForcedPendingIrps", "VfForcedPendingLogLength"],
            [(0x200, 0x10), (0x100, 8)],
        ),
    ] {
        for (version, (size, stack), address) in
            [(WIN7_X64, places[0], 0xffff_fa80_0123_4560), (WIN10_2004_X86, places[1], 0x8123_4560)]
        {
            let mut world = World::new(version);
            assert_eq!(verifier::log(&world.kernel(), kind, Wanted::All).unwrap(), None);
            let table = world.pool(0);
            world.pointer_variable(names[0], table);
            world.u32_variable(names[1], 1);
            world.u32_variable(names[2], 4);
            world.write(table, &vec![0; 4 * size]);
            let irp = table + size as u64;
            world.put(irp, address, version.pointer);
            world.put(irp + stack, world.base() + 0xb2, version.pointer);
            let log = verifier::log(&world.kernel(), kind, Wanted::All).unwrap().unwrap();
            assert_eq!(log.entries.len(), 1);
            assert_eq!(log.entries[0].irp, Some(address));
            assert_eq!(log.entries[0].frames, [world.base() + 0xb2]);
        }
    }
}

#[test]
fn watched_irps_are_a_list() {
    let mut heap = Heap::new(WIN7_X64);
    heap.world.layout(
        "_VF_WATCHDOG_IRP",
        0x20,
        &[member("ListEntry", 0, 0x10, "_LIST_ENTRY"), field("Irp", 0x10, 8), number("DueTickCount", 0x18, 4)],
    );
    let head = heap.world.variable("VfWdIrpListHead", 16);
    let links: Vec<u64> = (0..3).map(|_| heap.take(0x20, 16)).collect();
    for (i, link) in links.iter().enumerate() {
        heap.put(link + 0x10, 0xffff_fa80_0000_1000 + i as u64 * 0x100);
        heap.world.put(link + 0x18, 77, 4);
    }
    heap.list(head, &links);
    let log = verifier::log(&heap.world.kernel(), LogKind::WatchedIrps, Wanted::All).unwrap().unwrap();
    assert_eq!((log.length, log.entries.len()), (3, 3));
    assert_eq!(log.entries[1].irp, Some(0xffff_fa80_0000_1100));
    assert_eq!(log.entries[1].due_tick_count, Some(77));
}

#[test]
fn whether_any_driver_is_verified() {
    assert!(verifier::any_driver(&ordinary(WIN11_21H2).kernel()).unwrap());
    assert!(!verifier::any_driver(&build(WIN7_X64, &[]).0.kernel()).unwrap());
}
