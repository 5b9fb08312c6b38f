//! A bad line on purpose.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::delay::{DelayLine, Queue};
use crate::{BoxFuture, Frame, Link};

/// How long a reordered datagram is held, so that later ones pass it.
const REORDER_HOLD: Duration = Duration::from_millis(20);

/// What goes wrong in one direction. Each rate is a probability per frame, from 0.0 to 1.0.
///
/// A datagram is lost, doubled, overtaken, changed in one bit or delayed as a whole. A byte stream cannot double or
/// reorder: there `drop` loses a run of bytes out of the piece, `corrupt` flips one bit, and `delay` holds back
/// everything behind it too.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FaultRates {
    /// It never arrives.
    pub drop: f64,
    /// It arrives twice.
    pub duplicate: f64,
    /// It arrives behind the next one.
    pub reorder: f64,
    /// One bit of it flips.
    pub corrupt: f64,
    /// It waits a while before it goes on.
    pub delay: f64,
    /// A delayed frame waits up to this long.
    pub longest_delay: Duration,
}

/// Drops, doubles, reorders, corrupts and delays frames. The same seed and the same sequence of frames give the same
/// faults.
pub struct Faults {
    line: DelayLine,
    from_target: Injector,
    to_target: Injector,
}

impl Faults {
    /// Puts faults on both directions of `inner`; the same seed over the same traffic makes the same ones.
    pub fn new(inner: Box<dyn Link>, seed: u64, from_target: FaultRates, to_target: FaultRates) -> Self {
        Self {
            line: DelayLine::new(inner),
            from_target: Injector::new("from target", seed, from_target),
            // Another stream of numbers, so that the directions do not fail together.
            to_target: Injector::new("to target", !seed, to_target),
        }
    }
}

impl Link for Faults {
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        let Self { line, from_target, .. } = self;
        Box::pin(line.recv(|frame, queue| from_target.admit(frame, queue)))
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>> {
        let Self { line, to_target, .. } = self;
        Box::pin(line.send(frame, |frame, queue| to_target.admit(frame, queue)))
    }

    fn describe(&self) -> String {
        format!("{} (faults injected)", self.line.inner.describe())
    }
}

struct Injector {
    direction: &'static str,
    rates: FaultRates,
    random: SplitMix64,
    /// When the last byte of the stream is due: later ones may not pass it.
    stream_due: Option<Instant>,
}

impl Injector {
    fn new(direction: &'static str, seed: u64, rates: FaultRates) -> Self {
        Self { direction, rates, random: SplitMix64(seed), stream_due: None }
    }

    fn admit(&mut self, frame: Frame, queue: &mut Queue) {
        // Every decision is drawn for every frame, so that one rate does not change what another does.
        let [drop, duplicate, reorder, corrupt, delay] =
            [self.rates.drop, self.rates.duplicate, self.rates.reorder, self.rates.corrupt, self.rates.delay]
                .map(|rate| self.random.chance(rate));
        let (place, length) = (self.random.next(), self.random.next());
        let wait = self.rates.longest_delay.mul_f64(self.random.fraction());
        let report = |fault: &str| tracing::debug!(direction = self.direction, fault, "fault injected");

        let mut due = Instant::now();
        if delay {
            report("delay");
            due += wait;
        }
        match frame {
            Frame::Reopened => queue.push(due, Frame::Reopened),
            Frame::Bytes(mut data) => {
                if corrupt {
                    report("corrupt");
                    data = flip_bit(&data, place);
                }
                if drop {
                    report("drop");
                    data = cut_run(&data, place, length);
                }
                due = self.stream_due.map_or(due, |last| last.max(due));
                self.stream_due = Some(due);
                if !data.is_empty() {
                    queue.push(due, Frame::Bytes(data));
                }
            }
            Frame::Datagram { peer, mut data } => {
                if drop {
                    report("drop");
                    return;
                }
                if corrupt {
                    report("corrupt");
                    data = flip_bit(&data, place);
                }
                if reorder {
                    report("reorder");
                    due += REORDER_HOLD;
                }
                if duplicate {
                    report("duplicate");
                    queue.push(due, Frame::Datagram { peer, data: data.clone() });
                }
                queue.push(due, Frame::Datagram { peer, data });
            }
        }
    }
}

fn flip_bit(data: &Bytes, place: u64) -> Bytes {
    let mut data = data.to_vec();
    let bits = data.len() as u64 * 8;
    if let Some(bit) = place.checked_rem(bits) {
        data[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
    data.into()
}

fn cut_run(data: &Bytes, place: u64, length: u64) -> Bytes {
    let Some(start) = place.checked_rem(data.len() as u64) else { return Bytes::new() };
    let start = start as usize;
    let run = 1 + (length % (data.len() - start) as u64) as usize;
    [&data[..start], &data[start + run..]].concat().into()
}

/// Vigna's SplitMix64: small, seedable, good enough to choose faults.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0.0 up to, not including, 1.0.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn chance(&mut self, rate: f64) -> bool {
        self.fraction() < rate
    }
}
