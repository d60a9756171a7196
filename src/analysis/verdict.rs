//! What analysis concludes: a decision, and the numbers that it rests on.
//!
//! Numbers only. [`explain`](super::explain::explain) puts them into words, the same ones
//! everywhere. Shares are 0 to 1, times are seconds, evidence is the natural logarithm of an
//! e-value: 0 is none, and 4.6 is a hundred to one.

use serde::{Deserialize, Serialize};

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
    /// Whether the canary is on trial or, promoted, being watched.
    pub stage: Stage,
    /// Evidence of all checks together that the canary is worse than it may be: the natural
    /// logarithm of the mean of their e-values.
    pub evidence: f64,
    /// The evidence that rolls back: ln(1/α).
    pub threshold: f64,
    /// Evidence that the canary's failure rate is within the promotion margin of stable's; stands
    /// still in baking.
    pub promotion_evidence: f64,
    /// The evidence that promotion needs: ln(1/α) with promotion's α.
    pub promotion_threshold: f64,
    /// Every check, in a fixed order.
    pub checks: Vec<CheckReport>,
    /// Counts since the rollout began; those of the steps alone, in baking.
    pub rollout: Arms<ArmTotals>,
    /// Counts since the step began; in baking, since it began, with the promoted version as stable.
    pub step: Arms<ArmTotals>,
    /// Latency in the step, or in baking.
    pub latency: Arms<ArmLatency>,
    /// The canary's failure rate in the step less stable's, give or take; nothing while an arm is
    /// empty, and in baking.
    pub difference: Option<Interval>,
    /// Canary requests after which more can be concluded, at the rate at which evidence has come so
    /// far; nothing where nothing is awaited or nothing points that way.
    pub requests_needed: Option<u64>,
}

/// Why a decision was taken.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// Roll back: the evidence is enough, and most of it comes from this check.
    Worse(CheckReport),
    /// Roll back: requests in a row failed and not one succeeded.
    OnlyFailures {
        /// How many.
        failures: u64,
    },
    /// Hold: at least half the requests of both arms failed lately.
    BothFailing {
        /// Share of stable's requests that failed lately.
        stable: f64,
        /// Share of the canary's requests that failed lately.
        canary: f64,
    },
    /// Hold: no canary request has ended lately.
    NoCanaryTraffic {
        /// For how many ticks, at least.
        ticks: u64,
    },
    /// Hold: no stable request has ended lately, so there is nothing to compare with.
    NoStableTraffic {
        /// For how many ticks, at least.
        ticks: u64,
    },
    /// Advance: enough requests, and nothing points to harm.
    Healthy {
        /// Canary requests in the step.
        requests: u64,
    },
    /// Advance from the last step: the canary is not worse than stable by more than the margin.
    NonInferior {
        /// The margin, a share of requests.
        margin: f64,
    },
    /// Continue: the canary may be worse, most of all by this check, but that is not certain.
    Suspicious(CheckReport),
    /// Continue: too few canary requests in the step.
    TooFewRequests {
        /// How many there were.
        requests: u64,
        /// How many there must be.
        minimum: u64,
    },
    /// Continue in the last step: that the canary is within the margin is not certain yet.
    NotYetNonInferior {
        /// The margin, a share of requests.
        margin: f64,
    },
    /// Continue: the promoted version is within its limits.
    Baking {
        /// Its requests since promotion.
        requests: u64,
        /// Those of them that failed.
        failures: u64,
    },
}

/// Whether a version is on trial or already promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
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
}

/// One check's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CheckReport {
    /// Which check.
    pub check: Check,
    /// What stable shows in the step: a share of requests that failed, or seconds. In baking this is
    /// the promoted version. Nothing before its first request.
    pub stable: Option<f64>,
    /// What the canary shows in the step; likewise.
    pub canary: Option<f64>,
    /// The most that is allowed, where the check has a limit of its own; likewise.
    pub limit: Option<f64>,
    /// Natural logarithm of the check's own e-value.
    pub evidence: f64,
}

/// The same thing of both arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Arms<T> {
    /// Stable's.
    pub stable: T,
    /// The canary's.
    pub canary: T,
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

/// Latency of one arm, to within a bucket of 2.2 %; nothing where there was no request.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct ArmLatency {
    /// The median, in seconds.
    pub p50_seconds: Option<f64>,
    /// The 99th percentile, in seconds.
    pub p99_seconds: Option<f64>,
}

/// Where a difference of two shares lies, −1 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// What the two ends promise.
    pub method: IntervalMethod,
}

/// What an interval promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IntervalMethod {
    /// Newcombe's at 95 %, for one look at one step: to look at, not to decide by.
    Newcombe95,
}
