//! A recording as a world: what stable and the canary were like, minute by minute, and what would have
//! come of it by other rules.
//!
//! Nobody knows what would have happened to requests that went elsewhere. It is taken that in each
//! minute the canary would have failed the same share of however many requests, and stable likewise; and
//! where the recording has no requests of a version, or is over, that things stay as they were last.

use serde::Serialize;

use super::{
    Rule,
    rivals::{Minute, Next, Rival},
    scenario::{Scenario, Shape},
};
use crate::{
    analysis::{
        error_rate::{Margin, Sample},
        verdict::Decision,
    },
    model::histogram::Histogram,
    rollout::recording::{Line, Stage},
};

/// What a recording says about each minute.
#[derive(Debug)]
pub struct Recorded {
    minutes: Vec<Known>,
    /// What the canary has cost until it was rolled back, by what was concluded.
    cost: f64,
}

/// Sums a recording up, line by line.
#[derive(Debug, Default)]
pub struct Recorder {
    /// What stable and the canary did in each minute, and how many seconds of it were recorded.
    minutes: Vec<([Sum; 2], f64)>,
    /// Canary requests of each minute, until it was rolled back.
    exposed: Vec<u64>,
    begin: Option<u64>,
    last: u64,
    rolled_back: bool,
}

impl Recorder {
    /// Takes in the next line, and what was concluded from it.
    pub fn add(&mut self, line: &Line, decision: Option<Decision>) {
        let at = line.at.as_millis();
        // The first line says when, but not for how long.
        let seconds = if self.last == 0 { 1.0 } else { at.saturating_sub(self.last) as f64 / 1e3 };
        self.last = at;
        if line.phase == Stage::Idle {
            return;
        }
        let begin = *self.begin.get_or_insert(at);
        let minute = (at.saturating_sub(begin) / 60_000) as usize;
        if minute >= MOST {
            return;
        }
        if minute >= self.minutes.len() {
            self.minutes.resize_with(minute + 1, Default::default);
            self.exposed.resize(minute + 1, 0);
        }
        let (arms, length) = &mut self.minutes[minute];
        *length += seconds;
        // A promoted canary is stable, and there is no other.
        let (stable, canary) = match line.phase {
            Stage::Baking => (&line.canary, &line.stable),
            _ => (&line.stable, &line.canary),
        };
        for (sum, arm) in arms.iter_mut().zip([stable, canary]) {
            sum.sample.add(Sample { requests: arm.requests, failures: arm.failures });
            sum.latency.merge(&arm.latency);
        }
        if !self.rolled_back {
            self.exposed[minute] += canary.requests;
        }
        self.rolled_back |= decision == Some(Decision::RollBack);
    }

    /// What is known then; nothing where no line was of a rollout.
    pub fn finish(self) -> Option<Recorded> {
        let minutes = fill(&self.minutes)?;
        let cost = self.exposed.iter().zip(&minutes).map(|(requests, Known { stable, canary, .. })| {
            *requests as f64 * (canary.failing - stable.failing)
        });
        Some(Recorded { cost: cost.sum(), minutes })
    }
}

/// One minute, gaps filled.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Known {
    /// Requests a second.
    rate: f64,
    stable: Version,
    canary: Version,
}

/// What one version is like in a minute.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Version {
    /// The share of its requests that fail.
    failing: f64,
    latency: Option<[f64; 2]>,
}

/// What one version did in a minute.
#[derive(Debug, Default)]
struct Sum {
    sample: Sample,
    latency: Histogram,
}

/// What would have come of a recording by somebody's rules.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Counterfactual {
    /// Whose.
    pub rule: Rule,
    /// How it would have ended: `promoted`, `rolled_back`, or `open` after a day.
    pub outcome: &'static str,
    /// When, in seconds from the first step.
    pub after_seconds: f64,
    /// Whether that is after the end of the recording, so that its last minute stands for the rest.
    pub extrapolated: bool,
    /// Requests that would have failed and would not have on stable, until it ended or the recording did.
    pub failed: f64,
    /// The same by our own verdicts.
    pub tidegate_failed: f64,
    /// How many more would have failed.
    pub more_failed: f64,
}

impl Recorded {
    /// What would have come of it by somebody else's rules.
    pub fn by(&self, rival: Rival) -> Counterfactual {
        let (mut run, mut failed, mut outcome, mut share) = (rival.begin(), 0.0, "open", None);
        let mut minute = 0;
        // Until it has ended and the recording is over.
        while minute < MOST && (share.is_none() || minute < self.minutes.len()) {
            let Known { rate, stable, canary } = self.minutes[minute.min(self.minutes.len() - 1)];
            minute += 1;
            let part = share.map_or_else(|| run.share(), |(share, _)| share);
            let requests = rate * 60.0 * part;
            failed += requests * (canary.failing - stable.failing);
            if share.is_some() {
                continue;
            }
            let did = |of: Version| Minute { requests, failures: requests * of.failing, latency: of.latency };
            match run.pass(did(canary), did(stable)) {
                Next::On => {}
                Next::Promoted => (outcome, share) = ("promoted", Some((1.0, minute))),
                Next::RolledBack => (outcome, share) = ("rolled_back", Some((0.0, minute))),
            }
        }
        let ended = share.map_or(minute, |(_, minute)| minute);
        Counterfactual {
            rule: Rule::Rival(rival),
            outcome,
            after_seconds: 60.0 * ended as f64,
            extrapolated: ended > self.minutes.len(),
            failed,
            tidegate_failed: self.cost,
            more_failed: failed - self.cost,
        }
    }

    /// Requests a second, on average.
    pub fn rate(&self) -> f64 {
        self.minutes.iter().map(|minute| minute.rate).sum::<f64>() / self.minutes.len() as f64
    }

    /// What may happen again: the same, and the same with a canary that is like stable.
    pub fn scenarios(&self, tolerance: Margin) -> Vec<Scenario> {
        let shape = |of: &dyn Fn(&Known) -> f64| {
            let seconds = self.minutes.iter().flat_map(|minute| std::iter::repeat_n(of(minute), 60));
            Shape::Recorded(seconds.collect())
        };
        let mean =
            |of: &dyn Fn(&Known) -> f64| self.minutes.iter().map(of).sum::<f64>() / self.minutes.len() as f64;
        let (stable, canary) = (mean(&|minute| minute.stable.failing), mean(&|minute| minute.canary.failing));
        let bad = canary > tolerance.ratio * (stable + tolerance.absolute);
        let rate = self.rate();
        let same = Scenario {
            load: shape(&|minute| minute.rate / rate),
            stable: shape(&|minute| minute.stable.failing),
            canary: shape(&|minute| minute.stable.failing),
            ..Scenario::constant("recorded-same", "as recorded, the canary like stable", (0.0, 0.0), false)
        };
        let name = ("recorded", "as recorded");
        let as_it_was = Scenario {
            name: name.0.to_owned(),
            what: name.1.to_owned(),
            canary: shape(&|minute| minute.canary.failing),
            bad_from: bad.then_some(0.0),
            ..same.clone()
        };
        vec![as_it_was, same]
    }
}

/// Every minute, with what is not known in it as it was last known, or is known next.
fn fill(sums: &[([Sum; 2], f64)]) -> Option<Vec<Known>> {
    let version = |sum: &Sum| {
        let quantile = |level| sum.latency.quantile(level).map(|latency| latency.as_secs_f64());
        let latency = quantile(0.5).zip(quantile(0.99)).map(|(p50, p99)| [p50, p99]);
        sum.sample.rate().map(|failing| Version { failing, latency })
    };
    let mut last: [Version; 2] =
        [0, 1].map(|arm| sums.iter().find_map(|(arms, _)| version(&arms[arm])).unwrap_or_default());
    let minutes: Vec<Known> = sums
        .iter()
        .map(|(arms, seconds)| {
            for (last, sum) in last.iter_mut().zip(arms) {
                *last = version(sum).unwrap_or(*last);
            }
            let requests: u64 = arms.iter().map(|sum| sum.sample.requests).sum();
            let rate = requests as f64 / seconds.max(1.0);
            Known { rate, stable: last[0], canary: last[1] }
        })
        .collect();
    (!minutes.is_empty()).then_some(minutes)
}

/// Minutes that are looked at: a day.
const MOST: usize = 24 * 60;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::time::Timestamp, rollout::recording::Arm};

    /// A recording of so many seconds in a step of 10 %, at 100 requests a second.
    fn lines(seconds: u64, canary_fails: u64) -> Vec<Line> {
        let arm = |requests, failures| Arm { requests, failures, ..Arm::default() };
        let line = |second: u64| Line {
            at: Timestamp::from_millis(1_000 * (second + 1)),
            phase: Stage::Stepping,
            step: Some(0),
            weight: crate::model::weight::Weight::from_percent(10.0).unwrap(),
            stable: arm(90, 0),
            canary: arm(10, canary_fails),
            routes: vec![],
            users: None,
            guards_only: false,
            pairs: None,
            endpoints: vec![],
            checks: vec![],
            learned: None,
        };
        (0..seconds).map(line).collect()
    }

    fn recorded(lines: &[Line], rolled_back_at: usize) -> Recorded {
        let decision = |index| if index == rolled_back_at { Decision::RollBack } else { Decision::Continue };
        let mut recorder = Recorder::default();
        lines.iter().enumerate().for_each(|(index, line)| recorder.add(line, Some(decision(index))));
        recorder.finish().unwrap()
    }

    #[test]
    fn nothing_recorded_is_nothing_known() {
        assert!(Recorder::default().finish().is_none());
    }

    #[test]
    fn others_go_on_failing_after_the_recording_ends() {
        let lines = lines(20, 5);
        let recorded = recorded(&lines, 9);
        let argo = recorded.by(Rival::Argo);
        assert_eq!((argo.outcome, argo.after_seconds, argo.extrapolated), ("rolled_back", 240.0, true));
        // Half of a fifth of 100 requests a second, for four minutes; ours in ten seconds of a tenth.
        assert!((argo.failed - 2_400.0).abs() < 1e-6, "{argo:?}");
        assert_eq!(argo.tidegate_failed, 50.0);
        assert!((argo.more_failed - 2_350.0).abs() < 1e-6);
    }

    #[test]
    fn a_recording_can_happen_again() {
        let lines = lines(120, 1);
        let recorded = recorded(&lines, usize::MAX);
        assert_eq!(recorded.rate(), 100.0);
        let tolerance = Margin { ratio: 1.1, absolute: 0.0002 };
        let [again, same] = &recorded.scenarios(tolerance)[..] else { panic!("there are two") };
        assert_eq!((again.canary.at(60.0), again.stable.at(60.0), again.load.at(60.0)), (0.1, 0.0, 1.0));
        assert_eq!((again.bad_from, same.bad_from), (Some(0.0), None));
        assert_eq!(same.canary.at(60.0), 0.0);
    }
}
