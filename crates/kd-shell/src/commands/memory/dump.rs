//! `db dw dW dd dc dD df dq dp dps da du ds dS`: memory.
//!
//! ```text
//! db   820f2ba4  41 62 63 20 00 00 00 00-00 00 00 00 00 00 00 00  Abc ............
//! dd   fffff802`bb4057c0  ffffffff 00000000 00000000 00000000
//! dc   fffff880`0496e3aa  3161654c 00000000 00000000 00000000  Lea1............
//! dq   ffffac88`3ca17910  45767402`00000000 00000000`00000000
//! dps  fffff802`59858c68  fffff801`b56d24aa nt!KiDispatchException+0x1aa
//! da   fffff801`0bf9712c  "MyDriver.sys"
//! ```

use std::fmt;

use nt_memory::{Memory, Sparse, read_sparse};
use schemars::JsonSchema;
use serde::Serialize;

use super::formats::general;
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::{evaluate, range};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width, tick};
use crate::typed::read_pointer;
use nt_memory::paging::Physical;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["db", "dw", "dW", "dd", "dc", "dD", "df", "dq", "dp", "dps", "dqs", "dds", "da", "du", "ds", "dS", "d"],
    usage: "db|dw|dd|dc|dq|dp|dps|da|du [/p] [/c columns] [address [end | L count]]",
    help: "show memory: bytes, words, double words, quad words, pointers, symbols, text",
    details: "Without a length 128 bytes are shown; without an address the display goes on where the last one ended. \
              Bytes that\ncannot be read are shown as ??. dW shows words with characters, df and dD floating-point \
              numbers, ds and dS the text\nof a STRING and a UNICODE_STRING. /p reads physical memory.",
    results: &[ResultShape::of::<Dump>("d")],
    action: Action::Answer(run),
};

/// One display; what does not fit is asked for piece by piece.
const MAX_BYTES: u64 = 16 << 20;

/// Bytes that showing one byte takes at most, on the way to its JSON; measured with a display of 16 MiB.
const SHOWN: usize = 36;

const DEFAULT_BYTES: u64 = 128;

/// kd's strings end at a zero, or here.
const DEFAULT_CHARACTERS: u64 = 256;

/// How a command's objects look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// Bytes of one object.
    size: usize,
    per_line: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Numbers,
    /// With the characters beside them.
    WithCharacters,
    Symbols,
    Text,
    Floats,
}

fn shape(word: &str, width: Width) -> (&'static str, Shape) {
    let pointer = width.bytes();
    let shape = |size, per_line, kind| Shape { size, per_line, kind };
    match word {
        "dw" => ("dw", shape(2, 8, Kind::Numbers)),
        "dW" => ("dW", shape(2, 8, Kind::WithCharacters)),
        "df" => ("df", shape(4, 4, Kind::Floats)),
        "dD" => ("dD", shape(8, 2, Kind::Floats)),
        "ds" => ("ds", shape(1, 48, Kind::Text)),
        "dS" => ("dS", shape(2, 48, Kind::Text)),
        "dd" => ("dd", shape(4, 4, Kind::Numbers)),
        "dc" => ("dc", shape(4, 4, Kind::WithCharacters)),
        "dq" => ("dq", shape(8, 2, Kind::Numbers)),
        "dp" => ("dp", shape(pointer, 16 / pointer, Kind::Numbers)),
        "dps" => ("dps", shape(pointer, 1, Kind::Symbols)),
        "dqs" => ("dqs", shape(8, 1, Kind::Symbols)),
        "dds" => ("dds", shape(4, 1, Kind::Symbols)),
        "da" => ("da", shape(1, 48, Kind::Text)),
        "du" => ("du", shape(2, 48, Kind::Text)),
        _ => ("db", shape(1, 16, Kind::WithCharacters)),
    }
}

#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
struct Dump {
    address: Hex,
    /// Bytes of one value.
    size: usize,
    /// `null` where a byte of a value cannot be read. Of `da` and `du` the text alone is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<Option<Hex>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    symbols: Vec<Option<String>>,
    unreadable: Vec<Hole>,
    #[serde(skip)]
    memory: Vec<Option<u8>>,
    #[serde(skip)]
    shape: Shape,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
struct Hole {
    start: Hex,
    end: Hex,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let width = context.width();
    let options = options(context)?;
    let word = match context.word {
        // The last kind of display again.
        "d" => context.session.last_dump.unwrap_or("db"),
        word => word,
    };
    let (word, mut shape) = shape(word, width);
    if let Some(columns) = options.columns {
        shape.per_line = columns;
    }
    let size = shape.size as u64;
    let range = range::parse(options.rest, size, &mut context.scope())?;
    let (address, count) = match range {
        Some(range) => (range.address, range.count),
        None => (context.session.next_dump.unwrap_or(kernel.stop().program_counter), None),
    };
    let default = if shape.kind == Kind::Text { DEFAULT_CHARACTERS } else { DEFAULT_BYTES / size };
    let physical = Physical(kernel);
    let view = context.memory()?;
    let memory: &dyn Memory = if options.physical { &physical } else { &view };
    let (address, count) = match word {
        "ds" | "dS" => counted(memory, address, size, width)?,
        _ => (address, count),
    };
    let bytes = count.unwrap_or(default).saturating_mul(size);
    if bytes > MAX_BYTES {
        return Err(usage(&INFO, format!("{bytes:#x} bytes are more than the {MAX_BYTES:#x} of one display")));
    }
    // Physical addresses of PAE have more than 32 bits.
    let address = if options.physical { address } else { width.address(address) };
    let sparse = read_sparse(memory, address, bytes as usize)?;
    heap_limit::room_for(sparse.bytes.len().saturating_mul(SHOWN)).map_err(nt_memory::Fault::from)?;
    let mut dump = Dump::new(&sparse, shape, width);
    if shape.kind == Kind::Symbols {
        let mut names = context.names()?;
        for value in &dump.values {
            let name = match value {
                // Small numbers are no addresses; asking would cost the module list.
                Some(Hex(value)) if width.is_kernel(*value) => names.name(*value)?,
                _ => None,
            };
            dump.symbols.push(name);
        }
    }
    context.session.last_dump = Some(word);
    context.session.next_dump = Some(address.wrapping_add(dump.memory.len() as u64));
    let nothing = !dump.memory.is_empty() && dump.memory.iter().all(Option::is_none);
    let complete = dump.unreadable.is_empty();
    let mut reply = Reply::new(dump);
    reply.complete = complete;
    reply.failure =
        nothing.then(|| CommandError::Failed(format!("Memory access error: cannot read {}", width.tick(address))));
    Ok(reply)
}

/// What stands before the address.
struct Options<'a> {
    physical: bool,
    columns: Option<usize>,
    rest: &'a str,
}

/// More columns would only be longer lines.
const MAX_COLUMNS: u64 = 64;

fn options<'a>(context: &mut Context<'a>) -> Result<Options<'a>, CommandError> {
    let mut options = Options { physical: false, columns: None, rest: context.arguments };
    while let Some(text) = options.rest.strip_prefix('/') {
        let (option, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        options.rest = rest.trim_start();
        match option {
            // The letters choose a caching attribute on the target; a read of RAM is the same with all of them.
            "p" | "p[c]" | "p[uc]" | "p[wc]" => options.physical = true,
            "c" => {
                let (columns, rest) = evaluate(options.rest, &mut context.scope())?;
                if !(1..=MAX_COLUMNS).contains(&columns) {
                    return Err(usage(&INFO, format!("/c takes 1 to {MAX_COLUMNS:#x} columns")));
                }
                options.columns = Some(columns as usize);
                options.rest = rest.trim_start();
            }
            _ => return Err(usage(&INFO, format!("unknown option '/{option}'"))),
        }
    }
    Ok(options)
}

/// The text of a STRING or UNICODE_STRING: where it is and how many characters it has.
fn counted(memory: &dyn Memory, address: u64, size: u64, width: Width) -> Result<(u64, Option<u64>), CommandError> {
    let length = memory.read_u16(width.address(address))?;
    let buffer = read_pointer(memory, width.address(address.wrapping_add(width.bytes() as u64)), width)?;
    Ok((buffer, Some(u64::from(length) / size)))
}

/// One line of memory, as a display of it begins.
pub(in crate::commands) fn excerpt(
    memory: &dyn Memory,
    word: &str,
    width: Width,
    address: u64,
) -> Result<String, CommandError> {
    const LINE: usize = 16;
    let sparse = read_sparse(memory, address, LINE)?;
    let mut line = String::new();
    // A string takes everything.
    let _ = Dump::new(&sparse, shape(word, width).1, width).text(&mut line);
    Ok(line)
}

impl Dump {
    fn new(sparse: &Sparse, shape: Shape, width: Width) -> Self {
        let mut memory: Vec<Option<u8>> = sparse.bytes.iter().copied().map(Some).collect();
        for hole in &sparse.holes {
            let offset = |address: u64| (address.wrapping_sub(sparse.address) as usize).min(memory.len());
            let (start, end) = (offset(hole.start), offset(hole.end));
            memory[start..end].fill(None);
        }
        let mut dump = Dump {
            address: Hex(sparse.address),
            size: shape.size,
            values: Vec::new(),
            text: None,
            symbols: Vec::new(),
            unreadable: sparse.holes.iter().map(|hole| Hole { start: Hex(hole.start), end: Hex(hole.end) }).collect(),
            memory,
            shape,
            width,
        };
        let values = dump.memory.chunks(shape.size).map(value);
        if shape.kind == Kind::Text {
            let units: Vec<Option<u64>> = values.take_while(|unit| !matches!(unit, None | Some(0))).collect();
            // What was not looked at does not make the text incomplete.
            let ended = dump.memory.len().min((units.len() + 1) * shape.size);
            let is_unreadable = units.is_empty() && dump.memory.first() == Some(&None);
            if !is_unreadable && dump.memory[..ended].iter().all(Option::is_some) {
                dump.unreadable.clear();
            }
            let units = units.into_iter().flatten();
            dump.text = Some(match shape.size {
                1 => units.map(|unit| unit as u8 as char).collect(),
                _ => char::decode_utf16(units.map(|unit| unit as u16))
                    .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                    .collect(),
            });
        } else {
            dump.values = values.map(|value| value.map(Hex)).collect();
        }
        dump
    }

    fn number(&self, bytes: &[Option<u8>]) -> String {
        match (value(bytes), self.shape.size) {
            (Some(value), 4) if self.shape.kind == Kind::Floats => {
                format!("{:>17}", general(f64::from(f32::from_bits(value as u32))))
            }
            (Some(value), _) if self.shape.kind == Kind::Floats => format!("{:>17}", general(f64::from_bits(value))),
            (Some(value), 8) => tick(value),
            (Some(value), size) => format!("{value:0width$x}", width = 2 * size),
            // Each byte that cannot be read, and with it the whole value.
            (None, 8) => "????????`????????".into(),
            (None, size) => "??".repeat(size),
        }
    }

    fn row(&self, out: &mut dyn fmt::Write, address: u64, row: &[Option<u8>]) -> fmt::Result {
        let mut numbers = String::new();
        for (i, bytes) in row.chunks(self.shape.size).enumerate() {
            if i > 0 {
                numbers.push(if self.shape.size == 1 && i == 8 { '-' } else { ' ' });
            }
            numbers.push_str(&self.number(bytes));
        }
        write!(out, "{}  ", self.width.tick(address))?;
        if self.shape.kind != Kind::WithCharacters {
            return writeln!(out, "{numbers}");
        }
        let columns = self.shape.per_line * (2 * self.shape.size + 1) - 1;
        let characters: String = row
            .iter()
            .map(|byte| match byte {
                Some(byte @ 0x20..=0x7e) => *byte as char,
                Some(_) => '.',
                None => '?',
            })
            .collect();
        writeln!(out, "{numbers:columns$}  {characters}")
    }
}

/// Little endian; `None` if a byte is missing or unreadable.
fn value(bytes: &[Option<u8>]) -> Option<u64> {
    bytes.iter().rev().try_fold(0u64, |value, byte| Some(value << 8 | u64::from((*byte)?)))
}

impl Text for Dump {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let Shape { size, per_line, kind } = self.shape;
        if let Some(text) = &self.text {
            if text.is_empty() && !self.unreadable.is_empty() {
                return writeln!(out, "{}  {}", self.width.tick(self.address.0), "??".repeat(size));
            }
            let characters: Vec<char> = text.chars().collect();
            let mut address = self.address.0;
            // An empty text has its line too.
            for line in characters.chunks(per_line).chain(characters.is_empty().then_some(&[][..])) {
                let line: String = line.iter().map(|c| if c.is_control() { '.' } else { *c }).collect();
                writeln!(out, "{}  \"{line}\"", self.width.tick(address))?;
                address = address.wrapping_add((per_line * size) as u64);
            }
            return Ok(());
        }
        for (i, row) in self.memory.chunks(size * per_line).enumerate() {
            let address = self.address.0.wrapping_add((i * size * per_line) as u64);
            match (kind, self.symbols.get(i)) {
                (Kind::Symbols, Some(Some(symbol))) => {
                    writeln!(out, "{}  {} {symbol}", self.width.tick(address), self.number(row))?;
                }
                _ => self.row(out, address, row)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(word: &str, width: Width, address: u64, bytes: &[u8], hole: Option<std::ops::Range<u64>>) -> String {
        let sparse = Sparse { address, bytes: bytes.to_vec(), holes: hole.into_iter().collect() };
        let mut text = String::new();
        Dump::new(&sparse, shape(word, width).1, width).text(&mut text).unwrap();
        text
    }

    #[test]
    fn layouts_are_kds() {
        let abc = *b"Abc \0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(
            dump("db", Width::Four, 0x820f2ba4, &abc, None),
            "820f2ba4  41 62 63 20 00 00 00 00-00 00 00 00 00 00 00 00  Abc ............\n"
        );
        assert_eq!(
            dump("dd", Width::Eight, 0xfffff802bb4057c0, &[[0xff; 4], [0; 4], [0; 4], [0; 4]].concat(), None),
            "fffff802`bb4057c0  ffffffff 00000000 00000000 00000000\n"
        );
        assert_eq!(
            dump("dc", Width::Eight, 0xfffff8800496e3aa, b"Lea1", None),
            "fffff880`0496e3aa  3161654c                             Lea1\n"
        );
        assert_eq!(
            dump(
                "dq",
                Width::Eight,
                0xffffac883ca17910,
                &[&0x4576740200000000u64.to_le_bytes()[..], &[0; 8]].concat(),
                None
            ),
            "ffffac88`3ca17910  45767402`00000000 00000000`00000000\n"
        );
        assert_eq!(
            dump("da", Width::Eight, 0xfffff8010bf9712c, b"MyDriver.sys\0rest", None),
            "fffff801`0bf9712c  \"MyDriver.sys\"\n"
        );
        assert_eq!(dump("du", Width::Four, 0x1000, b"a\0b\0\0\0", None), "00001000  \"ab\"\n");
    }

    #[test]
    fn what_cannot_be_read_is_question_marks() {
        assert_eq!(
            dump("dq", Width::Eight, 0xffffffffffff0000, &[0; 8], Some(0xffffffffffff0000..0xffffffffffff0008)),
            "ffffffff`ffff0000  ????????`????????\n"
        );
        assert_eq!(
            dump("db", Width::Four, 0xffe, &[1; 4], Some(0x1000..0x1002)),
            "00000ffe  01 01 ?? ??                                      ..??\n"
        );
    }
}
