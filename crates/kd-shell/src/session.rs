//! What the shell remembers between commands, and what a command gets to see.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kd_target::Cost;
use nt_memory::Fault;
use nt_pool::build::{WINDOWS_2000, WINDOWS_NT_4, WINDOWS_VISTA, WINDOWS_XP};
use nt_pool::find::{Bounds, Place, Question};
use nt_pool::pooltag::PoolTags;

use crate::breakpoint::Breakpoint;
use crate::command::Table;
use crate::consent::Consent;
use crate::error::CommandError;
use crate::grammar::alias::Aliases;
use crate::kept_log::KeptLog;
use crate::kernel::Kernel;
use crate::log::Log;
use crate::lookup::Lookup;
use crate::marks::Marks;
use crate::symbols::{Names, Symbols};
use crate::text::Width;
use crate::translation::View;

/// Output as people read it, or as programs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// As kd prints it.
    #[default]
    Kd,
    /// One JSON object a command.
    Json,
}

/// `sxe ld:pattern`, `sxe ud:pattern`
#[derive(Debug, Clone, PartialEq, Eq, schemars::JsonSchema, serde::Serialize)]
pub(crate) struct LoadStop {
    /// Of the file's name without its extension, or with it.
    pub(crate) pattern: String,
    pub(crate) unload: bool,
}

/// The cost of the last command, for `.stats`.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastCommand {
    pub command: String,
    pub cost: Cost,
}

/// How many pseudo-registers of the user's own there are.
pub(crate) const TEMPORARIES: usize = 20;

/// The number of `$t0` to `$t19`.
pub(crate) fn temporary(name: &str) -> Option<usize> {
    let number = name.strip_prefix("$t").or_else(|| name.strip_prefix("$T"))?.parse().ok()?;
    (number < TEMPORARIES).then_some(number)
}

/// A `!poolfind` that was stopped, and can go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoppedSearch {
    pub(crate) question: Question,
    pub(crate) bounds: Bounds,
    /// What is run for each block.
    pub(crate) command: Option<String>,
    pub(crate) place: Place,
}

/// What lasts from one command to the next, whatever becomes of the target.
pub struct Session {
    /// Of all modules, and where they come from.
    pub symbols: Symbols,
    /// What tags stand for.
    pub pool_tags: PoolTags,
    /// `.logopen`'s file.
    pub log: Log,
    /// Where a memory command goes on when it gets no address.
    pub(crate) next_dump: Option<u64>,
    pub(crate) last_dump: Option<&'static str>,
    /// Where `u` goes on.
    pub(crate) next_code: Option<u64>,
    /// `$t0` to `$t19`.
    pub(crate) temporaries: [u64; TEMPORARIES],
    pub(crate) aliases: Aliases,
    /// Drivers at whose coming or going the target stops (`sxe ld`).
    pub(crate) load_stops: Vec<LoadStop>,
    /// Of numbers without a prefix.
    pub(crate) radix: u32,
    /// `$exp`: what the last expression came to.
    pub(crate) last_value: u64,
    /// `$frame`: the frame that `.frame` chose, until the target runs.
    pub(crate) frame: u64,
    /// What `s -[s]` saved for `s -[r]`.
    pub(crate) saved_hits: Vec<u64>,
    /// `$extret`: what the last `!` command came to; `!poolfind -x` sets it to each block's address.
    pub(crate) extension_result: u64,
    /// Bytes in use by tag at the last `!pooltop`.
    pub(crate) pool_counts: Option<HashMap<nt_pool::Tag, u64>>,
    /// The last `!poolfind` that was stopped.
    pub(crate) stopped_search: Option<StoppedSearch>,
    /// Whether commands may change the target.
    pub allow_write: bool,
    /// Who is told what a command will cost; nobody in a session without people.
    pub consent: Option<Arc<Consent>>,
    /// Columns of the terminal that help is laid out for.
    pub(crate) columns: usize,
    /// What `.process` and `.thread` chose, until the target runs.
    pub(crate) process: Option<u64>,
    pub(crate) thread: Option<u64>,
    pub(crate) breakpoints: Vec<Breakpoint>,
    /// What stacks have needed of images; it outlives a stop.
    pub(crate) images: nt_unwind::Images,
    pub(crate) last_command: LastCommand,
    /// What was read of the verifier's pool log.
    pub(crate) kept_log: KeptLog,
    /// Snapshots of `!leak`, by name.
    pub(crate) leaks: Marks,
    /// How the last `!leak watch` ended.
    pub hunt_end: HuntEnd,
}

/// How a hunt ended, for the exit status of the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HuntEnd {
    /// It ran its course, and found no leak.
    #[default]
    Done,
    /// `-fail-on` came true.
    Found,
    /// Nothing was ever allocated with the tag.
    NoSuchTag,
    /// By Ctrl+C.
    Interrupted,
}

impl Session {
    /// With these symbols, tags and log, and nothing else said yet.
    pub fn new(symbols: Symbols, pool_tags: PoolTags, log: Log) -> Self {
        Self {
            symbols,
            pool_tags,
            log,
            next_dump: None,
            last_dump: None,
            next_code: None,
            temporaries: [0; TEMPORARIES],
            aliases: Aliases::default(),
            load_stops: Vec::new(),
            radix: 16,
            last_value: 0,
            frame: 0,
            saved_hits: Vec::new(),
            extension_result: 0,
            pool_counts: None,
            stopped_search: None,
            allow_write: false,
            consent: None,
            columns: crate::layout::COLUMNS,
            process: None,
            thread: None,
            breakpoints: Vec::new(),
            images: nt_unwind::Images::default(),
            last_command: LastCommand::default(),
            kept_log: KeptLog::default(),
            leaks: Marks::default(),
            hunt_end: HuntEnd::Done,
        }
    }
}

impl Session {
    /// Whether a command may change the target.
    pub(crate) fn check_writing(&self) -> Result<(), CommandError> {
        match self.allow_write {
            true => Ok(()),
            false => Err(CommandError::Failed(
                "changing the target is off; .allow_write on (or --allow-write on the command line) switches it on"
                    .into(),
            )),
        }
    }

    /// The target runs: what was chosen of it may be gone.
    pub(crate) fn forget_choices(&mut self) {
        self.process = None;
        self.thread = None;
        self.frame = 0;
    }
}

/// Whether there is somebody to ask.
#[derive(Clone, Copy)]
pub enum Debuggee<'a> {
    /// Nothing was attached to.
    None,
    /// The connection is gone, for this reason.
    Lost(&'a str),
    /// It runs.
    Running,
    /// It stands still.
    Halted(&'a dyn Kernel),
}

impl<'a> Debuggee<'a> {
    pub(crate) fn kernel(self) -> Result<&'a dyn Kernel, CommandError> {
        match self {
            Self::None => Err(CommandError::NoTarget),
            Self::Lost(why) => Err(Fault::Lost(why.into()).into()),
            Self::Running => Err(Fault::Running.into()),
            Self::Halted(kernel) => Ok(kernel),
        }
    }
}

/// What one command works with.
pub struct Context<'a> {
    /// What there is to be asked.
    pub debuggee: Debuggee<'a>,
    /// What lasts.
    pub session: &'a mut Session,
    /// The command's word, lower case; families of commands differ by it.
    pub word: &'a str,
    /// All that stands behind the command's name.
    pub arguments: &'a str,
    /// What the session has cost so far.
    pub cost: Cost,
    pub(crate) commands: &'static Table,
}

impl<'a> Context<'a> {
    /// The kernel, if it stands still.
    pub fn kernel(&self) -> Result<&'a dyn Kernel, CommandError> {
        self.debuggee.kernel()
    }

    /// Of the target's pointers; of 64 bits as long as there is none.
    pub fn width(&self) -> Width {
        match self.debuggee {
            Debuggee::Halted(kernel) => kernel.width(),
            Debuggee::None | Debuggee::Lost(_) | Debuggee::Running => Width::Eight,
        }
    }

    /// Memory with the user half of the process that `.process` chose.
    pub(crate) fn memory(&mut self) -> Result<View<'a>, CommandError> {
        let process = self.session.process;
        View::new(self.kernel()?, &mut self.session.symbols, process)
    }

    /// Names of addresses and addresses of names; needs a target that stands.
    pub fn names(&mut self) -> Result<Names<'_>, CommandError> {
        Ok(Names::new(self.kernel()?, &mut self.session.symbols))
    }

    /// Whether something may be done that was said to take so long; a no is the error.
    pub(crate) fn consent(&self, what: &str, time: Duration) -> Result<(), CommandError> {
        match &self.session.consent {
            Some(consent) => consent.allows(what, time).map_err(CommandError::Failed),
            None => Ok(()),
        }
    }

    /// Names, registers and memory for expressions.
    pub(crate) fn scope(&mut self) -> Lookup<'_, 'a> {
        Lookup::new(self.debuggee, self.session)
    }

    /// Runs `f` on what nt-pool decodes. The kernel's symbols are needed.
    pub fn pool<T>(
        &mut self,
        f: impl FnOnce(&nt_pool::Kernel<'_>) -> Result<T, nt_pool::PoolError>,
    ) -> Result<T, CommandError> {
        let kernel = self.kernel()?;
        let version = kernel.version();
        if version.minor < WINDOWS_VISTA {
            return Err(CommandError::Failed(format!(
                "pool is read from Windows Vista on, and this kernel is of NT {}; lm, x, k, r, u, dt, d*, s, !process \
                 and breakpoints work",
                nt_version(version.minor)
            )));
        }
        let symbols = self.session.symbols.nt(kernel)?;
        Ok(f(&kernel.pool(symbols.as_ref()))?)
    }

    /// As [`Context::pool`], of what every kernel has.
    pub fn decode<T>(
        &mut self,
        f: impl FnOnce(&nt_pool::Kernel<'_>) -> Result<T, nt_pool::PoolError>,
    ) -> Result<T, CommandError> {
        let kernel = self.kernel()?;
        let symbols = self.session.symbols.nt(kernel)?;
        Ok(f(&kernel.pool(symbols.as_ref()))?)
    }
}

/// The version that Windows before Vista tells by its build.
fn nt_version(build: u16) -> String {
    let name = match build {
        build if build <= WINDOWS_NT_4 => "4.0",
        build if build <= WINDOWS_2000 => "5.0",
        build if build <= WINDOWS_XP => "5.1",
        _ => "5.2",
    };
    format!("{name} (build {build})")
}
