//! `.reload`: forget symbols and read the module list anew.

use std::fmt;

use nt_memory::Fault;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::kernel::{Driver, Kernel};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::symbols::{Names, NoSymbols, Symbols, not_loaded, short_name};
use crate::text::visible_name;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".reload"],
    usage: ".reload [/f] [/i] [/u] [module]",
    help: "look symbols up anew",
    details: "/f reads them now, of all modules or of one, instead of when something needs them; /i takes symbols of another \
              build\nwhere there are no others; /u only forgets them.",
    results: &[ResultShape::of::<Reloaded>("reload")],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
struct Reloaded {
    modules: usize,
    /// How many drivers the kernel remembers that are gone; `null` when nobody looked, or its symbols are missing.
    unloaded_modules: Option<usize>,
    /// Modules whose symbols were read now (`/f`, `/i`).
    loaded: Vec<String>,
    /// Modules that have none (`/f`, `/i`).
    missing: Vec<String>,
    /// Why.
    errors: Vec<LoadError>,
    /// Modules whose symbols were forgotten (`/u`).
    unloaded: Vec<String>,
    #[serde(skip)]
    connected: String,
    /// Of all modules.
    #[serde(skip)]
    whole: bool,
}

#[derive(JsonSchema, Serialize)]
struct LoadError {
    module: String,
    file: String,
    /// What its image exports is used instead.
    exports: bool,
    error: String,
}

#[derive(Default)]
struct Options<'a> {
    force: bool,
    ignore: bool,
    unload: bool,
    module: Option<&'a str>,
}

fn options(text: &str) -> Result<Options<'_>, CommandError> {
    let mut options = Options::default();
    for word in text.split_whitespace() {
        let Some(letters) = word.strip_prefix(['/', '-']) else {
            options.module = Some(word);
            continue;
        };
        match letters.to_ascii_lowercase().as_str() {
            "f" => options.force = true,
            // A build that does not match has to be looked at now.
            "i" | "if" | "fi" => (options.force, options.ignore) = (true, true),
            "u" => options.unload = true,
            // What happens anyway.
            "n" => {}
            _ => return Err(usage(&INFO, format!("option '{word}' is not in this version"))),
        }
    }
    Ok(options)
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let options = options(context.arguments)?;
    let kernel = context.kernel()?;
    let symbols = &mut context.session.symbols;
    let kernel_base = kernel.base();
    let drivers = Names::new(kernel, symbols).drivers()?.clone();
    let is_wanted = |driver: &&Driver| {
        options.module.is_none_or(|wanted| {
            wanted.eq_ignore_ascii_case(&short_name(driver, kernel_base)) || wanted.eq_ignore_ascii_case(&driver.file)
        })
    };
    let wanted: Vec<&Driver> = drivers.drivers.iter().filter(is_wanted).collect();
    match options.module {
        Some(module) if wanted.is_empty() => {
            return Err(CommandError::Failed(format!("no module {module} is loaded (lm lists them)")));
        }
        Some(_) => wanted.iter().for_each(|driver| symbols.forget_one(kernel, driver)),
        None => symbols.forget(),
    }
    let mut answer = Reloaded {
        modules: drivers.drivers.len(),
        unloaded_modules: None,
        loaded: Vec::new(),
        missing: Vec::new(),
        errors: Vec::new(),
        unloaded: Vec::new(),
        connected: crate::vertarget::connected(kernel.version(), &jiff::Zoned::now()),
        whole: options.module.is_none(),
    };
    if options.unload {
        answer.unloaded = wanted.iter().map(|driver| short_name(driver, kernel_base)).collect();
    } else if options.force {
        match options.ignore {
            true => symbols.with_mismatched(|symbols| answer.load(kernel, symbols, &wanted))?,
            false => answer.load(kernel, symbols, &wanted)?,
        }
    }
    let nt = answer.errors.iter().find(|error| error.module == "nt");
    let failure = nt.map(|nt| CommandError::Failed(format!("no symbols of nt: {}", nt.error)));
    let mut notes = drivers.notes;
    if options.module.is_none() && !options.unload {
        // With what this machine has: .reload itself waits for no server.
        match symbols.offline(|symbols| symbols.nt(kernel)) {
            Ok(nt) => match nt_pool::unloaded::drivers(&kernel.pool(nt.as_ref())) {
                Ok(unloaded) => {
                    answer.unloaded_modules = Some(unloaded.drivers.len());
                    notes.extend(unloaded.notes);
                }
                Err(error) => notes.missing(format!("unloaded drivers: {}", error.local()?)),
            },
            Err(NoSymbols::Fault(fault)) => return Err(fault.into()),
            Err(NoSymbols::Missing(_)) => {}
        }
    }
    let mut reply = Reply::with_notes(answer, notes);
    reply.failure = failure;
    Ok(reply)
}

impl Reloaded {
    fn load(&mut self, kernel: &dyn Kernel, symbols: &mut Symbols, drivers: &[&Driver]) -> Result<(), Fault> {
        for driver in drivers {
            let module = short_name(driver, kernel.base());
            let file = symbols.of(kernel, driver)?;
            let Some(error) = symbols.why_missing(kernel, driver) else {
                self.loaded.push(module);
                continue;
            };
            let exports = file.is_some();
            self.errors.push(LoadError {
                module: module.clone(),
                file: driver.file.clone(),
                exports,
                error: error.into(),
            });
            self.missing.push(module);
        }
        Ok(())
    }
}

/// kd's rows: one dot for each module, the first row is one shorter.
fn dots(out: &mut dyn fmt::Write, mut left: usize) -> fmt::Result {
    let mut row = 63;
    while left > 0 {
        let dots = left.min(row);
        writeln!(out, "{:.<dots$}", "")?;
        left -= dots;
        row = 64;
    }
    Ok(())
}

impl Text for Reloaded {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if !self.unloaded.is_empty() {
            return self.unloaded.iter().try_for_each(|module| writeln!(out, "Unloaded {module}"));
        }
        writeln!(out, "{}", self.connected)?;
        writeln!(out, "Loading Kernel Symbols")?;
        dots(out, self.modules)?;
        if self.whole {
            // Those of user mode are not read.
            writeln!(out, "Loading User Symbols\n\nLoading unloaded module list")?;
            dots(out, self.unloaded_modules.unwrap_or_default())?;
        }
        for error in &self.errors {
            writeln!(out, "{}", not_loaded(&error.file, error.exports))?;
        }
        if !self.errors.is_empty() {
            writeln!(out, "\n************* Symbol Loading Error Summary **************")?;
            writeln!(out, "{:<22} Error", "Module name")?;
            for error in &self.errors {
                writeln!(out, "{:<22} {}", error.module, visible_name(&error.error))?;
            }
            writeln!(
                out,
                "\nYou can troubleshoot most symbol related issues by turning on symbol loading diagnostics (!sym noisy) \
                 and repeating the command that caused symbols to be loaded.\n\
                 You should also verify that your symbol search path (.sympath) is correct."
            )?;
        }
        Ok(())
    }
}
