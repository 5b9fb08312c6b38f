//! Whether a series of counts grows like a leak: again and again, without setbacks, and not all at once.

/// A setback of more than this share of the growth is none that a leak has.
const SETBACK: f64 = 0.1;
/// The half of the time that has less than this share of the growth makes it a burst.
const LEAST_HALF: f64 = 0.15;

/// What was counted when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) ms: i64,
    pub(crate) value: u64,
}

/// A series, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trend(Vec<Point>);

impl Trend {
    pub(crate) fn of(points: impl IntoIterator<Item = Point>) -> Trend {
        Trend(points.into_iter().collect())
    }

    pub(crate) fn intervals(&self) -> usize {
        self.0.len().saturating_sub(1)
    }

    /// From the first to the last.
    pub(crate) fn net(&self) -> i64 {
        match (self.0.first(), self.0.last()) {
            (Some(first), Some(last)) => last.value.wrapping_sub(first.value) as i64,
            _ => 0,
        }
    }

    /// Intervals in which it grew.
    pub(crate) fn grew(&self) -> usize {
        self.0.windows(2).filter(|pair| pair[1].value > pair[0].value).count()
    }

    pub(crate) fn grew_at_most(&self) -> bool {
        self.grew() * 2 > self.intervals()
    }

    /// The deepest fall from the highest value before.
    pub(crate) fn drawdown(&self) -> u64 {
        let (mut highest, mut deepest) = (0, 0);
        for point in &self.0 {
            highest = point.value.max(highest);
            deepest = (highest - point.value).max(deepest);
        }
        deepest
    }

    pub(crate) fn has_setback(&self) -> bool {
        self.drawdown() as f64 > SETBACK * self.net().max(0) as f64
    }

    /// Both halves of the time have their share of the growth.
    pub(crate) fn is_even(&self) -> bool {
        let (Some(first), Some(last), net) = (self.0.first(), self.0.last(), self.net() as f64) else { return false };
        let half = first.ms + (last.ms - first.ms) / 2;
        let late = (last.value as f64 - self.at(half)) / net;
        net > 0.0 && (LEAST_HALF..=1.0 - LEAST_HALF).contains(&late)
    }

    /// The value at a time, on the line between two points.
    fn at(&self, ms: i64) -> f64 {
        let after = self.0.partition_point(|point| point.ms <= ms);
        let before = self.0[..after].last();
        match (before, self.0.get(after)) {
            (Some(a), Some(b)) if b.ms > a.ms => {
                let share = (ms - a.ms) as f64 / (b.ms - a.ms) as f64;
                a.value as f64 + share * (b.value as f64 - a.value as f64)
            }
            (Some(a), _) => a.value as f64,
            (None, b) => b.map_or(0.0, |point| point.value as f64),
        }
    }

    /// The median of the slopes between any two points (Theil and Sen): units a minute. A burst early or late does not move it.
    pub(crate) fn slope(&self) -> f64 {
        let mut slopes = Vec::new();
        for (i, a) in self.0.iter().enumerate() {
            for b in self.0[i + 1..].iter().filter(|b| b.ms > a.ms) {
                slopes.push((b.value as f64 - a.value as f64) * 60_000.0 / (b.ms - a.ms) as f64);
            }
        }
        if slopes.is_empty() {
            return 0.0;
        }
        slopes.sort_by(f64::total_cmp);
        let middle = slopes.len() / 2;
        match slopes.len() % 2 {
            0 => (slopes[middle - 1] + slopes[middle]) / 2.0,
            _ => slopes[middle],
        }
    }

    /// How much of all that moved was growth, 0 to 1.
    pub(crate) fn steadiness(&self) -> f64 {
        let moved: f64 = self.0.windows(2).map(|pair| pair[0].value.abs_diff(pair[1].value) as f64).sum();
        if moved > 0.0 { (self.net() as f64 / moved).max(0.0) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend(values: &[u64]) -> Trend {
        Trend::of(values.iter().enumerate().map(|(i, value)| Point { ms: 1000 * i as i64, value: *value }))
    }

    #[test]
    fn what_grows_like_a_leak() {
        let like = |values: &[u64]| {
            let trend = trend(values);
            (trend.grew_at_most(), !trend.has_setback(), trend.is_even())
        };
        assert_eq!(like(&[10, 20, 30, 40]), (true, true, true));
        assert_eq!(like(&[10, 10, 20, 20, 30]), (false, true, true));
        assert_eq!(like(&[10, 30, 20, 40]), (true, false, true), "it breathes");
        assert_eq!(like(&[10, 11, 12, 90]), (true, true, false), "a burst");
        assert_eq!(like(&[10, 90, 91, 92]), (true, true, false), "it was loaded");
        assert_eq!(like(&[10, 10, 10]), (false, true, false));
        assert_eq!(like(&[]), (false, true, false));
        assert_eq!(trend(&[0, 1000, 999, 2000]).drawdown(), 1);
    }

    #[test]
    fn slopes_are_those_of_most_of_the_time() {
        assert_eq!(trend(&[0, 10, 20, 30]).slope(), 600.0);
        assert_eq!(trend(&[0, 0, 0, 0, 0, 1000, 1000]).slope(), 0.0);
        assert_eq!((trend(&[5]).slope(), trend(&[5]).steadiness()), (0.0, 0.0));
        assert_eq!((trend(&[0, 10, 5, 15]).steadiness(), trend(&[0, 4]).steadiness()), (0.6, 1.0));
    }
}
