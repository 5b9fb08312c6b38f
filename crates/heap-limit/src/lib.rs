#![doc = include_str!("../README.md")]

mod heap;
mod whole;

use std::io;
use std::sync::atomic::Ordering;

use crate::heap::{HELD, LIMIT};
pub use crate::heap::{Heap, exempt_this_thread};
pub use crate::whole::read_whole;

/// What is kept free below the limit: decoding what one question brought takes some, and so does telling of it.
/// An eighth of the limit, but no more than this.
const MOST_RESERVE: usize = 128 << 20;

/// There is too little room for what was about to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("kdpool holds {} of the {} of memory that it may, and this takes {} more", Size(self.held), Size(self.limit), Size(self.wanted))]
pub struct Full {
    /// Bytes that may be held in all.
    pub limit: usize,
    /// Bytes that are held.
    pub held: usize,
    /// Bytes that were to be held beside, the reserve included.
    pub wanted: usize,
}

impl From<Full> for io::Error {
    fn from(full: Full) -> Self {
        io::Error::new(io::ErrorKind::OutOfMemory, full)
    }
}

/// Bytes in the unit that people think in.
struct Size(usize);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes if bytes >= 10 << 30 || bytes >= 1 << 30 && bytes.is_multiple_of(1 << 30) => {
                write!(f, "{} GiB", bytes >> 30)
            }
            bytes => write!(f, "{} MiB", bytes.div_ceil(1 << 20)),
        }
    }
}

/// Bytes that this process holds on its heap; 0 where [`Heap`] is not its allocator.
pub fn held() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// Whether so many more bytes leave the reserve untouched. What is sized by something that is read, and has more than
/// some hundred kilobytes, asks first; what grows piece by piece asks with 0 on the way.
pub fn room_for(bytes: usize) -> Result<(), Full> {
    let (limit, held) = (LIMIT.load(Ordering::Relaxed), held());
    let wanted = bytes.saturating_add((limit / 8).min(MOST_RESERVE));
    match held.saturating_add(wanted) > limit {
        true => Err(Full { limit, held, wanted }),
        false => Ok(()),
    }
}

/// From now on no more than `bytes` are held. Where more would be, `when_full` is called once on a thread of its own and
/// is to end the process: the threads that wanted more stand still.
///
/// # Errors
///
/// The thread cannot be started, or there is a limit already.
pub fn limit(bytes: usize, when_full: impl FnOnce() + Send + 'static) -> io::Result<()> {
    heap::guard(when_full)?;
    LIMIT.store(bytes, Ordering::SeqCst);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_its_allocator_there_is_no_limit() {
        assert_eq!(held(), 0);
        assert_eq!(room_for(1 << 40), Ok(()));
    }

    #[test]
    fn an_error_says_what_is_held_and_what_may_be() {
        let full = Full { limit: 1 << 30, held: 900 << 20, wanted: 129 << 20 };
        assert_eq!(
            full.to_string(),
            "kdpool holds 900 MiB of the 1 GiB of memory that it may, and this takes 129 MiB more"
        );
        assert_eq!(Size(3 << 29).to_string(), "1536 MiB");
        assert_eq!(io::Error::from(full).kind(), io::ErrorKind::OutOfMemory);
    }
}
