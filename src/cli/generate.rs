//! Shell completions and man pages, from the definitions of the arguments.

use super::failure::{Code, Failure};
use super::output::Out;
use clap::{Args, Command};
use clap_complete::Shell;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc completions bash >~/.local/share/bash-completion/completions/lapce-ipc
  lapce-ipc completions zsh >~/.zfunc/_lapce-ipc
  lapce-ipc completions fish >~/.config/fish/completions/lapce-ipc.fish";

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder for the pages
    folder: PathBuf,
}

/// Prints the completions of a shell.
///
/// # Errors
///
/// If stdout fails.
pub(super) fn completions(cli: &Command, args: &CompletionsArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut visible(cli), "lapce-ipc", &mut text);
    let mut out = Out::new()?;
    out.write(&text)?;
    out.flush()
}

/// Writes the man pages of both programs and all commands.
///
/// # Errors
///
/// If a file cannot be written.
pub(super) fn man(server: &Command, cli: &Command, args: &ManArgs) -> Result<(), Failure> {
    let cli = visible(cli);
    page(&args.folder, server, "ipc_server_main")?;
    page(&args.folder, &cli, "lapce-ipc")?;
    for command in cli.get_subcommands() {
        let name = format!("lapce-ipc-{}", command.get_name());
        page(&args.folder, &command.clone().display_name(name.clone()), &name)?;
    }
    Ok(())
}

/// Without the commands that the program starts itself.
fn visible(command: &Command) -> Command {
    let hidden: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut bare = Command::new("lapce-ipc").version(env!("CARGO_PKG_VERSION"));
    if let Some(about) = command.get_about() {
        bare = bare.about(about.clone());
    }
    if let Some(after) = command.get_after_help() {
        bare = bare.after_help(after.clone());
    }
    bare.args(command.get_arguments().cloned()).subcommands(hidden)
}

fn page(folder: &Path, command: &Command, name: &str) -> Result<(), Failure> {
    let path = folder.join(format!("{name}.1"));
    let failed = |error| Failure::new(Code::Output, format!("cannot write {}: {error}", path.display()));
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name.to_owned()).render(&mut text).map_err(failed)?;
    std::fs::write(&path, text).map_err(failed)
}
