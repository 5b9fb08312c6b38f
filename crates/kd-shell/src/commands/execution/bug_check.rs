//! `.bugcheck`: what the target crashed of, and what pool knows of it.
//!
//! ```text
//! Bugcheck code 000000C2
//! Arguments 00000000`00000007 00000000`00001097 00000000`0a040003 fffffa80`01234560
//!
//! BAD_POOL_CALLER: a block was freed that had been freed before
//!     00000000`00000007  what was found
//!     ...
//! ```
//!
//! The block that a bug check of pool names is shown with its neighbours (`!pool`) and with what the verifier's log has of
//! it (`!verifier 0x80`); of a driver that left blocks behind (0xC4/0x62) they are listed with the stacks that made them.

use std::fmt;

use nt_pool::bug_check::{self, Role};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::grammar::Scope;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::shell::Drive;
use crate::text::{Hex, Width, visible_name};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".bugcheck"],
    usage: ".bugcheck",
    help: "show the target's bugcheck, and what pool knows of it",
    details: "Code and parameters are what the kernel noted down (nt!KiBugCheckData); all of it is\n\
              0 when it has not crashed. Of the bugchecks of pool (0x19, 0xC1, 0xC2, 0xC4/0x60 to\n\
              0x62, 0xC5, 0xCC, 0xCD, 0xD0, 0xD5, 0xD6, 0x13A) the parameters are told in words,\n\
              and what they lead to is shown: the block (!pool), who allocated and who freed it\n\
              (!verifier 0x80), or what an unloaded driver left behind (!verifier 3).",
    results: &[ResultShape::of::<BugCheck>("bugcheck")],
    action: Action::Drive(run),
};

/// A driver's name is a file's: longer ones are something else.
const MAX_NAME: usize = 64;

#[derive(Debug, JsonSchema, Serialize)]
struct BugCheck {
    code: u32,
    parameters: [Hex; 4],
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    meanings: Vec<Meaning>,
    /// The driver that the parameters name.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    /// What was run to show what pool knows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shown_by: Vec<String>,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Meaning {
    value: Hex,
    words: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<String>,
}

fn run(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let answer = drive.with(read)?;
    let lines = answer.shown_by.clone();
    if lines.is_empty() {
        return Ok(Reply::new(answer));
    }
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = answer.text(&mut text);
    drive.say(&text);
    for line in &lines {
        drive.say(&format!("\n{line}\n"));
        if drive.was_cancelled() {
            break;
        }
        drive.run(line);
    }
    Ok(Reply::new(Shown(answer)))
}

/// An answer whose text stands above what it led to.
#[derive(JsonSchema, Serialize)]
#[serde(transparent)]
struct Shown(BugCheck);

impl Text for Shown {
    fn text(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}

fn read(context: &mut Context<'_>) -> Result<BugCheck, CommandError> {
    context.kernel()?;
    let mut word = |name: &str| {
        let value = context.scope().register(name)?;
        value.ok_or_else(|| CommandError::Failed("the symbols of nt have no KiBugCheckData".into()))
    };
    let code = word("$bug_code")? as u32;
    let names = ["$bug_param1", "$bug_param2", "$bug_param3", "$bug_param4"];
    let mut parameters = [0; 4];
    for (parameter, name) in parameters.iter_mut().zip(names) {
        *parameter = word(name)?;
    }
    let width = context.width();
    let described = bug_check::describe(code, parameters);
    let mut answer = BugCheck {
        code,
        parameters: parameters.map(|value| Hex(width.address(value))),
        name: described.as_ref().map(|described| described.name),
        summary: described.as_ref().map(|described| described.summary),
        meanings: Vec::new(),
        driver: None,
        shown_by: Vec::new(),
        width,
    };
    let Some(described) = described else { return Ok(answer) };
    for parameter in &described.parameters {
        let symbol = match parameter.role {
            Role::Code => context.names()?.name_of_code(parameter.value)?,
            _ => None,
        };
        answer.meanings.push(Meaning {
            value: Hex(width.address(parameter.value)),
            words: parameter.words.clone(),
            symbol,
        });
    }
    if let Some(address) = described.value(Role::DriverName) {
        answer.driver = driver_name(context, width.address(address))?;
    }
    if let Some(driver) = &answer.driver {
        answer.shown_by = vec![format!("!verifier 3 {driver}"), format!("!verifier 0x80 {driver}")];
    } else if let Some(block) = described.value(Role::Block).filter(|block| width.is_kernel(*block)) {
        answer.shown_by = vec![format!("!pool {block:x}"), format!("!verifier 0x80 {block:x}")];
    }
    Ok(answer)
}

/// A name that the kernel keeps as UTF-16, older ones as bytes; `None` where no file's name stands.
fn driver_name(context: &mut Context<'_>, address: u64) -> Result<Option<String>, CommandError> {
    let mut bytes = [0; 2 * MAX_NAME];
    let read = context.kernel()?.memory().read(address, &mut bytes)?.min(bytes.len());
    let bytes = &bytes[..read];
    let wide = bytes.get(1) == Some(&0);
    let characters: Vec<u16> = match wide {
        true => bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect(),
        false => bytes.iter().map(|byte| u16::from(*byte)).collect(),
    };
    let name: Vec<u16> = characters.into_iter().take_while(|character| *character != 0).collect();
    let name = String::from_utf16_lossy(&name);
    // It is typed into the next command: nothing but a file's name is taken.
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_file = name.len() > 2 && name.len() < MAX_NAME && name.chars().all(is_name);
    if !is_file {
        tracing::debug!(name = %visible_name(&name), "no driver's name");
    }
    Ok(is_file.then_some(name))
}

impl Text for BugCheck {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let parameters = self.parameters.map(|parameter| self.width.tick(parameter.0));
        writeln!(out, "Bugcheck code {:08X}\nArguments {}", self.code, parameters.join(" "))?;
        let Some((name, summary)) = self.name.zip(self.summary) else { return Ok(()) };
        writeln!(out, "\n{name}: {summary}")?;
        for Meaning { value, words, symbol } in &self.meanings {
            let symbol = symbol.as_deref().map_or(String::new(), |symbol| format!(" ({symbol})"));
            writeln!(out, "    {}  {words}{symbol}", self.width.tick(value.0))?;
        }
        if let Some(driver) = &self.driver {
            writeln!(out, "    the driver is {driver}")?;
        }
        Ok(())
    }
}
