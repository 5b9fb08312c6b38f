//! Names of a hunt's stacks, looked for while the target runs: a symbol server may take its time, and the target need not
//! stand still for it.

use nt_leaks::{CheckReport, Mark, PdbName};
use nt_memory::Fault;

use crate::error::CommandError;
use crate::session::Session;
use crate::shell::Drive;
use crate::symbols::{Later, with_offset};
use crate::text::visible_name;

/// The modules that a hunt's stacks lead to, as far as they were looked for.
#[derive(Default)]
pub(super) struct Naming {
    modules: Vec<Later>,
    /// Some of them got names since frames were given theirs.
    changed: bool,
}

impl Naming {
    /// Before anything is read: the symbols of the kernel, without which nothing can be, and of its verifier, by whose
    /// names records are told apart. The target stands again then. True: it stopped by itself.
    pub(super) fn begin(drive: &mut Drive<'_>) -> Result<bool, CommandError> {
        let wanted = drive.with(|context| {
            let kernel = context.kernel()?;
            let symbols = &context.session.symbols;
            let mut wanted: Vec<Later> = symbols.nt_later(kernel)?.into_iter().collect();
            if !wanted.is_empty() {
                let drivers = kernel.drivers()?.drivers;
                for driver in drivers.iter().filter(|driver| driver.file.eq_ignore_ascii_case("VerifierExt.sys")) {
                    wanted.extend(symbols.later(kernel, driver)?);
                }
            }
            Ok::<_, CommandError>(wanted)
        })?;
        if wanted.is_empty() {
            return Ok(false);
        }
        drive.go()?;
        drive.with(|context| wanted.iter().try_for_each(|later| context.session.symbols.fetch(later)))?;
        if drive.run_for(std::time::Duration::ZERO)? {
            return Ok(true);
        }
        drive.break_in()?;
        Ok(false)
    }

    /// While the target stands: what modules export that have no symbol file.
    pub(super) fn export_names(&mut self, drive: &mut Drive<'_>) -> Result<(), CommandError> {
        drive.with(|context| {
            let kernel = context.kernel()?;
            for later in &self.modules {
                if context.session.symbols.lacks_exports(later) {
                    context.session.symbols.export_names(kernel, later)?;
                    self.changed = true;
                }
            }
            Ok(())
        })
    }

    /// While it runs: looks for the symbols of modules that stacks of the last stop lead to.
    pub(super) fn fetch(&mut self, drive: &mut Drive<'_>) -> Result<(), Fault> {
        drive.with(|context| {
            let symbols = &mut context.session.symbols;
            for later in symbols.take_later() {
                symbols.fetch(&later)?;
                self.modules.push(later);
                self.changed = true;
            }
            Ok(())
        })
    }

    /// Whether there are names that frames lack.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Names the frames of a mark.
    pub(super) fn mark(&self, session: &Session, mark: &mut Mark) {
        nt_leaks::name_mark(mark, &mut |pdb, rva| self.name(session, pdb, rva));
    }

    /// Names the frames of a report.
    pub(super) fn report(&self, session: &Session, report: &mut CheckReport) {
        nt_leaks::name_report(report, &mut |pdb, rva| self.name(session, pdb, rva));
    }

    fn name(&self, session: &Session, pdb: &PdbName, rva: u32) -> Option<String> {
        let later = self.modules.iter().find(|later| later.is_of(&pdb.file, &pdb.guid, pdb.age))?;
        let symbol = session.symbols.found(later)?.around(rva).0?;
        Some(with_offset(visible_name(&symbol.name), (rva - symbol.rva).into()))
    }
}
