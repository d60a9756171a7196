//! Answers in words.

use std::{fmt::Write as _, time::Duration};

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;

use super::{
    seen::{Backend, Event, Reloaded, Rollout, Service},
    table::table,
};
use crate::{clock, model::units::format_duration};

/// Events that are shown with a service.
const LATEST: usize = 5;

/// All services, a line for each.
pub(super) fn services(all: &[Service]) -> String {
    let rows: Vec<_> = all.iter().map(row).collect();
    table(["SERVICE", "STABLE", "CANARY", " WEIGHT", "ROLLOUT"], &rows)
}

fn row(service: &Service) -> [String; 5] {
    let canary = service.canary.clone().unwrap_or_else(|| "-".to_owned());
    let weight = service.canary.as_ref().map_or_else(|| "-".to_owned(), |_| percent(service.weight));
    let rollout = service.rollout.as_ref().map_or_else(|| "-".to_owned(), stands);
    [service.name.clone(), service.stable.clone(), canary, weight, rollout]
}

/// One service with all that is known of it.
pub(super) fn service(service: &Service) -> String {
    let mut text = changed(service);
    if let Some(rollout) = &service.rollout
        && rollout.runs()
    {
        let steps = rollout.steps.iter().enumerate().map(|(number, step)| {
            let hold = format_duration(Duration::from_secs_f64(step.hold_seconds.max(0.0)));
            let text = match step.mirror {
                Some(mirror) => format!("copies of {} for {hold}", percent(mirror)),
                None => format!("{} for {hold}", percent(step.weight)),
            };
            if rollout.step == Some(number) { format!("{NOW}{text}{NOW:#}") } else { text }
        });
        let _infallible = writeln!(text, "plan: {}", steps.collect::<Vec<_>>().join(", "));
    }
    text.push('\n');
    text.push_str(&backends(&service.backends));
    if !service.events.is_empty() {
        text.push('\n');
        let left_out = service.events.len().saturating_sub(LATEST);
        text.push_str(&events(&service.events[left_out..]));
    }
    text
}

/// How a service stands, after something was changed.
pub(super) fn changed(service: &Service) -> String {
    let Service { name, stable, weight, rollout, .. } = service;
    let mut text = match &service.canary {
        Some(canary) => {
            format!("{NAME}{name}{NAME:#}: {stable} is stable, {canary} gets {}\n", percent(*weight))
        }
        None => format!("{NAME}{name}{NAME:#}: {stable} gets everything\n"),
    };
    if let Some(rollout) = rollout {
        let by = if rollout.guards_only { ", judged by guards alone" } else { "" };
        let _infallible = writeln!(text, "rollout {}: {}{by}", rollout.id, stands(rollout));
        let now = clock::now().as_millis();
        if let (Some(canary), Some(until)) =
            (&service.canary, rollout.rollback_until.filter(|until| *until > now))
        {
            let _infallible =
                writeln!(text, "  {canary} is kept until {}: `flip` is the way back", in_utc(until));
        }
        if let Some(explanation) = &rollout.explanation {
            let _infallible = writeln!(text, "  {explanation}");
        }
    }
    text
}

/// Where a rollout stands, and since when.
pub(super) fn stands(rollout: &Rollout) -> String {
    let (step, steps) = (rollout.step.map_or(0, |step| step + 1), rollout.steps.len());
    let (style, words) = match rollout.phase.as_str() {
        "stepping" => (BUSY, format!("step {step} of {steps}")),
        "paused" => (WAITS, format!("paused at step {step} of {steps}, {}", waits_for(rollout))),
        "succeeded" => (GOOD, "succeeded".to_owned()),
        "rolled_back" => (BAD, "rolled back".to_owned()),
        "rolling_back" => (BAD, "rolling back".to_owned()),
        phase => (BUSY, phase.replace('_', " ")),
    };
    let then = rollout.since.or(rollout.at);
    let ago = then.map(|then| Duration::from_millis(clock::now().as_millis().saturating_sub(then)));
    let since = match ago {
        // Whole seconds: it is not a stopwatch.
        Some(ago) if rollout.runs() => {
            format!(", for {}", format_duration(Duration::from_secs(ago.as_secs())))
        }
        Some(ago) => format!(", {} ago", format_duration(Duration::from_secs(ago.as_secs()))),
        None => String::new(),
    };
    format!("{style}{words}{style:#}{since}")
}

/// What a paused rollout waits for, and what to do about it.
pub(super) fn waits_for(rollout: &Rollout) -> &'static str {
    match rollout.waits_for() {
        Some("gate") => "at a gate: `promote` opens it",
        Some("hook") => "until a hook has answered",
        Some("hook_failed") => "as a hook did not allow it: `promote`, `resume` to ask again, or `rollback`",
        Some("hook_allowed") => "until the evidence allows it, as a hook does: `promote` does not wait",
        Some("freeze") => "until a freeze is over",
        Some("inconclusive") => "without a verdict: `promote`, `resume` or `rollback`",
        _ => "by a person: `resume`, `promote` or `rollback`",
    }
}

fn backends(backends: &[Backend]) -> String {
    let number = |number: Option<f64>, unit: fn(f64) -> String| number.map_or_else(|| "-".to_owned(), unit);
    let row = |backend: &Backend| {
        let recent = &backend.recent;
        [
            backend.name.clone(),
            backend.role.clone().unwrap_or_else(|| "-".to_owned()),
            percent(backend.weight),
            format!("{:.1}", recent.requests_per_second),
            number(recent.error_rate, |rate| percent(rate * 100.0)),
            number(recent.p50_seconds, millis),
            number(recent.p99_seconds, millis),
            backend.in_flight.to_string(),
            backend.endpoints.join(", "),
        ]
    };
    let rows: Vec<_> = backends.iter().map(row).collect();
    table(
        ["BACKEND", "ROLE", " WEIGHT", " REQ/S", " ERRORS", " P50", " P99", " IN FLIGHT", "ENDPOINTS"],
        &rows,
    )
}

/// Events, a line for each.
pub(super) fn events(events: &[Event]) -> String {
    events.iter().map(|event| event_line(event) + "\n").collect()
}

/// An event in a line, with its time, in UTC.
pub(super) fn event_line(Event { id: _, at, what, by, reason, more: _ }: &Event) -> String {
    let why = match (by, reason) {
        (Some(by), Some(reason)) => format!(" ({by}: {reason})"),
        (_, Some(reason)) => format!(" ({reason})"),
        (_, None) => String::new(),
    };
    format!("{DIM}{}{DIM:#} {what}{why}", in_utc(*at))
}

/// A time in milliseconds since 1970 as people read it; nothing where no calendar has it.
fn in_utc(at: u64) -> String {
    let at = i64::try_from(at).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    let written = at.map(|at| TimeZone::UTC.to_datetime(at).strftime("%Y-%m-%d %H:%M:%SZ").to_string());
    written.unwrap_or_default()
}

/// What a reload has changed.
pub(super) fn reloaded(Reloaded { changes }: &Reloaded) -> String {
    if changes.is_empty() {
        return "nothing has changed\n".to_owned();
    }
    changes.iter().map(|change| format!("{change}\n")).collect()
}

/// A percentage with the decimals that it has, at most two.
fn percent(percent: f64) -> String {
    let text = format!("{percent:.2}");
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

fn millis(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

const NAME: Style = Style::new().bold();
const NOW: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const BUSY: Style = AnsiColor::Cyan.on_default();
const WAITS: Style = AnsiColor::Yellow.on_default();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
