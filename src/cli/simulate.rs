//! `tidegate simulate`.

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    num::NonZeroUsize,
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{
    EXIT_CONFIG,
    args::{ConfigFile, Output, Simulate},
    check, replay, run,
};
use crate::{
    analysis::{settings::Settings, users::Unit},
    config::{Config, Rollout, Service},
    rollout::plan::Strategy,
    simulate::{self, Setup, plot, recorded::Recorded, report, rivals::Rival, scenario::Scenario},
};

/// Runs a plan in simulated time.
pub(super) fn simulate(args: &Simulate) -> ExitCode {
    if args.list {
        list();
        return ExitCode::SUCCESS;
    }
    let service = match &args.config {
        None => Ok(None),
        Some(file) => {
            let config = check::load(&ConfigFile { config: file.clone() });
            let Some(config) = config else { return ExitCode::from(EXIT_CONFIG) };
            service_of(config, args.service.as_deref()).map(Some)
        }
    };
    run::finish(service.and_then(|service| play(args, service)))
}

/// The rollout of one service of a configuration.
pub(super) fn rollout_of(config: Config, name: Option<&str>) -> anyhow::Result<Rollout> {
    Ok(service_of(config, name)?.rollout)
}

/// One service of a configuration: the one that is named, or the only one that has a canary.
pub(super) fn service_of(config: Config, name: Option<&str>) -> anyhow::Result<Service> {
    let named = |service: &Service| match name {
        Some(name) => service.name.as_str() == name,
        None => service.roles.canary().is_some(),
    };
    let names: Vec<_> = config.services.iter().map(|service| service.name.to_string()).collect();
    let mut found = config.services.into_iter().filter(named);
    match (found.next(), found.next(), name) {
        (Some(service), None, _) => Ok(service),
        (Some(_), Some(_), _) => bail!("several services have a canary: name one with --service"),
        (None, _, Some(name)) => bail!("there is no service `{name}`, but {}", names.join(", ")),
        (None, _, None) => bail!("no service has a canary: name one with --service"),
    }
}

fn play(args: &Simulate, service: Option<Service>) -> anyhow::Result<()> {
    let pins = service.as_ref().is_some_and(|service| service.sticky.is_some());
    let (rollout, routes) = service.map(|service| (service.rollout, service.routes)).unwrap_or_default();
    let Rollout { plan, analysis: mut settings, .. } = rollout;
    if !pins {
        // Where there are users, clients are pinned, as the service's would be then.
        settings.unit = Unit::User;
    }
    if plan.strategy() == Strategy::BlueGreen {
        bail!("a blue-green rollout has no steps to simulate: all traffic moves at once");
    }
    let recorded = args.history.as_deref().map(replay::recorded).transpose()?;
    let rates = match (&args.rate[..], &recorded) {
        ([], Some(recorded)) => vec![recorded.rate()],
        ([], None) => vec![20.0, 500.0],
        (rates, _) => rates.to_vec(),
    };
    if let Some(rate) = rates.iter().find(|rate| !(**rate > 0.0 && **rate <= 1e6)) {
        bail!("a rate is over 0 and at most a million requests a second, not {rate}");
    }
    if plan.steps().iter().any(|step| step.is_dark()) {
        note("dark steps are left out: each rollout begins with its first step that has users");
    }
    let alpha = settings.alpha;
    let setup = Setup {
        scenarios: scenarios(args, &settings, recorded.as_ref())?,
        rivals: rivals(&args.against)?,
        plan,
        settings,
        routes,
        tick: Duration::from_secs(1),
        rates,
        runs: args.runs,
        seed: args.seed,
        horizon: args.horizon,
        threads: args.threads.unwrap_or_else(|| thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)),
    };
    if let Some(file) = &args.record {
        let lines = simulate::record(&setup);
        let lines = lines.iter().map(|line| serde_json::to_string(line).map(|line| line + "\n"));
        write(file, &lines.collect::<Result<String, _>>()?)?;
    }
    let all = setup.scenarios.len() * setup.rates.len() * (1 + setup.rivals.len());
    let mut progress = Progress { done: 0, all, shown: std::io::stderr().is_terminal() };
    let rows = simulate::simulate(&setup, |_| progress.step());
    progress.end();
    if let Some(file) = &args.plot {
        let picture = plot::svg(&rows, setup.horizon.as_secs_f64());
        write(file, &picture.map_err(anyhow::Error::msg)?)?;
    }
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&rows)? + "\n",
        Output::Table => {
            let promise = report::promise(&rows, alpha);
            report::table(&rows) + &promise.map(|promise| format!("\n{promise}\n")).unwrap_or_default()
        }
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write the result")
}

/// The scenarios that are asked for, or all.
fn scenarios(
    args: &Simulate,
    settings: &Settings,
    recorded: Option<&Recorded>,
) -> anyhow::Result<Vec<Scenario>> {
    let all = Scenario::all();
    if args.scenario.is_empty() && args.fails.is_empty() && recorded.is_none() {
        return Ok(all);
    }
    let mut chosen = recorded.map(|recorded| recorded.scenarios(settings.tolerance())).unwrap_or_default();
    for name in &args.scenario {
        let Some(scenario) = all.iter().find(|scenario| scenario.name == *name) else {
            bail!("there is no scenario `{name}`: --list says which there are");
        };
        chosen.push(scenario.clone());
    }
    for &(stable, canary) in &args.fails {
        let tolerance = settings.tolerance();
        let bad = canary > tolerance.ratio * (stable + tolerance.absolute);
        let name = format!("{}-to-{}", stable * 100.0, canary * 100.0);
        chosen.push(Scenario::constant(&name, "as asked for", (stable, canary), bad));
    }
    Ok(chosen)
}

pub(super) fn rivals(names: &[String]) -> anyhow::Result<Vec<Rival>> {
    let names = names.iter().filter(|name| *name != "none");
    names
        .map(|name| {
            let known = Rival::ALL.into_iter().find(|rival| rival.as_str() == name);
            known.with_context(|| format!("nobody's rules are called `{name}`: flagger, argo or kayenta"))
        })
        .collect()
}

pub(super) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[expect(clippy::print_stderr, reason = "it is about the answer, and not part of it")]
fn note(text: &str) {
    eprintln!("note: {text}");
}

fn list() {
    let all = Scenario::all();
    let width = all.iter().map(|scenario| scenario.name.len()).max().unwrap_or(0);
    #[expect(clippy::print_stdout, reason = "this is the answer")]
    for Scenario { name, what, bad_from, .. } in &all {
        println!("{name:<width$}  {what}{}", if bad_from.is_some() { "" } else { " (harmless)" });
    }
}

/// How far it is, where somebody looks.
struct Progress {
    done: usize,
    all: usize,
    shown: bool,
}

impl Progress {
    fn step(&mut self) {
        self.done += 1;
        self.show(&format!("{} of {}", self.done, self.all));
    }

    fn end(&self) {
        self.show("");
    }

    #[expect(clippy::print_stderr, reason = "it is not part of the answer")]
    fn show(&self, text: &str) {
        if self.shown {
            eprint!("\r\x1b[K{text}");
        }
    }
}
