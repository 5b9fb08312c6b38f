//! `.printf "format", argument, ...`
//!
//! ```text
//! %d %i %u %x %X %o %c  numbers, %I64x long ones     %p %N  a pointer     %y  a symbol
//! %ma %mu               text at an address           %msa %msu         text of a STRING, a UNICODE_STRING
//! ```

use std::fmt;

use nt_memory::Memory;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::evaluate;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::visible;
use crate::typed::read_pointer;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".printf"],
    usage: ".printf \"format\" [, argument ...]",
    help: "print numbers, pointers, symbols and text of the target by a format",
    details: "%d %u %x %p %N %c %y (symbol) %ma %mu (text at an address) %msa %msu (text of a STRING or UNICODE_STRING); \\n \
              ends a line.",
    results: &[ResultShape::of::<Printed>("printf")],
    action: Action::Answer(run),
};

/// Characters of one text of the target.
const MAX_TEXT: usize = 4096;
const MAX_WIDTH: usize = 256;

#[derive(JsonSchema, Serialize)]
struct Printed {
    text: String,
}

/// One `%` of a format.
#[derive(Debug, PartialEq, Eq)]
struct Directive<'a> {
    left: bool,
    zeros: bool,
    alternate: bool,
    width: usize,
    kind: &'a str,
}

/// Longest first.
const KINDS: [&str; 22] = [
    "N", "I64d", "I64u", "I64x", "I64X", "msa", "msu", "ma", "mu", "ld", "lu", "lx", "d", "i", "u", "x", "X", "o", "c",
    "p", "y", "%",
];

/// Takes a directive apart behind its `%`.
fn directive(text: &str) -> Option<(Directive<'_>, &str)> {
    let mut found = Directive { left: false, zeros: false, alternate: false, width: 0, kind: "" };
    let mut left = text;
    loop {
        match left.chars().next()? {
            '-' => found.left = true,
            '0' => found.zeros = true,
            '#' => found.alternate = true,
            _ => break,
        }
        left = &left[1..];
    }
    let digits = left.find(|c: char| !c.is_ascii_digit())?;
    found.width = left[..digits].parse().unwrap_or(0).min(MAX_WIDTH);
    left = &left[digits..];
    found.kind = KINDS.into_iter().find(|kind| left.starts_with(kind))?;
    Some((found, &left[KINDS.iter().find(|kind| left.starts_with(**kind))?.len()..]))
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments.trim();
    let missing = || usage(&INFO, "the format belongs between double quotes");
    let inner = text.strip_prefix('"').ok_or_else(missing)?;
    let mut escaped = false;
    let end = inner.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    let end = end.ok_or_else(missing)?;
    let (mut format, mut arguments) = (&inner[..end], inner[end + 1..].trim_start());
    let mut printed = String::new();
    while let Some(at) = format.find(['%', '\\']) {
        printed.push_str(&format[..at]);
        let rest = &format[at + 1..];
        if format[at..].starts_with('\\') {
            let mut characters = rest.chars();
            match characters.next() {
                Some('n') => printed.push('\n'),
                Some('t') => printed.push('\t'),
                Some('r') => {}
                Some(c) => printed.push(c),
                None => {}
            }
            format = characters.as_str();
            continue;
        }
        let Some((wanted, rest)) = directive(rest) else {
            return Err(usage(&INFO, format!("'%{}' is not understood", rest.chars().take(4).collect::<String>())));
        };
        format = rest;
        if wanted.kind == "%" {
            printed.push('%');
            continue;
        }
        let Some(next) = arguments.strip_prefix(',') else {
            return Err(usage(&INFO, format!("no argument for %{}", wanted.kind)));
        };
        let (value, rest) = evaluate(next, &mut context.scope())?;
        arguments = rest.trim_start();
        let field = field(context, &wanted, value)?;
        let padding = " ".repeat(wanted.width.saturating_sub(field.chars().count()));
        match wanted.left {
            true => printed.extend([field, padding]),
            false => printed.extend([padding, field]),
        }
    }
    printed.push_str(format);
    Ok(Reply::new(Printed { text: printed }))
}

fn field(context: &mut Context<'_>, wanted: &Directive<'_>, value: u64) -> Result<String, CommandError> {
    let width = context.width();
    let digits = if wanted.zeros { wanted.width } else { 0 };
    let prefix = if wanted.alternate { "0x" } else { "" };
    // Numbers without a length are of 32 bits, as in C.
    let short = value as u32;
    Ok(match wanted.kind {
        "d" | "i" | "ld" => format!("{:0digits$}", short as i32),
        "u" | "lu" => format!("{short:0digits$}"),
        "x" | "lx" => format!("{prefix}{short:0digits$x}"),
        "X" => format!("{prefix}{short:0digits$X}"),
        "o" => format!("{short:0digits$o}"),
        "I64d" => format!("{:0digits$}", value as i64),
        "I64u" => format!("{value:0digits$}"),
        "I64x" => format!("{prefix}{value:0digits$x}"),
        "I64X" => format!("{prefix}{value:0digits$X}"),
        "c" => char::from_u32(short).unwrap_or(char::REPLACEMENT_CHARACTER).to_string(),
        "p" | "N" => width.pointer(value),
        "y" => {
            let address = width.address(value);
            let name = context.names()?.name(address)?;
            name.map_or(width.tick(address), |name| format!("{name} ({})", width.tick(address)))
        }
        kind => text_at(context, kind, value)?,
    })
}

/// Text of the target: at an address (`ma`, `mu`), or of the STRING or UNICODE_STRING there (`msa`, `msu`).
pub(in crate::commands) fn text_at(context: &mut Context<'_>, kind: &str, value: u64) -> Result<String, CommandError> {
    let width = context.width();
    let view = context.memory()?;
    let memory: &dyn Memory = &view;
    let unit = if kind.ends_with('u') { 2 } else { 1 };
    let address = width.address(value);
    let (address, length) = match kind {
        "msa" | "msu" => {
            let buffer = address.wrapping_add(width.bytes() as u64);
            (read_pointer(memory, buffer, width)?, usize::from(memory.read_u16(address)?))
        }
        _ => (address, MAX_TEXT),
    };
    let mut bytes = vec![0; length.min(MAX_TEXT)];
    let read = memory.read(address, &mut bytes)?.min(bytes.len());
    if read < unit && length > 0 {
        return Err(CommandError::Failed(format!("Memory access error: cannot read {}", width.tick(address))));
    }
    let units = bytes[..read].chunks_exact(unit).map(|unit| match unit {
        [low, high] => u16::from_le_bytes([*low, *high]),
        unit => u16::from(unit[0]),
    });
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    Ok(String::from_utf16_lossy(&units))
}

impl Text for Printed {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(&visible(&self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_taken_apart() {
        let (found, rest) = directive("-08I64x, ").unwrap();
        assert_eq!((found.left, found.zeros, found.width, found.kind, rest), (true, true, 8, "I64x", ", "));
        assert_eq!(directive("msu").unwrap().0.kind, "msu");
        for text in ["", "z", "-", "5", "0"] {
            assert_eq!(directive(text), None, "{text}");
        }
    }
}
