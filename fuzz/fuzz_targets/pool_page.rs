#![no_main]

//! Bytes as a page of the old pool and as a page of special pool, of 32 and of 64 bits.

use libfuzzer_sys::fuzz_target;
use nt_memory::{Fault, Memory};
use nt_pool::{Kernel, pool_page, special_page};
use nt_symbols::Isf;
use std::sync::LazyLock;

static TABLES: LazyLock<Vec<Isf>> = LazyLock::new(|| {
    let tables = kd_fake::isf::CARRIED.iter();
    tables.map(|(name, json)| Isf::parse(*name, json.to_vec()).expect("a table")).collect()
});

/// Nothing is there.
struct Empty;

impl Memory for Empty {
    fn read(&self, _address: u64, _buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(0)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let symbols = &TABLES[usize::from(choice) % TABLES.len()];
    let wide = usize::from(choice) % TABLES.len() == 3;
    let (pointer_size, address) = if wide { (8, 0xffff_8a80_0000_1000) } else { (4, 0x8440_1000) };
    let kernel = Kernel { memory: &Empty, symbols, base: 0, pointer_size, build: 7601 };
    let mut page = bytes.to_vec();
    page.resize(0x1000, 0);
    let decoded = pool_page::decode(&kernel, address, &page).expect("the types are there");
    let mut at = address;
    for block in &decoded.blocks {
        assert_eq!(block.header, at);
        assert!(block.block_size > 0 && block.size < block.block_size);
        at += block.block_size;
    }
    assert!(at <= address + 0x1000 && (decoded.problem.is_some() || at == address + 0x1000));
    if let Some(block) = special_page::decode(&kernel, address, &page) {
        assert!(block.address >= address && block.address + block.size <= address + 0x1000);
    }
});
