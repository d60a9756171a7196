//! What is known of somebody who asks something of a service, beside what they ask.

/// Who asks, why, and on what condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// Who, as the service's events are to say it.
    pub actor: String,
    /// Why, if they say so.
    pub reason: Option<String>,
    /// Of these revisions the service has to be, if it matters: else it has moved on since they looked.
    pub revisions: Option<Vec<u64>>,
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
}
