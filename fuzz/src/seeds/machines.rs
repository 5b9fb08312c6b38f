//! Machines as they are, each with each question; pages of the old pool and of special pool.

use kd_fake::isf::CARRIED;

use super::{Seed, put};
use crate::targets::pool_machine::QUESTIONS;

pub(super) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for machine in 0..CARRIED.len() as u8 {
        let name = CARRIED[usize::from(machine)].0;
        for search in [0, 0x80] {
            for question in 0..QUESTIONS {
                // A change that changes little, so that there is an address to ask about.
                let bytes = [vec![machine | search, question], vec![question; 8]].concat();
                seeds.push(Seed::new("pool_machine", format!("{name}-{question}-{search:x}"), bytes));
            }
        }
        for target in ["big_pages", "verifier_log"] {
            seeds.push(Seed::new(target, name, [machine, 0, 0, 8, 0, 1, 0, 0, 0]));
        }
        let wide = !name.starts_with("x86");
        seeds.push(Seed::new("pool_page", format!("{name}-blocks"), [vec![machine], blocks(wide)].concat()));
        seeds.push(Seed::new("pool_page", format!("{name}-special"), [vec![machine], special(wide)].concat()));
    }
    seeds
}

/// The first blocks of a page: sizes that fit together, the last one reaching to the page's end.
fn blocks(wide: bool) -> Vec<u8> {
    let unit: usize = if wide { 16 } else { 8 };
    let sizes = [3, 5, 1, 0x20, 0x1000 / unit - 0x29];
    let mut page = vec![0; 0x1000];
    let (mut at, mut previous) = (0, 0usize);
    for (number, size) in sizes.into_iter().enumerate() {
        // x64: previous size, pool index, size, pool type, a byte each; x86: nine bits and seven, twice.
        let kind = if number % 2 == 0 { 5 } else { 0 };
        let header = match wide {
            true => [previous.min(255) as u8, 0, size.min(255) as u8, kind],
            false => {
                let (low, high) = (previous as u16 & 0x1ff, size as u16 & 0x1ff | u16::from(kind) << 9);
                [low as u8, (low >> 8) as u8, high as u8, (high >> 8) as u8]
            }
        };
        put(&mut page, at, &header);
        put(&mut page, at + 4, b"Leak");
        (at, previous) = (at + size * unit, size);
        if at >= page.len() {
            break;
        }
    }
    page
}

/// A page of special pool: a header at its start with the block's size, and the block at its end.
fn special(wide: bool) -> Vec<u8> {
    let mut page = vec![0x6b; 0x1000];
    put(&mut page, 0, &(0x68u32 | 0x0001_0000).to_le_bytes());
    put(&mut page, 4, b"Leak");
    if wide {
        put(&mut page, 8, &[0; 8]);
    }
    page
}
