//! docs/from-kd.md says what is as in kd, what is not, and what is not there: its rows are typed here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod target;

use target::Live;

const PAGE: &str = include_str!("../../../docs/from-kd.md");

/// What is typed in the rows of a section, and the cells behind it.
fn rows(title: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let section = PAGE.split("\n## ").find(|section| section.starts_with(title)).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let typed = cells[0].split(" · ").map(|typed| typed.trim_matches('`').to_string()).collect();
        (typed, cells[1..].iter().map(|cell| cell.to_string()).collect())
    })
    .collect()
}

#[test]
fn what_is_the_same_works() {
    let mut live = Live::article();
    let mut count = 0;
    for (typed, _) in rows("The same") {
        for line in typed {
            let (screen, failed, _) = live.run(&line);
            // What is caught was meant to fail.
            assert!(!failed && (screen.errors.is_empty() || line.starts_with(".catch")), "{line}: {}", screen.errors);
            count += 1;
        }
    }
    assert!(count > 80, "{count}");
    live.leave();
}

#[test]
fn what_is_different_is_known() {
    let mut live = Live::article();
    let mut rows = rows("Different");
    // What ends the session is typed last.
    rows.sort_by_key(|(typed, _)| typed.contains(&"q".to_string()));
    for (typed, cells) in rows {
        assert_eq!(cells.len(), 2, "{typed:?}");
        for line in typed {
            let (screen, ..) = live.run(&line);
            let unknown = screen.errors.contains("no such command") || screen.errors.contains("no such extension");
            assert!(!unknown || line.starts_with("foo"), "{line}: {}", screen.errors);
            assert!(!screen.text.contains("never"), "{line}");
        }
    }
    // It is let go when it is dropped, if q did not do that.
    drop(live);
}

#[test]
fn what_is_not_here_says_what_comes_nearest() {
    let mut live = Live::article();
    let mut count = 0;
    for (typed, cells) in rows("Not here") {
        for line in typed {
            let (screen, failed, _) = live.run(&line);
            let nearest = cells[0].replace("\\|", "|");
            assert_eq!(screen.errors, format!("kd has {line}, kdpool has not; {nearest}\n"));
            assert!(failed);
            count += 1;
        }
    }
    assert!(count > 120, "{count}");
    live.leave();
}
