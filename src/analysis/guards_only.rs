//! Judged by limits alone: for a fix that has to go out while stable is down.
//!
//! Beside a stable that fails everything no comparison says anything, and a rollout that waits for one keeps
//! users where it is worst. So a person may have the canary judged by what it has to be whatever stable does:
//! its limits, [`Streak`](super::evidence) without asking how stable fares, and requests enough to tell. What
//! stable has shown is forgotten, how failures come together above all: the moment at which it broke looks like
//! one cluster of all its requests, by which nothing of the canary's would count any more.
//!
//! Like baking it asks a new question, so limits begin at nothing and have an α of their own. In dark steps they
//! hold for copies, for the copies' share of it; the first step with users begins at nothing, as without the switch.

use super::{
    Analysis, ArmTick, Finding, Targets, Tick,
    dispersion::Dispersion,
    error_rate::Sample,
    guard::{Guard, SlowGuard},
    paired::Counts,
    verdict::{Decision, Reason, Stage},
};
use crate::model::{histogram::Histogram, role::Role};

/// The failure rate that is allowed where none was set, as in baking.
pub(super) const LIMIT: f64 = 0.05;

impl Analysis {
    /// From now on nothing is compared. Changes nothing where that is so already.
    pub fn judge_by_guards_alone(&mut self) {
        if std::mem::replace(&mut self.guards_only, true) {
            return;
        }
        self.targets.max_error_rate.get_or_insert(LIMIT);
        self.begin_guards();
        if let Dispersion::Estimated(_) = self.dispersion {
            self.dispersion = Dispersion::new(None);
        }
        self.over_max_p99 = None;
        (self.latency, self.difference, self.budget, self.paired) = (None, None, None, None);
        self.routes.clear();
        self.users = None;
    }

    /// Limits begin at nothing.
    fn begin_guards(&mut self) {
        let Targets { max_error_rate, max_p99, planned, .. } = self.targets;
        self.max_error_rate = max_error_rate.map(|limit| Guard::new(limit, planned));
        self.max_p99 = max_p99.map(|limit| SlowGuard::new(limit, planned));
    }

    /// What copies have shown of limits ends with the dark steps, for they were nobody's requests.
    pub(super) fn forget_copies(&mut self) {
        if self.guards_only && self.stage == Stage::Dark {
            self.begin_guards();
            self.tally.forget();
        }
    }

    /// Takes in a tick of a step.
    pub(super) fn observe_alone(&mut self, tick: &Tick<'_>) -> Decision {
        self.tally.count(tick);
        self.observe_guards(&tick.canary, self.dispersion.factor());
        self.find().decision
    }

    /// Takes in a tick of a dark step, in which copies are what the canary has answered.
    pub(super) fn observe_copies_alone(&mut self, stable: &ArmTick<'_>, pairs: &Counts) -> Decision {
        let Counts { none, stable: by_stable, canary, both, timed: _, slower: _ } = *pairs;
        let untimed = Histogram::default();
        let canary = ArmTick::new(none + by_stable + canary + both, canary + both, &untimed);
        self.observe_alone(&Tick { stable: *stable, canary, routes: &[], users: None })
    }

    /// What is concluded from limits that are not broken.
    pub(super) fn find_alone(&self, evidence: f64) -> Finding {
        let minimum = self.step_minimum.unwrap_or(self.targets.minimum_requests);
        let Sample { requests, .. } = self.tally.step.canary;
        let (decision, reason) = if let Some(silence) = self.tally.silence(Role::Canary) {
            (Decision::Hold, silence)
        } else if evidence >= self.threshold() / 2.0 {
            (Decision::Continue, Reason::Suspicious(()))
        } else if requests < minimum {
            (Decision::Continue, Reason::TooFewRequests { requests, minimum })
        } else {
            (Decision::Advance, Reason::WithinLimits { requests })
        };
        Finding { decision, reason }
    }
}
