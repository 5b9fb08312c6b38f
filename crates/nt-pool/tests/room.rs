//! A target that shows ever more: the question ends with an error while there is room left, and gives back what it took.

#![allow(clippy::unwrap_used)] // Helpers of tests may panic like tests.

#[allow(dead_code)] // Another test's helper.
#[path = "decode/support.rs"]
mod support;

use nt_memory::{Fault, Memory};
use nt_pool::pool_log::Wanted;
use nt_pool::{Kernel, PoolError, big_pages, pool_log};

use crate::support::{WIN7_X64, World, field};

#[global_allocator]
static HEAP: heap_limit::Heap = heap_limit::Heap;

const LIMIT: usize = 128 << 20;

/// Every address that nothing else is at holds records of 24 bytes, all of them different and in use.
struct Endless(World);

impl Memory for Endless {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        // As whoever reads from a target does.
        heap_limit::room_for(0)?;
        let read = self.0.read(address, buffer)?;
        if read > 0 {
            return Ok(read);
        }
        for (i, byte) in buffer.iter_mut().enumerate() {
            let at = address.wrapping_add(i as u64);
            let (record, offset) = (at / 24, at % 24);
            *byte = match offset {
                0..8 => (0xffff_fa80_0000_0000u64 | (record & 0xff_ffff) << 12).to_le_bytes()[offset as usize],
                8..12 => b"Leak"[offset as usize - 8],
                17 => 0x10,
                _ => 0,
            };
        }
        Ok(buffer.len())
    }
}

/// The tables of large allocations and of the verifier's log, as large as they can say that they are.
fn endless() -> Endless {
    let mut world = World::new(WIN7_X64);
    let large = [("Va", 0, 8), ("Key", 8, 4), ("PoolType", 0xc, 4), ("NumberOfBytes", 0x10, 8)];
    world.layout("_POOL_TRACKER_BIG_PAGES", 0x18, &large.map(|(name, at, size)| field(name, at, size)));
    let trace = [("Address", 0, 8), ("Size", 8, 8), ("Thread", 0x10, 8)];
    world.layout("_VF_POOL_TRACE", 0x18, &trace.map(|(name, at, size)| field(name, at, size)));
    let table = world.pool(1);
    world.pointer_variable("PoolBigPageTable", table);
    world.pointer_variable("PoolBigPageTableSize", 1 << 22);
    world.pointer_variable("VfPoolTraces", table);
    world.u32_variable("VfPoolTracesIndex", 5);
    world.u32_variable("VfPoolTracesLength", 0x80_0000);
    Endless(world)
}

#[test]
fn a_question_without_end_ends_while_there_is_room() {
    heap_limit::limit(LIMIT, || {
        println!("full at {} MiB", heap_limit::held() >> 20);
        std::process::exit(77);
    })
    .unwrap();
    let endless = endless();
    let kernel = Kernel { memory: &endless, ..endless.0.kernel() };
    let before = heap_limit::held();
    let large = big_pages::read(&kernel, &|_| true).map(drop);
    assert!(matches!(large, Err(PoolError::Fault(Fault::Full(full))) if full.limit == LIMIT), "{large:?}");
    let log = pool_log::read(&kernel, Wanted::All).map(drop);
    assert!(matches!(log, Err(PoolError::Fault(Fault::Full(_)))), "{log:?}");
    assert!(heap_limit::held() < before + (1 << 20), "{before} {}", heap_limit::held());
}
