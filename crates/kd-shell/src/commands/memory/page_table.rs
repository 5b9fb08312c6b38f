//! `!pte address`: the page-table entries behind an address.
//!
//! ```text
//!                                            VA fffff80002a0e000
//! PXE at FFFFF6FB7DBEDF80    PPE at FFFFF6FB7DBF0000    PDE at FFFFF6FB7E0000A8    PTE at FFFFF6FC00015070
//! contains 0000000000199063  contains 0000000000198063  contains 00000000001B4063  contains 0000000002A0E963
//! pfn 199       ---DA--KWEV  pfn 198       ---DA--KWEV  pfn 1b4       ---DA--KWEV  pfn 2a0e      -G-DA--KWEV
//! ```

use std::fmt;

use nt_memory::PAGE_SIZE;
use nt_memory::paging::{Page, Scheme, Walk};
use nt_symbols::SymbolFile;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::kernel::Kernel;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width};
use crate::translation::Tables;
use crate::typed::read_pointer;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!pte"],
    usage: "!pte address",
    help: "show the page-table entries of an address, and why a page is not there",
    details: "The page tables are those of the stopped processor, or of the process that\n\
              .process chose: x86, PAE, x64 with four and five levels, ARM64.",
    results: &[ResultShape::of::<Entries>("pte")],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
struct Entries {
    address: Hex,
    entries: Vec<Entry>,
    /// `present`, `transition`, `prototype`, `pagefile`, `demand zero`, `nothing`, `unreadable`, `not canonical`
    page: &'static str,
    physical: Option<Hex>,
    page_size: Option<u64>,
    #[serde(skip)]
    more: Option<String>,
    #[serde(skip)]
    width: Width,
    #[serde(skip)]
    value_digits: usize,
}

#[derive(JsonSchema, Serialize)]
struct Entry {
    level: &'static str,
    /// Where Windows maps it.
    address: Hex,
    physical_address: Hex,
    value: Hex,
    #[serde(skip)]
    bits: String,
    #[serde(skip)]
    frame: u64,
    #[serde(skip)]
    valid: bool,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    if context.arguments.trim().is_empty() {
        return Err(usage(&INFO, "no address"));
    }
    let kernel = context.kernel()?;
    let width = context.width();
    let address = width.address(evaluate_all(context.arguments, &mut context.scope())?);
    let process = context.session.process;
    let tables = Tables::new(kernel, &mut context.session.symbols, process)?;
    let (walk, scheme) = (tables.walk(address)?, tables.scheme);
    let symbols = context.session.symbols.nt(kernel).ok();
    let base = table_base(kernel, scheme, symbols.as_deref());
    Ok(Reply::new(Entries::new(&walk, scheme, base, address, width)))
}

/// Where the page tables are mapped. From 1607 on it is different after every boot and kept in a variable.
fn table_base(kernel: &dyn Kernel, scheme: Scheme, symbols: Option<&dyn SymbolFile>) -> u64 {
    const X64: u64 = 0xffff_f680_0000_0000;
    const X86: u64 = 0xc000_0000;
    match scheme {
        Scheme::X86 | Scheme::Pae => X86,
        Scheme::X64 { .. } | Scheme::Arm64 => {
            let variable = symbols.and_then(|symbols| symbols.symbol("MmPteBase"));
            let place = variable.map(|variable| kernel.base().wrapping_add(variable.rva.into()));
            let base = place.and_then(|place| read_pointer(kernel.memory(), place, Width::Eight).ok());
            base.filter(|base| Width::Eight.is_kernel(*base)).unwrap_or(X64)
        }
    }
}

/// Where the entry of a level is mapped: the tables are pages of the region that maps them.
fn mapped_at(scheme: Scheme, base: u64, address: u64, shift: u8) -> u64 {
    let (size, bits) = match scheme {
        Scheme::X86 => (4u64, 32),
        Scheme::Pae => (8, 32),
        Scheme::X64 { levels: 5 } => (8, 57),
        Scheme::X64 { .. } | Scheme::Arm64 => (8, 48),
    };
    let mut at = address & ((1u64 << bits) - 1);
    let mut level = 12;
    loop {
        let entry = base.wrapping_add((at >> 12).wrapping_mul(size));
        if level >= shift {
            return entry;
        }
        at = entry & ((1u64 << bits) - 1);
        level += if scheme == Scheme::X86 { 10 } else { 9 };
    }
}

/// `---DA--KWEV`
fn bits(scheme: Scheme, value: u64) -> String {
    let flag = |bit: u64, set: char, clear: char| if value & bit != 0 { set } else { clear };
    if scheme == Scheme::Arm64 {
        // Contiguous bits have no letters: nG, DBM, AF, AP[1], AP[2], and UXN and PXN together.
        const NO_EXECUTE: u64 = 3 << 53;
        return [
            '-',
            flag(1 << 11, '-', 'G'),
            '-',
            flag(1 << 51, 'D', '-'),
            flag(1 << 10, 'A', '-'),
            '-',
            '-',
            flag(1 << 6, 'U', 'K'),
            flag(1 << 7, 'R', 'W'),
            if value & NO_EXECUTE == NO_EXECUTE { '-' } else { 'E' },
            flag(1, 'V', '-'),
        ]
        .iter()
        .collect();
    }
    let mut text: String = [
        flag(0x200, 'C', '-'),
        flag(0x100, 'G', '-'),
        flag(0x80, 'L', '-'),
        flag(0x40, 'D', '-'),
        flag(0x20, 'A', '-'),
        flag(0x10, 'N', '-'),
        flag(8, 'T', '-'),
        flag(4, 'U', 'K'),
        flag(2, 'W', 'R'),
    ]
    .iter()
    .collect();
    // Without execution rights only where there is a bit for them.
    if scheme != Scheme::X86 {
        text.push(flag(1 << 63, '-', 'E'));
    }
    text.push(flag(1, 'V', '-'));
    text
}

impl Entries {
    fn new(walk: &Walk, scheme: Scheme, base: u64, address: u64, width: Width) -> Self {
        // The four topmost entries of PAE are mapped nowhere, and kd does not show them.
        let shown = walk.entries.iter().filter(|entry| scheme != Scheme::Pae || entry.shift != 30);
        let entries = shown.map(|entry| Entry {
            level: entry.level,
            address: Hex(mapped_at(scheme, base, address, entry.shift)),
            physical_address: Hex(entry.at),
            value: Hex(entry.value),
            bits: bits(scheme, entry.value),
            frame: (entry.value & scheme.frame_mask()) / PAGE_SIZE,
            valid: entry.value & 1 != 0,
        });
        let (page, physical, page_size, more) = match walk.page {
            Page::Present { physical, size } => ("present", Some(physical), Some(size), None),
            Page::Transition { physical } => {
                ("transition", Some(physical), None, Some(format!("Transition: {:x}", physical / PAGE_SIZE)))
            }
            Page::Prototype { address } => {
                let proto = address.map_or("elsewhere".into(), |address| format!("{address:016X}"));
                ("prototype", None, None, Some(format!("Proto: {proto}")))
            }
            Page::PageFile { file, offset } => {
                ("pagefile", None, None, Some(format!("PageFile: {file:2x}\n Offset: {offset:x}")))
            }
            Page::DemandZero => ("demand zero", None, None, Some("DemandZero".into())),
            Page::Nothing => ("nothing", None, None, None),
            Page::Unreadable { at } => {
                ("unreadable", None, None, Some(format!("cannot read the page table at physical {at:x}")))
            }
            Page::NotCanonical => ("not canonical", None, None, Some("no address of this processor".into())),
        };
        Self {
            address: Hex(address),
            entries: entries.collect(),
            page,
            physical: physical.map(Hex),
            page_size,
            more,
            width,
            value_digits: if scheme == Scheme::X86 { 8 } else { 16 },
        }
    }
}

impl Text for Entries {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let (digits, value_digits) = (2 * self.width.bytes(), self.value_digits);
        let rows: [&dyn Fn(&Entry) -> String; 3] = [
            &|entry| format!("{} at {:0digits$X}", entry.level, entry.address.0),
            &|entry| format!("contains {:0value_digits$X}", entry.value.0),
            &|entry| match entry.valid {
                true => format!("pfn {:<9x} {}", entry.frame, entry.bits),
                false => "not valid".into(),
            },
        ];
        let column =
            2 + rows.iter().flat_map(|row| self.entries.iter().map(|entry| row(entry).len())).max().unwrap_or(0);
        match self.width {
            Width::Eight => writeln!(out, "{:43}VA {}", "", self.width.pointer(self.address.0))?,
            Width::Four => writeln!(out, "{:20}VA {}", "", self.width.pointer(self.address.0))?,
        }
        for row in rows {
            let row: String = self.entries.iter().map(|entry| format!("{:<column$}", row(entry))).collect();
            writeln!(out, "{}", row.trim_end())?;
        }
        match &self.more {
            Some(more) => writeln!(out, " {more}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_self_map_is_windows() {
        let scheme = Scheme::X64 { levels: 4 };
        let at = |shift| mapped_at(scheme, 0xffff_f680_0000_0000, 0xffff_f800_02a0_e000, shift);
        assert_eq!(at(12), 0xffff_f6fc_0001_5070);
        assert_eq!(at(21), 0xffff_f6fb_7e00_00a8);
        assert_eq!(at(30), 0xffff_f6fb_7dbf_0000);
        assert_eq!(at(39), 0xffff_f6fb_7dbe_df80);
        assert_eq!(mapped_at(Scheme::X86, 0xc000_0000, 0x8015_44f4, 12), 0xc020_0550);
        assert_eq!(mapped_at(Scheme::X86, 0xc000_0000, 0x8015_44f4, 22), 0xc030_0800);
    }

    #[test]
    fn flags_are_letters() {
        assert_eq!(bits(Scheme::X64 { levels: 4 }, 0x199063), "---DA--KWEV");
        assert_eq!(bits(Scheme::X64 { levels: 4 }, 0x2a0e963), "-G-DA--KWEV");
        assert_eq!(bits(Scheme::X64 { levels: 4 }, 1 << 63 | 0x25), "----A--UR-V");
    }

    #[test]
    fn columns_stand_below_each_other() {
        use nt_memory::paging;
        let entry = |level, value, shift| paging::Entry { level, at: 0, value, shift };
        let walk = Walk {
            entries: vec![
                entry("PXE", 0x199063, 39),
                entry("PPE", 0x198063, 30),
                entry("PDE", 0x1b4063, 21),
                entry("PTE", 0x2a0e963, 12),
            ],
            page: Page::Present { physical: 0x2a0e000, size: 0x1000 },
        };
        let scheme = Scheme::X64 { levels: 4 };
        let mut text = String::new();
        let entries = Entries::new(&walk, scheme, 0xffff_f680_0000_0000, 0xffff_f800_02a0_e000, Width::Eight);
        entries.text(&mut text).unwrap();
        let expected = "                                           VA fffff80002a0e000
PXE at FFFFF6FB7DBEDF80    PPE at FFFFF6FB7DBF0000    PDE at FFFFF6FB7E0000A8    PTE at FFFFF6FC00015070
contains 0000000000199063  contains 0000000000198063  contains 00000000001B4063  contains 0000000002A0E963
pfn 199       ---DA--KWEV  pfn 198       ---DA--KWEV  pfn 1b4       ---DA--KWEV  pfn 2a0e      -G-DA--KWEV
";
        assert_eq!(text, expected);
    }
}
