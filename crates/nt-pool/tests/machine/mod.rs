//! kd-fake's machines as a memory source, in this process: it shares no code with this crate.

#![allow(dead_code, reason = "each test uses what it needs of it")]

use std::cell::Cell;
use std::time::Duration;

use kd_fake::kernel::{self, SeededOptions, Truth};
use nt_memory::{Fault, Memory, Search, Spent};
use nt_pool::Kernel;
use nt_pool::selfcheck::{Part, SelfCheck};
use nt_symbols::{Isf, SymbolFile};

/// Bytes of memory that one reply carries.
pub(crate) const REPLY: u64 = 1296;

/// What a request takes here.
const REQUEST: Duration = Duration::from_micros(250);

/// A machine's memory, and what a link would have carried.
pub(crate) struct Machine<'m> {
    machine: &'m kernel::Kernel,
    pub(crate) spent: Cell<Spent>,
}

impl<'m> Machine<'m> {
    pub(crate) fn new(machine: &'m kernel::Kernel) -> Self {
        Machine { machine, spent: Cell::default() }
    }

    fn charge(&self, bytes: usize) {
        let mut spent = self.spent.get();
        spent.requests += (bytes as u64).div_ceil(REPLY).max(1);
        spent.bytes += bytes as u64;
        spent.time += REQUEST;
        self.spent.set(spent);
    }
}

impl Memory for Machine<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let read = self.machine.read_virtual(address, buffer);
        self.charge(read);
        Ok(read)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        self.charge(0);
        Ok(self.machine.search(address, length, pattern).map_or(Search::NotFound, Search::Found))
    }

    fn spent(&self) -> Spent {
        self.spent.get()
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let read = self.machine.read_physical(address, buffer);
        self.charge(read);
        Ok(read)
    }
}

/// A kernel that kd-fake carries, as each of the two sides reads its table.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) symbols: Isf,
    pub(crate) isf: kd_fake::isf::Isf,
}

/// The kernels that kd-fake carries parts of: x86, ARM64, and x64 ones with a segment heap.
pub(crate) fn carried() -> Vec<Table> {
    let read = |(name, json): (&'static str, &[u8])| Table {
        name,
        symbols: Isf::parse(name, json.to_vec()).expect("a table"),
        isf: kd_fake::isf::Isf::from_json(json).expect("a table"),
    };
    kd_fake::isf::CARRIED.into_iter().map(read).collect()
}

/// Runs `f` on a machine that a seed decides.
pub(crate) fn on<T>(
    symbols: &dyn SymbolFile,
    isf: &kd_fake::isf::Isf,
    seed: u64,
    options: &SeededOptions,
    f: impl FnOnce(&Kernel<'_>, &Truth, &Cell<Spent>) -> T,
) -> T {
    let (machine, truth) = kernel::seeded(isf, seed, options).expect("a machine");
    let memory = Machine::new(&machine);
    let facts = machine.facts();
    let kernel = Kernel {
        memory: &memory,
        symbols,
        base: facts.kernel_base,
        pointer_size: isf.machine.pointer() as u8,
        build: facts.build,
    };
    f(&kernel, &truth, &memory.spent)
}

/// The whole self-check.
pub(crate) fn self_check(kernel: &Kernel<'_>, requests: u64) -> SelfCheck {
    let mut check = SelfCheck::new(requests);
    loop {
        match check.step(kernel) {
            Ok(true) => {}
            Ok(false) => return check,
            Err(error) => panic!(
                "{error} after {:?} of {requests}: {:?}",
                check.spent(),
                check.parts.iter().map(describe).collect::<Vec<_>>()
            ),
        }
    }
}

/// A part of it in one line.
pub(crate) fn describe(part: &Part) -> String {
    let differing: Vec<String> = part.checks.iter().filter(|check| !check.ok).map(|check| check.to_string()).collect();
    let missing: Vec<&str> = part.missing.iter().take(3).map(|missing| missing.what.as_str()).collect();
    format!("{}: {}; {differing:?} {:?} {missing:?}", part.subject, part.state().name(), part.limits)
}
