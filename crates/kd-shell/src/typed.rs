//! Values of the target by their types, as `dt` shows them.
//!
//! ```text
//!    +0x000 Flink            : Ptr64 _LIST_ENTRY
//!    +0x000 PreviousSize     : Pos 0, 8 Bits
//!    +0x00c Ldr              : 0x00191ea0 _PEB_LDR_DATA
//!       +0x004 Initialized      : 0x1 ''
//! ```

use std::fmt;

use nt_memory::{Fault, Memory, ReadError, Sparse, read_sparse};
use nt_symbols::{Field, Glob, Layout, SymbolFile, matches_glob};
use schemars::JsonSchema;
use serde::Serialize;

use crate::text::{Hex, Width, visible_name};

/// No structure is larger; a symbol file that says so is damaged.
const MAX_BYTES: u64 = 1 << 20;

/// Lines of one answer: types that point at each other grow without end.
const MAX_MEMBERS: usize = 16384;

/// Characters of a string that a member leads to.
const MAX_TEXT: u64 = 256;

/// One member of a structure, or one element of an array.
#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    #[serde(rename = "type")]
    pub(crate) type_text: String,
    /// The number it holds, up to 8 bytes; of an array there is none.
    pub(crate) value: Option<Hex>,
    /// As kd shows it; `null` without an address or when it cannot be read.
    pub(crate) text: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) members: Vec<Member>,
    #[serde(skip)]
    opened: bool,
    #[serde(skip)]
    element: bool,
}

/// What is wanted of a type.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// How many levels of inner structures are shown.
    pub(crate) depth: u32,
    /// Pointers are not followed.
    pub(crate) embedded_only: bool,
    pub(crate) verbose: bool,
    /// Elements of arrays are shown, at most so many.
    pub(crate) elements: Option<u64>,
    /// Names are beginnings of members' names.
    pub(crate) prefixes: bool,
}

/// `Ldr.Length` as its names; a last empty one stands for all members.
pub(crate) type Path = Vec<String>;

pub(crate) fn path(text: &str) -> Path {
    text.split('.').map(String::from).collect()
}

pub(crate) struct Reader<'a> {
    symbols: &'a dyn SymbolFile,
    memory: Option<&'a dyn Memory>,
    width: Width,
    wanted: Wanted,
    left: usize,
    unreadable: bool,
    cut: bool,
}

/// The bytes of a structure and where they come from.
struct Bytes<'s> {
    sparse: Option<&'s Sparse>,
    /// Of the structure within them.
    start: u64,
}

impl Bytes<'_> {
    fn get(&self, offset: u64, size: u64) -> Option<&[u8]> {
        let offset = usize::try_from(self.start.checked_add(offset)?).ok()?;
        self.sparse?.get(offset, usize::try_from(size).ok()?)
    }

    fn number(&self, offset: u64, size: u64) -> Option<u64> {
        (size <= 8).then(|| self.get(offset, size)).flatten().map(number)
    }

    fn address(&self, offset: u64) -> Option<u64> {
        Some(self.sparse?.address.wrapping_add(self.start).wrapping_add(offset))
    }
}

/// Little endian, at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        symbols: &'a dyn SymbolFile,
        memory: Option<&'a dyn Memory>,
        width: Width,
        wanted: Wanted,
    ) -> Self {
        Self { symbols, memory, width, wanted, left: MAX_MEMBERS, unreadable: false, cut: false }
    }

    /// What the answer lacks.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.unreadable {
            notes.push("some members could not be read".into());
        }
        if self.cut {
            notes.push(format!("cut after {MAX_MEMBERS} members; ask for fewer levels or for single members"));
        }
        notes
    }

    /// The members of a structure; at `address` with their values. `paths` choose some of them.
    pub(crate) fn members(
        &mut self,
        layout: &Layout,
        address: Option<u64>,
        paths: &[Path],
    ) -> Result<Vec<Member>, Fault> {
        let depth = self.wanted.depth;
        self.structure(layout, address, paths, depth)
    }

    fn structure(
        &mut self,
        layout: &Layout,
        address: Option<u64>,
        paths: &[Path],
        depth: u32,
    ) -> Result<Vec<Member>, Fault> {
        let sparse = match (address, self.memory) {
            (Some(address), Some(memory)) => {
                Some(read_sparse(memory, self.width.address(address), layout.size.min(MAX_BYTES) as usize)?)
            }
            _ => None,
        };
        self.unreadable |= sparse.as_ref().is_some_and(|sparse| !sparse.is_complete());
        self.fields(layout, &Bytes { sparse: sparse.as_ref(), start: 0 }, paths, depth)
    }

    fn fields(&mut self, layout: &Layout, bytes: &Bytes<'_>, paths: &[Path], depth: u32) -> Result<Vec<Member>, Fault> {
        let mut members = Vec::new();
        for field in &layout.fields {
            let chosen: Vec<&Path> = paths.iter().filter(|path| self.is_chosen(field, path)).collect();
            if !paths.is_empty() && chosen.is_empty() {
                continue;
            }
            if self.left == 0 {
                self.cut = true;
                break;
            }
            self.left -= 1;
            let mut member = self.member(field, bytes)?;
            let inner: Vec<Path> = chosen.iter().filter(|path| path.len() > 1).map(|path| path[1..].to_vec()).collect();
            let all = inner.iter().any(|path| path.len() == 1 && path[0].is_empty());
            let (inner, levels) = match inner.is_empty() {
                _ if all => (Vec::new(), 1),
                false => (inner, 1),
                true => (Vec::new(), depth),
            };
            member.opened = all || !inner.is_empty();
            if let (Some(most), Some((count, size))) = (self.wanted.elements, field.array) {
                self.elements(field, bytes, &mut member, count.min(most), size)?;
            } else if levels > 0 {
                member.members = self.inner(field, bytes, &inner, levels - 1)?;
            }
            members.push(member);
        }
        Ok(members)
    }

    fn is_chosen(&self, field: &Field, path: &Path) -> bool {
        let Some(name) = path.first() else { return false };
        match () {
            () if Glob::is_pattern(name) => matches_glob(name, &field.name),
            () if self.wanted.prefixes => {
                field.name.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
            }
            () => field.name.eq_ignore_ascii_case(name),
        }
    }

    /// The members of a member.
    fn inner(&mut self, field: &Field, bytes: &Bytes<'_>, paths: &[Path], depth: u32) -> Result<Vec<Member>, Fault> {
        let Some(layout) = self.symbols.layout(&field.type_name) else { return Ok(Vec::new()) };
        match (field.array, field.pointers) {
            (None, 0) => {
                let start = bytes.start.saturating_add(field.offset);
                self.fields(&layout, &Bytes { sparse: bytes.sparse, start }, paths, depth)
            }
            (None, 1) if !self.wanted.embedded_only || !paths.is_empty() => {
                let target = bytes.number(field.offset, self.width.bytes() as u64);
                match (bytes.sparse, target) {
                    // A null pointer leads nowhere.
                    (Some(_), None | Some(0)) => Ok(Vec::new()),
                    (_, target) => self.structure(&layout, target, paths, depth),
                }
            }
            _ => Ok(Vec::new()),
        }
    }

    fn elements(
        &mut self,
        field: &Field,
        bytes: &Bytes<'_>,
        array: &mut Member,
        count: u64,
        size: u64,
    ) -> Result<(), Fault> {
        for index in 0..count {
            if self.left == 0 {
                self.cut = true;
                break;
            }
            self.left -= 1;
            let offset = field.offset.saturating_add(index.saturating_mul(size));
            let element = Field { name: format!("[{index:02}]"), offset, size, array: None, ..field.clone() };
            let mut member = self.member(&element, bytes)?;
            member.element = true;
            array.members.push(member);
        }
        Ok(())
    }

    fn member(&mut self, field: &Field, bytes: &Bytes<'_>) -> Result<Member, Fault> {
        let value = match (field.array, field.bits) {
            (Some(_), _) => None,
            (None, Some(bits)) => bytes.number(field.offset, field.size).map(|value| bit_field(value, bits)),
            (None, None) if field.size > 0 => bytes.number(field.offset, field.size),
            (None, None) => None,
        };
        Ok(Member {
            name: visible_name(&field.name),
            offset: field.offset,
            size: field.size,
            type_text: self.type_text(field),
            value: value.map(Hex),
            text: match bytes.sparse {
                Some(_) => self.value_text(field, bytes)?,
                None => None,
            },
            members: Vec::new(),
            opened: false,
            element: false,
        })
    }

    /// `[16] Ptr64 _LIST_ENTRY`, `Uint4B`, `Pos 0, 4 Bits`
    fn type_text(&self, field: &Field) -> String {
        if let Some((first, bits)) = field.bits {
            let bitfield = if self.wanted.verbose { "Bitfield " } else { "" };
            return format!("{bitfield}Pos {first}, {bits} Bit{}", if bits == 1 { "" } else { "s" });
        }
        let mut text = String::new();
        if let Some((count, _)) = field.array {
            text.push_str(&format!("[{count}] "));
        }
        for _ in 0..field.pointers {
            text.push_str(&format!("Ptr{} ", self.width.bytes() * 8));
            if self.wanted.verbose {
                text.push_str("to ");
            }
        }
        text.push_str(&self.type_name(&field.type_name));
        text
    }

    pub(crate) fn type_name(&self, name: &str) -> String {
        match scalar(name) {
            Some(scalar) => scalar.shown.into(),
            None if name == "function" => "    void ".into(),
            None if name.starts_with("__unnamed") => "<unnamed-tag>".into(),
            None if self.wanted.verbose => match self.symbols.layout(name) {
                Some(layout) => summary(&layout),
                None => match self.symbols.enumeration(name) {
                    Some(values) => format!("Enum {},  {} total enums", visible_name(name), values.values.len()),
                    None => visible_name(name),
                },
            },
            None => visible_name(name),
        }
    }

    fn value_text(&mut self, field: &Field, bytes: &Bytes<'_>) -> Result<Option<String>, Fault> {
        let Some((count, size)) = field.array else { return self.single(field, bytes) };
        let first = Field { size, array: None, ..field.clone() };
        let text = match (scalar(&field.type_name), field.pointers, size) {
            (Some(scalar), 0, 1 | 2) if scalar.character => {
                let length = count.min(MAX_TEXT).saturating_mul(size);
                self.string(bytes.get(field.offset, length), size).map(|text| format!(" \"{text}\""))
            }
            _ => self.single(&first, bytes)?,
        };
        Ok(text.map(|text| format!("[{count}] {text}")))
    }

    fn string(&self, bytes: Option<&[u8]>, size: u64) -> Option<String> {
        let units = bytes?.chunks(size.max(1) as usize).map(number).take_while(|unit| *unit != 0);
        let text: String = match size {
            1 => units.map(|unit| unit as u8 as char).collect(),
            _ => char::decode_utf16(units.map(|unit| unit as u16))
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
        };
        Some(visible_name(&text))
    }

    /// A value that is no array; `None` when it cannot be read.
    fn single(&mut self, field: &Field, bytes: &Bytes<'_>) -> Result<Option<String>, Fault> {
        if field.pointers > 0 {
            let Some(value) = bytes.number(field.offset, self.width.bytes() as u64) else { return Ok(None) };
            return self.pointer(field, value).map(Some);
        }
        if let Some(scalar) = scalar(&field.type_name) {
            let Some(value) = bytes.number(field.offset, field.size) else { return Ok(None) };
            return Ok(Some(match field.bits {
                Some(bits) => binary(bit_field(value, bits), bits.1),
                None => scalar.text(value, field.size),
            }));
        }
        if let Some(values) = self.symbols.enumeration(&field.type_name) {
            let Some(value) = bytes.number(field.offset, field.size) else { return Ok(None) };
            let value = match field.bits {
                Some(bits) => bit_field(value, bits) as i64,
                None => signed(value, field.size),
            };
            let name = values.values.iter().find(|(_, known)| *known == value).map(|(name, _)| visible_name(name));
            return Ok(Some(match name {
                Some(name) => format!("0n{value} ( {name} )"),
                None => format!("0n{value} (No matching name)"),
            }));
        }
        let name = self.type_name(&field.type_name);
        let start = field.offset;
        Ok(Some(match field.type_name.as_str() {
            "_LIST_ENTRY" => match self.link(bytes, start) {
                Some(link) => format!("{name} [ {link} ]"),
                None => return Ok(None),
            },
            "_UNICODE_STRING" | "_STRING" => {
                let (length, buffer) = (
                    bytes.number(start, 2),
                    bytes.number(start.saturating_add(self.width.bytes() as u64), self.width.bytes() as u64),
                );
                let (Some(length), Some(buffer)) = (length, buffer) else { return Ok(None) };
                let unit = if field.type_name == "_STRING" { 1 } else { 2 };
                let mut text = vec![0; length.min(2 * MAX_TEXT) as usize & !(unit - 1)];
                let read = self.read(buffer, &mut text)?;
                match self.string(Some(&text[..read]), unit as u64) {
                    Some(text) if read > 0 || length == 0 => format!("{name} \"{text}\""),
                    _ => format!("{name} \"--- memory read error at address 0x{} ---\"", self.width.tick(buffer)),
                }
            }
            "_LARGE_INTEGER" | "_ULARGE_INTEGER" => match bytes.number(start, 8) {
                Some(value) => format!("{name} 0x{}", quad(value)),
                None => return Ok(None),
            },
            _ => match bytes.address(start) {
                Some(_) if bytes.get(start, field.size).is_none() && bytes.get(start, 1).is_none() => return Ok(None),
                _ => name,
            },
        }))
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let Some(memory) = self.memory else { return Ok(0) };
        Ok(memory.read(self.width.address(address), buffer)?.min(buffer.len()))
    }

    fn link(&self, bytes: &Bytes<'_>, offset: u64) -> Option<String> {
        let pointer = self.width.bytes() as u64;
        let (next, previous) = (bytes.number(offset, pointer)?, bytes.number(offset.checked_add(pointer)?, pointer)?);
        Some(match self.width {
            Width::Four => format!("{next:#x} - {previous:#x}"),
            Width::Eight => format!("0x{} - 0x{}", self.width.tick(next), self.width.tick(previous)),
        })
    }

    fn pointer(&mut self, field: &Field, value: u64) -> Result<String, Fault> {
        let name = match field.type_name.as_str() {
            "function" => "    void ".into(),
            name => self.type_name(name),
        };
        if value == 0 {
            return Ok("(null) ".into());
        }
        let stars: String = "Ptr ".repeat(usize::from(field.pointers.saturating_sub(1)));
        let mut text = format!("0x{} {stars}{name}", self.width.tick(value));
        if field.pointers == 1 && field.type_name == "_LIST_ENTRY" {
            let mut entry = [0; 16];
            let size = 2 * self.width.bytes();
            if self.read(value, &mut entry[..size])? == size {
                let sparse = Sparse { address: value, bytes: entry.to_vec(), holes: Vec::new() };
                if let Some(link) = self.link(&Bytes { sparse: Some(&sparse), start: 0 }, 0) {
                    text.push_str(&format!(" [ {link} ]"));
                }
            }
        } else if field.pointers == 1
            && let Some(unit) = scalar(&field.type_name).filter(|scalar| scalar.character)
        {
            let size: u64 = if unit.shown == "Wchar" { 2 } else { 1 };
            let mut characters = vec![0; 64 * size as usize];
            let read = self.read(value, &mut characters)? & !(size as usize - 1);
            if let Some(string) = self.string(Some(&characters[..read]), size).filter(|_| read > 0) {
                text = format!("0x{}  \"{string}\"", self.width.tick(value));
            }
        }
        Ok(text)
    }
}

/// A member's number without a whole structure around it: for commands that read a few members.
pub(crate) struct Record {
    layout: std::sync::Arc<Layout>,
    sparse: Sparse,
}

impl Record {
    /// Reads a structure; members on unreadable pages are missing later.
    pub(crate) fn read(memory: &dyn Memory, layout: std::sync::Arc<Layout>, address: u64) -> Result<Self, Fault> {
        let sparse = read_sparse(memory, address, layout.size.min(MAX_BYTES) as usize)?;
        Ok(Self { layout, sparse })
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.sparse.is_complete()
    }

    /// A member by name; a dot leads into inner structures.
    pub(crate) fn get(&self, symbols: &dyn SymbolFile, path: &str) -> Option<u64> {
        let (field, offset) = find(symbols, &self.layout, path)?;
        let size = field.array.map_or(field.size, |(_, size)| size);
        let value = number(self.sparse.get(usize::try_from(offset).ok()?, usize::try_from(size.min(8)).ok()?)?);
        Some(field.bits.map_or(value, |bits| bit_field(value, bits)))
    }

    /// The bytes of a member.
    pub(crate) fn bytes(&self, path: &str) -> Option<&[u8]> {
        let field = self.layout.field(path)?;
        self.sparse.get(usize::try_from(field.offset).ok()?, usize::try_from(field.size).ok()?)
    }
}

/// A member and its offset by a path (`Pcb.DirectoryTableBase`).
pub(crate) fn find(symbols: &dyn SymbolFile, layout: &Layout, path: &str) -> Option<(Field, u64)> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let field = layout.field(name)?;
    match rest {
        None => Some((field.clone(), field.offset)),
        Some(rest) => {
            let inner = symbols.layout(&field.type_name).filter(|_| field.pointers == 0)?;
            // Each step takes a name away, so this ends.
            let (found, offset) = find(symbols, &inner, rest)?;
            Some((found, field.offset.checked_add(offset)?))
        }
    }
}

/// The offset of a member, for walking lists.
pub(crate) fn offset_of(symbols: &dyn SymbolFile, type_name: &str, path: &str) -> Option<u64> {
    let layout = symbols.layout(type_name)?;
    Some(find(symbols, &layout, path)?.1)
}

/// A number at an address.
pub(crate) fn read_pointer(memory: &dyn Memory, address: u64, width: Width) -> Result<u64, ReadError> {
    match width {
        Width::Four => memory.read_u32(address).map(u64::from),
        Width::Eight => memory.read_u64(address),
    }
}

/// `struct _POOL_HEADER, 9 elements, 0x10 bytes`
pub(crate) fn summary(layout: &Layout) -> String {
    let is_union = layout.fields.len() > 1 && layout.fields.iter().all(|field| field.offset == 0);
    let what = if is_union { "union" } else { "struct" };
    format!("{what} {}, {} elements, {:#x} bytes", visible_name(&layout.name), layout.fields.len(), layout.size)
}

struct Scalar {
    shown: &'static str,
    signed: bool,
    character: bool,
}

impl Scalar {
    fn text(&self, value: u64, size: u64) -> String {
        let signed_value = signed(value, size);
        match self.shown {
            "Void" => String::new(),
            "Wchar" => match char::from_u32(value as u32).filter(|c| !c.is_control()) {
                Some(c) => format!("{value:#x} '{c}'"),
                None => format!("{value:#x} ''"),
            },
            "Float" => format!("{}", f32::from_bits(value as u32)),
            "Double" => format!("{}", f64::from_bits(value)),
            _ if self.character => {
                let c = match value as u8 {
                    byte @ 0x20..=0x7e => (byte as char).to_string(),
                    _ => String::new(),
                };
                match self.signed {
                    true => format!("{signed_value} '{c}'"),
                    false => format!("{value:#x} '{c}'"),
                }
            }
            _ if self.signed => format!("0n{signed_value}"),
            _ if size == 8 => format!("0x{}", quad(value)),
            _ => format!("{value:#x}"),
        }
    }
}

/// Small 64-bit numbers are short.
fn quad(value: u64) -> String {
    match value >> 32 {
        0 => format!("{value:x}"),
        high => format!("{high:x}`{:08x}", value as u32),
    }
}

fn scalar(name: &str) -> Option<Scalar> {
    let (shown, signed, character) = match name {
        "void" => ("Void", false, false),
        "char" | "char8" => ("Char", true, true),
        "unsigned char" => ("UChar", false, true),
        "int8" => ("Int1B", true, false),
        "uint8" => ("Uint1B", false, false),
        "wchar" | "char16" => ("Wchar", false, true),
        "short" => ("Int2B", true, false),
        "unsigned short" => ("Uint2B", false, false),
        "long" | "int" | "HRESULT" => ("Int4B", true, false),
        "unsigned long" | "unsigned int" | "char32" => ("Uint4B", false, false),
        "long long" => ("Int8B", true, false),
        "unsigned long long" => ("Uint8B", false, false),
        "f32" | "float" => ("Float", false, false),
        "double" => ("Double", false, false),
        "bool" => ("Bool", false, false),
        "bool16" => ("Uint2B", false, false),
        "bool32" => ("Uint4B", false, false),
        "bool64" => ("Uint8B", false, false),
        _ => return None,
    };
    Some(Scalar { shown, signed, character })
}

fn bit_field(value: u64, (first, bits): (u8, u8)) -> u64 {
    let mask = 1u64.checked_shl(bits.into()).map_or(u64::MAX, |bit| bit - 1);
    value.checked_shr(first.into()).unwrap_or(0) & mask
}

/// `0y1`, `0y100 (0x4)`
fn binary(value: u64, bits: u8) -> String {
    let digits = format!("0y{value:0width$b}", width = usize::from(bits));
    if bits > 1 { format!("{digits} ({value:#x})") } else { digits }
}

fn signed(value: u64, size: u64) -> i64 {
    match size {
        1 => i64::from(value as i8),
        2 => i64::from(value as i16),
        4 => i64::from(value as i32),
        _ => value as i64,
    }
}

/// The lines of members. With `aligned` their colons stand below each other.
pub(crate) fn lines(out: &mut dyn fmt::Write, members: &[Member], level: usize, aligned: bool) -> fmt::Result {
    for member in members {
        let indent = 3 * (level + 1);
        let shown = match &member.text {
            Some(text) => text.as_str(),
            None if member.value.is_some() => "",
            None => member.type_text.as_str(),
        };
        let name = &member.name;
        if member.element {
            writeln!(out, "{:indent$} {name} {shown}", "")?;
        } else if aligned {
            writeln!(out, "{:indent$}+{:#05x} {name:<16} : {shown}", "", member.offset)?;
        } else {
            let gap = if member.opened { "  " } else { " " };
            writeln!(out, "{:indent$}+{:#05x} {name}{gap}: {shown}", "", member.offset)?;
        }
        lines(out, &member.members, level + 1, aligned)?;
    }
    Ok(())
}
