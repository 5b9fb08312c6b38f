//! A process that takes more than it may. Each test is a child of its own: a limit is for a whole process.

#![allow(clippy::unwrap_used)] // Helpers of tests may panic like tests.

use std::process::{Command, Output};

#[global_allocator]
static HEAP: heap_limit::Heap = heap_limit::Heap;

const LIMIT: usize = 64 << 20;

/// Runs the ignored test `name` alone.
fn child(name: &str) -> Output {
    let program = std::env::current_exe().unwrap();
    Command::new(program).args(["--exact", name, "--ignored", "--nocapture"]).output().unwrap()
}

fn limited() {
    heap_limit::limit(LIMIT, || {
        println!("full at {} MiB", heap_limit::held() >> 20);
        std::process::exit(77);
    })
    .unwrap();
}

#[test]
#[ignore = "run by the test below it"]
fn takes_ever_more() {
    limited();
    let mut all = Vec::new();
    loop {
        all.push(vec![1u8; 1 << 20]);
        println!("took {}", all.len());
    }
}

#[test]
fn what_takes_ever_more_is_stopped_at_the_limit_and_the_guard_ends_it() {
    let output = child("takes_ever_more");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains("took 60\n") && !said.contains("took 64\n"), "{said}");
}

#[test]
#[ignore = "run by the test below it"]
fn takes_all_at_once() {
    limited();
    println!("held {}", vec![0u8; 1 << 40].len());
}

#[test]
fn one_piece_that_is_too_large_is_never_taken() {
    let output = child("takes_all_at_once");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(!said.contains("held"), "{said}");
}

#[test]
#[ignore = "run by the test below it"]
fn gives_back() {
    limited();
    let before = heap_limit::held();
    for round in 0..20 {
        let mut piece = vec![round as u8; 10 << 20];
        piece.resize(20 << 20, 1);
        piece.truncate(1 << 20);
        piece.shrink_to_fit();
    }
    assert!(heap_limit::held() < before + (1 << 20), "{before} {}", heap_limit::held());
    assert!(heap_limit::room_for(LIMIT / 2).is_ok());
    let full = heap_limit::room_for(LIMIT).unwrap_err();
    assert_eq!((full.limit, full.wanted), (LIMIT, LIMIT + LIMIT / 8));
}

#[test]
fn what_was_given_back_can_be_taken_again() {
    let output = child("gives_back");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
