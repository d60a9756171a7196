//! What analysis concludes: a decision, and the numbers that it rests on.
//!
//! Numbers only. [`explain`](super::explain::explain) puts them into words, the same ones
//! everywhere. Shares are 0 to 1, times are seconds, evidence is the natural logarithm of an
//! e-value: 0 is none, and 4.6 is a hundred to one.

use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::error_rate::Sample;
use crate::model::{role::Role, weight::Weight};

/// What the evidence of a tick calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Go on as before: nothing is wrong, and not enough is known to go further.
    Continue,
    /// Enough is known to leave the step as soon as its hold is over.
    Advance,
    /// The canary is worse than it may be.
    RollBack,
    /// Nothing can be concluded now: no traffic, or both arms in trouble. Spends nothing.
    Hold,
}

/// A decision, why it was taken, and what was known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// What to do.
    pub decision: Decision,
    /// Why.
    pub reason: Reason,
    /// Whether the canary is on trial, by copies or by users, or, promoted, being watched.
    pub stage: Stage,
    /// Whether nothing is compared with stable, as somebody wanted it.
    pub guards_only: bool,
    /// Evidence of all checks together that the canary is worse than it may be: the natural
    /// logarithm of the mean of their e-values.
    pub evidence: f64,
    /// The evidence that rolls back: ln(1/α).
    pub threshold: f64,
    /// Evidence that the canary's failure rate is within the promotion margin of stable's; stands
    /// still in baking.
    pub promotion_evidence: f64,
    /// The evidence that promotion needs, and each step if the settings say so: ln(1/α) with promotion's α.
    pub promotion_threshold: f64,
    /// Every check, in a fixed order.
    pub checks: Checks,
    /// What [`Check::RouteErrorRate`] says of each route, in the order in which the analysis was told of them;
    /// empty where none is compared.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub routes: Arc<[CheckReport]>,
    /// Counts since the rollout began; those of the steps alone, in baking.
    pub rollout: Arms<ArmTotals>,
    /// Counts since the step began; in baking, since it began, with the promoted version as stable.
    pub step: Arms<ArmTotals>,
    /// Counts of the last ten ticks, likewise. What convicts may be too new to show in a step that has lasted.
    pub recent: Arms<ArmTotals>,
    /// Requests since the rollout began that are in none of the above, because the endpoint that
    /// served them was still warming up.
    pub warming: Arms<ArmTotals>,
    /// Requests since the rollout began that are in none of the above, because they were sent to the
    /// version by a rule, the preview or a shield, and not by chance; in baking they are told apart no more.
    pub sent: Arms<ArmTotals>,
    /// Latency in the step, or in baking.
    pub latency: Arms<ArmLatency>,
    /// The canary's failure rate less stable's, by the whole rollout so far, give or take; nothing
    /// while nothing can be excluded, and in baking.
    pub difference: Option<Interval>,
    /// How many failures come together, by which all counts were divided; 1 where they are independent.
    pub dispersion: f64,
    /// Trouble that is not the canary's alone.
    pub incident: Option<Incident>,
    /// What the canary has cost, where there is a limit to it.
    pub harm: Option<Harm>,
    /// The users of each arm since the rollout began, where they are what is counted; not in baking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Arms<ArmUsers>>,
    /// What copies have shown, in a dark step; the counts of requests above know nothing of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Pairs>,
    /// Canary requests, in a dark step pairs, after which more can be concluded, at the rate at which
    /// evidence has come so far; nothing where nothing is awaited or nothing points that way.
    pub requests_needed: Option<u64>,
    /// Ticks until then, at the rate at which the canary has got requests lately.
    pub ticks_needed: Option<u64>,
}

/// Why a decision was taken. `R` is what it says of the check that is to blame.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason<R = CheckReport> {
    /// Roll back: the evidence is enough, and most of it comes from this check.
    Worse(R),
    /// Roll back: requests in a row failed, or could not be taken by any endpoint, and not one succeeded.
    OnlyFailures {
        /// How many.
        failures: u64,
        /// Those of them that no endpoint could take.
        #[serde(skip_serializing_if = "is_zero")]
        unserved: u64,
    },
    /// Roll back: by the best estimate, the canary has failed as many requests as it may.
    HarmSpent(Harm),
    /// Hold: both arms fail more than is usual, or at least half their requests, lately.
    BothFailing {
        /// Share of stable's requests that failed lately.
        stable: f64,
        /// Share of the canary's requests that failed lately.
        canary: f64,
    },
    /// Roll back: a check of numbers that are measured elsewhere fails.
    CheckFailed {
        /// Its name.
        name: Arc<str>,
        /// What was measured.
        why: String,
    },
    /// Hold: the canary may go on as far as can be seen here, but such a check is inconclusive.
    CheckInconclusive {
        /// Its name.
        name: Arc<str>,
        /// Why nothing can be concluded.
        why: String,
    },
    /// Hold: what fails is one of the canary's endpoints, not the version, which is well on the others.
    OneEndpoint {
        /// Its address.
        endpoint: Arc<str>,
        /// Share of its requests that failed.
        error_rate: f64,
        /// Share of the other endpoints' that did.
        others: f64,
    },
    /// Hold: no canary request, in a dark step no pair, has ended lately.
    NoCanaryTraffic {
        /// For how many ticks.
        ticks: u64,
    },
    /// Hold: no stable request has ended lately, so there is nothing to compare with.
    NoStableTraffic {
        /// For how many ticks.
        ticks: u64,
    },
    /// Hold: endpoints of a version have served requests lately, but were all still warming up.
    WarmingUp {
        /// Which version.
        role: Role,
        /// For how many ticks none of its requests has counted.
        ticks: u64,
    },
    /// Hold: a version has had requests lately, but they were all sent to it by something other than chance.
    OnlySent {
        /// Which version.
        role: Role,
        /// For how many ticks it has had no other.
        ticks: u64,
    },
    /// Advance: enough requests, and nothing points to harm.
    Healthy {
        /// Canary requests in the step.
        requests: u64,
    },
    /// Advance from the last step, or from a dark one: the canary is not worse than stable by more than the margin.
    NonInferior {
        /// The margin, a share of requests.
        margin: f64,
    },
    /// Advance, where nothing is compared: enough requests, and no limit is surely broken.
    WithinLimits {
        /// Canary requests in the step.
        requests: u64,
    },
    /// Continue: the canary may be worse, most of all by this check, but that is not certain.
    Suspicious(R),
    /// Continue: too few canary requests, or pairs, in the step.
    TooFewRequests {
        /// How many there were.
        requests: u64,
        /// How many there must be.
        minimum: u64,
    },
    /// Continue: too few users have been on the canary, where they are what is counted.
    TooFewUsers {
        /// About how many there were since the rollout began.
        users: u64,
        /// How many there must be.
        minimum: u64,
    },
    /// Continue: the next weight could cost more requests than may be lost, as little as is known.
    HarmPossible(Harm),
    /// Continue in the last step or a dark one, or in any if the settings say so: that the canary is within the
    /// margin is not certain yet.
    NotYetNonInferior {
        /// The margin, a share of requests.
        margin: f64,
    },
    /// Continue: the promoted version breaks no limit for certain.
    Baking {
        /// Its requests since promotion.
        requests: u64,
        /// Those of them that failed.
        failures: u64,
    },
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Reason<()> {
    /// The same with what is said of the check that is to blame, where one is.
    pub(super) fn blaming(self, check: impl FnOnce() -> CheckReport) -> Reason {
        match self {
            Self::Worse(()) => Reason::Worse(check()),
            Self::Suspicious(()) => Reason::Suspicious(check()),
            Self::OnlyFailures { failures, unserved } => Reason::OnlyFailures { failures, unserved },
            Self::HarmSpent(harm) => Reason::HarmSpent(harm),
            Self::BothFailing { stable, canary } => Reason::BothFailing { stable, canary },
            Self::CheckFailed { name, why } => Reason::CheckFailed { name, why },
            Self::CheckInconclusive { name, why } => Reason::CheckInconclusive { name, why },
            Self::OneEndpoint { endpoint, error_rate, others } => {
                Reason::OneEndpoint { endpoint, error_rate, others }
            }
            Self::NoCanaryTraffic { ticks } => Reason::NoCanaryTraffic { ticks },
            Self::NoStableTraffic { ticks } => Reason::NoStableTraffic { ticks },
            Self::WarmingUp { role, ticks } => Reason::WarmingUp { role, ticks },
            Self::OnlySent { role, ticks } => Reason::OnlySent { role, ticks },
            Self::Healthy { requests } => Reason::Healthy { requests },
            Self::NonInferior { margin } => Reason::NonInferior { margin },
            Self::WithinLimits { requests } => Reason::WithinLimits { requests },
            Self::TooFewRequests { requests, minimum } => Reason::TooFewRequests { requests, minimum },
            Self::TooFewUsers { users, minimum } => Reason::TooFewUsers { users, minimum },
            Self::HarmPossible(harm) => Reason::HarmPossible(harm),
            Self::NotYetNonInferior { margin } => Reason::NotYetNonInferior { margin },
            Self::Baking { requests, failures } => Reason::Baking { requests, failures },
        }
    }
}

/// Whether a version is on trial, and by what, or already promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The canary gets copies of stable's requests, whose answers reach nobody.
    Dark,
    /// Stable and canary share the traffic.
    Stepping,
    /// The promoted version has all of it.
    Baking,
}

/// What a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The canary's failure rate beside stable's.
    ErrorRate,
    /// The canary's median latency beside stable's.
    LatencyP50,
    /// The canary's 99th percentile of latency beside stable's.
    LatencyP99,
    /// The failure rate against a limit.
    MaxErrorRate,
    /// The 99th percentile of latency against a limit.
    MaxP99,
    /// The canary's failure rate beside stable's on one route: that with the most evidence.
    RouteErrorRate,
    /// In a dark step: the canary's failures beside stable's of the same requests.
    PairedErrorRate,
    /// In a dark step: whether the canary takes longer than it may for most requests. Its numbers are the
    /// share of pairs in which it did, and the most that may be, one half.
    PairedLatency,
}

impl Check {
    /// How many there are.
    const COUNT: usize = 8;

    /// Whether it looks at what fails, and not at how long what succeeds takes.
    pub fn is_of_failures(self) -> bool {
        match self {
            Self::ErrorRate | Self::MaxErrorRate | Self::RouteErrorRate | Self::PairedErrorRate => true,
            Self::LatencyP50 | Self::LatencyP99 | Self::MaxP99 | Self::PairedLatency => false,
        }
    }
}

/// The checks of a verdict, at most one of each kind; kept in place, so that a tick allocates nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Checks([Option<CheckReport>; Check::COUNT]);

impl Checks {
    /// What one check says, where it is made.
    pub fn get(&self, check: Check) -> Option<&CheckReport> {
        self.0[check as usize].as_ref()
    }

    /// Every check that is made.
    pub fn iter(&self) -> impl Iterator<Item = &CheckReport> {
        self.0.iter().flatten()
    }

    pub(super) fn put(&mut self, report: CheckReport) {
        let place = report.check as usize;
        self.0[place] = Some(report);
    }
}

impl Serialize for Checks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// One check's numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    /// Which check.
    pub check: Check,
    /// The route that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Arc<str>>,
    /// What stable shows in the step: a share of requests that failed, or seconds. In baking this is
    /// the promoted version. Nothing before its first request.
    pub stable: Option<f64>,
    /// What the canary shows in the step; likewise.
    pub canary: Option<f64>,
    /// The most that is allowed, where the check has a limit of its own; likewise.
    pub limit: Option<f64>,
    /// Where the truth lies. For a comparison, the share of the canary's requests that fail, or are
    /// slow, less that of stable's; for a limit, the share that is over it; for [`Check::PairedLatency`], the
    /// share of pairs in which the canary took longer than it may, in a tick on average.
    pub interval: Option<Interval>,
    /// Natural logarithm of the check's own e-value.
    pub evidence: f64,
    /// The evidence with which this check rolls back by itself, whatever the others say.
    pub threshold: f64,
    /// Requests of the canary (in baking, of the promoted version; in a dark step, pairs) that the evidence
    /// rests on.
    pub requests: u64,
    /// How many more it takes until it rolls back, if evidence comes as it has; nothing where none has.
    pub requests_needed: Option<u64>,
}

/// What pairs have shown, each of which is a request and its copy, since the first dark step began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pairs {
    /// Pairs of which both halves have ended.
    pub pairs: u64,
    /// Those of them in the step.
    pub in_step: u64,
    /// Those that stable alone has failed.
    pub stable_only: u64,
    /// Those that the canary alone has failed.
    pub canary_only: u64,
    /// Those that both have failed, which tells nothing.
    pub both: u64,
    /// Those whose times were compared.
    pub timed: u64,
    /// Those of them in which the canary took longer than it may.
    pub slower: u64,
    /// The canary's failure rate less stable's; nothing while nothing can be excluded.
    pub difference: Option<Interval>,
}

/// Trouble that is not the canary's alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Incident {
    /// Who is in trouble.
    pub scope: Scope,
    /// Share of stable's requests that failed lately.
    pub stable: f64,
    /// Share of the canary's requests that failed lately.
    pub canary: f64,
}

/// Who is in trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Both arms: something that they share. Nothing is concluded from it.
    Both,
    /// Stable alone: promoting would help its users, which is for a person to decide.
    StableOnly,
}

/// What the canary has cost, in requests that failed and would not have on stable.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Harm {
    /// By the best estimate so far; below 0 where the canary is better.
    pub spent: f64,
    /// The most that may be.
    pub budget: f64,
    /// The largest weight at which even a canary as bad as is still possible stays within it; nothing
    /// before there was traffic.
    pub weight_cap: Option<Weight>,
}

/// The same thing of both arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Arms<T> {
    /// Stable's.
    pub stable: T,
    /// The canary's.
    pub canary: T,
}

impl<T> Arms<T> {
    /// The same, lent.
    pub fn as_ref(&self) -> Arms<&T> {
        Arms { stable: &self.stable, canary: &self.canary }
    }

    /// One arm's.
    pub fn of(&self, role: Role) -> &T {
        match role {
            Role::Stable => &self.stable,
            Role::Canary => &self.canary,
        }
    }

    /// What becomes of each.
    pub fn map<U>(self, of: impl Fn(T) -> U) -> Arms<U> {
        Arms { stable: of(self.stable), canary: of(self.canary) }
    }
}

/// Counts of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct ArmTotals {
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Their share, 0 to 1; nothing where there was no request.
    pub error_rate: Option<f64>,
}

/// Users of one arm. Clients are told apart by slots, of which there are 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ArmUsers {
    /// About how many were seen; once each slot has been, at least. A request of a client that is not
    /// recognised counts as one.
    pub seen: u64,
    /// Those whose first failure in the rollout was in this arm. When half of all slots have failed, they are
    /// counted anew.
    pub first_failures: u64,
}

/// Latency of one arm, to within a bucket of 2.2 %; nothing where there was no request.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct ArmLatency {
    /// The median, in seconds.
    pub p50_seconds: Option<f64>,
    /// The 99th percentile, in seconds.
    pub p99_seconds: Option<f64>,
}

impl ArmTotals {
    pub(super) fn of(sample: Sample) -> Self {
        Self { requests: sample.requests, failures: sample.failures, error_rate: sample.rate() }
    }
}

/// Where a share, or the difference of two, lies: with 95 % at *every* look of the whole rollout (see
/// [`interval`](super::interval)).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}
