//! `kdpool selfcheck FILE`: a self-check that came with a bug report.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use kd_shell::SelfCheckReport;
use kd_shell::text::visible;

use crate::options::SelfcheckArgs;

pub(crate) fn run(arguments: &SelfcheckArgs) -> Result<ExitCode> {
    let report = SelfCheckReport::read(&arguments.file).map_err(|why| anyhow!(why))?;
    // The file is somebody else's: what is in it does not order the terminal about.
    std::io::stdout().lock().write_all(visible(&report.screen()).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
