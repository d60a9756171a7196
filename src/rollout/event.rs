//! Everything that can happen to a rollout: people and CI command, time passes with a decision, and
//! preparing ends. One closed enum, so that there is one order of events.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::analysis::verdict::Decision;

/// Something that happens to a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants something. The only event that can be refused.
    Command(Command),
    /// Time has passed, and this is what the evidence calls for.
    Tick(Decision),
    /// The canary is ready for traffic. Without meaning, and ignored, unless preparing.
    Prepared,
    /// The canary could not be made ready, and why, as a sentence. Whoever prepares also decides
    /// how long that may take: the machine has no deadline for it, as nobody is exposed meanwhile.
    PrepareFailed(String),
    /// The hook for which the rollout waits allows it to go on, if the evidence still does where that had it
    /// asked; or does not, and why, as a sentence. Without meaning, and ignored, unless waiting for one.
    HookAnswered(Result<(), String>),
    /// Nothing may move forward now. What was given stays, and is watched.
    Frozen,
    /// Things may move forward again.
    Thawed,
    /// No request is at the backend any more that a rollback took traffic from.
    Drained,
}

/// What a person or CI can ask for, with Argo's meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Begin a rollout; after one that was rolled back, try again.
    Start {
        /// Even if the last one was rolled back only lately.
        #[serde(default)]
        force: bool,
        /// Judged by limits alone, as by [`GuardsOnly`](Self::GuardsOnly).
        #[serde(default)]
        guards_only: bool,
    },
    /// From now on judge the canary by its limits and by checks alone, and compare nothing with stable: for a
    /// fix that has to go out while stable is down. Holds until the rollout ends.
    GuardsOnly,
    /// Go to the next step now, from the last one to everything. Opens a gate, and takes the place of an
    /// answer that a hook owes.
    Promote {
        /// Skip all that is left, gates and hooks too, but for preparing.
        full: bool,
    },
    /// Give all traffic back to the version that had it.
    #[serde(rename = "rollback")]
    RollBack,
    /// Stay at this step until somebody says otherwise.
    Pause,
    /// Go on with the step, from the beginning of its hold. At a gate, open it; where a hook did not allow it,
    /// ask again.
    Resume,
}

impl Command {
    /// Every command.
    pub const ALL: [Self; 8] = [
        Self::Start { force: false, guards_only: false },
        Self::Start { force: true, guards_only: false },
        Self::GuardsOnly,
        Self::Promote { full: false },
        Self::Promote { full: true },
        Self::RollBack,
        Self::Pause,
        Self::Resume,
    ];

    /// Whether whoever says so wants the rollout to go ahead.
    pub fn is_forward(self) -> bool {
        match self {
            Self::Start { .. } | Self::Promote { .. } | Self::Resume => true,
            Self::GuardsOnly | Self::RollBack | Self::Pause => false,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start { force: false, guards_only: false } => "start",
            Self::Start { force: true, guards_only: false } => "start --force",
            Self::Start { force: false, guards_only: true } => "start --guards-only",
            Self::Start { force: true, guards_only: true } => "start --force --guards-only",
            Self::GuardsOnly => "guards-only",
            Self::Promote { full: false } => "promote",
            Self::Promote { full: true } => "promote --full",
            Self::RollBack => "rollback",
            Self::Pause => "pause",
            Self::Resume => "resume",
        })
    }
}
