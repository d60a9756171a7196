//! `tidegate plan`.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{
    EXIT_CONFIG,
    args::{self, Output},
    check, run, simulate, traffic,
};
use crate::{
    analysis::{first_cap, users::Unit},
    config::Service,
    model::{units::format_duration, weight::Weight},
    rollout::{
        forecast::{End, Forecast, Regression, StepForecast, Traffic, WaitsFor},
        plan::{Strategy, WhenInconclusive},
    },
    simulate::report::aligned,
};

/// Says what a plan can show.
pub(super) fn plan(args: &args::Plan) -> ExitCode {
    let Some(config) = check::load(&args.config) else { return ExitCode::from(EXIT_CONFIG) };
    let service = simulate::service_of(config, args.service.as_deref());
    run::finish(service.and_then(|service| answer(args, &service)))
}

fn answer(args: &args::Plan, service: &Service) -> anyhow::Result<()> {
    if service.rollout.plan.strategy() == Strategy::BlueGreen {
        bail!("a blue-green rollout has no steps: all traffic moves at once, and nothing is compared");
    }
    let traffic = traffic::of(service.name.as_str(), args)?;
    let (settings, plan) = (&service.rollout.analysis, &service.rollout.plan);
    let forecast = Forecast::new(settings, plan, traffic, service.routes.len());
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&forecast)? + "\n",
        Output::Table => in_words(service, &forecast),
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write the answer")
}

fn in_words(service: &Service, forecast: &Forecast) -> String {
    let Forecast { traffic: Traffic { requests_per_second, failing }, .. } = *forecast;
    let mut text = format!(
        "{}: {} requests a second, of which stable fails {}\n\n",
        service.name,
        number(requests_per_second),
        percent(failing),
    );
    text += &aligned(
        ["step", "weight", "lasts", "canary requests", "finds failures of", "finds slow requests of"],
        &[2],
        &forecast.steps.iter().enumerate().map(step).collect::<Vec<_>>(),
    );
    text.push('\n');
    text += &aligned(
        ["canary fails", "is", "after", "in step", "harmed"],
        &[1],
        &forecast.regressions.iter().map(regression).collect::<Vec<_>>(),
    );
    let _infallible = write!(text, "\n{}\n", conclusion(service, forecast));
    text
}

fn step((index, step): (usize, &StepForecast)) -> [String; 6] {
    let finds = |share: Option<f64>| {
        share.map_or_else(|| "-".to_owned(), |share| format!("{} or more", percent(share)))
    };
    let waits = match (step.waits_for, step.ends) {
        (None, _) => "",
        (Some(WaitsFor::Requests), true) => " (for requests)",
        (Some(WaitsFor::Proof), true) => " (for proof)",
        (Some(_), false) => " (no verdict)",
    };
    [
        (index + 1).to_string(),
        step.mirror.map_or_else(|| step.weight.to_string(), |mirror| format!("copies of {mirror}")),
        format!("{}{waits}", seconds(step.seconds)),
        number(step.canary_requests),
        finds(step.finds_failing),
        finds(step.finds_slow),
    ]
}

fn regression(regression: &Regression) -> [String; 5] {
    let end = match regression.end {
        End::RolledBack => "rolled back",
        End::Inconclusive => "neither found nor promoted",
        End::Promoted => "promoted",
    };
    [
        percent(regression.failing),
        end.to_owned(),
        seconds(regression.seconds),
        (regression.step + 1).to_string(),
        number(regression.harmed),
    ]
}

fn conclusion(service: &Service, forecast: &Forecast) -> String {
    let plan = &service.rollout.plan;
    let all = Duration::from_secs_f64(forecast.steps.iter().map(|step| step.seconds).sum());
    let needed = match forecast.requests_per_second_needed {
        Some(needed) => format!("it needs {} requests a second", number(needed)),
        None => "no traffic is enough for it".to_owned(),
    };
    let stuck = forecast.steps.iter().position(|step| !step.ends);
    let mut text = match stuck {
        None => format!("A canary like stable is promoted after {}; for that {needed}.", whole(all)),
        Some(step) => {
            let what = match forecast.steps[step].waits_for {
                Some(WaitsFor::Requests) => {
                    let own = plan.steps().get(step).and_then(|step| step.minimum_requests);
                    let least = own.unwrap_or(service.rollout.analysis.minimum_requests);
                    let what =
                        if forecast.steps[step].mirror.is_some() { "copies" } else { "canary requests" };
                    format!("{least} {what}")
                }
                _ => format!("proof to {}", percent(service.rollout.analysis.promotion_margin)),
            };
            let then = match plan.when_inconclusive() {
                WhenInconclusive::Hold => "it stays there",
                WhenInconclusive::Pause => "it pauses",
                WhenInconclusive::RollBack => "it is rolled back",
            };
            format!(
                "This plan cannot reach a verdict: in step {} a canary like stable lacks {what} when hold and \
                 deadline are over, and {then}; {needed}.",
                step + 1,
            )
        }
    };
    text += " Each figure holds in nine cases of ten.";
    if service.rollout.analysis.max_harm.is_some() {
        text += " `max_harm` may keep weights lower than that";
        text += &at_first(service, forecast)
            .map_or_else(|| ".".to_owned(), |cap| format!(": at first to {cap}."));
    }
    if service.rollout.analysis.unit == Unit::User {
        let least = service.rollout.analysis.minimum_requests;
        text += &format!(
            " Users are what is counted: the last step also takes {least} of them on the canary, and where one asks again and \
             again, what is found takes longer."
        );
    }
    text
}

/// What a budget leaves of the first step with users, if not all of it.
fn at_first(service: &Service, forecast: &Forecast) -> Option<Weight> {
    let first = service.rollout.plan.steps().iter().find(|step| !step.is_dark())?;
    let cap = first_cap(service.rollout.analysis.max_harm?, forecast.traffic.requests_per_second)?;
    (cap < first.weight).then_some(cap)
}

fn seconds(seconds: f64) -> String {
    whole(Duration::from_secs_f64(seconds))
}

/// In whole seconds, rounded up: a tick is one.
fn whole(time: Duration) -> String {
    format_duration(Duration::from_secs_f64(time.as_secs_f64().ceil()))
}

/// To two digits, or as a whole number.
fn number(value: f64) -> String {
    let text = format!("{value:.digits$}", digits = usize::from(value < 10.0));
    text.strip_suffix(".0").map(ToOwned::to_owned).unwrap_or(text)
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    let digits = if percent >= 10.0 || percent == 0.0 {
        0
    } else if percent >= 1.0 {
        1
    } else {
        2
    };
    let text = format!("{percent:.digits$}");
    let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} %")
}
