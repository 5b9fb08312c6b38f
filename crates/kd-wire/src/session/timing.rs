//! How long to wait for an answer, from how long answers took (RFC 6298).

use std::time::Duration;

/// What the estimate may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Before anything was measured.
    pub(super) initial: Duration,
    /// A machine that runs in another one is not always scheduled at once.
    pub(super) floor: Duration,
    /// What waiting again and again grows to.
    pub(super) ceiling: Duration,
}

/// Answers in a row that may have been to a repetition because packets were lost, where a tenth of them is.
const DOUBTS_OF_A_LOSS: u32 = 2;

/// Doublings of the estimate: from a few milliseconds to a good part of the ceiling.
const MOST_DOUBLINGS: u32 = 6;

/// One kind of round trip: a request and its acknowledgement, or that and the reply.
#[derive(Debug, Clone)]
pub(super) struct RoundTrip {
    bounds: Bounds,
    smoothed: Option<Duration>,
    variation: Duration,
    /// Answers since the last sample that may have been to a repetition: the estimate may be too short, and how long they
    /// took cannot be known.
    doubts: u32,
}

impl RoundTrip {
    pub(super) fn new(bounds: Bounds) -> Self {
        RoundTrip { bounds, smoothed: None, variation: Duration::ZERO, doubts: 0 }
    }

    /// A round trip that was not repeated, so that it is certain what answered what (Karn).
    pub(super) fn sample(&mut self, took: Duration) {
        self.doubts = 0;
        let Some(smoothed) = self.smoothed else {
            (self.smoothed, self.variation) = (Some(took), took / 2);
            return;
        };
        let error = smoothed.abs_diff(took);
        self.variation = (self.variation * 3 + error) / 4;
        self.smoothed = Some((smoothed * 7 + took) / 8);
    }

    /// An answer that may be to a repetition. Where a line became slow for good, each packet would be repeated for ever,
    /// and none be measured: what is next waits longer, until one is.
    pub(super) fn doubt(&mut self) {
        self.doubts = (self.doubts + 1).min(DOUBTS_OF_A_LOSS + MOST_DOUBLINGS);
    }

    /// Half of what an answer takes as a rule: one that comes sooner after a repetition answers what was before it.
    pub(super) fn too_soon(&self) -> Duration {
        self.smoothed.unwrap_or_default() / 2
    }

    /// Whether this kind of answer was seen.
    pub(super) fn is_measured(&self) -> bool {
        self.smoothed.is_some()
    }

    /// How long an answer takes at most, as a rule.
    pub(super) fn timeout(&self) -> Duration {
        let Bounds { initial, floor, ceiling } = self.bounds;
        let estimate = self.smoothed.map_or(initial, |smoothed| smoothed + self.variation * 4);
        estimate.clamp(floor, ceiling)
    }

    /// How long to wait after so many repetitions. Two go out at the same pace: one loss is likelier than a slow target.
    pub(super) fn after(&self, repetitions: u32) -> Duration {
        // One in doubt was lost; it takes more of them in a row to say that the line became slow.
        self.doubled(repetitions / 2 + self.doubts.saturating_sub(DOUBTS_OF_A_LOSS))
    }

    /// Growing half as fast: for questions whose answer may well be silence.
    pub(super) fn patiently(&self, repetitions: u32) -> Duration {
        self.doubled(repetitions / 4)
    }

    fn doubled(&self, times: u32) -> Duration {
        self.timeout().saturating_mul(1 << times.min(16)).min(self.bounds.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        initial: Duration::from_millis(200),
        floor: Duration::from_millis(5),
        ceiling: Duration::from_millis(500),
    };

    #[test]
    fn follows_the_wire_between_its_bounds() {
        let mut trip = RoundTrip::new(BOUNDS);
        assert_eq!(trip.timeout(), Duration::from_millis(200));
        for _ in 0..50 {
            trip.sample(Duration::from_micros(200));
        }
        assert_eq!(trip.timeout(), Duration::from_millis(5));
        assert_eq!([0, 1, 2, 3, 4].map(|n| trip.after(n).as_millis()), [5, 5, 10, 10, 20]);
        for _ in 0..50 {
            trip.sample(Duration::from_millis(80));
        }
        assert!((80..120).contains(&trip.timeout().as_millis()), "{trip:?}");
        assert_eq!(trip.after(u32::MAX), Duration::from_millis(500));
        trip.sample(Duration::from_secs(60));
        assert_eq!(trip.timeout(), Duration::from_millis(500));
    }

    #[test]
    fn a_line_that_became_slow_is_waited_for_until_it_is_measured() {
        let mut trip = RoundTrip::new(BOUNDS);
        trip.sample(Duration::from_micros(200));
        assert_eq!(trip.after(0), Duration::from_millis(5));
        for longer in [5, 5, 10, 20, 40, 80, 160, 320, 320] {
            trip.doubt();
            assert_eq!(trip.after(0), Duration::from_millis(longer));
        }
        trip.sample(Duration::from_millis(30));
        assert!((15..80).contains(&trip.after(0).as_millis()), "{trip:?}");
    }
}
