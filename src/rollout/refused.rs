//! Which commands make sense in which phase, and what to say to the others.

use std::fmt;

use serde::Serialize;

use super::{event::Command, phase::Phase};

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
    /// It is paused already.
    #[error("it is paused already")]
    Paused,
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
}

/// The commands that are accepted in a phase.
pub fn allowed(phase: &Phase) -> &'static [Command] {
    use Command::{Pause, Promote, Resume, RollBack, Start};
    match phase {
        Phase::Idle | Phase::Succeeded { .. } | Phase::RolledBack { .. } => &[Start],
        Phase::Preparing { .. } | Phase::Promoting { .. } | Phase::Baking { .. } => &[RollBack],
        Phase::Stepping { .. } => &[Promote { full: false }, Promote { full: true }, RollBack, Pause],
        Phase::Paused { .. } => &[Promote { full: false }, Promote { full: true }, RollBack, Resume],
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
        _ if command == Command::Start => Why::Running,
        Phase::Preparing { .. } => Why::Preparing,
        Phase::Stepping { .. } => Why::NotPaused,
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
