//! Pages of the classic pool: each block with each of its fields, and chains that break.

use nt_pool::Tag;
use nt_pool::pool_page::{self, Block};
use proptest::prelude::*;

use crate::support::*;

const CLASSIC: [Version; 3] = [VISTA_X86, WIN7_X64, WIN10_1607];
const COOKIE: u64 = 0x1122_3344_5566_7788;

fn world(version: Version) -> World {
    let mut world = World::new(version);
    describe(&mut world);
    world
}

pub(crate) fn describe(world: &mut World) {
    let version = world.version;
    if version.pointer == 4 {
        let half = |name, offset, first, count| nt_symbols::Field { size: 2, ..bits(name, offset, first, count) };
        world.layout(
            "_POOL_HEADER",
            8,
            &[
                half("PreviousSize", 0, 0, 9),
                half("PoolIndex", 0, 9, 7),
                half("BlockSize", 2, 0, 9),
                half("PoolType", 2, 9, 7),
                field("PoolTag", 4, 4),
            ],
        );
    } else {
        pool_header(world);
        if version.build >= 9200 {
            world.pointer_variable("ExpPoolQuotaCookie", COOKIE);
        }
    }
}

/// (size in units, pool type, tag, protected, process)
type Piece = (u64, u8, [u8; 4], bool, u64);

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let kind = prop::sample::select(vec![0u8, 2, 3, 0xa, 0xb, 0x23, 0x43]);
    let piece = (1..60u64, kind, prop::sample::select(vec![*b"Leak", *b"Proc"]), any::<bool>(), 1..0x1000u64);
    prop::collection::vec(piece, 1..40)
}

/// Fills a page; the last block takes what is left.
fn fill(world: &mut World, page: u64, pieces: &[Piece]) -> Vec<Block> {
    let narrow = world.version.pointer == 4;
    let unit = if narrow { 8 } else { 0x10 };
    let mut blocks = Vec::new();
    let (mut offset, mut previous) = (0, 0u64);
    for (i, &(units, pool_type, tag, protected, process)) in pieces.iter().enumerate() {
        let left = (0x1000 - offset) / unit;
        if left == 0 {
            break;
        }
        // A block's size has eight or nine bits, one too few for a block of a whole page.
        let most = left.min(if narrow { 511 } else { 255 });
        let units = if i + 1 == pieces.len() { most } else { units.min(most) };
        let at = page + offset;
        let process = world.pool(8) + process * 0x10;
        let quota = pool_type & 8 != 0 && (!narrow || units > 1);
        let pool_type = if quota { pool_type } else { pool_type & !8 };
        if narrow {
            world.put(at, previous | 3 << 9, 2);
            world.put(at + 2, units | u64::from(pool_type) << 9, 2);
        } else {
            world.write(at, &[previous as u8, 3, units as u8, pool_type]);
        }
        world.put(at + 4, u64::from(Tag(tag).key()) | u64::from(protected) << 31, 4);
        if quota {
            match (narrow, world.version.build) {
                (true, _) => world.put(at + units * unit - 4, process, 4),
                (false, ..9200) => world.put(at + 8, process, 8),
                (false, _) => world.put(at + 8, process ^ at ^ COOKIE, 8),
            }
        }
        blocks.push(Block {
            header: at,
            address: at + unit,
            size: (units - 1) * unit,
            block_size: units * unit,
            previous_size: previous * unit,
            tag: Tag(tag),
            protected,
            allocated: pool_type != 0,
            chunk: None,
            paged: pool_type & 1 != 0,
            pool_type,
            pool_index: 3,
            process: quota.then_some(process),
        });
        previous = units;
        offset += units * unit;
    }
    // What no piece covered is one more free block.
    let rest = (0x1000 - offset) / unit;
    if rest > 0 {
        blocks.extend(fill_rest(world, page + offset, rest, previous, unit));
    }
    blocks
}

fn fill_rest(world: &mut World, at: u64, rest: u64, previous: u64, unit: u64) -> Vec<Block> {
    if unit == 8 {
        world.put(at, previous | 3 << 9, 2);
        world.put(at + 2, rest, 2);
    } else {
        world.write(at, &[previous as u8, 3, rest as u8, 0]);
    }
    world.write(at + 4, b"Free");
    vec![Block {
        header: at,
        address: at + unit,
        size: (rest - 1) * unit,
        block_size: rest * unit,
        previous_size: previous * unit,
        tag: Tag(*b"Free"),
        protected: false,
        allocated: false,
        chunk: None,
        paged: false,
        pool_type: 0,
        pool_index: 3,
        process: None,
    }]
}

proptest! {
    #![proptest_config(cases(192))]

    #[test]
    fn every_block_of_a_page(version in prop::sample::select(CLASSIC.to_vec()), pieces in pieces()) {
        let mut world = world(version);
        let page = world.pool(0);
        world.write(page, &[0; 0x1000]);
        let expected = fill(&mut world, page, &pieces);
        let found = pool_page::read(&world.kernel(), page + 0x123).unwrap();
        prop_assert_eq!(found.problem, None);
        prop_assert_eq!(found.address, page);
        prop_assert_eq!(found.blocks, expected);
    }

    #[test]
    fn any_bytes_are_walked_to_their_end(version in prop::sample::select(CLASSIC.to_vec()), bytes in prop::collection::vec(any::<u8>(), 0..0x1001)) {
        let world = world(version);
        let found = pool_page::decode(&world.kernel(), world.pool(0), &bytes).unwrap();
        let covered: u64 = found.blocks.iter().map(|block| block.block_size).sum();
        prop_assert!(covered <= bytes.len() as u64);
        prop_assert_eq!(found.problem.is_none(), covered == bytes.len() as u64);
    }
}

#[test]
fn a_broken_chain_is_named_where_it_breaks() {
    let mut world = world(WIN7_X64);
    let page = world.pool(0);
    world.write(page, &[0; 0x1000]);
    let blocks =
        fill(&mut world, page, &[(4, 3, *b"Leak", false, 1), (8, 3, *b"Leak", false, 1), (0, 3, *b"Leak", false, 1)]);
    world.write(blocks[1].header, &[0x41]);
    let found = pool_page::read(&world.kernel(), page).unwrap();
    assert_eq!(found.blocks, blocks[..1]);
    assert_eq!(
        found.problem.unwrap(),
        format!("[ {:016x} ]: invalid previous size [ 0x41 ] should be [ 0x4 ]", blocks[1].header)
    );
    world.write(blocks[1].header, &[4, 0, 0]);
    let found = pool_page::read(&world.kernel(), page).unwrap();
    assert_eq!(found.problem.unwrap(), format!("[ {:016x} ]: invalid size [ 0x0 ]", blocks[1].header));
}
