//! Where expressions get names, registers and memory from.

use nt_memory::paging::Physical;
use nt_memory::{Memory, PAGE_SIZE};

use crate::error::CommandError;
use crate::grammar::{Scope, ScopeError};
use crate::kernel::Kernel;
use crate::registers::{self, Registers};
use crate::session::{Debuggee, Session, temporary};
use crate::stack;
use crate::symbols::Names;
use crate::text::Width;
use crate::translation::{View, current_process, read_number};
use crate::typed::{offset_of, read_pointer};

/// Pages that `$vvalid` tries.
const MAX_TRIED: u64 = 1 << 16;

/// A session's names, registers and memory during one expression.
pub(crate) struct Lookup<'s, 'a> {
    pub(crate) debuggee: Debuggee<'a>,
    pub(crate) session: &'s mut Session,
    /// Expressions of one kind in those of the other.
    pub(crate) depth: u32,
    /// Made at the first read.
    view: Option<View<'a>>,
}

impl<'s, 'a> Lookup<'s, 'a> {
    pub(crate) fn new(debuggee: Debuggee<'a>, session: &'s mut Session) -> Self {
        Self { debuggee, session, depth: 0, view: None }
    }

    pub(crate) fn kernel(&self) -> Result<&'a dyn Kernel, CommandError> {
        self.debuggee.kernel()
    }

    pub(crate) fn width(&self) -> Width {
        match self.debuggee {
            Debuggee::Halted(kernel) => kernel.width(),
            Debuggee::None | Debuggee::Lost(_) | Debuggee::Running => Width::Eight,
        }
    }

    /// Memory with the user half of the chosen process.
    pub(crate) fn view(&mut self) -> Result<&View<'a>, CommandError> {
        let view = match self.view.take() {
            Some(view) => view,
            None => View::new(self.kernel()?, &mut self.session.symbols, self.session.process)?,
        };
        Ok(self.view.insert(view))
    }

    fn process(&mut self) -> Result<u64, CommandError> {
        match self.session.process {
            Some(process) => Ok(process),
            None => Ok(current_process(self.kernel()?, &mut self.session.symbols)?),
        }
    }

    fn thread(&self) -> Result<u64, CommandError> {
        let kernel = self.kernel()?;
        Ok(self.session.thread.unwrap_or(self.width().address(kernel.stop().thread)))
    }

    /// A member of a structure of the kernel's.
    fn member(&mut self, object: u64, type_name: &str, member: &str) -> Result<Option<u64>, CommandError> {
        let kernel = self.kernel()?;
        let nt = self.session.symbols.nt(kernel)?;
        let Some(offset) = offset_of(nt.as_ref(), type_name, member) else { return Ok(None) };
        Ok(Some(read_pointer(kernel.memory(), object.wrapping_add(offset), self.width())?))
    }

    /// One of the five words of `nt!KiBugCheckData`: the code, and its parameters.
    fn bug_check(&mut self, index: u64) -> Result<Option<u64>, CommandError> {
        let kernel = self.kernel()?;
        let width = self.width();
        let nt = self.session.symbols.nt(kernel)?;
        let Some(data) = nt.symbol("KiBugCheckData") else { return Ok(None) };
        let at = kernel.base().wrapping_add(data.rva.into()).wrapping_add(index * width.bytes() as u64);
        Ok(Some(read_pointer(kernel.memory(), width.address(at), width)?))
    }

    /// What begins with `$`. `Ok(None)`: no such name.
    fn pseudo(&mut self, name: &str) -> Result<Option<u64>, CommandError> {
        if let Some(number) = temporary(name) {
            return Ok(Some(self.session.temporaries[number]));
        }
        if let Some(number) = name.strip_prefix("$bp").and_then(|number| number.parse::<u32>().ok()) {
            let known = self.session.breakpoints.iter().find(|known| known.number == number);
            return Ok(known.map(|known| known.address.0));
        }
        if let Some(number) = name.strip_prefix("$exr_param").and_then(|number| number.parse::<usize>().ok()) {
            return Ok(self.kernel()?.stop().parameters.get(number).copied());
        }
        match name {
            "$extret" => return Ok(Some(self.session.extension_result)),
            "$exp" => return Ok(Some(self.session.last_value)),
            "$frame" => return Ok(Some(self.session.frame)),
            "$ptrsize" => return Ok(Some(self.width().bytes() as u64)),
            "$pagesize" => return Ok(Some(PAGE_SIZE)),
            _ => {}
        }
        let kernel = self.kernel()?;
        let stop = kernel.stop();
        Ok(match name {
            "$proc" => Some(self.process()?),
            "$thread" if self.session.thread.is_some() => self.session.thread,
            "$peb" => {
                let process = self.process()?;
                self.member(process, "_EPROCESS", "Peb")?
            }
            "$teb" => self.member(self.thread()?, "_KTHREAD", "Teb")?,
            "$tpid" => {
                let process = self.process()?;
                self.member(process, "_EPROCESS", "UniqueProcessId")?
            }
            "$tid" => self.member(self.thread()?, "_ETHREAD", "Cid.UniqueThread")?,
            "$ra" => {
                let state = registers::state(&Registers::read(kernel)?);
                Some(stack::caller(kernel, self.session, state)?.0)
            }
            "$eventip" => Some(stop.program_counter),
            "$scopeip" => registers::value(kernel, "$ip")?,
            "$retreg64" => registers::value(kernel, "$retreg")?,
            "$exr_chance" => Some(u64::from(stop.first_chance)),
            "$exr_code" => Some(stop.code.into()),
            "$exr_numparams" => Some(stop.parameters.len() as u64),
            "$bug_code" => self.bug_check(0)?,
            _ => match name.strip_prefix("$bug_param").and_then(|number| number.parse().ok()) {
                Some(number @ 1..=4) => self.bug_check(number)?,
                _ => registers::value(kernel, name)?,
            },
        })
    }
}

impl Scope for Lookup<'_, '_> {
    fn symbol(&mut self, name: &str) -> Result<Option<u64>, ScopeError> {
        // Without @ only what can hardly be a symbol's name is a register.
        let is_register = name.starts_with('$') || name.len() > 2;
        if is_register && let Some(value) = self.register(name)? {
            return Ok(Some(value));
        }
        let kernel = self.kernel()?;
        let found = Names::new(kernel, &mut self.session.symbols).address_of(name).map_err(CommandError::from);
        match found {
            Ok(Some(address)) => Ok(Some(address)),
            Ok(None) | Err(CommandError::Failed(_)) if !is_register && self.register(name)?.is_some() => {
                self.register(name)
            }
            found => Ok(found?),
        }
    }

    fn register(&mut self, name: &str) -> Result<Option<u64>, ScopeError> {
        let name = name.to_ascii_lowercase();
        if name.starts_with('$') {
            return Ok(self.pseudo(&name)?);
        }
        let kernel = self.kernel()?;
        let value = registers::value(kernel, &name)?;
        // As numbers are: an address of a 32-bit kernel has one form in expressions.
        let is_whole = self.width() == Width::Four && registers::size(kernel.version().machine, &name) == Some(4);
        Ok(value.map(|value| if is_whole { value as i32 as i64 as u64 } else { value }))
    }

    fn read(&mut self, address: u64, size: usize, physical: bool) -> Result<u64, ScopeError> {
        let kernel = self.kernel()?;
        if physical {
            return Ok(read_number(&Physical(kernel), address, size)?);
        }
        let address = self.width().address(address);
        Ok(read_number(self.view()?, address, size)?)
    }

    fn is_readable(&mut self, address: u64, length: u64) -> Result<bool, ScopeError> {
        let width = self.width();
        let view = self.view()?;
        let Some(last) = length.checked_sub(1).and_then(|more| address.checked_add(more)) else {
            return Ok(length == 0);
        };
        if length / PAGE_SIZE > MAX_TRIED {
            return Err(ScopeError::Because(format!("{length:#x} bytes are too many to be tried")));
        }
        let mut at = address;
        loop {
            if view.read(width.address(at), &mut [0])? == 0 {
                return Ok(false);
            }
            match (at | (PAGE_SIZE - 1)).checked_add(1) {
                Some(next) if next <= last => at = next,
                _ => return Ok(true),
            }
        }
    }

    fn typed(&mut self, text: &str) -> Result<u64, ScopeError> {
        Ok(crate::cpp::number(self, text)?)
    }

    fn pointer_size(&self) -> u8 {
        self.width().bytes() as u8
    }

    fn radix(&self) -> u32 {
        self.session.radix
    }
}
