//! What a plan can show with the traffic there is, before it is tried: how many requests of the canary
//! each step sees, which regressions it finds and how soon, what they cost, and whether it reaches a
//! verdict at all.
//!
//! Computed from means and variances ([`Outlook`]), not simulated: it takes no time, whatever the plan's.
//! "Found" means in nine cases of ten, by the evidence on the failure rate (or the slow requests) alone.
//! In dark steps every request is taken for one that may be copied, as there is no telling methods and bodies.
//! Deliberately left out: budgets (`max_harm`), which keep weights lower than the plan's, gates and hooks,
//! requests that rules send to the canary, and baking.

use std::{ops::Range, sync::Arc, time::Duration};

use serde::Serialize;

use super::{plan::Plan, trial};
use crate::{
    analysis::{
        error_rate::{Direction, Margin},
        outlook::Outlook,
        paired,
        settings::Settings,
        verdict::{Arms, Check},
    },
    model::weight::Weight,
};

/// What is asked of a service, and how it answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Traffic {
    /// Requests a second.
    pub requests_per_second: f64,
    /// The share of them that stable fails.
    pub failing: f64,
}

/// What a plan can show.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// With which traffic.
    pub traffic: Traffic,
    /// Each step that a canary like stable gets to.
    pub steps: Vec<StepForecast>,
    /// Whether such a canary is promoted in nine cases of ten.
    pub reaches_a_verdict: bool,
    /// Requests a second with which it would be; nothing where none are enough.
    pub requests_per_second_needed: Option<f64>,
    /// What becomes of worse ones.
    pub regressions: Vec<Regression>,
}

/// What one step can show.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepForecast {
    /// The canary's share of requests.
    pub weight: Weight,
    /// In a dark step, the share of stable's requests that it gets copies of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Weight>,
    /// How long the step lasts, in seconds.
    pub seconds: f64,
    /// Why it lasts longer than its hold, if it does.
    pub waits_for: Option<WaitsFor>,
    /// Whether that is there before the step's deadline.
    pub ends: bool,
    /// The canary's requests in the step; copies, if it is a dark one.
    pub canary_requests: f64,
    /// The smallest failure rate of the canary, bad from the beginning, that is found by the step's end.
    pub finds_failing: Option<f64>,
    /// The smallest share of the canary's requests slower than stable's 99th percentile and the margin that
    /// is found; likewise. Nothing in a dark step, which only asks whether most requests are slower.
    pub finds_slow: Option<f64>,
}

/// What a step waits for beyond its hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// The canary's least number of requests.
    Requests,
    /// Evidence that the canary is within the margin of promotion.
    Proof,
}

/// What becomes of a canary that fails more.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Regression {
    /// The share of its requests that fail.
    pub failing: f64,
    /// What becomes of it.
    pub end: End,
    /// After so many seconds.
    pub seconds: f64,
    /// In which step, from 0.
    pub step: usize,
    /// Requests that have failed by then and would not have on stable.
    pub harmed: f64,
}

/// What becomes of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It is rolled back.
    RolledBack,
    /// It is neither found nor proven: the step ends without a verdict.
    Inconclusive,
    /// It is promoted, being within the margin.
    Promoted,
}

impl Forecast {
    /// What a plan can show with so much traffic, where so many routes are compared by themselves besides.
    pub fn new(settings: &Settings, plan: &Plan, traffic: Traffic, routes: usize) -> Self {
        let oracle = Oracle::new(settings, plan, traffic, routes);
        let harmless = oracle.course(traffic.failing);
        let steps: Vec<_> = (0..harmless.len()).map(|step| oracle.step(&harmless, step)).collect();
        let tolerated = settings.ratio_tolerance * (traffic.failing + settings.absolute_tolerance);
        let regressions = REGRESSIONS.into_iter().filter(|failing| *failing > 1.2 * tolerated);
        Self {
            traffic,
            reaches_a_verdict: oracle.is_whole(&harmless),
            steps,
            requests_per_second_needed: requests_per_second_needed(settings, plan, traffic.failing),
            regressions: regressions.map(|failing| oracle.regression(failing)).collect(),
        }
    }

    /// What becomes of one canary that fails a share of its requests, as in [`Forecast::regressions`], where no route is
    /// compared by itself.
    pub fn of_regression(settings: &Settings, plan: &Plan, traffic: Traffic, failing: f64) -> Regression {
        Oracle::new(settings, plan, traffic, 0).regression(failing)
    }
}

/// Whether a canary like stable is promoted in nine cases of ten.
pub fn reaches_a_verdict(settings: &Settings, plan: &Plan, traffic: Traffic) -> bool {
    // What is proven does not depend on routes.
    let oracle = Oracle::new(settings, plan, traffic, 0);
    oracle.is_whole(&oracle.course(traffic.failing))
}

/// Requests a second with which a canary like stable, which fails such a share of its requests, is promoted
/// in nine cases of ten; nothing where a million are not enough.
pub fn requests_per_second_needed(settings: &Settings, plan: &Plan, failing: f64) -> Option<f64> {
    let is_enough = |log_rate: f64| {
        let traffic = Traffic { requests_per_second: log_rate.exp(), failing };
        reaches_a_verdict(settings, plan, traffic)
    };
    first(RATES.start.ln()..RATES.end.ln(), is_enough).map(f64::exp)
}

/// Knows what is to be expected.
struct Oracle<'a> {
    settings: &'a Settings,
    plan: &'a Plan,
    traffic: Traffic,
    /// What rolls back, as far as the failure rate, and slow requests, are concerned.
    failing_threshold: f64,
    slow_threshold: Option<f64>,
    dark_threshold: Option<f64>,
}

/// A stretch of a rollout.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    weight: Weight,
    mirror: Option<Weight>,
    seconds: f64,
    waits_for: Option<WaitsFor>,
    ends: bool,
}

impl<'a> Oracle<'a> {
    fn new(settings: &'a Settings, plan: &'a Plan, traffic: Traffic, routes: usize) -> Self {
        // Their names do not matter, but that they have a part of α does.
        let names = std::iter::repeat_n(Arc::from(""), routes);
        let analysis = trial::begin(settings, plan, Duration::from_secs(1)).with_routes(settings, names);
        let verdict = analysis.verdict();
        let threshold = |check| verdict.checks.get(check).map(|report| report.threshold);
        Self {
            settings,
            plan,
            traffic,
            failing_threshold: threshold(Check::ErrorRate).unwrap_or(verdict.threshold),
            slow_threshold: threshold(Check::LatencyP99),
            dark_threshold: analysis.dark_threshold_of_failures(),
        }
    }

    /// How a rollout goes that nothing is found in, of a canary that fails so much.
    fn course(&self, failing: f64) -> Vec<Stretch> {
        let steps = self.plan.steps();
        let mut course: Vec<Stretch> = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let (hold, weight) = (step.hold.as_secs_f64(), step.weight);
            let most = hold + self.plan.deadline().as_secs_f64();
            let mut stretch = Stretch { mirror: step.mirror, seconds: hold, ..stretch_of(weight) };
            let (begun, rate) = (stretch, self.seen(stretch, 1.0));
            let mut wait = |what: WaitsFor, seconds: Option<f64>| {
                if seconds.is_none_or(|seconds| seconds > stretch.seconds) {
                    stretch.waits_for = Some(what);
                    stretch.ends &= seconds.is_some_and(|seconds| seconds <= most);
                    stretch.seconds = seconds.unwrap_or(most).min(most);
                }
            };
            // What rules send to the canary is not known.
            if weight > Weight::ZERO || step.is_dark() {
                let least = step.minimum_requests.unwrap_or(self.settings.minimum_requests);
                wait(WaitsFor::Requests, Some(least as f64 / rate));
            }
            let target = -self.settings.promotion_alpha.ln();
            if step.is_dark() {
                let proven = |seconds: f64| self.pairs(&course, Some((begun, seconds)), failing).1 >= target;
                wait(WaitsFor::Proof, first(0.0..most, proven));
            } else if index + 1 == steps.len() || self.settings.prove_each_step && weight > Weight::ZERO {
                let proven = |seconds: f64| {
                    let this = Stretch { seconds, ..stretch_of(weight) };
                    let stretches = course.iter().copied().chain([this]);
                    self.better(stretches, failing).log_e() >= target
                };
                wait(WaitsFor::Proof, first(0.0..most, proven));
            }
            let ends = stretch.ends;
            course.push(stretch);
            if !ends {
                break;
            }
        }
        course
    }

    fn is_whole(&self, course: &[Stretch]) -> bool {
        course.len() == self.plan.steps().len() && course.iter().all(|stretch| stretch.ends)
    }

    fn step(&self, course: &[Stretch], index: usize) -> StepForecast {
        let Stretch { weight, mirror, seconds, waits_for, ends } = course[index];
        let until = &course[..=index];
        let finds_in_pairs = |threshold: f64| {
            first(self.traffic.failing..1.0, |failing| self.pairs(until, None, failing).0 >= threshold)
        };
        let finds = |direction_margin: Margin, stable: f64, threshold: f64| {
            let found = |failing: f64| {
                let failing = Arms { stable, canary: failing };
                self.outlook(until.iter().copied(), direction_margin, failing).log_e() >= threshold
            };
            first(stable..1.0, found)
        };
        StepForecast {
            weight,
            mirror,
            seconds,
            waits_for,
            ends,
            canary_requests: self.seen(course[index], seconds),
            finds_failing: match mirror {
                Some(_) => self.dark_threshold.and_then(finds_in_pairs),
                None => finds(self.settings.tolerance(), self.traffic.failing, self.failing_threshold),
            },
            finds_slow: self.slow_threshold.filter(|_| mirror.is_none()).and_then(|threshold| {
                // As `analysis::latency` asks it: one in a hundred of stable's is slow.
                finds(Margin { ratio: 1.0, absolute: 0.0 }, 0.01, threshold)
            }),
        }
    }

    /// What becomes of a canary that fails so much.
    fn regression(&self, failing: f64) -> Regression {
        let course = self.course(failing);
        let rates = Arms { stable: self.traffic.failing, canary: failing };
        let tolerance = self.settings.tolerance();
        let harmed_in = |stretch: Stretch| {
            self.requests(stretch.weight, stretch.seconds).canary * (failing - self.traffic.failing)
        };
        let (mut seconds, mut harmed) = (0.0, 0.0);
        for (step, stretch) in course.iter().copied().enumerate() {
            let found = |seconds: f64| {
                if stretch.mirror.is_some() {
                    let (worse, _) = self.pairs(&course[..step], Some((stretch, seconds)), failing);
                    return self.dark_threshold.is_some_and(|threshold| worse >= threshold);
                }
                let until = course[..step].iter().copied().chain([Stretch { seconds, ..stretch }]);
                self.outlook(until, tolerance, rates).log_e() >= self.failing_threshold
            };
            if let Some(part) = first(0.0..stretch.seconds, found) {
                harmed += harmed_in(Stretch { seconds: part, ..stretch });
                return Regression { failing, end: End::RolledBack, seconds: seconds + part, step, harmed };
            }
            seconds += stretch.seconds;
            harmed += harmed_in(stretch);
        }
        // Whether it gets through is not to be relied on either way, so the middle of all cases says it.
        let target = -self.settings.promotion_alpha.ln();
        let whole = course.len() == self.plan.steps().len();
        let proven = self.better(course.iter().copied(), failing).median_log_e() >= target;
        let end = if whole && proven { End::Promoted } else { End::Inconclusive };
        Regression { failing, end, seconds, step: course.len().saturating_sub(1), harmed }
    }

    fn better(&self, stretches: impl Iterator<Item = Stretch>, failing: f64) -> Outlook {
        let margin = Margin { ratio: 1.0, absolute: self.settings.promotion_margin };
        let rates = Arms { stable: self.traffic.failing, canary: failing };
        self.gather(Outlook::new(Direction::Better, margin), stretches, rates)
    }

    fn outlook(
        &self,
        stretches: impl Iterator<Item = Stretch>,
        margin: Margin,
        failing: Arms<f64>,
    ) -> Outlook {
        self.gather(Outlook::new(Direction::Worse, margin), stretches, failing)
    }

    fn gather(
        &self,
        mut outlook: Outlook,
        stretches: impl Iterator<Item = Stretch>,
        failing: Arms<f64>,
    ) -> Outlook {
        let dispersion = self.settings.dispersion.unwrap_or(1.0);
        for Stretch { weight, seconds, .. } in stretches {
            outlook.add(self.requests(weight, seconds), failing, dispersion);
        }
        outlook
    }

    /// What pairs show of a canary that fails so much, by the end of some stretches and, if there is one, after
    /// some time of the next.
    fn pairs(&self, until: &[Stretch], next: Option<(Stretch, f64)>, failing: f64) -> (f64, f64) {
        let until = until.iter().map(|stretch| (*stretch, stretch.seconds)).chain(next);
        let dark = until.filter(|(stretch, _)| stretch.mirror.is_some());
        let dispersion = self.settings.dispersion.unwrap_or(1.0);
        let pairs: f64 = dark.map(|(stretch, seconds)| self.seen(stretch, seconds) / dispersion).sum();
        paired::outlook(self.settings, pairs, Arms { stable: self.traffic.failing, canary: failing })
    }

    /// What the canary sees in some time of a stretch: copies, or requests.
    fn seen(&self, stretch: Stretch, seconds: f64) -> f64 {
        self.requests(stretch.mirror.unwrap_or(stretch.weight), seconds).canary
    }

    /// Requests of both versions in some time.
    fn requests(&self, weight: Weight, seconds: f64) -> Arms<f64> {
        let (all, share) = (self.traffic.requests_per_second * seconds, weight.percent() / 100.0);
        Arms { stable: all * (1.0 - share), canary: all * share }
    }
}

fn stretch_of(weight: Weight) -> Stretch {
    Stretch { weight, mirror: None, seconds: 0.0, waits_for: None, ends: true }
}

/// The first value within `range` for which something holds that goes on holding from there; nothing where it
/// does not hold at the end either.
fn first(range: Range<f64>, holds: impl Fn(f64) -> bool) -> Option<f64> {
    let Range { start: mut low, end: mut high } = range;
    if !holds(high) {
        return None;
    }
    if holds(low) {
        return Some(low);
    }
    for _ in 0..BISECTIONS {
        let middle = 0.5 * (low + high);
        if holds(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

/// To a millionth of the range: an hour to four milliseconds.
const BISECTIONS: u32 = 20;

/// Requests a second between which the least is looked for.
const RATES: Range<f64> = 1e-3..1e6;

/// Failure rates that somebody may want to know about.
const REGRESSIONS: [f64; 9] = [0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::plan::{Draft, Step};

    fn forecast(requests_per_second: f64, draft: Draft) -> Forecast {
        let traffic = Traffic { requests_per_second, failing: 0.001 };
        Forecast::new(&Settings::default(), &Plan::new(draft).unwrap(), traffic, 0)
    }

    #[test]
    fn more_traffic_finds_smaller_regressions_sooner() {
        let (few, many) = (forecast(100.0, Draft::default()), forecast(1_000.0, Draft::default()));
        for (few, many) in few.steps.iter().zip(&many.steps) {
            assert!(few.finds_failing.unwrap() > many.finds_failing.unwrap());
            assert!(few.finds_slow.unwrap() > many.finds_slow.unwrap());
        }
        let after = |forecast: &Forecast| forecast.regressions.iter().map(|r| r.seconds).collect::<Vec<_>>();
        // The last of which nothing is left to be found faster.
        assert!(after(&few)[..7].iter().zip(&after(&many)).all(|(few, many)| few > many));
        assert!(many.regressions.is_sorted_by(|a, b| a.seconds >= b.seconds));
    }

    #[test]
    fn dark_steps_find_what_is_bad_before_anybody_is_harmed() {
        let mirror = Weight::from_percent(10.0).unwrap();
        let mut steps = Draft::default_steps();
        steps.insert(0, Step::dark(mirror, Duration::from_secs(60)));
        let dark = forecast(100.0, Draft { steps: steps.clone(), ..Draft::default() });
        let first = dark.steps[0];
        assert_eq!((first.mirror, first.weight, first.finds_slow), (Some(mirror), Weight::ZERO, None));
        // Ten copies a second: proof takes longer than a minute.
        assert!(first.waits_for == Some(WaitsFor::Proof) && first.ends, "{first:?}");
        assert!((first.canary_requests - 10.0 * first.seconds).abs() < 1e-6);
        let worst = dark.regressions.last().unwrap();
        assert_eq!((worst.end, worst.step, worst.harmed), (End::RolledBack, 0, 0.0));
        let found = first.finds_failing.unwrap();
        assert!((0.005..0.05).contains(&found), "{found}");
        // Too few copies for proof before the deadline.
        let few = forecast(1.0, Draft { steps, ..Draft::default() });
        assert!(!few.reaches_a_verdict && few.steps.len() == 1 && !few.steps[0].ends);
    }

    #[test]
    fn what_is_found_by_a_steps_end_is_found_in_it() {
        let plan = Plan::new(Draft::default()).unwrap();
        let settings = Settings::default();
        let traffic = Traffic { requests_per_second: 300.0, failing: 0.001 };
        let oracle = Oracle::new(&settings, &plan, traffic, 0);
        for (index, step) in Forecast::new(&settings, &plan, traffic, 0).steps.iter().enumerate() {
            let found = oracle.regression(step.finds_failing.unwrap() * 1.01);
            assert_eq!((found.end, found.step), (End::RolledBack, index), "{found:?}");
        }
    }

    #[test]
    fn routes_that_are_compared_too_have_a_part_of_alpha() {
        let (settings, plan) = (Settings::default(), Plan::new(Draft::default()).unwrap());
        let traffic = Traffic { requests_per_second: 300.0, failing: 0.001 };
        let of = |routes| Forecast::new(&settings, &plan, traffic, routes);
        let (none, several) = (of(0), of(3));
        let finds = |forecast: &Forecast| forecast.steps[0].finds_failing.unwrap();
        assert!(finds(&several) > finds(&none));
        assert!(several.regressions[4].seconds > none.regressions[4].seconds);
        // They share half of it, however many there are.
        assert_eq!(finds(&several), finds(&of(9)));
        let proof = |forecast: &Forecast| (forecast.reaches_a_verdict, forecast.requests_per_second_needed);
        assert_eq!(proof(&several), proof(&none));
    }

    #[test]
    fn a_plan_without_traffic_reaches_no_verdict_and_says_what_it_needs() {
        let (settings, plan) = (Settings::default(), Plan::new(Draft::default()).unwrap());
        let at = |requests_per_second| {
            Forecast::new(&settings, &plan, Traffic { requests_per_second, failing: 0.001 }, 0)
        };
        let few = at(0.1);
        // 100 requests at 1 % of a tenth a second take a day.
        assert_eq!((few.steps.len(), few.steps[0].waits_for), (1, Some(WaitsFor::Requests)));
        assert!(!few.reaches_a_verdict && !few.steps[0].ends && few.steps[0].seconds == 660.0);
        let needed = few.requests_per_second_needed.unwrap();
        assert!(!at(needed * 0.99).reaches_a_verdict && at(needed * 1.01).reaches_a_verdict, "{needed}");
        assert!(at(0.1).regressions.iter().any(|regression| regression.end == End::Inconclusive));
    }

    #[test]
    fn the_last_step_waits_for_proof() {
        let last = *forecast(40.0, Draft::default()).steps.last().unwrap();
        assert_eq!((last.waits_for, last.ends), (Some(WaitsFor::Proof), true));
        let hasty = forecast(40.0, Draft { deadline: Duration::ZERO, ..Draft::default() });
        assert!(!hasty.reaches_a_verdict);
    }

    #[test]
    fn each_step_waits_for_proof_if_told_to() {
        let traffic = Traffic { requests_per_second: 100.0, failing: 0.001 };
        let plan = |deadline| {
            let weight = |percent| Weight::from_percent(percent).unwrap();
            let steps = [1.0, 10.0, 50.0].map(|percent| Step::new(weight(percent), Duration::from_secs(600)));
            Plan::new(Draft { steps: steps.to_vec(), deadline, ..Draft::default() }).unwrap()
        };
        let usual = Settings::default();
        let proving = Settings { prove_each_step: true, ..usual };
        let (hour, minute) = (Duration::from_secs(3_600), Duration::from_secs(60));
        let waits = |settings, deadline| {
            let forecast = Forecast::new(settings, &plan(deadline), traffic, 0);
            forecast.steps.iter().map(|step| (step.waits_for, step.ends)).collect::<Vec<_>>()
        };
        assert_eq!(waits(&usual, hour), [(None, true); 3]);
        // What the first step has shown holds for the others.
        assert_eq!(waits(&proving, hour), [(Some(WaitsFor::Proof), true), (None, true), (None, true)]);
        assert_eq!(waits(&proving, minute), [(Some(WaitsFor::Proof), false)]);
        // Where it is too early to be proven, a canary goes no further that otherwise would.
        let worse = |settings| Forecast::of_regression(settings, &plan(minute), traffic, 0.006);
        assert_eq!((worse(&proving).end, worse(&proving).step), (End::Inconclusive, 0));
        assert!(worse(&usual).step > 0, "{:?}", worse(&usual));
    }

    #[test]
    fn within_the_margin_is_promoted() {
        let regressions = forecast(100.0, Draft::default()).regressions;
        assert_eq!((regressions[0].failing, regressions[0].end), (0.002, End::Promoted));
    }
}
