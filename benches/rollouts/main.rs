//! Rollouts in a whole Tidegate that runs, under load: what has to hold whenever it is killed, how soon a
//! change of weight is obeyed, and what a hundred rollouts at a time cost. README.md beside this folder has
//! the commands and the figures.
//!
//! The backends and the clients are in this process, so that what they see has one clock. `cargo bench` alone
//! runs none of it, since it takes minutes.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures are what a bench is for")]

mod figures;
mod hundred;
mod kills;
mod ledger;
mod proxy;
mod weights;
mod wire;

use std::{env, process::ExitCode};

use anyhow::{Context as _, bail};

/// As in `main.rs` of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "cargo bench --bench rollouts -- kills [--kills 1000] [--seed 1] | weights [--changes 1000] [--rollbacks 20] | hundred [--rounds 3]";

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> anyhow::Result<()> {
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [proxy::SERVE, config, tick] => proxy::serve(config.as_ref(), tick),
        ["kills", ref options @ ..] => {
            let [kills, seed] = numbers(options, [("--kills", 1000), ("--seed", 1)])?;
            kills::run(kills, seed)
        }
        ["weights", ref options @ ..] => {
            let [changes, rollbacks] = numbers(options, [("--changes", 1000), ("--rollbacks", 20)])?;
            weights::run(changes, rollbacks)
        }
        ["hundred", ref options @ ..] => {
            let [rounds] = numbers(options, [("--rounds", 3)])?;
            hundred::run(rounds)
        }
        _ => bail!("nothing is measured without being told what: {USAGE}"),
    }
}

/// The values of options that are numbers, where they are not as they are by default.
fn numbers<const N: usize>(written: &[&str], known: [(&str, u64); N]) -> anyhow::Result<[u64; N]> {
    let mut values = known.map(|(_, default)| default);
    for pair in written.chunks(2) {
        let [option, value] = pair else { bail!("{} needs a number: {USAGE}", pair[0]) };
        let at = known.iter().position(|(name, _)| name == option);
        let at = at.with_context(|| format!("there is no {option}: {USAGE}"))?;
        values[at] = value.parse().with_context(|| format!("{option} needs a number, not {value}"))?;
    }
    Ok(values)
}
