//! Every frame as a `tracing` event.

use std::io;

use crate::{BoxFuture, Frame, Link};

/// Emits an event per frame: sizes at debug level, the bytes in hex at trace level. KDNET datagrams are shown as they
/// are on the wire, enciphered; no key passes here.
pub struct Trace {
    inner: Box<dyn Link>,
}

impl Trace {
    /// Writes what passes `inner` to the log, at level trace.
    pub fn new(inner: Box<dyn Link>) -> Self {
        Self { inner }
    }
}

impl Link for Trace {
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        Box::pin(async {
            let received = self.inner.recv().await;
            match &received {
                Ok(Some(frame)) => report("from target", frame),
                Ok(None) => tracing::debug!(link = self.inner.describe(), "end of stream"),
                Err(error) => tracing::debug!(link = self.inner.describe(), %error, "receive failed"),
            }
            received
        })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            report("to target", &frame);
            self.inner.send(frame).await.inspect_err(|error| {
                tracing::debug!(link = self.inner.describe(), %error, "send failed");
            })
        })
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

fn report(direction: &str, frame: &Frame) {
    let data = match frame {
        Frame::Bytes(data) => {
            tracing::debug!(direction, length = data.len(), "bytes");
            data
        }
        Frame::Datagram { peer, data } => {
            tracing::debug!(direction, %peer, length = data.len(), "datagram");
            data
        }
        Frame::Reopened => return tracing::debug!(direction, "stream opened"),
    };
    if tracing::enabled!(tracing::Level::TRACE) {
        tracing::trace!(direction, hex = hex::encode(data));
    }
}
