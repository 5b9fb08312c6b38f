//! Call stacks of allocations and frees, as the version's Verifier records them.

use crate::isf::IsfError;
use crate::kernel::builder::Builder;
use crate::kernel::random::Random;
use crate::kernel::truth::LoadedModule;
use crate::kernel::verifier::{TraceLayout, VerifiedDriver};

/// The functions that a record starts with; of each group the first that the version has.
const ALLOCATION: [&[&str]; 2] = [
    &["VfHandlePoolAlloc", "VeAllocatePoolWithTagPriority"],
    &["VerifierExAllocatePoolEx", "VerifierExAllocatePoolWithTag"],
];
const FREE: [&[&str]; 2] = [
    &["VfPtFreePoolNotification", "VfFreePoolNotification"],
    &["ExFreeHeapPool", "ExDeferredFreePool", "ExFreePoolWithTag"],
];

pub(crate) struct Stacks {
    allocation: Vec<u64>,
    free: Vec<u64>,
    /// Base and size of loaded drivers; the verified ones.
    drivers: Vec<(u64, u64)>,
    verified: Vec<(u64, u64)>,
    /// Return addresses in the kernel.
    callers: Vec<u64>,
    depth: u64,
}

impl Stacks {
    pub(crate) fn new(
        builder: &Builder,
        modules: &[LoadedModule],
        drivers: &[VerifiedDriver],
        random: &mut Random,
    ) -> Result<Stacks, IsfError> {
        let mut lead = |groups: [&[&str]; 2]| -> Vec<u64> {
            groups
                .iter()
                .filter_map(|names| names.iter().find_map(|name| builder.symbol(name).ok()))
                .map(|function| function + 0x20 + random.below(0x20))
                .collect()
        };
        let (allocation, free) = (lead(ALLOCATION), lead(FREE));
        let callers = builder
            .isf
            .symbols
            .iter()
            .filter(|(name, _)| {
                let prefix = name.get(..2).unwrap_or_default();
                ["Nt", "Io", "Cm", "Ob", "Se", "Ps"].contains(&prefix) && !name.contains(['@', '?', '`'])
            })
            .map(|(_, symbol)| builder.base + symbol.address + 0x25)
            .collect();
        Ok(Stacks {
            allocation,
            free,
            // Beyond the headers.
            drivers: modules.iter().skip(1).map(|module| (module.base + 0x1000, module.size - 0x1000)).collect(),
            verified: drivers
                .iter()
                .filter_map(|driver| driver.image)
                .map(|(base, size)| (base + 0x1000, size - 0x1000))
                .collect(),
            callers,
            depth: TraceLayout::of(&builder.isf)?.depth as u64,
        })
    }

    pub(crate) fn allocation(&self, random: &mut Random) -> Vec<u64> {
        self.stack(&self.allocation, random)
    }

    pub(crate) fn free(&self, random: &mut Random) -> Vec<u64> {
        self.stack(&self.free, random)
    }

    /// One of a few dozen stacks, of any length: also longer than what a record holds.
    fn stack(&self, lead: &[u64], random: &mut Random) -> Vec<u64> {
        let mut own = Random::new(random.below(40));
        let mut frames = lead.to_vec();
        let drivers = if self.verified.is_empty() || own.once_in(8) { &self.drivers } else { &self.verified };
        for _ in 0..1 + own.below(3) {
            let (base, size) = *own.pick(drivers);
            frames.push(base + own.below(size));
        }
        frames.extend(self.callers(own.below(self.depth + 3), &mut own));
        frames
    }

    /// Return addresses in the kernel.
    pub(crate) fn callers(&self, count: u64, random: &mut Random) -> Vec<u64> {
        (0..count).map(|_| *random.pick(&self.callers)).collect()
    }
}
