//! The verifier's option bits in kd's words, of which there are two generations: that of Windows 7's debugger and that
//! of 8.1's and later, which lists what the target's version knows.

use crate::build::{WINDOWS_8, WINDOWS_8_1, WINDOWS_10};

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Its value in the level; 0 for what is always on.
    pub bit: u32,
    /// As kd prints it.
    pub name: &'static str,
    /// Part of `verifier /standard`; else kd lists it under "additional".
    pub standard: bool,
    /// It is set in the level that was asked about.
    pub enabled: bool,
}

/// (bit, name, standard, first build that knows it)
const FLAGS: [(u32, &str, bool, u16); 24] = [
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
    (0x1_0000, "Port/miniport interface checking", false, WINDOWS_10),
    (0x4_0000, "Systematic low resources simulation", false, WINDOWS_8_1),
    (0x8_0000, "DDI compliance checking (additional)", false, WINDOWS_8_1),
    // Today's debuggers list it; what it is for is nowhere said.
    (0x10_0000, "(not documented)", false, WINDOWS_10),
    (0x20_0000, "NDIS/WIFI verification", false, WINDOWS_8_1),
    (0x80_0000, "Kernel synchronization delay fuzzing", false, WINDOWS_8_1),
    (0x100_0000, "VM switch verification", false, WINDOWS_8_1),
    (0x200_0000, "Code integrity checks", false, WINDOWS_10),
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

/// The options that this version knows, standard ones first, and last those that are set and have no name. The automatic checks (bit 0) are on whenever anything is.
pub fn flags(level: u32, build: u16) -> Vec<Flag> {
    let known = FLAGS.into_iter().filter(|(_, _, _, first)| build >= *first);
    let flag = |(bit, name, standard, _)| Flag { bit, name, standard, enabled: bit & level == bit && level != 0 };
    let mut flags: Vec<Flag> = known.map(flag).collect();
    let named = flags.iter().fold(0, |named, flag| named | flag.bit);
    let bits = (0..u32::BITS).map(|bit| 1 << bit);
    flags.extend(bits.filter(|bit| level & !named & bit != 0).map(unknown));
    flags
}

/// A bit that is set and has no name here. Bit 6 turns itself on with the checks of I/O.
fn unknown(bit: u32) -> Flag {
    let name = if bit == 0x40 { "Enhanced I/O verification (automatic)" } else { "Unknown option" };
    Flag { bit, name, standard: false, enabled: true }
}

/// The lines of Windows 7's debugger: only the options that are on.
pub fn flags_windows_7(level: u32) -> Vec<&'static str> {
    FLAGS_WINDOWS_7.into_iter().filter(|(bit, _)| level & bit != 0).map(|(_, name)| name).collect()
}

/// Bits that are set and that Windows 7's debugger has no line for.
pub fn unnamed_windows_7(level: u32) -> impl Iterator<Item = u32> {
    let named = FLAGS_WINDOWS_7.into_iter().fold(0, |named, (bit, _)| named | bit);
    (0..u32::BITS).map(|bit| 1 << bit).filter(move |bit| level & !named & bit != 0)
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

    #[test]
    fn bits_without_a_name_have_a_line_each() {
        let unknown = |level, build| {
            let flags = super::flags(level, build).into_iter();
            flags.filter(|flag| flag.name == "Unknown option").map(|flag| flag.bit).collect::<Vec<_>>()
        };
        assert_eq!(unknown(0x4400_0008, 19041), [0x400_0000, 0x4000_0000]);
        assert_eq!(unknown(0x2_0008, 7601), [0x2_0000]);
        assert!(unknown(0x2_09bb, 9600).is_empty());
        assert_eq!(super::unnamed_windows_7(0x8000_0048).collect::<Vec<_>>(), [0x40, 0x8000_0000]);
        assert!(super::flags(0x48, 7601).iter().any(|flag| flag.bit == 0x40 && flag.enabled));
    }
}
