//! When a service's rollouts do not move forward.

use super::service::ServiceTask;
use crate::{
    analysis::verdict::Decision,
    clock,
    model::time::Timestamp,
    rollout::{
        event::Event,
        phase::{PauseReason, Phase},
    },
};

impl ServiceTask {
    /// The window of time, if it is in one, in which the service's rollouts do not move forward.
    pub(super) fn freeze(&self) -> Option<String> {
        let now = clock::now();
        let freezes = self.config.rollout.freezes.iter();
        freezes.filter(|freeze| freeze.until(now).is_some()).map(ToString::to_string).next()
    }

    /// When the last of the windows ends that the service is in, if it is in any.
    fn frozen_until(&self) -> Option<Timestamp> {
        let now = clock::now();
        self.config.rollout.freezes.iter().filter_map(|freeze| freeze.until(now)).max()
    }

    /// Whether what the rollout waited for, and has come, may not move it now. A way back never waits, and neither
    /// does what a person wants.
    pub(super) fn is_held_back(&self, event: &Event) -> bool {
        let (Some(record), Some(until)) = (&self.record, self.frozen_until()) else { return false };
        let is_forward = match event {
            Event::Prepared => !matches!(record.phase, Phase::Preparing { full: true, .. }),
            // Where evidence has it asked, its yes is kept and moves nothing by itself.
            Event::HookAnswered(answer) => {
                answer.is_ok() && !matches!(record.phase, Phase::Paused { earned: true, .. })
            }
            // A step has been stopped.
            Event::Tick(decision) => {
                *decision == Decision::Advance && matches!(record.phase, Phase::Paused { .. })
            }
            _ => false,
        };
        is_forward && record.wanted_until.is_none_or(|wanted| wanted < until)
    }

    /// Keeps in mind, where somebody has just made the rollout wait for something, that they wanted it in spite of
    /// the freeze.
    pub(super) fn want_in_spite_of_a_freeze(&mut self) {
        // Windows that begin later were not thought of.
        if let Some(until) = self.frozen_until()
            && let Some(record) = &mut self.record
        {
            record.wanted_until = Some(until);
        }
    }

    /// Stops where nothing may move forward now, and goes on where it may again.
    pub(super) fn keep_to_the_calendar(&mut self) {
        match self.record.as_ref().map(|record| &record.phase) {
            Some(Phase::Stepping { .. }) if self.freeze().is_some() => self.happen(Event::Frozen),
            Some(Phase::Paused { reason: PauseReason::Freeze, .. }) if self.freeze().is_none() => {
                self.happen(Event::Thawed);
            }
            _ => {}
        }
    }
}
