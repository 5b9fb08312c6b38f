//! Manual pages and completions, made from the same declarations as `--help`.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use clap_complete::Shell;

/// Print the completions of a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kdpool completions bash > ~/.local/share/bash-completion/completions/kdpool
  kdpool completions zsh > ~/.zfunc/_kdpool
  kdpool completions fish > ~/.config/fish/completions/kdpool.fish
  kdpool completions powershell >> $PROFILE")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the manual pages, one for kdpool and one for each of its subcommands.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder for kdpool.1, kdpool-leak.1 and the others; it is made if need be
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) fn completions(arguments: &CompletionsArgs) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::options::command(), "kdpool", &mut script);
    match io::stdout().lock().write_all(&script) {
        // `kdpool completions bash | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS).context("cannot write to standard output"),
    }
}

pub(crate) fn man(arguments: &ManArgs) -> Result<ExitCode> {
    let folder = &arguments.folder;
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    clap_mangen::generate_to(crate::options::command(), folder)
        .with_context(|| format!("cannot write the pages to {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}
