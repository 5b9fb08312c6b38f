//! Holds frames until they are due: what the fault and rate layers share.

use std::collections::BTreeMap;
use std::io;

use tokio::time::{Instant, sleep_until};

use crate::{Frame, Link};

/// Frames that may wait in one direction. More are left with the inner link, or make `send` wait.
const LIMIT: usize = 256;

/// A link whose frames are moved when they are due, in both directions. Frames to the target move along whenever
/// the link is polled.
pub(crate) struct DelayLine {
    pub(crate) inner: Box<dyn Link>,
    incoming: Queue,
    outgoing: Queue,
    ended: bool,
}

/// Frames by the time they are due; equal times keep their order.
#[derive(Default)]
pub(crate) struct Queue {
    frames: BTreeMap<(Instant, u64), Frame>,
    counter: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, due: Instant, frame: Frame) {
        self.frames.insert((due, self.counter), frame);
        self.counter += 1;
    }

    pub(crate) fn clear(&mut self) {
        self.frames.clear();
    }

    fn first_due(&self) -> Option<Instant> {
        self.frames.first_key_value().map(|((due, _), _)| *due)
    }

    fn is_due(&self) -> bool {
        self.first_due().is_some_and(|due| due <= Instant::now())
    }
}

impl DelayLine {
    pub(crate) fn new(inner: Box<dyn Link>) -> Self {
        Self { inner, incoming: Queue::default(), outgoing: Queue::default(), ended: false }
    }

    /// The next frame that is due; `admit` puts a frame that arrives into the queue.
    pub(crate) async fn recv(&mut self, mut admit: impl FnMut(Frame, &mut Queue)) -> io::Result<Option<Frame>> {
        loop {
            if self.incoming.is_due() {
                return Ok(self.incoming.frames.pop_first().map(|(_, frame)| frame));
            }
            self.send_due().await?;
            if self.ended && self.incoming.frames.is_empty() {
                return Ok(None);
            }
            let wake = [self.incoming.first_due(), self.outgoing.first_due()].into_iter().flatten().min();
            let listening = !self.ended && self.incoming.frames.len() < LIMIT;
            tokio::select! {
                received = self.inner.recv(), if listening => match received? {
                    Some(Frame::Reopened) => {
                        // What was under way on the old stream is gone with it.
                        self.incoming.clear();
                        self.outgoing.clear();
                        return Ok(Some(Frame::Reopened));
                    }
                    Some(frame) => admit(frame, &mut self.incoming),
                    None => self.ended = true,
                },
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    /// Takes one frame to send; `admit` puts it into the queue.
    pub(crate) async fn send(&mut self, frame: Frame, admit: impl FnOnce(Frame, &mut Queue)) -> io::Result<()> {
        while self.outgoing.frames.len() >= LIMIT {
            if let Some(due) = self.outgoing.first_due() {
                sleep_until(due).await;
            }
            self.send_due().await?;
        }
        admit(frame, &mut self.outgoing);
        self.send_due().await
    }

    async fn send_due(&mut self) -> io::Result<()> {
        while self.outgoing.is_due() {
            let Some(entry) = self.outgoing.frames.first_entry() else { break };
            // Taken off only after it is sent, so that cancelling does not lose it.
            self.inner.send(entry.get().clone()).await?;
            self.outgoing.frames.pop_first();
        }
        Ok(())
    }
}
