//! What others would decide by: the loops of Flagger and Argo Rollouts, and a judge like Kayenta's, as
//! their source has them and with the parameters that their documents show.
//!
//! They are given what they would love to have: exact counts of the last minute, without a scraper's
//! delay, and a canary that is always ready. Each looks once a minute.
//!
//! | rule | weights | passes | goes back |
//! | --- | --- | --- | --- |
//! | Flagger | 5 % to 50 % in steps of 5 | at least 99 % of the canary's requests succeeded in the last minute, and the 99th percentile is at most 500 ms | one tick after the tenth check that did not pass |
//! | Argo Rollouts | 20, 40, 60 and 80 %, five readings each | the same | at the fourth reading of a step that did not pass |
//! | Kayenta | 5 %, and as much for a baseline | no metric is worse, by a Mann–Whitney test on the points of a minute each; judged after 1, 2 and 3 hours | when a metric is worse |
//!
//! Counts are not whole where they are what is to be expected and not what came.

use super::judge;

/// Whose rules a rollout goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rival {
    /// Flagger's documented example.
    Flagger,
    /// Argo Rollouts' inline analysis.
    Argo,
    /// Kayenta's judge with Spinnaker's advice.
    Kayenta,
}

impl Rival {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Flagger, Self::Argo, Self::Kayenta];

    /// What it is called on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flagger => "flagger",
            Self::Argo => "argo",
            Self::Kayenta => "kayenta",
        }
    }

    /// A rollout that begins now.
    pub fn begin(self) -> Run {
        match self {
            Self::Flagger => Run::Flagger { weight: 5, failed: 0 },
            Self::Argo => Run::Argo { step: 0, readings: 0, failed: 0 },
            Self::Kayenta => Run::Kayenta { points: Vec::new() },
        }
    }
}

/// What one version did in a minute.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Minute {
    /// Requests.
    pub requests: f64,
    /// Those of them that failed.
    pub failures: f64,
    /// Median and 99th percentile of latency, in seconds, where that is looked at.
    pub latency: Option<[f64; 2]>,
}

impl Minute {
    fn failing(&self) -> Option<f64> {
        (self.requests > 0.0).then(|| self.failures / self.requests)
    }

    /// Whether there were requests and they were as good as they have to be.
    fn passes(&self) -> bool {
        let in_time = self.latency.is_none_or(|[_, p99]| p99 <= SLOWEST);
        // Rounding must not fail what is just good enough.
        self.failing().is_some_and(|failing| failing <= MOST_FAILING + 1e-9) && in_time
    }
}

/// How a rollout goes on after a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// As it is, or with another weight.
    On,
    /// The canary gets everything.
    Promoted,
    /// The canary gets nothing.
    RolledBack,
}

/// A rollout by somebody's rules.
#[derive(Debug, Clone, PartialEq)]
pub enum Run {
    /// By Flagger's.
    Flagger {
        /// The canary's share, in percent.
        weight: u32,
        /// Checks that did not pass, since the beginning.
        failed: u32,
    },
    /// By Argo's.
    Argo {
        /// Which step, from 0.
        step: usize,
        /// Readings in the step.
        readings: u32,
        /// Those that did not pass.
        failed: u32,
    },
    /// By Kayenta's.
    Kayenta {
        /// Canary and baseline of each minute.
        points: Vec<[Minute; 2]>,
    },
}

impl Run {
    /// The canary's share of all requests.
    pub fn share(&self) -> f64 {
        match self {
            Self::Flagger { weight, .. } => f64::from(*weight) / 100.0,
            Self::Argo { step, .. } => ARGO_STEPS[*step],
            Self::Kayenta { .. } => KAYENTA_SHARE,
        }
    }

    /// A minute has passed in which the canary did this, and as many requests of stable that.
    pub fn pass(&mut self, canary: Minute, baseline: Minute) -> Next {
        match self {
            Self::Flagger { weight, failed } => {
                if *failed >= FLAGGER_THRESHOLD {
                    return Next::RolledBack;
                }
                match canary.passes() {
                    false => *failed += 1,
                    true if *weight >= FLAGGER_MOST => return Next::Promoted,
                    true => *weight += FLAGGER_STEP,
                }
                Next::On
            }
            Self::Argo { step, readings, failed } => {
                *readings += 1;
                *failed += u32::from(!canary.passes());
                if *failed > ARGO_FAILURE_LIMIT {
                    return Next::RolledBack;
                }
                if *readings < ARGO_READINGS {
                    return Next::On;
                }
                if *step + 1 == ARGO_STEPS.len() {
                    return Next::Promoted;
                }
                (*step, *readings, *failed) = (*step + 1, 0, 0);
                Next::On
            }
            Self::Kayenta { points } => {
                points.push([canary, baseline]);
                if !points.len().is_multiple_of(KAYENTA_INTERVAL) {
                    return Next::On;
                }
                match points.len() / KAYENTA_INTERVAL {
                    _ if is_worse(points) => Next::RolledBack,
                    ..KAYENTA_JUDGEMENTS => Next::On,
                    _ => Next::Promoted,
                }
            }
        }
    }
}

/// Whether the judge calls any metric high. Of three, one is a third, and the score falls below 75.
fn is_worse(points: &[[Minute; 2]]) -> bool {
    let metrics: [fn(&Minute) -> Option<f64>; 3] = [
        Minute::failing,
        |minute| minute.latency.map(|[p50, _]| p50),
        |minute| minute.latency.map(|[_, p99]| p99),
    ];
    metrics.into_iter().any(|metric| {
        let [canary, baseline] =
            [0, 1].map(|arm| points.iter().filter_map(|point| metric(&point[arm])).collect::<Vec<_>>());
        judge::is_high(&canary, &baseline)
    })
}

/// The share that may fail: success of at least 99 %.
const MOST_FAILING: f64 = 0.01;
/// The 99th percentile that Flagger's example asks for, in seconds.
const SLOWEST: f64 = 0.5;
const FLAGGER_STEP: u32 = 5;
const FLAGGER_MOST: u32 = 50;
const FLAGGER_THRESHOLD: u32 = 10;
const ARGO_STEPS: [f64; 4] = [0.2, 0.4, 0.6, 0.8];
const ARGO_READINGS: u32 = 5;
const ARGO_FAILURE_LIMIT: u32 = 3;
const KAYENTA_SHARE: f64 = 0.05;
/// Minutes between two judgements.
const KAYENTA_INTERVAL: usize = 60;
const KAYENTA_JUDGEMENTS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(failures: f64) -> Minute {
        Minute { requests: 1_000.0, failures, latency: None }
    }

    /// The minute in which it ends when every minute is like this.
    fn ends(rival: Rival, canary: Minute) -> (u32, Next) {
        let mut run = rival.begin();
        let next = (1..1_000).map(|minute| (minute, run.pass(canary, failing(1.0))));
        next.into_iter().find(|(_, next)| *next != Next::On).unwrap()
    }

    #[test]
    fn each_ends_when_its_documents_say() {
        // Ten steps to 50 %, which is judged once more.
        assert_eq!(ends(Rival::Flagger, failing(10.0)), (10, Next::Promoted));
        // One tick after the tenth failure.
        assert_eq!(ends(Rival::Flagger, failing(11.0)), (11, Next::RolledBack));
        assert_eq!(ends(Rival::Argo, failing(10.0)), (20, Next::Promoted));
        assert_eq!(ends(Rival::Argo, failing(11.0)), (4, Next::RolledBack));
        assert_eq!(ends(Rival::Kayenta, failing(1.0)), (180, Next::Promoted));
        assert_eq!(ends(Rival::Kayenta, failing(5.0)), (60, Next::RolledBack));
    }

    #[test]
    fn no_requests_are_bad_requests() {
        let nothing = Minute::default();
        assert_eq!(ends(Rival::Flagger, nothing).1, Next::RolledBack);
        assert_eq!(ends(Rival::Argo, nothing).1, Next::RolledBack);
    }

    #[test]
    fn slow_is_bad_for_those_who_look() {
        let slow = Minute { latency: Some([0.1, 0.6]), ..failing(0.0) };
        assert_eq!(ends(Rival::Flagger, slow).1, Next::RolledBack);
    }

    #[test]
    fn weights_are_those_of_the_examples() {
        let mut run = Rival::Flagger.begin();
        let shares: Vec<_> = (0..10).map(|_| (run.share(), run.pass(failing(0.0), failing(0.0))).0).collect();
        assert_eq!(shares, [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]);
    }
}
