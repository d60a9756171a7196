//! A rollout's strategy and its steps. A [`Plan`] cannot be wrong: configuration and API both come
//! through [`Plan::new`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{units::format_duration, weight::Weight};

/// How traffic moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// In steps of rising weight.
    #[default]
    Canary,
    /// All at once, with the old version kept warm for the way back.
    BlueGreen,
}

/// A weight, and how long it lasts at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The canary's share of requests.
    pub weight: Weight,
    /// Shortest time at this weight.
    pub hold: Duration,
}

/// What happens when a rollout reaches its deadline without a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenInconclusive {
    /// Stay at the weight and go on looking.
    Hold,
    /// Stop and wait for a person.
    #[default]
    Pause,
    /// Go back to stable.
    RollBack,
}

/// What a plan is made of, before it is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// How traffic moves.
    pub strategy: Strategy,
    /// The steps in order; must be empty for blue/green, which has one step of 100 %.
    pub steps: Vec<Step>,
    /// How long the new stable is watched, with the old one kept warm, after promotion.
    pub bake: Duration,
    /// Longest time that a step may take beyond its hold before the rollout is inconclusive.
    pub deadline: Duration,
    /// What then happens.
    pub when_inconclusive: WhenInconclusive,
}

impl Draft {
    /// Five steps to a half, then everything: cautious enough for a service nobody has tuned.
    pub fn default_steps() -> Vec<Step> {
        [1.0, 5.0, 10.0, 25.0, 50.0]
            .into_iter()
            .map(|percent| Step {
                weight: Weight::from_percent(percent).expect("a constant in range"),
                hold: Duration::from_secs(60),
            })
            .collect()
    }
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            strategy: Strategy::Canary,
            steps: Self::default_steps(),
            bake: Duration::from_secs(300),
            deadline: Duration::from_secs(600),
            when_inconclusive: WhenInconclusive::default(),
        }
    }
}

/// Why a draft is not a plan. `step` counts from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanFault {
    /// A canary plan without steps.
    #[error("a canary plan needs at least one step")]
    NoSteps,
    /// A blue/green plan with steps.
    #[error("a blue-green plan has no steps: all traffic moves at once")]
    StepsInBlueGreen,
    /// More steps than [`MAX_STEPS`].
    #[error("a plan has at most {MAX_STEPS} steps, this one has {0}")]
    TooManySteps(usize),
    /// A step without traffic.
    #[error("step {} has weight 0, which would never show anything", .step + 1)]
    ZeroWeight {
        /// Which step.
        step: usize,
    },
    /// A step whose weight is not above the one before it.
    #[error("step {} has weight {weight}, which is not above the {before} of the step before it", .step + 1)]
    NotAscending {
        /// Which step.
        step: usize,
        /// Its weight.
        weight: Weight,
        /// The weight of the step before it.
        before: Weight,
    },
    /// A time longer than [`MAX_TIME`].
    #[error("{what} of {} is longer than {}", format_duration(*.given), format_duration(MAX_TIME))]
    TooLong {
        /// Which time.
        what: &'static str,
        /// Its length.
        given: Duration,
    },
}

/// Most steps that a plan may have.
pub const MAX_STEPS: usize = 100;
/// Longest hold, bake or deadline: 30 days.
pub const MAX_TIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// A checked plan: at least one step, weights ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    strategy: Strategy,
    steps: Vec<Step>,
    bake: Duration,
    deadline: Duration,
    when_inconclusive: WhenInconclusive,
}

impl Plan {
    /// Checks a draft.
    ///
    /// # Errors
    /// Every fault of the draft, at least one.
    pub fn new(draft: Draft) -> Result<Self, Vec<PlanFault>> {
        let Draft { strategy, mut steps, bake, deadline, when_inconclusive } = draft;
        let mut faults = Vec::new();
        match strategy {
            Strategy::Canary if steps.is_empty() => faults.push(PlanFault::NoSteps),
            Strategy::BlueGreen if !steps.is_empty() => faults.push(PlanFault::StepsInBlueGreen),
            Strategy::BlueGreen => {
                steps.push(Step { weight: Weight::FULL, hold: Duration::ZERO });
            }
            Strategy::Canary => {}
        }
        if steps.len() > MAX_STEPS {
            faults.push(PlanFault::TooManySteps(steps.len()));
        }
        for (step, Step { weight, .. }) in steps.iter().copied().enumerate() {
            if weight == Weight::ZERO {
                faults.push(PlanFault::ZeroWeight { step });
            } else if let Some(before) = step.checked_sub(1).map(|i| steps[i].weight)
                && weight <= before
            {
                faults.push(PlanFault::NotAscending { step, weight, before });
            }
        }
        let holds = steps.iter().map(|step| ("a hold", step.hold));
        for (what, given) in holds.chain([("a bake", bake), ("a deadline", deadline)]) {
            if given > MAX_TIME {
                faults.push(PlanFault::TooLong { what, given });
            }
        }
        if faults.is_empty() {
            Ok(Self { strategy, steps, bake, deadline, when_inconclusive })
        } else {
            Err(faults)
        }
    }

    /// How traffic moves.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// The steps in order, weights ascending; never empty.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How long the new stable is watched after promotion.
    pub fn bake(&self) -> Duration {
        self.bake
    }

    /// Longest time that a step may take beyond its hold.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// What happens at the deadline.
    pub fn when_inconclusive(&self) -> WhenInconclusive {
        self.when_inconclusive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(percents: &[f64]) -> Vec<Step> {
        let step =
            |p: &f64| Step { weight: Weight::from_percent(*p).unwrap(), hold: Duration::from_secs(60) };
        percents.iter().map(step).collect()
    }

    #[test]
    fn the_default_draft_is_a_plan() {
        assert_eq!(Plan::new(Draft::default()).unwrap().steps().len(), 5);
    }

    #[test]
    fn every_fault_of_the_steps_is_named() {
        let faults = Plan::new(Draft { steps: steps(&[0.0, 10.0, 5.0]), ..Draft::default() }).unwrap_err();
        assert_eq!(faults.len(), 2);
        assert_eq!(faults[0], PlanFault::ZeroWeight { step: 0 });
        assert_eq!(
            faults[1].to_string(),
            "step 3 has weight 5 %, which is not above the 10 % of the step before it"
        );
        assert_eq!(Plan::new(Draft { steps: vec![], ..Draft::default() }), Err(vec![PlanFault::NoSteps]));
    }

    #[test]
    fn blue_green_is_one_step_of_everything() {
        let draft = Draft { strategy: Strategy::BlueGreen, steps: vec![], ..Draft::default() };
        let plan = Plan::new(draft.clone()).unwrap();
        assert_eq!(plan.steps(), [Step { weight: Weight::FULL, hold: Duration::ZERO }]);
        let with_steps = Draft { steps: steps(&[5.0]), ..draft };
        assert_eq!(Plan::new(with_steps), Err(vec![PlanFault::StepsInBlueGreen]));
    }
}
