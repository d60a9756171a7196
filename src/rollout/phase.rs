//! Where a rollout stands, and what that means for traffic. A [`Phase`] is all that a restart needs
//! beside the plan and the evidence: whatever a phase must know lies in its variant.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::plan::{Plan, Strategy};
use crate::model::{time::Timestamp, weight::Weight};

/// Where a rollout stands. Steps count from 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// No rollout yet. The service's own weight applies, whatever it is.
    #[default]
    Idle,
    /// The canary is made ready and tested, without traffic.
    Preparing {
        /// When it began.
        since: Timestamp,
        /// Whether it gets everything as soon as it is ready.
        #[serde(default)]
        full: bool,
    },
    /// The canary has the weight of a step and is watched.
    Stepping {
        /// Which step.
        step: usize,
        /// Since when its hold and its deadline are measured.
        since: Timestamp,
    },
    /// As in the step, but only what it waits for, a person, or a reason to roll back ends it.
    Paused {
        /// Which step.
        step: usize,
        /// When it was paused.
        since: Timestamp,
        /// Why it was paused.
        reason: PauseReason,
        /// Whether evidence had a hook asked: then that has to call for it still when the hook says yes.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        earned: bool,
    },
    /// The new version gets all traffic and becomes stable.
    Promoting {
        /// When it began.
        since: Timestamp,
    },
    /// The new version is stable and watched; the old one is kept warm for the way back.
    Baking {
        /// When it began.
        since: Timestamp,
    },
    /// The new version is stable for good.
    Succeeded {
        /// When it ended.
        at: Timestamp,
    },
    /// The old version gets all traffic again; requests that were under way may end.
    RollingBack {
        /// When it began.
        since: Timestamp,
        /// What made it go back.
        reason: RollBackReason,
    },
    /// The old version has all traffic again.
    RolledBack {
        /// When it ended.
        at: Timestamp,
        /// What made it go back.
        reason: RollBackReason,
    },
}

/// Why a rollout waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// Somebody asked for it.
    Command,
    /// The step reached its deadline without a verdict.
    Inconclusive,
    /// The step could be left, and the plan wants a person to say so.
    Gate,
    /// The step could be left, and a hook has not answered yet.
    Hook,
    /// A hook did not allow the step to be left.
    HookFailed,
    /// A hook allowed the step to be left, and the evidence has not called for it since.
    HookAllowed,
    /// Nothing may move forward now.
    Freeze,
}

/// Why a rollout went back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RollBackReason {
    /// Somebody asked for it.
    Command,
    /// Analysis found the canary worse than it may be.
    Verdict,
    /// The step reached its deadline without a verdict, and the plan says to go back then.
    Inconclusive,
    /// The canary could not be made ready.
    PrepareFailed {
        /// What failed, as a sentence.
        why: String,
    },
    /// A hook did not allow it to go on, and the plan says to go back then.
    HookFailed {
        /// What it answered, as a sentence.
        why: String,
    },
    /// The process was away, and what it found afterwards does not let the rollout go on.
    CannotGoOn {
        /// What it found, as a sentence.
        why: String,
    },
    /// The plan has no such step: record and plan do not belong together.
    UnknownStep {
        /// Which step.
        step: usize,
    },
}

/// How traffic stands, relative to the roles with which the rollout began. Ordered by what the new
/// version gets: swapped is more than any weight, because then it gets everything, and any weight more than
/// copies, which are nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Exposure {
    // The derived order compares from the top, so `swapped` must stand first.
    /// Whether the roles are swapped: the canary of the beginning is stable now.
    pub swapped: bool,
    /// The share of whichever backend is canary now; zero when swapped.
    pub weight: Weight,
    /// The share of stable's requests that a dark step gives it copies of; zero in all others, where the
    /// service's own mirror applies.
    pub copies: Weight,
}

impl Exposure {
    /// The new version gets nothing.
    pub const NONE: Self = Self { swapped: false, weight: Weight::ZERO, copies: Weight::ZERO };
    /// The new version is stable and gets everything, the old one is idle.
    pub const SWAPPED: Self = Self { swapped: true, ..Self::NONE };

    /// The new version is canary and gets `weight`.
    pub const fn canary(weight: Weight) -> Self {
        Self { weight, ..Self::NONE }
    }

    /// The new version is canary, and gets copies of a share of requests and no users.
    pub const fn dark(copies: Weight) -> Self {
        Self { copies, ..Self::NONE }
    }
}

impl Phase {
    /// How traffic stands in this phase.
    ///
    /// An idle service has its own weight, of which the machine knows nothing: it answers none.
    /// A step that the plan does not have also gets none.
    pub fn exposure(&self, plan: &Plan) -> Exposure {
        match self {
            // Blue/green gives nothing before it gives everything.
            Self::Stepping { .. } | Self::Paused { .. } if plan.strategy() == Strategy::BlueGreen => {
                Exposure::NONE
            }
            Self::Stepping { step, .. } | Self::Paused { step, .. } => {
                plan.steps().get(*step).map_or(Exposure::NONE, |step| match step.mirror {
                    Some(copies) => Exposure::dark(copies),
                    None => Exposure::canary(step.weight),
                })
            }
            Self::Promoting { .. } | Self::Baking { .. } | Self::Succeeded { .. } => Exposure::SWAPPED,
            Self::Idle | Self::Preparing { .. } | Self::RollingBack { .. } | Self::RolledBack { .. } => {
                Exposure::NONE
            }
        }
    }

    /// Whether a rollout is under way: begun, and neither succeeded nor rolled back.
    pub fn is_running(&self) -> bool {
        match self {
            Self::Preparing { .. }
            | Self::Stepping { .. }
            | Self::Paused { .. }
            | Self::Promoting { .. }
            | Self::Baking { .. }
            | Self::RollingBack { .. } => true,
            Self::Idle | Self::Succeeded { .. } | Self::RolledBack { .. } => false,
        }
    }

    /// Has what is measured in it begun so much later, though not later than `now`: for time in which nobody watched.
    /// Returns whether anything is.
    pub fn later(&mut self, by: Duration, now: Timestamp) -> bool {
        match self {
            Self::Stepping { since, .. } | Self::Baking { since } | Self::RollingBack { since, .. } => {
                *since = since.plus(by).min(now);
                true
            }
            // In these nothing ends with time alone, and the ids of what hooks are asked are made of it.
            Self::Idle
            | Self::Preparing { .. }
            | Self::Paused { .. }
            | Self::Promoting { .. }
            | Self::Succeeded { .. }
            | Self::RolledBack { .. } => false,
        }
    }

    /// Whether there is a way back: a rollout is under way and not already going back.
    pub fn can_roll_back(&self) -> bool {
        self.is_running() && !matches!(self, Self::RollingBack { .. })
    }

    /// The step that it is in or paused at, from 0.
    pub fn step(&self) -> Option<usize> {
        match self {
            Self::Stepping { step, .. } | Self::Paused { step, .. } => Some(*step),
            Self::Idle
            | Self::Preparing { .. }
            | Self::Promoting { .. }
            | Self::Baking { .. }
            | Self::Succeeded { .. }
            | Self::RollingBack { .. }
            | Self::RolledBack { .. } => None,
        }
    }

    /// The word used in API, metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Preparing { .. } => "preparing",
            Self::Stepping { .. } => "stepping",
            Self::Paused { .. } => "paused",
            Self::Promoting { .. } => "promoting",
            Self::Baking { .. } => "baking",
            Self::Succeeded { .. } => "succeeded",
            Self::RollingBack { .. } => "rolling_back",
            Self::RolledBack { .. } => "rolled_back",
        }
    }
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Command => "somebody asked for it",
            Self::Inconclusive => "the step reached its deadline without a verdict",
            Self::Gate => "the plan wants somebody to let it go on",
            Self::Hook => "a hook is asked whether it may go on",
            Self::HookFailed => "a hook did not let it go on",
            Self::HookAllowed => "a hook lets it go on as soon as the evidence does",
            Self::Freeze => "nothing may move forward now",
        })
    }
}

impl fmt::Display for RollBackReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command => f.write_str("somebody asked for it"),
            Self::Verdict => f.write_str("the canary is worse than it may be"),
            Self::Inconclusive => f.write_str("the step reached its deadline without a verdict"),
            Self::PrepareFailed { why } => write!(f, "the canary could not be made ready: {why}"),
            Self::HookFailed { why } => write!(f, "a hook did not let it go on: {why}"),
            Self::CannotGoOn { why } => write!(f, "it cannot go on after a restart: {why}"),
            Self::UnknownStep { step } => write!(f, "the plan has no step {}", step.saturating_add(1)),
        }
    }
}
