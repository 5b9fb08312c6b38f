//! Which pool an allocation was asked from.

use std::fmt;

/// The pool of an allocation, from `POOL_TYPE` (or `POOL_FLAGS`) as it was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PoolKind {
    /// Nonpaged pool whose pages can be executed.
    NonPaged,
    /// Nonpaged pool without execution, from Windows 8 on.
    NonPagedNx,
    /// Paged pool.
    Paged,
    /// A session's nonpaged pool.
    NonPagedSession,
    /// A session's nonpaged pool without execution.
    NonPagedSessionNx,
    /// A session's paged pool.
    PagedSession,
}

impl PoolKind {
    /// `POOL_TYPE`: bit 0 paged, 0x20 session, 0x200 not executable (Windows 8 and later).
    pub fn from_pool_type(pool_type: u32) -> Self {
        Self::of(pool_type & 1 != 0, pool_type & 0x20 != 0, pool_type & 0x200 != 0)
    }

    /// `POOL_FLAGS` of `ExAllocatePool2`: 0x4 session, 0x40 nonpaged, 0x80 nonpaged executable, 0x100 paged. One of the
    /// last three is always set; without them the value is a `POOL_TYPE`, which has no such bits.
    pub fn from_pool_flags(flags: u32) -> Self {
        if flags & 0x1c0 == 0 {
            return Self::from_pool_type(flags);
        }
        Self::of(flags & 0x100 != 0, flags & 0x4 != 0, flags & 0x80 == 0)
    }

    fn of(paged: bool, session: bool, nx: bool) -> Self {
        match (paged, session, nx) {
            (true, false, _) => PoolKind::Paged,
            (true, true, _) => PoolKind::PagedSession,
            (false, false, false) => PoolKind::NonPaged,
            (false, false, true) => PoolKind::NonPagedNx,
            (false, true, false) => PoolKind::NonPagedSession,
            (false, true, true) => PoolKind::NonPagedSessionNx,
        }
    }

    /// The same of a session's own pool.
    pub(crate) fn in_session(self) -> Self {
        match self {
            PoolKind::NonPaged => PoolKind::NonPagedSession,
            PoolKind::NonPagedNx => PoolKind::NonPagedSessionNx,
            PoolKind::Paged => PoolKind::PagedSession,
            session => session,
        }
    }

    /// Whether it may be in a page file.
    pub fn is_paged(self) -> bool {
        matches!(self, PoolKind::Paged | PoolKind::PagedSession)
    }

    /// Whether it is seen from one session only.
    pub fn is_session(self) -> bool {
        matches!(self, PoolKind::NonPagedSession | PoolKind::NonPagedSessionNx | PoolKind::PagedSession)
    }
}

/// kd's words.
impl fmt::Display for PoolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PoolKind::NonPaged | PoolKind::NonPagedNx => "Nonpaged pool",
            PoolKind::Paged => "Paged pool",
            PoolKind::NonPagedSession | PoolKind::NonPagedSessionNx => "Nonpaged session pool",
            PoolKind::PagedSession => "Paged session pool",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::PoolKind::*;
    use super::*;

    /// `_POOL_TYPE` of the Windows 10 symbols.
    #[test]
    fn every_pool_type_has_its_pool() {
        for (pool_type, kind) in [
            (0, NonPaged),
            (1, Paged),
            (2, NonPaged),
            (4, NonPaged),
            (5, Paged),
            (6, NonPaged),
            (0x20, NonPagedSession),
            (0x21, PagedSession),
            (0x25, PagedSession),
            (0x200, NonPagedNx),
            (0x204, NonPagedNx),
            (0x220, NonPagedSessionNx),
        ] {
            assert_eq!(PoolKind::from_pool_type(pool_type), kind, "{pool_type:#x}");
        }
    }

    #[test]
    fn pool_flags_name_the_same_pools() {
        for (flags, kind) in [
            (0x40, NonPagedNx),
            (0x80, NonPaged),
            (0x100, Paged),
            (0x102, Paged),
            (0x104, PagedSession),
            (1, Paged),
            (0x200, NonPagedNx),
        ] {
            assert_eq!(PoolKind::from_pool_flags(flags), kind, "{flags:#x}");
        }
    }
}
