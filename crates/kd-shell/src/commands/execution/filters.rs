//! `sx sxe sxd sxi sxn sxr`: at which drivers that come or go the target stops.

use std::fmt;

use kd_target::{Load, LoadStops};
use nt_symbols::Glob;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Done, Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::{Context, LoadStop};
use crate::text::visible_name;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["sx", "sxe", "sxd", "sxi", "sxn", "sxr"],
    usage: "sx | sxe ld[:pattern] | sxe ud[:pattern] | sxd|sxi|sxn ld|ud[:pattern] | sxr",
    help: "stop where a driver is loaded (ld) or unloaded (ud)",
    details: "sxe ld:myf* stops where the first bytes of a driver are in memory and its entry point was not called yet, so \
              that\nbreakpoints can be set in it. sxd, sxi and sxn take that back, sxr takes all back, sx lists. Exceptions stop \
              the kernel\nwhatever is set, and are no filters here.",
    results: &[ResultShape::of::<Filters>("sx"), ResultShape::NOTHING],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
struct Filters {
    stops: Vec<LoadStop>,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments.trim();
    match (context.word, text) {
        ("sx", "") => return Ok(Reply::new(Filters { stops: context.session.load_stops.clone() })),
        ("sxr", "") => context.session.load_stops.clear(),
        ("sx" | "sxr", other) => return Err(usage(&INFO, format!("what is '{other}'?"))),
        (word, text) => {
            let (event, pattern) = text.split_once(':').unwrap_or((text, "*"));
            let unload = match event.to_ascii_lowercase().as_str() {
                "ld" => false,
                "ud" => true,
                "" => return Err(usage(&INFO, "ld or ud is missing")),
                other => {
                    return Err(usage(&INFO, format!("'{}' is no filter here: ld and ud are", visible_name(other))));
                }
            };
            let pattern = if pattern.is_empty() { "*" } else { pattern.trim() };
            let stop = LoadStop { pattern: pattern.into(), unload };
            let stops = &mut context.session.load_stops;
            match word {
                "sxe" if stops.contains(&stop) => {}
                "sxe" => stops.push(stop),
                // Without a pattern it is all of the kind.
                _ => stops.retain(|known| known.unload != unload || pattern != "*" && *known != stop),
            }
        }
    }
    let stops = context.session.load_stops.clone();
    context.kernel()?.stop_at_loads(wanted(stops))?;
    Ok(Reply::new(Done {}))
}

/// Which loads are meant.
fn wanted(stops: Vec<LoadStop>) -> Option<LoadStops> {
    let stops: Vec<(Glob, bool)> = stops.into_iter().map(|stop| (Glob::new(&stop.pattern), stop.unload)).collect();
    let wanted = move |load: &Load| {
        let file = load.path.rsplit(['\\', '/']).next().unwrap_or(&load.path);
        let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
        stops.iter().any(|(pattern, unload)| *unload == load.unload && (pattern.matches(stem) || pattern.matches(file)))
    };
    Some(LoadStops::new(wanted))
}

impl Text for Filters {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for (name, what, unload) in [("ld", "Load module", false), ("ud", "Unload module", true)] {
            let patterns: Vec<&str> =
                self.stops.iter().filter(|stop| stop.unload == unload).map(|stop| stop.pattern.as_str()).collect();
            let state = if patterns.is_empty() { "ignore" } else { "break" };
            let only = if patterns.is_empty() { String::new() } else { format!(" (only for {})", patterns.join(", ")) };
            writeln!(out, "  {name} - {what} - {state}{}", visible_name(&only))?;
        }
        Ok(())
    }
}
