//! Lines with a mind of their own, around one that is good.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kd_link::{BoxFuture, Frame, Link};

/// The numbers of requests.
pub(crate) const READ: u32 = 0x3130;
pub(crate) const CONTINUE2: u32 = 0x313c;
const WRITE_BREAKPOINT: u32 = 0x3134;

/// Whether a request of that number is sent: it stands behind the packet's header.
fn asks(frame: &Frame, api: u32) -> bool {
    matches!(frame, Frame::Bytes(bytes) if bytes.get(16..20) == Some(&api.to_le_bytes()))
}

/// A line that carries nothing to us until it is told to.
pub(crate) struct Deaf {
    pub(crate) link: Box<dyn Link>,
    pub(crate) hears: Arc<AtomicBool>,
}

impl Link for Deaf {
    fn recv(&mut self) -> BoxFuture<'_, std::io::Result<Option<Frame>>> {
        Box::pin(async {
            loop {
                let frame = self.link.recv().await?;
                if frame.is_none() || self.hears.load(Ordering::SeqCst) {
                    return Ok(frame);
                }
            }
        })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, std::io::Result<()>> {
        self.link.send(frame)
    }

    fn describe(&self) -> String {
        self.link.describe()
    }
}

/// A line that brings a panic with it.
pub(crate) struct Poisoned {
    pub(crate) link: Box<dyn Link>,
    /// What is received before.
    pub(crate) good: u32,
}

impl Link for Poisoned {
    fn recv(&mut self) -> BoxFuture<'_, std::io::Result<Option<Frame>>> {
        Box::pin(async {
            let frame = self.link.recv().await;
            self.good = self.good.wrapping_sub(1);
            assert!(self.good != 0, "as it was told");
            frame
        })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, std::io::Result<()>> {
        self.link.send(frame)
    }

    fn describe(&self) -> String {
        self.link.describe()
    }
}

/// A line that loses what the target says to the first breakpoint, its acknowledgement and its answer.
pub(crate) struct Forgetful {
    pub(crate) link: Box<dyn Link>,
    pub(crate) lost: bool,
    pub(crate) deaf: bool,
}

impl Link for Forgetful {
    fn recv(&mut self) -> BoxFuture<'_, std::io::Result<Option<Frame>>> {
        Box::pin(async {
            loop {
                let frame = self.link.recv().await?;
                if frame.is_none() || !self.deaf {
                    return Ok(frame);
                }
            }
        })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, std::io::Result<()>> {
        let is_breakpoint = asks(&frame, WRITE_BREAKPOINT);
        self.deaf = is_breakpoint && !self.lost;
        self.lost |= is_breakpoint;
        self.link.send(frame)
    }

    fn describe(&self) -> String {
        self.link.describe()
    }
}

/// Writes down what passes, for the one who has to understand it.
pub(crate) struct Recorder {
    pub(crate) link: Box<dyn Link>,
    pub(crate) began: Instant,
    pub(crate) story: Arc<Mutex<String>>,
}

impl Recorder {
    fn note(story: &Mutex<String>, began: Instant, arrow: &str, frame: &Frame) {
        let (Frame::Bytes(bytes) | Frame::Datagram { data: bytes, .. }) = frame else { return };
        let (at, shown) = (began.elapsed().as_micros(), format!("{bytes:02x?}"));
        *story.lock().unwrap() += &format!("{at:>9} {arrow} {:>4} {shown:.100}\n", bytes.len());
    }
}

impl Link for Recorder {
    fn recv(&mut self) -> BoxFuture<'_, std::io::Result<Option<Frame>>> {
        Box::pin(async {
            let frame = self.link.recv().await?;
            frame.iter().for_each(|frame| Self::note(&self.story, self.began, "<-", frame));
            Ok(frame)
        })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, std::io::Result<()>> {
        Self::note(&self.story, self.began, "->", &frame);
        self.link.send(frame)
    }

    fn describe(&self) -> String {
        self.link.describe()
    }
}

/// A line that damages the length of a request, so that it promises some hundred bytes more than come: one bit of it, of
/// the first so many requests of one kind.
pub(crate) struct Lengthening {
    pub(crate) link: Box<dyn Link>,
    /// The request's number, and the bit of the length's second byte.
    pub(crate) api: u32,
    pub(crate) bit: u8,
    pub(crate) left: Arc<AtomicUsize>,
}

impl Link for Lengthening {
    fn recv(&mut self) -> BoxFuture<'_, std::io::Result<Option<Frame>>> {
        self.link.recv()
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, std::io::Result<()>> {
        let damages = asks(&frame, self.api)
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let frame = match frame {
            Frame::Bytes(bytes) if damages => {
                let mut bytes = bytes.to_vec();
                // The length is the header's fourth word.
                bytes[7] ^= 1 << self.bit;
                Frame::Bytes(bytes.into())
            }
            frame => frame,
        };
        self.link.send(frame)
    }

    fn describe(&self) -> String {
        self.link.describe()
    }
}

/// A line that carries nothing back any more after the second continue.
pub(crate) struct Parting {
    pub(crate) link: Box<dyn Link>,
    pub(crate) continues: u32,
}

impl Link for Parting {
    fn recv(&mut self) -> BoxFuture<'_, std::io::Result<Option<Frame>>> {
        Box::pin(async {
            loop {
                let frame = self.link.recv().await?;
                if frame.is_none() || self.continues < 2 {
                    return Ok(frame);
                }
            }
        })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, std::io::Result<()>> {
        self.continues += u32::from(asks(&frame, CONTINUE2));
        self.link.send(frame)
    }

    fn describe(&self) -> String {
        self.link.describe()
    }
}

/// A line whose receiver overruns: one byte of some 1,600 is not there.
pub(crate) struct Overrunning {
    pub(crate) link: Box<dyn Link>,
    pub(crate) dice: u64,
}

impl Overrunning {
    fn loses(&mut self) -> bool {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33).is_multiple_of(1600)
    }
}

impl Link for Overrunning {
    fn recv(&mut self) -> BoxFuture<'_, std::io::Result<Option<Frame>>> {
        Box::pin(async {
            Ok(match self.link.recv().await? {
                Some(Frame::Bytes(bytes)) => {
                    Some(Frame::Bytes(bytes.into_iter().filter(|_| !self.loses()).collect::<Vec<_>>().into()))
                }
                other => other,
            })
        })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, std::io::Result<()>> {
        self.link.send(frame)
    }

    fn describe(&self) -> String {
        self.link.describe()
    }
}

/// A line that loses the first so many continues.
pub(crate) struct Losing {
    pub(crate) link: Box<dyn Link>,
    pub(crate) left: u32,
}

impl Link for Losing {
    fn recv(&mut self) -> BoxFuture<'_, std::io::Result<Option<Frame>>> {
        self.link.recv()
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, std::io::Result<()>> {
        if asks(&frame, CONTINUE2) && self.left > 0 {
            self.left -= 1;
            return Box::pin(async { Ok(()) });
        }
        self.link.send(frame)
    }

    fn describe(&self) -> String {
        self.link.describe()
    }
}
