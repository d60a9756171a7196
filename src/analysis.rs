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
//! question of a version that is now alone, and has an α of its own; so does whoever has the canary judged
//! by its limits alone (`guards_only`).
//!
//! Outside the promise stand two rules without it: a canary that fails many requests in a row, or has no endpoint
//! for them, and answers none is rolled back at once (`evidence`), and so is one that has cost as many requests as
//! it may, where somebody said how many (`harm`).

pub mod attribution;
pub mod budget;
mod dark;
pub mod dispersion;
pub mod error_rate;
mod evidence;
pub mod explain;
pub mod firsts;
pub mod guard;
mod guards_only;
mod harm;
mod incident;
pub mod interval;
pub mod latency;
mod learned;
mod logarithm;
pub mod mixture;
mod numbers;
pub mod outlook;
pub mod paired;
mod route;
pub mod settings;
mod tick;
pub mod users;
pub mod verdict;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    harm::first_cap,
    learned::Learned,
    tick::{ArmTick, Sent, Tick},
};

use self::{
    dispersion::Dispersion,
    error_rate::{Comparison, Margin, Sample},
    evidence::Tally,
    guard::{Guard, SlowGuard},
    harm::Budget,
    interval::Difference,
    latency::{Latency, Quantile},
    mixture::TICKS_PER_START,
    paired::{Counts, Paired},
    route::Route,
    settings::Settings,
    users::{Known, Users},
    verdict::{Arms, Check, Decision, Harm, Incident, Interval, Reason, Scope, Stage},
};
use crate::model::{role::Role, weight::Weight};

/// The analysis of one rollout, from its first step to the end of baking.
///
/// Plain data: whatever it is restored from, it goes on bit for bit where it was, as long as the
/// format keeps every bit of a float.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    targets: Targets,
    stage: Stage,
    /// Whether nothing is compared with stable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    guards_only: bool,
    /// The weight that the next step has; nothing in the last one.
    next_weight: Option<Weight>,
    /// Requests that the step itself wants, in place of the setting.
    step_minimum: Option<u64>,
    tally: Tally,
    dispersion: Dispersion,
    worse: Comparison,
    better: Comparison,
    difference: Option<Difference>,
    latency: Option<Latency>,
    routes: Vec<Route>,
    max_error_rate: Option<Guard>,
    max_p99: Option<SlowGuard>,
    /// How requests over it come together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    over_max_p99: Option<Dispersion>,
    budget: Option<Budget>,
    /// Of copies, where the plan has dark steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paired: Option<Paired>,
    /// Of users, where they are what is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    users: Option<Box<Known>>,
}

/// What the settings ask for, in the units of the evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Targets {
    /// ln(1/α).
    evidence: f64,
    /// ln(1/α) for promotion.
    promotion_evidence: f64,
    promotion_margin: f64,
    #[serde(default)]
    prove_each_step: bool,
    minimum_requests: u64,
    max_error_rate: Option<f64>,
    max_p99: Option<Duration>,
    /// Starts that are expected after the first.
    planned: u64,
}

/// What a tick comes to, before the numbers are put beside it.
struct Finding {
    decision: Decision,
    reason: Reason<()>,
}

impl Analysis {
    /// The analysis of a rollout that begins now, in a step that is not the last. `settings` must
    /// be without [faults](Settings::faults); `planned_ticks` is how long the steps are expected to
    /// take, which costs little to get wrong.
    pub fn new(settings: &Settings, planned_ticks: u64) -> Self {
        let planned = (planned_ticks / TICKS_PER_START).max(1);
        let Settings {
            alpha,
            ratio_tolerance: _,
            absolute_tolerance: _,
            promotion_margin,
            promotion_alpha,
            prove_each_step,
            minimum_requests,
            latency_margin: _,
            max_error_rate,
            max_p99,
            dispersion,
            max_harm,
            unit: _,
        } = *settings;
        Self {
            targets: Targets {
                evidence: -alpha.ln(),
                promotion_evidence: -promotion_alpha.ln(),
                promotion_margin,
                prove_each_step,
                minimum_requests,
                max_error_rate,
                max_p99,
                planned,
            },
            stage: Stage::Stepping,
            guards_only: false,
            next_weight: Some(Weight::ZERO),
            step_minimum: None,
            tally: Tally::default(),
            dispersion: Dispersion::new(dispersion),
            worse: Comparison::worse(settings.tolerance(), planned),
            better: Comparison::better(Margin { ratio: 1.0, absolute: promotion_margin }),
            difference: Some(Difference::default()),
            latency: Latency::of(settings, planned),
            routes: Vec::new(),
            max_error_rate: max_error_rate.map(|limit| Guard::new(limit, planned)),
            max_p99: max_p99.map(|limit| SlowGuard::new(limit, planned)),
            over_max_p99: max_p99.map(|_| Dispersion::new(dispersion)),
            budget: max_harm.map(Budget::new),
            paired: None,
            users: None,
        }
    }

    /// The same for a service whose requests are also counted by these routes.
    #[must_use]
    pub fn with_routes(mut self, settings: &Settings, names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let dispersion = Dispersion::new(settings.dispersion);
        let route = |name| Route::new(name, settings.tolerance(), self.targets.planned, dispersion);
        self.routes = names.into_iter().map(route).collect();
        self
    }

    /// The routes by which requests are also counted, in the order in which ticks have them.
    pub fn routes_told(&self) -> impl Iterator<Item = &Arc<str>> {
        self.routes.iter().map(|route| &route.name)
    }

    /// The same for whoever wants decisions and nobody to look: without intervals, unless one of them
    /// is decided by.
    #[must_use]
    pub fn without_intervals(mut self) -> Self {
        if self.budget.is_none() {
            self.difference = None;
        }
        if let Some(latency) = &mut self.latency {
            latency.drop_intervals();
        }
        self.routes.iter_mut().for_each(|route| route.difference = None);
        self
    }

    /// A step begins, after which the canary is to get `next_weight`, or in the last one everything:
    /// its requests are counted anew. The evidence stays, since a change of weight does not touch it.
    pub fn begin_step(&mut self, next_weight: Option<Weight>) {
        self.forget_copies();
        self.stage = Stage::Stepping;
        self.next_weight = next_weight;
        self.step_minimum = None;
        self.tally.begin_step();
        self.routes.iter_mut().for_each(|route| route.step = Arms::default());
    }

    /// Until the next step begins, the canary must have had so many requests in it before it may be left.
    pub fn require(&mut self, minimum_requests: u64) {
        self.step_minimum = Some(minimum_requests);
    }

    /// Takes in a tick of stable alone, before the canary gets anything: only what stable is usually
    /// like is learned, so that it is known when it matters.
    pub fn observe_before(&mut self, stable: &ArmTick<'_>, users: Option<&Users>) {
        if !stable.sample().is_outage() {
            self.dispersion.update(stable.sample());
        }
        self.learn_of_limits(stable);
        self.tally.learn(stable);
        if let Some(latency) = &mut self.latency {
            latency.learn(stable.latency, stable.sample().failures, users);
        }
        self.learn_of_users(stable, users);
    }

    /// Takes in a tick of a step.
    pub fn observe(&mut self, tick: &Tick<'_>) -> Decision {
        if self.stage == Stage::Dark {
            return self.observe_dark(tick, &Counts::default());
        }
        if self.guards_only {
            return self.observe_alone(tick);
        }
        let (samples, usual) = (tick.samples(), self.tally.rollout.stable.rate());
        self.tally.count(tick);
        // Known before the tick, as its proof wants it.
        let factor = self.dispersion.factor();
        self.compare(samples, tick.users, factor);
        self.better.update(samples, factor);
        if let Some(difference) = &mut self.difference {
            difference.update(samples, factor);
        }
        if let Some(latency) = &mut self.latency {
            let latencies = Arms { stable: tick.stable.latency, canary: tick.canary.latency };
            latency.update(latencies, samples.map(|arm| arm.failures), tick.users);
        }
        for (place, (route, samples)) in self.routes.iter_mut().zip(tick.routes).enumerate() {
            route.update(*samples, tick.users.and_then(|users| users.routes.get(place)));
        }
        self.learn_of_limits(&tick.stable);
        self.observe_guards(&tick.canary, factor);
        if !samples.stable.is_outage() {
            self.dispersion.update(samples.stable);
        }
        if let Some(budget) = &mut self.budget {
            let met = Arms { stable: tick.stable.compared_as_met(), canary: tick.canary.met() };
            budget.update(met, tick.canary.shielded, usual.unwrap_or(0.0));
        }
        self.find().decision
    }

    /// The canary was promoted and will be watched alone: its limits are, from nothing, and
    /// nothing is compared. Without a limit on its failure rate it may fail five times as often as
    /// the old stable did during the steps, outages left out, and one request in twenty in any case.
    pub fn begin_baking(&mut self) {
        self.forget_copies();
        let Targets { max_error_rate, max_p99, planned, .. } = self.targets;
        let usual = self.tally.usual().rate().unwrap_or(0.0);
        // Below 1, for there must be something worse than the limit.
        let limit = max_error_rate.unwrap_or_else(|| (5.0 * usual).clamp(0.05, 0.95));
        self.max_error_rate = Some(Guard::new(limit, planned));
        self.max_p99 = max_p99.map(|limit| SlowGuard::new(limit, planned));
        self.stage = Stage::Baking;
        self.tally.begin_baking();
    }

    /// Takes in a tick of baking: what the promoted version, now stable, did in it. It never asks to
    /// hold or to advance.
    pub fn observe_baking(&mut self, new_stable: &ArmTick<'_>) -> Decision {
        self.tally.count_baking(new_stable);
        self.observe_guards(new_stable, self.dispersion.factor());
        self.find().decision
    }

    /// What the canary has cost and which weight that allows, where the settings limit it.
    pub fn harm(&self) -> Option<Harm> {
        // In baking there is no weight to keep down.
        let load = if self.stage == Stage::Baking { 0.0 } else { self.tally.load.rate() };
        self.budget.map(|budget| budget.report(load, self.difference()))
    }

    fn difference(&self) -> Option<Interval> {
        self.difference.as_ref().and_then(Difference::interval)
    }

    /// The evidence that rolls back.
    fn threshold(&self) -> f64 {
        if self.stage == Stage::Dark { self.dark_threshold() } else { self.targets.evidence }
    }

    /// The evidence of all checks together, as one number: see [`budget`].
    fn combined(&self) -> f64 {
        let service = self.service_checks();
        let (of_service, of_route) = self.weights(&service);
        let service = service.into_iter().flatten().map(|(_, log_e)| (log_e, of_service));
        let routes = self.routes().iter().map(|route| (route.worse.log_e(), of_route));
        budget::combine(service.chain(routes))
    }

    /// Something that is at least as much, for less than that costs: a mean is at most the largest.
    fn ceiling(&self) -> f64 {
        let guards = self.max_error_rate.iter().map(Guard::ceiling);
        let guards = guards.chain(self.max_p99.iter().map(SlowGuard::ceiling));
        if self.stage == Stage::Baking || self.guards_only {
            return guards.fold(0.0, f64::max);
        }
        let latency = self.latency.iter().map(Latency::ceiling);
        let routes = self.routes.iter().map(|route| route.worse.ceiling());
        guards.chain(latency).chain(routes).fold(self.worse.ceiling(), f64::max)
    }

    /// The weight of each check on the whole service, and of each on a route.
    fn weights(&self, service: &[Option<(Check, f64)>]) -> (f64, f64) {
        budget::weights(service.iter().flatten().count(), self.routes().len())
    }

    /// The routes that are compared.
    fn routes(&self) -> &[Route] {
        if self.stage == Stage::Stepping { &self.routes } else { &[] }
    }

    /// The evidence of the checks on the whole service that the stage has.
    fn service_checks(&self) -> [Option<(Check, f64)>; 5] {
        let stepping = self.stage == Stage::Stepping;
        let latency = self.latency.as_ref().filter(|_| stepping);
        let slower = |quantile| latency.map(|latency| latency.log_e(quantile));
        [
            (Check::ErrorRate, (stepping && !self.guards_only).then(|| self.worse.log_e())),
            (Check::LatencyP50, slower(Quantile::P50)),
            (Check::LatencyP99, slower(Quantile::P99)),
            (Check::MaxErrorRate, self.max_error_rate.as_ref().map(Guard::log_e)),
            (Check::MaxP99, self.max_p99.as_ref().map(SlowGuard::log_e)),
        ]
        .map(|(check, log_e)| Some((check, log_e?)))
    }

    /// What all that has been seen comes to.
    fn find(&self) -> Finding {
        if let Some(paired) = self.paired_in_force() {
            return self.find_dark(paired);
        }
        // Half the threshold is the root of 1/α. In most ticks the evidence is far below that, which costs
        // much less to see than how far.
        let close = self.ceiling() >= self.threshold() / 2.0;
        let evidence = if close { self.combined() } else { 0.0 };
        // Retreat comes first, whatever else is the matter: it is safe when it is wrong.
        self.retreat(evidence).unwrap_or_else(|| match self.stage {
            Stage::Baking => self.bake(),
            _ if self.guards_only => self.find_alone(evidence),
            Stage::Stepping | Stage::Dark => self.hold().unwrap_or_else(|| self.proceed(evidence)),
        })
    }

    /// Whether to roll back.
    fn retreat(&self, evidence: f64) -> Option<Finding> {
        let reason = if evidence >= self.threshold() {
            Reason::Worse(())
        } else if let Some((failures, unserved)) = self.tally.streak.damning(self.guards_only) {
            Reason::OnlyFailures { failures, unserved }
        } else if self.stage == Stage::Stepping && self.budget.is_some_and(|budget| budget.is_spent()) {
            Reason::HarmSpent(self.harm()?)
        } else {
            return None;
        };
        Some(Finding { decision: Decision::RollBack, reason })
    }

    /// Whether nothing can be concluded now.
    fn hold(&self) -> Option<Finding> {
        let silence = |role| self.tally.silence(role);
        let reason = if let Some(silence) = silence(Role::Canary).or_else(|| silence(Role::Stable)) {
            silence
        } else {
            let Incident { stable, canary, .. } =
                self.tally.window.incident().filter(|incident| incident.scope == Scope::Both)?;
            Reason::BothFailing { stable, canary }
        };
        Some(Finding { decision: Decision::Hold, reason })
    }

    /// Whether enough is known to leave the step, and if not, what is missing.
    fn proceed(&self, evidence: f64) -> Finding {
        let Targets { promotion_margin: margin, minimum_requests: minimum, .. } = self.targets;
        let minimum = self.step_minimum.unwrap_or(minimum);
        let requests = self.tally.step.canary.requests;
        let go_on = |reason| Finding { decision: Decision::Continue, reason };
        let leave = |reason| Finding { decision: Decision::Advance, reason };
        // A canary under such suspicion gets no more traffic.
        if evidence >= self.targets.evidence / 2.0 {
            return go_on(Reason::Suspicious(()));
        }
        if requests < minimum {
            return go_on(Reason::TooFewRequests { requests, minimum });
        }
        if let Some((users, minimum)) = self.lacks_users() {
            return go_on(Reason::TooFewUsers { users, minimum });
        }
        if let Some(harm) = self.harm().filter(|harm| self.costs_too_much(harm)) {
            return go_on(Reason::HarmPossible(harm));
        }
        if self.wants_proof() && !self.is_proven() {
            return go_on(Reason::NotYetNonInferior { margin });
        }
        leave(match self.next_weight {
            Some(_) => Reason::Healthy { requests },
            None => Reason::NonInferior { margin },
        })
    }

    /// Whether the step is left only when the canary is surely within the margin of promotion.
    fn wants_proof(&self) -> bool {
        !self.guards_only && (self.targets.prove_each_step || self.next_weight.is_none())
    }

    /// Whether the next weight is more than the budget allows.
    fn costs_too_much(&self, harm: &Harm) -> bool {
        harm.weight_cap.is_some_and(|cap| cap < self.next_weight.unwrap_or(Weight::FULL))
    }

    /// Whether the canary is surely within the margin of promotion.
    fn is_proven(&self) -> bool {
        let target = self.targets.promotion_evidence;
        self.better.ceiling() >= target && self.better.log_e() >= target
    }

    fn bake(&self) -> Finding {
        let Sample { requests, failures } = self.tally.step.stable;
        Finding { decision: Decision::Continue, reason: Reason::Baking { requests, failures } }
    }
}

#[cfg(test)]
mod tests;
