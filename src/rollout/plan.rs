//! A rollout's strategy and its steps. A [`Plan`] cannot be wrong: configuration and API both come
//! through [`Plan::new`].

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::model::{units::format_duration, weight::Weight};

pub mod schedule;

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

/// What a step needs that none has unless it is written.
fn none<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A weight, or a share of copies, and how long it lasts at least.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The canary's share of requests.
    pub weight: Weight,
    /// Shortest time at this weight.
    pub hold: Duration,
    /// In a dark step: the share of stable's requests that the canary gets copies of. Its weight is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Weight>,
    /// Requests that the canary must have had in it before it may be left, or copies of them; the analysis's
    /// own number where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_requests: Option<u64>,
    /// Whether a person must say so before it is left.
    #[serde(default, skip_serializing_if = "none")]
    pub gate: bool,
    /// The checks of what is measured elsewhere that are watched in it, by name; all of them where it does not
    /// say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<Vec<Arc<str>>>,
}

impl Step {
    /// A step that ends when the time is over and the evidence allows it.
    pub const fn new(weight: Weight, hold: Duration) -> Self {
        Self { weight, hold, mirror: None, minimum_requests: None, gate: false, checks: None }
    }

    /// A step in which the canary gets copies of a share of requests, and no users.
    pub fn dark(mirror: Weight, hold: Duration) -> Self {
        Self { mirror: Some(mirror), ..Self::new(Weight::ZERO, hold) }
    }

    /// Whether the canary gets copies in it, and no users.
    pub const fn is_dark(&self) -> bool {
        self.mirror.is_some()
    }
}

/// Where hooks stand that must be asked before a rollout goes on. Which ones they are is not the plan's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hooks {
    /// Between two steps.
    pub step: bool,
    /// Before the new version gets everything.
    pub promotion: bool,
    /// What happens if one does not allow it.
    pub on_failure: OnHookFailure,
}

/// What happens if a hook does not let a rollout go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnHookFailure {
    /// Stop and wait for a person.
    #[default]
    Pause,
    /// Go back to stable.
    RollBack,
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
    /// Whether a person must say so before a new version of blue/green gets everything; for a canary, its
    /// last step's `gate` is that.
    pub promotion_gate: bool,
    /// Where a rollout waits for hooks.
    pub hooks: Hooks,
    /// How long after a rollback no rollout is started without force.
    pub cool_down: Duration,
    /// How long a rollback waits for what is under way at the canary to end.
    pub drain: Duration,
    /// How long after success the old version is kept warm, for the way back.
    pub rollback_window: Duration,
    /// Whether the canary gets requests without having a weight, by rules that force them, so that a first
    /// step of weight 0 shows something.
    pub unweighted: bool,
}

impl Draft {
    /// Five steps to a half, then everything: cautious enough for a service nobody has tuned.
    pub fn default_steps() -> Vec<Step> {
        [1.0, 5.0, 10.0, 25.0, 50.0]
            .into_iter()
            .map(|percent| {
                let weight = Weight::from_percent(percent).expect("a constant in range");
                Step::new(weight, Duration::from_secs(60))
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
            promotion_gate: false,
            hooks: Hooks::default(),
            cool_down: Duration::ZERO,
            drain: DRAIN,
            rollback_window: ROLLBACK_WINDOW,
            unweighted: false,
        }
    }
}

/// [`Draft::drain`] of a plan that does not say: as long as Kubernetes gives a pod to end.
const DRAIN: Duration = Duration::from_secs(30);
/// [`Draft::rollback_window`] of a plan that does not say.
const ROLLBACK_WINDOW: Duration = Duration::from_secs(3600);

/// Why a draft is not a plan. `step` counts from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanFault {
    /// A canary plan without steps.
    #[error("a canary plan needs at least one step")]
    NoSteps,
    /// A blue/green plan with steps.
    #[error("a blue-green plan has no steps: all traffic moves at once")]
    StepsInBlueGreen,
    /// A gate of blue/green in a plan of steps.
    #[error("`promotion_gate` is for blue-green; a canary plan has `gate = true` at its last step")]
    PromotionGateOfCanary,
    /// More steps than [`MAX_STEPS`].
    #[error("a plan has at most {MAX_STEPS} steps, this one has {0}")]
    TooManySteps(usize),
    /// A step without traffic.
    #[error("step {} has weight 0, in which nothing would be seen of the canary", .step + 1)]
    ZeroWeight {
        /// Which step.
        step: usize,
    },
    /// A dark step without copies.
    #[error("step {} has `mirror` 0, in which nothing would be seen of the canary", .step + 1)]
    NoCopies {
        /// Which step.
        step: usize,
    },
    /// A step with users and copies.
    #[error("step {} has both `weight` and `mirror`: the canary gets either users or copies in it", .step + 1)]
    UsersAndCopies {
        /// Which step.
        step: usize,
    },
    /// A dark step after users have been at the canary.
    #[error("step {} has `mirror`, and the one before it has users already: copies come first", .step + 1)]
    DarkAfterLive {
        /// Which step.
        step: usize,
    },
    /// A plan in which nobody has been at the canary before everybody is.
    #[error("every step has `mirror`: what copies show may open the first step with users, and nothing more")]
    OnlyDark,
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
    // What plans that were saved before had not.
    #[serde(default, skip_serializing_if = "none")]
    hooks: Hooks,
    #[serde(default, skip_serializing_if = "none")]
    cool_down: Duration,
    #[serde(default)]
    drain: Duration,
    #[serde(default)]
    rollback_window: Duration,
}

impl Plan {
    /// Checks a draft.
    ///
    /// # Errors
    /// Every fault of the draft, at least one.
    pub fn new(draft: Draft) -> Result<Self, Vec<PlanFault>> {
        let mut faults = faults(&draft);
        let Draft { strategy, mut steps, .. } = draft;
        if strategy == Strategy::BlueGreen && steps.is_empty() {
            let gate = draft.promotion_gate;
            steps.push(Step { gate, ..Step::new(Weight::FULL, Duration::ZERO) });
        }
        let times = [
            ("a bake", draft.bake),
            ("a deadline", draft.deadline),
            ("a cool-down", draft.cool_down),
            ("a drain", draft.drain),
            ("a rollback window", draft.rollback_window),
        ];
        let holds = steps.iter().map(|step| ("a hold", step.hold));
        let long = holds.chain(times).filter(|(_, given)| *given > MAX_TIME);
        faults.extend(long.map(|(what, given)| PlanFault::TooLong { what, given }));
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            strategy,
            steps,
            bake: draft.bake,
            deadline: draft.deadline,
            when_inconclusive: draft.when_inconclusive,
            hooks: draft.hooks,
            cool_down: draft.cool_down,
            drain: draft.drain,
            rollback_window: draft.rollback_window,
        })
    }

    /// How traffic moves.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Whether the canary gets copies before it gets users.
    pub fn has_dark_steps(&self) -> bool {
        self.steps.first().is_some_and(Step::is_dark)
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

    /// Where a rollout waits for hooks, and what happens if one fails.
    pub fn hooks(&self) -> Hooks {
        self.hooks
    }

    /// Whether a hook must be asked before this step is left.
    pub fn has_hook_after(&self, step: usize) -> bool {
        if step + 1 < self.steps.len() { self.hooks.step } else { self.hooks.promotion }
    }

    /// The checks of what is measured elsewhere that are watched in a step, by name; nothing where all are.
    pub fn checks_in(&self, step: usize) -> Option<&[Arc<str>]> {
        self.steps.get(step).and_then(|step| step.checks.as_deref())
    }

    /// Whether a person must say so before this step is left.
    pub fn has_gate_after(&self, step: usize) -> bool {
        self.steps.get(step).is_some_and(|step| step.gate)
    }

    /// How long after a rollback no rollout is started without force.
    pub fn cool_down(&self) -> Duration {
        self.cool_down
    }

    /// How long a rollback waits for what is under way at the canary to end.
    pub fn drain(&self) -> Duration {
        self.drain
    }

    /// How long after success the old version is kept warm.
    pub fn rollback_window(&self) -> Duration {
        self.rollback_window
    }
}

/// What is wrong with the steps, if anything is.
fn faults(draft: &Draft) -> Vec<PlanFault> {
    let Draft { strategy, steps, .. } = draft;
    let mut faults = Vec::new();
    match strategy {
        Strategy::Canary if steps.is_empty() => faults.push(PlanFault::NoSteps),
        Strategy::Canary if draft.promotion_gate => faults.push(PlanFault::PromotionGateOfCanary),
        Strategy::BlueGreen if !steps.is_empty() => faults.push(PlanFault::StepsInBlueGreen),
        Strategy::Canary | Strategy::BlueGreen => {}
    }
    if steps.len() > MAX_STEPS {
        faults.push(PlanFault::TooManySteps(steps.len()));
    }
    if !steps.is_empty() && steps.iter().all(Step::is_dark) {
        faults.push(PlanFault::OnlyDark);
    }
    for (step, &Step { weight, mirror, .. }) in steps.iter().enumerate() {
        let before = step.checked_sub(1).map(|before| &steps[before]).filter(|before| !before.is_dark());
        let before = before.map(|before| before.weight);
        if let Some(mirror) = mirror {
            if weight != Weight::ZERO {
                faults.push(PlanFault::UsersAndCopies { step });
            } else if before.is_some() {
                faults.push(PlanFault::DarkAfterLive { step });
            } else if mirror == Weight::ZERO {
                faults.push(PlanFault::NoCopies { step });
            }
        } else if weight == Weight::ZERO && !(before.is_none() && draft.unweighted) {
            faults.push(PlanFault::ZeroWeight { step });
        } else if let Some(before) = before.filter(|before| weight <= *before) {
            faults.push(PlanFault::NotAscending { step, weight, before });
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(percents: &[f64]) -> Vec<Step> {
        let step = |p: &f64| Step::new(Weight::from_percent(*p).unwrap(), Duration::from_secs(60));
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
        assert_eq!(plan.steps(), [Step::new(Weight::FULL, Duration::ZERO)]);
        let with_steps = Draft { steps: steps(&[5.0]), ..draft };
        assert_eq!(Plan::new(with_steps), Err(vec![PlanFault::StepsInBlueGreen]));
    }

    #[test]
    fn a_first_step_without_weight_needs_requests_that_come_by_other_ways() {
        let draft = Draft { steps: steps(&[0.0, 10.0]), unweighted: true, ..Draft::default() };
        assert!(Plan::new(draft.clone()).is_ok());
        let later = Draft { steps: steps(&[10.0, 0.0]), unweighted: true, ..Draft::default() };
        assert_eq!(Plan::new(later), Err(vec![PlanFault::ZeroWeight { step: 1 }]));
        let nobody = Draft { unweighted: false, ..draft };
        assert_eq!(Plan::new(nobody), Err(vec![PlanFault::ZeroWeight { step: 0 }]));
    }

    #[test]
    fn copies_come_before_users_and_do_not_take_their_place() {
        let dark = |percent: f64| Step::dark(Weight::from_percent(percent).unwrap(), Duration::from_secs(60));
        let faults = |steps: Vec<Step>| Plan::new(Draft { steps, ..Draft::default() }).err();
        let [zero, one, ten] = <[Step; 3]>::try_from(steps(&[0.0, 1.0, 10.0])).unwrap();
        assert_eq!(faults(vec![dark(100.0), dark(10.0), one.clone(), ten.clone()]), None);
        let draft = Draft { steps: vec![dark(1.0), one.clone()], ..Draft::default() };
        assert!(Plan::new(draft).unwrap().has_dark_steps());
        assert_eq!(faults(vec![one.clone(), dark(10.0)]), Some(vec![PlanFault::DarkAfterLive { step: 1 }]));
        assert_eq!(faults(vec![dark(10.0)]), Some(vec![PlanFault::OnlyDark]));
        assert_eq!(faults(vec![dark(0.0), one.clone()]), Some(vec![PlanFault::NoCopies { step: 0 }]));
        let both = Step { mirror: Some(Weight::FULL), ..one };
        assert_eq!(faults(vec![both, ten.clone()]), Some(vec![PlanFault::UsersAndCopies { step: 0 }]));
        // A step for those whom rules send there may follow, as it may begin.
        let with_zero = vec![dark(1.0), zero, ten];
        let forced = Draft { steps: with_zero.clone(), unweighted: true, ..Draft::default() };
        assert!(Plan::new(forced).is_ok());
        assert_eq!(faults(with_zero), Some(vec![PlanFault::ZeroWeight { step: 1 }]));
    }

    #[test]
    fn gates_stand_at_steps_or_at_the_flip() {
        let canary = Draft { promotion_gate: true, ..Draft::default() };
        assert_eq!(Plan::new(canary), Err(vec![PlanFault::PromotionGateOfCanary]));
        let blue_green =
            Draft { strategy: Strategy::BlueGreen, steps: vec![], promotion_gate: true, ..Draft::default() };
        assert!(Plan::new(blue_green).unwrap().has_gate_after(0));
    }

    #[test]
    fn plans_that_were_saved_before_there_were_gates_are_read() {
        let old = r#"{"strategy":"canary","steps":[{"weight":10.0,"hold":{"secs":60,"nanos":0}}],
            "bake":{"secs":1,"nanos":0},"deadline":{"secs":1,"nanos":0},"when_inconclusive":"pause"}"#;
        let plan: Plan = serde_json::from_str(old).unwrap();
        assert!(!plan.has_gate_after(0) && !plan.has_hook_after(0));
    }
}
