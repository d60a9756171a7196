//! What happened, for logs and history: values to store, and one English sentence to show. Why the
//! numbers called for it is the verdict's to say.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::phase::{PauseReason, RollBackReason};
use crate::model::{units::format_duration, weight::Weight};

/// What happened to a rollout. Steps count from 0, in sentences from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Note {
    /// A rollout began.
    Started,
    /// A step began.
    Stepped {
        /// Which step.
        step: usize,
        /// The canary's share in it.
        weight: Weight,
        /// The share of requests that it gets copies of instead, in a dark step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mirror: Option<Weight>,
        /// What called for it.
        by: AdvancedBy,
    },
    /// It waits at a step.
    Paused {
        /// Which step.
        step: usize,
        /// Why.
        reason: PauseReason,
        /// What a hook answered, as a sentence, if that is why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answer: Option<String>,
    },
    /// It goes on with a step.
    Resumed {
        /// Which step.
        step: usize,
    },
    /// It gets everything as soon as it is ready.
    Hurried,
    /// From now on it is judged by limits alone.
    GuardsOnly,
    /// The new version became stable and gets everything.
    Promoted {
        /// What called for it.
        by: AdvancedBy,
    },
    /// The new version is watched with the old one kept warm.
    Baking {
        /// For how long.
        bake: Duration,
    },
    /// It ended with the new version stable.
    Succeeded,
    /// The old version gets all traffic again.
    RollingBack {
        /// Why.
        reason: RollBackReason,
    },
    /// It ended with the old version stable.
    RolledBack {
        /// Why.
        reason: RollBackReason,
    },
    /// The clock stands before the beginning of the phase, whose time is therefore counted anew.
    ClockWentBack {
        /// How far before.
        by: Duration,
    },
}

/// What called for more exposure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvancedBy {
    /// The canary became ready.
    Preparation,
    /// The evidence.
    Verdict,
    /// Somebody.
    Command,
    /// A hook.
    Hook,
}

impl Note {
    /// Whether the evidence called for it.
    pub fn is_by_verdict(&self) -> bool {
        matches!(
            self,
            Self::Stepped { by: AdvancedBy::Verdict, .. }
                | Self::Promoted { by: AdvancedBy::Verdict }
                | Self::RollingBack { reason: RollBackReason::Verdict }
        )
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("the rollout began: the canary is being prepared"),
            Self::Stepped { step, mirror: Some(mirror), by, .. } => {
                write!(f, "step {} began: the canary gets copies of {mirror} of requests ({by})", step + 1)
            }
            Self::Stepped { step, weight, by, .. } => {
                write!(f, "step {} began: the canary gets {weight} ({by})", step + 1)
            }
            Self::Paused { step, reason, answer } => {
                write!(f, "paused at step {}: {reason}", step + 1)?;
                answer.as_ref().map_or(Ok(()), |answer| write!(f, ": {answer}"))
            }
            Self::Resumed { step } => write!(f, "resumed at step {}", step + 1),
            Self::Hurried => f.write_str("as soon as the canary is ready it gets all traffic"),
            Self::GuardsOnly => {
                f.write_str("judged by guards alone from now on: nothing is compared with stable")
            }
            Self::Promoted { by } => write!(f, "the canary became stable and gets all traffic ({by})"),
            Self::Baking { bake } => {
                write!(f, "the new stable is watched for {}", format_duration(*bake))
            }
            Self::Succeeded => f.write_str("the rollout succeeded"),
            Self::RollingBack { reason } => write!(f, "rolling back: {reason}"),
            Self::RolledBack { reason } => write!(f, "rolled back: {reason}"),
            Self::ClockWentBack { by } => {
                write!(f, "the clock went back by at least {}: time is counted anew", format_duration(*by))
            }
        }
    }
}

impl fmt::Display for AdvancedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preparation => "it is ready",
            Self::Verdict => "the evidence allows it",
            Self::Command => "somebody asked for it",
            Self::Hook => "a hook allows it",
        })
    }
}
