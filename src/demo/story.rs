//! What is played: four rollouts, the configuration that they run under, and how each must end.
//!
//! The numbers are chosen so that a minute is enough, not because they suit a real service. At 500
//! requests a second and 1 % failures, promotion can prove "at most 2 percentage points worse" within
//! seconds; the usual half a point would take minutes. The last step is long enough for a version that is
//! twice as slow to be told even where the machine's own pauses hide most of what there is to see.

use std::{net::SocketAddr, time::Duration};

use super::{
    backend::{Behaviour, NAMES},
    load::Sign,
};
use crate::rollout::phase::Phase;

/// One rollout to be played.
#[derive(Debug, Clone, Copy)]
pub(super) struct Story {
    /// What it is called.
    pub(super) title: &'static str,
    /// What happens and what should come of it, in one line.
    pub(super) what: &'static str,
    /// The service whose rollout it is.
    pub(super) service: &'static str,
    /// The path that leads to the service.
    pub(super) path: &'static str,
    /// How the version behaves that users have.
    pub(super) old: Behaviour,
    /// How the version behaves that is rolled out.
    pub(super) new: Behaviour,
    /// What its first bad request looks like, if it has any.
    pub(super) sign: Option<Sign>,
    /// How it must end.
    pub(super) expected: Ending,
    /// Whether not a single request may fail.
    pub(super) flawless: bool,
    /// How long it may take, on a machine that is slow and busy.
    pub(super) patience: Duration,
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The new version has all requests.
    Promoted,
    /// The old version has all requests again.
    RolledBack,
    /// It was given up, or nobody began it.
    Unfinished,
}

impl Ending {
    /// The ending that a phase is, if it is one.
    pub(super) fn of(phase: &Phase) -> Option<Self> {
        match phase {
            Phase::Succeeded { .. } => Some(Self::Promoted),
            Phase::RolledBack { .. } => Some(Self::RolledBack),
            _ => None,
        }
    }

    /// In words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled back",
            Self::Unfinished => "not finished",
        }
    }
}

/// What every version does on an ordinary day.
const ORDINARY: Behaviour = Behaviour { failing: 0.01, slowness: 1.0 };

/// The stories, in the order in which they are played.
pub(super) const STORIES: [Story; 4] = [
    Story {
        title: "good release",
        what: "As good as the old version: 1 % of requests fail. To be promoted.",
        service: "shop",
        path: "/",
        old: ORDINARY,
        new: ORDINARY,
        sign: None,
        expected: Ending::Promoted,
        flawless: false,
        patience: Duration::from_secs(40),
    },
    Story {
        title: "bad release",
        what: "Fails 5 % of requests, the old version 1 %. To be rolled back.",
        service: "shop",
        path: "/",
        old: ORDINARY,
        new: Behaviour { failing: 0.05, ..ORDINARY },
        sign: Some(Sign::Failure),
        expected: Ending::RolledBack,
        flawless: false,
        patience: Duration::from_secs(28),
    },
    Story {
        title: "slow release",
        what: "Fails no more than the old version, but is twice as slow. To be rolled back.",
        service: "shop",
        path: "/",
        old: ORDINARY,
        new: Behaviour { slowness: 2.0, ..ORDINARY },
        sign: Some(Sign::Answer),
        expected: Ending::RolledBack,
        flawless: false,
        patience: Duration::from_secs(27),
    },
    Story {
        title: "blue/green flip",
        what: "All requests move at once; not one may be lost. To be promoted.",
        service: "web",
        path: "/web",
        old: Behaviour::PERFECT,
        new: Behaviour::PERFECT,
        sign: None,
        expected: Ending::Promoted,
        flawless: true,
        patience: Duration::from_secs(15),
    },
];

/// The configuration of the demo, as one would write it in a file.
pub(super) fn configuration(proxy: SocketAddr, admin: SocketAddr, backends: [SocketAddr; 2]) -> String {
    let [blue, green] = NAMES;
    let [blue_address, green_address] = backends;
    format!(
        r#"[[listeners]]
address = "{proxy}"

[admin]
address = "{admin}"

[[routes]]
path_prefix = "/web"
service = "web"

[[routes]]
service = "shop"

[services.shop]
stable = "{blue}"
canary = "{green}"
[services.shop.backends.{blue}]
endpoints = ["http://{blue_address}"]
[services.shop.backends.{green}]
endpoints = ["http://{green_address}"]
[services.shop.rollout]
strategy = "canary"
steps = [
  {{ weight = 5,  hold = "2s" }},
  {{ weight = 25, hold = "3s" }},
  {{ weight = 50, hold = "8s" }},
]
bake = "3s"
[services.shop.rollout.analysis]
promotion_margin = 0.02

[services.web]
stable = "{blue}"
canary = "{green}"
[services.web.backends.{blue}]
endpoints = ["http://{blue_address}"]
[services.web.backends.{green}]
endpoints = ["http://{green_address}"]
[services.web.rollout]
strategy = "blue-green"
bake = "4s"
[services.web.rollout.analysis]
max_error_rate = 0.05
"#
    )
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

    use super::*;
    use crate::{
        analysis::{Analysis, ArmTick, Tick, error_rate::Sample, verdict::Decision},
        config::{Config, Lead, diagnostic::render, load},
        model::histogram::Histogram,
        routing::table::PathMatch,
    };

    fn config() -> Config {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let text = configuration(address(0), address(0), [address(1), address(2)]);
        match load::parse("demo", &text) {
            Ok((config, warnings)) => {
                assert_eq!(warnings, []);
                config
            }
            Err(errors) => panic!("{}", render(&errors)),
        }
    }

    #[test]
    fn the_configuration_is_right_and_has_every_service() {
        let config = config();
        for story in STORIES {
            assert!(config.services.iter().any(|service| service.name.as_str() == story.service));
            let leads = |route: &&crate::config::Route| match &route.path {
                PathMatch::Prefix(prefix) => story.path.starts_with(prefix),
                _ => false,
            };
            let route = config.routes.iter().find(leads).unwrap();
            assert_eq!(route.lead, Lead::Service(story.service.parse().unwrap()));
            assert!(story.what.len() <= 76, "{}", story.what);
        }
    }

    #[test]
    fn all_stories_together_have_less_than_two_minutes() {
        let patience: Duration = STORIES.iter().map(|story| story.patience).sum();
        assert!(patience <= Duration::from_secs(110));
    }

    /// A rollout of the shop that is simulated.
    struct Played {
        rate: u32,
        new: Behaviour,
        /// How long the machine stands still at times, with all that is under way, at most.
        stalls: Duration,
    }

    impl Played {
        /// How it ends, after how many ticks of a quarter second.
        fn simulate(&self, seed: u64) -> (Ending, u32) {
            let rollout = &config().services[0].rollout;
            let (steps, mut rng) = (rollout.plan.steps(), SmallRng::seed_from_u64(seed));
            let mut analysis = Analysis::new(&rollout.analysis, 32);
            let (mut step, mut since) = (0, 0);
            let next = |step: usize| steps.get(step + 1).map(|step| step.weight);
            analysis.begin_step(next(0));
            for tick in 1..400 {
                let stall = self.stalls.mul_f64(rng.random::<f64>() * f64::from(rng.random::<bool>()));
                let mut arms = [Counts::default(); 2];
                let mut latencies = [(); 2].map(|()| Histogram::default());
                for _ in 0..self.rate / 4 {
                    let canary = steps[step].weight.admits(rng.random());
                    let behaviour = if canary { self.new } else { ORDINARY };
                    let counts = &mut arms[usize::from(canary)];
                    counts.requests += 1;
                    counts.failures += u64::from(rng.random::<f64>() < behaviour.failing);
                    let pause = pause(rng.random(), rng.random(), behaviour.slowness);
                    latencies[usize::from(canary)].record(pause + stall);
                }
                let arm = |at: usize| ArmTick {
                    requests: arms[at].requests,
                    failures: arms[at].failures,
                    latency: &latencies[at],
                    warming: Sample::default(),
                };
                let decision = analysis.observe(&Tick { stable: arm(0), canary: arm(1), routes: &[] });
                let held = Duration::from_millis(250) * (tick - since) >= steps[step].hold;
                match decision {
                    Decision::RollBack => return (Ending::RolledBack, tick),
                    Decision::Advance if held && step + 1 == steps.len() => return (Ending::Promoted, tick),
                    Decision::Advance if held => {
                        (step, since) = (step + 1, tick);
                        analysis.begin_step(next(step));
                    }
                    _ => {}
                }
            }
            (Ending::Unfinished, 400)
        }
    }

    const STALLS: Duration = Duration::from_millis(40);

    #[test]
    fn a_good_release_is_promoted_well_before_patience_ends() {
        let good = Played { rate: RATE, new: ORDINARY, stalls: STALLS };
        let played: Vec<_> = (0..100).map(|seed| good.simulate(seed)).collect();
        let promoted = played.iter().filter(|(ending, _)| *ending == Ending::Promoted).count();
        // The promise allows one false rollback in a hundred, and the seeds are fixed.
        assert!(promoted >= 99, "{promoted}");
        let slowest = played.iter().map(|(_, ticks)| ticks).max().unwrap();
        assert!(*slowest <= 4 * 35, "{} s", slowest / 4);
    }

    #[test]
    fn a_bad_release_is_rolled_back_even_with_half_the_load() {
        let bad = Played { rate: RATE / 2, new: STORIES[1].new, stalls: Duration::ZERO };
        for seed in 0..100 {
            let (ending, ticks) = bad.simulate(seed);
            assert_eq!(ending, Ending::RolledBack, "seed {seed}");
            assert!(ticks <= 4 * 28, "{} s with seed {seed}", ticks / 4);
        }
    }

    #[test]
    fn a_slow_release_is_rolled_back_even_on_a_machine_that_stalls() {
        for (rate, stalls) in [(RATE, Duration::ZERO), (RATE / 2, STALLS)] {
            let slow = Played { rate, new: STORIES[2].new, stalls };
            let ends: Vec<_> = (0..100).map(|seed| slow.simulate(seed)).collect();
            let slowest = ends.iter().map(|(_, ticks)| ticks).max().unwrap();
            let missed = ends.iter().filter(|(ending, _)| *ending != Ending::RolledBack).count();
            assert_eq!(missed, 0, "{rate} requests a second, {stalls:?}: the last after {} s", slowest / 4);
        }
    }

    use super::super::{
        backend::pause,
        load::{Counts, RATE},
    };
}
