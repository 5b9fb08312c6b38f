//! Arrays of records in the target, read in bulk.

use nt_memory::{Fault, PAGE_SIZE, Sparse, read_sparse};

use crate::{Kernel, Missing, Notes};

/// A table is read in pieces of this size; a whole piece without a readable page means that the rest is not there
/// either, and is not asked for page by page.
const PIECE: usize = 4 << 20;

/// Holes named one by one in the notes; more are only counted.
const NAMED_HOLES: usize = 8;

/// Reads `length` bytes of a table; the caller has bounded `length`.
pub(crate) fn read_table(kernel: &Kernel<'_>, address: u64, length: usize) -> Result<Sparse, Fault> {
    let mut table = read_sparse(kernel.memory, address, length.min(PIECE))?;
    while table.bytes.len() < length {
        let done = table.bytes.len();
        let start = address.wrapping_add(done as u64);
        let wanted = (length - done).min(PIECE);
        let piece_start = start.wrapping_sub(PIECE as u64);
        if table.holes.last().is_some_and(|hole| hole.start <= piece_start && hole.end == start) {
            heap_limit::room_for(length - done)?;
            table.bytes.resize(length, 0);
            add_hole(&mut table, start..address.wrapping_add(length as u64));
            break;
        }
        let piece = read_sparse(kernel.memory, start, wanted)?;
        // Growing may double it.
        heap_limit::room_for(done)?;
        table.bytes.extend(piece.bytes);
        for hole in piece.holes {
            add_hole(&mut table, hole);
        }
    }
    Ok(table)
}

fn add_hole(table: &mut Sparse, hole: std::ops::Range<u64>) {
    match table.holes.last_mut() {
        Some(last) if last.end == hole.start => last.end = hole.end,
        _ => table.holes.push(hole),
    }
}

/// The table's entries in order; `None` for one that is not wholly readable.
pub(crate) fn entries(table: &Sparse, size: usize) -> impl Iterator<Item = Option<&[u8]>> {
    let mut holes = table.holes.iter().peekable();
    table.bytes.chunks_exact(size).enumerate().map(move |(i, bytes)| {
        let start = table.address.wrapping_add((i * size) as u64);
        let end = start.wrapping_add(size as u64);
        while holes.next_if(|hole| hole.end <= start).is_some() {}
        let torn = holes.peek().is_some_and(|hole| hole.start < end);
        (!torn).then_some(bytes)
    })
}

/// Says which parts of a table are missing from the result.
pub(crate) fn note_holes(notes: &mut Notes, what: &str, table: &Sparse) {
    for hole in table.holes.iter().take(NAMED_HOLES) {
        let length = hole.end.wrapping_sub(hole.start);
        let what = format!("{what}: {length:#x} bytes at {:016x} could not be read", hole.start);
        notes.missing(Missing::new(what).at(hole.start).count(length));
    }
    if let Some(more) = table.holes.get(NAMED_HOLES..).filter(|more| !more.is_empty()) {
        let pages: u64 = more.iter().map(|hole| hole.end.wrapping_sub(hole.start).div_ceil(PAGE_SIZE)).sum();
        notes.missing(format!("{what}: {} more places ({pages} pages) could not be read", more.len()));
    }
}
