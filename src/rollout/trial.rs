//! A rollout and its evidence, side by side: what the analysis has to be told when the phase changes,
//! what it is asked in which phase, and what its budget means for the weight.
//!
//! Whoever drives a rollout (the controller, a simulation, a replay) comes through here, so that what is
//! simulated is what will happen.

use std::time::Duration;

use super::{
    phase::{Exposure, Phase},
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

/// What of a phase's exposure the budget allows, where the canary has `current` now. Before its first tick, too: then
/// by what is known of stable.
pub fn within_budget(exposure: Exposure, current: Weight, analysis: &Analysis) -> Exposure {
    Exposure { weight: weight(exposure.weight, current, analysis.harm().as_ref()), ..exposure }
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
    use proptest::{
        collection::vec,
        prelude::{Just, prop_oneof, proptest},
        sample::select,
        strategy::Strategy,
    };

    use super::*;
    use crate::{
        analysis::ArmTick,
        model::{histogram::Histogram, time::Timestamp},
        rollout::{
            effect::Effect,
            event::{Command, Event},
            machine,
            plan::{Draft, Step},
        },
    };

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

    /// What can happen to a rollout.
    #[derive(Debug, Clone)]
    enum Happens {
        /// A tick with so many requests, and the share of the canary's that fails.
        Tick(u64, f64),
        Command(Command),
    }

    fn happens() -> impl Strategy<Value = Happens> {
        let commands = [Command::Promote { full: false }, Command::Pause, Command::Resume];
        prop_oneof![
            4 => (0..3_000_u64, prop_oneof![Just(0.0), Just(0.01), Just(1.0)]).prop_map(|(n, p)| Happens::Tick(n, p)),
            2 => Just(Happens::Tick(0, 0.0)),
            1 => select(commands.to_vec()).prop_map(Happens::Command),
        ]
    }

    /// Drives a rollout as the controller does, and looks at each weight that the next requests see.
    fn no_weight_is_above_the_cap(rate: u64, budget: f64, course: &[Happens]) {
        let settings = Settings { max_harm: Some(budget), ..Settings::default() };
        let steps = [10.0, 20.0, 50.0].map(|weight| Step::new(percent(weight), Duration::from_secs(2)));
        let plan = Plan::new(Draft { steps: steps.into(), ..Draft::default() }).unwrap();
        let untimed = Histogram::default();
        let mut analysis = begin(&settings, &plan, Duration::from_secs(1));
        for _ in 0..20 {
            analysis.observe_before(&ArmTick::new(rate, 0, &untimed), None);
        }
        let (mut phase, mut current) =
            (Phase::Preparing { since: Timestamp::from_millis(0), full: false }, Weight::ZERO);
        let course = course.iter().map(|happens| match happens {
            Happens::Command(command) => (Event::Command(*command), None),
            Happens::Tick(requests, failing) => {
                (Event::Tick(Decision::Continue), Some((*requests, *failing)))
            }
        });
        for (second, (mut event, tick)) in (1_u64..).zip([(Event::Prepared, None)].into_iter().chain(course))
        {
            if let Some((requests, failing)) = tick {
                let canary = (requests as f64 * current.percent() / 100.0).round();
                let arm = |requests: f64, failing: f64| {
                    ArmTick::new(requests as u64, (requests * failing) as u64, &untimed)
                };
                let arms = (arm(requests as f64 - canary, 0.0), arm(canary, failing));
                let tick = Tick { stable: arms.0, canary: arms.1, routes: &[], users: None };
                let Some(decision) = observe(&mut analysis, &phase, &tick, None) else { return };
                event = Event::Tick(decision);
            }
            let at = Timestamp::from_millis(1_000 * second);
            let Ok(machine::Transition { phase: next, effects, .. }) =
                machine::step(phase.clone(), &plan, event, at)
            else {
                continue;
            };
            follow(&mut analysis, &phase, &next, &plan);
            let is_tick = tick.is_some() && next.step().is_some();
            phase = next;
            let published = effects.into_iter().filter_map(|effect| match effect {
                Effect::Publish(exposure) => Some(exposure),
                Effect::Save => None,
            });
            for exposure in published.chain(is_tick.then(|| phase.exposure(&plan))) {
                current = within_budget(exposure, current, &analysis).weight;
                let cap = analysis.harm().unwrap().weight_cap.expect("there was traffic");
                assert!(current <= cap, "{current} where the cap is {cap}, {phase:?}");
                assert!(current <= exposure.weight);
            }
        }
    }

    proptest! {
        #[test]
        fn no_course_of_events_publishes_more_than_the_budget_allows(
            rate in 1..3_000_u64,
            budget in 1.0..500.0_f64,
            course in vec(happens(), 0..120),
        ) {
            no_weight_is_above_the_cap(rate, budget, &course);
        }
    }

    #[test]
    fn what_a_dead_canary_fails_in_its_first_two_ticks_is_the_budget() {
        let settings = Settings { max_harm: Some(20.0), ..Settings::default() };
        let untimed = Histogram::default();
        let mut analysis = Analysis::new(&settings, 600);
        let first =
            |analysis: &Analysis| within_budget(Exposure::canary(percent(10.0)), Weight::ZERO, analysis);
        assert_eq!(first(&analysis).weight, percent(10.0), "there was no traffic");
        (0..30).for_each(|_| analysis.observe_before(&ArmTick::new(1_000, 1, &untimed), None));
        assert_eq!(first(&analysis).weight, percent(1.0));
        // Also by whoever takes it up from a recording, and in a silence.
        let mut again = Analysis::new(&settings, 600).knowing(&analysis.learned());
        assert_eq!(first(&again).weight, percent(1.0));
        let silent = Tick {
            stable: ArmTick::new(0, 0, &untimed),
            canary: ArmTick::new(0, 0, &untimed),
            routes: &[],
            users: None,
        };
        (0..50).for_each(|_| _ = again.observe(&silent));
        assert_eq!(first(&again).weight, percent(1.0));
        assert_eq!(within_budget(Exposure::SWAPPED, Weight::ZERO, &analysis), Exposure::SWAPPED);
        assert_eq!(
            within_budget(Exposure::dark(percent(50.0)), Weight::ZERO, &analysis),
            Exposure::dark(percent(50.0))
        );
    }
}
