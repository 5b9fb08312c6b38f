//! Faults of the line between the target and its host, drawn from a seeded generator so that a run can be repeated.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// What goes wrong on the line. Each rate is the chance, 0 to 1, of one message: a datagram, a serial packet of the
/// target, or one piece of what the host sent over a serial line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// Seed of the generator; the same seed over the same traffic makes the same faults.
    pub seed: u64,
    /// It never arrives.
    pub drop: f64,
    /// Not applied to what a serial host sends: such bytes have no borders.
    pub duplicate: f64,
    /// The message is held until the next one passed. Not applied to what a serial host sends.
    pub reorder: f64,
    /// One bit of the message flips. On KDNET this breaks the tag.
    pub corrupt: f64,
    /// Every message waits a random time up to this.
    pub delay: Duration,
    /// KDNET: an old datagram of the session, same sequence, follows a new one.
    pub old_sequence: f64,
    /// KDNET: an offer of another machine with the same key follows an offer. It comes from 127.0.0.99, so this needs a
    /// host at 127.0.0.1 and a system that has the whole loopback network (Linux, Windows).
    pub foreign_offer: f64,
    /// A copy of an earlier reply, in a fresh packet, goes ahead of a reply.
    pub stale_reply: f64,
    /// No breakpoint is taken, as where its page cannot be written.
    pub refuse_breakpoints: bool,
    /// Whether the rates apply to what the target sends.
    pub outbound: bool,
    /// Whether the rates apply to what the host sends.
    pub inbound: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            seed: 1,
            drop: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            corrupt: 0.0,
            delay: Duration::ZERO,
            old_sequence: 0.0,
            foreign_offer: 0.0,
            stale_reply: 0.0,
            refuse_breakpoints: false,
            outbound: true,
            inbound: true,
        }
    }
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// True with this chance.
    pub(crate) fn hit(&mut self, chance: f64) -> bool {
        chance > 0.0 && (self.next() >> 11) as f64 / ((1u64 << 53) as f64) < chance
    }

    fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.next() % limit }
    }
}

/// One direction of the line: messages enter, and leave late, twice, damaged or not at all.
pub(crate) struct Gate<M> {
    dice: Dice,
    /// Whether messages may be doubled and swapped.
    bordered: bool,
    held: Option<M>,
    queue: VecDeque<(Instant, M)>,
}

impl<M: Clone + AsMut<Vec<u8>>> Gate<M> {
    pub(crate) fn new(seed: u64, bordered: bool) -> Gate<M> {
        Gate { dice: Dice::new(seed), bordered, held: None, queue: VecDeque::new() }
    }

    /// Takes a message in. `faults` is `None` when this direction is to be left alone.
    pub(crate) fn push(&mut self, mut message: M, faults: Option<&Faults>) {
        let Some(faults) = faults else {
            self.enqueue(message, Duration::ZERO);
            self.release();
            return;
        };
        if self.dice.hit(faults.drop) {
            return;
        }
        if self.dice.hit(faults.corrupt) {
            let bytes = message.as_mut();
            let bit = self.dice.below(bytes.len() as u64 * 8) as usize;
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
        let wait = Duration::from_nanos(self.dice.below(faults.delay.as_nanos() as u64));
        if self.bordered && self.held.is_none() && self.dice.hit(faults.reorder) {
            self.held = Some(message);
            return;
        }
        if self.bordered && self.dice.hit(faults.duplicate) {
            self.enqueue(message.clone(), wait);
        }
        self.enqueue(message, wait);
        self.release();
    }

    fn enqueue(&mut self, message: M, wait: Duration) {
        // A line keeps its order: nothing overtakes what is already on its way.
        let due = (Instant::now() + wait).max(self.queue.back().map_or_else(Instant::now, |(due, _)| *due));
        self.queue.push_back((due, message));
    }

    fn release(&mut self) {
        if let Some(held) = self.held.take() {
            self.enqueue(held, Duration::ZERO);
        }
    }

    /// When the next message may leave.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.queue.front().map(|(due, _)| *due)
    }

    /// A message whose time has come.
    pub(crate) fn pop(&mut self) -> Option<M> {
        if self.due()? <= Instant::now() { self.queue.pop_front().map(|(_, message)| message) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Debug)]
    struct Bytes(Vec<u8>);

    impl AsMut<Vec<u8>> for Bytes {
        fn as_mut(&mut self) -> &mut Vec<u8> {
            &mut self.0
        }
    }

    fn pass(faults: Faults, bordered: bool) -> Vec<u8> {
        let mut gate = Gate::new(faults.seed, bordered);
        let mut out = Vec::new();
        for number in 0..100 {
            gate.push(Bytes(vec![number]), Some(&faults));
            while let Some(Bytes(bytes)) = gate.pop() {
                out.extend(bytes);
            }
        }
        out
    }

    #[test]
    fn without_faults_everything_passes_in_order() {
        assert_eq!(pass(Faults::default(), true), (0..100).collect::<Vec<u8>>());
    }

    #[test]
    fn each_fault_shows_and_repeats_with_its_seed() {
        let dropped = pass(Faults { drop: 0.3, ..Faults::default() }, true);
        assert!((50..90).contains(&dropped.len()), "{}", dropped.len());
        assert_eq!(dropped, pass(Faults { drop: 0.3, ..Faults::default() }, true));
        assert_ne!(dropped, pass(Faults { drop: 0.3, seed: 2, ..Faults::default() }, true));
        assert!(pass(Faults { duplicate: 0.3, ..Faults::default() }, true).len() > 110);
        assert_eq!(pass(Faults { duplicate: 0.3, reorder: 0.3, ..Faults::default() }, false).len(), 100);
        let swapped = pass(Faults { reorder: 0.3, ..Faults::default() }, true);
        assert!(!swapped.is_sorted());
        assert_ne!(pass(Faults { corrupt: 0.3, ..Faults::default() }, true), (0..100).collect::<Vec<u8>>());
    }
}
