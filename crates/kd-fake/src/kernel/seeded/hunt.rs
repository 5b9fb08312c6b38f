//! What a demonstration needs of a seeded machine: the article's driver with its code, and a thread that calls it.

use super::places::Map;
use crate::isf::IsfError;
use crate::kernel::article::{LEAK_BYTES, LEAK_TAG};
use crate::kernel::books::PoolKind;
use crate::kernel::builder::Builder;
use crate::kernel::code::{Call, Frame, Function};
use crate::kernel::demo::{Hit, Hunt};
use crate::kernel::truth::LoadedModule;
use crate::kernel::{Kernel, SystemCall};

/// The driver that leaks, and those that must be there with it.
pub(crate) const DRIVER: &str = "myfault.sys";
pub(crate) const DRIVER_SIZE: u32 = 0x8000;
pub(crate) const LOADED: [&str; 3] = [DRIVER, "tcpip.sys", "leaky.sys"];
/// Special pool, as in the article.
pub(crate) const LEVEL: u64 = 1;
/// Blocks that were leaked before.
const BEFORE: usize = 23;
/// Where calls in the kernel's functions return to, and where there is room for its way out of a system call.
const RETURN: u64 = 0x20;
const EXIT: u64 = 0x60;

/// The way through the kernel, outermost first, without the driver.
pub(crate) struct Path {
    /// System call, and what of the I/O manager leads to the driver.
    outer: [u64; 4],
    /// The verifier's functions.
    inner: [u64; 2],
    allocator: u64,
    hit_tag: u64,
}

impl Path {
    pub(crate) fn of(builder: &Builder) -> Result<Path, IsfError> {
        let symbol = |name| builder.symbol(name);
        Ok(Path {
            outer: [
                symbol("KiSystemServiceCopyEnd")?,
                symbol("NtDeviceIoControlFile")?,
                symbol("IopXxxControlFile")?,
                symbol("IofCallDriver")?,
            ],
            inner: [
                symbol("VerifierExAllocatePoolWithTag")?,
                symbol("VeAllocatePoolWithTagPriority").or_else(|_| symbol("VfHandlePoolAlloc"))?,
            ],
            allocator: symbol("ExAllocatePoolWithTag")?,
            hit_tag: symbol("PoolHitTag")?,
        })
    }

    fn kernel_call(function: u64) -> Call {
        Call { function, return_address: function + RETURN, frame: Frame::Small(0x38) }
    }

    /// What the kernel's image has unwind data for.
    pub(crate) fn functions(&self, base: u64) -> Vec<Function> {
        let function =
            |begin: u64, end: u64, frame| Function { begin: (begin - base) as u32, end: (end - base) as u32, frame };
        let start = self.outer[0];
        let mut functions = vec![
            function(start, start + RETURN + 5, Frame::Trap),
            function(start + EXIT, start + EXIT + 9, Frame::Trap),
        ];
        for &begin in self.outer[1..].iter().chain(&self.inner) {
            functions.push(function(begin, begin + RETURN + 5, Frame::Small(0x38)));
        }
        functions
    }

    /// Writes the code; the driver's functions are where the article has them.
    pub(crate) fn write(
        &self,
        builder: &mut Builder,
        map: &mut Map,
        modules: &[LoadedModule],
        thread: u64,
    ) -> Result<Hunt, IsfError> {
        let base = |name: &str| {
            let module = modules.iter().find(|module| module.name == name);
            module.map(|module| module.base).ok_or_else(|| IsfError::NoSymbol(name.to_owned()))
        };
        let (driver, honest) = (base(DRIVER)?, base("tcpip.sys")?);
        builder.memory.map(driver, DRIVER_SIZE.into());
        let mut calls = vec![Call { frame: Frame::Trap, ..Path::kernel_call(self.outer[0]) }];
        calls.extend(self.outer[1..].iter().map(|function| Path::kernel_call(*function)));
        for (function, returns, frame) in [(0x1400, 0x142f, 0x58), (0x11c0, 0x11f6, 0x38)] {
            let (function, return_address) = (driver + function, driver + returns);
            calls.push(Call { function, return_address, frame: Frame::Small(frame) });
        }
        calls.extend(self.inner.iter().map(|function| Path::kernel_call(*function)));
        builder.calls(&calls, self.allocator, self.outer[0] + EXIT);
        let stack = map.room(0x6000) + 0x6000;
        builder.memory.map(stack - 0x6000, 0x6000);
        let frames: Vec<u64> = calls.iter().rev().map(|call| call.return_address).collect();
        let mut other = frames.clone();
        other.splice(2..4, [honest + 0x2d31]);
        Ok(Hunt {
            call: SystemCall { entry: self.outer[0], thread, stack, user: (0x7ffb_1c2d_4f84, 0x12_e2f8) },
            stack: frames,
            honest: other,
            free: (Vec::new(), thread),
            hit: Hit { tag: self.hit_tag, instruction: self.allocator + 1 },
        })
    }
}

/// What the driver leaked before the debugger came.
pub(crate) fn before(kernel: &mut Kernel, hunt: &Hunt) {
    for _ in 0..BEFORE {
        kernel.allocate_large(LEAK_TAG, LEAK_BYTES, PoolKind::Paged, &hunt.stack, hunt.call.thread);
    }
}
