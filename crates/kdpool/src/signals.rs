//! Signals: Ctrl+C interrupts, everything that ends a process lets the target run first.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use kd_target::{Interrupt, Leaver};
use tokio::runtime::Handle;

use crate::console::complain;
use crate::{CONNECTION_LOST, keys};

static ENDING: AtomicBool = AtomicBool::new(false);

/// Something ends the process from outside of the session: nobody else gives it a status.
pub(crate) fn set_ending() {
    ENDING.store(true, Ordering::SeqCst);
}

/// Whether that is so: its own status is on its way.
pub(crate) fn is_ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// One kind of signal, whatever the system calls it.
type Listen = Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<()>> + Send>;

/// What is listened to from the moment this is made. That has to be before a session is on the line: a break-in is on
/// its way at once, and a signal that ended the process then would leave a target that stands.
pub(crate) struct Signals {
    interrupts: Vec<Listen>,
    /// With the numbers that a shell adds to 128.
    ends: Vec<(i32, Listen)>,
}

impl Signals {
    /// One that cannot be listened to does what it always does. `runtime` is the one whose tasks wait for them.
    #[cfg(unix)]
    pub(crate) fn listen(runtime: &Handle) -> Signals {
        use tokio::signal::unix::{SignalKind, signal};
        let _inside = runtime.enter();
        let listen = |kind| -> Option<Listen> {
            let mut stream = signal(kind).ok()?;
            Some(Box::new(move |context| stream.poll_recv(context)))
        };
        let ends = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        Signals {
            interrupts: listen(SignalKind::interrupt()).into_iter().collect(),
            ends: ends.into_iter().filter_map(|kind| Some((kind.as_raw_value(), listen(kind)?))).collect(),
        }
    }

    /// Ctrl+Break interrupts as well: it is what programs can send that have their own console.
    #[cfg(windows)]
    pub(crate) fn listen(runtime: &Handle) -> Signals {
        use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};
        const TERMINATED: i32 = 15;
        let _inside = runtime.enter();
        let (mut interrupts, mut ends): (Vec<Listen>, Vec<(i32, Listen)>) = (Vec::new(), Vec::new());
        if let Ok(mut stream) = ctrl_c() {
            interrupts.push(Box::new(move |context| stream.poll_recv(context)));
        }
        if let Ok(mut stream) = ctrl_break() {
            interrupts.push(Box::new(move |context| stream.poll_recv(context)));
        }
        if let Ok(mut stream) = ctrl_close() {
            ends.push((TERMINATED, Box::new(move |context| stream.poll_recv(context))));
        }
        if let Ok(mut stream) = ctrl_shutdown() {
            ends.push((TERMINATED, Box::new(move |context| stream.poll_recv(context))));
        }
        Signals { interrupts, ends }
    }

    /// Waits for a signal that ends the process, Ctrl+C included.
    pub(crate) async fn any_end(mut self) {
        poll_fn(|context| {
            let all = self.interrupts.iter_mut().chain(self.ends.iter_mut().map(|(_, listen)| listen));
            if all.map(|listen| listen(context)).any(|came| came == Poll::Ready(Some(()))) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// For as long as the process lives: Ctrl+C raises `interrupt`; what ends the process lets the target run before,
    /// and gives it the status that a shell expects.
    pub(crate) fn serve(self, runtime: &Handle, interrupt: Interrupt, leaver: Leaver) {
        let Signals { mut interrupts, mut ends } = self;
        runtime.spawn(async move {
            loop {
                poll_fn(|context| {
                    let came = interrupts.iter_mut().any(|listen| listen(context) == Poll::Ready(Some(())));
                    if came { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                interrupt.raise();
            }
        });
        runtime.spawn(async move {
            let number = poll_fn(|context| {
                let came = ends
                    .iter_mut()
                    .find_map(|(number, listen)| (listen(context) == Poll::Ready(Some(()))).then_some(*number));
                came.map_or(Poll::Pending, Poll::Ready)
            })
            .await;
            leave(leaver, number).await;
        });
    }
}

/// Lets the target run, then ends the process.
async fn leave(leaver: Leaver, signal: i32) {
    set_ending();
    let left = leaver.leave().await;
    keys::restore();
    if left.may_stand() {
        complain(&left.to_string());
        std::process::exit(CONNECTION_LOST.into());
    }
    std::process::exit(128 + signal);
}
