//! Manual pages and completions, made from the same declarations as `--help`, and JSON Schemas, from the types that are
//! written.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use clap_complete::Shell;

use crate::{decode, doctor, setup};

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

/// Write a JSON Schema of each command's result, of a line of --format json, and of what other programs of kdpool print.
#[derive(Debug, Args)]
pub(crate) struct SchemasArgs {
    /// Folder for record.json, poolused.json and the others; it is made if need be
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

pub(crate) fn schemas(arguments: &SchemasArgs) -> Result<ExitCode> {
    let folder = &arguments.folder;
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let programs = [kd_mcp::ANSWER, doctor::SHAPE, setup::SHAPE, decode::SHAPE];
    for shape in kd_shell::shapes().iter().chain(&programs) {
        let file = folder.join(format!("{}.json", shape.name));
        let text = serde_json::to_string_pretty(&shape.schema())? + "\n";
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
