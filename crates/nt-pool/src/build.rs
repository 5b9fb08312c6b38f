//! Every Windows build at which something changed that cannot be learned from the target's own symbols.
//!
//! Most of what differs between versions is in the types and names of the symbols, and is taken from there. What is left
//! is here: a rule, not a layout, and the build that it holds from. A rule that can be tried on the target (two readings,
//! of which only one balances) is no build's either, and is not here.
//!
//! To teach kdpool a new build: read what its symbols say, and add a line here only where a rule changed without a name.

/// NT 4.0. This and what follows up to Vista are only named, when such a target is met: nothing of them is read.
pub const WINDOWS_NT_4: u16 = 1381;

/// Windows 2000, NT 5.0.
pub const WINDOWS_2000: u16 = 2195;

/// Windows XP, NT 5.1.
pub const WINDOWS_XP: u16 = 2600;

/// Windows Server 2003 and XP for x64, NT 5.2.
pub const WINDOWS_SERVER_2003: u16 = 3790;

/// Vista, the first that is supported. `KeNumberProcessors` is one byte (facts: SymStore's headers, 6000 to 6002).
pub const WINDOWS_VISTA: u16 = 6000;

/// Windows 7: `KeNumberProcessors` has four bytes (facts: SymStore's headers).
pub const WINDOWS_7: u16 = 7600;

/// Windows 8: kd's tables have other columns for it and later ones, and name the break instruction otherwise (facts:
/// kd-ux); `_KPROCESSOR_STATE` of x86 is aligned to 16 bytes; a block's process is stored hidden by `ExpPoolQuotaCookie` and the header's address (facts 1.6); x64's
/// pool lies at other fixed places (facts 4.1: Rekall); Driver Verifier knows more options (facts 7.3).
pub const WINDOWS_8: u16 = 9200;

/// Windows 8.1: Driver Verifier knows still more options, and keeps a log of systematic low resources (facts 7.3).
pub const WINDOWS_8_1: u16 = 9600;

/// What kd calls Windows 10 begins with its previews.
pub const WINDOWS_10_PREVIEW: u16 = 10000;

/// The first Windows 10: where pool lies is in `MiState`, no longer in variables of its own (facts 4.1, 4.2).
pub const WINDOWS_10: u16 = 10240;

/// 10 1803: the pool can be a segment heap, and is the old one as a rule; `ExpHeapBackedPoolEnabled` (facts 5.1).
pub const WINDOWS_10_1803: u16 = 17134;

/// 10 1809, Server 2019: kd of its time says "Edition build lab" (facts: kd-ux); the pool is a segment heap unless `ExpHeapBackedPoolEnabledState` says otherwise (facts 5.1).
pub const WINDOWS_10_1809: u16 = 17763;

/// 10 1903: the pool is a segment heap, special pool too, whose header is always at its page's start (facts 5.1, 6.2).
pub const WINDOWS_10_1903: u16 = 18362;

/// The first Windows 11: `verifier /dif` turns checks on without a restart (Microsoft's help of verifier.exe).
pub const WINDOWS_11: u16 = 22000;

/// 11 24H2, Server 2025: special pool marks cache-aligned blocks with the bit that meant session pool (facts 6.2). What
/// else is new there (bitmaps of LFH subsegments, signatures of segments, the hash of large allocations, affinity slots)
/// is tried on the target, not decided by this number.
pub const WINDOWS_11_24H2: u16 = 26100;

/// The newest build of which somebody has written down what he measured (segment-heap-measured.md: x64 29671). A newer
/// one is read by its types like any other; nothing is proved for it.
pub const NEWEST_MEASURED: u16 = 29671;

/// Whether nobody has measured a kernel as new as this one.
pub fn is_unproven(build: u16) -> bool {
    build > NEWEST_MEASURED
}
