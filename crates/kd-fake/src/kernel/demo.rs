//! Machines to hunt a leak on: `myfault.sys` leaks as in the article, another driver gives back what it takes, and on a
//! segment heap a third one leaks small blocks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::isf::{Isf, IsfError};
use crate::kernel::article::{Article, LEAK_BYTES, LEAK_TAG};
use crate::kernel::books::PoolKind;
use crate::kernel::pool::tag;
use crate::kernel::seeded::{SeededOptions, seeded, seeded_identity};
use crate::kernel::{Kernel, SystemCall};

/// The demonstration's Windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DemoWindows {
    /// The article's Windows 7.
    Seven,
    /// Windows 10 2004 on x64.
    Ten,
    /// Windows 11 24H2 on x64.
    Eleven,
}

/// A machine to hunt a leak on, and what goes on in it.
pub struct Demo {
    /// The machine.
    pub kernel: Kernel,
    /// Its symbols; none for the article's, which [`write_symbol_store`](crate::kernel::write_symbol_store) writes.
    pub symbols: Option<Isf>,
    /// The leaking thread's system call, and how often it makes it, for [`FakeOptions::call`](crate::FakeOptions::call).
    pub call: (SystemCall, Duration),
    /// For [`FakeOptions::evolve`](crate::FakeOptions::evolve). Nothing happens before it begins.
    pub activity: crate::Evolve,
    /// Lets the activity begin.
    pub begin: Begin,
}

/// Lets a demonstration's activity begin: when the target has been stopped once, say. What the debugger looks at first
/// is the machine as it was built.
#[derive(Debug, Clone, Default)]
pub struct Begin(Arc<AtomicBool>);

impl Begin {
    /// From the next tick of the clock on.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often the driver leaks a block: some 200 MB a minute.
const LEAK_PERIOD: Duration = Duration::from_millis(300);
/// How often the third driver leaks a small one.
const SMALL_PERIOD: Duration = Duration::from_millis(50);
/// How many it has leaked when the machine is looked at first.
const SMALL_BEFORE: usize = 20;
const SMALL_TAG: u32 = tag(b"LkSm");
const HONEST_TAG: u32 = tag(b"TcpB");
/// Blocks that the honest driver has at most.
const HONEST: usize = 12;
const SEED: u64 = 24;

/// Where a machine keeps what the activity needs.
#[derive(Debug, Clone)]
pub(crate) struct Hunt {
    /// The leaking thread's system call, and the stack of its allocation.
    pub(crate) call: SystemCall,
    pub(crate) stack: Vec<u64>,
    /// The stack of the honest driver's allocations, and stack and thread of its frees.
    pub(crate) honest: Vec<u64>,
    pub(crate) free: (Vec<u64>, u64),
    pub(crate) hit: Hit,
}

/// How a kernel stops at a tag: `nt!PoolHitTag`, and the instruction in its allocator that is a breakpoint then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hit {
    pub(crate) tag: u64,
    pub(crate) instruction: u64,
}

/// Builds the machine. Errors: the carried tables lack something; the tests would not pass then.
pub fn demo(windows: DemoWindows) -> Result<Demo, IsfError> {
    let table = match windows {
        DemoWindows::Seven => None,
        DemoWindows::Ten => Isf::carried("x64-heap"),
        DemoWindows::Eleven => Isf::carried("x64-26100"),
    };
    let (kernel, symbols) = match table {
        None => (Article::default().build(), None),
        Some(table) => {
            let mut table = table?;
            table.identity = seeded_identity(&table, SEED);
            let options = SeededOptions { hunt: true, balanced: true, processors: Some(2), ..SeededOptions::default() };
            let mut kernel = seeded(&table, SEED, &options)?.0;
            for _ in 0..SMALL_BEFORE {
                kernel.allocate_small(SMALL_TAG);
            }
            (kernel, Some(table))
        }
    };
    // Both kinds of machine have it.
    let hunt = kernel.fixed.hunt.clone().ok_or_else(|| IsfError::NoSymbol("PoolHitTag".to_owned()))?;
    let begin = Begin::default();
    let mut cast = Cast::new(hunt, begin.clone());
    let call = (cast.hunt.call, LEAK_PERIOD);
    let activity = Box::new(move |kernel: &mut Kernel, passed| cast.act(kernel, passed));
    Ok(Demo { kernel, symbols, call, activity, begin })
}

/// Who does what, and when the next time.
struct Cast {
    hunt: Hunt,
    begin: Begin,
    since_leak: Duration,
    since_small: Duration,
    borrowed: VecDeque<u64>,
    ticks: u64,
}

impl Cast {
    fn new(hunt: Hunt, begin: Begin) -> Cast {
        Cast {
            hunt,
            begin,
            since_leak: Duration::ZERO,
            since_small: Duration::ZERO,
            borrowed: VecDeque::new(),
            ticks: 0,
        }
    }

    /// A tick of the clock. `passed`: running time since the last one.
    fn act(&mut self, kernel: &mut Kernel, passed: Duration) {
        if !self.begin.has_begun() {
            return;
        }
        self.watch_for_the_tag(kernel);
        self.since_leak += passed;
        while self.since_leak >= LEAK_PERIOD {
            self.since_leak -= LEAK_PERIOD;
            // When the pool is exhausted the driver leaks no more.
            kernel.allocate_large(LEAK_TAG, LEAK_BYTES, PoolKind::Paged, &self.hunt.stack, self.hunt.call.thread);
        }
        self.since_small += passed;
        while self.since_small >= SMALL_PERIOD {
            self.since_small -= SMALL_PERIOD;
            kernel.allocate_small(SMALL_TAG);
        }
        self.honest(kernel);
    }

    /// What it has goes up and down, and is never older than some ticks.
    fn honest(&mut self, kernel: &mut Kernel) {
        self.ticks += 1;
        let wanted = 1 + (self.ticks / 3 % HONEST as u64).abs_diff(HONEST as u64 / 2) as usize;
        while self.borrowed.len() > wanted {
            if let Some(address) = self.borrowed.pop_front() {
                kernel.free_large(address, &self.hunt.free.0, self.hunt.free.1);
            }
        }
        let size = 0x1000 * (1 + self.ticks % 7);
        let stack = &self.hunt.honest;
        self.borrowed.extend(kernel.allocate_large(HONEST_TAG, size, PoolKind::NonPaged, stack, self.hunt.free.1));
    }

    /// The kernel's allocator compares each tag with `nt!PoolHitTag`. Here the instruction behind that comparison is a
    /// breakpoint as long as the tag is the leaking driver's, which is the only one whose calls are executed.
    fn watch_for_the_tag(&self, kernel: &mut Kernel) {
        let Hit { tag, instruction } = self.hunt.hit;
        let mut wanted = [0; 4];
        kernel.read_virtual(tag, &mut wanted);
        let code = if u32::from_le_bytes(wanted) == LEAK_TAG { [0xcc] } else { [0x90] };
        let mut now = [0];
        if kernel.read_virtual(instruction, &mut now) == 1 && now != code {
            kernel.write_virtual(instruction, &code);
        }
    }
}
