//! What the shell remembers between commands, and what a command gets to see.

use kd_target::Cost;
use nt_memory::Fault;
use nt_pool::pooltag::PoolTags;

use crate::commands::{Breakpoint, KeptLog, Leaks, current_process, temporary};
use crate::error::CommandError;
use crate::grammar::Scope;
use crate::kernel::Kernel;
use crate::log::Log;
use crate::symbols::{Names, NoSymbols, Symbols};
use crate::text::Width;

/// Output as people read it, or as programs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Kd,
    Json,
}

/// The cost of the last command, for `.stats`.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastCommand {
    pub command: String,
    pub cost: Cost,
}

/// How many pseudo-registers of the user's own there are.
pub(crate) const TEMPORARIES: usize = 20;

pub struct Session {
    pub symbols: Symbols,
    pub pool_tags: PoolTags,
    pub log: Log,
    /// Where a memory command goes on when it gets no address.
    pub(crate) next_dump: Option<u64>,
    pub(crate) last_dump: Option<&'static str>,
    /// Where `u` goes on.
    pub(crate) next_code: Option<u64>,
    /// `$t0` to `$t19`.
    pub(crate) temporaries: [u64; TEMPORARIES],
    /// Whether commands may change the target.
    pub allow_write: bool,
    /// What `.process` and `.thread` chose, until the target runs.
    pub(crate) process: Option<u64>,
    pub(crate) thread: Option<u64>,
    pub(crate) breakpoints: Vec<Breakpoint>,
    pub(crate) last_command: LastCommand,
    /// What was read of the verifier's pool log.
    pub(crate) kept_log: KeptLog,
    /// Snapshots of `!leak`, by name.
    pub(crate) leaks: Leaks,
    /// `!leak watch -fail-on` came true.
    pub leak_found: bool,
}

impl Session {
    pub fn new(symbols: Symbols, pool_tags: PoolTags, log: Log) -> Self {
        Self {
            symbols,
            pool_tags,
            log,
            next_dump: None,
            last_dump: None,
            next_code: None,
            temporaries: [0; TEMPORARIES],
            allow_write: false,
            process: None,
            thread: None,
            breakpoints: Vec::new(),
            last_command: LastCommand::default(),
            kept_log: KeptLog::default(),
            leaks: Leaks::default(),
            leak_found: false,
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
    }
}

/// Whether there is somebody to ask.
#[derive(Clone, Copy)]
pub enum Debuggee<'a> {
    None,
    /// The connection is gone, for this reason.
    Lost(&'a str),
    Running,
    Halted(&'a dyn Kernel),
}

impl<'a> Debuggee<'a> {
    fn kernel(self) -> Result<&'a dyn Kernel, CommandError> {
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
    pub debuggee: Debuggee<'a>,
    pub session: &'a mut Session,
    /// The command's word, lower case; families of commands differ by it.
    pub word: &'a str,
    pub arguments: &'a str,
    /// What the session has cost so far.
    pub cost: Cost,
}

impl<'a> Context<'a> {
    /// The kernel, if it stands still.
    pub fn kernel(&self) -> Result<&'a dyn Kernel, CommandError> {
        self.debuggee.kernel()
    }

    pub fn width(&self) -> Width {
        match self.debuggee {
            Debuggee::Halted(kernel) => kernel.width(),
            Debuggee::None | Debuggee::Lost(_) | Debuggee::Running => Width::Eight,
        }
    }

    pub fn names(&mut self) -> Result<Names<'_>, CommandError> {
        Ok(Names::new(self.kernel()?, &mut self.session.symbols))
    }

    /// Names, registers and memory for expressions.
    pub fn scope(&mut self) -> impl Scope + '_ {
        Lookup {
            debuggee: self.debuggee,
            width: self.width(),
            temporaries: self.session.temporaries,
            process: self.session.process,
            thread: self.session.thread,
            symbols: &mut self.session.symbols,
        }
    }

    /// Runs `f` on what nt-pool decodes. The kernel's symbols are needed.
    pub fn pool<T>(
        &mut self,
        f: impl FnOnce(&nt_pool::Kernel<'_>) -> Result<T, nt_pool::PoolError>,
    ) -> Result<T, CommandError> {
        let kernel = self.kernel()?;
        let symbols = self.session.symbols.nt(kernel).map_err(no_symbols)?;
        Ok(f(&kernel.pool(symbols.as_ref()))?)
    }
}

pub(crate) fn no_symbols(error: NoSymbols) -> CommandError {
    match error {
        NoSymbols::Fault(fault) => CommandError::Fault(fault),
        NoSymbols::Missing(why) => CommandError::Failed(why),
    }
}

struct Lookup<'a> {
    debuggee: Debuggee<'a>,
    width: Width,
    temporaries: [u64; TEMPORARIES],
    process: Option<u64>,
    thread: Option<u64>,
    symbols: &'a mut Symbols,
}

impl<'a> Lookup<'a> {
    fn kernel(&self) -> Result<&'a dyn Kernel, String> {
        self.debuggee.kernel().map_err(|error| error.to_string())
    }
}

impl Scope for Lookup<'_> {
    fn symbol(&mut self, name: &str) -> Result<Option<u64>, String> {
        let kernel = self.kernel()?;
        if let Some(value) = crate::registers::value(kernel, name)? {
            return Ok(Some(value));
        }
        Names::new(kernel, self.symbols).address_of(name).map_err(|error| error.to_string())
    }

    fn register(&mut self, name: &str) -> Result<Option<u64>, String> {
        if let Some(number) = temporary(name) {
            return Ok(Some(self.temporaries[number]));
        }
        let kernel = self.kernel()?;
        let chosen = match name.to_ascii_lowercase().as_str() {
            "$thread" => self.thread,
            "$proc" => match self.process {
                None => current_process(kernel, self.symbols).map(Some).map_err(|error| error.to_string())?,
                chosen => chosen,
            },
            _ => None,
        };
        match chosen {
            None => crate::registers::value(kernel, name),
            chosen => Ok(chosen),
        }
    }

    fn read(&mut self, address: u64, size: usize) -> Result<u64, String> {
        let mut bytes = [0; 8];
        let wanted = bytes.get_mut(..size).ok_or("more than 8 bytes")?;
        self.kernel()?.read_exact(address, wanted).map_err(|error| error.to_string())?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn pointer_size(&self) -> u8 {
        self.width.bytes() as u8
    }
}
