//! Kinds of things that happen to a rollout, for whoever wants to be told of some of them.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{note::Note, phase::PauseReason};

/// A kind of thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A rollout began.
    Started,
    /// A step began.
    Stepped,
    /// A hook is asked.
    Waiting,
    /// A gate wants somebody to open it.
    Gate,
    /// It stays at a step for another reason.
    Paused,
    /// It goes on with a step.
    Resumed,
    /// It gets everything as soon as it is ready.
    Hurried,
    /// It is judged by limits alone from now on.
    GuardsOnly,
    /// The new version became stable.
    Promoted,
    /// The new version is watched with the old one kept warm.
    Baking,
    /// It ended with the new version stable.
    Succeeded,
    /// The old version gets all traffic again.
    RollingBack,
    /// It ended with the old version stable.
    RolledBack,
    /// Somebody swapped the roles while no rollout ran: the way back after a success, above all.
    Flipped,
    /// A backend may be taken away: nothing is under way there any more.
    Drained,
}

impl Topic {
    /// All of them, with the words for them.
    pub const ALL: [(&'static str, Self); 15] = [
        ("started", Self::Started),
        ("stepped", Self::Stepped),
        ("waiting", Self::Waiting),
        ("gate", Self::Gate),
        ("paused", Self::Paused),
        ("resumed", Self::Resumed),
        ("hurried", Self::Hurried),
        ("guards_only", Self::GuardsOnly),
        ("promoted", Self::Promoted),
        ("baking", Self::Baking),
        ("succeeded", Self::Succeeded),
        ("rolling_back", Self::RollingBack),
        ("rolled_back", Self::RolledBack),
        ("flipped", Self::Flipped),
        ("drained", Self::Drained),
    ];

    /// What kind of thing a note is about; nothing where nobody outside is concerned.
    pub fn of(note: &Note) -> Option<Self> {
        Some(match note {
            Note::Started => Self::Started,
            Note::Stepped { .. } => Self::Stepped,
            Note::Paused { reason: PauseReason::Hook, .. } => Self::Waiting,
            Note::Paused { reason: PauseReason::Gate, .. } => Self::Gate,
            // What it then waits for is mostly there with the next tick.
            Note::Paused { reason: PauseReason::HookAllowed, .. } | Note::ClockWentBack { .. } => {
                return None;
            }
            Note::Paused { .. } => Self::Paused,
            Note::Resumed { .. } => Self::Resumed,
            Note::Hurried => Self::Hurried,
            Note::GuardsOnly => Self::GuardsOnly,
            Note::Promoted { .. } => Self::Promoted,
            Note::Baking { .. } => Self::Baking,
            Note::Succeeded => Self::Succeeded,
            Note::RollingBack { .. } => Self::RollingBack,
            Note::RolledBack { .. } => Self::RolledBack,
        })
    }

    /// Whether it says how things stand until somebody does something, and not only how far they have got.
    pub fn is_outcome(self) -> bool {
        match self {
            Self::Gate
            | Self::Paused
            | Self::Succeeded
            | Self::RollingBack
            | Self::RolledBack
            | Self::Flipped => true,
            Self::Started
            | Self::Stepped
            | Self::Waiting
            | Self::Resumed
            | Self::Hurried
            | Self::GuardsOnly
            | Self::Promoted
            | Self::Baking
            | Self::Drained => false,
        }
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, topic)| *topic == self).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_word_of_its_own() {
        for (name, topic) in Topic::ALL {
            assert_eq!(topic.to_string(), name);
            assert_eq!(Topic::ALL.iter().filter(|(other, _)| *other == name).count(), 1);
        }
    }
}
