//! Is it the version that is sick, or one of its endpoints?
//!
//! A version that is bad is bad on every endpoint that runs it; a disk that is full is full on one. The
//! counts of a backend's endpoints tell the two apart: does one endpoint's failure rate differ from that
//! of the others taken together, by more than chance would have it? That is asked of each by the
//! likelihood ratio of two rates against one,
//!
//! `G = n₁·KL(p₁ ‖ p) + n₂·KL(p₂ ‖ p)`
//!
//! (Wilks 1938), with `p₁` and `n₁` of the endpoint, `p₂` and `n₂` of the others and `p` of all; half of
//! what textbooks call the G-test. Where there is one rate, it exceeds `t` for one endpoint with a
//! probability of about `e^−t`, and so for any of `k` with at most `k·e^−t` (Bonferroni).
//!
//! If one endpoint stands out, the question is whether the others are well without it: not surely worse
//! than the other arm, by the same measure. Only then is the version not to blame.
//!
//! A canary that would be rolled back, or is under suspicion, for what one endpoint fails is held instead
//! ([`Verdict::attribute`]); never one that is slow, as time is not counted by endpoint. That costs no more
//! than the time until the others show as much, and a canary that is bad everywhere is not spared: the others
//! are then surely worse than stable. The evidence stays what it is, and wanes as the others do well.
//!
//! Whoever is to blame is passed over for [`EJECTION`], and then gets requests again. Before it has had them for
//! [`PROBATION`] without being to blame once more, the canary gets no more traffic ([`Suspect`]): with the sick
//! endpoint out of sight the others are all that is seen, and they are well.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    error_rate::Sample,
    incident::divergence,
    verdict::{CheckReport, Decision, Reason, Stage, Verdict},
};

/// How long an endpoint that is to blame is passed over before it is tried again: outlier detection's shortest
/// ejection.
pub const EJECTION: Duration = Duration::from_secs(30);

/// How long it has to do well after that.
pub const PROBATION: Duration = Duration::from_secs(30);

/// Who is to blame for a backend's failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "culprit", rename_all = "snake_case")]
pub enum Attribution {
    /// One endpoint; the others are no worse than the other arm.
    Endpoint {
        /// Its place among those that were asked about.
        index: usize,
    },
    /// What they all have in common: they fail alike, or one more than the others, but those too.
    Version,
    /// Nobody, as far as can be told: the backend is not surely worse than the other arm.
    Nobody,
}

/// Attributes a backend's failures, given the counts of each of its endpoints and those of the other
/// arm in the same time. With a single endpoint there is no telling, and the version is blamed.
pub fn attribute(endpoints: &[Sample], other: Sample) -> Attribution {
    let all = sum(endpoints);
    let outlier = (0..endpoints.len())
        .map(|index| (index, without(all, endpoints[index])))
        .map(|(index, rest)| (index, rest, higher_by(endpoints[index], rest)))
        .max_by(|a, b| a.2.total_cmp(&b.2));
    let likely = LIKELY + (endpoints.len() as f64).ln();
    match outlier {
        Some((index, rest, evidence)) if evidence >= likely && higher_by(rest, other) < SURE => {
            Attribution::Endpoint { index }
        }
        _ if higher_by(all, other) >= SURE => Attribution::Version,
        _ => Attribution::Nobody,
    }
}

/// How surely `one` fails more often than `other`: G (Wilks 1938), and 0 where it does not, or one of them is empty.
fn higher_by(one: Sample, other: Sample) -> f64 {
    let both = sum(&[one, other]);
    match (one.rate(), other.rate(), both.rate()) {
        (Some(p), Some(q), Some(pooled)) if p > q => {
            one.requests as f64 * divergence(p, pooled) + other.requests as f64 * divergence(q, pooled)
        }
        _ => 0.0,
    }
}

impl Verdict {
    /// Attributes the failures that count against the canary, given what each of its endpoints has done in the
    /// rollout. If one of them is to blame, and the canary would be rolled back for it or is under suspicion, it
    /// is held instead; otherwise nothing changes. `name` is what an endpoint is called.
    pub fn attribute(&mut self, endpoints: &[Sample], name: impl FnOnce(usize) -> Arc<str>) -> Attribution {
        if self.stage != Stage::Stepping || !self.is_accused_of_failing() {
            return Attribution::Nobody;
        }
        let stable = self.rollout.stable;
        let other = Sample { requests: stable.requests, failures: stable.failures };
        let attribution = attribute(endpoints, other);
        if let Attribution::Endpoint { index } = attribution {
            self.hold_for(endpoints, index, name(index));
        }
        attribution
    }

    /// Whether failures are what counts against the canary most, and it would not be rolled back without them.
    fn is_accused_of_failing(&self) -> bool {
        let (Reason::Worse(most) | Reason::Suspicious(most)) = &self.reason else { return false };
        let is_enough = |report: &CheckReport| report.evidence >= report.threshold;
        most.check.is_of_failures()
            && !self.checks.iter().any(|report| !report.check.is_of_failures() && is_enough(report))
    }

    fn hold_for(&mut self, endpoints: &[Sample], index: usize, name: Arc<str>) {
        let others = without(sum(endpoints), endpoints[index]);
        self.decision = Decision::Hold;
        self.reason = Reason::OneEndpoint {
            endpoint: name,
            error_rate: endpoints[index].rate().unwrap_or_default(),
            others: others.rate().unwrap_or_default(),
        };
        self.requests_needed = None;
        self.ticks_needed = None;
    }
}

/// The endpoint of a rollout's canary that was to blame last, if one was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Suspect(Option<Blamed>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Blamed {
    endpoint: Arc<str>,
    /// For how long it is not trusted yet. In time that was watched, so that no restart and no clock shortens it.
    left: Duration,
}

impl Suspect {
    /// Attributes what counts against the canary at the end of a tick, as [`Verdict::attribute`] does, which says
    /// what else is given; and holds the canary that may advance while its last suspect is not trusted again. One
    /// that is no longer among the endpoints is no concern.
    pub fn attribute(
        &mut self,
        verdict: &mut Verdict,
        tick: Duration,
        endpoints: &[Sample],
        name: impl Fn(usize) -> Arc<str>,
    ) -> Attribution {
        let attribution = verdict.attribute(endpoints, &name);
        if let Attribution::Endpoint { index } = attribution {
            self.0 = Some(Blamed { endpoint: name(index), left: EJECTION + PROBATION });
        } else if let Some(Blamed { endpoint, left }) = &mut self.0 {
            *left = left.saturating_sub(tick);
            if verdict.stage == Stage::Stepping && verdict.decision == Decision::Advance {
                match (0..endpoints.len()).find(|index| name(*index) == *endpoint) {
                    Some(index) if !left.is_zero() => {
                        verdict.hold_for(endpoints, index, Arc::clone(endpoint));
                    }
                    _ => self.0 = None,
                }
            }
        }
        attribution
    }

    /// Forgets it if it is not there any more, though what it has done still counts.
    pub fn keep(&mut self, is_there: impl FnOnce(&str) -> bool) {
        if self.0.as_ref().is_some_and(|blamed| !is_there(&blamed.endpoint)) {
            self.0 = None;
        }
    }
}

fn sum(samples: &[Sample]) -> Sample {
    let mut sum = Sample::default();
    samples.iter().for_each(|sample| sum.add(*sample));
    sum
}

fn without(all: Sample, one: Sample) -> Sample {
    Sample { requests: all.requests - one.requests, failures: all.failures.saturating_sub(one.failures) }
}

/// ln 20: of backends whose endpoints are alike, one in twenty is said to have an outlier. No surer than that,
/// since it has to be seen in the few failures after which a canary would be rolled back, and a mistake costs
/// only the time until the others fail as well.
const LIKELY: f64 = 2.995_732_273_553_991;

/// ln 1000: of versions that are alike, one in a thousand is said to be worse.
const SURE: f64 = 6.907_755_278_982_137;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::{Analysis, ArmTick, Tick, explain::explain, settings::Settings, verdict::Check},
        model::histogram::Histogram,
    };

    fn samples(counts: &[(u64, u64)]) -> Vec<Sample> {
        counts
            .iter()
            .map(|(requests, failures)| Sample { requests: *requests, failures: *failures })
            .collect()
    }

    fn blame(endpoints: &[(u64, u64)]) -> Attribution {
        attribute(&samples(endpoints), Sample { requests: 9_000, failures: 9 })
    }

    #[test]
    fn one_sick_endpoint_is_found() {
        assert_eq!(blame(&[(100, 0), (100, 40), (100, 1)]), Attribution::Endpoint { index: 1 });
        assert_eq!(blame(&[(10, 10), (500, 0)]), Attribution::Endpoint { index: 0 });
    }

    #[test]
    fn a_sick_version_is_sick_everywhere() {
        assert_eq!(blame(&[(100, 20), (100, 25), (100, 18)]), Attribution::Version);
        // One is worse, but the others are not well either.
        assert_eq!(blame(&[(100, 20), (100, 90), (100, 18)]), Attribution::Version);
        assert_eq!(blame(&[(100, 50)]), Attribution::Version);
    }

    /// What is decided of a canary that has failed so many of 1000 requests at its two endpoints.
    fn decided(failures: [u64; 2]) -> (Decision, String) {
        let mut analysis = Analysis::new(&Settings { latency_margin: None, ..Settings::default() }, 300);
        analysis.begin_step(None);
        let none = Histogram::default();
        let arm = |requests, failures| ArmTick::new(requests, failures, &none);
        let (stable, canary) = (arm(9_000, 9), arm(2_000, failures.iter().sum()));
        analysis.observe(&Tick { stable, canary, routes: &[], users: None });
        let mut verdict = analysis.verdict();
        let endpoints = failures.map(|failures| Sample { requests: 1_000, failures });
        verdict.attribute(&endpoints, |index| format!("10.0.0.{index}:80").into());
        (verdict.decision, explain(&verdict))
    }

    #[test]
    fn a_version_with_one_sick_endpoint_is_held() {
        let (decision, why) = decided([1, 400]);
        assert_eq!(decision, Decision::Hold);
        assert_eq!(
            why,
            "endpoint 10.0.0.1:80 of the canary fails 40 % of requests and the others 0.1 %: holding, it is not the version"
        );
        assert_eq!(decided([150, 400]).0, Decision::RollBack);
        assert_eq!(decided([200, 200]).0, Decision::RollBack);
        let (decision, why) = decided([1, 2]);
        assert!(decision != Decision::Hold && !why.contains("10.0.0"), "{decision:?}: {why}");
    }

    /// What a canary is rolled back for of which one endpoint fails so many requests a tick, and that takes four times
    /// as long for so many of 1000 others on both; before and after failures are attributed.
    fn decided_of_a_slow_one(failures: u64, slow: u64) -> [(Decision, Option<Check>); 2] {
        let mut analysis = Analysis::new(&Settings::default(), 300);
        analysis.begin_step(None);
        let [fast, slow] = [0, slow].map(|slow| {
            let mut latencies = Histogram::default();
            let millis = |request| if request < slow { 40 } else { 10 };
            (0..1_000).for_each(|request| latencies.record(Duration::from_millis(millis(request))));
            latencies
        });
        let (stable, canary) =
            (ArmTick::new(1_000, 0, &fast), ArmTick::new(1_000 + failures, failures, &slow));
        let (mut ticks, mut verdict) = (0, analysis.verdict());
        // Until its time alone is enough.
        let is_slow = |report: &CheckReport| report.evidence >= report.threshold;
        while !verdict.checks.get(Check::LatencyP99).is_some_and(is_slow) {
            analysis.observe(&Tick { stable, canary, routes: &[], users: None });
            (ticks, verdict) = (ticks + 1, analysis.verdict());
        }
        let of = |verdict: &Verdict| match &verdict.reason {
            Reason::Worse(most) => (verdict.decision, Some(most.check)),
            _ => (verdict.decision, None),
        };
        let before = of(&verdict);
        let endpoint = |failures| Sample { requests: ticks * (500 + failures), failures: ticks * failures };
        let (endpoints, other) =
            ([0, failures].map(endpoint), Sample { requests: ticks * 1_000, failures: 0 });
        assert_eq!(attribute(&endpoints, other), Attribution::Endpoint { index: 1 });
        verdict.attribute(&endpoints, |index| index.to_string().into());
        [before, of(&verdict)]
    }

    #[test]
    fn a_slow_version_is_not_spared_for_what_an_endpoint_fails() {
        // Not even where that is more than is known of its time.
        for (failures, slow, check) in [(8, 1_000, Check::LatencyP99), (500, 100, Check::ErrorRate)] {
            let worse = (Decision::RollBack, Some(check));
            assert_eq!(decided_of_a_slow_one(failures, slow), [worse, worse], "{failures}");
        }
    }

    /// What is decided after another second of a canary that has failed so many of 2000 requests at endpoint 0, and
    /// none of as many at endpoint 1.
    fn decided_next(suspect: &mut Suspect, failures: u64, fresh: bool) -> Decision {
        let mut analysis = Analysis::new(&Settings { latency_margin: None, ..Settings::default() }, 300);
        analysis.begin_step(Some(crate::model::weight::Weight::FULL));
        let none = Histogram::default();
        // What counts against it wanes; here it is gone.
        let seen = if fresh { 0 } else { failures };
        let tick = Tick {
            stable: ArmTick::new(9_000, 9, &none),
            canary: ArmTick::new(2_000, seen, &none),
            routes: &[],
            users: None,
        };
        analysis.observe(&tick);
        let mut verdict = analysis.verdict();
        let endpoints = [Sample { requests: 2_000, failures }, Sample { requests: 2_000, failures: 0 }];
        let second = Duration::from_secs(1);
        suspect.attribute(&mut verdict, second, &endpoints, |index| index.to_string().into());
        verdict.decision
    }

    #[test]
    fn an_endpoint_that_was_to_blame_has_to_do_well_before_the_canary_gets_more() {
        let mut suspect = Suspect::default();
        assert_eq!(decided_next(&mut suspect, 0, true), Decision::Advance);
        // To blame, and once more.
        for _ in 0..2 {
            assert_eq!(decided_next(&mut suspect, 400, false), Decision::Hold);
            // Passed over, then on probation.
            for second in 1..60 {
                assert_eq!(decided_next(&mut suspect, 400, true), Decision::Hold, "{second}");
                // As it is saved and restored.
                let saved = serde_json::to_string(&suspect).unwrap();
                suspect = serde_json::from_str(&saved).unwrap();
            }
            assert_eq!(decided_next(&mut suspect, 400, true), Decision::Advance);
        }
    }

    #[test]
    fn an_endpoint_that_is_gone_is_no_concern() {
        let of = |endpoint: &str| Suspect(Some(Blamed { endpoint: endpoint.into(), left: Duration::MAX }));
        assert_eq!(decided_next(&mut of("7"), 0, true), Decision::Advance);
        // Nor one that is known for what it has done.
        let mut suspect = of("0");
        suspect.keep(|endpoint| endpoint == "0");
        assert_eq!(decided_next(&mut suspect, 400, true), Decision::Hold);
        suspect.keep(|endpoint| endpoint == "1");
        assert_eq!(decided_next(&mut suspect, 400, true), Decision::Advance);
    }

    #[test]
    fn chance_is_nobodys_fault() {
        for endpoints in [&[][..], &[(0, 0), (0, 0)], &[(100, 1), (100, 0)], &[(3, 1), (300, 0), (250, 1)]] {
            assert_eq!(blame(endpoints), Attribution::Nobody, "{endpoints:?}");
        }
    }
}
