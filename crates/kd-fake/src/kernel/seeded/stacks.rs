//! Call stacks of allocations and frees, as the version's Verifier records them.

use crate::isf::IsfError;
use crate::kernel::builder::Builder;
use crate::kernel::random::Random;
use crate::kernel::truth::LoadedModule;
use crate::kernel::verifier::{TraceLayout, VerifiedDriver};

/// The functions that a record starts with, innermost first; a version uses those of which it has all.
const ALLOCATION: [&[&str]; 11] = [
    &["VeAllocatePoolWithTagPriority", "VerifierExAllocatePoolEx"],
    &["VeAllocatePoolWithTagPriority", "VerifierExAllocatePoolWithTag"],
    &["VeAllocatePoolWithTagPriority", "VerifierExAllocatePoolWithQuotaTag"],
    &["VeAllocatePoolWithTagPriority", "VerifierExAllocatePool2"],
    &["VfHandlePoolAlloc", "VerifierExAllocatePoolWithTag"],
    &["VfHandlePoolAlloc", "VerifierExAllocatePool2"],
    &["VfHandlePoolAlloc", "VerifierExAllocatePool3"],
    &["VfAllocPoolNotification", "ExAllocatePoolWithTag"],
    &["IovAllocateMdl", "VerifierIoAllocateMdl"],
    &["IovAllocateWorkItem", "VerifierIoAllocateWorkItem"],
    &["ViPostPoolAllocation"],
];
const FREE: [&[&str]; 8] = [
    &["VfFreePoolNotification", "ExDeferredFreePool"],
    &["VfFreePoolNotification", "ExFreePoolWithTag"],
    &["VfFreePoolNotification", "ExFreeHeapPool"],
    &["VfPtFreePoolNotification", "ExFreeHeapPool"],
    &["VfPtFreePoolNotification", "ExFreePoolWithTag"],
    &["ViFreeTrackedPool", "VerifierFreeTrackedPool"],
    &["VerifierExFreePoolWithTag"],
    &["VerifierExFreePool"],
];

pub(crate) struct Stacks {
    allocation: Vec<Vec<u64>>,
    free: Vec<Vec<u64>>,
    /// Base and size of the drivers, loaded and unloaded; the verified ones.
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
        unloaded: &[LoadedModule],
        drivers: &[VerifiedDriver],
    ) -> Result<Stacks, IsfError> {
        let lead = |groups: &[&[&str]]| -> Vec<Vec<u64>> {
            let functions = |names: &&[&str]| names.iter().map(|name| builder.inside(name)).collect::<Option<_>>();
            groups.iter().filter_map(functions).collect()
        };
        let (allocation, free) = (lead(&ALLOCATION), lead(&FREE));
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
            drivers: modules
                .iter()
                .skip(1)
                .chain(unloaded)
                .map(|module| (module.base + 0x1000, module.size - 0x1000))
                .collect(),
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
    fn stack(&self, leads: &[Vec<u64>], random: &mut Random) -> Vec<u64> {
        let mut own = Random::new(random.below(40));
        let mut frames = own.pick(leads).clone();
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

    /// Return addresses in the kernel and in drivers.
    pub(crate) fn mixed(&self, count: u64, random: &mut Random) -> Vec<u64> {
        let mut frame = || match random.once_in(4) {
            true => {
                let (base, size) = *random.pick(&self.drivers);
                base + random.below(size)
            }
            false => *random.pick(&self.callers),
        };
        (0..count).map(|_| frame()).collect()
    }
}
