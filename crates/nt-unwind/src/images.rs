//! What of loaded images was read, and which function an address is in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nt_memory::{Fault, Memory};
use nt_symbols::{Image, ImageError, ImageFile};

use crate::Stuck;

/// `IMAGE_SCN_MEM_EXECUTE`.
const EXECUTE: u32 = 0x2000_0000;
/// An entry of the exception directory.
const ENTRY: u64 = 12;
/// More than this is not kept of all images together: the tables of some 200 drivers have 3 MB.
const LIMIT: usize = 16 << 20;
/// A guess that is wrong this often is followed by plain halving: the table is not what its image's size promises.
const GUESSES: u32 = 4;

/// A loaded image, told from another that was at its place before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageId {
    /// Where the image is loaded.
    pub base: u64,
    /// Bytes in memory.
    pub size: u32,
    /// From its header, as the module list has it; 0 where that is not known.
    pub time_date_stamp: u32,
}

/// On a real serial line a full reply takes a third of a second, and short ones are worth their requests: a piece that
/// took longer than this is the last of its size.
const SLOW: Duration = Duration::from_millis(50);
const SHORT: u64 = 256;

/// An entry of the exception directory; RVAs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) begin: u32,
    pub(crate) end: u32,
    pub(crate) unwind: u32,
}

impl Function {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self { begin: word(0)?, end: word(4)?, unwind: word(8)? })
    }
}

/// Headers, function tables and unwind data of images, for as long as they are loaded.
///
/// Drivers come and go: who asks gives the image's [`ImageId`], and what is kept of another image at the same base is
/// dropped. [`Images::clear`] is for a target that started anew.
#[derive(Debug, Default)]
pub struct Images {
    loaded: HashMap<u64, Loaded>,
    held: usize,
    /// A piece has been seen to take its time.
    is_slow: bool,
}

#[derive(Debug)]
struct Loaded {
    id: ImageId,
    file: Option<Arc<ImageFile>>,
    /// Once the header was read; `None` in it: no function has unwind data.
    table: Option<Option<Table>>,
    /// Pieces of the image by their number: a piece is as long as a reply.
    pieces: BTreeMap<u64, Vec<u8>>,
    piece: u64,
    /// What the slowest piece took.
    slowest: Duration,
}

/// Where an image's functions are listed, and where its code is.
#[derive(Debug, Clone)]
struct Table {
    rva: u64,
    count: u64,
    /// RVA and size of each section of code, ascending.
    code: Vec<(u64, u64)>,
}

impl Table {
    /// Bytes of code before an RVA: functions are spread over code, not over the image.
    fn code_before(&self, rva: u64) -> u64 {
        self.code.iter().map(|&(start, size)| rva.saturating_sub(start).min(size)).sum()
    }
}

/// Where in the table an RVA's entry must be.
struct Bounds {
    low: u64,
    high: u64,
    /// Bytes of code before the functions at the bounds.
    low_code: u64,
    high_code: u64,
}

impl Bounds {
    /// The entry that lies as far between the bounds as the code does.
    fn guess(&self, code: u64, tries: u32) -> u64 {
        let halved = self.low + (self.high - self.low) / 2;
        let span = self.high_code.saturating_sub(self.low_code);
        if span == 0 || tries >= GUESSES {
            return halved;
        }
        let part = u128::from(code.saturating_sub(self.low_code)) * u128::from(self.high - self.low) / u128::from(span);
        self.low.saturating_add(part as u64).min(self.high - 1)
    }
}

/// What a piece of the table says of an RVA.
enum Look {
    Here(Function),
    /// Between two functions: code without unwind data.
    Nowhere,
    /// Below the entry with this number, or above it.
    Below(u64, u32),
    Above(u64, u32),
}

impl Images {
    /// Forgets everything: the target was started anew.
    pub fn clear(&mut self) {
        *self = Images::default();
    }

    /// Whether anything of this image was asked for before.
    pub fn was_seen(&self, id: ImageId) -> bool {
        self.loaded.get(&id.base).is_some_and(|loaded| loaded.id == id)
    }

    /// Whether an image's file is in use.
    pub fn has_file(&self, id: ImageId) -> bool {
        self.loaded.get(&id.base).is_some_and(|loaded| loaded.id == id && loaded.file.is_some())
    }

    /// From here on what is needed of the image comes from its file. The caller has proved that it is the same: by time
    /// stamp and size, as a symbol store does.
    pub fn use_file(&mut self, id: ImageId, file: Arc<ImageFile>) {
        let loaded = self.entry(id, 0);
        loaded.file = Some(file);
        loaded.table = None;
    }

    fn entry(&mut self, id: ImageId, reply: usize) -> &mut Loaded {
        let new = || Loaded {
            id,
            file: None,
            table: None,
            pieces: BTreeMap::new(),
            piece: reply as u64,
            slowest: Duration::ZERO,
        };
        let loaded = self.loaded.entry(id.base).or_insert_with(new);
        if loaded.id != id {
            *loaded = new();
        }
        if loaded.piece == 0 {
            loaded.piece = reply as u64;
        }
        loaded
    }

    /// Where the function that holds an RVA begins and ends; `None`: no unwind data names one.
    pub fn bounds(&mut self, memory: &dyn Memory, id: ImageId, rva: u32) -> Result<Option<(u32, u32)>, Stuck> {
        Ok(self.function(memory, id, rva)?.map(|function| (function.begin, function.end)))
    }

    /// `length` bytes at `rva`.
    pub(crate) fn bytes(
        &mut self,
        memory: &dyn Memory,
        id: ImageId,
        what: &'static str,
        rva: u64,
        length: usize,
    ) -> Result<Vec<u8>, Stuck> {
        self.with(memory, id, |loaded| loaded.bytes(memory, what, rva, length))
    }

    /// The function that holds `rva`; `None`: code without unwind data.
    pub(crate) fn function(&mut self, memory: &dyn Memory, id: ImageId, rva: u32) -> Result<Option<Function>, Stuck> {
        self.with(memory, id, |loaded| loaded.function(memory, rva))
    }

    /// Asks an image, and keeps account of what that brought.
    fn with<T>(&mut self, memory: &dyn Memory, id: ImageId, ask: impl FnOnce(&mut Loaded) -> T) -> T {
        if self.held > LIMIT {
            self.drop_pieces(None);
        }
        let reply = if self.is_slow { SHORT as usize } else { memory.reply_size().max(64) };
        let loaded = self.entry(id, reply);
        let before = loaded.held();
        let answer = ask(loaded);
        let (new, slowest) = (loaded.held().saturating_sub(before), loaded.slowest);
        self.held += new;
        if slowest > SLOW && !self.is_slow {
            self.is_slow = true;
            self.drop_pieces(Some(SHORT));
        }
        answer
    }

    fn drop_pieces(&mut self, length: Option<u64>) {
        for loaded in self.loaded.values_mut() {
            loaded.pieces.clear();
            loaded.piece = length.unwrap_or(loaded.piece);
        }
        self.held = 0;
    }
}

impl Loaded {
    fn held(&self) -> usize {
        self.pieces.len() * self.piece as usize
    }

    fn address(&self, rva: u64) -> u64 {
        self.id.base.wrapping_add(rva)
    }

    fn bytes(&mut self, memory: &dyn Memory, what: &'static str, rva: u64, length: usize) -> Result<Vec<u8>, Stuck> {
        if let Some(file) = &self.file {
            let mut bytes = vec![0; length];
            if file.read(self.address(rva), &mut bytes)? >= length {
                return Ok(bytes);
            }
        }
        let (first, last) = (rva / self.piece, (rva + length.max(1) as u64 - 1) / self.piece);
        let mut bytes = Vec::with_capacity(length);
        for number in first..=last {
            self.fetch(memory, number)?;
            let start = number * self.piece;
            let from = rva.max(start) - start;
            let to = (rva + length as u64).min(start + self.piece) - start;
            match self.pieces.get(&number).and_then(|piece| piece.get(from as usize..to as usize)) {
                Some(part) => bytes.extend_from_slice(part),
                // A piece that begins or ends where nothing is readable; what is wanted may be readable all the same.
                None => return self.exactly(memory, what, rva, length),
            }
        }
        Ok(bytes)
    }

    /// Reads a piece if it is not here.
    fn fetch(&mut self, memory: &dyn Memory, number: u64) -> Result<(), Fault> {
        if self.pieces.contains_key(&number) {
            return Ok(());
        }
        let start = number * self.piece;
        let length = self.piece.min(u64::from(self.id.size).saturating_sub(start).max(1));
        let mut bytes = vec![0; length as usize];
        let begun = Instant::now();
        let read = memory.read(self.address(start), &mut bytes)?.min(bytes.len());
        if length > SHORT {
            self.slowest = self.slowest.max(begun.elapsed());
        }
        bytes.truncate(read);
        // What is paged out now may be back at the next stop.
        if read > 0 {
            self.pieces.insert(number, bytes);
        }
        Ok(())
    }

    fn exactly(&self, memory: &dyn Memory, what: &'static str, rva: u64, length: usize) -> Result<Vec<u8>, Stuck> {
        let (mut bytes, address) = (vec![0; length], self.address(rva));
        match memory.read(address, &mut bytes)? {
            read if read >= length => Ok(bytes),
            read => Err(Stuck::Unreadable { what, address: address.wrapping_add(read as u64) }),
        }
    }

    fn table(&mut self, memory: &dyn Memory) -> Result<Option<Table>, Stuck> {
        if let Some(table) = &self.table {
            return Ok(table.clone());
        }
        let base = self.id.base;
        let read = |memory: &dyn Memory| -> Result<Option<Table>, ImageError> {
            let image = Image::read(memory, base)?;
            let Some((rva, size)) = image.exceptions else { return Ok(None) };
            let mut code: Vec<(u64, u64)> = image
                .sections(memory)?
                .iter()
                .filter(|section| section.characteristics & EXECUTE != 0)
                .map(|section| (section.rva.into(), section.size.into()))
                .collect();
            code.sort_unstable();
            Ok(Some(Table { rva: rva.into(), count: u64::from(size) / ENTRY, code }))
        };
        let table = match (read(memory), &self.file) {
            (Err(ImageError::Unreadable { .. }), Some(file)) => read(file.as_ref()),
            (table, _) => table,
        };
        let table = match table {
            Ok(table) => table,
            Err(ImageError::Fault(fault)) => return Err(fault.into()),
            Err(ImageError::Unreadable { address, .. }) => {
                return Err(Stuck::Unreadable { what: "an image's header", address });
            }
            // No image with functions: its code has no unwind data.
            Err(_) => None,
        };
        self.table = Some(table.clone());
        Ok(table)
    }

    fn function(&mut self, memory: &dyn Memory, rva: u32) -> Result<Option<Function>, Stuck> {
        let Some(table) = self.table(memory)? else { return Ok(None) };
        let code = table.code_before(rva.into());
        let mut bounds = Bounds { low: 0, high: table.count, low_code: 0, high_code: table.code_before(u64::MAX) };
        // What is here already narrows the search without a read.
        let pieces = table.rva / self.piece..=(table.rva + table.count * ENTRY) / self.piece;
        let here: Vec<u64> = self.pieces.range(pieces).map(|(number, _)| *number).collect();
        for number in here {
            if let Some(found) = self.look(&table, number, rva).and_then(|look| narrow(&table, &mut bounds, look)) {
                return Ok(found);
            }
        }
        let mut tries = 0;
        while bounds.low < bounds.high {
            let middle = bounds.guess(code, tries);
            tries += 1;
            let at = table.rva + middle * ENTRY;
            // Also where the entry lies over the end of its piece.
            let bytes = self.bytes(memory, "an image's function table", at, ENTRY as usize)?;
            let one = Function::parse(&bytes).ok_or(Stuck::Damaged(self.address(at)))?;
            let look = self.look(&table, at / self.piece, rva).unwrap_or_else(|| compare(rva, &[one], middle));
            // A piece that knows nothing new is no step: its own entry is.
            let before = (bounds.low, bounds.high);
            if let Some(found) = narrow(&table, &mut bounds, look) {
                return Ok(found);
            }
            if before == (bounds.low, bounds.high)
                && let Some(found) = narrow(&table, &mut bounds, compare(rva, &[one], middle))
            {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// What the whole entries of a piece say of an RVA.
    fn look(&self, table: &Table, number: u64, rva: u32) -> Option<Look> {
        let piece = self.pieces.get(&number)?;
        let start = number * self.piece;
        let first = start.saturating_sub(table.rva).div_ceil(ENTRY);
        let from = (table.rva + first * ENTRY).checked_sub(start)?;
        let room = table.count.saturating_sub(first);
        let entries = piece.get(usize::try_from(from).ok()?..)?.chunks_exact(ENTRY as usize);
        let functions: Vec<Function> = entries.take(room as usize).filter_map(Function::parse).collect();
        (!functions.is_empty()).then(|| compare(rva, &functions, first))
    }
}

/// What sorted entries, the first of which has the number `first`, say of an RVA.
fn compare(rva: u32, functions: &[Function], first: u64) -> Look {
    let below = functions.partition_point(|function| function.begin <= rva);
    let Some(function) = below.checked_sub(1).and_then(|last| functions.get(last)) else {
        return Look::Below(first, functions.first().map_or(0, |function| function.begin));
    };
    match () {
        () if rva < function.end => Look::Here(*function),
        () if below < functions.len() => Look::Nowhere,
        () => Look::Above(first + below as u64, function.end),
    }
}

/// Takes in what was seen; `Some` is the answer.
fn narrow(table: &Table, bounds: &mut Bounds, look: Look) -> Option<Option<Function>> {
    match look {
        Look::Here(function) => return Some(Some(function)),
        Look::Nowhere => return Some(None),
        Look::Below(number, begin) if number < bounds.high => {
            (bounds.high, bounds.high_code) = (number, table.code_before(begin.into()));
        }
        Look::Above(number, end) if number > bounds.low => {
            (bounds.low, bounds.low_code) = (number, table.code_before(end.into()));
        }
        Look::Below(..) | Look::Above(..) => {}
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;
    use crate::unwinder::testing::{BASE, Piece, image_of};

    fn id(piece: &Piece) -> ImageId {
        ImageId { base: BASE, size: piece.len() as u32, time_date_stamp: 1 }
    }

    /// Counts what is read.
    struct Counted<'a>(&'a Piece, Cell<usize>);

    impl Memory for Counted<'_> {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
            self.1.set(self.1.get() + 1);
            self.0.read(address, buffer)
        }
    }

    /// Functions of uneven size with gaps, as many as a kernel has.
    fn kernel() -> (Piece, Vec<(u32, u32)>) {
        let mut functions = Vec::new();
        let mut at = 0x1000u32;
        for n in 0u32..30_000 {
            let size = 16 + (n * 7919) % 300 + if n % 50 == 0 { 4000 } else { 0 };
            functions.push((at, at + size));
            at += size.next_multiple_of(16) + if n % 3 == 0 { 16 } else { 0 };
        }
        (image_of(&functions, at), functions)
    }

    #[test]
    fn every_function_is_found_and_gaps_are_gaps() {
        let (image, functions) = kernel();
        let mut images = Images::default();
        for (begin, end) in functions.iter().step_by(97) {
            for rva in [*begin, begin + (end - begin) / 2, end - 1] {
                let found = images.function(&image, id(&image), rva).unwrap().unwrap();
                assert_eq!((found.begin, found.end), (*begin, *end));
            }
        }
        let gap = functions.windows(2).find(|pair| pair[0].1 + 8 < pair[1].0).unwrap();
        assert_eq!(images.function(&image, id(&image), gap[0].1 + 1).unwrap(), None);
        assert_eq!(images.function(&image, id(&image), 0x10).unwrap(), None);
        assert_eq!(images.function(&image, id(&image), u32::MAX).unwrap(), None);
    }

    #[test]
    fn thirty_five_functions_cost_few_reads_and_nothing_the_second_time() {
        let (image, functions) = kernel();
        let memory = Counted(&image, Cell::new(0));
        let mut images = Images::default();
        let frames: Vec<u32> = (0..35).map(|n| functions[(n * 6151) % functions.len()].0 + 3).collect();
        for rva in &frames {
            images.function(&memory, id(&image), *rva).unwrap().unwrap();
        }
        let first = memory.1.get();
        assert!(first <= 80, "{first} reads; halving takes some 15 for each");
        for rva in &frames {
            images.function(&memory, id(&image), *rva).unwrap().unwrap();
        }
        assert_eq!(memory.1.get(), first);
        // Another image at the same base has to be read.
        let other = ImageId { time_date_stamp: 2, ..id(&image) };
        images.function(&memory, other, frames[0]).unwrap().unwrap();
        assert!(memory.1.get() > first);
    }

    proptest! {
        #[test]
        fn any_table_ends(words in proptest::collection::vec(any::<u32>(), 3..900), rva: u32, reply in 1usize..2000) {
            struct Small<'a>(&'a Piece, usize);
            impl Memory for Small<'_> {
                fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> { self.0.read(address, buffer) }
                fn reply_size(&self) -> usize { self.1 }
            }
            let functions: Vec<(u32, u32)> = words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            let image = image_of(&functions, 0x10000);
            let _ = Images::default().function(&Small(&image, reply), id(&image), rva);
        }
    }
}
