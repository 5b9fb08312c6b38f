//! The times in the page that the kernel shares with user mode. They pass only while the machine runs.

use std::time::Duration;

use crate::isf::IsfError;
use crate::kernel::Kernel;
use crate::kernel::builder::Builder;

/// Of `KUSER_SHARED_DATA`, the same in every kernel.
const INTERRUPT_TIME: u64 = 0x8;
const SYSTEM_TIME: u64 = 0x14;
const TICK_COUNT: u64 = 0x320;
/// `KeTimeIncrement`, in units of 100 ns.
pub(crate) const TICK: u64 = 156_250;

/// What is left of a time after whole units of 100 ns, and where the kernel keeps when it was booted.
pub(crate) struct Clock {
    shared_data: u64,
    boot_time: u64,
    rest: Duration,
}

impl Clock {
    pub(crate) fn new(builder: &Builder) -> Result<Clock, IsfError> {
        let shared_data = builder.isf.machine.shared_data();
        Ok(Clock { shared_data, boot_time: builder.symbol("KeBootTime")?, rest: Duration::ZERO })
    }
}

impl Kernel {
    /// `InterruptTime` of `KUSER_SHARED_DATA`: time since boot in units of 100 ns.
    pub fn interrupt_time(&self) -> u64 {
        self.time(INTERRUPT_TIME)
    }

    /// `SystemTime` of `KUSER_SHARED_DATA`: time since 1601 in units of 100 ns.
    pub fn system_time(&self) -> u64 {
        self.time(SYSTEM_TIME)
    }

    /// Time passes: `InterruptTime`, `SystemTime` and `TickCount` go on.
    pub fn advance(&mut self, time: Duration) {
        self.clock.rest += time;
        let units = (self.clock.rest.as_nanos() / 100) as u64;
        self.clock.rest -= Duration::from_nanos(units * 100);
        let up_time = self.interrupt_time().wrapping_add(units);
        self.set_time(INTERRUPT_TIME, up_time);
        self.set_time(SYSTEM_TIME, self.system_time().wrapping_add(units));
        self.set_time(TICK_COUNT, up_time / TICK);
    }

    /// The machine was switched off for this long and is booted again: another boot time, and an `InterruptTime` that
    /// starts at 0. The rest of its memory stays as it is.
    pub(crate) fn restart(&mut self, off: Duration) {
        self.advance(off);
        let now = self.system_time();
        self.memory.write(self.clock.boot_time, &now.to_le_bytes());
        self.set_time(INTERRUPT_TIME, 0);
        self.set_time(TICK_COUNT, 0);
    }

    /// A `KSYSTEM_TIME`.
    fn time(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(self.clock.shared_data + at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// With the high part a second time, for readers without a lock.
    fn set_time(&mut self, at: u64, value: u64) {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        bytes[8..].copy_from_slice(&((value >> 32) as u32).to_le_bytes());
        self.memory.write(self.clock.shared_data + at, &bytes);
    }
}
