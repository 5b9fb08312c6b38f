//! A slow line.

use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

use crate::delay::{DelayLine, Queue};
use crate::{BoxFuture, Frame, Link};

/// Lets bytes through at a rate, each direction for itself, with a latency: models a serial line or a slow network.
pub struct RateLimit {
    line: DelayLine,
    from_target: Meter,
    to_target: Meter,
}

impl RateLimit {
    /// A line of this speed in each direction, with `latency` for each frame on top.
    pub fn new(inner: Box<dyn Link>, bytes_per_second: NonZeroU32, latency: Duration) -> Self {
        let meter = || Meter { bytes_per_second, latency, free_at: None };
        Self { line: DelayLine::new(inner), from_target: meter(), to_target: meter() }
    }

    /// A serial line with 8 data bits and no parity: ten bit times per byte.
    pub fn serial_line(inner: Box<dyn Link>, baud: u32) -> Self {
        Self::new(inner, NonZeroU32::new(baud / 10).unwrap_or(NonZeroU32::MIN), Duration::ZERO)
    }
}

impl Link for RateLimit {
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        let Self { line, from_target, .. } = self;
        Box::pin(line.recv(|frame, queue| from_target.admit(frame, queue)))
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>> {
        let Self { line, to_target, .. } = self;
        Box::pin(line.send(frame, |frame, queue| to_target.admit(frame, queue)))
    }

    fn describe(&self) -> String {
        format!("{} (limited to {} bytes/s)", self.line.inner.describe(), self.from_target.bytes_per_second)
    }
}

struct Meter {
    bytes_per_second: NonZeroU32,
    latency: Duration,
    /// When the line has carried what was put on it.
    free_at: Option<Instant>,
}

impl Meter {
    fn admit(&mut self, frame: Frame, queue: &mut Queue) {
        let length = match &frame {
            Frame::Bytes(data) | Frame::Datagram { data, .. } => data.len(),
            Frame::Reopened => 0,
        };
        let now = Instant::now();
        let start = self.free_at.map_or(now, |free| free.max(now));
        let carried = start + Duration::from_secs_f64(length as f64 / f64::from(self.bytes_per_second.get()));
        self.free_at = Some(carried);
        queue.push(carried + self.latency, frame);
    }
}
