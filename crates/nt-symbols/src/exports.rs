//! The export table of an image in memory: kd's "export symbols", for modules without a PDB.
//!
//! ```text
//! 10 first ordinal  14 functions  18 names  1c RVAs of functions  20 RVAs of names  24 ordinals (u16), one per name
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nt_memory::{Memory, read_sparse};

use crate::image::{Image, ImageError};
use crate::names::{Names, NamesBuilder};
use crate::{Layout, Symbol, SymbolFile, SymbolKind};

/// The kernel's directory, names included, has some 100 KB; the largest known ones stay below 2 MB.
const MAX_DIRECTORY: u32 = 4 << 20;
/// Ordinals have 16 bits.
const MAX_EXPORTS: usize = 0x10000;
/// Longer than any decorated C++ name that a linker writes.
const MAX_NAME: usize = 0x1000;

/// Names that an image exports.
#[derive(Debug)]
pub struct Exports {
    path: PathBuf,
    names: Names,
    notes: Vec<String>,
}

impl Exports {
    /// Reads the whole export directory, which holds its names too. `name` is what `lm` shows as the file.
    pub fn read(
        memory: &(impl Memory + ?Sized),
        image: &Image,
        name: impl Into<PathBuf>,
    ) -> Result<Exports, ImageError> {
        let base = image.base;
        let Some((start, size)) = image.exports else {
            return Ok(Exports { path: name.into(), names: NamesBuilder::default().build(), notes: Vec::new() });
        };
        let end = start.checked_add(size).filter(|end| *end <= image.size_of_image && size <= MAX_DIRECTORY);
        let Some(end) = end else {
            let why = format!("it is said to lie at +{start:#x}, {size:#x} bytes, in {:#x}", image.size_of_image);
            return Err(ImageError::Damaged { base, what: "export directory", why });
        };
        let sparse = read_sparse(&memory, base.wrapping_add(u64::from(start)), size as usize)?;
        let at = |rva: u32, length: usize| sparse.get(rva.checked_sub(start)? as usize, length);
        let u32_at = |rva: u32| at(rva, 4)?.first_chunk().map(|b| u32::from_le_bytes(*b));
        let u16_at = |rva: u32| at(rva, 2)?.first_chunk().map(|b| u16::from_le_bytes(*b));
        let header = |offset: u32| {
            u32_at(start.saturating_add(offset)).ok_or(ImageError::Unreadable {
                base,
                what: "export directory",
                address: base.wrapping_add(u64::from(start)),
            })
        };
        let first_ordinal = header(0x10)?;
        // The tables lie in the directory: what it has no room for need not be looked for one by one.
        let counted = [header(0x14)?, header(0x18)?].map(|count| (count as usize).min(MAX_EXPORTS));
        let [functions, named] = counted.map(|count| count.min(size as usize / 4));
        let (function_table, name_table, ordinal_table) = (header(0x1c)?, header(0x20)?, header(0x24)?);

        let mut builder = NamesBuilder::default();
        let mut unreadable = counted[0] - functions + counted[1] - named;
        let mut has_name = vec![false; functions];
        // An address within the directory is not code but the name of another module's export.
        let address = |ordinal: usize| {
            let rva = u32_at(function_table.checked_add(u32::try_from(ordinal * 4).ok()?)?)?;
            Some((rva != 0 && !(start..end).contains(&rva)).then_some(rva))
        };
        for n in 0..named as u32 {
            let entry = || {
                let ordinal = usize::from(u16_at(ordinal_table.checked_add(n * 2)?)?);
                let name = u32_at(name_table.checked_add(n * 4)?)?;
                let available = end.checked_sub(name)?.min(MAX_NAME as u32) as usize;
                // Up to a hole if there is one; the name usually ends before it.
                let length = (0..available).find(|i| at(name.wrapping_add(*i as u32), 1).is_none_or(|b| b[0] == 0))?;
                let text = at(name, length + 1)?;
                Some((ordinal, String::from_utf8_lossy(&text[..length]).into_owned()))
            };
            let Some((ordinal, name)) = entry() else {
                unreadable += 1;
                continue;
            };
            if let Some(seen) = has_name.get_mut(ordinal) {
                *seen = true;
            }
            match address(ordinal) {
                Some(Some(rva)) => builder.push(&name, rva),
                Some(None) => {}
                None => unreadable += 1,
            }
        }
        for (ordinal, _) in has_name.iter().enumerate().filter(|(_, named)| !**named) {
            match address(ordinal) {
                Some(Some(rva)) => builder.push(&format!("Ordinal{}", first_ordinal.wrapping_add(ordinal as u32)), rva),
                Some(None) => {}
                None => unreadable += 1,
            }
        }
        let mut notes = Vec::new();
        if unreadable > 0 {
            notes.push(format!("{unreadable} exports of the image at {base:016x} could not be read"));
        }
        Ok(Exports { path: name.into(), names: builder.build(), notes })
    }

    /// Names and forwarders together.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether the image exports nothing.
    pub fn is_empty(&self) -> bool {
        self.names.len() == 0
    }
}

impl SymbolFile for Exports {
    fn kind(&self) -> SymbolKind {
        SymbolKind::Exports
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn symbol(&self, name: &str) -> Option<Symbol> {
        self.names.symbol(name)
    }

    fn around(&self, rva: u32) -> (Option<Symbol>, Option<Symbol>) {
        self.names.around(rva)
    }

    fn matching(&self, pattern: &str) -> Vec<Symbol> {
        self.names.matching(pattern)
    }

    fn layout(&self, _type_name: &str) -> Option<Arc<Layout>> {
        None
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BASE, TestImage};

    fn exports(image: &TestImage) -> Exports {
        let header = Image::read(image, BASE).unwrap();
        Exports::read(image, &header, "myfault.sys").unwrap()
    }

    #[test]
    fn named_and_unnamed_exports_but_no_forwarders() {
        let exports = exports(&TestImage::new(b"x.pdb"));
        let all: Vec<_> = exports.matching("*").into_iter().map(|s| (s.name, s.rva)).collect();
        assert_eq!(all, [("Ordinal7".to_owned(), 0x1010), ("Alpha".to_owned(), 0x1020)]);
        assert_eq!(exports.around(0x1025).0.map(|s| s.name), Some("Alpha".into()));
        assert_eq!(exports.notes(), [""; 0]);
    }

    #[test]
    fn a_paged_out_part_is_said() {
        let mut image = TestImage::new(b"x.pdb");
        // The names lie in the last page, the tables before it.
        image.hole(0x3000..0x4000);
        let exports = exports(&image);
        assert_eq!(exports.matching("Alpha"), []);
        assert_eq!(exports.notes(), ["2 exports of the image at fffff80002600000 could not be read"]);
    }
}
