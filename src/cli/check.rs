//! `tidegate check`.

use std::process::ExitCode;

use super::{EXIT_CONFIG, args::ConfigFile};
use crate::config::{
    Config,
    diagnostic::{self, Diagnostic},
    load,
};

/// Says what is wrong with a configuration.
pub(super) fn check(args: &ConfigFile) -> ExitCode {
    let Some(config) = load(args) else { return ExitCode::from(EXIT_CONFIG) };
    let Config { services, routes, listeners, .. } = &config;
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    #[expect(clippy::print_stdout, reason = "this is the answer")]
    {
        println!(
            "{}: fine ({}, {}, {})",
            args.config.display(),
            count(listeners.len(), "listener"),
            count(routes.len(), "route"),
            count(services.len(), "service"),
        );
    }
    ExitCode::SUCCESS
}

/// Loads a configuration, and prints what is to be said about it; nothing if it is wrong.
pub(super) fn load(args: &ConfigFile) -> Option<Config> {
    match load::load(&args.config) {
        Ok((config, warnings)) => {
            print(&warnings);
            Some(config)
        }
        Err(errors) => {
            print(&errors);
            None
        }
    }
}

#[expect(clippy::print_stderr, reason = "this is where complaints go")]
fn print(diagnostics: &[Diagnostic]) {
    if !diagnostics.is_empty() {
        eprintln!("{}", diagnostic::render(diagnostics));
    }
}
