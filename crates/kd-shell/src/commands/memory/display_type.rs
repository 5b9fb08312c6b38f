//! `dt type [field ...] [address]`: types, and values by their types.
//!
//! ```text
//! nt!_LIST_ENTRY
//!    +0x000 Flink            : Ptr64 _LIST_ENTRY
//!    +0x008 Blink            : Ptr64 _LIST_ENTRY
//! ```

use std::fmt;

use nt_memory::Memory;
use nt_symbols::{Enumeration, Glob};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::cpp;
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, visible_name};
use crate::typed::{Member, Path, Reader, Wanted, lines, path, summary};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["dt"],
    usage: "dt [-r[n]] [-b] [-v] [-a[n]] [-y] [module!]type [address] [field ...]",
    help: "show a type, or memory as a type",
    details: "-r shows inner types, n levels deep; -b those that are not behind pointers; -v more of each type; -a the \
              elements of\narrays; -y takes beginnings of names. Fields may have wildcards, and a dot opens one: \
              dt nt!_PEB Ldr Ldr. 7ffdf000.\nA type with wildcards lists types.",
    results: &[ResultShape::of::<Answer>("dt")],
    action: Action::Answer(run),
};

/// kd's -r without a number goes on and on; structures of Windows are not nested deeper.
const ALL_LEVELS: u32 = 9;

#[derive(JsonSchema, Serialize)]
#[serde(untagged)]
enum Answer {
    Types {
        types: Vec<String>,
    },
    Enumeration {
        #[serde(rename = "type")]
        name: String,
        size: u64,
        enumerators: Vec<Enumerator>,
        #[serde(skip)]
        heading: Option<String>,
    },
    Structure {
        #[serde(rename = "type")]
        name: String,
        size: u64,
        address: Option<Hex>,
        members: Vec<Member>,
        #[serde(skip)]
        headings: Vec<String>,
        #[serde(skip)]
        aligned: bool,
    },
}

#[derive(JsonSchema, Serialize)]
struct Enumerator {
    name: String,
    value: i64,
}

/// The options, which may stand anywhere, and the other words.
fn options(text: &str) -> Result<(Wanted, Vec<&str>), CommandError> {
    let mut wanted = Wanted::default();
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        let Some(option) =
            word.strip_prefix('-').filter(|option| option.starts_with(|c: char| c.is_ascii_alphabetic()))
        else {
            words.push(word);
            continue;
        };
        let number = |default: u64| match option.get(1..).unwrap_or_default() {
            "" => Ok(default),
            digits => digits.parse().map_err(|_| usage(&INFO, format!("-{option} has no number"))),
        };
        match option.chars().next() {
            Some('r') => wanted.depth = number(u64::from(ALL_LEVELS))?.min(u64::from(ALL_LEVELS)) as u32,
            Some('a') => wanted.elements = Some(number(u64::MAX)?),
            Some('b') if option == "b" => (wanted.depth, wanted.embedded_only) = (ALL_LEVELS, true),
            Some('v') if option == "v" => wanted.verbose = true,
            Some('y') if option == "y" => wanted.prefixes = true,
            _ => return Err(usage(&INFO, format!("unknown option '-{option}'"))),
        }
    }
    Ok((wanted, words))
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let (wanted, mut words) = options(context.arguments)?;
    let mut address = None;
    // `dt address type` is `dt type address`.
    if words.len() > 1
        && words[0].starts_with(|c: char| c.is_ascii_digit() || c == '@')
        && let Ok(value) = evaluate_all(words[0], &mut context.scope())
    {
        address = Some(value);
        words.remove(0);
    }
    let Some((&name, fields)) = words.split_first() else { return Err(usage(&INFO, "no type")) };
    let (module, type_name) = match name.split_once('!') {
        Some((module, type_name)) if !module.is_empty() => (Some(module), type_name),
        Some((_, type_name)) => (None, type_name),
        None => (None, name),
    };
    let (type_name, member) = type_name.split_once('.').map_or((type_name, None), |(name, path)| (name, Some(path)));
    let symbols = cpp::symbols(&mut context.scope(), module.unwrap_or("nt"))?;
    if Glob::is_pattern(type_name) {
        let types = symbols.types_matching(type_name);
        let file = visible_name(&symbols.name());
        let named = |name: String| format!("{file}!{}", visible_name(&name));
        return Ok(Reply::new(Answer::Types { types: types.into_iter().map(named).collect() }));
    }
    let heading = module.is_none().then(|| format!("nt!{}", visible_name(type_name)));
    let Some(layout) = symbols.layout(type_name) else {
        return match symbols.enumeration(type_name) {
            Some(values) => Ok(Reply::new(enumeration(&values, heading))),
            None => Err(CommandError::Failed(format!("Symbol {} not found.", visible_name(name)))),
        };
    };
    let mut paths: Vec<Path> = member.map(path).into_iter().collect();
    for word in fields {
        let path = path(word);
        let first = path.first().map(String::as_str).unwrap_or_default();
        let is_field = |name: &str| match wanted.prefixes {
            true => name.get(..first.len()).is_some_and(|start| start.eq_ignore_ascii_case(first)),
            false => name.eq_ignore_ascii_case(first),
        };
        // The address may stand before the members, behind them, or between them.
        if Glob::is_pattern(first) || layout.fields.iter().any(|field| is_field(&field.name)) {
            paths.push(path);
            continue;
        }
        match evaluate_all(word, &mut context.scope()) {
            Ok(value) if address.is_none() => address = Some(value),
            Err(error) if first.starts_with(|c: char| c.is_ascii_digit() || "@(".contains(c)) => {
                return Err(error.into());
            }
            _ => return Err(no_such_field()),
        }
    }
    let width = context.width();
    let headings = heading.into_iter().chain(wanted.verbose.then(|| summary(&layout))).collect();
    let view = context.memory()?;
    let mut reader = Reader::new(symbols.as_ref(), address.map(|_| &view as &dyn Memory), width, wanted);
    let members = reader.members(&layout, address, &paths)?;
    if members.is_empty() && !paths.is_empty() {
        return Err(no_such_field());
    }
    let unreadable = address.is_some() && layout.size > 0 && members.iter().all(|member| member.text.is_none());
    let aligned = paths.is_empty();
    let answer = Answer::Structure {
        name: visible_name(&layout.name),
        size: layout.size,
        address: address.map(|address| Hex(width.address(address))),
        members,
        headings,
        aligned,
    };
    let mut reply = Reply::with_notes(answer, reader.notes());
    if let Some(address) = address.filter(|_| unreadable) {
        let why = format!("Memory read error {}", width.tick(width.address(address)));
        reply.failure = Some(CommandError::Failed(why));
    }
    Ok(reply)
}

fn no_such_field() -> CommandError {
    CommandError::Failed("Cannot find specified field members.".into())
}

fn enumeration(values: &Enumeration, heading: Option<String>) -> Answer {
    let enumerators = values.values.iter();
    Answer::Enumeration {
        name: visible_name(&values.name),
        size: values.size,
        enumerators: enumerators.map(|(name, value)| Enumerator { name: visible_name(name), value: *value }).collect(),
        heading,
    }
}

impl Text for Answer {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self {
            Self::Types { types } => types.iter().try_for_each(|name| writeln!(out, "          {name}")),
            Self::Enumeration { enumerators, heading, .. } => {
                heading.iter().try_for_each(|heading| writeln!(out, "{heading}"))?;
                enumerators.iter().try_for_each(|value| writeln!(out, "   {} = 0n{}", value.name, value.value))
            }
            Self::Structure { members, headings, aligned, .. } => {
                headings.iter().try_for_each(|heading| writeln!(out, "{heading}"))?;
                lines(out, members, 0, *aligned)
            }
        }
    }
}
