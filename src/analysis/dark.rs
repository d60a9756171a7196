//! Dark steps: the canary gets copies, and is judged by pairs alone.
//!
//! A copy is no user's request, so what pairs show stays here: a live step begins with no evidence, and
//! what users have met decides it. Both may roll back, and α is promised for the whole rollout; so they share
//! it. A fifth is the copies', where being sure takes longer and costs nobody anything; four fifths, which
//! is hardly less than all, are left for where users wait for it.
//!
//! A dark step is left for users, so it wants what otherwise only a promotion wants: that a canary that is worse
//! by the margin is excluded.

use std::sync::Arc;

use super::{
    Analysis, Finding, Tick,
    numbers::requests_to_gain,
    paired::{Counts, Paired},
    settings::Settings,
    verdict::{Arms, Check, CheckReport, Checks, Decision, Pairs, Reason, Stage, Verdict},
};

/// The share of α that is the copies'.
const SHARE: f64 = 0.2;

impl Analysis {
    /// The same for a plan that has dark steps.
    #[must_use]
    pub fn with_dark_steps(mut self, settings: &Settings) -> Self {
        self.paired = Some(Paired::new(settings, self.targets.planned));
        self.targets.evidence = -(settings.alpha * (1.0 - SHARE)).ln();
        self
    }

    /// A step begins in which the canary gets copies; they are counted anew.
    pub fn begin_dark_step(&mut self) {
        self.stage = Stage::Dark;
        self.step_minimum = None;
        self.tally.begin_step();
        if let Some(paired) = &mut self.paired {
            paired.begin_step();
        }
    }

    /// Takes in a tick of a dark step: what stable did, of which only is learned what it is usually like, and
    /// the pairs that ended.
    pub fn observe_dark(&mut self, tick: &Tick<'_>, pairs: &Counts) -> Decision {
        if self.guards_only {
            return self.observe_copies_alone(&tick.stable, pairs);
        }
        // Known before the tick, as its proof wants it.
        let factor = self.dispersion.factor();
        self.observe_before(&tick.stable, tick.users);
        if let Some(paired) = &mut self.paired {
            paired.update(pairs, factor);
        }
        self.find().decision
    }

    /// The evidence of copies, where that decides.
    pub(super) fn paired_in_force(&self) -> Option<&Paired> {
        self.paired.as_ref().filter(|_| self.stage == Stage::Dark)
    }

    /// What the evidence of failures of copies has to be to roll back by itself; nothing without dark steps.
    pub fn dark_threshold_of_failures(&self) -> Option<f64> {
        let checks = f64::from(self.paired.as_ref()?.checks());
        Some(self.dark_threshold() + checks.ln())
    }

    /// ln(1/α) of the copies' share.
    pub(super) fn dark_threshold(&self) -> f64 {
        self.targets.evidence + (1.0 - SHARE).ln() - SHARE.ln()
    }

    /// What all that copies have shown comes to.
    pub(super) fn find_dark(&self, paired: &Paired) -> Finding {
        let (evidence, threshold) = (paired.combined(), self.dark_threshold());
        let margin = self.targets.promotion_margin;
        let minimum = self.step_minimum.unwrap_or(self.targets.minimum_requests);
        let requests = paired.in_step();
        let (decision, reason) = if evidence >= threshold {
            (Decision::RollBack, Reason::Worse(()))
        } else if let Some(ticks) = paired.silence() {
            (Decision::Hold, Reason::NoCanaryTraffic { ticks })
        } else if evidence >= threshold / 2.0 {
            (Decision::Continue, Reason::Suspicious(()))
        } else if requests < minimum {
            (Decision::Continue, Reason::TooFewRequests { requests, minimum })
        } else if paired.better() < self.targets.promotion_evidence {
            (Decision::Continue, Reason::NotYetNonInferior { margin })
        } else {
            (Decision::Advance, Reason::NonInferior { margin })
        };
        Finding { decision, reason }
    }

    /// The same with all that it rests on.
    pub(super) fn dark_verdict(&self, paired: &Paired) -> Verdict {
        let Finding { decision, reason } = self.find_dark(paired);
        let checks = self.dark_checks(paired);
        let strongest = || checks.iter().max_by(|a, b| a.evidence.total_cmp(&b.evidence)).cloned();
        let reason = reason.blaming(|| strongest().expect("failures are compared"));
        let requests_needed = self.pairs_needed(paired, &reason);
        let Counts { none: _, stable, canary, both, timed, slower } = *paired.counts();
        let rate = paired.rate();
        Verdict {
            decision,
            reason,
            stage: Stage::Dark,
            guards_only: false,
            evidence: paired.combined(),
            threshold: self.dark_threshold(),
            promotion_evidence: paired.better(),
            promotion_threshold: self.targets.promotion_evidence,
            rollout: self.tally.rollout.totals(),
            step: self.tally.step.totals(),
            recent: self.tally.window.sum().totals(),
            warming: self.tally.warming.totals(),
            sent: self.tally.sent.totals(),
            latency: self.tally.latency(),
            difference: None,
            dispersion: self.dispersion.factor(),
            incident: None,
            harm: self.harm(),
            users: None,
            pairs: Some(Pairs {
                pairs: paired.counts().pairs(),
                in_step: paired.in_step(),
                stable_only: stable,
                canary_only: canary,
                both,
                timed,
                slower,
                difference: checks.get(Check::PairedErrorRate).and_then(|report| report.interval),
            }),
            requests_needed,
            ticks_needed: requests_needed
                .filter(|_| rate > 0.0)
                // The cast saturates.
                .map(|pairs| (pairs as f64 / rate).ceil() as u64),
            checks,
            routes: Arc::default(),
        }
    }

    fn dark_checks(&self, paired: &Paired) -> Checks {
        let threshold = self.dark_threshold() + f64::from(paired.checks()).ln();
        let report = |check, evidence, requests| CheckReport {
            check,
            route: None,
            stable: None,
            canary: None,
            limit: None,
            interval: None,
            evidence,
            threshold,
            requests,
            requests_needed: requests_to_gain(threshold - evidence, evidence, requests),
        };
        let counts = paired.counts();
        let Arms { stable, canary } = counts.samples().map(super::Sample::rate);
        let mut checks = Checks::default();
        checks.put(CheckReport {
            stable,
            canary,
            interval: paired.difference(self.dispersion.factor()),
            ..report(Check::PairedErrorRate, paired.failing(), counts.pairs())
        });
        if let Some(evidence) = paired.slower() {
            let share = (counts.timed > 0).then(|| counts.slower as f64 / counts.timed as f64);
            let report = report(Check::PairedLatency, evidence, counts.timed);
            let interval = paired.slower_share();
            checks.put(CheckReport { canary: share, limit: Some(0.5), interval, ..report });
        }
        checks
    }

    /// Pairs until more can be concluded; nothing where nothing is awaited, or nothing points that way.
    fn pairs_needed(&self, paired: &Paired, reason: &Reason) -> Option<u64> {
        let (seen, proof) = (paired.counts().pairs(), paired.better());
        let proof = || match self.targets.promotion_evidence - proof {
            awaited if awaited > 0.0 => requests_to_gain(awaited, proof, seen),
            _ => Some(0),
        };
        match *reason {
            Reason::Suspicious(_) => {
                let evidence = paired.combined();
                requests_to_gain(self.dark_threshold() - evidence, evidence, seen)
            }
            Reason::TooFewRequests { requests, minimum } => {
                // What has been seen so far may say nothing yet of how fast proof comes.
                Some(proof().unwrap_or(0).max(minimum - requests))
            }
            Reason::NotYetNonInferior { .. } => proof(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::{ArmTick, explain::explain},
        model::{histogram::Histogram, weight::Weight},
    };

    fn dark() -> Analysis {
        let mut analysis = Analysis::new(&Settings::default(), 60).with_dark_steps(&Settings::default());
        analysis.begin_dark_step();
        analysis
    }

    fn arm(latency: &Histogram, (requests, failures): (u64, u64)) -> ArmTick<'_> {
        ArmTick::new(requests, failures, latency)
    }

    /// Ticks with ten pairs each.
    fn pass(analysis: &mut Analysis, ticks: u64, pairs: Counts) -> Verdict {
        let none = Histogram::default();
        for _ in 0..ticks {
            let (stable, canary) = (arm(&none, (100, 0)), arm(&none, (0, 0)));
            analysis.observe_dark(&Tick { stable, canary, routes: &[], users: None }, &pairs);
        }
        analysis.verdict()
    }

    const GOOD: Counts = Counts { none: 10, stable: 0, canary: 0, both: 0, timed: 10, slower: 5 };

    #[test]
    fn users_come_once_enough_is_known() {
        let mut analysis = dark();
        let few = pass(&mut analysis, 5, GOOD);
        assert_eq!((few.decision, few.stage), (Decision::Continue, Stage::Dark));
        assert_eq!(few.reason, Reason::TooFewRequests { requests: 50, minimum: 100 });
        let said = explain(&few);
        assert!(
            said.starts_with("canary has answered 50 of the 100 copies that the step needs: waiting, about "),
            "{said}"
        );
        let more = pass(&mut analysis, 10, GOOD);
        let said = explain(&more);
        let beginning = "of 150 copied requests the canary alone failed 0 and stable alone 0: not certain yet that it \
                         stays within 0.5 percentage points (evidence ";
        assert!(said.starts_with(beginning) && said.contains(" needed for users, about "), "{said}");
        assert!(more.requests_needed.is_some() && more.ticks_needed.is_some(), "{more:?}");
        let enough = pass(&mut analysis, 100, GOOD);
        assert_eq!(enough.decision, Decision::Advance);
        assert_eq!(enough.reason, Reason::NonInferior { margin: 0.005 });
        assert!(explain(&enough).contains("ready for users"), "{}", explain(&enough));
        let difference = enough.pairs.unwrap().difference.unwrap();
        assert!(difference.low < 0.0 && difference.high < 0.005, "{difference:?}");
    }

    #[test]
    fn copies_are_no_evidence_of_a_live_step() {
        let none = Histogram::default();
        let settings = Settings::default();
        let mut after = dark();
        pass(&mut after, 60, Counts { none: 90, canary: 1, ..GOOD });
        let mut fresh = Analysis::new(&settings, 60).with_dark_steps(&settings);
        (0..60).for_each(|_| fresh.observe_before(&arm(&none, (100, 0)), None));
        for analysis in [&mut after, &mut fresh] {
            analysis.begin_step(Some(Weight::FULL));
            analysis.observe(&Tick {
                stable: arm(&none, (90, 1)),
                canary: arm(&none, (10, 1)),
                routes: &[],
                users: None,
            });
        }
        assert_eq!(after.verdict(), fresh.verdict());
        assert_eq!((after.verdict().stage, after.verdict().pairs), (Stage::Stepping, None));
    }

    #[test]
    fn both_share_one_alpha() {
        let mut analysis = dark();
        let copies = analysis.verdict().threshold;
        analysis.begin_step(None);
        let users = analysis.verdict().threshold;
        assert!(((-copies).exp() + (-users).exp() - Settings::default().alpha).abs() < 1e-12);
    }

    #[test]
    fn a_bad_canary_is_rolled_back_in_the_dark() {
        let failing = pass(&mut dark(), 20, Counts { none: 9, canary: 1, ..GOOD });
        assert_eq!(failing.decision, Decision::RollBack);
        let said = explain(&failing);
        assert!(
            said.starts_with("canary fails 10 % of copied requests, stable 0 %: rolling back (evidence "),
            "{said}"
        );
        assert!(said.ends_with("no user has been there"), "{said}");
        let slow = pass(&mut dark(), 20, Counts { slower: 10, ..GOOD });
        let said = explain(&slow);
        let beginning =
            "canary takes longer than it may for 100 % of copied requests, limit 50 %: rolling back";
        assert!(said.starts_with(beginning), "{said}");
        let share = slow.checks.get(Check::PairedLatency).unwrap().interval.unwrap();
        assert!(share.low > 0.5 && share.high == 1.0, "{share:?}");
        // What both fail is not the canary's fault.
        let both = pass(&mut dark(), 200, Counts { none: 5, both: 5, ..GOOD });
        assert_eq!(both.decision, Decision::Advance);
    }

    #[test]
    fn without_copies_nothing_is_concluded() {
        let silent = pass(&mut dark(), 20, Counts::default());
        assert_eq!(
            (silent.decision, &silent.reason),
            (Decision::Hold, &Reason::NoCanaryTraffic { ticks: 20 })
        );
        assert!(explain(&silent).starts_with("no copy of a request was answered in the last 20 ticks"));
    }

    #[test]
    fn it_survives_saving_bit_for_bit_and_older_states_have_none() {
        let mut analysis = dark();
        pass(&mut analysis, 33, Counts { none: 9, stable: 1, ..GOOD });
        let text = serde_json::to_string(&analysis).unwrap();
        let mut again: Analysis = serde_json::from_str(&text).unwrap();
        assert_eq!(again, analysis);
        assert_eq!(pass(&mut again, 9, GOOD), pass(&mut analysis, 9, GOOD));
        let plain = Analysis::new(&Settings::default(), 60);
        let text = serde_json::to_string(&plain).unwrap();
        assert!(!text.contains("paired"), "what has no dark steps is saved as it always was");
        assert_eq!(serde_json::from_str::<Analysis>(&text).unwrap(), plain);
    }
}
