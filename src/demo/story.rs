//! What is played: six rollouts, the configuration that they run under, and how each must end.
//!
//! The numbers are chosen so that two minutes are enough, not because they suit a real service. At 500
//! requests a second and 1 % failures, promotion can prove "at most 2 percentage points worse" within
//! seconds; the usual half a point would take minutes.

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
    /// What befalls both of them meanwhile, if anything does.
    pub(super) incident: Option<Incident>,
    /// What its first bad request looks like, if it has any.
    pub(super) sign: Option<Sign>,
    /// How it must end.
    pub(super) expected: Ending,
    /// Whether not a single request may fail.
    pub(super) flawless: bool,
    /// How long it may take, on a machine that is slow and busy.
    pub(super) patience: Duration,
}

/// Something that befalls both versions, since they share it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Incident {
    /// How long after the rollout's beginning.
    pub(super) after: Duration,
    /// For how long.
    pub(super) lasts: Duration,
    /// How both behave then.
    pub(super) both: Behaviour,
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
const ORDINARY: Behaviour = Behaviour { failing: 0.01, ..Behaviour::PERFECT };

/// The stories, in the order in which they are played.
pub(super) const STORIES: [Story; 6] = [
    Story {
        title: "good release",
        what: "As good as the old version: 1 % of requests fail. To be promoted.",
        service: "shop",
        path: "/",
        old: ORDINARY,
        new: ORDINARY,
        incident: None,
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
        incident: None,
        sign: Some(Sign::Failure),
        expected: Ending::RolledBack,
        flawless: false,
        patience: Duration::from_secs(28),
    },
    Story {
        title: "slow release",
        what: "Its 99th percentile doubles, its median stays the same. To be rolled back.",
        service: "search",
        path: "/search",
        old: ORDINARY,
        new: Behaviour { tail: 3.4, ..ORDINARY },
        incident: None,
        sign: Some(Sign::Answer),
        expected: Ending::RolledBack,
        flawless: false,
        patience: Duration::from_secs(45),
    },
    Story {
        title: "fragile release",
        what: "Breaks on 0.5 % of payloads, the old version on none. To be rolled back.",
        service: "cart",
        path: "/cart",
        old: Behaviour::PERFECT,
        new: Behaviour { breaking: 0.005, ..Behaviour::PERFECT },
        incident: None,
        sign: Some(Sign::Silence),
        expected: Ending::RolledBack,
        flawless: false,
        patience: Duration::from_secs(30),
    },
    Story {
        title: "shared incident",
        what: "A good release, but for 4 s both versions fail 10 %. To be promoted.",
        service: "shop",
        path: "/",
        old: ORDINARY,
        new: ORDINARY,
        incident: Some(Incident {
            after: Duration::from_secs(4),
            lasts: Duration::from_secs(4),
            both: Behaviour { failing: 0.1, ..ORDINARY },
        }),
        sign: None,
        expected: Ending::Promoted,
        flawless: false,
        patience: Duration::from_secs(50),
    },
    Story {
        title: "blue/green flip",
        what: "All requests move at once; not one may be lost. To be promoted.",
        service: "web",
        path: "/web",
        old: Behaviour::PERFECT,
        new: Behaviour::PERFECT,
        incident: None,
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
path_prefix = "/cart"
service = "cart"

[[routes]]
path_prefix = "/search"
service = "search"

[[routes]]
service = "shop"

# Half a percentage point is what it is about here, so promotion has to exclude no more.
[services.cart]
stable = "{blue}"
canary = "{green}"
[services.cart.backends.{blue}]
endpoints = ["http://{blue_address}"]
[services.cart.backends.{green}]
endpoints = ["http://{green_address}"]
[services.cart.rollout]
steps = [
  {{ weight = 10, hold = "2s" }},
  {{ weight = 25, hold = "3s" }},
  {{ weight = 50, hold = "3s" }},
]
bake = "3s"

# The slowest answers are few, and a busy machine has slow ones of its own: time to tell them apart.
[services.search]
stable = "{blue}"
canary = "{green}"
[services.search.backends.{blue}]
endpoints = ["http://{blue_address}"]
[services.search.backends.{green}]
endpoints = ["http://{green_address}"]
[services.search.rollout]
steps = [
  {{ weight = 10, hold = "2s" }},
  {{ weight = 50, hold = "30s" }},
]
bake = "3s"
[services.search.rollout.analysis]
promotion_margin = 0.02
# Each request takes as long as it takes. What holds up many is this machine, and holds up both versions.
dispersion = 1

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
  {{ weight = 50, hold = "3s" }},
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
        analysis::{Analysis, ArmTick, Tick, verdict::Decision},
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
    fn all_stories_together_have_little_more_than_three_minutes() {
        let patience: Duration = STORIES.iter().map(|story| story.patience).sum();
        assert!(patience <= Duration::from_secs(210));
    }

    /// A service's rollout with `rate` requests a second and equally fast versions: how it ends, after
    /// how many ticks of a quarter second. `failing` says what share of requests the canary fails in a tick,
    /// or else stable.
    fn simulate(service: &str, rate: u32, failing: impl Fn(u32, bool) -> f64, seed: u64) -> (Ending, u32) {
        let config = config();
        let service = config.services.iter().find(|known| known.name.as_str() == service);
        let rollout = &service.unwrap().rollout;
        let (steps, mut rng) = (rollout.plan.steps(), SmallRng::seed_from_u64(seed));
        let mut analysis = Analysis::new(&rollout.analysis, 32);
        let (mut step, mut since) = (0, 0);
        let next = |step: usize| steps.get(step + 1).map(|step| step.weight);
        analysis.begin_step(next(0));
        for tick in 1..400 {
            let mut arms = [(0, 0), (0, 0)];
            for _ in 0..rate / 4 {
                let canary = steps[step].weight.admits(rng.random());
                let fails = rng.random::<f64>() < failing(tick, canary);
                let (requests, failures) = &mut arms[usize::from(canary)];
                *requests += 1;
                *failures += u64::from(fails);
            }
            let latency = Histogram::default();
            let [stable, canary] =
                arms.map(|(requests, failures)| ArmTick::new(requests, failures, &latency));
            let decision = analysis.observe(&Tick { stable, canary, routes: &[], users: None });
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

    #[test]
    fn a_good_release_is_promoted_well_before_patience_ends() {
        let played: Vec<_> =
            (0..100).map(|seed| simulate("shop", RATE, |_, _| ORDINARY.failing, seed)).collect();
        let promoted = played.iter().filter(|(ending, _)| *ending == Ending::Promoted).count();
        // The promise allows one false rollback in a hundred, and the seeds are fixed.
        assert!(promoted >= 99, "{promoted}");
        let slowest = played.iter().map(|(_, ticks)| ticks).max().unwrap();
        assert!(*slowest <= 4 * 35, "{} s", slowest / 4);
    }

    #[test]
    fn a_bad_release_is_rolled_back_even_with_half_the_load() {
        for seed in 0..100 {
            let bad = |_, canary| if canary { 0.05 } else { ORDINARY.failing };
            let (ending, ticks) = simulate("shop", RATE / 2, bad, seed);
            assert_eq!(ending, Ending::RolledBack, "seed {seed}");
            assert!(ticks <= 4 * 28, "{} s with seed {seed}", ticks / 4);
        }
    }

    #[test]
    fn a_release_that_breaks_on_few_payloads_is_rolled_back() {
        for seed in 0..100 {
            let (ending, ticks) = simulate("cart", RATE, |_, canary| if canary { 0.005 } else { 0.0 }, seed);
            assert_eq!(ending, Ending::RolledBack, "seed {seed}");
            assert!(ticks <= 4 * 30, "{} s with seed {seed}", ticks / 4);
        }
    }

    #[test]
    fn an_incident_that_both_share_is_not_blamed_on_the_release() {
        let Some(Incident { after, lasts, both }) = STORIES.iter().find_map(|story| story.incident) else {
            panic!("there is no incident");
        };
        let ticks = |time: Duration| time.as_millis() as u32 / 250;
        let during = ticks(after)..ticks(after + lasts);
        let failing = |tick, _| if during.contains(&tick) { both.failing } else { ORDINARY.failing };
        let played: Vec<_> = (0..100).map(|seed| simulate("shop", RATE, failing, seed)).collect();
        let promoted = played.iter().filter(|(ending, _)| *ending == Ending::Promoted).count();
        assert!(promoted >= 99, "{promoted}");
        let slowest = played.iter().map(|(_, ticks)| ticks).max().unwrap();
        assert!(*slowest <= 4 * 46, "{} s", slowest / 4);
    }

    use super::super::load::RATE;
}
