//! `[services.NAME.rollout]`: how a rollout of the service goes.
//!
//! What makes a plan wrong is decided by [`Plan::new`], which the API shares; here each fault only
//! gets its place and a remedy.

use std::{ops::Range, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Rollout,
    analysis::{self, RawAnalysis},
    report::Report,
    suggest::suggest,
    written::{Section, Table, Text, Time, WAIT, in_words, time, time_or, weight},
};
use crate::rollout::plan::{Draft, MAX_STEPS, MAX_TIME, Plan, PlanFault, Step, Strategy, WhenInconclusive};

/// How long a step lasts at least if it does not say; as in the default steps.
const DEFAULT_HOLD: Duration = Duration::from_secs(60);

/// `[services.NAME.rollout]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRollout {
    strategy: Option<Text>,
    steps: Option<Spanned<Vec<Spanned<Table<RawStep>>>>>,
    bake: Option<Time>,
    deadline: Option<Time>,
    when_inconclusive: Option<Text>,
    analysis: Option<Table<RawAnalysis>>,
}

impl Section for RawRollout {
    const HEADER: &'static str = "[services.NAME.rollout]";
}

/// One of `steps` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStep {
    weight: Option<Spanned<f64>>,
    hold: Option<Time>,
}

impl Section for RawStep {
    const HEADER: &'static str = "{ weight = 10, hold = \"5m\" }";
}

/// A step, and where its parts stand.
struct PlacedStep {
    step: Step,
    /// Which of the written steps it is, from 0.
    number: usize,
    weight: Range<usize>,
    hold: Range<usize>,
}

/// How a rollout of one service goes; `service` is the place of its name.
pub(super) fn lower(raw: RawRollout, service: Range<usize>, report: &mut Report<'_>) -> Option<Rollout> {
    let RawRollout { strategy, steps, bake, deadline, when_inconclusive, analysis } = raw;
    let default = Draft::default();
    let strategy = lower_word(strategy, "strategy", &STRATEGIES, report);
    let steps_place = steps.as_ref().map(Spanned::span);
    let written = steps.as_ref().map(|steps| steps.get_ref().len());
    let placed = lower_steps(steps, report);
    // Whoever wrote a strategy that does not exist meant one that fits the steps.
    let strategy = strategy.unwrap_or(match written {
        Some(1..) => Strategy::Canary,
        _ => Strategy::BlueGreen,
    });
    let steps = match (written, strategy) {
        (None, Strategy::Canary) => Draft::default_steps(),
        // Steps that are all wrong are not the same as no steps.
        (Some(1..), Strategy::Canary) if placed.is_empty() => Draft::default_steps(),
        (_, Strategy::BlueGreen) if written.is_none_or(|steps| steps == 0) => Vec::new(),
        _ => placed.iter().map(|placed| placed.step).collect(),
    };
    let inconclusive = lower_word(when_inconclusive, "when_inconclusive", &WHEN_INCONCLUSIVE, report);
    let draft = Draft {
        strategy,
        steps,
        bake: time_or(default.bake, bake.as_ref(), "bake", WAIT, report),
        deadline: time_or(default.deadline, deadline.as_ref(), "deadline", WAIT, report),
        when_inconclusive: inconclusive.unwrap_or_default(),
    };
    let analysis = analysis::lower(analysis.unwrap_or_default().0, report);
    match Plan::new(draft) {
        Ok(plan) => Some(Rollout { plan, analysis }),
        Err(faults) => {
            let place = steps_place.unwrap_or(service);
            faults.iter().for_each(|fault| report_fault(fault, &placed, place.clone(), report));
            None
        }
    }
}

/// Words for strategies.
const STRATEGIES: [(&str, Strategy); 2] = [("canary", Strategy::Canary), ("blue-green", Strategy::BlueGreen)];

/// Words for what happens at the deadline.
const WHEN_INCONCLUSIVE: [(&str, WhenInconclusive); 3] = [
    ("hold", WhenInconclusive::Hold),
    ("pause", WhenInconclusive::Pause),
    ("roll_back", WhenInconclusive::RollBack),
];

/// The meaning of one word out of a few, under `key`; the default where none is written, nothing where the word
/// is not among them.
fn lower_word<T: Copy + Default>(
    written: Option<Text>,
    key: &str,
    words: &[(&str, T)],
    report: &mut Report<'_>,
) -> Option<T> {
    let Some(written) = written else { return Some(T::default()) };
    let word = written.get_ref();
    let meaning = words.iter().find(|(known, _)| known == word).map(|(_, meaning)| *meaning);
    if meaning.is_none() {
        let known: Vec<_> = words.iter().map(|(known, _)| *known).collect();
        // Other programs write `bluegreen`, `blue_green` and `rollback`.
        let remedy = suggest(&word.to_ascii_lowercase(), &known, "choices");
        report.error(written.span(), format!("`{key}` cannot be `{word}`")).help_if(remedy);
    }
    meaning
}

fn lower_steps(
    written: Option<Spanned<Vec<Spanned<Table<RawStep>>>>>,
    report: &mut Report<'_>,
) -> Vec<PlacedStep> {
    let written = written.map(Spanned::into_inner).unwrap_or_default();
    let steps = written.into_iter().enumerate();
    steps.filter_map(|(number, raw)| lower_step(number, raw, report)).collect()
}

fn lower_step(number: usize, raw: Spanned<Table<RawStep>>, report: &mut Report<'_>) -> Option<PlacedStep> {
    let place = raw.span();
    let RawStep { weight: share, hold } = raw.into_inner().0;
    let hold_place = hold.as_ref().map_or_else(|| place.clone(), Spanned::span);
    let hold = match hold {
        None => Some(DEFAULT_HOLD),
        Some(written) => time(&written, "hold", WAIT, report),
    };
    let Some(share) = share else {
        report
            .error(place, format!("step {} has no `weight`", number + 1))
            .help("say how much traffic the canary gets: `{ weight = 10, hold = \"5m\" }`");
        return None;
    };
    let weight = weight(&share, report)?;
    // A wrong hold says nothing about the weight, which is still compared with its neighbours.
    let step = Step { weight, hold: hold.unwrap_or(DEFAULT_HOLD) };
    Some(PlacedStep { step, number, weight: share.span(), hold: hold_place })
}

/// Puts a fault where it belongs. `steps` are those whose parts are right; `place` is that of all.
fn report_fault(fault: &PlanFault, steps: &[PlacedStep], place: Range<usize>, report: &mut Report<'_>) {
    match *fault {
        PlanFault::NoSteps => report
            .error(place, fault.to_string())
            .help("add one, such as `{ weight = 10, hold = \"5m\" }`, or leave `steps` out for the default"),
        PlanFault::StepsInBlueGreen => {
            report.error(place, fault.to_string()).help("remove `steps`, or write `strategy = \"canary\"`")
        }
        PlanFault::TooManySteps(_) => {
            report.error(place, fault.to_string()).help(format!("write at most {MAX_STEPS} steps"))
        }
        PlanFault::ZeroWeight { step } => {
            let (number, place) = steps.get(step).map_or((step, place), |s| (s.number, s.weight.clone()));
            report
                .error(place, PlanFault::ZeroWeight { step: number }.to_string())
                .help("begin with a small weight, such as 1")
        }
        PlanFault::NotAscending { step, weight, before } => {
            let (number, place) = steps.get(step).map_or((step, place), |s| (s.number, s.weight.clone()));
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

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };
    use crate::analysis::settings::Settings;

    fn rollout(written: &str) -> String {
        format!("[services.web.rollout]\n{written}")
    }

    fn plan(written: &str) -> Plan {
        parsed(&rollout(written)).services.remove(0).rollout.plan
    }

    #[test]
    fn everything_has_a_default() {
        let Rollout { plan: default, analysis } = parsed("").services.remove(0).rollout;
        assert_eq!(default, Plan::new(Draft::default()).unwrap());
        assert_eq!(analysis, Settings::default());
        assert_eq!(plan(""), default);
        assert_eq!(plan("steps = [{ weight = 5 }]").steps()[0].hold, DEFAULT_HOLD);
    }

    #[test]
    fn both_strategies_can_be_written() {
        let canary = plan("strategy = 'canary'\nsteps = [{ weight = 1, hold = '5m' }, { weight = 50.5 }]");
        assert_eq!(canary.steps().len(), 2);
        assert_eq!(canary.steps()[1].weight.hundredths(), 5050);
        let blue_green = plan("strategy = 'blue-green'\nbake = '0s'\nwhen_inconclusive = 'roll_back'");
        assert_eq!(blue_green.strategy(), Strategy::BlueGreen);
        assert_eq!(blue_green.when_inconclusive(), WhenInconclusive::RollBack);
    }

    #[test]
    fn faults_of_the_plan_carry_the_number_of_the_written_step() {
        let steps =
            "steps = [{ weight = 0 }, { weight = 101 }, { weight = 10, hold = 'x' }, { weight = 5 }, {}]";
        assert_eq!(
            errors(&rollout(steps)),
            [
                "step 1 has weight 0, which would never show anything",
                "101 is not a weight",
                "`x` is not a duration",
                "step 4 has weight 5 %, which is not above the 10 % of the step before it",
                "step 5 has no `weight`",
            ]
        );
    }

    #[test]
    fn a_wrong_strategy_is_the_only_fault_reported_for_it() {
        assert_eq!(errors(&rollout("strategy = 'bluegreen'")).len(), 1);
        assert_eq!(errors(&rollout("strategy = 'cannary'\nsteps = [{ weight = 1 }]")).len(), 1);
    }

    #[test]
    fn steps_belong_to_canaries_only() {
        assert_eq!(errors(&rollout("steps = []")), ["a canary plan needs at least one step"]);
        assert_eq!(
            errors(&rollout("strategy = 'blue-green'\nsteps = [{ weight = 1 }]")),
            ["a blue-green plan has no steps: all traffic moves at once"]
        );
        assert_eq!(errors(&rollout("strategy = 'blue-green'\nsteps = []")), [""; 0]);
    }
}
