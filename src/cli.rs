//! The command line: what can be asked of the program, and what it answers and exits with.

mod args;
mod check;
mod manual;
mod operate;
mod plan;
mod replay;
mod run;
mod simulate;
mod token;
mod traffic;

use std::process::ExitCode;

use clap::Parser as _;

pub use self::args::Args;

/// The command line makes no sense (`EX_USAGE` of sysexits). Not clap's 2: with `--wait` that is an answer.
pub const EXIT_USAGE: u8 = 64;
/// The configuration is wrong (`EX_CONFIG`).
pub const EXIT_CONFIG: u8 = 78;

/// Parses the command line, does what it says, and returns the exit code: 0 when all went well, 1
/// when something failed, 64 for a command line that makes no sense, 78 for a wrong configuration.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(said) => {
            // Whoever has stopped reading wants no more.
            let _gone = said.print();
            return ExitCode::from(if said.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    match args.command {
        args::Command::Run(config) => run::run(&config),
        args::Command::Check(config) => check::check(&config),
        args::Command::Completions(wanted) => manual::completions(&wanted),
        args::Command::Demo(demo) => run::finish(crate::demo::main(demo.keep, demo.plain)),
        args::Command::Plan(plan) => plan::plan(&plan),
        args::Command::Man(wanted) => manual::man(&wanted),
        args::Command::Replay(replay) => replay::replay(&replay),
        args::Command::Rollout(args::Operate { verb }) | args::Command::Operate(verb) => {
            operate::operate(&verb)
        }
        args::Command::Simulate(simulate) => simulate::simulate(&simulate),
        args::Command::Token(args::Token::New(new)) => run::finish(token::new(&new)),
    }
}
