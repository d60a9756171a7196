//! What the command line says of itself to other programs: completions for shells, and manual pages.

use std::{
    fs,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use clap::{Command, CommandFactory as _};
use clap_mangen::Man as Page;

use super::{
    args::{Args, Completions, Man},
    run::finish,
};

/// Prints what has a shell complete the words of a command line.
pub(super) fn completions(wanted: &Completions) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(wanted.shell, &mut Args::command(), "tidegate", &mut script);
    finish(print(&script))
}

/// Prints a manual page, or writes all of them.
pub(super) fn man(wanted: &Man) -> ExitCode {
    finish(match &wanted.directory {
        Some(directory) => fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(Args::command(), directory))
            .with_context(|| format!("cannot write manual pages into {}", directory.display())),
        None => page(wanted.command.as_deref()).and_then(|page| print(&page)),
    })
}

/// The manual page of a command, or of the whole.
fn page(of: Option<&str>) -> anyhow::Result<Vec<u8>> {
    // What is said about `help` helps nobody.
    let mut all = Args::command().disable_help_subcommand(true);
    // Tells each command that it is called `tidegate start`.
    all.build();
    let wanted = match of {
        None => &all,
        Some(name) => all.find_subcommand(name).ok_or_else(|| {
            let shown = all.get_subcommands().filter(|command| !command.is_hide_set());
            let names: Vec<_> = shown.map(Command::get_name).collect();
            anyhow!("there is no command `{name}`, but {}", names.join(", "))
        })?,
    };
    let mut page = Vec::new();
    Page::new(wanted.clone()).render(&mut page).context("cannot write the manual page")?;
    Ok(page)
}

/// Prints to stdout; that nobody reads on is no failure.
fn print(bytes: &[u8]) -> anyhow::Result<()> {
    match io::stdout().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}
