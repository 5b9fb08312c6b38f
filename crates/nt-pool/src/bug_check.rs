//! What the bug checks say that pool and Driver Verifier stop with.
//!
//! Parameters are documented at learn.microsoft.com ("Bug Check Code Reference"), one page a code. Codes that are not about
//! pool are not here.

/// What a parameter is, beside its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A block, or an address within one.
    Block,
    /// The code that did it.
    Code,
    /// Where a driver's name lies.
    DriverName,
    /// A number that only Microsoft's description explains.
    Other,
}

/// One parameter in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// What Microsoft's description says of it.
    pub words: String,
    /// What can be done with it.
    pub role: Role,
    /// As the bug check has it.
    pub value: u64,
}

/// A bug check of pool in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BugCheck {
    /// Microsoft's name of the code.
    pub name: &'static str,
    /// What happened, in one sentence.
    pub summary: &'static str,
    /// The four parameters, as far as they mean something.
    pub parameters: Vec<Parameter>,
}

impl BugCheck {
    /// The value of the first parameter with this role; 0 is none.
    pub fn value(&self, role: Role) -> Option<u64> {
        self.parameters.iter().find(|parameter| parameter.role == role).map(|found| found.value).filter(|at| *at != 0)
    }
}

const NOTHING: (&str, Role) = ("", Role::Other);

fn block(words: &str) -> (&str, Role) {
    (words, Role::Block)
}

fn code(words: &str) -> (&str, Role) {
    (words, Role::Code)
}

fn other(words: &str) -> (&str, Role) {
    (words, Role::Other)
}

/// The bug check with this code and these parameters, if it is one of pool's.
pub fn describe(code: u32, parameters: [u64; 4]) -> Option<BugCheck> {
    let (name, (summary, words)) = match code {
        0x19 => ("BAD_POOL_HEADER", bad_pool_header(parameters[0])),
        0xc1 => ("SPECIAL_POOL_DETECTED_MEMORY_CORRUPTION", special_pool(parameters[3])),
        0xc2 => ("BAD_POOL_CALLER", bad_pool_caller(parameters[0])),
        0xc4 => ("DRIVER_VERIFIER_DETECTED_VIOLATION", verifier(parameters[0])?),
        0xc5 => ("DRIVER_CORRUPTED_EXPOOL", access("a driver has damaged the pool's own lists", "IRQL at that time")),
        0xcc => ("PAGE_FAULT_IN_FREED_SPECIAL_POOL", fault("a block of special pool was used after it had been freed")),
        0xcd => {
            ("PAGE_FAULT_BEYOND_END_OF_ALLOCATION", fault("somebody went beyond the end of a block of special pool"))
        }
        0xd0 => ("DRIVER_CORRUPTED_MMPOOL", access("a driver has damaged the pages of pool", "IRQL at that time")),
        0xd5 => (
            "DRIVER_PAGE_FAULT_IN_FREED_SPECIAL_POOL",
            fault("a driver used a block of special pool after it had been freed"),
        ),
        0xd6 => (
            "DRIVER_PAGE_FAULT_BEYOND_END_OF_ALLOCATION",
            fault("a driver went beyond the end of a block of special pool"),
        ),
        0x13a => ("KERNEL_MODE_HEAP_CORRUPTION", heap()),
        _ => return None,
    };
    let parameters = words.iter().zip(parameters).filter(|((words, _), _)| !words.is_empty());
    let parameters = parameters.map(|(&(words, role), value)| Parameter { words: words.into(), role, value }).collect();
    Some(BugCheck { name, summary, parameters })
}

type Words = (&'static str, [(&'static str, Role); 4]);

fn bad_pool_header(kind: u64) -> Words {
    let kind_word = other("what was found");
    match kind {
        0x2 | 0x3 => (
            "the pool's list of free blocks is damaged: something wrote to a block after it had been freed",
            [
                kind_word,
                block("the block that was looked at"),
                block("what was read from it"),
                other("what should be there"),
            ],
        ),
        0x5 => (
            "neighbouring headers do not agree: something wrote beyond the end of a block",
            [kind_word, block("the block that was freed"), block("one of the two headers"), block("the other")],
        ),
        0x20 => (
            "the header of a block is damaged: its size leads to no other block",
            [kind_word, block("the block that should have been found"), block("the next block"), NOTHING],
        ),
        0x21 => (
            "what follows the block is damaged: something wrote beyond its end",
            [
                kind_word,
                block("the block that was freed"),
                other("bytes allocated for it"),
                other("what stands behind it"),
            ],
        ),
        0x22 => (
            "the block that was freed is not in the table of large allocations",
            [kind_word, block("the address that was freed"), NOTHING, NOTHING],
        ),
        _ => (
            "the header of a block of pool is damaged",
            [kind_word, block("the block that was looked at"), block("a block beside it"), NOTHING],
        ),
    }
}

fn special_pool(reason: u64) -> Words {
    let words = |summary| {
        (summary, [block("the block"), other("where the damage is, or reserved"), NOTHING, other("what was found")])
    };
    words(match reason {
        0x20 => "a pool address was freed that does not lie in pool",
        0x21 => "a block of special pool was freed whose header has a size that cannot be",
        0x22 => "an address was freed that is no block's",
        0x23 => "bytes beyond the end of a block of special pool were overwritten",
        0x24 => "bytes before a block of special pool were overwritten",
        _ => "a block of special pool is damaged",
    })
}

fn bad_pool_caller(kind: u64) -> Words {
    let kind_word = other("what was found");
    match kind {
        0x6 | 0x7 => (
            "a block was freed that had been freed before",
            [kind_word, NOTHING, other("what its header holds"), block("the block")],
        ),
        0x8 | 0x9 => (
            "memory was asked for or freed at an IRQL that is too high",
            [kind_word, other("IRQL"), other("pool type"), other("bytes, or the address")],
        ),
        0xa => (
            "a block was freed with a tag that is not its own",
            [kind_word, block("the block"), other("the tag it was allocated with"), other("the tag it was freed with")],
        ),
        0x40 => (
            "an address of user space was freed as pool",
            [kind_word, block("the address"), other("where system space begins"), NOTHING],
        ),
        0x41..=0x43 | 0x46 | 0x47 | 0x99 => (
            "an address was freed that is no block's, or whose header is damaged",
            [kind_word, block("the address that was freed"), NOTHING, NOTHING],
        ),
        0x50 => (
            "an address within a large allocation was freed, not its start",
            [
                kind_word,
                block("the address that was freed"),
                other("its distance from the start, in pages"),
                other("bytes of the allocation"),
            ],
        ),
        0x9b => (
            "memory was asked for with a tag of zero",
            [kind_word, other("pool type"), other("bytes"), code("who asked")],
        ),
        _ => (
            "a driver made a pool request that cannot be",
            [kind_word, other("parameter 2"), other("parameter 3"), other("parameter 4")],
        ),
    }
}

fn verifier(kind: u64) -> Option<Words> {
    let kind_word = other("what was found");
    Some(match kind {
        0x60 => (
            "a driver was unloaded without freeing what it had allocated",
            [kind_word, other("bytes of paged pool"), other("bytes of nonpaged pool"), other("allocations")],
        ),
        0x61 => (
            "a thread of a driver allocated pool while the driver was unloaded",
            [kind_word, other("bytes of paged pool"), other("bytes of nonpaged pool"), other("allocations")],
        ),
        0x62 => (
            "a driver was unloaded without freeing what it had allocated",
            [kind_word, ("its name", Role::DriverName), other("the verifier's record of it"), other("allocations")],
        ),
        0x0..=0x1f => (
            "a driver made a pool request that the verifier does not allow",
            [kind_word, other("parameter 2"), other("parameter 3"), other("parameter 4")],
        ),
        0x13a..=0x13f => (
            "the verifier's own list of a driver's blocks is damaged",
            [kind_word, other("parameter 2"), other("parameter 3"), other("parameter 4")],
        ),
        _ => return None,
    })
}

fn fault(summary: &'static str) -> Words {
    (summary, [block("the address that was used"), other("0 read, 1 write"), code("who used it"), NOTHING])
}

fn access(summary: &'static str, second: &'static str) -> Words {
    (summary, [other("the address that was used"), other(second), other("0 read, 1 write"), code("who used it")])
}

fn heap() -> Words {
    (
        "a segment heap of the kernel's pool is damaged",
        [other("what was found (_HEAP_FAILURE_TYPE)"), other("the heap"), block("where"), NOTHING],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_looked_at_is_known() {
        let double = describe(0xc2, [7, 0x1097, 0x0a04_0003, 0xfffffa80_01234560]).unwrap();
        assert_eq!((double.name, double.value(Role::Block)), ("BAD_POOL_CALLER", Some(0xfffffa80_01234560)));
        let unloaded = describe(0xc4, [0x62, 0xfffffa80_02be4008, 0xfffffa80_02c05060, 23]).unwrap();
        assert_eq!((unloaded.value(Role::DriverName), unloaded.parameters[3].value), (Some(0xfffffa80_02be4008), 23));
        let header = describe(0x19, [0x20, 0xfffffa80_01000000, 0xfffffa80_01000100, 0]).unwrap();
        assert_eq!(header.value(Role::Block), Some(0xfffffa80_01000000));
        let freed = describe(0xd5, [0xfffff980_0157efc0, 0, 0xfffff880_02c62963, 0]).unwrap();
        assert_eq!(
            (freed.value(Role::Block), freed.value(Role::Code)),
            (Some(0xfffff980_0157efc0), Some(0xfffff880_02c62963))
        );
        assert_eq!(
            describe(0x13a, [8, 1, 0xfffffa80_01000010, 0]).unwrap().value(Role::Block),
            Some(0xfffffa80_01000010)
        );
    }

    #[test]
    fn other_bug_checks_are_not_pools() {
        assert_eq!(describe(0x7e, [0; 4]), None);
        assert_eq!(describe(0xc4, [0x91, 0, 0, 0]), None);
        for code in [0x19, 0xc1, 0xc2, 0xc5, 0xcc, 0xcd, 0xd0, 0xd5, 0xd6, 0x13a] {
            for kind in 0..0x200 {
                let described = describe(code, [kind, 1, 2, kind]).unwrap();
                assert!(!described.summary.is_empty() && described.parameters.len() <= 4);
            }
        }
    }
}
