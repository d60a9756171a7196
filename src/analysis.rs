//! Evidence in, verdict out: is the canary worse than stable, and how sure is that?
//!
//! Pure: counts come in as arguments, once a tick, and a [`verdict::Verdict`] with its numbers goes
//! out. No clock, no I/O, no randomness, so that a decision can be tested, simulated, replayed and
//! explained.
//!
//! The promise: of the rollouts whose canary is no worse than the tolerance, at most a share α is
//! ever rolled back by the evidence, however often it is looked at and whatever the load, the
//! weights and the base rate of failures do meanwhile. [`error_rate`] says what "no worse" means
//! and proves it for a tick, [`mixture`] carries it over ticks, [`latency`] and [`guard`] ask
//! other questions in the same way, and [`budget`] makes one number of them all. Baking asks a new
//! question of a version that is now alone, and has an α of its own.
//!
//! Outside the promise stands one rule without statistics: a canary that fails many requests in a
//! row and answers none is rolled back at once.

pub mod budget;
pub mod error_rate;
mod evidence;
pub mod explain;
pub mod guard;
pub(crate) mod interval;
pub mod latency;
pub mod mixture;
pub mod settings;
pub mod verdict;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::{
    error_rate::{Comparison, Margin, Sample},
    evidence::{Tally, Window},
    guard::{Guard, SlowGuard},
    latency::{Latency, Quantile},
    mixture::TICKS_PER_START,
    settings::Settings,
    verdict::{ArmLatency, Arms, Check, CheckReport, Decision, Reason, Stage, Verdict},
};
use crate::model::histogram::Histogram;

/// What one arm did in one tick.
#[derive(Debug, Clone, Copy)]
pub struct ArmTick<'a> {
    /// Attempts that ended and count for or against the backend.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// How long they took.
    pub latency: &'a Histogram,
}

impl ArmTick<'_> {
    /// Counts are read while they grow, so a failure may be seen before its request.
    fn sample(&self) -> Sample {
        Sample { requests: self.requests, failures: self.failures.min(self.requests) }
    }
}

/// What both arms did in one tick.
#[derive(Debug, Clone, Copy)]
pub struct Tick<'a> {
    /// What stable did.
    pub stable: ArmTick<'a>,
    /// What the canary did.
    pub canary: ArmTick<'a>,
}

/// The analysis of one rollout, from its first step to the end of baking.
///
/// Plain data: whatever it is restored from, it goes on bit for bit where it was, as long as the
/// format keeps every bit of a float.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    targets: Targets,
    last_step: bool,
    tally: Tally,
    worse: Comparison,
    better: Comparison,
    latency: Option<Latency>,
    max_error_rate: Option<Guard>,
    max_p99: Option<SlowGuard>,
}

/// What the settings ask for, in the units of the evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Targets {
    /// ln(1/α).
    evidence: f64,
    /// ln(1/α) for promotion.
    promotion_evidence: f64,
    promotion_margin: f64,
    minimum_requests: u64,
    max_error_rate: Option<f64>,
    max_p99: Option<Duration>,
    /// Starts that are expected after the first.
    planned: u64,
}

/// What a tick comes to, before its numbers are put beside it.
struct Finding {
    decision: Decision,
    reason: Reason,
    requests_needed: Option<u64>,
}

impl Analysis {
    /// The analysis of a rollout that begins now, in a step that is not the last. `settings` must
    /// be without [faults](Settings::faults); `planned_ticks` is how long the steps are expected to
    /// take, which costs little to get wrong.
    pub fn new(settings: &Settings, planned_ticks: u64) -> Self {
        let planned = (planned_ticks / TICKS_PER_START).max(1);
        let Settings {
            alpha,
            ratio_tolerance,
            absolute_tolerance,
            promotion_margin,
            promotion_alpha,
            minimum_requests,
            latency_margin,
            max_error_rate,
            max_p99,
        } = *settings;
        let tolerance = Margin { ratio: ratio_tolerance, absolute: absolute_tolerance };
        Self {
            targets: Targets {
                evidence: -alpha.ln(),
                promotion_evidence: -promotion_alpha.ln(),
                promotion_margin,
                minimum_requests,
                max_error_rate,
                max_p99,
                planned,
            },
            last_step: false,
            tally: Tally::default(),
            worse: Comparison::worse(tolerance, planned),
            better: Comparison::better(Margin { ratio: 1.0, absolute: promotion_margin }),
            latency: latency_margin.map(|margin| Latency::new(margin, planned)),
            max_error_rate: max_error_rate.map(|limit| Guard::new(limit, planned)),
            max_p99: max_p99.map(|limit| SlowGuard::new(limit, planned)),
        }
    }

    /// A step begins, perhaps the `last` one: its requests are counted anew. The evidence stays,
    /// since a change of weight does not touch it.
    pub fn begin_step(&mut self, last: bool) {
        self.last_step = last;
        self.tally.begin_step();
    }

    /// Takes in a tick of a step.
    pub fn observe(&mut self, tick: &Tick<'_>) -> Verdict {
        let Tick { stable, canary } = tick;
        let samples = Arms { stable: stable.sample(), canary: canary.sample() };
        self.tally.count(samples, Arms { stable: stable.latency, canary: canary.latency });
        self.worse.update(samples.stable, samples.canary);
        self.better.update(samples.stable, samples.canary);
        if let Some(latency) = &mut self.latency {
            latency.update(stable.latency, canary.latency);
        }
        self.observe_guards(samples.canary, canary.latency);
        self.verdict(Stage::Stepping)
    }

    /// The canary was promoted and will be watched alone: its limits are, from nothing, and
    /// nothing is compared. Without a limit on its failure rate it may fail five times as often as
    /// the old stable did during the steps, and one request in twenty in any case.
    pub fn begin_baking(&mut self) {
        let Targets { max_error_rate, max_p99, planned, .. } = self.targets;
        let usual = self.tally.rollout.stable.rate().unwrap_or(0.0);
        // Below 1, for there must be something worse than the limit.
        let limit = max_error_rate.unwrap_or_else(|| (5.0 * usual).clamp(0.05, 0.95));
        self.max_error_rate = Some(Guard::new(limit, planned));
        self.max_p99 = max_p99.map(|limit| SlowGuard::new(limit, planned));
        self.tally.begin_baking();
    }

    /// Takes in a tick of baking: what the promoted version, now stable, did in it. It never asks to
    /// hold or to advance.
    pub fn observe_baking(&mut self, new_stable: &ArmTick<'_>) -> Verdict {
        let sample = new_stable.sample();
        self.tally.count_baking(sample, new_stable.latency);
        self.observe_guards(sample, new_stable.latency);
        self.verdict(Stage::Baking)
    }

    fn observe_guards(&mut self, sample: Sample, latency: &Histogram) {
        if let Some(guard) = &mut self.max_error_rate {
            guard.update(sample);
        }
        if let Some(guard) = &mut self.max_p99 {
            guard.update(latency);
        }
    }

    fn verdict(&self, stage: Stage) -> Verdict {
        let latency = self.tally.latency();
        let checks = self.reports(stage, latency);
        let evidence = budget::combine(checks.iter().map(|check| (check.evidence, 1.0)));
        let promotion_evidence = self.better.log_e();
        let strongest = checks.iter().copied().max_by(|a, b| a.evidence.total_cmp(&b.evidence));
        // Retreat comes first, whatever else is the matter: it is safe when it is wrong.
        let finding = self.retreat(evidence, strongest).unwrap_or_else(|| match stage {
            Stage::Baking => self.bake(),
            Stage::Stepping => {
                self.hold().unwrap_or_else(|| self.proceed(evidence, promotion_evidence, strongest))
            }
        });
        let Finding { decision, reason, requests_needed } = finding;
        Verdict {
            decision,
            reason,
            stage,
            evidence,
            threshold: self.targets.evidence,
            promotion_evidence,
            promotion_threshold: self.targets.promotion_evidence,
            checks,
            rollout: self.tally.rollout.totals(),
            step: self.tally.step.totals(),
            latency,
            difference: interval::newcombe(self.tally.step),
            requests_needed,
        }
    }

    /// The numbers of every check that the stage has.
    fn reports(&self, stage: Stage, latency: Arms<ArmLatency>) -> Vec<CheckReport> {
        let Arms { stable, canary } = self.tally.step;
        let (stable, canary) = (stable.rate(), canary.rate());
        let p50 = (latency.stable.p50_seconds, latency.canary.p50_seconds);
        let p99 = (latency.stable.p99_seconds, latency.canary.p99_seconds);
        let report =
            |check, (stable, canary), limit, evidence| CheckReport { check, stable, canary, limit, evidence };
        let mut reports = Vec::with_capacity(5);
        if stage == Stage::Stepping {
            reports.push(report(Check::ErrorRate, (stable, canary), None, self.worse.log_e()));
            if let Some(latency) = &self.latency {
                reports.push(report(Check::LatencyP50, p50, None, latency.log_e(Quantile::P50)));
                reports.push(report(Check::LatencyP99, p99, None, latency.log_e(Quantile::P99)));
            }
        }
        if let Some(guard) = &self.max_error_rate {
            reports.push(report(Check::MaxErrorRate, (stable, canary), Some(guard.limit()), guard.log_e()));
        }
        if let Some(guard) = &self.max_p99 {
            reports.push(report(Check::MaxP99, p99, Some(guard.limit().as_secs_f64()), guard.log_e()));
        }
        reports
    }

    /// Whether to roll back.
    fn retreat(&self, evidence: f64, strongest: Option<CheckReport>) -> Option<Finding> {
        let by_evidence = strongest.filter(|_| evidence >= self.targets.evidence).map(Reason::Worse);
        let by_streak = || self.tally.streak.damning().map(|failures| Reason::OnlyFailures { failures });
        let reason = by_evidence.or_else(by_streak)?;
        Some(Finding { decision: Decision::RollBack, reason, requests_needed: None })
    }

    /// Whether nothing can be concluded now.
    fn hold(&self) -> Option<Finding> {
        let Arms { stable, canary } = self.tally.window.sum();
        let idle = |arm: Sample| self.tally.window.is_full() && arm.requests == 0;
        let reason = match (stable.rate(), canary.rate()) {
            _ if idle(canary) => Reason::NoCanaryTraffic { ticks: Window::TICKS },
            _ if idle(stable) => Reason::NoStableTraffic { ticks: Window::TICKS },
            (Some(s), Some(c)) if stable.in_trouble() && canary.in_trouble() => {
                Reason::BothFailing { stable: s, canary: c }
            }
            _ => return None,
        };
        Some(Finding { decision: Decision::Hold, reason, requests_needed: None })
    }

    /// Whether enough is known to leave the step, and if not, what is missing.
    fn proceed(&self, evidence: f64, promotion_evidence: f64, strongest: Option<CheckReport>) -> Finding {
        let Targets { promotion_margin: margin, minimum_requests: minimum, .. } = self.targets;
        let requests = self.tally.step.canary.requests;
        let awaited = self.targets.promotion_evidence - promotion_evidence;
        let go_on =
            |reason, requests_needed| Finding { decision: Decision::Continue, reason, requests_needed };
        let leave = |reason| Finding { decision: Decision::Advance, reason, requests_needed: None };
        // Half the threshold is the root of 1/α: a canary under such suspicion gets no more traffic.
        if let Some(check) = strongest.filter(|_| evidence >= self.targets.evidence / 2.0) {
            let needed = self.requests_to_gain(self.targets.evidence - evidence, evidence);
            return go_on(Reason::Suspicious(check), needed);
        }
        let unproven = self.last_step && awaited > 0.0;
        let proof = if unproven { self.requests_to_gain(awaited, promotion_evidence) } else { Some(0) };
        if requests < minimum {
            let needed = proof.map(|proof| proof.max(minimum - requests));
            return go_on(Reason::TooFewRequests { requests, minimum }, needed);
        }
        match (self.last_step, unproven) {
            (_, true) => go_on(Reason::NotYetNonInferior { margin }, proof),
            (true, false) => leave(Reason::NonInferior { margin }),
            (false, false) => leave(Reason::Healthy { requests }),
        }
    }

    fn bake(&self) -> Finding {
        let Sample { requests, failures } = self.tally.step.stable;
        let reason = Reason::Baking { requests, failures };
        Finding { decision: Decision::Continue, reason, requests_needed: None }
    }

    /// Canary requests until `awaited` more evidence has come, if it comes as `gained` has since
    /// the rollout began; nothing where none has.
    fn requests_to_gain(&self, awaited: f64, gained: f64) -> Option<u64> {
        let requests = self.tally.rollout.canary.requests as f64;
        // The cast saturates.
        (gained > 0.0).then(|| (awaited / gained * requests).ceil() as u64)
    }
}

#[cfg(test)]
mod tests;
