//! `s [-[flags]type] range pattern`: memory by its contents.
//!
//! ```text
//! fffff880`0496e3aa  4c 65 61 6b 3b c1 0f 42-c1 41 8d 49 fd 8b d0 ff  Leak;..B.A.I....
//! ```
//!
//! The target searches where that is cheaper than reading; whatever it finds is read and compared. It skips what it
//! cannot read without a word: for those ranges the page tables tell what was skipped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::ops::Range;

use nt_memory::{Memory, PAGE_SIZE, Search, Sparse, read_sparse};
use schemars::JsonSchema;
use serde::Serialize;

use super::dump::excerpt;
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::{evaluate, evaluate_all};
use crate::grammar::range;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width, visible_name};
use crate::translation::Tables;
use crate::typed::read_pointer;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["s"],
    usage: "s [-[[flags]]b|w|d|q|a|u|sa|su|v] address end|L count pattern",
    help: "search memory",
    details: "-b -w -d -q  numbers of that size (-w -d -q at aligned places)\n\
              -a -u        text, as it is and as UTF-16\n\
              -sa -su      anything that is printable text\n\
              -v           objects of the same class as the one at the address\n\
              Flags, in brackets: 1 shows addresses only; w looks at what can be written\n\
              only; l8 wants texts of eight characters and more; s saves the hits, at most\n\
              n100 of them (1024), and r looks at the saved hits only, whatever the range.\n\
              Parts of the range that cannot be read are named after the hits.",
    results: &[ResultShape::of::<Hits>("s")],
    action: Action::Answer(run),
};

/// A range may be huge (L?), but not the address space.
const MAX_RANGE: u64 = 1 << 40;
/// What the target searches in one go, so that Ctrl+C is heard in between.
const CHUNK: u64 = 16 << 20;
/// Shorter ranges are read: that is one request or a few, too.
const WORTH_A_SEARCH: u64 = 2 * PAGE_SIZE;
/// Where hits are this close, reading them costs less than a search for each.
const DENSE: u64 = PAGE_SIZE;
const READ: usize = 0x10000;
/// More hits are no answer.
const MAX_HITS: usize = 1 << 16;
const LONGEST_TEXT: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Byte,
    Word,
    Double,
    Quad,
    Ascii,
    Unicode,
    AnyAscii,
    AnyUnicode,
    Object,
}

#[derive(Debug, PartialEq, Eq)]
struct Options<'a> {
    kind: Kind,
    addresses_only: bool,
    writable_only: bool,
    save: bool,
    restrict: bool,
    most_saved: usize,
    least: usize,
    rest: &'a str,
}

/// How many hits `s` saves.
const SAVED_HITS: usize = 1024;

#[derive(JsonSchema, Serialize)]
struct Hits {
    hits: Vec<Hit>,
}

#[derive(JsonSchema, Serialize)]
struct Hit {
    address: Hex,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip)]
    line: String,
}

fn options(text: &str) -> Result<Options<'_>, String> {
    let mut options = Options {
        kind: Kind::Byte,
        addresses_only: false,
        writable_only: false,
        save: false,
        restrict: false,
        most_saved: SAVED_HITS,
        least: 3,
        rest: text,
    };
    let Some(text) = text.strip_prefix('-') else { return Ok(options) };
    let (flags, text) = match text.strip_prefix('[') {
        Some(text) => text.split_once(']').ok_or("the flags have no ']'")?,
        None => ("", text),
    };
    let mut flags = flags.chars().filter(|c| !c.is_whitespace()).peekable();
    while let Some(flag) = flags.next() {
        match flag {
            '1' => options.addresses_only = true,
            'w' => options.writable_only = true,
            's' => options.save = true,
            'r' => options.restrict = true,
            'l' | 'n' => {
                let mut number = 0usize;
                while let Some(digit) = flags.peek().and_then(|c| c.to_digit(10)) {
                    number = number.saturating_mul(10).saturating_add(digit as usize);
                    flags.next();
                }
                match flag {
                    'l' => options.least = number.clamp(1, LONGEST_TEXT),
                    _ => options.most_saved = number.clamp(1, MAX_HITS),
                }
            }
            other => return Err(format!("unknown flag '{other}' (1, w, s, r, nN and lN are known)")),
        }
    }
    if options.save && options.restrict {
        return Err("the flags s and r exclude each other".into());
    }
    let (kind, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    options.kind = match kind {
        "b" | "" => Kind::Byte,
        "w" => Kind::Word,
        "d" => Kind::Double,
        "q" => Kind::Quad,
        "a" => Kind::Ascii,
        "u" => Kind::Unicode,
        "sa" => Kind::AnyAscii,
        "su" => Kind::AnyUnicode,
        "v" => Kind::Object,
        other => return Err(format!("unknown type '-{}'", visible_name(other))),
    };
    options.rest = rest.trim_start();
    Ok(options)
}

impl Kind {
    /// Bytes of one object of the range.
    fn size(self, width: Width) -> u64 {
        match self {
            Self::Byte | Self::Ascii | Self::AnyAscii => 1,
            Self::Word | Self::Unicode | Self::AnyUnicode => 2,
            Self::Double => 4,
            Self::Quad => 8,
            Self::Object => width.bytes() as u64,
        }
    }

    /// Where a hit may begin.
    fn alignment(self, width: Width) -> u64 {
        match self {
            Self::Word | Self::Double | Self::Quad | Self::Object => self.size(width),
            _ => 1,
        }
    }

    /// The command whose line shows a hit.
    fn shown_by(self) -> &'static str {
        match self {
            Self::Word | Self::Unicode => "dW",
            Self::Double => "dc",
            Self::Quad => "dq",
            Self::Object => "dp",
            _ => "db",
        }
    }
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let options = options(context.arguments).map_err(|why| usage(&INFO, why))?;
    let width = context.width();
    let memory: &dyn Memory = &context.memory()?;
    let mut found = search(context, &options, memory)?;
    let mut notes = look_at_pages(context, &options, &mut found)?;
    notes.extend(not_searched(&mut found.holes, width));
    let mut overflow = None;
    if options.save {
        context.session.saved_hits = found.hits.iter().map(|hit| hit.0).take(options.most_saved).collect();
        if found.hits.len() > options.most_saved {
            overflow = Some(format!("Overflow error: {} of {} hits are saved", options.most_saved, found.hits.len()));
        }
    }
    let mut hits = Vec::new();
    for (address, text) in found.hits {
        let line = match &text {
            _ if options.addresses_only => format!("0x{}\n", width.tick(address)),
            Some(text) => format!("{}  \"{}\"\n", width.tick(address), visible_name(text)),
            None => excerpt(memory, options.kind.shown_by(), width, address)?,
        };
        hits.push(Hit { address: Hex(address), text, line });
    }
    let mut reply = Reply::with_notes(Hits { hits }, notes);
    reply.remarks.extend(overflow);
    Ok(reply)
}

/// Searches the range, or the hits that were saved.
fn search(context: &mut Context<'_>, options: &Options<'_>, memory: &dyn Memory) -> Result<Found, CommandError> {
    let width = context.width();
    let size = options.kind.size(width);
    let ((start, length), pattern) = split_range(context, options.rest, size)?;
    if length > MAX_RANGE {
        return Err(usage(&INFO, format!("{length:#x} bytes are more than the {MAX_RANGE:#x} of one search")));
    }
    let start = width.address(start);
    let mut found = Found::default();
    if matches!(options.kind, Kind::AnyAscii | Kind::AnyUnicode) {
        if !pattern.trim().is_empty() {
            return Err(usage(&INFO, "-sa and -su have no pattern"));
        }
        texts(memory, start, length, size as usize, options.least, &mut found)?;
        if options.restrict {
            found.hits.retain(|hit| context.session.saved_hits.contains(&hit.0));
        }
        return Ok(found);
    }
    let bytes = pattern_bytes(context, options.kind, pattern, width)?;
    if !options.restrict {
        find(memory, start, length, &bytes, options.kind.alignment(width), &mut found)?;
        return Ok(found);
    }
    for &address in &context.session.saved_hits {
        let mut there = vec![0; bytes.len()];
        if memory.read(address, &mut there)? == bytes.len() && there == bytes {
            found.hits.push((address, None));
        }
    }
    Ok(found)
}

/// Asks the page tables where what was skipped is unreadable, and which hits can be written. Says what is not known.
fn look_at_pages(
    context: &mut Context<'_>,
    options: &Options<'_>,
    found: &mut Found,
) -> Result<Vec<String>, CommandError> {
    if found.skipped.is_empty() && !options.writable_only {
        return Ok(Vec::new());
    }
    let (kernel, width, process) = (context.kernel()?, context.width(), context.session.process);
    let tables = match Tables::new(kernel, &mut context.session.symbols, process) {
        Ok(tables) => tables,
        Err(CommandError::Fault(fault)) => return Err(fault.into()),
        Err(error) if options.writable_only => return Err(error),
        Err(error) => {
            return Ok(vec![format!("what the target could not read was skipped; where is not known: {error}")]);
        }
    };
    let mut notes = Vec::new();
    for (at, length) in std::mem::take(&mut found.skipped) {
        if length > MOST_LOOKED_AT {
            notes.push(format!(
                "what the target could not read was skipped; in {length:#x} bytes at {} it was not looked at where",
                width.tick(at)
            ));
            continue;
        }
        match tables.holes(at, length)? {
            Some(holes) => found.holes.extend(holes),
            None => notes.push(format!(
                "what the target could not read of {length:#x} bytes at {} was skipped; where is not known: its page \
                 tables cannot be read",
                width.tick(at)
            )),
        }
    }
    if options.writable_only {
        let mut pages = HashMap::new();
        for &(address, _) in &found.hits {
            if let Entry::Vacant(page) = pages.entry(address / PAGE_SIZE) {
                page.insert(tables.is_writable(address)?);
            }
        }
        found.hits.retain(|hit| pages.get(&(hit.0 / PAGE_SIZE)) == Some(&true));
    }
    Ok(notes)
}

/// Places, with their text where that is what was looked for, and what of the range was not looked at.
#[derive(Debug, Default)]
struct Found {
    hits: Vec<(u64, Option<String>)>,
    /// Unreadable.
    holes: Vec<Range<u64>>,
    /// Searched by the target, which skips what it cannot read: address and length.
    skipped: Vec<(u64, u64)>,
}

/// The page tables of a larger range are too much to read for a note.
const MOST_LOOKED_AT: u64 = range::SANE_BYTES;

/// So many ranges are named.
const NAMED_HOLES: usize = 8;

fn not_searched(holes: &mut Vec<Range<u64>>, width: Width) -> Option<String> {
    holes.sort_by_key(|hole| hole.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for hole in holes.drain(..) {
        match joined.last_mut() {
            Some(last) if last.end >= hole.start => last.end = last.end.max(hole.end),
            _ => joined.push(hole),
        }
    }
    let bytes: u64 = joined.iter().map(|hole| hole.end.wrapping_sub(hole.start)).fold(0, u64::wrapping_add);
    let mut named: Vec<String> = joined
        .iter()
        .take(NAMED_HOLES)
        .map(|hole| format!("{} - {}", width.tick(hole.start), width.tick(hole.end.wrapping_sub(1))))
        .collect();
    if joined.len() > NAMED_HOLES {
        named.push(format!("and {} more", joined.len() - NAMED_HOLES));
    }
    (!named.is_empty()).then(|| format!("{bytes:#x} bytes cannot be read and were not searched: {}", named.join(", ")))
}

/// The range at the front: its address and bytes, and what follows it.
fn split_range<'t>(context: &mut Context<'_>, text: &'t str, size: u64) -> Result<((u64, u64), &'t str), CommandError> {
    let (_, left) = evaluate(text, &mut context.scope())?;
    // Either `L` and a length, or an end: one more expression.
    let after = left.trim_start();
    let length = match after.strip_prefix(['L', 'l']) {
        Some(length) => length.strip_prefix('?').unwrap_or(length),
        None => after,
    };
    let signed = length.trim_start();
    let (_, rest) = evaluate(signed.strip_prefix('-').unwrap_or(signed), &mut context.scope())?;
    let range = &text[..text.len() - rest.len()];
    let Some(range) = range::parse(range, size, &mut context.scope())? else { return Err(usage(&INFO, "no range")) };
    let count = range.count.ok_or_else(|| usage(&INFO, "the range has no end"))?;
    Ok(((range.address, count.saturating_mul(size)), rest))
}

fn pattern_bytes(context: &mut Context<'_>, kind: Kind, text: &str, width: Width) -> Result<Vec<u8>, CommandError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(usage(&INFO, "no pattern"));
    }
    if matches!(kind, Kind::Ascii | Kind::Unicode) {
        let text = text.strip_prefix('"').map_or(text, |text| text.strip_suffix('"').unwrap_or(text));
        if text.is_empty() {
            return Err(usage(&INFO, "no pattern"));
        }
        return Ok(match kind {
            Kind::Ascii => text.bytes().collect(),
            _ => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        });
    }
    if kind == Kind::Object {
        let object = evaluate_all(text, &mut context.scope())?;
        let table = read_pointer(context.kernel()?.memory(), width.address(object), width)?;
        return Ok(table.to_le_bytes()[..width.bytes()].to_vec());
    }
    let size = kind.size(width) as usize;
    let mut bytes = Vec::new();
    let mut left = text;
    while !left.trim().is_empty() {
        // Text between double quotes among bytes.
        if kind == Kind::Byte
            && let Some(quoted) = left.trim_start().strip_prefix('"')
            && let Some((characters, rest)) = quoted.split_once('"')
        {
            bytes.extend(characters.bytes());
            left = rest;
            continue;
        }
        let (value, rest) = evaluate(left, &mut context.scope())?;
        // Numbers of 32 bits were sign-extended.
        let fits = size == 8 || value >> (8 * size) == 0 || (value as i64) >> (8 * size - 1) == -1;
        if !fits {
            return Err(usage(&INFO, format!("{value:#x} is more than {size} bytes")));
        }
        bytes.extend(&value.to_le_bytes()[..size]);
        left = rest;
    }
    Ok(bytes)
}

/// All places where `pattern` is, wholly inside the range; overlapping ones too.
fn find(
    memory: &dyn Memory,
    start: u64,
    length: u64,
    pattern: &[u8],
    alignment: u64,
    found: &mut Found,
) -> Result<(), CommandError> {
    let Found { hits, holes, skipped } = found;
    let Some(last) = length.checked_sub(pattern.len() as u64) else { return Ok(()) };
    let mut by_target = |at: u64, length: u64| match skipped.last_mut() {
        Some((start, before)) if start.wrapping_add(*before) >= at => {
            *before = at.wrapping_sub(*start).saturating_add(length);
        }
        _ => skipped.push((at, length)),
    };
    // Offsets from the start: a range may end where the address space does.
    let mut at = 0;
    let mut target_searches = true;
    let mut close = 0;
    while at <= last {
        let here = start.wrapping_add(at);
        let left = length - at;
        // A target's own search does not wrap around the end of the address space.
        let chunk = left.min(CHUNK).min(u64::MAX - here);
        if target_searches && close < 4 && chunk >= WORTH_A_SEARCH {
            match memory.search(here, chunk, pattern)? {
                Search::Unsupported => target_searches = false,
                Search::NotFound => {
                    by_target(here, chunk);
                    // A hit may begin in this chunk and end in the next one.
                    at += (chunk - (pattern.len() as u64 - 1).min(chunk - 1)).max(1);
                }
                Search::Found(address) => {
                    let offset = address.wrapping_sub(start);
                    if offset < at || offset >= at + chunk {
                        // Not where it was asked to look.
                        target_searches = false;
                        continue;
                    }
                    let mut bytes = vec![0; pattern.len()];
                    let is_there = memory.read(address, &mut bytes)? == bytes.len() && bytes == pattern;
                    if is_there && offset <= last && address.is_multiple_of(alignment) {
                        push(hits, address)?;
                    }
                    by_target(here, offset - at + pattern.len() as u64);
                    close = if offset - at < DENSE { close + 1 } else { 0 };
                    at = offset + 1;
                }
            }
            continue;
        }
        // Read and compare a piece, with what a hit at its end needs of the next one.
        close = 0;
        let piece = left.min((READ + pattern.len() - 1) as u64) as usize;
        let sparse = read_sparse(memory, here, piece)?;
        let ends = piece + 1 - pattern.len();
        holes.extend(sparse.holes.iter().cloned());
        for offset in candidates(&sparse, pattern) {
            let address = here.wrapping_add(offset as u64);
            if offset < ends && address.is_multiple_of(alignment) {
                push(hits, address)?;
            }
        }
        at += ends as u64;
    }
    Ok(())
}

fn push(hits: &mut Vec<(u64, Option<String>)>, address: u64) -> Result<(), CommandError> {
    if hits.len() >= MAX_HITS {
        return Err(CommandError::Failed(format!("more than {MAX_HITS} hits; search a smaller range")));
    }
    hits.push((address, None));
    Ok(())
}

/// Offsets where the pattern is, on readable bytes only.
fn candidates(sparse: &Sparse, pattern: &[u8]) -> Vec<usize> {
    let windows = sparse.bytes.windows(pattern.len()).enumerate();
    let found = windows.filter(|(_, window)| *window == pattern).map(|(offset, _)| offset);
    found.filter(|offset| sparse.get(*offset, pattern.len()).is_some()).collect()
}

/// Printable texts of at least `least` characters.
fn texts(
    memory: &dyn Memory,
    start: u64,
    length: u64,
    size: usize,
    least: usize,
    found: &mut Found,
) -> Result<(), CommandError> {
    let Found { hits, holes, .. } = found;
    let (mut text, mut from) = (String::new(), start);
    let mut at = 0;
    while at < length {
        let here = start.wrapping_add(at);
        let piece = (length - at).min(READ as u64) as usize;
        let sparse = read_sparse(memory, here, piece)?;
        holes.extend(sparse.holes.iter().cloned());
        for offset in (0..piece).step_by(size) {
            let unit = sparse.get(offset, size).map(|unit| match unit {
                [low, high] => u16::from_le_bytes([*low, *high]),
                bytes => u16::from(bytes[0]),
            });
            match unit.filter(|unit| (0x20..0x7f).contains(unit)) {
                Some(unit) if text.len() < LONGEST_TEXT => {
                    if text.is_empty() {
                        from = here.wrapping_add(offset as u64);
                    }
                    text.push(unit as u8 as char);
                }
                _ => keep(hits, from, &mut text, least)?,
            }
        }
        at += piece as u64;
    }
    keep(hits, from, &mut text, least)
}

fn keep(
    found: &mut Vec<(u64, Option<String>)>,
    from: u64,
    text: &mut String,
    least: usize,
) -> Result<(), CommandError> {
    if text.len() >= least {
        if found.len() >= MAX_HITS {
            return Err(CommandError::Failed(format!("more than {MAX_HITS} texts; search a smaller range")));
        }
        found.push((from, Some(std::mem::take(text))));
    }
    text.clear();
    Ok(())
}

impl Text for Hits {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.hits.iter().try_for_each(|hit| out.write_str(&hit.line))
    }
}

#[cfg(test)]
mod tests {
    use nt_memory::Fault;

    use super::*;

    /// 0x10000 bytes at 0x10000 with a hole; searches itself, and badly when told to.
    struct Bytes {
        bytes: Vec<u8>,
        searches: bool,
    }

    impl Memory for Bytes {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
            let mut read = 0;
            for byte in buffer.iter_mut() {
                let at = address.wrapping_add(read as u64);
                let known = (0x10000..0x20000).contains(&at) && !(0x14000..0x15000).contains(&at);
                if !known {
                    break;
                }
                *byte = self.bytes[(at - 0x10000) as usize];
                read += 1;
            }
            Ok(read)
        }

        fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
            if !self.searches {
                return Ok(Search::Unsupported);
            }
            for at in address..address + length {
                let mut found = vec![0; pattern.len()];
                if self.read(at, &mut found)? == found.len() && found == pattern {
                    return Ok(Search::Found(at));
                }
            }
            Ok(Search::NotFound)
        }
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)] // One hole is what is expected.
    fn both_ways_find_the_same() {
        let mut bytes = vec![0; 0x10000];
        for at in [0x10, 0x1001, 0x3ffe, 0x4ffe, 0x5000, 0x9000, 0x9004, 0x9008, 0x900c, 0x9010, 0x9014, 0xfffc] {
            bytes[at..at + 4].copy_from_slice(b"Leak");
        }
        for (alignment, length) in [(1, 0x10000), (4, 0x10000), (1, 0xffff)] {
            let find = |searches| {
                let mut found = Found::default();
                let memory = Bytes { bytes: bytes.clone(), searches };
                find(&memory, 0x10000, length, b"Leak", alignment, &mut found).unwrap();
                let hits: Vec<u64> = found.hits.iter().map(|hit| hit.0).collect();
                (hits, found.holes, found.skipped)
            };
            let (read, holes, skipped) = find(false);
            assert_eq!((holes, skipped), (vec![0x14000..0x15000], Vec::new()));
            let (searched, mut holes, skipped) = find(true);
            assert_eq!(searched, read);
            // Each byte was either read, and is known to be readable or not, or skipped over by the target.
            let covered = skipped.iter().any(|(at, length)| (*at..at + length).contains(&0x14800));
            assert!(covered || not_searched(&mut holes, Width::Eight).is_some(), "{skipped:x?}");
            // The ones across the hole's borders are not readable.
            assert!(!read.contains(&0x13ffe) && !read.contains(&0x14ffe) && read.contains(&0x15000));
            assert_eq!(read.contains(&0x11001), alignment == 1);
            assert_eq!(read.contains(&0x1fffc), length == 0x10000);
        }
    }

    #[test]
    fn texts_are_long_enough() {
        let mut bytes = vec![0; 0x10000];
        bytes[0x20..0x25].copy_from_slice(b"Leaky");
        bytes[0x30..0x32].copy_from_slice(b"no");
        let memory = Bytes { bytes, searches: false };
        for (length, text) in [(0x100, "Leaky"), (0x23, "Lea")] {
            let mut found = Found::default();
            texts(&memory, 0x10000, length, 1, 3, &mut found).unwrap();
            assert_eq!(found.hits, [(0x10020, Some(text.to_string()))]);
        }
    }

    #[test]
    fn flags_and_types() {
        let parsed = options("-[1l8]sa 1000 L10").unwrap();
        assert_eq!(
            (parsed.kind, parsed.addresses_only, parsed.least, parsed.rest),
            (Kind::AnyAscii, true, 8, "1000 L10")
        );
        assert_eq!(options("1000 L4 1").unwrap().kind, Kind::Byte);
        let parsed = options("-[swn 20]d 1000 L10 1").unwrap();
        assert_eq!((parsed.save, parsed.writable_only, parsed.most_saved, parsed.kind), (true, true, 20, Kind::Double));
        assert!(options("-[sr]b 1").is_err());
        assert!(options("-x 1").is_err() && options("-[").is_err() && options("-[z]b 1").is_err());
    }
}
