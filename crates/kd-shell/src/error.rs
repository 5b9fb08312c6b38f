//! Why a command failed: one line.

use nt_memory::{Fault, ReadError};

use crate::grammar::{ExpressionError, RangeError, ScopeError};
use crate::symbols::NoSymbols;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// kd's words for a word it does not know.
    #[error("Couldn't resolve error at '{}' (no such command; {})", .0.text, .0.hint())]
    UnknownCommand(Unknown),
    /// No command of this name; the nearest ones are known.
    #[error("No export {} found (no such extension; {})", .0.text, .0.hint())]
    UnknownExtension(Unknown),
    /// A command of kd's that this program does not have.
    #[error("kd has {word}, kdpool has not; {nearest}")]
    NotHere {
        /// Its name.
        word: &'static str,
        /// What does the next best thing.
        nearest: &'static str,
    },
    /// It was called in another way than it takes.
    #[error("{0}")]
    Usage(String),
    /// What went wrong, as a sentence.
    #[error("{0}")]
    Failed(String),
    /// It needs a target that stands still.
    #[error("there is no target")]
    NoTarget,
    /// The source of memory is gone, or Ctrl+C was pressed.
    #[error("{0}{advice}", advice = for_fault(.0))]
    Fault(#[from] Fault),
    /// An expression in its arguments.
    #[error(transparent)]
    Expression(ExpressionError),
    /// A range in its arguments.
    #[error(transparent)]
    Range(RangeError),
    /// Memory that it needs.
    #[error(transparent)]
    Read(ReadError),
    /// The pool's books.
    #[error("{0}{advice}", advice = for_pool(.0))]
    Pool(nt_pool::PoolError),
    /// What the target was asked.
    #[error(transparent)]
    Target(kd_target::TargetError),
}

/// What helps at a prompt: libraries tell facts only.
fn for_fault(fault: &Fault) -> &'static str {
    match fault {
        Fault::Running => " (Ctrl+C, or .break)",
        Fault::Lost(_) | Fault::Cancelled => "",
        Fault::Full(_) => " (ask for less at once; --max-memory allows more)",
    }
}

/// The same of what the symbols do not have.
fn for_pool(error: &nt_pool::PoolError) -> &'static str {
    match error {
        nt_pool::PoolError::NoSymbol(_) | nt_pool::PoolError::NoType(_) => {
            "; check the symbol path (.sympath) and .reload"
        }
        _ => "",
    }
}

/// A word that is no command, and what it was probably meant to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    pub text: String,
    pub meant: Option<&'static str>,
}

impl Unknown {
    fn hint(&self) -> String {
        match self.meant {
            Some(name) => format!("did you mean {name}?"),
            None => ".help lists them".into(),
        }
    }
}

impl From<ExpressionError> for CommandError {
    fn from(error: ExpressionError) -> Self {
        match error {
            ExpressionError::Fault(fault) => Self::Fault(fault),
            other => Self::Expression(other),
        }
    }
}

impl From<RangeError> for CommandError {
    fn from(error: RangeError) -> Self {
        match error {
            RangeError::Expression(error) => error.into(),
            other => Self::Range(other),
        }
    }
}

/// A command's failure in the middle of an expression.
impl From<CommandError> for ScopeError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Fault(fault) => Self::Fault(fault),
            CommandError::Read(error) => Self::Hole(error),
            other => Self::Because(other.to_string()),
        }
    }
}

impl From<ScopeError> for CommandError {
    fn from(error: ScopeError) -> Self {
        match error {
            ScopeError::Fault(fault) => Self::Fault(fault),
            ScopeError::Hole(error) => Self::Read(error),
            ScopeError::Because(why) => Self::Failed(why),
        }
    }
}

impl From<NoSymbols> for CommandError {
    fn from(error: NoSymbols) -> Self {
        match error {
            NoSymbols::Fault(fault) => Self::Fault(fault),
            NoSymbols::Missing(why) => Self::Failed(why),
        }
    }
}

impl From<ReadError> for CommandError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Fault(fault) => Self::Fault(fault),
            hole => Self::Read(hole),
        }
    }
}

impl From<nt_pool::PoolError> for CommandError {
    fn from(error: nt_pool::PoolError) -> Self {
        match error {
            nt_pool::PoolError::Fault(fault) => Self::Fault(fault),
            nt_pool::PoolError::Read(error) => error.into(),
            other => Self::Pool(other),
        }
    }
}

impl From<kd_target::TargetError> for CommandError {
    fn from(error: kd_target::TargetError) -> Self {
        match error {
            kd_target::TargetError::Fault(fault) => Self::Fault(fault),
            other => Self::Target(other),
        }
    }
}

impl CommandError {
    /// Whether the statement made no sense, so that kd would drop the rest of its line: nobody knows what was meant.
    /// What makes sense and cannot be done lets the rest be done.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::UnknownCommand(_)
            | Self::UnknownExtension(_)
            | Self::NotHere { .. }
            | Self::Usage(_)
            | Self::Expression(_)
            | Self::Range(_) => true,
            Self::Failed(_) | Self::NoTarget | Self::Fault(_) | Self::Read(_) | Self::Pool(_) | Self::Target(_) => {
                false
            }
        }
    }

    /// Why a part of an answer is missing, when the other parts can still be given; else the error itself.
    pub fn part(self) -> Result<String, Self> {
        match self {
            Self::Read(error) => Ok(error.to_string()),
            Self::Pool(error) => Ok(format!("{error}{}", for_pool(&error))),
            other => Err(other),
        }
    }
}
