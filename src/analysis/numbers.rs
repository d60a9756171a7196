//! The numbers beside a decision: each check's, and what is missing until more can be decided.

use std::sync::Arc;

use super::{
    Analysis, Sample,
    guard::{Guard, SlowGuard},
    interval::{self, Difference},
    latency::Quantile,
    route::Route,
    verdict::{ArmLatency, Arms, Check, CheckReport, Checks, Reason, Stage, Verdict},
};

impl Analysis {
    /// What was decided in the last tick, with all that it rests on. Changes nothing, and costs more
    /// than the tick itself.
    pub fn verdict(&self) -> Verdict {
        if let Some(paired) = self.paired_in_force() {
            return self.dark_verdict(paired);
        }
        let finding = self.find();
        let latency = self.tally.latency();
        let (checks, routes) = self.checks(latency);
        let evidence = self.combined();
        let strongest = || checks.iter().max_by(|a, b| a.evidence.total_cmp(&b.evidence)).cloned();
        // The error rate is compared, or limited, in every stage.
        let reason = finding.reason.blaming(|| strongest().expect("there is a check"));
        let requests_needed = self.requests_needed(&reason, evidence);
        let rate = self.tally.window.rate().canary;
        Verdict {
            decision: finding.decision,
            reason,
            stage: self.stage,
            guards_only: self.guards_only,
            evidence,
            threshold: self.threshold(),
            promotion_evidence: self.better.log_e(),
            promotion_threshold: self.targets.promotion_evidence,
            rollout: self.tally.rollout.totals(),
            step: self.tally.step.totals(),
            recent: self.tally.window.sum().totals(),
            warming: self.tally.warming.totals(),
            sent: self.tally.sent.totals(),
            latency,
            difference: checks.get(Check::ErrorRate).and_then(|report| report.interval),
            dispersion: self.dispersion.factor(),
            incident: self.tally.window.incident(),
            harm: self.harm(),
            users: self.users().filter(|_| self.stage == Stage::Stepping),
            pairs: None,
            requests_needed,
            ticks_needed: requests_needed
                .filter(|_| rate > 0.0)
                // The cast saturates.
                .map(|requests| (requests as f64 / rate).ceil() as u64),
            checks,
            routes,
        }
    }

    /// The numbers of every check that the stage has, with the route that has the most evidence, and of each route.
    fn checks(&self, latency: Arms<ArmLatency>) -> (Checks, Arc<[CheckReport]>) {
        let service = self.service_checks();
        let (of_service, of_route) = self.weights(&service);
        let mut checks = Checks::default();
        for (check, evidence) in service.into_iter().flatten() {
            let threshold = self.threshold() - of_service.ln();
            checks.put(self.report(check, latency, (evidence, threshold)));
        }
        let threshold = self.threshold() - of_route.ln();
        let routes: Arc<[_]> = self.routes().iter().map(|route| report_route(route, threshold)).collect();
        if let Some(strongest) = routes.iter().max_by(|a, b| a.evidence.total_cmp(&b.evidence)) {
            checks.put(strongest.clone());
        }
        (checks, routes)
    }

    fn report(
        &self,
        check: Check,
        latency: Arms<ArmLatency>,
        (evidence, threshold): (f64, f64),
    ) -> CheckReport {
        let rates = self.tally.step.map(Sample::rate);
        let (p50, p99) = (latency.map(|arm| arm.p50_seconds), latency.map(|arm| arm.p99_seconds));
        let of_latency = |quantile| {
            let latency = self.latency.as_ref();
            (latency.and_then(|l| l.interval(quantile)), latency.map_or(0, |l| l.compared(quantile)))
        };
        let seen = |seen: Option<Sample>, dispersion: f64| {
            seen.map_or((None, 0), |seen| (interval::of_one(seen.units(dispersion)), seen.requests))
        };
        let (Arms { stable, canary }, limit, (interval, requests)) = match check {
            Check::ErrorRate | Check::RouteErrorRate => {
                let interval = self.difference.as_ref().and_then(Difference::interval);
                (rates, None, (interval, self.tally.rollout.canary.requests))
            }
            Check::LatencyP50 => (p50, None, of_latency(Quantile::P50)),
            Check::LatencyP99 => (p99, None, of_latency(Quantile::P99)),
            Check::MaxErrorRate => {
                let guard = self.max_error_rate.as_ref();
                let limited = Arms { canary: self.tally.limited().rate(), ..rates };
                (limited, guard.map(Guard::limit), seen(guard.map(Guard::seen), self.dispersion.factor()))
            }
            Check::MaxP99 => {
                let guard = self.max_p99.as_ref();
                let limited = Arms { canary: self.tally.limited_p99().or(p99.canary), ..p99 };
                let limit = guard.map(|guard| guard.limit().as_secs_f64());
                (limited, limit, seen(guard.map(SlowGuard::seen), self.dispersion_over_max_p99()))
            }
            // Not of this stage.
            Check::PairedErrorRate | Check::PairedLatency => (Arms::default(), None, (None, 0)),
        };
        CheckReport {
            check,
            route: None,
            stable,
            canary,
            limit,
            interval,
            evidence,
            threshold,
            requests,
            requests_needed: requests_to_gain(threshold - evidence, evidence, requests),
        }
    }

    /// Canary requests until more can be concluded; nothing where nothing is awaited, or nothing
    /// points that way.
    fn requests_needed(&self, reason: &Reason, evidence: f64) -> Option<u64> {
        let seen = self.tally.rollout.canary.requests;
        let proof = || {
            let awaited = self.targets.promotion_evidence - self.better.log_e();
            if self.wants_proof() && awaited > 0.0 {
                requests_to_gain(awaited, self.better.log_e(), seen)
            } else {
                Some(0)
            }
        };
        match *reason {
            Reason::Suspicious(_) => {
                let limited = self.max_error_rate.as_ref().filter(|_| self.guards_only);
                let seen = limited.map_or(seen, |guard| guard.seen().requests);
                requests_to_gain(self.threshold() - evidence, evidence, seen)
            }
            Reason::TooFewRequests { requests, minimum } => {
                // What has been seen so far may say nothing yet of how fast proof comes.
                Some(proof().unwrap_or(0).max(minimum - requests))
            }
            // New ones come ever more slowly, so it is at least that many.
            Reason::TooFewUsers { users, minimum } => {
                requests_to_gain((minimum - users) as f64, users as f64, seen)
            }
            Reason::NotYetNonInferior { .. } => proof(),
            _ => None,
        }
    }
}

fn report_route(route: &Route, threshold: f64) -> CheckReport {
    let Arms { stable, canary } = route.step.map(Sample::rate);
    let evidence = route.worse.log_e();
    CheckReport {
        check: Check::RouteErrorRate,
        route: Some(Arc::clone(&route.name)),
        stable,
        canary,
        limit: None,
        interval: route.difference.as_ref().and_then(Difference::interval),
        evidence,
        threshold,
        requests: route.requests,
        requests_needed: requests_to_gain(threshold - evidence, evidence, route.requests),
    }
}

/// Requests until `awaited` more evidence has come, if it comes as `gained` has by `requests`; nothing
/// where none has. A straight line: evidence is a sum over ticks, so while nothing changes it grows evenly.
pub(super) fn requests_to_gain(awaited: f64, gained: f64, requests: u64) -> Option<u64> {
    // The cast saturates.
    (gained > 0.0).then(|| (awaited.max(0.0) / gained * requests as f64).ceil() as u64)
}
