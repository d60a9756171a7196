//! What is to be seen at a moment, in numbers and words: made from a service's status, drawn by the
//! screen, printed by the plain lines.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::{load::Counts, story::Story};
use crate::{
    analysis::{
        error_rate::Sample,
        interval::{Score, wilson},
        verdict::{ArmLatency, ArmTotals, Stage, Verdict},
    },
    controller::status::{BackendStatus, ServiceStatus},
    model::{name::BackendName, role::Role, weight::Weight},
    rollout::{phase::Phase, plan::Strategy},
};

/// How far back the pace of requests is measured.
const PACE: Duration = Duration::from_secs(2);

/// What is to be seen at a moment.
#[derive(Debug)]
pub(super) struct Scene {
    /// The story's number, from 1.
    pub(super) number: usize,
    /// The story.
    pub(super) story: &'static Story,
    /// Since the demo began.
    pub(super) elapsed: Duration,
    /// The backend that users have.
    pub(super) stable: Arm,
    /// The other one.
    pub(super) other: Arm,
    /// The rollout's way, if it has begun.
    pub(super) way: Vec<(String, Mark)>,
    /// Evidence for rolling back.
    pub(super) rollback: Option<Evidence>,
    /// Evidence for promoting.
    pub(super) promotion: Option<Evidence>,
    /// Why things are as they are.
    pub(super) why: String,
    /// The users' requests since the story, and then its rollout, began.
    pub(super) users: Counts,
}

/// One backend.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arm {
    /// What it is now: its role, its name, its release.
    pub(super) role: &'static str,
    /// The backend.
    pub(super) name: String,
    /// Which version it runs.
    pub(super) release: u32,
    /// Its share of requests.
    pub(super) weight: Weight,
    /// Requests a second.
    pub(super) pace: f64,
    /// Share of requests that failed, with bounds.
    pub(super) errors: Option<Score>,
    /// Its latency.
    pub(super) latency: ArmLatency,
}

/// How a point of the way lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Done,
    Now,
    Later,
    Back,
}

/// Evidence, and what is needed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Evidence {
    pub(super) value: f64,
    pub(super) needed: f64,
}

impl Evidence {
    /// How much of what is needed there is, 0 to 1.
    pub(super) fn share(self) -> f64 {
        (self.value / self.needed).clamp(0.0, 1.0)
    }
}

/// Which release a backend of the story's service runs.
pub(super) type Releases = [(String, u32); 2];

/// Makes scenes of one story, and remembers what a single status does not tell.
#[derive(Debug)]
pub(super) struct Scenery {
    number: usize,
    story: &'static Story,
    releases: Releases,
    /// Whether the story's rollout has begun; before, the status tells of the one before it.
    begun: bool,
    reached: usize,
    counts: VecDeque<(Instant, Vec<u64>)>,
}

impl Scenery {
    pub(super) fn new(number: usize, story: &'static Story, releases: Releases) -> Self {
        Self { number, story, releases, begun: false, reached: 0, counts: VecDeque::new() }
    }

    /// From now on, the rollout in the status is the story's own.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// What is to be seen now.
    pub(super) fn scene(
        &mut self,
        status: &ServiceStatus,
        users: Counts,
        (now, elapsed): (Instant, Duration),
    ) -> Scene {
        self.measure(status, now);
        let rollout = status.rollout.as_ref().filter(|_| self.begun);
        let verdict = rollout.and_then(|rollout| rollout.verdict.as_ref());
        let phase = rollout.map(|rollout| &rollout.phase);
        let why = match (phase, rollout.and_then(|rollout| rollout.explanation.clone())) {
            (None, _) => "no rollout yet: all requests go to stable".to_owned(),
            (Some(Phase::Preparing { .. }), _) => "making sure that the canary is there".to_owned(),
            (Some(_), None) => "no verdict yet".to_owned(),
            (Some(_), Some(why)) => why,
        };
        let of_canary = verdict.filter(|verdict| verdict.stage == Stage::Stepping);
        Scene {
            number: self.number,
            story: self.story,
            elapsed,
            stable: self.arm(status, Role::Stable, verdict, phase),
            other: self.arm(status, Role::Canary, of_canary, phase),
            way: rollout.map(|r| self.way(&r.phase, r.strategy, &weights(&r.steps))).unwrap_or_default(),
            rollback: verdict.map(|v| Evidence { value: v.evidence, needed: v.threshold }),
            promotion: of_canary
                .map(|v| Evidence { value: v.promotion_evidence, needed: v.promotion_threshold }),
            why,
            users,
        }
    }

    fn measure(&mut self, status: &ServiceStatus, now: Instant) {
        let totals = status.backends.iter().map(|backend| backend.requests_total).collect();
        self.counts.push_back((now, totals));
        while self.counts.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= PACE) {
            self.counts.pop_front();
        }
    }

    fn pace(&self, backend: usize) -> f64 {
        let (Some((start, before)), Some((end, after))) = (self.counts.front(), self.counts.back()) else {
            return 0.0;
        };
        let seconds = end.duration_since(*start).as_secs_f64();
        let requests = after[backend].saturating_sub(before[backend]);
        if seconds > 0.5 { requests as f64 / seconds } else { 0.0 }
    }

    fn arm(
        &self,
        status: &ServiceStatus,
        role: Role,
        verdict: Option<&Verdict>,
        phase: Option<&Phase>,
    ) -> Arm {
        let name = match role {
            Role::Stable => Some(&status.stable),
            Role::Canary => status.canary.as_ref(),
        };
        let position = status.backends.iter().position(|backend| Some(&backend.name) == name);
        let (index, backend) = match position {
            Some(index) => (index, Some(&status.backends[index])),
            None => (0, None),
        };
        let weight = backend.map_or(Weight::ZERO, |backend| backend.weight);
        let (errors, latency) = figures(role, backend, verdict);
        let name = name.map(BackendName::to_string).unwrap_or_default();
        Arm {
            role: match (role, phase) {
                (Role::Stable, _) => "stable",
                (_, Some(Phase::Promoting { .. } | Phase::Baking { .. } | Phase::Succeeded { .. })) => {
                    "kept warm"
                }
                _ => "canary",
            },
            release: self
                .releases
                .iter()
                .find(|(known, _)| *known == name)
                .map_or(0, |(_, release)| *release),
            name,
            weight,
            pace: if weight == Weight::ZERO { 0.0 } else { self.pace(index) },
            errors,
            latency,
        }
    }

    /// The points from preparation to success, and where the rollout is among them.
    fn way(&mut self, phase: &Phase, strategy: Strategy, weights: &[Weight]) -> Vec<(String, Mark)> {
        let mut points = vec!["prepare".to_owned()];
        if strategy == Strategy::Canary {
            points.extend(weights.iter().map(ToString::to_string));
        }
        let promoted = points.len();
        points.extend(["promote", "bake", "done"].map(str::to_owned));
        let here = match phase {
            Phase::Idle | Phase::Preparing { .. } => 0,
            Phase::Stepping { step, .. } | Phase::Paused { step, .. } => 1 + step,
            Phase::Promoting { .. } => promoted,
            Phase::Baking { .. } => promoted + 1,
            // Past the last point: all are behind.
            Phase::Succeeded { .. } => promoted + 3,
            Phase::RollingBack { .. } | Phase::RolledBack { .. } => self.reached,
        };
        self.reached = here;
        let back = matches!(phase, Phase::RollingBack { .. } | Phase::RolledBack { .. });
        let mark = |index: usize| match index.cmp(&here) {
            std::cmp::Ordering::Less => Mark::Done,
            std::cmp::Ordering::Equal if back => Mark::Back,
            std::cmp::Ordering::Equal => Mark::Now,
            std::cmp::Ordering::Greater => Mark::Later,
        };
        let mut way: Vec<_> = points.into_iter().enumerate().map(|(i, point)| (point, mark(i))).collect();
        if back {
            way.truncate(here + 1);
            way.push(("rolled back".to_owned(), Mark::Back));
        }
        way
    }
}

fn weights(steps: &[crate::controller::status::StepStatus]) -> Vec<Weight> {
    steps.iter().map(|step| step.weight).collect()
}

/// Failures and latency: the step's where there is a verdict, else those of the last seconds. A canary
/// without a verdict has none of its own: what it did lately was in another rollout.
fn figures(
    role: Role,
    backend: Option<&BackendStatus>,
    verdict: Option<&Verdict>,
) -> (Option<Score>, ArmLatency) {
    let score = |requests, failures| wilson(Sample { requests, failures });
    match (role, verdict, backend) {
        (Role::Stable, Some(verdict), _) => {
            let ArmTotals { requests, failures, .. } = verdict.step.stable;
            (score(requests, failures), verdict.latency.stable)
        }
        (Role::Canary, Some(verdict), _) => {
            let ArmTotals { requests, failures, .. } = verdict.step.canary;
            (score(requests, failures), verdict.latency.canary)
        }
        (Role::Stable, None, Some(backend)) => {
            let recent = backend.recent;
            let latency = ArmLatency { p50_seconds: recent.p50_seconds, p99_seconds: recent.p99_seconds };
            (score(recent.requests, recent.failures), latency)
        }
        _ => (None, ArmLatency::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::story::STORIES, *};
    use crate::{model::time::Timestamp, rollout::phase::RollBackReason};

    fn scenery() -> Scenery {
        Scenery::new(1, &STORIES[0], [("blue".to_owned(), 1), ("green".to_owned(), 2)])
    }

    fn marked(way: &[(String, Mark)], mark: Mark) -> Vec<&str> {
        way.iter().filter(|(_, m)| *m == mark).map(|(point, _)| point.as_str()).collect()
    }

    #[test]
    fn the_way_shows_where_the_rollout_is_and_where_it_turned() {
        let weights = [5.0, 25.0].map(|percent| Weight::from_percent(percent).unwrap());
        let since = Timestamp::from_millis(0);
        let mut scenery = scenery();
        let way = scenery.way(&Phase::Stepping { step: 1, since }, Strategy::Canary, &weights);
        assert_eq!(marked(&way, Mark::Done), ["prepare", "5 %"]);
        assert_eq!(marked(&way, Mark::Now), ["25 %"]);
        assert_eq!(marked(&way, Mark::Later), ["promote", "bake", "done"]);
        let phase = Phase::RolledBack { at: since, reason: RollBackReason::Verdict };
        let way = scenery.way(&phase, Strategy::Canary, &weights);
        assert_eq!(marked(&way, Mark::Back), ["25 %", "rolled back"]);
        assert_eq!(marked(&way, Mark::Later), [""; 0]);
    }

    #[test]
    fn blue_green_has_no_steps_on_its_way() {
        let phase = Phase::Baking { since: Timestamp::from_millis(0) };
        let way = scenery().way(&phase, Strategy::BlueGreen, &[Weight::FULL]);
        assert_eq!(marked(&way, Mark::Done), ["prepare", "promote"]);
        assert_eq!(marked(&way, Mark::Now), ["bake"]);
    }

    #[test]
    fn evidence_fills_a_gauge_and_no_more() {
        let share = |value| Evidence { value, needed: 4.0 }.share();
        assert_eq!([share(-1.0), share(2.0), share(9.0)], [0.0, 0.5, 1.0]);
    }
}
