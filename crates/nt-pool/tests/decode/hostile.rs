//! A target, and symbols, that mean harm: no decoder panics, allocates without bound or does not end.

use nt_memory::{Fault, Memory, Search};
use nt_pool::pool_log::Wanted;
use nt_pool::{Kernel, Tag, big_pages, pool_log, tags};
use nt_symbols::Field;
use proptest::prelude::*;

use crate::support::*;

/// Variables hold what the test says; everything else is noise, with holes.
#[derive(Debug)]
struct Noise {
    world: World,
    seed: u64,
    searches: bool,
}

impl Noise {
    fn byte(&self, address: u64) -> u8 {
        let mixed = (address ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Zeros and pointers' upper halves are what a decoder takes seriously.
        match (address % 8, mixed >> 56) {
            (7, _) | (6, _) => 0xff,
            (_, 0..0x40) => 0,
            (_, noise) => noise as u8,
        }
    }
}

impl Memory for Noise {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let read = self.world.read(address, buffer)?;
        if read == buffer.len() {
            return Ok(read);
        }
        for (i, byte) in buffer.iter_mut().enumerate().skip(read) {
            let at = address.wrapping_add(i as u64);
            if (at >> 12 ^ self.seed).is_multiple_of(7) {
                return Ok(i);
            }
            *byte = self.byte(at);
        }
        Ok(buffer.len())
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        Ok(match (self.searches, (address ^ self.seed) % 5) {
            (false, _) => Search::Unsupported,
            (true, 0) => Search::NotFound,
            // Inside, behind and before what was asked for.
            (true, 1) => Search::Found(address.wrapping_add(length)),
            (true, 2) => Search::Found(address.wrapping_sub(1)),
            (true, n) => Search::Found(address.wrapping_add(n * pattern.len() as u64)),
        })
    }
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(0xffff_ffff_ffff_f000),
        (0..9u32).prop_map(|n| 1 << n),
        0..0x400u64,
        (0..0x1_0000u64).prop_map(|n| 0xffff_fa80_0000_0000 + n * 0x88),
        any::<u64>(),
    ]
}

fn fields(names: &'static [&'static str]) -> impl Strategy<Value = (u64, Vec<Field>)> {
    let place = (
        0..0x50u64,
        prop::sample::select(vec![0u64, 1, 2, 4, 8, 16, u64::MAX]),
        prop::option::of((0..70u8, 0..70u8)),
        prop::option::of((0..60u64, prop::sample::select(vec![0u64, 4, 8, u64::MAX]))),
        0..10u8,
    );
    let size = prop::sample::select(vec![0u64, 1, 3, 0x28, 0x50, 0x80, 0x1000, 0x1001, u64::MAX]);
    (size, prop::collection::vec(place, names.len())).prop_map(|(size, places)| {
        let fields = names
            .iter()
            .zip(places)
            .filter(|(_, place)| place.4 > 0)
            .map(|(name, (at, size, bits, array, _))| Field { bits, array, ..field(name, at, size) });
        (size, fields.collect())
    })
}

const TYPES: [(&str, &[&str]); 3] = [
    (
        "_POOL_TRACKER_TABLE",
        &["Key", "NonPagedAllocs", "NonPagedFrees", "NonPagedBytes", "PagedAllocs", "PagedFrees", "PagedBytes"],
    ),
    ("_POOL_TRACKER_BIG_PAGES", &["Va", "Key", "PoolType", "Pattern", "SlushSize", "NumberOfBytes", "ProcessBilled"]),
    ("_VF_POOL_TRACE", &["Address", "Size", "Thread", "StackTrace"]),
];

const POINTERS: [&str; 8] = [
    "PoolTrackTable",
    "PoolTrackTableSize",
    "PoolTrackTableMask",
    "PoolTrackTableExpansion",
    "PoolTrackTableExpansionSize",
    "PoolBigPageTable",
    "PoolBigPageTableSize",
    "VfPoolTraces",
];

prop_compose! {
    fn noise()(
        version in prop::sample::select(&ALL[..]),
        types in (fields(TYPES[0].1), fields(TYPES[1].1), fields(TYPES[2].1)),
        values in prop::collection::vec(number(), POINTERS.len()),
        narrow in prop::collection::vec(number(), 3),
        seed in any::<u64>(),
        searches in any::<bool>(),
    ) -> Noise {
        let mut world = World::new(version);
        for ((name, _), (size, fields)) in TYPES.iter().zip([types.0, types.1, types.2]) {
            world.layout(name, size, &fields);
        }
        for (name, value) in POINTERS.iter().zip(values) {
            world.pointer_variable(name, value);
        }
        for (name, value) in ["VfPoolTracesIndex", "VfPoolTracesLength", "KeNumberProcessors"].iter().zip(narrow) {
            world.u32_variable(name, value as u32);
        }
        world.variable("ExPoolTagTables", 32);
        Noise { world, seed, searches }
    }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn nothing_a_target_holds_stops_the_debugger(noise in noise(), address in number()) {
        let kernel = Kernel { memory: &noise, ..noise.world.kernel() };
        let _ = tags::read(&kernel, &|_| true);
        let _ = tags::read_one(&kernel, Tag(*b"Leak"));
        let _ = big_pages::read(&kernel, &|_| true);
        let _ = big_pages::find(&kernel, Tag(*b"Leak"));
        let _ = big_pages::lookup(&kernel, address);
        let _ = big_pages::entry_containing(&kernel, address);
        let _ = pool_log::read(&kernel, Wanted::All);
        let _ = pool_log::read(&kernel, Wanted::Newest(address as u32));
        let _ = pool_log::read(&kernel, Wanted::Address(address));
        let _ = pool_log::find(&kernel, address);
        let _ = pool_log::find_since(&kernel, address, address as u32);
    }
}

/// A verifier's books in which any pointer or count may be anything.
#[derive(Debug)]
struct Damaged {
    world: World,
    /// (which eight bytes of the books, what they hold now)
    damage: Vec<(usize, u64)>,
}

prop_compose! {
    fn damaged()(
        version in prop::sample::select(vec![WIN7_X64, WIN10_1903, WIN11_21H2]),
        damage in prop::collection::vec((0..0x1000usize, number()), 1..40),
    ) -> Damaged {
        Damaged { world: crate::verifier::ordinary(version), damage }
    }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn damaged_books_end_with_notes(mut damaged in damaged()) {
        let list = damaged.world.address_of("VfSuspectDriversList");
        let tree = damaged.world.address_of("ViTargetDriversAvl");
        let books = damaged.world.pool(1);
        for (place, value) in damaged.damage {
            let place = place as u64;
            let at = match place % 16 {
                0 => list,
                1 => tree + place % 8 * 8,
                _ => books + place * 8,
            };
            damaged.world.put(at, value, 8);
        }
        let kernel = damaged.world.kernel();
        if let Ok(found) = nt_pool::verifier::drivers(&kernel) {
            for driver in found.drivers.iter().take(64) {
                let _ = nt_pool::verifier::allocations(&kernel, driver);
            }
        }
    }
}
