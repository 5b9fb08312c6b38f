//! Which loaded images hold a tag's four bytes.
//!
//! A driver that allocates with a tag has it as a constant: on x86 and x64 the four bytes stand in an instruction
//! (`mov r8d,6B61654Ch`) or in data, on ARM64 a pair of instructions puts two halves together (`mov w2,#0x654c`;
//! `movk w2,#0x6b61,lsl #16`). So the images are searched for these bytes, by the target itself where it can: one request
//! for an image, and one or two for each place.
//!
//! What is found proves that an image *holds* the tag. Whether it allocates with it is not proved by that: tools that list
//! tags hold them as well. And an image that computes its tag, or takes it from the registry, holds none.

use nt_memory::{Memory, PAGE_SIZE, Search, read_sparse};
use nt_symbols::{Image, ImageError};

use crate::notes::{Lack, Missing, Notes};
use crate::{Kernel, PoolError, Tag};

/// `IMAGE_FILE_MACHINE_ARM64`.
const ARM64: u16 = 0xaa64;
/// `IMAGE_SCN_MEM_EXECUTE`.
const EXECUTE: u32 = 0x2000_0000;
/// Places that are kept of one image; more are counted as missing.
const MAX_PLACES: usize = 64;
/// Hits that are looked at in one image: a target may answer with the same one for ever.
const MAX_HITS: usize = 4096;
/// Instructions between the two halves of a constant.
const NEAR: u64 = 16;
/// Bytes of a file that are looked at together.
const CHUNK: usize = 1 << 20;

/// An image to be searched.
#[derive(Clone, Copy)]
pub struct LoadedImage<'a> {
    /// Where it is loaded.
    pub base: u64,
    /// Bytes in memory.
    pub size: u32,
    /// Its file, read as if it were loaded, where that is at hand: for targets that cannot search.
    pub file: Option<&'a dyn Memory>,
}

/// How a place holds the tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The four bytes, within code.
    Code,
    /// The four bytes, elsewhere.
    Data,
    /// Two instructions of ARM64; the place is the first.
    Halves,
}

/// A place that holds the tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its place in the list of images that was given.
    pub image: usize,
    /// Where its four bytes begin, or its instruction.
    pub address: u64,
    /// In code, or in data.
    pub form: Form,
    /// The section's name, where the headers could be read.
    pub section: Option<String>,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    /// In the order of the images, then of addresses.
    pub places: Vec<Place>,
    /// How many images were searched.
    pub searched: usize,
    /// Those that were not: the target cannot search, and there is no file of them.
    pub unsearched: Vec<usize>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
}

/// The places that hold `tag`. `machine` is the images' (`IMAGE_FILE_HEADER.Machine`).
pub fn owners(kernel: &Kernel<'_>, machine: u16, tag: Tag, images: &[LoadedImage<'_>]) -> Result<Owners, PoolError> {
    let mut found = Owners::default();
    let patterns = patterns(machine, tag);
    let mut can_search = true;
    for (index, image) in images.iter().enumerate() {
        let mut hits = Vec::new();
        let mut whole = true;
        if can_search {
            for pattern in &patterns {
                match search(kernel.memory, image, pattern, &mut hits)? {
                    Searched::All => {}
                    Searched::Unsupported => can_search = false,
                    Searched::TooMany => whole = false,
                }
            }
        }
        let source = match (can_search, image.file) {
            (true, _) => kernel.memory,
            (false, Some(file)) => {
                whole = scan(file, image, &patterns, &mut hits)?;
                file
            }
            (false, None) => {
                found.unsearched.push(index);
                continue;
            }
        };
        found.searched += 1;
        hits.sort_unstable();
        hits.dedup();
        let before = found.places.len();
        for address in hits {
            if found.places.len() - before == MAX_PLACES {
                whole = false;
                break;
            }
            found.places.extend(place(source, machine, tag, index, image, address)?);
        }
        if !whole {
            found.notes.missing(
                Missing::because(
                    Lack::Stopped,
                    format!("more than {MAX_PLACES} places of the image at {:016x} may hold the tag; the rest was not looked at", image.base),
                )
                .at(image.base),
            );
        }
        sections(source, image, &mut found.places[before..])?;
    }
    if can_search && found.searched > 0 {
        found.notes.remark("the target searched; what is paged out of an image was passed over");
    }
    Ok(found)
}

/// Bytes to look for, and how far into the place they lie.
struct Pattern {
    bytes: Vec<u8>,
    offset: u64,
}

fn patterns(machine: u16, tag: Tag) -> Vec<Pattern> {
    let mut patterns = vec![Pattern { bytes: tag.0.to_vec(), offset: 0 }];
    if machine == ARM64 {
        let [low, high] = halves(tag);
        // movk without its lowest byte, which has the register's number: one pattern for all registers.
        for (half, shift) in [(high, 1), (low, 0)] {
            let word = move_keep(half, shift, 0).to_le_bytes();
            patterns.push(Pattern { bytes: word[1..].to_vec(), offset: 1 });
        }
    }
    patterns
}

fn halves(tag: Tag) -> [u16; 2] {
    let [a, b, c, d] = tag.0;
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

/// `movk wN,#half,lsl #(16 * shift)`.
fn move_keep(half: u16, shift: u32, register: u32) -> u32 {
    0x7280_0000 | shift << 21 | u32::from(half) << 5 | register
}

/// `mov wN,#half,lsl #(16 * shift)`, which clears the rest.
fn move_zero(half: u16, shift: u32, register: u32) -> u32 {
    0x5280_0000 | shift << 21 | u32::from(half) << 5 | register
}

enum Searched {
    All,
    Unsupported,
    TooMany,
}

/// Lets the target search an image.
fn search(
    memory: &dyn Memory,
    image: &LoadedImage<'_>,
    pattern: &Pattern,
    hits: &mut Vec<u64>,
) -> Result<Searched, PoolError> {
    let size = u64::from(image.size);
    let mut offset = 0;
    for _ in 0..MAX_HITS {
        if offset + pattern.bytes.len() as u64 > size {
            return Ok(Searched::All);
        }
        match memory.search(image.base.wrapping_add(offset), size - offset, &pattern.bytes)? {
            Search::NotFound => return Ok(Searched::All),
            Search::Unsupported => return Ok(Searched::Unsupported),
            Search::Found(hit) => {
                let at = hit.wrapping_sub(image.base);
                if !(offset..size).contains(&at) {
                    return Ok(Searched::Unsupported);
                }
                hits.push(hit.wrapping_sub(pattern.offset));
                offset = at + 1;
            }
        }
    }
    Ok(Searched::TooMany)
}

/// Searches an image's file here. False: there are more hits than are looked at.
fn scan(
    file: &dyn Memory,
    image: &LoadedImage<'_>,
    patterns: &[Pattern],
    hits: &mut Vec<u64>,
) -> Result<bool, PoolError> {
    let longest = patterns.iter().map(|pattern| pattern.bytes.len()).max().unwrap_or(1);
    for start in (0..u64::from(image.size)).step_by(CHUNK) {
        let length = (CHUNK + longest - 1).min((u64::from(image.size) - start) as usize);
        let address = image.base.wrapping_add(start);
        let piece = read_sparse(file, address, length)?;
        for pattern in patterns {
            for (at, bytes) in piece.bytes.windows(pattern.bytes.len()).enumerate() {
                if bytes != pattern.bytes || piece.get(at, bytes.len()).is_none() {
                    continue;
                }
                if hits.len() == MAX_HITS {
                    return Ok(false);
                }
                hits.push(address.wrapping_add(at as u64).wrapping_sub(pattern.offset));
            }
        }
    }
    Ok(true)
}

/// A hit that is what it looks like.
fn place(
    source: &dyn Memory,
    machine: u16,
    tag: Tag,
    index: usize,
    image: &LoadedImage<'_>,
    address: u64,
) -> Result<Option<Place>, PoolError> {
    let new = |address, form| Some(Place { image: index, address, form, section: None });
    let mut bytes = [0; 4];
    if source.read(address, &mut bytes)? < bytes.len() {
        return Ok(None);
    }
    if bytes == tag.0 {
        return Ok(new(address, Form::Data));
    }
    if machine != ARM64 || !address.is_multiple_of(4) {
        return Ok(None);
    }
    let word = u32::from_le_bytes(bytes);
    let register = word & 0x1f;
    let [low, high] = halves(tag);
    let first = match word {
        word if word == move_keep(high, 1, register) => move_zero(low, 0, register),
        word if word == move_keep(low, 0, register) => move_zero(high, 1, register),
        _ => return Ok(None),
    };
    // The other half comes before.
    let start = address.saturating_sub(NEAR * 4).max(image.base);
    let code = read_sparse(source, start, (address - start) as usize)?;
    let words = code.bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default()));
    let words: Vec<u32> = words.collect();
    let before = words.iter().rposition(|word| *word == first);
    Ok(before.and_then(|at| new(start + at as u64 * 4, Form::Halves)))
}

/// Which sections places are in; code is told from data by that.
fn sections(source: &dyn Memory, image: &LoadedImage<'_>, places: &mut [Place]) -> Result<(), PoolError> {
    if places.is_empty() {
        return Ok(());
    }
    let read = || Image::read(source, image.base)?.sections(source);
    let sections = match read() {
        Ok(sections) => sections,
        Err(ImageError::Fault(fault)) => return Err(fault.into()),
        // The place is known all the same.
        Err(_) => return Ok(()),
    };
    for place in places {
        let rva = place.address.wrapping_sub(image.base);
        let inside = sections.iter().find(|section| {
            // A section ends with its last page.
            let size = u64::from(section.size).next_multiple_of(PAGE_SIZE);
            rva.checked_sub(section.rva.into()).is_some_and(|offset| offset < size)
        });
        let Some(section) = inside else { continue };
        if place.form == Form::Data && section.characteristics & EXECUTE != 0 {
            place.form = Form::Code;
        }
        place.section = Some(section.name.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nt_memory::Fault;
    use nt_symbols::{Layout, Symbol, SymbolFile, SymbolKind};
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    const BASE: u64 = 0xfffff880_01000000;

    struct Nothing;

    impl SymbolFile for Nothing {
        fn kind(&self) -> SymbolKind {
            SymbolKind::Exports
        }
        fn path(&self) -> &Path {
            Path::new("")
        }
        fn symbol(&self, _: &str) -> Option<Symbol> {
            None
        }
        fn around(&self, _: u32) -> (Option<Symbol>, Option<Symbol>) {
            (None, None)
        }
        fn matching(&self, _: &str) -> Vec<Symbol> {
            Vec::new()
        }
        fn layout(&self, _: &str) -> Option<Arc<Layout>> {
            None
        }
    }

    /// One image, with or without a search of its own.
    struct Machine {
        bytes: Vec<u8>,
        searches: bool,
    }

    impl Memory for Machine {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
            let from = usize::try_from(address.wrapping_sub(BASE)).unwrap_or(usize::MAX).min(self.bytes.len());
            let count = buffer.len().min(self.bytes.len() - from);
            buffer[..count].copy_from_slice(&self.bytes[from..from + count]);
            Ok(count)
        }

        fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
            if !self.searches {
                return Ok(Search::Unsupported);
            }
            let from = (address - BASE) as usize;
            let range = &self.bytes[from..self.bytes.len().min(from + length as usize)];
            let hit = range.windows(pattern.len()).position(|bytes| bytes == pattern);
            Ok(hit.map_or(Search::NotFound, |at| Search::Found(address + at as u64)))
        }
    }

    fn machine(searches: bool) -> Machine {
        let mut bytes = vec![0; 0x4000];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, b"MZ");
        put(0x3c, &[0x80]);
        put(0x80, b"PE\0\0\x64\x86\x02\0");
        put(0x94, &[0xf0]);
        put(0x98, &[0x0b, 2]);
        for (n, (name, rva, flags)) in
            [(b".text", 0x1000u32, 0x6000_0020u32), (b".data", 0x3000, 0xc000_0040)].iter().enumerate()
        {
            let at = 0x188 + n * 40;
            put(at, *name);
            put(at + 8, &0x1000u32.to_le_bytes());
            put(at + 12, &rva.to_le_bytes());
            put(at + 36, &flags.to_le_bytes());
        }
        put(0x1200, &[0x41, 0xb8]);
        put(0x1202, b"Leak");
        put(0x3010, b"LeakLeak");
        Machine { bytes, searches }
    }

    fn ask(machine: &Machine, arch: u16, file: bool) -> Owners {
        let kernel = Kernel { memory: machine, symbols: &Nothing, base: BASE, pointer_size: 8, build: 7601 };
        let file = file.then_some(machine as &dyn Memory);
        owners(&kernel, arch, Tag(*b"Leak"), &[LoadedImage { base: BASE, size: 0x4000, file }]).unwrap()
    }

    #[test]
    fn the_target_and_a_file_give_the_same_places() {
        let by_target = ask(&machine(true), 0x8664, false);
        let places: Vec<_> =
            by_target.places.iter().map(|place| (place.address - BASE, place.form, place.section.as_deref())).collect();
        assert_eq!(
            places,
            [
                (0x1202, Form::Code, Some(".text")),
                (0x3010, Form::Data, Some(".data")),
                (0x3014, Form::Data, Some(".data"))
            ]
        );
        assert_eq!(ask(&machine(false), 0x8664, true).places, by_target.places);
        let neither = ask(&machine(false), 0x8664, false);
        assert_eq!((neither.searched, neither.unsearched.as_slice(), neither.places.len()), (0, &[0][..], 0));
    }

    #[test]
    fn halves_of_arm64_are_found_whatever_the_register() {
        for searches in [true, false] {
            let mut machine = machine(searches);
            let mut put = |at: usize, word: u32| machine.bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            // mov w9,#0x654c; nop; movk w9,#0x6b61,lsl #16
            put(0x1800, 0x528c_a989);
            put(0x1804, 0xd503_201f);
            put(0x1808, 0x72ad_6c29);
            // The other way round, in another register.
            put(0x1900, 0x52ad_6c22);
            put(0x1904, 0x728c_a982);
            // A half alone is no tag.
            put(0x1a00, 0x72ad_6c29);
            let found = ask(&machine, ARM64, true);
            let halves: Vec<u64> = found
                .places
                .iter()
                .filter(|place| place.form == Form::Halves)
                .map(|place| place.address - BASE)
                .collect();
            assert_eq!(halves, [0x1800, 0x1900]);
        }
    }

    #[test]
    fn a_target_that_finds_the_same_place_for_ever_ends() {
        struct Liar(Machine);
        impl Memory for Liar {
            fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
                self.0.read(address, buffer)
            }
            fn search(&self, address: u64, _: u64, _: &[u8]) -> Result<Search, Fault> {
                Ok(Search::Found(address))
            }
        }
        let liar = Liar(machine(true));
        let kernel = Kernel { memory: &liar, symbols: &Nothing, base: BASE, pointer_size: 8, build: 7601 };
        let image = LoadedImage { base: BASE, size: 0x4000, file: None };
        let found = owners(&kernel, 0x8664, Tag(*b"Leak"), &[image]).unwrap();
        assert_eq!(found.places, [], "what does not have the tag's bytes is no place");
        assert!(!found.notes.is_complete());
    }
}
