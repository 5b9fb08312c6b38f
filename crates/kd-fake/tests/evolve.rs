//! A machine whose pool changes while it runs: its memory against its own history.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kd_fake::isf::Isf;
use kd_fake::kernel::{Article, FREE_STACK, FREEING_THREAD, Kernel, LEAK_STACK, LEAK_TAG, LEAK_THREAD, PoolKind};

const TABLE: &[u8] = include_bytes!("../data/339E74133576439CBCDF7E0229DA3773-1.json.xz");

/// Tag, bytes, type of each block.
type Live = BTreeMap<u64, (u32, u64, u32)>;

/// Reads a Windows 7 kernel with the offsets of the facts.
struct Reader<'a> {
    kernel: &'a Kernel,
    isf: &'a Isf,
}

impl Reader<'_> {
    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        assert_eq!(self.kernel.read_virtual(address, &mut bytes), length, "{address:x}");
        bytes
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }

    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }

    fn symbol(&self, name: &str) -> u64 {
        self.kernel.facts().kernel_base + self.isf.symbol(name).unwrap()
    }

    /// Address, tag, bytes, type of the live entries; addresses of the freed ones.
    fn big_pages(&self) -> (Live, BTreeSet<u64>) {
        let table = self.u64(self.symbol("PoolBigPageTable"));
        let slots = self.u64(self.symbol("PoolBigPageTableSize"));
        let (mut live, mut freed) = (BTreeMap::new(), BTreeSet::new());
        for entry in self.bytes(table, 24 * slots as usize).chunks(24) {
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
            let long = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
            match long(0) {
                0 => {}
                va if va & 1 == 1 => drop(freed.insert(va - 1)),
                va => assert_eq!(live.insert(va, (word(8), long(16), word(12))), None),
            }
        }
        assert_eq!(self.u32(self.symbol("ExpPoolBigEntriesInUse")), live.len() as u32);
        (live, freed)
    }

    /// NP allocs, frees, bytes, P allocs, frees, bytes of a tag over both processors.
    fn tag(&self, tag: u32) -> [u64; 6] {
        let rows = self.u64(self.symbol("PoolTrackTableSize")) as usize;
        let tables = self.symbol("ExPoolTagTables");
        let mut sum = [0u64; 6];
        for processor in 0..2 {
            for row in self.bytes(self.u64(tables + 8 * processor), rows * 0x28).chunks(0x28) {
                let word = |at: usize| u32::from_le_bytes(row[at..at + 4].try_into().unwrap());
                let long = |at: usize| u64::from_le_bytes(row[at..at + 8].try_into().unwrap());
                if word(0) == tag {
                    let signed = |at| word(at) as i32 as u64;
                    let row = [signed(4), signed(8), long(16), signed(0x18), signed(0x1c), long(0x20)];
                    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum = sum.wrapping_add(value));
                }
            }
        }
        sum
    }

    /// Newest first: index, address, size, thread, frames.
    fn log(&self) -> Vec<(u32, u64, u64, u64, Vec<u64>)> {
        let table = self.u64(self.symbol("VfPoolTraces"));
        let (index, length) = (self.u32(self.symbol("VfPoolTracesIndex")), self.u32(self.symbol("VfPoolTracesLength")));
        let mut records = Vec::new();
        for age in 0..length {
            let slot = index.wrapping_sub(age) & (length - 1);
            let at = table + u64::from(slot) * 0x80;
            let frames: Vec<u64> =
                (0..13).map(|frame| self.u64(at + 0x18 + frame * 8)).take_while(|frame| *frame != 0).collect();
            records.push((index.wrapping_sub(age), self.u64(at), self.u64(at + 8), self.u64(at + 16), frames));
        }
        records
    }

    /// Address, caller, bytes, tag of the first verified driver's allocations.
    fn tracked(&self) -> BTreeMap<u64, (u64, u64, u32)> {
        let node = self.u64(self.u64(self.symbol("ViTargetDriversAvl") + 0x20) + 0x10);
        let verified = self.u64(node + 0x48);
        let mut found = BTreeMap::new();
        let mut page = self.u64(verified + 0x38) & !0xf;
        let mut pages = 0;
        while page != 0 {
            pages += 1;
            assert_eq!((self.u64(page + 8), self.u32(page + 0x10)), (verified, 0x2132_1345));
            for slot in 1..128 {
                let at = page + slot * 0x20;
                if self.u64(at + 0x10) & 1 == 0 {
                    let values = (self.u64(at + 8), self.u64(at + 0x10), self.u32(at + 0x18));
                    assert_eq!(found.insert(self.u64(at), values), None);
                }
            }
            page = self.u64(page);
        }
        assert_eq!(self.u64(verified + 0x30) & 0xffff, pages, "the list's depth");
        let bytes: u64 = found.values().map(|block| block.1).sum();
        // Counts of paged and nonpaged, their peaks, bytes of both.
        for at in [verified + 0x50, self.symbol("MmVerifierData") + 0x40] {
            let count = self.u32(at) + self.u32(at + 4);
            assert_eq!((count, self.u64(at + 0x10) + self.u64(at + 0x18)), (found.len() as u32, bytes));
            assert!(self.u32(at) <= self.u32(at + 8) && self.u32(at + 4) <= self.u32(at + 12), "peaks");
        }
        found
    }
}

/// Compares everything in memory with what the machine says of itself.
fn agree(kernel: &Kernel, isf: &Isf) {
    let reader = Reader { kernel, isf };
    let (live, freed) = reader.big_pages();
    let truth: Live =
        kernel.large().map(|life| (life.address, (life.tag, life.bytes, life.kind.pool_type() as u32))).collect();
    assert_eq!(live, truth);
    for address in &freed {
        let last = kernel.history(*address);
        assert!(live.contains_key(address) || last.last().is_some_and(|life| life.freed.is_some()), "{address:x}");
    }
    let tags: BTreeMap<u32, [u64; 6]> = kernel
        .tags()
        .iter()
        .map(|tag| {
            let (n, p) = (tag.nonpaged, tag.paged);
            (tag.tag, [n.allocs, n.frees, n.bytes, p.allocs, p.frees, p.bytes])
        })
        .collect();
    for tag in [LEAK_TAG, u32::from_le_bytes(*b"TcpB"), u32::from_le_bytes(*b"Test")] {
        assert_eq!(reader.tag(tag), tags.get(&tag).copied().unwrap_or_default(), "{tag:x}");
    }
    let records: Vec<_> = kernel
        .pool_log()
        .into_iter()
        .rev()
        .map(|record| (record.index, record.address, record.size, record.thread, record.frames))
        .collect();
    let log = reader.log();
    assert_eq!(log[..records.len()], records);
    assert!(log[records.len()..].iter().all(|record| record.1 == 0));
    let truth: BTreeSet<u64> = kernel
        .large()
        .filter(|life| {
            life.allocated.stack.iter().any(|frame| (0xffff_f880_0428_7000..0xffff_f880_0428_f000).contains(frame))
        })
        .map(|life| life.address)
        .collect();
    let tracked = reader.tracked();
    // The blocks of before are tracked whether their record is still in the log or not.
    assert!(truth.iter().all(|address| tracked.contains_key(address)));
    assert!(tracked.keys().all(|address| live.contains_key(address)));
}

#[test]
fn random_histories_agree_with_memory() {
    let isf = Isf::from_xz(TABLE).unwrap();
    let mut kernel = Article { log_length: 64 }.build();
    agree(&kernel, &isf);
    let mut seed = 7u64;
    let mut below = move |limit: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % limit
    };
    let mut mine: Vec<u64> = Vec::new();
    let mut lives = BTreeSet::new();
    for round in 0..2_000 {
        kernel.advance(Duration::from_millis(1));
        if mine.len() > 150 || !mine.is_empty() && below(5) < 2 {
            let address = mine.swap_remove(below(mine.len() as u64) as usize);
            let life = kernel.free_large(address, &FREE_STACK, FREEING_THREAD).unwrap();
            assert!(lives.remove(&life.id));
            assert_eq!(kernel.history(address).last().unwrap().freed, life.freed);
            assert_eq!(kernel.free_large(address, &FREE_STACK, FREEING_THREAD), None);
        } else {
            let tag = [LEAK_TAG, u32::from_le_bytes(*b"Test")][below(2) as usize];
            let kind = [PoolKind::Paged, PoolKind::NonPaged][below(2) as usize];
            let watched: &[u64] = if below(4) == 0 { &[] } else { &LEAK_STACK };
            let size = 0xfe0 + below(0x4000);
            let address = kernel.allocate_large(tag, size, kind, watched, LEAK_THREAD).unwrap();
            let life = kernel.history(address).pop().unwrap().clone();
            assert_eq!((life.size, life.allocated.record.is_some()), (size, !watched.is_empty()));
            assert!(lives.insert(life.id));
            mine.push(address);
        }
        if round % 100 == 0 {
            agree(&kernel, &isf);
        }
    }
    agree(&kernel, &isf);
    let reused = mine.iter().filter(|address| kernel.history(**address).len() > 1).count();
    assert!(reused > 10, "{reused} of {} addresses were used before", mine.len());
    assert_eq!(kernel.allocate_large_at(mine[0], LEAK_TAG, 16, PoolKind::Paged, &[], 0), None, "in use");
    let address = kernel.allocate_large_at(0xffff_f8a0_3000_0000, LEAK_TAG, 16, PoolKind::Paged, &[], 0);
    assert_eq!(address, Some(0xffff_f8a0_3000_0000));
    agree(&kernel, &isf);
}
