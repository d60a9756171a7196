//! Which commands make sense in which phase, and what to say to the others.

use std::{fmt, time::Duration};

use serde::Serialize;

use super::{
    event::Command,
    phase::{PauseReason, Phase},
};
use crate::model::units::format_duration;

/// A command that makes no sense now. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// What was asked for.
    pub command: Command,
    /// Where the rollout stands.
    pub phase: Phase,
    /// Why the two do not fit.
    pub why: Why,
    /// What would be accepted now.
    pub allowed: &'static [Command],
}

/// Why a command makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Nothing has been started.
    #[error("no rollout has been started")]
    NotStarted,
    /// There is a rollout under way.
    #[error("a rollout is under way")]
    Running,
    /// The canary has no traffic yet.
    #[error("the canary is still being prepared and has no traffic yet")]
    Preparing,
    /// It gets everything as soon as it is ready.
    #[error("the canary gets all traffic as soon as it is ready")]
    Hurried,
    /// It is paused already.
    #[error("it is paused already")]
    Paused,
    /// A hook is being asked.
    #[error("a hook is asked whether it may go on; `promote` does not wait for the answer")]
    HookAsked,
    /// A hook allows it, and the evidence does not now.
    #[error("a hook allows it, and it goes on by itself as soon as the evidence does")]
    HookAllowed,
    /// Nothing may move forward now.
    #[error("nothing may move forward now, and it goes on by itself when that is over")]
    Frozen,
    /// It is not paused.
    #[error("it is not paused")]
    NotPaused,
    /// The new version has everything already.
    #[error("the new version already gets all traffic")]
    Promoted,
    /// It goes back.
    #[error("it is already going back")]
    RollingBack,
    /// It went back.
    #[error("it has been rolled back; `start` tries again")]
    RolledBack,
    /// It went back only lately.
    #[error(
        "it was rolled back, and the plan wants the next try in {} at the earliest",
        format_duration(*.left)
    )]
    CoolingDown {
        /// How long it takes until then.
        left: Duration,
    },
    /// It is over, and the way back is another.
    #[error("the rollout is over; `flip` brings the old version back")]
    UseFlip,
    /// It is over.
    #[error("the rollout is over and the new version is stable")]
    Succeeded,
}

impl Refused {
    pub(super) fn new(command: Command, phase: Phase) -> Self {
        Self { command, why: why(command, &phase), allowed: allowed(&phase), phase }
    }

    pub(super) fn cooling_down(phase: Phase, left: Duration, guards_only: bool) -> Self {
        let (command, why) = (Command::Start { force: false, guards_only }, Why::CoolingDown { left });
        Self { command, phase, why, allowed: &[FORCED] }
    }
}

/// What is always accepted where no rollout runs.
const FORCED: Command = Command::Start { force: true, guards_only: false };

/// The commands that are accepted in a phase.
pub fn allowed(phase: &Phase) -> &'static [Command] {
    use Command::{GuardsOnly, Pause, Promote, Resume, RollBack, Start};
    match phase {
        Phase::Idle | Phase::Succeeded { .. } | Phase::RolledBack { .. } => {
            &[Start { force: false, guards_only: false }, FORCED]
        }
        Phase::Preparing { full: false, .. } => &[Promote { full: true }, RollBack, GuardsOnly],
        Phase::Preparing { full: true, .. } => &[RollBack, GuardsOnly],
        Phase::Promoting { .. } | Phase::Baking { .. } => &[RollBack],
        Phase::Paused { reason: PauseReason::Hook, .. } => {
            &[Promote { full: false }, Promote { full: true }, RollBack, GuardsOnly]
        }
        Phase::Stepping { .. }
        | Phase::Paused { reason: PauseReason::Freeze | PauseReason::HookAllowed, .. } => {
            &[Promote { full: false }, Promote { full: true }, RollBack, Pause, GuardsOnly]
        }
        Phase::Paused { .. } => {
            &[Promote { full: false }, Promote { full: true }, RollBack, Resume, GuardsOnly]
        }
        Phase::RollingBack { .. } => &[],
    }
}

/// Why a command that is not allowed in a phase is not.
fn why(command: Command, phase: &Phase) -> Why {
    match phase {
        Phase::Idle => Why::NotStarted,
        Phase::RollingBack { .. } => Why::RollingBack,
        Phase::RolledBack { .. } => Why::RolledBack,
        Phase::Succeeded { .. } if command == Command::RollBack => Why::UseFlip,
        Phase::Succeeded { .. } => Why::Succeeded,
        _ if matches!(command, Command::Start { .. }) => Why::Running,
        Phase::Preparing { full: true, .. } if matches!(command, Command::Promote { .. }) => Why::Hurried,
        Phase::Preparing { .. } => Why::Preparing,
        Phase::Stepping { .. } => Why::NotPaused,
        Phase::Paused { reason: PauseReason::Hook, .. } => Why::HookAsked,
        Phase::Paused { reason: PauseReason::HookAllowed, .. } => Why::HookAllowed,
        Phase::Paused { reason: PauseReason::Freeze, .. } => Why::Frozen,
        Phase::Paused { .. } => Why::Paused,
        Phase::Promoting { .. } | Phase::Baking { .. } => Why::Promoted,
    }
}

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, phase, why, allowed } = self;
        let phase = phase.name().replace('_', " ");
        write!(f, "cannot `{command}` while {phase}: {why}; allowed now: ")?;
        let names: Vec<_> = allowed.iter().map(|command| format!("`{command}`")).collect();
        f.write_str(if names.is_empty() { "nothing" } else { "" })?;
        f.write_str(&names.join(", "))
    }
}
