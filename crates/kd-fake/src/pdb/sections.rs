//! The sections of an image of which only the symbols are known.

use crate::isf::Isf;

const PAGE: u64 = 0x1000;
/// A section ends where the rest of a page is empty by at least this much and a symbol starts the next page.
const TAIL: u64 = 0x280;

const CODE: u32 = 0x6000_0020;
const DATA: u32 = 0xc000_0040;
const READ_ONLY: u32 = 0x4000_0040;

/// What is known of the section that a symbol is in.
const ANCHORS: &[(&str, &str, u32)] = &[
    ("KdDebuggerDataBlock", ".data", DATA),
    ("KeNumberProcessors", "ALMOSTRO", DATA),
    ("MiSectionObjectPointersLock", "SPINLOCK", DATA),
    ("VfPoolThunksBitMapHeader", "PAGEVRFB", DATA),
    ("AdtpRegisteredWithEtw", "PAGEDATA", DATA),
    ("VfPoolTraces", "PAGEVRFD", DATA),
    ("KiIdleLoop", ".text", CODE),
    ("KiSpeculationFeatures", ".data", DATA),
    ("KeInitThread", "PAGELK", CODE),
    ("KiFilterFiberContext", "INIT", CODE),
];

/// Symbols known to be the first of their section, which starts with their page.
const FIRSTS: &[&str] = &["KeInitThread", "KiFilterFiberContext"];

/// Bytes of the section that is put behind all symbols for what a linker makes: exports and the debug directory.
pub const LINKER_SIZE: u32 = 0x2000;

/// A section of an image; it has the same size on disk and in memory, and lies at the same offset in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// At most 8 characters.
    pub name: &'static str,
    /// Its place in the image.
    pub rva: u32,
    /// Bytes.
    pub size: u32,
    /// `IMAGE_SCN_*`.
    pub characteristics: u32,
}

impl Section {
    /// Whether it holds instructions.
    pub fn is_code(&self) -> bool {
        self.characteristics & 0x20 != 0
    }

    /// The section header of an image.
    pub fn header(&self) -> [u8; 40] {
        let mut header = [0; 40];
        header[..self.name.len()].copy_from_slice(self.name.as_bytes());
        for (at, value) in [(8, self.size), (12, self.rva), (16, self.size), (20, self.rva), (36, self.characteristics)]
        {
            header[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        header
    }
}

/// Sections, in order and without holes between them, that hold every symbol. The true borders are not in the
/// symbol table; they are taken where the symbols leave the tail of a page empty. The last section is
/// [`LINKER_SIZE`] bytes without symbols.
pub fn sections(isf: &Isf) -> Vec<Section> {
    let mut addresses: Vec<u64> = isf.symbols.values().map(|symbol| symbol.address).filter(|&at| at >= PAGE).collect();
    addresses.sort_unstable();
    let mut starts = vec![PAGE];
    for pair in addresses.windows(2) {
        if pair[1] % PAGE == 0 && pair[1] - pair[0] >= TAIL {
            starts.push(pair[1]);
        }
    }
    for first in FIRSTS {
        starts.extend(isf.symbol(first).ok().map(|rva| rva & !(PAGE - 1)));
    }
    starts.sort_unstable();
    starts.dedup();
    // The size of the last symbol is not known either; nothing at the end of a kernel is larger than a page.
    let end = addresses.last().copied().unwrap_or(PAGE).next_multiple_of(PAGE) + PAGE;
    starts.push(end);
    let mut sections: Vec<Section> = starts
        .windows(2)
        .map(|pair| {
            let range = pair[0]..pair[1];
            let (name, characteristics) = ANCHORS
                .iter()
                .find(|(symbol, ..)| isf.symbol(symbol).is_ok_and(|rva| range.contains(&rva)))
                .map_or(("PAGE", CODE), |&(_, name, characteristics)| (name, characteristics));
            Section { name, rva: range.start as u32, size: (range.end - range.start) as u32, characteristics }
        })
        .collect();
    sections.push(Section { name: ".edata", rva: end as u32, size: LINKER_SIZE, characteristics: READ_ONLY });
    sections
}
