//! `.reload`: forget symbols and read the module list anew.

use std::fmt;

use serde::Serialize;

use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::session::Context;
use crate::symbols::{Names, NoSymbols, short_name};

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &[".reload"],
    usage: ".reload [/f [module]]",
    help: "look symbols up anew",
    details: "/f reads them now, of all modules or of one, instead of when something needs them.",
    action: Action::Answer(run),
};

#[derive(Serialize)]
struct Reloaded {
    modules: usize,
    /// Modules whose symbols were read now (`/f`).
    loaded: Vec<String>,
    /// Modules that have none (`/f`).
    missing: Vec<String>,
    #[serde(skip)]
    connected: String,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let mut force = false;
    let mut wanted = None;
    for word in context.arguments.split_whitespace() {
        match word {
            "/f" | "-f" => force = true,
            // What happens anyway.
            "/n" | "/u" => {}
            option if option.starts_with('/') => {
                return Err(usage(&INFO, format!("option '{option}' is not in this version")));
            }
            module => wanted = Some(module),
        }
    }
    let kernel = context.kernel()?;
    context.session.symbols.forget();
    let kernel_base = kernel.base();
    let mut names = Names::new(kernel, &mut context.session.symbols);
    let drivers = names.drivers()?.clone();
    let (mut loaded, mut missing) = (Vec::new(), Vec::new());
    let mut known = wanted.is_none();
    for driver in &drivers.drivers {
        let name = short_name(driver, kernel_base);
        let is_wanted = |wanted: &str| wanted.eq_ignore_ascii_case(&name) || wanted.eq_ignore_ascii_case(&driver.file);
        if wanted.is_some_and(|wanted| !is_wanted(wanted)) {
            continue;
        }
        known = true;
        if force {
            match names.file(driver)? {
                Some(_) => loaded.push(name),
                None => missing.push(name),
            }
        }
    }
    if !known {
        let wanted = wanted.unwrap_or_default();
        return Err(CommandError::Failed(format!("no module {wanted} is loaded (lm lists them)")));
    }
    let connected = super::vertarget::connected(kernel.version(), &jiff::Zoned::now());
    let answer = Reloaded { modules: drivers.drivers.len(), loaded, missing, connected };
    let mut reply = Reply::with_notes(answer, drivers.notes);
    if force && let Err(NoSymbols::Missing(why)) = context.session.symbols.nt(kernel) {
        reply.failure = Some(CommandError::Failed(why));
    }
    Ok(reply)
}

impl Text for Reloaded {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{}", self.connected)?;
        writeln!(out, "Loading Kernel Symbols")?;
        // kd's rows: one dot for each module, the first row is one shorter.
        let mut left = self.modules;
        let mut row = 63;
        while left > 0 {
            let dots = left.min(row);
            writeln!(out, "{:.<dots$}", "")?;
            left -= dots;
            row = 64;
        }
        for module in &self.missing {
            writeln!(out, "*** ERROR: Module load completed but symbols could not be loaded for {module}")?;
        }
        Ok(())
    }
}
