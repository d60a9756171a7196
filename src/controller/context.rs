//! What is known of somebody who asks something of a service, beside what they ask.

use std::sync::Weak;

/// Who asks, why, and on what condition.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Who, as the service's events are to say it.
    pub actor: String,
    /// Why, if they say so.
    pub reason: Option<String>,
    /// Of these revisions the service has to be, if it matters: else it has moved on since they looked.
    pub revisions: Option<Vec<u64>>,
    /// Cannot be upgraded once nobody waits for the answer; nothing if that is all the same.
    pub asker: Option<Weak<()>>,
}

impl Context {
    /// Somebody without a reason, to whom the revision is the same.
    pub fn of(actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), ..Self::default() }
    }

    /// Whether it is met by this revision.
    pub(super) fn is_met_by(&self, revision: u64) -> bool {
        self.revisions.as_ref().is_none_or(|revisions| revisions.contains(&revision))
    }
    /// Whether somebody waits for what comes of it.
    pub(super) fn is_waited_for(&self) -> bool {
        self.asker.as_ref().is_none_or(|asker| asker.strong_count() > 0)
    }
}
