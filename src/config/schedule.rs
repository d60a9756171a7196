//! `[services.NAME.rollout.schedule]`: steps by a rule.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    suggest::suggest,
    written::{Section, Table, Text, Time, WAIT, time, weight},
};
use crate::{
    model::weight::Weight,
    rollout::plan::{
        MAX_STEPS, Step,
        schedule::{Rise, Schedule, ScheduleFault},
    },
};

const KINDS: [&str; 3] = ["linear", "exponential", "evidence"];

/// How long each step lasts at least where nothing is written; as in the default steps.
const HOLD: Duration = Duration::from_secs(60);

/// `[services.NAME.rollout.schedule]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSchedule {
    kind: Option<Text>,
    from: Option<Spanned<f64>>,
    to: Option<Spanned<f64>>,
    by: Option<Spanned<f64>>,
    hold: Option<Time>,
}

impl Section for RawSchedule {
    const HEADER: &'static str = "[services.NAME.rollout.schedule]";
}

/// The steps that a rule makes; nothing, and a fault, if it makes none. `has_budget` says whether the rollout's
/// harm has a limit, without which there is nothing to go as fast as possible within.
pub(super) fn lower(
    raw: Spanned<Table<RawSchedule>>,
    has_budget: bool,
    report: &mut Report<'_>,
) -> Option<Vec<Step>> {
    let place = raw.span();
    let RawSchedule { kind, from, to, by, hold } = raw.into_inner().0;
    let Some(kind) = kind else {
        report.error(place, "the schedule does not say its `kind`").help("add `kind = \"linear\"`");
        return None;
    };
    let name = kind.get_ref().as_str();
    if !KINDS.contains(&name) {
        let remedy = suggest(&name.to_ascii_lowercase(), &KINDS, "kinds of schedules");
        report.error(kind.span(), format!("`{name}` is not a kind of schedule")).help_if(remedy);
        return None;
    }
    if name == "evidence" && !has_budget {
        report
            .error(kind.span(), "a schedule that is as fast as the evidence allows needs a limit to the harm")
            .help("add `max_harm` to `[services.NAME.rollout.analysis]`, such as `max_harm = 200`");
    }
    if let Some(written) = hold.as_ref().filter(|_| name == "evidence") {
        report
            .error(written.span(), "a schedule of kind `evidence` has no `hold`: the evidence alone decides")
            .help("remove it, or write `kind = \"exponential\"`");
    }
    let mut percent = |written: Option<Spanned<f64>>, default: f64| match written {
        Some(written) => weight(&written, report),
        None => Weight::from_percent(default).ok(),
    };
    // A canary's first weight, and how it rises, as in the default steps; and Flagger's usual 10 to 50 %.
    let (from, to) = (percent(from, if name == "linear" { 10.0 } else { 1.0 }), percent(to, 50.0));
    let rise = match name {
        "linear" => Rise::Linear(percent(by, 10.0)?),
        _ => Rise::Exponential(by.map_or(2.0, Spanned::into_inner)),
    };
    let hold = match (name, hold) {
        ("evidence", _) => Duration::ZERO,
        (_, None) => HOLD,
        (_, Some(written)) => time(&written, "hold", WAIT, report)?,
    };
    let schedule = Schedule { rise, from: from?, to: to?, hold };
    schedule
        .steps()
        .inspect_err(|fault| {
            let remedy = match fault {
                ScheduleFault::FromZero => "begin with a small weight, such as `from = 1`".to_owned(),
                ScheduleFault::Falling { .. } => "write a `to` above `from`".to_owned(),
                ScheduleFault::Flat => match rise {
                    Rise::Linear(_) => "write the percentage points that each step adds, such as `by = 10`",
                    Rise::Exponential(_) => "write how many times as much each step gives, such as `by = 2`",
                }
                .to_owned(),
                ScheduleFault::TooMany => format!("let it rise faster: a plan has at most {MAX_STEPS} steps"),
            };
            report.error(place, fault.to_string()).help(remedy);
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, parsed};

    fn schedule(written: &str) -> String {
        format!("[services.web.rollout.schedule]\n{written}")
    }

    fn weights(written: &str) -> Vec<f64> {
        let plan = parsed(&schedule(written)).services.remove(0).rollout.plan;
        plan.steps().iter().map(|step| step.weight.percent()).collect()
    }

    #[test]
    fn rules_make_steps() {
        assert_eq!(weights("kind = 'linear'"), [10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(weights("kind = 'linear'\nfrom = 5\nby = 45\nto = 100"), [5.0, 50.0, 95.0, 100.0]);
        assert_eq!(weights("kind = 'exponential'\nby = 4"), [1.0, 4.0, 16.0, 50.0]);
        let evidence = "kind = 'evidence'\n[services.web.rollout.analysis]\nmax_harm = 200";
        assert_eq!(weights(evidence), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 50.0]);
    }

    #[test]
    fn a_schedule_takes_the_place_of_steps() {
        let both = "[services.web.rollout]\nsteps = [{ weight = 1 }]\n[services.web.rollout.schedule]\nkind = 'linear'";
        assert_eq!(errors(both), ["`steps` and `schedule` both say how the weight rises"]);
        let blue_green = "[services.web.rollout]\nstrategy = 'blue-green'\n[services.web.rollout.schedule]\nkind = 'linear'";
        assert_eq!(errors(blue_green), ["a blue-green plan has no steps: all traffic moves at once"]);
    }

    #[test]
    fn a_rule_that_makes_no_plan_is_reported() {
        let fault = |written| errors(&schedule(written));
        assert_eq!(fault(""), ["the schedule does not say its `kind`"]);
        assert_eq!(fault("kind = 'liner'"), ["`liner` is not a kind of schedule"]);
        assert_eq!(fault("kind = 'exponential'\nby = 1"), ["a schedule must rise from step to step"]);
        assert_eq!(
            fault("kind = 'linear'\nfrom = 0"),
            ["a schedule cannot begin at 0, from which nothing rises"]
        );
        assert_eq!(fault("kind = 'linear'\nby = 0.1\nhold = '1s'"), ["the schedule has over 100 steps"]);
        assert_eq!(
            fault("kind = 'evidence'\nhold = '1s'"),
            [
                "a schedule that is as fast as the evidence allows needs a limit to the harm",
                "a schedule of kind `evidence` has no `hold`: the evidence alone decides"
            ]
        );
    }
}
