//! C++ expressions, as far as types of symbol files go.
//!
//! ```text
//! sizeof(nt!_POOL_HEADER)             unsigned int64 0x10
//! (nt!_LIST_ENTRY*)0x1000             struct _LIST_ENTRY * 0x00000000`00001000, and its members
//! ((nt!_KTHREAD*)@$thread)->Process   the member; $proc and $thread have their types: @$proc->UniqueProcessId
//! #FIELD_OFFSET(nt!_KTHREAD, Process)
//! @@masm(nt!Foo) + 0n12               anything else: 64-bit numbers
//! ```

use std::fmt;
use std::sync::Arc;

use nt_symbols::{Layout, SymbolFile};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::Text;
use crate::error::CommandError;
use crate::grammar::block::enclosed;
use crate::grammar::expression::evaluate_all;
use crate::lookup::Lookup;
use crate::symbols::Names;
use crate::text::{Hex, Width, visible_name};
use crate::typed::{Member, Path, Reader, Wanted, lines, offset_of};

/// Expressions in each other: the depth of a text must not become that of the call stack.
const MAX_NESTED: u32 = 32;

/// A value, and what it is.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Typed {
    #[serde(rename = "type")]
    type_text: String,
    pub(crate) value: Option<Hex>,
    address: Option<Hex>,
    /// As kd shows it.
    text: String,
    members: Vec<Member>,
}

/// The value of an expression with its type, and what its members lack.
pub(crate) fn evaluate(lookup: &mut Lookup<'_, '_>, text: &str) -> Result<(Typed, Vec<String>), CommandError> {
    let text = text.trim();
    let width = lookup.width();
    if let Some((constant, "")) = known(lookup, text)? {
        return Ok((constant, Vec::new()));
    }
    if let Some(cast) = cast(text) {
        return typed(lookup, &cast);
    }
    let value = number(lookup, text)?;
    let typed = match i32::try_from(value as i64) {
        Ok(small) => Typed { text: format!("int 0n{small}"), ..constant("int", value) },
        Err(_) => {
            Typed { text: format!("unsigned int64 0x{}", width.tick(value)), ..constant("unsigned int64", value) }
        }
    };
    Ok((typed, Vec::new()))
}

/// `sizeof(type)` or `#FIELD_OFFSET(type, member)` at the start of `text`, and what follows it.
fn known<'t>(lookup: &mut Lookup<'_, '_>, text: &'t str) -> Result<Option<(Typed, &'t str)>, CommandError> {
    let call = |name: &str| {
        let (inside, rest) = enclosed(text.strip_prefix(name)?.trim_start(), '(', ')')?;
        Some((inside.trim(), rest.trim()))
    };
    if let Some((name, rest)) = call("sizeof") {
        let name = name.strip_prefix("struct ").or_else(|| name.strip_prefix("union ")).unwrap_or(name);
        let (layout, _) = layout(lookup, name)?;
        // size_t of the target.
        let type_text = if lookup.width() == Width::Four { "unsigned int" } else { "unsigned int64" };
        return Ok(Some((constant(type_text, layout.size), rest)));
    }
    let Some((inner, rest)) = call("#FIELD_OFFSET") else { return Ok(None) };
    let Some((name, member)) = inner.split_once(',') else {
        return Err(CommandError::Usage("#FIELD_OFFSET takes a type and a member".into()));
    };
    let (layout, module) = layout(lookup, name)?;
    let symbols = symbols(lookup, &module)?;
    let Some(offset) = offset_of(symbols.as_ref(), &layout.name, member.trim()) else {
        return Err(CommandError::Failed(format!("Couldn't resolve error at '{}'", visible_name(member.trim()))));
    };
    Ok(Some((constant("long", offset), rest)))
}

fn constant(type_text: &str, value: u64) -> Typed {
    Typed {
        type_text: type_text.into(),
        value: Some(Hex(value)),
        address: None,
        text: match type_text {
            "long" => format!("long 0n{value}"),
            _ => format!("{type_text} {value:#x}"),
        },
        members: Vec::new(),
    }
}

/// `*(type*)address`, `((type*)address)->a.b`
#[derive(Debug, PartialEq, Eq)]
struct Cast<'a> {
    type_name: &'a str,
    address: &'a str,
    dereferenced: bool,
    members: Vec<&'a str>,
}

fn cast(text: &str) -> Option<Cast<'_>> {
    if let Some((type_name, address)) = pseudo_type(text) {
        let path = text[address.len()..].strip_prefix("->")?;
        let members: Vec<&str> = path.split("->").flat_map(|part| part.split('.')).map(str::trim).collect();
        let good = members.iter().all(|member| !member.is_empty());
        return good.then_some(Cast { type_name, address, dereferenced: false, members });
    }
    let (dereferenced, text) = match text.strip_prefix('*') {
        Some(text) => (true, text.trim_start()),
        None => (false, text),
    };
    // The outer parentheses of `((type*)address)->member`.
    if let Some(inner) = text.strip_prefix('(').map(str::trim_start)
        && inner.starts_with('(')
        && let Some(end) = closing(text)
    {
        let mut cast = pointer_cast(text.get(1..end)?.trim())?;
        let rest = text.get(end + 1..)?.trim();
        cast.dereferenced = dereferenced;
        if !rest.is_empty() {
            let rest = rest.strip_prefix("->")?;
            cast.members = rest.split("->").flat_map(|part| part.split('.')).map(str::trim).collect();
            if dereferenced || cast.members.iter().any(|member| member.is_empty()) {
                return None;
            }
        }
        return Some(cast);
    }
    Some(Cast { dereferenced, ..pointer_cast(text)? })
}

/// `(type*)address`
fn pointer_cast(text: &str) -> Option<Cast<'_>> {
    let end = closing(text)?;
    let inner = text.get(1..end)?.trim().strip_suffix('*')?.trim();
    let inner = inner.strip_prefix("struct ").or_else(|| inner.strip_prefix("union ")).unwrap_or(inner).trim();
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_!:<>".contains(c);
    let address = text.get(end + 1..)?.trim();
    (!inner.is_empty() && inner.chars().all(is_name) && !address.is_empty()).then_some(Cast {
        type_name: inner,
        address,
        dereferenced: false,
        members: Vec::new(),
    })
}

/// Where the parenthesis that `text` begins with is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0u32;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return Some(at),
            ')' => depth = depth.checked_sub(1)?,
            _ if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The value of an expression. Numbers are decimal here, unless they say otherwise; what has a type is put in its
/// place, and the rest is as in MASM.
pub(crate) fn number(lookup: &mut Lookup<'_, '_>, text: &str) -> Result<u64, CommandError> {
    if lookup.depth >= MAX_NESTED {
        return Err(CommandError::Usage(format!("expressions are nested more than {MAX_NESTED} deep")));
    }
    lookup.depth += 1;
    let value = nested_number(lookup, text);
    lookup.depth -= 1;
    value
}

fn nested_number(lookup: &mut Lookup<'_, '_>, text: &str) -> Result<u64, CommandError> {
    let mut masm = String::new();
    let mut left = text.trim();
    while !left.is_empty() {
        if let Some((value, rest)) = primary(lookup, left)? {
            masm.push_str(&format!("0x{:x}`{:08x}", value >> 32, value as u32));
            left = rest;
            continue;
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_$@!:`".contains(c);
        let end = left.find(|c: char| !is_word(c)).unwrap_or(left.len());
        if end == 0 {
            let other = left.chars().next().map_or(1, char::len_utf8);
            masm.push_str(&left[..other]);
            left = &left[other..];
            continue;
        }
        let word = &left[..end];
        if word.chars().all(|c| c.is_ascii_digit()) {
            masm.push_str("0n");
        }
        masm.push_str(word);
        left = &left[end..];
    }
    Ok(evaluate_all(&masm, lookup)?)
}

/// What stands for a number of its own at the start of `text`, and what follows it.
fn primary<'t>(lookup: &mut Lookup<'_, '_>, text: &'t str) -> Result<Option<(u64, &'t str)>, CommandError> {
    for masm in ["@@masm", "@@"] {
        if let Some((inside, rest)) = text.strip_prefix(masm).and_then(|rest| enclosed(rest, '(', ')')) {
            return Ok(Some((evaluate_all(inside, lookup)?, rest)));
        }
    }
    if let Some((Typed { value: Some(Hex(value)), .. }, rest)) = known(lookup, text)? {
        return Ok(Some((value, rest)));
    }
    let Some(end) = member_end(text) else { return Ok(None) };
    let (of, rest) = text.split_at(end);
    let Some(cast) = cast(of.trim()) else { return Ok(None) };
    match typed(lookup, &cast)?.0.value {
        Some(Hex(value)) => Ok(Some((value, rest))),
        None => Err(CommandError::Failed(format!("'{}' is no number", visible_name(of.trim())))),
    }
}

/// Where `((type*)address)->member.member`, or `@$proc->member`, at the start of `text` ends.
fn member_end(text: &str) -> Option<usize> {
    let mut end = match pseudo_type(text) {
        Some((_, name)) => name.len(),
        None => closing(text)? + 1,
    };
    let mut members = 0;
    while let Some(rest) = text.get(end..) {
        let mark = ["->", "."].into_iter().find(|mark| rest.starts_with(mark))?;
        if members == 0 && mark == "." {
            return None;
        }
        let name = &rest[mark.len()..];
        let length = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(name.len());
        end += mark.len() + length;
        members += 1;
        if !text[end..].starts_with("->") && !text[end..].starts_with('.') {
            return Some(end);
        }
    }
    None
}

/// The pseudo-registers that have a type: the type, and the name as it is written.
fn pseudo_type(text: &str) -> Option<(&'static str, &str)> {
    let name = text.strip_prefix('@').unwrap_or(text);
    let (type_name, word) = [("nt!_EPROCESS", "$proc"), ("nt!_ETHREAD", "$thread")]
        .into_iter()
        .find(|(_, word)| name.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word)))?;
    let length = text.len() - name.len() + word.len();
    text[length..].starts_with("->").then(|| (type_name, &text[..length]))
}

/// A type and the module it is from.
fn layout(lookup: &mut Lookup<'_, '_>, name: &str) -> Result<(Arc<Layout>, String), CommandError> {
    let name = name.trim();
    let (module, type_name) = name.split_once('!').unwrap_or(("nt", name));
    let layout = symbols(lookup, module)?.layout(type_name);
    let layout = layout.ok_or_else(|| CommandError::Failed(format!("Symbol {} not found.", visible_name(name))))?;
    Ok((layout, module.into()))
}

/// The symbols of a module by its name.
pub(crate) fn symbols(lookup: &mut Lookup<'_, '_>, module: &str) -> Result<Arc<dyn SymbolFile>, CommandError> {
    let kernel = lookup.kernel()?;
    if module.eq_ignore_ascii_case("nt") {
        return lookup.session.symbols.nt(kernel).map_err(CommandError::from);
    }
    let mut names = Names::new(kernel, &mut lookup.session.symbols);
    let Some(driver) = names.driver_named(module)? else {
        return Err(CommandError::Failed(format!("no module {} (lm lists them)", visible_name(module))));
    };
    names.file(&driver).map_err(CommandError::from)
}

fn typed(lookup: &mut Lookup<'_, '_>, cast: &Cast<'_>) -> Result<(Typed, Vec<String>), CommandError> {
    let width = lookup.width();
    let (layout, module) = layout(lookup, cast.type_name)?;
    let address = width.address(number(lookup, cast.address)?);
    let symbols = symbols(lookup, &module)?;
    let wanted = Wanted { depth: u32::from(!cast.members.is_empty()), ..Wanted::default() };
    let view = lookup.view()?;
    let mut reader = Reader::new(symbols.as_ref(), Some(view), width, wanted);
    let path: Path = cast.members.iter().map(|member| member.to_string()).collect();
    let paths = if path.is_empty() { Vec::new() } else { vec![path] };
    let members = reader.members(&layout, Some(address), &paths)?;
    let typed = match cast.members.len() {
        0 => {
            let pointer = if cast.dereferenced { "" } else { " *" };
            let type_text = format!("struct {}{pointer}", visible_name(&layout.name));
            let text = match cast.dereferenced {
                true => type_text.clone(),
                false => format!("{type_text} 0x{}", width.tick(address)),
            };
            Typed { value: None, address: Some(Hex(address)), type_text, text, members }
        }
        depth => chosen(members, depth, width)?,
    };
    Ok((typed, reader.notes()))
}

/// The member that a path led to.
fn chosen(mut members: Vec<Member>, depth: usize, width: Width) -> Result<Typed, CommandError> {
    for _ in 1..depth {
        members = members.pop().map(|member| member.members).unwrap_or_default();
    }
    let Some(member) = members.pop() else {
        return Err(CommandError::Failed("Cannot find specified field members.".into()));
    };
    let Some(text) = member.text else {
        return Err(CommandError::Failed(format!("Memory access error: cannot read {}", member.name)));
    };
    let type_text = match member.type_text.as_str() {
        "Uint4B" => "unsigned long".into(),
        "Uint8B" => "unsigned int64".into(),
        "Uint2B" => "unsigned short".into(),
        "UChar" => "unsigned char".into(),
        "Int4B" => "long".into(),
        "Int8B" => "int64".into(),
        "Int2B" => "short".into(),
        "Char" => "char".into(),
        other => match other.strip_prefix(if width == Width::Four { "Ptr32 " } else { "Ptr64 " }) {
            Some(name) => format!("{name} *"),
            None => other.to_string(),
        },
    };
    let shown = format!("{type_text} {text}");
    Ok(Typed { type_text, value: member.value, address: None, text: shown, members: member.members })
}

impl Text for Typed {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{}", self.text)?;
        lines(out, &self.members, 0, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_are_taken_apart() {
        let parsed = cast("((nt!_KTHREAD*)@$thread)->Header.Type").unwrap();
        assert_eq!((parsed.type_name, parsed.address), ("nt!_KTHREAD", "@$thread"));
        assert_eq!(parsed.members, ["Header", "Type"]);
        let parsed = cast("*(struct _LIST_ENTRY *)0x10").unwrap();
        assert_eq!((parsed.type_name, parsed.address, parsed.dereferenced), ("_LIST_ENTRY", "0x10", true));
        for text in ["(1+2)*3", "((1+2)*3)", "12", "(", "((", "()", "(*)", "((a*)1)->", "((a*)1)->.b"] {
            assert_eq!(cast(text), None, "{text}");
        }
    }
}
