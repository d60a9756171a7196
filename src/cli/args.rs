//! What can be asked of the program.

use std::path::PathBuf;

/// A reverse proxy that splits traffic between two versions of a service, measures both, and promotes
/// or rolls back by itself.
#[derive(Debug, clap::Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Run the proxy until SIGTERM or SIGINT.
    Run(ConfigFile),
    /// Say what is wrong with a configuration, and start nothing.
    Check(ConfigFile),
    /// Play four rollouts with two demo backends on this machine, in under two minutes.
    Demo(Demo),
}

#[derive(Debug, clap::Args)]
pub(super) struct ConfigFile {
    /// The configuration file (TOML).
    #[arg(long, short, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    pub(super) config: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct Demo {
    /// Leave everything running at the end, to be poked at; Ctrl-C ends it.
    #[arg(long)]
    pub(super) keep: bool,
    /// Print plain lines even where there is a terminal.
    #[arg(long)]
    pub(super) plain: bool,
}
