//! Signals: Ctrl+C interrupts, everything that ends a process lets the target run first.

use std::sync::atomic::{AtomicBool, Ordering};

use kd_target::{Interrupt, Leaver};

use crate::CONNECTION_LOST;
use crate::console::complain;

static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether a signal ends the process: its own status is on its way.
pub(crate) fn is_ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// Waits for a signal that ends the process, Ctrl+C included.
pub(crate) async fn any_end() {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = termination() => {}
    }
}

/// Raises `interrupt` at every Ctrl+C for as long as the process lives; on Windows at Ctrl+Break too, which is what
/// programs can send that have their own console.
pub(crate) async fn interrupt_on_ctrl_c(interrupt: Interrupt) {
    #[cfg(windows)]
    let mut on_break = tokio::signal::windows::ctrl_break().ok();
    loop {
        #[cfg(windows)]
        let more = tokio::select! {
            pressed = tokio::signal::ctrl_c() => pressed.is_ok(),
            pressed = async {
                match &mut on_break {
                    Some(on_break) => on_break.recv().await,
                    None => std::future::pending().await,
                }
            } => pressed.is_some(),
        };
        #[cfg(not(windows))]
        let more = tokio::signal::ctrl_c().await.is_ok();
        if !more {
            return;
        }
        interrupt.raise();
    }
}

/// At a signal that ends the process lets the target run, then ends it with the status a shell expects.
pub(crate) async fn leave_on_termination(leaver: Leaver) {
    let signal = termination().await;
    ENDING.store(true, Ordering::SeqCst);
    let left = leaver.leave().await;
    if left.may_stand() {
        complain(&left.to_string());
        std::process::exit(CONNECTION_LOST.into());
    }
    std::process::exit(128 + signal);
}

/// The number of the signal that came.
#[cfg(unix)]
async fn termination() -> i32 {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind: SignalKind| async move {
        match signal(kind) {
            Ok(mut stream) => {
                stream.recv().await;
                kind.as_raw_value()
            }
            // Without a handler the signal ends the process as it always does.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        number = wait(SignalKind::terminate()) => number,
        number = wait(SignalKind::hangup()) => number,
        number = wait(SignalKind::quit()) => number,
    }
}

#[cfg(windows)]
async fn termination() -> i32 {
    use tokio::signal::windows::{ctrl_close, ctrl_shutdown};
    let (Ok(mut close), Ok(mut shutdown)) = (ctrl_close(), ctrl_shutdown()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = close.recv() => {}
        _ = shutdown.recv() => {}
    }
    15
}
