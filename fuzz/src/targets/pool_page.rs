//! Bytes as a page of the old pool and as a page of special pool, of 32 and of 64 bits.

use std::sync::LazyLock;

use nt_memory::{Fault, Memory};
use nt_pool::{Kernel, pool_page, special_page};
use nt_symbols::Isf;

/// The tables, and how wide a pointer is in each.
static TABLES: LazyLock<Vec<(Isf, u8)>> = LazyLock::new(|| {
    let table = |(name, json): &(&str, &[u8])| {
        let wide = kd_fake::isf::Isf::from_json(json).expect("a table").machine.pointer() as u8;
        (Isf::parse(*name, json.to_vec()).expect("a table"), wide)
    };
    kd_fake::isf::CARRIED.iter().map(table).collect()
});

/// Nothing is there.
struct Empty;

impl Memory for Empty {
    fn read(&self, _address: u64, _buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(0)
    }
}

/// One input: a table's number, and the page.
pub fn run(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let (symbols, pointer_size) = &TABLES[usize::from(choice) % TABLES.len()];
    let address = if *pointer_size == 8 { 0xffff_8a80_0000_1000 } else { 0x8440_1000 };
    let kernel = Kernel { memory: &Empty, symbols, base: 0, pointer_size: *pointer_size, build: 7601 };
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
}
