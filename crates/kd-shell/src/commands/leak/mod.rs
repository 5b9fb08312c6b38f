//! `!leak`: marks of the pool, and what became of their blocks. docs/leaks.md says what is proved by what.

mod arguments;
mod check;
mod compare;
mod files;
mod freed;
mod mark;
mod naming;
mod options;
mod report;
mod setup;
mod survey;
mod trace;
mod watch;
mod watched;

use nt_leaks::{Module, Modules, Namer, PdbName, Resolver};
use nt_memory::Fault;
use nt_symbols::ImageError;

pub use self::arguments::{Arguments, Given};
pub use self::options::{LeakOption, OPTIONS, Sub};
use crate::answer::Reply;
use crate::command::{Action, CommandInfo, no_subcommand, usage};
use crate::error::CommandError;
use crate::kernel::{Driver, Kernel};
use crate::marks::Held;
use crate::output::Output;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::shell::{Drive, Outcome, Shell};
use crate::symbols::{Symbols, short_name, with_offset};
use crate::text::visible_name;

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["!leak"],
    usage: "!leak mark | check | watch | freed | setup | trace | report | compare",
    help: "mark the pool, let the target run, and say of each block whether it is still the same allocation",
    details: "!leak mark [name] [tag] [pooltype] [-file F] [-small] [-all]\n\
              \x20                                                remember the blocks of a tag (all large ones without a tag)\n\
              !leak check [name] [-file F] [options]           what became of the last mark's blocks, or of name's\n\
              !leak watch [tag] [-every 30s] [-times N] [-for 10m] [-min-age T] [-until-confirmed] [-file F]\n\
              \x20           [-fail-on confirmed|growing] [options]\n\
              \x20                                                whether a tag leaks, and who; without a tag all are surveyed,\n\
              \x20                                                and those that grow are watched (-top N, -exclude TAG,\n\
              \x20                                                -by bytes|count, -pool nonpaged|paged)\n\
              !leak freed address                              who freed a block: its history, newest first\n\
              !leak setup driver.sys                           whether the verifier covers a driver, and what to type if not\n\
              !leak trace tag [-hits N] [-rate R] [-frozen T] [-for T]\n\
              \x20                                                who allocates and frees, without the verifier; changes\n\
              \x20                                                nt!PoolHitTag for a while (needs .allow_write on)\n\
              !leak report F [F2] [options]                    a mark's or report's file, or two marks compared, without a\n\
              \x20                                                target, with the symbols of the present symbol path\n\
              -small lists blocks below a page too, whatever that costs (a mark says what it would); -all does so for all\n\
              tags. Options: -v all blocks, -d decimal, -skip module!pattern, and files: -html F, -json F, -svg F, -folded F,\n\
              -junit F and the others that kdpool report --help lists; -parquet DIR -machine NAME adds every mark and check\n\
              to a directory of Parquet files.\n\
              Verdicts are still, freed, reused, new and unknown; each names its evidence (docs/leaks.md).",
    results: &[
        ResultShape::of::<mark::Marked>("leak-mark"),
        ResultShape::of::<check::Checked>("leak-check"),
        ResultShape::of::<watched::Watched>("leak-watch"),
        ResultShape::of::<freed::Freed>("leak-freed"),
        ResultShape::of::<setup::Setup>("leak-setup"),
        ResultShape::of::<trace::Traced>("leak-trace"),
        ResultShape::of::<report::Reported>("leak-report"),
        ResultShape::of::<compare::Compared>("leak-compare"),
    ],
    action: Action::Drive(run),
};

fn run(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let (word, rest) = match drive.arguments.split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim()),
        None => (drive.arguments, ""),
    };
    match word {
        "mark" => mark::run(drive, rest),
        "check" => drive.with(|context| check::run(context, rest)),
        "freed" => drive.with(|context| freed::run(context, rest)),
        "setup" => drive.with(|context| setup::run(context, rest)),
        "trace" => trace::run(drive, rest),
        "report" => report::run(drive, &Arguments::parse(Sub::Report, rest)?),
        "compare" => compare::run(drive, &Arguments::parse(Sub::Compare, rest)?),
        "watch" => watch::run(drive, &Arguments::parse(Sub::Watch, rest)?),
        "" => Err(usage(&INFO, "what is to be done?")),
        other => Err(no_subcommand(&INFO, other)),
    }
}

/// What a program does with these arguments: the same as the command, without a line that is read again.
pub fn order(shell: &mut Shell, sub: Sub, asked: &Arguments, out: &mut dyn Output) -> Outcome {
    match sub {
        Sub::Watch => shell.perform("!leak watch", |drive| watch::run(drive, asked), out),
        Sub::Compare => shell.perform("!leak compare", |drive| compare::run(drive, asked), out),
        Sub::Report | Sub::Mark | Sub::Check | Sub::Trace => {
            shell.perform("!leak report", |drive| report::run(drive, asked), out)
        }
    }
}

/// What a report's last line says of the target.
fn left(target: &str) -> String {
    match target {
        "lost" => "Whether the target runs is not known.".into(),
        _ => format!("The target is {target}."),
    }
}

const DEFAULT_NAME: &str = "mark";

/// Runs `f` on what nt-pool decodes, with names for the modules that are given.
fn with_pool<T>(
    context: &mut Context<'_>,
    modules: &Modules,
    f: impl FnOnce(&nt_pool::Kernel<'_>, &mut Resolver<'_>) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let kernel = context.kernel()?;
    let symbols = &mut context.session.symbols;
    let nt = symbols.nt(kernel)?;
    let mut names = ModuleNames { kernel, symbols };
    f(&kernel.pool(nt.as_ref()), &mut Resolver::new(modules, &mut names))
}

struct ModuleNames<'a> {
    kernel: &'a dyn Kernel,
    symbols: &'a mut Symbols,
}

impl Namer for ModuleNames<'_> {
    fn name(&mut self, module: &Module, rva: u32) -> Result<Option<String>, Fault> {
        let Module { base, size, ref name, checksum, timestamp, .. } = *module;
        // A module knows its short name only; an image is looked for by its file's.
        let listed = self.kernel.drivers()?.drivers.into_iter().find(|driver| driver.base == base);
        let file = module.file.clone().unwrap_or_else(|| name.clone());
        let driver = listed.unwrap_or(Driver { base, size, file, checksum, timestamp });
        let file = match name.eq_ignore_ascii_case("VerifierExt") {
            // Its names decide what a record is of.
            true => self.symbols.of(self.kernel, &driver)?,
            false => self.symbols.of_or_later(self.kernel, &driver)?,
        };
        let symbol = file.and_then(|file| file.around(rva).0);
        Ok(symbol.map(|symbol| with_offset(visible_name(&symbol.name), (rva - symbol.rva).into())))
    }

    fn identify(&mut self, module: &mut Module) -> Result<(), Fault> {
        match nt_symbols::rsds(self.kernel.memory(), module.base) {
            Ok(found) => {
                let guid = format!("{:032X}", found.pdb.guid);
                module.timestamp = found.image.time_date_stamp;
                module.pdb = Some(PdbName { file: found.pdb_name, guid, age: found.pdb.age });
                Ok(())
            }
            Err(ImageError::Fault(fault)) => Err(fault),
            // It has none, or its header is paged out; size and time stamp are of the list of modules.
            Err(_) => Ok(()),
        }
    }
}

/// The modules that are loaded now.
fn modules(context: &Context<'_>, notes: &mut Vec<String>) -> Result<Modules, CommandError> {
    let kernel = context.kernel()?;
    let drivers = kernel.drivers()?;
    notes.extend(drivers.notes.lines());
    let module = |driver: &Driver| Module {
        file: Some(driver.file.clone()),
        checksum: driver.checksum,
        timestamp: driver.timestamp,
        ..Module::new(driver.base, driver.size, short_name(driver, kernel.base()))
    };
    Ok(Modules::new(drivers.drivers.iter().map(module).collect()))
}
