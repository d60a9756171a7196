//! What can be asked of the program.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use super::operate::options::{Access, Verb};
use crate::{
    config::Scope,
    model::{name::ServiceName, units::parse_duration},
};

/// docs/cli.md has the same, and more of it.
const EXIT_CODES: &str = "\
Exit codes:
  0   done; with --wait: the canary was promoted
  1   something failed; with --wait: the canary was rolled back
  2   with --wait: nobody could tell, or time ran out
  3   refused: it makes no sense as the service stands, and the message says what would
  64  the command line makes no sense
  69  nobody answers at the address, or its certificate is not trusted
  70  the answer broke off, or is not one
  77  the token is missing or does not allow it
  78  the configuration is wrong";

/// A reverse proxy that splits traffic between two versions of a service, measures both, and promotes
/// or rolls back by itself.
#[derive(Debug, clap::Parser)]
#[command(version, about, max_term_width = 100, after_long_help = EXIT_CODES)]
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
    /// Play six rollouts with two demo backends on this machine, in about two minutes.
    Demo(Demo),
    /// Say what a plan can show with the traffic there is: what it finds, how soon, and at what price.
    Plan(Plan),
    /// Run a plan in simulated time, thousands of times over, beside what others would decide by.
    Simulate(Simulate),
    /// Judge a recording again, tick by tick.
    Replay(Replay),
    /// Make a token for the admin API.
    #[command(subcommand)]
    Token(Token),
    #[command(flatten)]
    Operate(Verb),
    /// Print completions of commands and options for a shell.
    Completions(Completions),
    /// Print a manual page, as man reads it: `tidegate man | man -l -`.
    Man(Man),
    /// The verbs above, as some like to write them: `tidegate rollout start`.
    #[command(hide = true)]
    Rollout(Operate),
}

/// What can be asked of a Tidegate that runs.
#[derive(Debug, clap::Args)]
pub(super) struct Operate {
    #[command(subcommand)]
    pub(super) verb: Verb,
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

#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    #[command(flatten)]
    pub(super) config: ConfigFile,
    /// The service of the configuration, where several have a canary.
    #[arg(long, value_name = "NAME")]
    pub(super) service: Option<String>,
    /// Requests a second, of both versions together; as the Tidegate at --address has lately seen, if neither this nor
    /// --prometheus is there.
    #[arg(long, value_name = "NUMBER", conflicts_with = "prometheus")]
    pub(super) rate: Option<f64>,
    /// A Prometheus, which says what it has seen in the last hour.
    #[arg(long, value_name = "URL")]
    pub(super) prometheus: Option<String>,
    /// A query for the requests a second, instead of one for Tidegate's own metrics.
    #[arg(long, value_name = "PROMQL", requires = "prometheus", conflicts_with = "rate")]
    pub(super) query: Option<String>,
    /// The percentage of its requests that stable fails; as measured, or 0.1, if left out.
    #[arg(long, value_name = "PERCENT", value_parser = percentage)]
    pub(super) fails: Option<f64>,
    /// How the answer is written.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
    #[command(flatten)]
    pub(super) access: Access,
}

#[derive(Debug, clap::Args)]
pub(super) struct Simulate {
    /// A configuration file whose plan and analysis are simulated, instead of the default ones.
    #[arg(long, short, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// The service of the configuration, where several have a canary.
    #[arg(long, value_name = "NAME", requires = "config")]
    pub(super) service: Option<String>,
    /// What happens; write it again for more. All of them if left out; see --list.
    #[arg(long, value_name = "NAME")]
    pub(super) scenario: Vec<String>,
    /// A scenario of one's own: the percentages of requests that stable and the canary fail, such as
    /// 0.1,0.5.
    #[arg(long, value_name = "STABLE,CANARY", value_parser = two_percentages)]
    pub(super) fails: Vec<(f64, f64)>,
    /// A recording (see docs/replay.md) that happens again, as it was and with a canary like stable.
    #[arg(long, value_name = "FILE")]
    pub(super) history: Option<PathBuf>,
    /// Say what scenarios there are, and simulate nothing.
    #[arg(long)]
    pub(super) list: bool,
    /// Requests a second; write it again for more. 20 and 500 if left out, or as many as recorded.
    #[arg(long, value_name = "NUMBER")]
    pub(super) rate: Vec<f64>,
    /// How often each scenario is run at each rate.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) runs: u32,
    /// The same seed draws the same courses.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(super) seed: u64,
    /// How long users are counted who are harmed, from the rollout's first step.
    #[arg(long, value_name = "TIME", default_value = "3h", value_parser = parse_duration)]
    pub(super) horizon: Duration,
    /// Whose rules are tried beside; `none` for nobody's.
    #[arg(long, value_name = "RULES", value_delimiter = ',', default_value = "flagger,argo,kayenta")]
    pub(super) against: Vec<String>,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
    /// Also draw it, as an SVG.
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
    /// Also write down the first run of the first scenario, to be replayed.
    #[arg(long, value_name = "FILE")]
    pub(super) record: Option<PathBuf>,
    /// On how many threads; the result is the same. One for each CPU if left out.
    #[arg(long, value_name = "NUMBER")]
    pub(super) threads: Option<NonZeroUsize>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Replay {
    /// The recording, a line of JSON for each tick (docs/replay.md); `-` for standard input.
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// The configuration file with the plan and the analysis.
    #[arg(long, short, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    pub(super) config: PathBuf,
    /// The service of the configuration, where several have a canary.
    #[arg(long, value_name = "NAME")]
    pub(super) service: Option<String>,
    /// The time from one line to the next.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(super) tick: Duration,
    /// Also say what others would have done, and how many more requests would have failed.
    #[arg(long, value_name = "RULES", value_delimiter = ',')]
    pub(super) against: Vec<String>,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Token {
    /// Print a new token, and what is to be written in the file of credentials (docs/security.md).
    New(NewToken),
}

#[derive(Debug, clap::Args)]
pub(super) struct NewToken {
    /// Who gets it, as the audit is to call them.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// What they may do: read, operate or admin.
    #[arg(long, value_name = "SCOPE", default_value = "read", value_parser = scope)]
    pub(super) scope: Scope,
    /// A service that they may do it to; write it again for more. All of them if left out.
    #[arg(long, value_name = "NAME")]
    pub(super) service: Vec<ServiceName>,
}

fn scope(text: &str) -> Result<Scope, String> {
    let found = Scope::ALL.into_iter().find(|scope| scope.name() == text);
    found.ok_or_else(|| "write read, operate or admin".to_owned())
}

#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell. For bash: `source <(tidegate completions bash)`; others have a folder for such files.
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// The page of this command, instead of the whole.
    pub(super) command: Option<String>,
    /// Write all pages into this folder, such as /usr/local/share/man/man1.
    #[arg(long, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath, conflicts_with = "command")]
    pub(super) directory: Option<PathBuf>,
}

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// Aligned columns, for people.
    Table,
    /// For programs.
    Json,
}

/// Two percentages, as shares.
fn two_percentages(text: &str) -> Result<(f64, f64), String> {
    let (stable, canary) = text.split_once(',').ok_or("write two percentages, such as 0.1,0.5")?;
    Ok((percentage(stable)?, percentage(canary)?))
}

/// A percentage, as a share.
fn percentage(text: &str) -> Result<f64, String> {
    let percent = text.trim().parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.map(|percent: f64| percent / 100.0).ok_or_else(|| "a percentage is from 0 to 100".to_owned())
}
