//! `tidegate replay`.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Read, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use serde::Serialize;

use super::{EXIT_CONFIG, args, check, run, simulate};
use crate::{
    analysis::{explain::explain, verdict::Verdict},
    config::Rollout,
    model::time::Timestamp,
    rollout::recording::{Line, Replay, Stage},
    simulate::recorded::{Counterfactual, Recorded, Recorder},
};

/// Judges a recording again.
pub(super) fn replay(args: &args::Replay) -> ExitCode {
    let config = check::load(&args::ConfigFile { config: args.config.clone() });
    let Some(config) = config else { return ExitCode::from(EXIT_CONFIG) };
    let rollout = simulate::rollout_of(config, args.service.as_deref());
    run::finish(rollout.and_then(|rollout| play(args, rollout)))
}

/// What is said about a line.
#[derive(Serialize)]
struct Answer<'a> {
    at: Timestamp,
    phase: Stage,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<usize>,
    verdict: Option<&'a Verdict>,
    explanation: Option<String>,
}

/// What is said at the end about somebody else's rules.
#[derive(Serialize)]
struct Against {
    against: Counterfactual,
}

fn play(args: &args::Replay, rollout: Rollout) -> anyhow::Result<()> {
    let rivals = simulate::rivals(&args.against)?;
    let mut replay = Replay::new(rollout.analysis, rollout.plan, args.tick);
    let mut recorder = Recorder::default();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut say = |answer: serde_json::Result<String>| {
        writeln!(out, "{}", answer?).context("cannot write what follows")
    };
    each_line(&args.file, |line| {
        let verdict = replay.take_in(line);
        recorder.add(line, verdict.as_ref().map(|verdict| verdict.decision));
        let Line { at, phase, step, .. } = *line;
        let explanation = verdict.as_ref().map(explain);
        say(serde_json::to_string(&Answer { at, phase, step, verdict: verdict.as_ref(), explanation }))
    })?;
    if !rivals.is_empty() {
        let recorded = finish(recorder, &args.file)?;
        for rival in rivals {
            say(serde_json::to_string(&Against { against: recorded.by(rival) }))?;
        }
    }
    out.flush().context("cannot write what follows")
}

/// A recording as a world to roll out in. What was concluded from it does not matter then.
pub(super) fn recorded(file: &Path) -> anyhow::Result<Recorded> {
    let mut recorder = Recorder::default();
    each_line(file, |line| {
        recorder.add(line, None);
        Ok(())
    })?;
    finish(recorder, file)
}

fn finish(recorder: Recorder, file: &Path) -> anyhow::Result<Recorded> {
    recorder.finish().with_context(|| format!("{} has no tick of a rollout", file.display()))
}

/// Reads a recording, one line after the other.
fn each_line(file: &Path, mut take: impl FnMut(&Line) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let name = file.display();
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file).with_context(|| format!("cannot read {name}"))?)
    };
    for (number, text) in BufReader::new(source).lines().enumerate() {
        let text = text.with_context(|| format!("cannot read {name}"))?;
        if text.trim().is_empty() {
            continue;
        }
        let line = serde_json::from_str(&text);
        take(&line.with_context(|| format!("line {} of {name} is not a tick", number + 1))?)?;
    }
    Ok(())
}
