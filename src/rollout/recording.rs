//! A tick's evidence as a line of JSON: written down, and read again to see what was, or would have
//! been, concluded from it. docs/replay.md describes the format.
//!
//! A line holds what the analysis was given, and in which phase; nothing of what it concluded, since
//! that follows. The first line of a rollout also holds what was known of stable by then. The same lines
//! with the same configuration give the same verdicts, bit for bit.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    check::{self, CheckStatus},
    phase::Phase,
    plan::Plan,
    trial,
};
use crate::{
    analysis::{
        Analysis, ArmTick, Learned, Sent, Tick,
        attribution::Suspect,
        error_rate::Sample,
        paired::Counts,
        settings::Settings,
        users::Users,
        verdict::{Arms, Verdict},
    },
    model::{
        histogram::{self, Histogram},
        time::Timestamp,
        weight::Weight,
    },
};

/// What came in with one tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// When the tick ended.
    pub at: Timestamp,
    /// The phase in which it was.
    pub phase: Stage,
    /// The step, from 0; only in phases that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// The canary's share of requests.
    #[serde(default)]
    pub weight: Weight,
    /// Whether nothing is compared with stable, as somebody wanted it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guards_only: bool,
    /// What stable did; in baking, the promoted version.
    pub stable: Arm,
    /// What the canary did.
    #[serde(default)]
    pub canary: Arm,
    /// The same by route, each with the same routes in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// What users did, where they are what is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Box<Users>>,
    /// In a dark step, the pairs of requests and copies that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Counts>,
    /// What each of the canary's endpoints has done since the rollout began, where that is counted; those that are
    /// gone included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// How the checks stood of what is measured elsewhere, where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckStatus>,
    /// In the first line of a rollout, what was known of stable before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<Box<Learned>>,
}

/// The phases of which there is evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Before a rollout.
    Idle,
    /// In a step.
    Stepping,
    /// In a step, until somebody says otherwise.
    Paused,
    /// After promotion.
    Baking,
}

impl Stage {
    /// That of a phase, if there is evidence in it.
    pub fn of(phase: &Phase) -> Option<Self> {
        match phase {
            Phase::Idle | Phase::Preparing { .. } => Some(Self::Idle),
            Phase::Stepping { .. } => Some(Self::Stepping),
            Phase::Paused { .. } => Some(Self::Paused),
            Phase::Baking { .. } => Some(Self::Baking),
            Phase::Promoting { .. }
            | Phase::Succeeded { .. }
            | Phase::RollingBack { .. }
            | Phase::RolledBack { .. } => None,
        }
    }
}

/// What one arm did.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// How long those took that did not fail, as pairs of bucket and count.
    #[serde(default, with = "histogram::sparse", skip_serializing_if = "Histogram::is_empty")]
    pub latency: Histogram,
    /// What endpoints did that were still warming up, which is in none of the above.
    #[serde(default, skip_serializing_if = "Sample::is_empty")]
    pub warming: Sample,
    /// What was sent there by something other than chance, which is in none of the above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Box<SentThere>>,
    /// Failures that no user saw.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shielded: u64,
    /// Requests that no endpoint could take, which are in none of the above.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unserved: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What was sent to an arm by something other than chance.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentThere {
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// How long those took that did not fail, as pairs of bucket and count.
    #[serde(default, with = "histogram::sparse", skip_serializing_if = "Histogram::is_empty")]
    pub latency: Histogram,
}

/// What both arms did on one route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name.
    pub route: Arc<str>,
    /// What stable did.
    pub stable: Sample,
    /// What the canary did.
    pub canary: Sample,
}

/// What one of the canary's endpoints did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// What it is called.
    pub endpoint: Arc<str>,
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Whether it is no longer one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

impl Endpoint {
    fn sample(&self) -> Sample {
        Sample { requests: self.requests, failures: self.failures }
    }
}

impl Arm {
    fn of(tick: &ArmTick<'_>) -> Self {
        let ArmTick { requests, failures, latency, warming, sent, shielded, unserved } = *tick;
        let sent = sent.map(|Sent { sample: Sample { requests, failures }, latency }| {
            Box::new(SentThere { requests, failures, latency: latency.clone() })
        });
        Self { requests, failures, latency: latency.clone(), warming, sent, shielded, unserved }
    }

    fn tick(&self) -> ArmTick<'_> {
        let Self { requests, failures, latency, warming, sent, shielded, unserved } = self;
        let sent = sent.as_deref().map(|SentThere { requests, failures, latency }| Sent {
            sample: Sample { requests: *requests, failures: *failures },
            latency,
        });
        let (shielded, unserved) = (*shielded, *unserved);
        ArmTick { warming: *warming, sent, shielded, unserved, ..ArmTick::new(*requests, *failures, latency) }
    }
}

impl Line {
    /// What came in with a tick that ended at a moment, in a phase and at a weight; nothing where there is
    /// no evidence. `routes` are those that the analysis was told of. Whoever knows of endpoints, checks,
    /// pairs or what somebody wanted, or begins a rollout, adds that.
    pub fn of(
        at: Timestamp,
        (phase, weight): (&Phase, Weight),
        tick: &Tick<'_>,
        routes: &[Arc<str>],
    ) -> Option<Self> {
        let route = |(name, arms): (&Arc<str>, &Arms<Sample>)| Route {
            route: Arc::clone(name),
            stable: arms.stable,
            canary: arms.canary,
        };
        Some(Self {
            at,
            phase: Stage::of(phase)?,
            step: phase.step(),
            weight,
            stable: Arm::of(&tick.stable),
            canary: Arm::of(&tick.canary),
            routes: routes.iter().zip(tick.routes).map(route).collect(),
            users: tick.users.cloned().map(Box::new),
            guards_only: false,
            pairs: None,
            endpoints: Vec::new(),
            checks: Vec::new(),
            learned: None,
        })
    }

    /// The phase, as far as evidence depends on it.
    fn phase(&self) -> Phase {
        let since = self.at;
        let step = self.step.unwrap_or(0);
        match self.phase {
            Stage::Idle => Phase::Idle,
            // Whoever paused it, the evidence goes on as in the step.
            Stage::Stepping | Stage::Paused => Phase::Stepping { step, since },
            Stage::Baking => Phase::Baking { since },
        }
    }
}

/// An analysis that is given again what it was given once.
#[derive(Debug)]
pub struct Replay {
    settings: Settings,
    plan: Plan,
    tick: Duration,
    /// Of the rollout that the last line was of.
    analysis: Option<Analysis>,
    phase: Phase,
    suspect: Suspect,
}

impl Replay {
    /// Of rollouts with these settings and this plan, of which there is a line for each `tick`.
    pub fn new(settings: Settings, plan: Plan, tick: Duration) -> Self {
        Self { settings, plan, tick, analysis: None, phase: Phase::Idle, suspect: Suspect::default() }
    }

    /// Takes in the next line; the verdict, where there is one.
    pub fn take_in(&mut self, line: &Line) -> Option<Verdict> {
        if line.learned.is_some() {
            (self.analysis, self.phase, self.suspect) = (None, Phase::Idle, Suspect::default());
        }
        let Self { settings, plan, tick: length, analysis, phase: before, suspect } = self;
        let analysis = analysis.get_or_insert_with(|| {
            let names = line.routes.iter().map(|route| Arc::clone(&route.route));
            let analysis = trial::begin(settings, plan, *length).with_routes(settings, names);
            match &line.learned {
                Some(learned) => analysis.knowing(learned),
                None => analysis,
            }
        });
        if line.guards_only {
            analysis.judge_by_guards_alone();
        }
        let phase = line.phase();
        trial::follow(analysis, before, &phase, plan);
        let routes: Vec<_> =
            line.routes.iter().map(|route| Arms { stable: route.stable, canary: route.canary }).collect();
        let (stable, canary) = (line.stable.tick(), line.canary.tick());
        let tick = Tick { stable, canary, routes: &routes, users: line.users.as_deref() };
        let decision = trial::observe(analysis, &phase, &tick, line.pairs.as_ref());
        *before = phase;
        let mut verdict = decision.map(|_| analysis.verdict())?;
        let endpoints: Vec<_> = line.endpoints.iter().map(Endpoint::sample).collect();
        let name = |index: usize| Arc::clone(&line.endpoints[index].endpoint);
        let is_there = |name: &str| line.endpoints.iter().any(|one| &*one.endpoint == name && !one.gone);
        suspect.keep(is_there);
        suspect.attribute(&mut verdict, *length, &endpoints, name);
        check::consider(&mut verdict, &line.checks);
        Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::verdict::{Decision, Reason},
        rollout::plan::Draft,
    };

    fn line(text: &str) -> Line {
        serde_json::from_str(text).unwrap()
    }

    fn replay() -> Replay {
        let plan = Plan::new(Draft::default()).unwrap();
        Replay::new(Settings::default(), plan, Duration::from_secs(1))
    }

    #[test]
    fn a_line_is_read_as_it_is_written() {
        let text = concat!(
            r#"{"at":1000,"phase":"stepping","step":1,"weight":10.0,"#,
            r#""stable":{"requests":90,"failures":1,"latency":[[321,80],[350,10]]},"#,
            r#""canary":{"requests":10,"failures":0,"warming":{"requests":5,"failures":5},"#,
            r#""sent":{"requests":3,"failures":1,"latency":[[350,3]]},"shielded":2,"unserved":4},"#,
            r#""routes":[{"route":"/cart","stable":{"requests":9,"failures":0},"canary":{"requests":1,"failures":0}}]}"#,
        );
        assert_eq!(serde_json::to_string(&line(text)).unwrap(), text);
        let short = line(r#"{"at":1000,"phase":"idle","stable":{"requests":90,"failures":1}}"#);
        assert_eq!((short.step, short.weight, short.canary), (None, Weight::ZERO, Arm::default()));
        for wrong in [
            r#"{"at":1000,"phase":"idle"}"#,
            r#"{"at":1000,"phase":"idle","stable":{"requests":90,"failures":1},"steps":1}"#,
            r#"{"at":1000,"phase":"idle","stable":{"requests":1,"failures":1,"latency":[[9999,1]]}}"#,
        ] {
            assert!(serde_json::from_str::<Line>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn phases_are_followed() {
        let mut replay = replay();
        let arms = r#""stable":{"requests":900,"failures":0},"canary":{"requests":100,"failures":0}}"#;
        let mut at = |phase: &str| replay.take_in(&line(&format!(r#"{{"at":1,"phase":{phase},{arms}"#)));
        assert_eq!(at(r#""idle""#), None);
        assert_eq!(at(r#""stepping","step":0"#).unwrap().step.canary.requests, 100);
        assert_eq!(at(r#""paused","step":0"#).unwrap().step.canary.requests, 200);
        assert_eq!(at(r#""stepping","step":1"#).unwrap().step.canary.requests, 100);
        let last = at(r#""stepping","step":4"#).unwrap();
        assert!(last.promotion_evidence > 0.0 && last.decision == Decision::Continue, "{last:?}");
        let baking = at(r#""baking""#).unwrap();
        assert_eq!((baking.step.stable.requests, baking.step.canary.requests), (900, 0));
    }

    /// Verdicts do not depend on what was learned before anything was written down.
    #[test]
    fn what_was_learned_before_is_written_down() {
        let tick = |second: u64| {
            let slow = 300 + (second % 7) as usize;
            line(&format!(
                r#"{{"at":{second},"phase":"idle","stable":{{"requests":300,"failures":{},
                "latency":[[{slow},297],[400,3]]}}}}"#,
                second * 7 % 5,
            ))
        };
        let mut whole = replay();
        for second in 0..500 {
            whole.take_in(&tick(second));
        }
        let learned = whole.analysis.as_ref().unwrap().learned();
        let mut first = Line { learned: Some(Box::new(learned)), ..tick(500) };
        let mut part = replay();
        for second in 500..900 {
            whole.take_in(&tick(second));
            part.take_in(&line(&serde_json::to_string(&first).unwrap()));
            first = tick(second + 1);
        }
        let step = line(&format!(
            r#"{{"at":900,"phase":"stepping","step":0,{},{}}}"#,
            r#""stable":{"requests":270,"failures":1,"latency":[[305,270]]}"#,
            r#""canary":{"requests":30,"failures":1,"latency":[[400,30]]}"#,
        ));
        let verdict = part.take_in(&step).unwrap();
        assert_eq!(whole.take_in(&step).unwrap(), verdict);
        assert!(verdict.dispersion > 1.0, "{verdict:?}");
        assert_ne!(replay().take_in(&step).unwrap(), verdict);
    }

    #[test]
    fn an_endpoint_is_told_from_its_version() {
        let endpoints = r#""endpoints":[{"endpoint":"10.0.0.1:80","requests":500,"failures":1},{"endpoint":"10.0.0.2:80","requests":500,"failures":200}]"#;
        let arms = r#""stable":{"requests":9000,"failures":9},"canary":{"requests":1000,"failures":201}"#;
        let decided = |more: &str| {
            let text = format!(r#"{{"at":1,"phase":"stepping","step":0,{arms}{more}}}"#);
            assert_eq!(serde_json::to_string(&line(&text)).unwrap().contains("endpoints"), !more.is_empty());
            replay().take_in(&line(&text)).unwrap()
        };
        assert_eq!(decided("").decision, Decision::RollBack);
        let held = decided(&format!(",{endpoints}"));
        assert_eq!(held.decision, Decision::Hold);
        assert!(matches!(&held.reason, Reason::OneEndpoint { endpoint, .. } if &**endpoint == "10.0.0.2:80"));
        // What it has failed is explained by it also when it is gone.
        let gone = endpoints.replace(r#""failures":200"#, r#""failures":200,"gone":true"#);
        assert_eq!(decided(&format!(",{gone}")), held);
    }

    #[test]
    fn nothing_is_compared_from_the_line_on_that_says_so() {
        let arms = r#""stable":{"requests":900,"failures":900},"canary":{"requests":200,"failures":200}}"#;
        let mut replay = replay();
        let mut decided = |more: &str| {
            let text = format!(r#"{{"at":1,"phase":"stepping","step":0,"weight":1.0,{more}{arms}"#);
            assert_eq!(serde_json::to_string(&line(&text)).unwrap(), text);
            replay.take_in(&line(&text)).unwrap()
        };
        assert!(matches!(decided("").reason, Reason::BothFailing { .. }));
        assert_eq!(decided(r#""guards_only":true,"#).decision, Decision::RollBack);
    }

    #[test]
    fn checks_have_their_say() {
        let arms = r#""stable":{"requests":900,"failures":0},"canary":{"requests":200,"failures":0}"#;
        let decided = |standing: &str| {
            let check = format!(
                r#"{{"name":"memory","standing":"{standing}","why":"5 is over 3","stable":null,"canary":5.0,"measured":1,"failures":3}}"#
            );
            let text = format!(r#"{{"at":1,"phase":"stepping","step":0,{arms},"checks":[{check}]}}"#);
            let read = line(&text);
            assert_eq!(line(&serde_json::to_string(&read).unwrap()), read);
            replay().take_in(&read).unwrap()
        };
        assert_eq!(decided("passed").decision, Decision::Advance);
        assert_eq!(decided("inconclusive").decision, Decision::Hold);
        let failed = decided("failed");
        assert_eq!(failed.decision, Decision::RollBack);
        assert!(matches!(&failed.reason, Reason::CheckFailed { name, .. } if &**name == "memory"));
    }

    #[test]
    fn routes_are_those_of_the_first_line() {
        let mut replay = replay();
        let verdict = replay.take_in(&line(concat!(
            r#"{"at":1,"phase":"stepping","step":0,"stable":{"requests":9,"failures":0},"#,
            r#""routes":[{"route":"/cart","stable":{"requests":9,"failures":0},"canary":{"requests":1,"failures":1}}]}"#
        )));
        let verdict = verdict.unwrap();
        let routes: Vec<_> = verdict.checks.iter().filter_map(|check| check.route.as_deref()).collect();
        assert_eq!(routes, ["/cart"]);
    }
}
