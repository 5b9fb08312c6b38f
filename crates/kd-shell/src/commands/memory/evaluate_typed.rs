//! `?? expression`: C++ expressions, as far as types of symbol files go.
//!
//! ```text
//! ?? sizeof(nt!_POOL_HEADER)             unsigned int64 0x10
//! ?? (nt!_LIST_ENTRY*)0x1000             struct _LIST_ENTRY * 0x00000000`00001000, and its members
//! ?? ((nt!_KTHREAD*)@$thread)->Process   the member
//! ?? #FIELD_OFFSET(nt!_KTHREAD, Process)
//! ?? @@masm(nt!Foo) + 0n12               anything else: 64-bit numbers
//! ```

use std::fmt;

use nt_symbols::Layout;
use serde::Serialize;

use super::display_type::{offset, symbols};
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::session::Context;
use crate::text::{Hex, Width, visible_name};
use crate::typed::{Member, Path, Reader, Wanted, lines};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["??"],
    usage: "?? expression",
    help: "evaluate a C++ expression",
    details: "Decimal and 0x numbers, sizeof(type), #FIELD_OFFSET(type, member), (type*)address, *(type*)address and \
              ((type*)address)->member.member;\n@@masm(...) for what ? takes.",
    action: Action::Answer(run),
};

#[derive(Serialize)]
struct Typed {
    #[serde(rename = "type")]
    type_text: String,
    value: Option<Hex>,
    address: Option<Hex>,
    /// As kd shows it.
    text: String,
    members: Vec<Member>,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments.trim();
    if text.is_empty() {
        return Err(usage(&INFO, "no expression"));
    }
    let call = |name: &str| {
        let inner = text.strip_prefix(name)?.trim_start().strip_prefix('(')?.strip_suffix(')')?;
        (!inner.contains(['(', ')'])).then(|| inner.trim())
    };
    if let Some(name) = call("sizeof") {
        let (layout, _) = layout(context, name)?;
        return Ok(Reply::new(constant("unsigned int64", layout.size)));
    }
    if let Some(inner) = call("#FIELD_OFFSET") {
        let Some((name, member)) = inner.split_once(',') else {
            return Err(usage(&INFO, "#FIELD_OFFSET(type, member)"));
        };
        let (layout, module) = layout(context, name)?;
        let symbols = symbols(context, &module)?;
        let Some(offset) = offset(symbols.as_ref(), &layout.name, member.trim()) else {
            return Err(CommandError::Failed(format!("Couldn't resolve error at '{}'", visible_name(member.trim()))));
        };
        return Ok(Reply::new(constant("long", offset)));
    }
    match cast(text) {
        Some(cast) => typed(context, &cast),
        None => {
            let value = number(context, text)?;
            let width = context.width();
            Ok(Reply::new(match i32::try_from(value as i64) {
                Ok(small) => Typed { text: format!("int 0n{small}"), ..constant("int", value) },
                Err(_) => Typed {
                    text: format!("unsigned int64 0x{}", width.tick(value)),
                    ..constant("unsigned int64", value)
                },
            }))
        }
    }
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

/// Numbers are decimal here, unless they say otherwise.
fn number(context: &mut Context<'_>, text: &str) -> Result<u64, CommandError> {
    if let Some(inner) = text.strip_prefix("@@masm(").and_then(|inner| inner.strip_suffix(')')) {
        return Ok(evaluate_all(inner, &mut context.scope())?);
    }
    let mut masm = String::new();
    let mut left = text;
    while let Some(start) = left.find(|c: char| c.is_ascii_alphanumeric() || "_$@!".contains(c)) {
        masm.push_str(&left[..start]);
        left = &left[start..];
        let end = left.find(|c: char| !(c.is_ascii_alphanumeric() || "_$@!:`".contains(c))).unwrap_or(left.len());
        let word = &left[..end];
        if word.chars().all(|c| c.is_ascii_digit()) {
            masm.push_str("0n");
        }
        masm.push_str(word);
        left = &left[end..];
    }
    masm.push_str(left);
    Ok(evaluate_all(&masm, &mut context.scope())?)
}

/// A type and the module it is from.
fn layout(context: &mut Context<'_>, name: &str) -> Result<(std::sync::Arc<Layout>, String), CommandError> {
    let name = name.trim();
    let (module, type_name) = name.split_once('!').unwrap_or(("nt", name));
    let layout = symbols(context, module)?.layout(type_name);
    let layout = layout.ok_or_else(|| CommandError::Failed(format!("Symbol {} not found.", visible_name(name))))?;
    Ok((layout, module.into()))
}

fn typed(context: &mut Context<'_>, cast: &Cast<'_>) -> Result<Reply, CommandError> {
    let width = context.width();
    let (layout, module) = layout(context, cast.type_name)?;
    let address = width.address(number(context, cast.address)?);
    let symbols = symbols(context, &module)?;
    let wanted = Wanted { depth: u32::from(!cast.members.is_empty()), ..Wanted::default() };
    let view = context.memory()?;
    let mut reader = Reader::new(symbols.as_ref(), Some(&view), width, wanted);
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
    Ok(Reply::with_notes(typed, reader.notes()))
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
