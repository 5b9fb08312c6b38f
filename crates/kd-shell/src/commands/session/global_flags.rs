//! `!gflag`: the system's global flags; `.cls`.
//!
//! ```text
//! Current NtGlobalFlag contents: 0x00000400
//!     ptg - Enable pool tagging
//! ```

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Done, Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::Hex;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!gflag"],
    usage: "!gflag",
    help: "show the global flags (pool tagging, object lists, special pool)",
    details: "",
    results: &[ResultShape::of::<Flags>("gflag")],
    action: Action::Answer(run),
};

pub(in crate::commands) const CLEAR_SCREEN: CommandInfo = CommandInfo {
    names: &[".cls"],
    usage: ".cls",
    help: "clear the screen; does nothing where there is none",
    details: "",
    results: &[ResultShape::NOTHING],
    action: Action::Drive(|drive| {
        drive.clear_screen();
        Ok(Reply::new(Done {}))
    }),
};

/// <https://learn.microsoft.com/windows-hardware/drivers/debugger/gflags-flag-table>
const FLAGS: [(u32, &str, &str); 24] = [
    (0x0000_0001, "soe", "Stop on exception"),
    (0x0000_0002, "sls", "Show loader snaps"),
    (0x0000_0004, "dic", "Debug initial command"),
    (0x0000_0008, "shg", "Stop on hung GUI"),
    (0x0000_0010, "htc", "Enable heap tail checking"),
    (0x0000_0020, "hfc", "Enable heap free checking"),
    (0x0000_0040, "hpc", "Enable heap parameter checking"),
    (0x0000_0080, "hvc", "Enable heap validation on call"),
    (0x0000_0100, "vrf", "Enable application verifier"),
    (0x0000_0400, "ptg", "Enable pool tagging"),
    (0x0000_0800, "htg", "Enable heap tagging"),
    (0x0000_1000, "ust", "Create user mode stack trace database"),
    (0x0000_2000, "kst", "Create kernel mode stack trace database"),
    (0x0000_4000, "otl", "Maintain a list of objects for each type"),
    (0x0000_8000, "htd", "Enable heap tagging by DLL"),
    (0x0002_0000, "d32", "Enable debugging of Win32 subsystem"),
    (0x0004_0000, "ksl", "Enable loading of kernel debugger symbols"),
    (0x0008_0000, "dps", "Disable paging of kernel stacks"),
    (0x0010_0000, "scb", "Enable system critical breaks"),
    (0x0020_0000, "dhc", "Disable heap coalesce on free"),
    (0x0040_0000, "ece", "Enable close exception"),
    (0x0080_0000, "eel", "Enable exception logging"),
    (0x0100_0000, "eot", "Enable object handle type tagging"),
    (0x0200_0000, "hpa", "Enable page heap"),
];

#[derive(JsonSchema, Serialize)]
struct Flags {
    value: Hex,
    flags: Vec<&'static str>,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    if !context.arguments.trim().is_empty() {
        return Err(usage(&INFO, "flags are shown and not changed here"));
    }
    let kernel = context.kernel()?;
    let symbols = context.session.symbols.nt(kernel)?;
    let variable = symbols.symbol("NtGlobalFlag");
    let variable = variable.ok_or_else(|| CommandError::Failed("the symbols of nt have no NtGlobalFlag".into()))?;
    let value = kernel.read_u32(kernel.width().address(kernel.base().wrapping_add(variable.rva.into())))?;
    let flags = FLAGS.iter().filter(|(bit, ..)| value & bit != 0).map(|(_, name, _)| *name).collect();
    Ok(Reply::new(Flags { value: Hex(value.into()), flags }))
}

impl Text for Flags {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "Current NtGlobalFlag contents: 0x{:08x}", self.value.0)?;
        for (_, name, meaning) in FLAGS.iter().filter(|(_, name, _)| self.flags.contains(name)) {
            writeln!(out, "    {name} - {meaning}")?;
        }
        Ok(())
    }
}
