//! How much of memory comes whole in one reply over this line.

use kd_wire::session::LEAST_READ;

/// Replies in a row that came whole before larger ones are tried again.
const TRIED_AGAIN_AFTER: u32 = 16;

/// A serial line that overruns loses one byte of some thousands: of long replies hardly one comes whole, of short ones
/// most. What came damaged again and again is asked for in halves, and in larger pieces again when those come whole.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pieces {
    most: usize,
    largest: usize,
    whole: u32,
}

impl Pieces {
    pub(crate) fn new(largest: usize) -> Self {
        Pieces { most: largest, largest, whole: 0 }
    }

    /// Most bytes to ask for.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    pub(crate) fn came_damaged(&mut self, length: usize) {
        (self.most, self.whole) = ((length / 2).max(LEAST_READ), 0);
    }

    pub(crate) fn came_whole(&mut self, length: usize) {
        if self.most == self.largest || length < self.most {
            return;
        }
        self.whole += 1;
        if self.whole == TRIED_AGAIN_AFTER {
            (self.most, self.whole) = ((self.most * 2).min(self.largest), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_until_it_comes_whole_and_doubles_later() {
        let mut pieces = Pieces::new(3944);
        pieces.came_whole(3944);
        assert_eq!(pieces, Pieces::new(3944));
        for most in [1972, 986, 493, 256, 256] {
            pieces.came_damaged(pieces.most());
            assert_eq!(pieces.most(), most);
        }
        // What is short anyway says nothing.
        (0..100).for_each(|_| pieces.came_whole(8));
        assert_eq!(pieces.most(), 256);
        (0..TRIED_AGAIN_AFTER).for_each(|_| pieces.came_whole(256));
        assert_eq!(pieces.most(), 512);
        (0..1000).for_each(|_| pieces.came_whole(pieces.most()));
        assert_eq!(pieces, Pieces::new(3944));
    }
}
