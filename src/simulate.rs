//! `tidegate simulate`: a plan in simulated time, thousands of times over.
//!
//! Each course of a [`scenario`] is drawn with its own seed ([`world`]) and run through the same
//! [`rollout::machine`](crate::rollout::machine) and the same [`Analysis`](crate::analysis::Analysis)
//! that the controller drives, joined by the same [`trial`](crate::rollout::trial): no rule is written
//! twice. Beside it, the same is done by the rules of others ([`rivals`]).
//!
//! One seed is one result, on however many threads it is computed.

pub mod crowd;
mod drive;
mod judge;
pub mod plot;
pub mod recorded;
pub mod report;
pub mod rivals;
pub mod scenario;
pub mod world;

use std::{num::NonZeroUsize, sync::Arc, thread, time::Duration};

use serde::{Serialize, Serializer};

use self::{rivals::Rival, scenario::Scenario, world::Latencies};
use crate::{
    analysis::{settings::Settings, users::Unit},
    rollout::{plan::Plan, recording::Line},
};

/// What is to be simulated.
#[derive(Debug)]
pub struct Setup {
    /// The plan of the rollouts.
    pub plan: Plan,
    /// What is watched; scenarios of users are by its unit.
    pub settings: Settings,
    /// Routes that are compared by themselves. Nothing comes on any of them, but the evidence is shared with them.
    pub routes: Arc<[Arc<str>]>,
    /// How often it is looked at.
    pub tick: Duration,
    /// What happens.
    pub scenarios: Vec<Scenario>,
    /// Requests a second.
    pub rates: Vec<f64>,
    /// Whose rules are tried beside.
    pub rivals: Vec<Rival>,
    /// How often each is run.
    pub runs: u32,
    /// What the courses are drawn by.
    pub seed: u64,
    /// How long users are counted who are harmed, from the rollout's first step.
    pub horizon: Duration,
    /// On how many threads.
    pub threads: NonZeroUsize,
}

/// Whose rules a rollout goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Ours.
    Tidegate,
    /// Ours, but by requests where clients are pinned: what would be if the unit were not the user.
    ByRequests,
    /// Somebody else's.
    Rival(Rival),
}

impl Rule {
    /// What it is called.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tidegate => "tidegate",
            Self::ByRequests => "requests",
            Self::Rival(rival) => rival.as_str(),
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Promoted,
    RolledBack,
    /// After it was promoted, which is decided without stable.
    RolledBackBaking,
    /// Not by the horizon.
    Open,
}

/// What came of one rollout.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Outcome {
    end: End,
    /// When the canary got everything, or nothing, in seconds.
    after: f64,
    /// Requests that would have fared better on stable, by the horizon.
    harmed: f64,
    /// Whether one endpoint was found to be sick, where there are several.
    endpoint: bool,
}

/// What came of all rollouts of a scenario at a rate by somebody's rules.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The scenario.
    pub scenario: String,
    /// The same in words.
    pub what: String,
    /// Requests a second.
    pub rate: f64,
    /// Whose rules.
    pub rule: Rule,
    /// Whether the canary was worse than it may be.
    pub bad: bool,
    /// Rollouts.
    pub runs: u32,
    /// Those that were rolled back before the canary got everything.
    pub rolled_back: u32,
    /// Those that were rolled back after that, in baking.
    pub rolled_back_baking: u32,
    /// Those that were promoted and stayed so.
    pub promoted: u32,
    /// Seconds from when the canary was bad (or the rollout's begin) to the rollback, of those that were
    /// rolled back after that: the median, and what 95 % stay below.
    pub delay_seconds: Option<[f64; 2]>,
    /// Seconds until the canary got everything, where it did: the median.
    pub promoted_seconds: Option<f64>,
    /// Requests, on average, that would have fared better on stable, by the horizon.
    pub harmed: f64,
    /// The share of rollouts in which one endpoint was found to be sick and passed over; where there are
    /// several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_blamed: Option<f64>,
    /// When each was rolled back, in order.
    #[serde(skip)]
    rollbacks: Vec<f64>,
}

/// Runs everything; `done` hears of each row as it is ready.
pub fn simulate(setup: &Setup, mut done: impl FnMut(&Row)) -> Vec<Row> {
    let rules = |scenario: &Scenario| {
        let by_users = scenario.crowd.is_some() && setup.settings.unit == Unit::User;
        let beside = by_users.then_some(Rule::ByRequests);
        let rivals = setup.rivals.iter().copied().map(Rule::Rival);
        std::iter::once(Rule::Tidegate).chain(beside).chain(rivals)
    };
    let mut rows = Vec::new();
    for scenario in &setup.scenarios {
        let latencies = scenario.latency.map(Latencies::new);
        let cost = drive::Cost::new(scenario, setup.horizon);
        for &rate in &setup.rates {
            for rule in rules(scenario) {
                let course =
                    drive::Course { setup, scenario, latencies: latencies.as_ref(), cost: &cost, rate };
                let row = sum_up(scenario, (rate, rule), &outcomes(setup, &course, rule));
                done(&row);
                rows.push(row);
            }
        }
    }
    rows
}

/// The first run of the first scenario at the first rate, as it would have been written down; empty
/// where there is none.
pub fn record(setup: &Setup) -> Vec<Line> {
    let (Some(scenario), Some(&rate)) = (setup.scenarios.first(), setup.rates.first()) else {
        return Vec::new();
    };
    let latencies = scenario.latency.map(Latencies::new);
    let cost = drive::Cost::new(scenario, setup.horizon);
    let course = drive::Course { setup, scenario, latencies: latencies.as_ref(), cost: &cost, rate };
    course.record(mix(setup.seed, 0))
}

/// Every run of one row, in the order of their seeds.
fn outcomes(setup: &Setup, course: &drive::Course<'_>, rule: Rule) -> Vec<Outcome> {
    let threads = u32::try_from(setup.threads.get()).unwrap_or(u32::MAX).min(setup.runs.max(1));
    let part = |thread: u32| {
        let of = |n: u64| (n * u64::from(setup.runs) / u64::from(threads)) as u32;
        let runs = of(u64::from(thread))..of(u64::from(thread) + 1);
        runs.map(|run| course.run(rule, mix(setup.seed, run))).collect::<Vec<_>>()
    };
    let part = &part;
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || part(thread))).collect();
        let mut all = part(0);
        for other in others {
            all.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all
    })
}

/// The seed of one run: bits that neighbours do not share (SplitMix64, Steele, Lea & Flood 2014).
fn mix(seed: u64, run: u32) -> u64 {
    let z = seed.wrapping_add((u64::from(run) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn sum_up(scenario: &Scenario, (rate, rule): (f64, Rule), outcomes: &[Outcome]) -> Row {
    let times = |ends: &[End]| {
        let ended = outcomes.iter().filter(|outcome| ends.contains(&outcome.end));
        let mut times: Vec<f64> = ended.map(|outcome| outcome.after).collect();
        times.sort_by(f64::total_cmp);
        times
    };
    let rollbacks = times(&[End::RolledBack, End::RolledBackBaking]);
    let (baking, promotions) = (times(&[End::RolledBackBaking]).len(), times(&[End::Promoted]));
    let bad_from = scenario.bad_from.unwrap_or(0.0);
    let delays: Vec<f64> =
        rollbacks.iter().map(|time| time - bad_from).filter(|delay| *delay > 0.0).collect();
    let runs = outcomes.len();
    let blamed = outcomes.iter().filter(|outcome| outcome.endpoint).count();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Row {
        scenario: scenario.name.clone(),
        what: scenario.what.clone(),
        rate,
        rule,
        bad: scenario.bad_from.is_some(),
        runs: count(runs),
        rolled_back: count(rollbacks.len() - baking),
        rolled_back_baking: count(baking),
        promoted: count(promotions.len()),
        delay_seconds: quantile(&delays, 0.5).zip(quantile(&delays, 0.95)).map(|(p50, p95)| [p50, p95]),
        promoted_seconds: quantile(&promotions, 0.5),
        harmed: outcomes.iter().map(|outcome| outcome.harmed).sum::<f64>() / runs.max(1) as f64,
        endpoint_blamed: (scenario.endpoints > 1 && rule == Rule::Tidegate)
            .then(|| blamed as f64 / runs.max(1) as f64),
        rollbacks,
    }
}

/// The value below which a share of them lies, of values in order.
fn quantile(values: &[f64], level: f64) -> Option<f64> {
    let rank = (level * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests;
