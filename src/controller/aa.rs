//! Permanent A/A: while no rollout runs, a hidden split of stable against itself feeds the very tests that
//! would judge a canary. Both halves are the same version, so whatever these tests find is a false alarm, on
//! this service's own traffic: its clusters of failures, its bursts, its users. How often that happens is
//! what α promises to bound.
//!
//! A test counts when its time is over, whatever was found and however soon: an alarm that counted at once would
//! count in tests that a rollout or a restart cuts short as well, of which no other outcome does, and the share of
//! alarms would be more than it is. Each test has a salt of its own, like each rollout: with the same halves every
//! time, a client who always fails would raise the alarm in all tests or in none.
//!
//! Routes are not among them: what is of a half is counted for the service alone (`telemetry::ledger::Part`), and
//! each route would need two more sets of cells to try out a formula that is tried out already.

use std::time::Duration;

use serde::Serialize;

use super::{publish, service::ServiceTask};
use crate::{
    analysis::{
        Analysis, ArmTick, Learned, Tick,
        settings::Settings,
        users::Users,
        verdict::{Arms, Decision, Reason},
    },
    clock,
    model::{histogram::Histogram, weight::Weight},
    rollout::{plan::Plan, trial},
    telemetry::reader::{Share, Totals},
};

/// Ticks that a test takes at least: a plan may be over in no time.
const SHORTEST: u64 = 20;

/// How a test ended that took its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing was found.
    Passed,
    /// Stable was found to be worse than itself.
    FalseAlarm,
}

/// The tests so far.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct AaStatus {
    /// Tests that ended since the start.
    pub tests: u64,
    /// Those of them that found what cannot be.
    pub false_alarms: u64,
    /// Their share, 0 to 1; nothing before the first test has ended.
    pub false_alarm_rate: Option<f64>,
}

impl Outcome {
    /// All of them.
    pub(super) const ALL: [Self; 2] = [Self::Passed, Self::FalseAlarm];

    /// The value of the metric label `outcome`.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::FalseAlarm => "false_alarm",
        }
    }
}

impl AaStatus {
    /// Counts a test.
    pub(super) fn count(&mut self, outcome: Outcome) {
        self.tests += 1;
        self.false_alarms += u64::from(outcome == Outcome::FalseAlarm);
        self.false_alarm_rate = Some(self.false_alarms as f64 / self.tests as f64);
    }
}

/// A test of stable against itself: as long as the steps of a rollout, and by the same settings.
#[derive(Debug)]
pub(super) struct AaTest {
    analysis: Analysis,
    /// Ticks until it is over.
    left: u64,
    /// Requests that the half in the canary's place still has to have.
    wanted: u64,
    /// Whether stable was found to be worse than itself, after which nobody has to look any more.
    is_alarmed: bool,
}

impl AaTest {
    /// A test that begins now, with what is known of stable, as a rollout would.
    pub(super) fn new(settings: &Settings, plan: &Plan, tick: Duration, learned: &Learned) -> Self {
        // Limits that hold whatever stable does say something about stable.
        let settings = Settings { max_error_rate: None, max_p99: None, max_harm: None, ..settings.clone() };
        let mut analysis = trial::begin(&settings, plan, tick).knowing(learned).without_intervals();
        analysis.begin_step(None);
        let steps: Duration = plan.steps().iter().map(|step| step.hold).sum();
        let ticks = u64::try_from(steps.as_millis() / tick.as_millis().max(1)).unwrap_or(u64::MAX);
        let (left, wanted) = (ticks.max(SHORTEST), settings.minimum_requests.max(1));
        Self { analysis, left, wanted, is_alarmed: false }
    }

    /// Above which latencies the halves' requests are slow in the next tick.
    pub(super) fn slow_above(&self) -> [Option<Arms<usize>>; 2] {
        self.analysis.slow_above()
    }

    /// Takes in what stable did in a tick, and its users, where they are the unit; says how the test ended, if
    /// it did.
    pub(super) fn observe(&mut self, stable: &Totals, users: Option<&Users>) -> Option<Outcome> {
        let halves = stable.halves.each_ref().map(Option::as_deref);
        let answered = halves.map(|half| half.map(Share::answered).unwrap_or_default());
        let [one, other] = [0, 1].map(|half| arm(halves[half], &answered[half]));
        self.left = self.left.saturating_sub(1);
        self.wanted = self.wanted.saturating_sub(other.requests);
        let tick = Tick { stable: one, canary: other, routes: &[], users };
        if !self.is_alarmed && self.analysis.observe(&tick) == Decision::RollBack {
            // Failures in a row are a rule without a promise, and no evidence.
            self.is_alarmed = matches!(self.analysis.verdict().reason, Reason::Worse(_));
        }
        let outcome = if self.is_alarmed { Outcome::FalseAlarm } else { Outcome::Passed };
        (self.left == 0 && self.wanted == 0).then_some(outcome)
    }
}

impl ServiceTask {
    /// Whether stable is to be split against itself.
    fn tests_itself(&self) -> bool {
        self.config.rollout.aa_test && self.weight == Weight::ZERO && self.running().is_none()
    }

    /// Tests stable against itself, as long as it has everything.
    pub(super) fn test_itself(&mut self, stable: &Totals, halves: Option<&Users>) {
        if !self.tests_itself() {
            return self.end_test();
        }
        let Some(test) = &mut self.aa_test else { return self.begin_test() };
        if let Some(outcome) = test.observe(stable, halves) {
            self.aa.count(outcome);
            self.metrics.tested(&self.config.name, outcome);
            self.begin_test();
        }
    }

    fn begin_test(&mut self) {
        let rollout = &self.config.rollout;
        let learned = self.analysis.learned();
        self.aa_test = Some(AaTest::new(&rollout.analysis, &rollout.plan, self.tick, &learned));
        self.restart_users();
        self.metrics.tests(&self.config.name);
        // By the time, which goes on over restarts.
        let salt = publish::salt(&self.config.name, clock::now().as_millis());
        self.publisher.halve(&self.config.name, Some(salt));
    }

    /// A test that runs counts for nothing.
    pub(super) fn end_test(&mut self) {
        if self.aa_test.take().is_some() {
            self.restart_users();
            self.publisher.halve(&self.config.name, None);
        }
    }
}

fn arm<'l>(half: Option<&Share>, answered: &'l Histogram) -> ArmTick<'l> {
    let counted = half.map(|half| half.counted).unwrap_or_default();
    ArmTick::new(counted.requests, counted.failures, answered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rollout::plan::Draft, telemetry::reader::Counted};

    /// What is known of stable after so many seconds in each of which it served a hundred requests.
    fn learned(seconds: u64) -> Learned {
        let mut before = Analysis::new(&Settings::default(), 300);
        let mut latency = Histogram::default();
        (0..100).for_each(|millis| latency.record(Duration::from_millis(50 + millis)));
        for _ in 0..seconds {
            before.observe_before(&ArmTick::new(100, 0, &latency), None);
        }
        before.learned()
    }

    fn test(learned: &Learned) -> AaTest {
        let plan = Plan::new(Draft::default()).unwrap();
        AaTest::new(&Settings::default(), &plan, Duration::from_secs(1), learned)
    }

    /// How a test ends whose halves fail so many of a hundred in each tick until so many have passed, and after
    /// how many ticks.
    fn ended(failures: [u64; 2], until: u64) -> (Outcome, u64) {
        let mut test = test(&learned(0));
        let share = |failures| {
            let counted = Counted { requests: 100, failures };
            Some(Box::new(Share { counted, ..Share::default() }))
        };
        let stable = |failures: [u64; 2]| Totals { halves: failures.map(share), ..Totals::default() };
        let (failing, well) = (stable(failures), stable([0; 2]));
        let passing = |tick| if tick <= until { &failing } else { &well };
        (1..).find_map(|tick| Some((test.observe(passing(tick), None)?, tick))).unwrap()
    }

    #[test]
    fn a_test_lasts_as_long_as_the_steps_of_a_rollout() {
        assert_eq!(ended([1, 1], 300), (Outcome::Passed, 300));
    }

    #[test]
    fn what_is_found_is_a_false_alarm_and_counts_when_the_test_is_over() {
        assert_eq!(ended([1, 10], 20), (Outcome::FalseAlarm, 300));
        let mut status = AaStatus::default();
        [Outcome::FalseAlarm, Outcome::Passed].into_iter().for_each(|outcome| status.count(outcome));
        assert_eq!((status.tests, status.false_alarms, status.false_alarm_rate), (2, 1, Some(0.5)));
    }

    #[test]
    fn a_test_begins_with_what_is_known_of_stable() {
        assert_eq!(test(&learned(0)).slow_above(), [None; 2]);
        assert!(test(&learned(120)).slow_above().iter().all(Option::is_some));
    }

    #[test]
    fn without_requests_nothing_is_shown() {
        let mut test = test(&learned(0));
        assert!((0..1_000).all(|_| test.observe(&Totals::default(), None).is_none()));
    }
}
