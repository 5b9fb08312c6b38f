//! What most of the examples begin with: a kernel that stands still, and its symbols.

use std::sync::Arc;
use std::time::Duration;

use kd_target::Halted;
use nt_pool::Kernel;
use nt_symbols::{Http, Reach, Servers, SymbolFile, SymbolPath};

/// The examples' errors are only shown.
pub type Failure = Box<dyn std::error::Error>;

/// How long a target may take to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kernel that stands still until this is dropped, and its symbols.
pub struct Attached {
    /// Its memory, registers and modules.
    pub target: Halted,
    /// Its names and types.
    pub symbols: Arc<dyn SymbolFile>,
}

impl Attached {
    /// Attaches to the kernel behind `connection` (kd's `-k`) and finds its symbols on `symbol_path` (kd's `-y`).
    pub fn new(connection: &str, symbol_path: &str) -> Result<Self, Failure> {
        let target = kd_target::open(connection)?;
        // Which PDB the kernel was built with stands in its image.
        let image = nt_symbols::rsds(&target, target.version().kernel_base)?;
        // A symbol server may take minutes: the target runs meanwhile.
        let running = target.go().map_err(|(_, error)| error)?;
        let servers = Servers::new(Http::default());
        let reach = Reach { servers: Some(&servers), ..Reach::default() };
        let symbols = SymbolPath::parse(symbol_path)?.find_pdb(&image, &reach)?.file;
        let target = running.break_in(PATIENCE).map_err(|(_, error)| error)?;
        Ok(Attached { target, symbols })
    }

    /// The kernel as nt-pool asks it.
    pub fn kernel(&self) -> Kernel<'_> {
        let version = self.target.version();
        Kernel::new(&self.target, self.symbols.as_ref(), version.kernel_base, version.pointer_size(), version.minor)
    }

    /// Lets the machine run for a while, and stops it again.
    pub fn run_for(self, time: Duration) -> Result<Self, Failure> {
        let running = self.target.go().map_err(|(_, error)| error)?;
        std::thread::sleep(time);
        let target = running.break_in(PATIENCE).map_err(|(_, error)| error)?;
        Ok(Attached { target, symbols: self.symbols })
    }
}

/// The command line's words, or how the program is called.
pub fn words<const N: usize>(usage: &str) -> Result<[String; N], Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    words.try_into().map_err(|_| format!("usage: {usage}").into())
}
