//! The system's allocator, counted, with an end.

#![allow(unsafe_code)] // The trait of allocators is unsafe; nothing here but its three calls is.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

pub(crate) static HELD: AtomicUsize = AtomicUsize::new(0);
pub(crate) static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// More than [`LIMIT`] was to be held.
static FULL: AtomicBool = AtomicBool::new(false);
static GUARD: OnceLock<Thread> = OnceLock::new();

thread_local! {
    // Neither this nor anything else on the way of an allocation allocates.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

/// The allocator: `#[global_allocator] static HEAP: Heap = Heap;`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heap;

/// From now on this thread is not stopped when the limit is reached: it is needed to end well. What it takes counts.
pub fn exempt_this_thread() {
    EXEMPT.set(true);
}

/// Starts the thread that acts when the limit is reached.
pub(crate) fn guard(when_full: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let twice = || io::Error::new(io::ErrorKind::AlreadyExists, "there is a limit already");
    if GUARD.get().is_some() {
        return Err(twice());
    }
    let guard = std::thread::Builder::new().name("memory guard".into()).spawn(move || {
        exempt_this_thread();
        while !FULL.load(Ordering::SeqCst) {
            std::thread::park();
        }
        when_full();
    })?;
    GUARD.set(guard.thread().clone()).map_err(|_| twice())
}

/// Counts what is about to be taken. An allocator may neither panic nor, on stable Rust, fail without the process being
/// aborted, which would leave a target frozen: so a thread that wants too much waits here for the end.
fn take(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    if held > LIMIT.load(Ordering::Relaxed) {
        full(bytes);
    }
}

/// What the system gives for so many bytes more, which are counted if it does.
fn taken(bytes: usize, allocate: impl FnOnce() -> *mut u8) -> *mut u8 {
    take(bytes);
    let pointer = allocate();
    if pointer.is_null() {
        give(bytes);
    }
    pointer
}

fn give(bytes: usize) {
    HELD.fetch_sub(bytes, Ordering::Relaxed);
}

/// What ending well may take beyond the limit: threads that are started for it are exempt only once they run.
const TO_END: usize = 4 << 20;

#[cold]
fn full(wanted: usize) {
    if !FULL.swap(true, Ordering::SeqCst) {
        LIMIT.fetch_add(TO_END, Ordering::SeqCst);
        if let Some(guard) = GUARD.get() {
            guard.unpark();
        }
    }
    // Thread-local values are gone while a thread ends: it is about to give back what it holds.
    if EXEMPT.try_with(Cell::get).unwrap_or(true) {
        return;
    }
    // This one never gets it.
    give(wanted);
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

// SAFETY: every call is passed to the system's allocator with the layout that came, and its answer is passed back.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        taken(layout.size(), || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        taken(layout.size(), || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // What moves is there twice for a moment. Large pieces, for which that would matter, are moved by their pages.
        // SAFETY: as the caller promises.
        let new = taken(size.saturating_sub(layout.size()), || unsafe { System.realloc(pointer, layout, size) });
        if !new.is_null() {
            give(layout.size().saturating_sub(size));
        }
        new
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) };
        give(layout.size());
    }
}
