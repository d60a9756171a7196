//! The demo as plain lines, for pipes, logs and terminals that can do no more: what happens when it
//! happens, and once a second how things stand.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use super::{
    scene::{Arm, Evidence, Mark, Scene},
    words,
};
use crate::model::weight::Weight;

/// Time between two lines about how things stand.
const PERIOD: Duration = Duration::from_secs(1);

/// Prints lines.
#[derive(Debug, Default)]
pub(super) struct Plain {
    /// When, since the demo began, the last line about how things stand was due.
    last: Option<Duration>,
}

impl Plain {
    /// Says how things stand, unless it did a moment ago.
    pub(super) fn show(&mut self, scene: &Scene) -> io::Result<()> {
        // Before and after the rollout nothing changes.
        let moving = scene.way.iter().any(|(_, mark)| *mark == Mark::Now) && scene.rollback.is_some();
        if !moving || self.last.is_some_and(|last| scene.elapsed < last + PERIOD) {
            return Ok(());
        }
        self.last = Some(scene.elapsed);
        line(&format!("{}    {}", words::clock(scene.elapsed), standing(scene)))
    }

    /// Says that something happened.
    pub(super) fn say(text: &str) -> io::Result<()> {
        line(text)
    }
}

/// Prints a line, and says if nobody reads it any more; `println` would panic.
fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// How things stand, in one line.
fn standing(scene: &Scene) -> String {
    let arm = |arm: &Arm| {
        let errors = arm.errors.map_or_else(|| "-".to_owned(), |score| words::percent(score.rate));
        let latency = &arm.latency;
        let (p50, p99) = (words::millis(latency.p50_seconds), words::millis(latency.p99_seconds));
        format!("{} {}: {:.0}/s, {errors} errors, p50 {p50}, p99 {p99}", arm.name, arm.weight, arm.pace)
    };
    let evidence = |what: &str, evidence: Option<Evidence>| match evidence {
        Some(evidence) => format!(" | {what} {:.0} %", evidence.share() * 100.0),
        None => String::new(),
    };
    let other = match scene.other.weight {
        Weight::ZERO => String::new(),
        _ => format!(" | {}", arm(&scene.other)),
    };
    format!(
        "{}{other}{}{}",
        arm(&scene.stable),
        evidence("towards rollback", scene.rollback),
        evidence("towards promotion", scene.promotion)
    )
}
