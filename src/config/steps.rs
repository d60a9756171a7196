//! `steps` of `[services.NAME.rollout]`, and where the faults of a plan belong.

use std::{ops::Range, sync::Arc, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    mirror::percent,
    report::Report,
    suggest::suggest,
    written::{Section, Table, Text, Time, WAIT, in_words, positive, time, weight},
};
use crate::{
    analysis::settings::Settings,
    model::weight::Weight,
    rollout::{
        forecast::{self, Traffic},
        plan::{MAX_STEPS, MAX_TIME, Plan, PlanFault, Step, Strategy},
    },
};

/// How long a step lasts at least if it does not say; as in the default steps.
pub(super) const DEFAULT_HOLD: Duration = Duration::from_secs(60);

/// More requests than that in one step are a slip.
const MAX_REQUESTS: u32 = 1_000_000_000;

/// One of `steps` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStep {
    weight: Option<Spanned<f64>>,
    mirror: Option<Spanned<f64>>,
    hold: Option<Time>,
    minimum_requests: Option<Spanned<i64>>,
    gate: Option<bool>,
    checks: Option<Vec<Text>>,
}

impl Section for RawStep {
    const HEADER: &'static str = "{ weight = 10, hold = \"5m\" }";
}

/// A step, and where its parts stand.
pub(super) struct PlacedStep {
    pub(super) step: Step,
    /// Which of the written steps it is, from 0.
    number: usize,
    weight: Range<usize>,
    hold: Range<usize>,
}

/// The steps whose parts are right. `checks` are the names of those that the rollout has.
pub(super) fn lower(
    written: Option<Spanned<Vec<Spanned<Table<RawStep>>>>>,
    checks: &[String],
    report: &mut Report<'_>,
) -> Vec<PlacedStep> {
    let written = written.map(Spanned::into_inner).unwrap_or_default();
    let steps = written.into_iter().enumerate();
    steps.filter_map(|(number, raw)| lower_step(number, raw, checks, report)).collect()
}

fn lower_step(
    number: usize,
    raw: Spanned<Table<RawStep>>,
    checks: &[String],
    report: &mut Report<'_>,
) -> Option<PlacedStep> {
    let place = raw.span();
    let RawStep { weight: share, mirror, hold, minimum_requests, gate, checks: watched } = raw.into_inner().0;
    let watched = watched.map(|written| lower_checks(written, checks, report));
    let hold_place = hold.as_ref().map_or_else(|| place.clone(), Spanned::span);
    let hold = match hold {
        None => Some(DEFAULT_HOLD),
        Some(written) => time(&written, "hold", WAIT, report),
    };
    let least = minimum_requests.and_then(|n| positive(&n, "minimum_requests", MAX_REQUESTS, report));
    let (mirror_place, has_mirror) = (mirror.as_ref().map(Spanned::span), mirror.is_some());
    let mirror = mirror.and_then(|written| percent(&written, "mirror", report));
    if has_mirror && mirror.is_none() {
        return None;
    }
    let (weight, share) = match share {
        Some(share) => (weight(&share, report)?, share.span()),
        None if has_mirror => (Weight::ZERO, place),
        None => {
            report
                .error(place, format!("step {} has no `weight`", number + 1))
                .help("say how much traffic the canary gets: `{ weight = 10, hold = \"5m\" }`");
            return None;
        }
    };
    // A wrong hold says nothing about the weight, which is still compared with its neighbours.
    let step = Step {
        mirror,
        minimum_requests: least.map(|least| least.get().into()),
        gate: gate.unwrap_or(false),
        checks: watched,
        ..Step::new(weight, hold.unwrap_or(DEFAULT_HOLD))
    };
    Some(PlacedStep { step, number, weight: mirror_place.unwrap_or(share), hold: hold_place })
}

/// Names of checks, each of which there is, and said once.
fn lower_checks(written: Vec<Text>, known: &[String], report: &mut Report<'_>) -> Vec<Arc<str>> {
    let mut checks: Vec<Arc<str>> = Vec::new();
    for name in written {
        let text = name.get_ref().as_str();
        if !known.iter().any(|known| known == text) {
            let names: Vec<_> = known.iter().map(String::as_str).collect();
            let none = || "there are none: write one as `[[services.NAME.rollout.checks]]`".to_owned();
            let remedy = if known.is_empty() { Some(none()) } else { suggest(text, &names, "checks") };
            report
                .error(name.span(), format!("there is no check `{text}` of this service's rollouts"))
                .help_if(remedy);
        } else if checks.iter().any(|named| **named == *text) {
            report.error(name.span(), format!("`{text}` is named twice")).help("name each check once");
        } else {
            checks.push(text.into());
        }
    }
    checks
}

/// Puts a fault where it belongs. `steps` are those whose parts are right; `place` is that of all.
pub(super) fn report_fault(
    fault: &PlanFault,
    steps: &[PlacedStep],
    place: Range<usize>,
    report: &mut Report<'_>,
) {
    // The number and the place of a step, as written.
    let placed = |step: usize| match steps.get(step) {
        Some(step) => (step.number, step.weight.clone()),
        None => (step, place.clone()),
    };
    match *fault {
        PlanFault::NoSteps => report
            .error(place, fault.to_string())
            .help("add one, such as `{ weight = 10, hold = \"5m\" }`, or leave `steps` out for the default"),
        PlanFault::StepsInBlueGreen => {
            report.error(place, fault.to_string()).help("remove `steps`, or write `strategy = \"canary\"`")
        }
        PlanFault::PromotionGateOfCanary => report
            .error(place, fault.to_string())
            .help("write `gate = true` into the last of `steps`, or `strategy = \"blue-green\"`"),
        PlanFault::TooManySteps(_) => {
            report.error(place, fault.to_string()).help(format!("write at most {MAX_STEPS} steps"))
        }
        PlanFault::ZeroWeight { step } => {
            let (number, place) = placed(step);
            report
                .error(place, PlanFault::ZeroWeight { step: number }.to_string())
                .help("begin with a small weight, such as 1; only where `[[services.NAME.force]]` sends requests to the canary may the first one be 0")
        }
        PlanFault::NoCopies { step } => {
            let (number, place) = placed(step);
            report
                .error(place, PlanFault::NoCopies { step: number }.to_string())
                .help("write the share of requests that are copied, such as `mirror = 10`")
        }
        PlanFault::UsersAndCopies { step } => {
            let (number, place) = placed(step);
            report
                .error(place, PlanFault::UsersAndCopies { step: number }.to_string())
                .help("make two steps of it, that with `mirror` first; `[services.NAME.mirror]` copies requests in all steps")
        }
        PlanFault::DarkAfterLive { step } => {
            let (number, place) = placed(step);
            report
                .error(place, PlanFault::DarkAfterLive { step: number }.to_string())
                .help("move it to the front; `[services.NAME.mirror]` copies requests in all steps")
        }
        PlanFault::OnlyDark => report
            .error(place, fault.to_string())
            .help("add a step with users, such as `{ weight = 10, hold = \"5m\" }`"),
        PlanFault::NotAscending { step, weight, before } => {
            let (number, place) = placed(step);
            report
                .error(place, PlanFault::NotAscending { step: number, weight, before }.to_string())
                .help("let the weights rise from step to step")
        }
        // The section has refused these already, so this is for limits that drift apart.
        PlanFault::TooLong { given, .. } => {
            let long = steps.iter().find(|s| s.step.hold == given).map(|s| s.hold.clone());
            let most = in_words(MAX_TIME);
            report
                .error(long.unwrap_or(place), fault.to_string())
                .help(format!("write a time of at most {most}"))
        }
    };
}

/// Says so where a plan cannot reach a verdict, or not with the traffic that anybody has. `steps` are the
/// written ones; `place` is that of all.
pub(super) fn warn_if_mute(
    plan: &Plan,
    settings: &Settings,
    steps: &[PlacedStep],
    place: Range<usize>,
    report: &mut Report<'_>,
) {
    // Nothing is compared in blue/green, and nothing is known of settings that are wrong.
    if plan.strategy() == Strategy::BlueGreen || !settings.faults().is_empty() {
        return;
    }
    if plan.steps().iter().any(|step| step.weight == Weight::FULL) {
        let written = steps.iter().find(|placed| placed.step.weight == Weight::FULL);
        report
            .warning(
                written.map_or(place, |placed| placed.weight.clone()),
                "this step leaves stable nothing that the canary could be compared with",
            )
            .help("let the last step be smaller, such as 50: after it the canary gets everything");
        return;
    }
    if forecast::reaches_a_verdict(settings, plan, MUCH_TRAFFIC) {
        return;
    }
    let problem = match forecast::requests_per_second_needed(settings, plan, MUCH_TRAFFIC.failing) {
        Some(needed) => format!("this plan needs {needed:.0} requests a second to reach a verdict"),
        None => "this plan cannot reach a verdict, whatever the traffic".to_owned(),
    };
    report.warning(place, problem).help(
        "let steps last longer, raise `deadline`, or ask for less (`minimum_requests`, `promotion_margin`); \
         `tidegate plan` says what a plan can show",
    );
}

/// More than nearly any service has, of which a usual share fails.
const MUCH_TRAFFIC: Traffic = Traffic { requests_per_second: 10_000.0, failing: 0.001 };
