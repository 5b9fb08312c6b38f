//! Bytes as the file of a self-check.

use kd_shell::SelfCheckReport;

/// One input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match SelfCheckReport::parse(text) {
        Ok(report) => {
            let screen = report.screen();
            // What a file says never reaches the terminal as it is, and makes no row of its own.
            assert!(screen.lines().filter(|line| line.starts_with("Result: ")).count() <= 1, "{screen:?}");
            assert!(!screen.contains(|c: char| c.is_control() && c != '\n'), "{screen:?}");
        }
        Err(why) => assert!(!why.contains('\x1b'), "{why:?}"),
    }
}
