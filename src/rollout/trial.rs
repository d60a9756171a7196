//! A rollout and its evidence, side by side: what the analysis has to be told when the phase changes,
//! what it is asked in which phase, and what its budget means for the weight.
//!
//! Whoever drives a rollout (the controller, a simulation, a replay) comes through here, so that what is
//! simulated is what will happen.

use std::time::Duration;

use super::{
    phase::Phase,
    plan::{Plan, Strategy},
};
use crate::{
    analysis::{
        Analysis, Tick,
        paired::Counts,
        settings::Settings,
        verdict::{Decision, Harm},
    },
    model::weight::Weight,
};

/// The analysis of a rollout that begins now and is looked at once a `tick`.
pub fn begin(settings: &Settings, plan: &Plan, tick: Duration) -> Analysis {
    let planned: Duration = plan.steps().iter().map(|step| step.hold).sum();
    let ticks = planned.as_millis() / tick.as_millis().max(1);
    let analysis = Analysis::new(settings, u64::try_from(ticks).unwrap_or(u64::MAX));
    if plan.has_dark_steps() { analysis.with_dark_steps(settings) } else { analysis }
}

/// Tells the analysis that the rollout went from one phase to another.
pub fn follow(analysis: &mut Analysis, before: &Phase, after: &Phase, plan: &Plan) {
    match after {
        Phase::Stepping { step, .. } if before.step() != Some(*step) => {
            match plan.steps().get(*step) {
                Some(step) if step.is_dark() => analysis.begin_dark_step(),
                _ => analysis.begin_step(plan.steps().get(step + 1).map(|next| next.weight)),
            }
            if let Some(requests) = plan.steps().get(*step).and_then(|step| step.minimum_requests) {
                analysis.require(requests);
            }
        }
        Phase::Baking { .. } if !matches!(before, Phase::Baking { .. }) => analysis.begin_baking(),
        _ => {}
    }
}

/// What a tick calls for; nothing before and after the canary's trial. In baking the promoted version is
/// stable. `pairs` are those that ended in a dark step, in which they alone are evidence.
pub fn observe(
    analysis: &mut Analysis,
    phase: &Phase,
    tick: &Tick<'_>,
    pairs: Option<&Counts>,
) -> Option<Decision> {
    match (phase, pairs) {
        (Phase::Stepping { .. } | Phase::Paused { .. }, Some(pairs)) => {
            Some(analysis.observe_dark(tick, pairs))
        }
        _ => observe_users(analysis, phase, tick),
    }
}

fn observe_users(analysis: &mut Analysis, phase: &Phase, tick: &Tick<'_>) -> Option<Decision> {
    match phase {
        Phase::Stepping { .. } | Phase::Paused { .. } => Some(analysis.observe(tick)),
        Phase::Baking { .. } => Some(analysis.observe_baking(&tick.stable)),
        // These end with the next tick, whatever is seen in it.
        Phase::Promoting { .. } | Phase::RollingBack { .. } => Some(Decision::Continue),
        Phase::Idle | Phase::Preparing { .. } => {
            analysis.observe_before(&tick.stable, tick.users);
            None
        }
        Phase::Succeeded { .. } | Phase::RolledBack { .. } => None,
    }
}

/// Whether nobody comes to the canary by chance in this phase, but is sent there by rules: A/B. Then it is
/// judged by those who are.
pub fn is_by_rules(phase: &Phase, plan: &Plan) -> bool {
    let step = phase.step().and_then(|step| plan.steps().get(step));
    plan.strategy() == Strategy::Canary
        && step.is_some_and(|step| step.weight == Weight::ZERO && !step.is_dark())
}

/// The canary's weight in a step of weight `step`, where it is `current` and the budget says `harm`.
/// Never more than the step's. It falls at once, and rises only by a quarter or more, or to the step's: a weight
/// that changes every tick helps nobody.
pub fn weight(step: Weight, current: Weight, harm: Option<&Harm>) -> Weight {
    match harm.and_then(|harm| harm.weight_cap) {
        Some(cap) if cap < step => {
            let worth_it = cap.hundredths() / 5 >= current.hundredths() / 4;
            if cap < current || worth_it { cap } else { current }
        }
        _ => step,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(percent: f64) -> Weight {
        Weight::from_percent(percent).unwrap()
    }

    #[test]
    fn a_budget_lowers_the_weight_at_once_and_raises_it_in_leaps() {
        let weight = |step, current, cap: Option<f64>| {
            let harm = Harm { spent: 0.0, budget: 1.0, weight_cap: cap.map(percent) };
            weight(percent(step), percent(current), Some(&harm)).percent()
        };
        assert_eq!(weight(10.0, 10.0, Some(8.0)), 8.0);
        assert_eq!(weight(10.0, 8.0, Some(9.0)), 8.0);
        assert_eq!(weight(20.0, 8.0, Some(10.0)), 10.0);
        assert_eq!(weight(10.0, 8.0, Some(50.0)), 10.0);
        assert_eq!(weight(10.0, 8.0, None), 10.0);
        assert_eq!(super::weight(percent(10.0), percent(8.0), None), percent(10.0));
    }
}
