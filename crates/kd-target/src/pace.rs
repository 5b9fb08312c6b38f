//! How fast this link is, measured while it is used.

use std::time::Duration;

/// What the session's reads took so far: the sums of a straight line through (bytes, time).
///
/// A carrier has a time for each request (KDNET: a round trip, whatever is in it) and one for each byte (a serial line:
/// 87 us at 115,200 baud). Small reads alone would say nothing of large ones, so both are fitted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    reads: f64,
    bytes: f64,
    squares: f64,
    seconds: f64,
    products: f64,
}

/// Bytes that go over the wire with a read of nothing: request, reply's header, acknowledgements.
const OVERHEAD: f64 = 150.0;

impl Pace {
    pub(crate) fn add(&mut self, bytes: usize, time: Duration) {
        let (bytes, seconds) = (bytes as f64, time.as_secs_f64());
        self.reads += 1.0;
        self.bytes += bytes;
        self.squares += bytes * bytes;
        self.seconds += seconds;
        self.products += bytes * seconds;
    }

    /// A pace of reads that took so long.
    pub fn of(reads: impl IntoIterator<Item = (usize, Duration)>) -> Pace {
        let mut pace = Pace::default();
        reads.into_iter().for_each(|(bytes, time)| pace.add(bytes, time));
        pace
    }

    /// How long so many requests for so many bytes in all will take; `None` as long as nothing was measured.
    pub fn estimate(&self, requests: u64, bytes: u64) -> Option<Duration> {
        if self.reads < 1.0 {
            return None;
        }
        let (mean, mean_time) = (self.bytes / self.reads, self.seconds / self.reads);
        let spread = self.squares / self.reads - mean * mean;
        let (each, byte) = match spread > 64.0 * 64.0 {
            true => {
                let byte = ((self.products / self.reads - mean * mean_time) / spread).max(0.0);
                ((mean_time - byte * mean).max(0.0), byte)
            }
            // Reads of one size: what of it is the request's and what the bytes' is not known.
            false => {
                let byte = mean_time / (mean + OVERHEAD);
                (byte * OVERHEAD, byte)
            }
        };
        Duration::try_from_secs_f64(each * requests as f64 + byte * bytes as f64).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pace of reads of these sizes, on a line with these times.
    fn pace(sizes: &[usize], each: f64, byte: f64) -> Pace {
        Pace::of(sizes.iter().map(|size| (*size, Duration::from_secs_f64(each + byte * *size as f64))))
    }

    #[test]
    fn the_banner_s_small_reads_tell_of_a_table_s_large_ones() {
        // The article's tag table: 164 KB.
        let table = |pace: Pace, reply: u64| {
            let bytes = 164 << 10;
            pace.estimate(bytes / reply, bytes).unwrap().as_secs_f64()
        };
        let sizes = [8, 16, 4, 256, 8, 96, 512, 8];
        let serial = table(pace(&sizes, 150.0 / 11520.0, 1.0 / 11520.0), 2048);
        assert!((14.0..20.0).contains(&serial), "{serial}");
        let kdnet = table(pace(&sizes, 0.000_25, 0.0), 1024);
        assert!((0.03..0.06).contains(&kdnet), "{kdnet}");
    }

    #[test]
    fn reads_of_one_size_still_give_an_estimate() {
        let serial = pace(&[8; 20], 150.0 / 11520.0, 1.0 / 11520.0);
        let seconds = serial.estimate(1, 2048).unwrap().as_secs_f64();
        assert!((0.15..0.25).contains(&seconds), "{seconds}");
        assert_eq!(Pace::default().estimate(10, 10), None);
        // A link that gets faster with the size, as measured, is none.
        let odd = Pace::of([(4, Duration::from_millis(9)), (4000, Duration::from_millis(1))]);
        assert!(odd.estimate(1, u64::MAX).unwrap() < Duration::from_secs(1));
    }
}
