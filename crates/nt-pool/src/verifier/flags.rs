//! The verifier's option bits in kd's words, of which there are two generations: that of Windows 7's debugger and that
//! of 8.1's and later, which lists what the target's version knows.

use crate::build::{WINDOWS_8, WINDOWS_8_1};

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    pub bit: u32,
    pub name: &'static str,
    /// Part of `verifier /standard`; else kd lists it under "additional".
    pub standard: bool,
    pub enabled: bool,
}

/// (bit, name, standard, first build that knows it)
const FLAGS: [(u32, &str, bool, u16); 21] = [
    (0x0, "Automatic Checks", true, 0),
    (0x1, "Special pool", true, 0),
    (0x2, "Force IRQL checking", true, 0),
    (0x8, "Pool tracking", true, 0),
    (0x10, "I/O verification", true, 0),
    (0x20, "Deadlock detection", true, 0),
    (0x80, "DMA checking", true, 0),
    (0x100, "Security checks", true, 0),
    (0x800, "Miscellaneous checks", true, 0),
    (0x2_0000, "DDI compliance checking", true, WINDOWS_8),
    (0x4, "Randomized low resources simulation", false, 0),
    (0x200, "Force pending I/O requests", false, 0),
    (0x400, "IRP logging", false, 0),
    (0x2000, "Invariant MDL checking for stack", false, WINDOWS_8),
    (0x4000, "Invariant MDL checking for driver", false, WINDOWS_8),
    (0x8000, "Power framework delay fuzzing", false, WINDOWS_8),
    (0x4_0000, "Systematic low resources simulation", false, WINDOWS_8_1),
    (0x8_0000, "DDI compliance checking (additional)", false, WINDOWS_8_1),
    (0x20_0000, "NDIS/WIFI verification", false, WINDOWS_8_1),
    (0x80_0000, "Kernel synchronization delay fuzzing", false, WINDOWS_8_1),
    (0x100_0000, "VM switch verification", false, WINDOWS_8_1),
];

const FLAGS_WINDOWS_7: [(u32, &str); 9] = [
    (0x1, "Special pool"),
    (0x2, "Special irql"),
    (0x4, "Inject random low-resource API failures"),
    (0x8, "All pool allocations checked on unload"),
    (0x10, "Io subsystem checking enabled"),
    (0x20, "Deadlock detection enabled"),
    (0x80, "DMA checking enabled"),
    (0x100, "Security checks enabled"),
    (0x800, "Miscellaneous checks enabled"),
];

/// The options that this version knows, standard ones first. The automatic checks (bit 0) are on whenever anything is.
pub fn flags(level: u32, build: u16) -> Vec<Flag> {
    let known = FLAGS.into_iter().filter(|(_, _, _, first)| build >= *first);
    let flag = |(bit, name, standard, _)| Flag { bit, name, standard, enabled: bit & level == bit && level != 0 };
    known.map(flag).collect()
}

/// The lines of Windows 7's debugger: only the options that are on.
pub fn flags_windows_7(level: u32) -> Vec<&'static str> {
    FLAGS_WINDOWS_7.into_iter().filter(|(bit, _)| level & bit != 0).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample of facts/kd-ux.md 3.9, layout A.
    #[test]
    fn level_9bb_has_eight_lines_in_windows_7() {
        assert_eq!(
            flags_windows_7(0x9bb),
            [
                "Special pool",
                "Special irql",
                "All pool allocations checked on unload",
                "Io subsystem checking enabled",
                "Deadlock detection enabled",
                "DMA checking enabled",
                "Security checks enabled",
                "Miscellaneous checks enabled"
            ]
        );
    }

    /// Layout B: all standard options on, none of the additional ones.
    #[test]
    fn the_standard_level_turns_exactly_the_standard_options_on() {
        let flags = flags(0x2_09bb, 9600);
        assert_eq!(flags.len(), 21);
        assert!(flags.iter().all(|flag| flag.enabled == flag.standard));
        assert_eq!(flags.iter().filter(|flag| flag.standard).count(), 10);
    }

    #[test]
    fn an_older_target_lists_only_what_it_knows() {
        let flags = flags(0x8, 7601);
        assert!(flags.iter().all(|flag| flag.bit < 0x2000));
        assert_eq!(flags.iter().filter(|flag| flag.enabled).map(|flag| flag.bit).collect::<Vec<_>>(), [0, 8]);
        assert!(super::flags(0, 7601).iter().all(|flag| !flag.enabled));
    }
}
