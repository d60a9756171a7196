//! When a service's rollouts do not move forward.

use super::service::ServiceTask;
use crate::{
    clock,
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
