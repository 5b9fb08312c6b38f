//! `!leak setup driver.sys`: whether the verifier watches a driver's pool, and what to type on the target if not.

use std::fmt;

use nt_pool::build::WINDOWS_11;
use nt_pool::pool_log;
use nt_pool::verifier::{self, POOL_TRACKING, SPECIAL_POOL};
use schemars::JsonSchema;
use serde::Serialize;

use super::INFO;
use crate::answer::{Reply, Text};
use crate::command::usage;
use crate::error::CommandError;
use crate::session::Context;
use crate::text::{Hex, is_plain, visible_name};

/// `nt!VfOptionFlags`: the pool log keeps no stacks.
const NO_STACKS: u32 = 2;

#[derive(JsonSchema, Serialize)]
pub(super) struct Setup {
    driver: String,
    /// Its pool operations are logged with their stacks.
    covered: bool,
    /// The verifier's option bits.
    level: Hex,
    special_pool: bool,
    pool_tracking: bool,
    /// `null` when the verifier does not know the driver.
    state: Option<String>,
    log_entries: Option<u32>,
    /// Each `command`, what it does, and whether the target must be restarted then.
    commands: Vec<Way>,
    #[serde(skip)]
    reasons: Vec<&'static str>,
}

#[derive(JsonSchema, Serialize)]
struct Way {
    command: String,
    effect: &'static str,
    reboot: bool,
}

pub(super) fn run(context: &mut Context<'_>, text: &str) -> Result<Reply, CommandError> {
    if !is_plain(text) {
        return Err(usage(&INFO, format!("'{}' is no driver's file name (myfault.sys)", visible_name(text))));
    }
    let driver = if text.contains('.') { text.to_string() } else { format!("{text}.sys") };
    let build = context.kernel()?.version().minor;
    let settings = context.pool(verifier::settings)?;
    let drivers = context.pool(verifier::drivers)?;
    let log = context.pool(pool_log::position)?;
    let known = drivers.drivers.iter().find(|known| known.name.eq_ignore_ascii_case(&driver));
    let state = known.map(|known| known.state().words().to_ascii_lowercase());
    let on = |bit| settings.level & bit != 0;
    let stacks = settings.option_flags.is_none_or(|flags| flags & NO_STACKS == 0);
    let logged = log.is_some() && stacks;
    let watched = on(SPECIAL_POOL) || on(POOL_TRACKING);
    let covered = known.is_some() && watched && logged;
    let mut reasons = Vec::new();
    for (missing, reason) in [
        (known.is_none(), "the verifier does not verify this driver"),
        (!watched, "neither special pool (1) nor pool tracking (8) is on"),
        (log.is_none(), "the kernel keeps no pool log"),
        (!stacks, "the pool log keeps no call stacks (nt!VfOptionFlags, bit 1)"),
    ] {
        if missing {
            reasons.push(reason);
        }
    }
    let mut notes = settings.notes;
    notes.extend(drivers.notes);
    let commands = if covered { Vec::new() } else { ways(&driver, build) };
    let answer = Setup {
        driver,
        covered,
        level: Hex(settings.level.into()),
        special_pool: on(SPECIAL_POOL),
        pool_tracking: on(POOL_TRACKING),
        state,
        log_entries: log.map(|log| log.length),
        commands,
        reasons,
    };
    Ok(Reply::with_notes(answer, notes))
}

/// What turns it on, the mildest first.
fn ways(driver: &str, build: u16) -> Vec<Way> {
    let now = match build >= WINDOWS_11 {
        true => format!("verifier /dif 4 /now /driver {driver}"),
        false => format!("verifier /volatile /flags 0x8 /adddriver {driver}"),
    };
    vec![
        Way {
            command: now,
            effect: "pool tracking from now on; blocks that the driver has already are not tracked",
            reboot: false,
        },
        Way {
            command: format!("verifier /flags 0x8 /driver {driver}"),
            effect: "pool tracking from the start",
            reboot: true,
        },
        Way {
            command: format!("verifier /flags 0x1 /driver {driver}"),
            effect: "special pool as well, which finds overruns and takes a page for each small block",
            reboot: true,
        },
    ]
}

impl Text for Setup {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let on = |on| if on { "on" } else { "off" };
        writeln!(
            out,
            "Driver Verifier: level {:#x}, special pool {}, pool tracking {}",
            self.level.0,
            on(self.special_pool),
            on(self.pool_tracking)
        )?;
        if let Some(entries) = self.log_entries {
            writeln!(out, "Pool log: {entries:#x} entries")?;
        }
        if let Some(state) = &self.state {
            writeln!(out, "{}: verified, {state}", self.driver)?;
        }
        if self.covered {
            return writeln!(
                out,
                "{} is covered: its allocations and frees are logged with their stacks.",
                self.driver
            );
        }
        writeln!(out, "{} is not covered: {}.", self.driver, self.reasons.join("; "))?;
        writeln!(out, "On the target, as administrator, one of:")?;
        for way in &self.commands {
            let reboot = if way.reboot { "; needs a restart" } else { "; no restart" };
            writeln!(out, "    {}\n        {}{reboot}", way.command, way.effect)?;
        }
        Ok(())
    }
}
