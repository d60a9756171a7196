//! One rollout, from its first step to its end or the horizon.

use std::{sync::Arc, time::Duration};

use super::{
    End, Outcome, Rule, Setup,
    rivals::{Minute, Next, Rival},
    scenario::Scenario,
    world::{Did, Latencies, World},
};
use crate::{
    analysis::{
        Analysis, ArmTick, Tick,
        attribution::{Attribution, EJECTION, Suspect},
        error_rate::Sample,
        users::{Unit, Users},
        verdict::Arms,
    },
    model::{time::Timestamp, weight::Weight},
    rollout::{
        event::{Command, Event},
        machine,
        phase::{Exposure, PauseReason, Phase},
        plan::Plan,
        recording::{Endpoint, Line},
        trial,
    },
};

/// What a scenario's canary costs: requests harmed if it had all of them and one came a second, from the
/// beginning to each second.
#[derive(Debug)]
pub(super) struct Cost(Vec<f64>);

impl Cost {
    pub(super) fn new(scenario: &Scenario, horizon: Duration) -> Self {
        let mut sum = 0.0;
        let seconds = (0..horizon.as_secs()).map(|second| {
            let middle = second as f64 + 0.5;
            sum += scenario.load.at(middle) * scenario.harm(middle);
            sum
        });
        Self(std::iter::once(0.0).chain(seconds).collect())
    }

    /// From one moment to another, by the horizon.
    fn between(&self, from: f64, to: f64) -> f64 {
        self.until(to) - self.until(from)
    }

    fn until(&self, time: f64) -> f64 {
        let (second, part) = (time as usize, time.fract());
        match (self.0.get(second), self.0.get(second + 1)) {
            (Some(sum), Some(next)) => sum + part * (next - sum),
            _ => self.0.last().copied().unwrap_or(0.0),
        }
    }
}

/// What a run is of.
#[derive(Debug)]
pub(super) struct Course<'a> {
    pub(super) setup: &'a Setup,
    pub(super) scenario: &'a Scenario,
    pub(super) latencies: Option<&'a Latencies>,
    pub(super) cost: &'a Cost,
    pub(super) rate: f64,
}

impl Course<'_> {
    pub(super) fn run(&self, rule: Rule, seed: u64) -> Outcome {
        let world = World::new(self.scenario, self.latencies, self.rate, seed);
        match rule {
            Rule::Tidegate => self.by_ours(world, self.setup.settings.unit, |_| ()),
            Rule::ByRequests => self.by_ours(world, Unit::Request, |_| ()),
            Rule::Rival(rival) => self.by(rival, world),
        }
    }

    /// What one run of ours is given to judge by, line by line.
    pub(super) fn record(&self, seed: u64) -> Vec<Line> {
        let mut lines = Vec::new();
        let world = World::new(self.scenario, self.latencies, self.rate, seed);
        self.by_ours(world, self.setup.settings.unit, |seen| lines.extend(seen.line()));
        lines
    }

    /// By users where clients are pinned, if they are the unit.
    fn by_ours(&self, mut world: World<'_>, unit: Unit, mut look: impl FnMut(&Seen<'_>)) -> Outcome {
        let Setup { plan, settings, routes, tick: length, horizon, .. } = self.setup;
        let (seconds, by_users) = (length.as_secs_f64(), unit == Unit::User);
        let analysis = trial::begin(settings, plan, *length);
        let mut analysis = analysis.with_routes(settings, routes.iter().cloned()).without_intervals();
        let nothing = vec![Arms::default(); routes.len()];
        let routes = (&**routes, &*nothing);
        // Stable is known when a rollout begins.
        for tick in 0..(BEFORE / seconds) as u64 {
            let now = tick as f64 * seconds - BEFORE;
            world.look_for(|| analysis.slow_above());
            world.pass((now, seconds), [1.0, 0.0]);
            let (phase, exposure) = (&Phase::Idle, Exposure::NONE);
            let users = world.users(Weight::ZERO).filter(|_| by_users);
            let seen = Seen { phase, exposure, until: now + seconds, world: &world, users, routes };
            look(&seen);
            analysis.observe_before(&seen.tick().stable, seen.users.as_ref());
        }
        world.begin();
        let mut phase = begin(plan, &mut analysis);
        let mut weight = Weight::ZERO;
        let (mut harmed, mut promoted, mut held) = (0.0, None, false);
        let mut suspect = Suspect::default();
        let ticks = (horizon.as_secs_f64() / seconds) as u64;
        for tick in 0..ticks {
            let exposure = trial::within_budget(phase.exposure(plan), weight, &analysis);
            weight = exposure.weight;
            let share = if exposure.swapped { 1.0 } else { weight.percent() / 100.0 };
            let (now, then) = (tick as f64 * seconds, (tick + 1) as f64 * seconds);
            world.look_for(|| analysis.slow_above());
            world.pass((now, seconds), [1.0 - share, share]);
            if !world.is_cured() {
                harmed += share * self.rate * self.cost.between(now, then);
            }
            let users = world.users(weight).filter(|_| by_users && !exposure.swapped);
            let seen = Seen { phase: &phase, exposure, until: then, world: &world, users, routes };
            look(&seen);
            let Some(mut decision) = trial::observe(&mut analysis, &phase, &seen.tick(), None) else { break };
            let at = Timestamp::from_millis((then * 1e3) as u64);
            if !world.endpoints().is_empty() {
                let mut verdict = analysis.verdict();
                let name = |index: usize| index.to_string().into();
                let attribution = suspect.attribute(&mut verdict, *length, world.endpoints(), name);
                if let Attribution::Endpoint { index } = attribution {
                    world.pass_over(index, then + EJECTION.as_secs_f64());
                    held = true;
                }
                decision = verdict.decision;
            }
            let before = phase.clone();
            phase = happen(phase, plan, Event::Tick(decision), at);
            // Whoever has to be asked says yes at once.
            while let Phase::Paused { reason: PauseReason::Gate | PauseReason::Hook, .. } = phase {
                phase = happen(phase, plan, Event::Command(Command::Promote { full: false }), at);
            }
            trial::follow(&mut analysis, &before, &phase, plan);
            match phase {
                Phase::Promoting { .. } => promoted = Some(then),
                Phase::Succeeded { .. } => break,
                Phase::RollingBack { .. } | Phase::RolledBack { .. } => {
                    let end = if promoted.is_some() { End::RolledBackBaking } else { End::RolledBack };
                    return Outcome { end, after: then, harmed, endpoint: held };
                }
                _ => {}
            }
        }
        let horizon = horizon.as_secs_f64();
        let (end, after) = match (promoted, &phase) {
            (Some(after), Phase::Succeeded { at }) => {
                harmed += self.rate * self.cost.between(at.as_millis() as f64 / 1e3, horizon);
                (End::Promoted, after)
            }
            (Some(after), _) => (End::Promoted, after),
            (None, _) => (End::Open, horizon),
        };
        Outcome { end, after, harmed, endpoint: held }
    }

    fn by(&self, rival: Rival, mut world: World<'_>) -> Outcome {
        let horizon = self.setup.horizon.as_secs_f64();
        let (mut run, mut harmed, mut now) = (rival.begin(), 0.0, 0.0);
        while now < horizon {
            let share = run.share();
            // A baseline of the canary's size, as Spinnaker advises.
            world.pass((now, MINUTE), [share, share]);
            let [baseline, canary] = world.did();
            harmed += share * self.rate * self.cost.between(now, now + MINUTE);
            now += MINUTE;
            match run.pass(minute(canary), minute(baseline)) {
                Next::On => {}
                Next::RolledBack => {
                    return Outcome { end: End::RolledBack, after: now, harmed, endpoint: false };
                }
                Next::Promoted => {
                    harmed += self.rate * self.cost.between(now, horizon);
                    return Outcome { end: End::Promoted, after: now, harmed, endpoint: false };
                }
            }
        }
        Outcome { end: End::Open, after: horizon, harmed, endpoint: false }
    }
}

/// What is seen in a tick.
struct Seen<'a> {
    phase: &'a Phase,
    exposure: Exposure,
    /// When it ends, in seconds from the first step.
    until: f64,
    world: &'a World<'a>,
    /// What users did, where they are compared.
    users: Option<Users>,
    /// Names, and what came on them.
    routes: (&'a [Arc<str>], &'a [Arms<Sample>]),
}

impl Seen<'_> {
    /// The same to be written down; nothing in phases that have no evidence.
    fn line(&self) -> Option<Line> {
        // The first step begins when what was before has passed.
        let at = Timestamp::from_millis(((self.until + BEFORE) * 1e3).round() as u64);
        let endpoint = |(index, counted): (usize, &Sample)| Endpoint {
            endpoint: index.to_string().into(),
            requests: counted.requests,
            failures: counted.failures,
            gone: false,
        };
        let endpoints = self.world.endpoints().iter().enumerate().map(endpoint).collect();
        Some(Line {
            endpoints,
            ..Line::of(at, (self.phase, self.exposure.weight), &self.tick(), self.routes.0)?
        })
    }

    fn tick(&self) -> Tick<'_> {
        // A promoted canary is the stable one.
        let [stable, canary] = self.world.did();
        let (stable, canary) = if self.exposure.swapped { (canary, stable) } else { (stable, canary) };
        Tick { stable: arm(stable), canary: arm(canary), routes: self.routes.1, users: self.users.as_ref() }
    }
}

/// Starts a rollout whose canary is ready at once, and has passed its dark steps: no copies are simulated.
fn begin(plan: &Plan, analysis: &mut Analysis) -> Phase {
    let zero = Timestamp::from_millis(0);
    let preparing =
        happen(Phase::Idle, plan, Event::Command(Command::Start { force: false, guards_only: false }), zero);
    let mut first = happen(preparing, plan, Event::Prepared, zero);
    while first.step().is_some_and(|step| plan.steps()[step].is_dark()) {
        first = happen(first, plan, Event::Command(Command::Promote { full: false }), zero);
    }
    trial::follow(analysis, &Phase::Idle, &first, plan);
    first
}

fn happen(phase: Phase, plan: &Plan, event: Event, now: Timestamp) -> Phase {
    machine::step(phase, plan, event, now).expect("idle can start, and only commands are refused").phase
}

fn arm(did: &Did) -> ArmTick<'_> {
    let Sample { requests, failures } = did.sample;
    ArmTick::new(requests, failures, &did.latency)
}

fn minute(did: &Did) -> Minute {
    let quantile = |level| did.latency.quantile(level).map(|latency| latency.as_secs_f64());
    let latency = quantile(0.5).zip(quantile(0.99)).map(|(p50, p99)| [p50, p99]);
    Minute { requests: did.sample.requests as f64, failures: did.sample.failures as f64, latency }
}

const MINUTE: f64 = 60.0;
/// Seconds of stable alone before a rollout.
const BEFORE: f64 = 120.0;
