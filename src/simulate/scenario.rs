//! What may happen during a rollout: how much is asked for, how often each version fails, how slow the
//! canary is; all as functions of the time since its first step.

use std::sync::Arc;

pub use super::crowd::Crowd;

/// A quantity over time.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Always the same.
    Constant(f64),
    /// From one value to another at a moment.
    Jump {
        /// The value before.
        from: f64,
        /// The value from then on.
        to: f64,
        /// The moment, in seconds.
        at: f64,
    },
    /// One value for a while, and another before and after.
    Pulse {
        /// The value before and after.
        usual: f64,
        /// The value meanwhile.
        meanwhile: f64,
        /// When it begins and ends, in seconds.
        between: (f64, f64),
    },
    /// From one value to another, evenly, and then the latter.
    Ramp {
        /// The value in the beginning.
        from: f64,
        /// The value in the end.
        to: f64,
        /// How long that takes, in seconds.
        over: f64,
    },
    /// Up and down around a value.
    Wave {
        /// The value that it goes around.
        around: f64,
        /// How far, as a share of that.
        swing: f64,
        /// How long from top to top, in seconds.
        period: f64,
    },
    /// As it was: a value for each second, and then the last one.
    Recorded(Arc<[f64]>),
}

impl Shape {
    /// The value at a moment, in seconds.
    pub fn at(&self, time: f64) -> f64 {
        match self {
            Self::Constant(value) => *value,
            Self::Jump { from, to, at } => {
                if time < *at {
                    *from
                } else {
                    *to
                }
            }
            Self::Pulse { usual, meanwhile, between: (begin, end) } => {
                if (*begin..*end).contains(&time) {
                    *meanwhile
                } else {
                    *usual
                }
            }
            Self::Ramp { from, to, over } => from + (to - from) * (time / over).clamp(0.0, 1.0),
            Self::Wave { around, swing, period } => {
                around * (1.0 + swing * (std::f64::consts::TAU * time / period).sin())
            }
            Self::Recorded(values) => {
                // The cast saturates.
                values.get(time as usize).or_else(|| values.last()).copied().unwrap_or(0.0)
            }
        }
    }
}

/// How the canary's latency differs from stable's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slowness {
    /// The share of the canary's requests that take longer.
    pub share: f64,
    /// How many times as long.
    pub times: f64,
}

/// Something that may happen.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// The same in words.
    pub what: String,
    /// Requests, as a share of what is usual.
    pub load: Shape,
    /// The share of stable's requests that fail.
    pub stable: Shape,
    /// The share of the canary's requests that fail.
    pub canary: Shape,
    /// How many failures come together.
    pub cluster: u64,
    /// How slow the canary is; where there is nothing, latency is not looked at.
    pub latency: Option<Slowness>,
    /// Who makes the requests, where clients are pinned; else each request is drawn.
    pub crowd: Option<Crowd>,
    /// Endpoints of the canary, of which the first alone fails more than stable.
    pub endpoints: u64,
    /// From when on the canary is worse than it may be, in seconds; nothing if it never is.
    pub bad_from: Option<f64>,
}

impl Scenario {
    /// A scenario in which each version always fails the same share of its requests, and that is bad or
    /// harmless as said.
    pub fn constant(name: &str, what: &str, (stable, canary): (f64, f64), bad: bool) -> Self {
        Self {
            name: name.to_owned(),
            what: what.to_owned(),
            load: Shape::Constant(1.0),
            stable: Shape::Constant(stable),
            canary: Shape::Constant(canary),
            cluster: 1,
            crowd: None,
            latency: None,
            endpoints: 1,
            bad_from: bad.then_some(0.0),
        }
    }

    /// The share of the canary's requests that its users would not have lost, or waited for, on stable.
    pub fn harm(&self, time: f64) -> f64 {
        let failing = (self.canary.at(time) - self.stable.at(time)).max(0.0);
        let slow =
            self.latency.filter(|slowness| slowness.times > 1.0).map_or(0.0, |slowness| slowness.share);
        if self.bad_from.is_some_and(|from| time >= from) { failing.max(slow) } else { 0.0 }
    }

    /// What everybody should be asked about: twelve in which nothing is wrong with the canary, and
    /// twelve in which something is.
    pub fn all() -> Vec<Self> {
        let fine = |name, what, rate| Self::constant(name, what, (rate, rate), false);
        let bad = |name, what, from, to| Self::constant(name, what, (from, to), true);
        let both = |of: Self, shape: Shape| Self { stable: shape.clone(), canary: shape, ..of };
        vec![
            fine("same-0", "nothing ever fails", 0.0),
            fine("same-0.1", "both fail 0.1 %", 0.001),
            fine("same-0.5", "both fail 0.5 %", 0.005),
            fine("same-2", "both fail 2 %", 0.02),
            Self::constant(
                "tolerated",
                "2 % against 2.2 %, the most that is tolerated",
                (0.02, 0.022),
                false,
            ),
            both(
                fine("incident", "both fail 10 % for three minutes", 0.001),
                Shape::Pulse { usual: 0.001, meanwhile: 0.1, between: (240.0, 420.0) },
            ),
            Self {
                load: Shape::Ramp { from: 1.0, to: 0.2, over: 600.0 },
                ..both(
                    fine("evening", "load falls to a fifth while failures of both rise tenfold", 0.001),
                    Shape::Ramp { from: 0.001, to: 0.01, over: 600.0 },
                )
            },
            Self {
                load: Shape::Wave { around: 1.0, swing: 0.8, period: 300.0 },
                ..both(
                    fine("tides", "load and failures of both go up and down", 0.005),
                    Shape::Wave { around: 0.005, swing: 0.9, period: 170.0 },
                )
            },
            Self {
                crowd: Some(CROWD),
                ..fine(
                    "heavy-users",
                    "of fifty users with 1 % of requests each two always fail; 0.1 % else",
                    0.001,
                )
            },
            Self {
                crowd: Some(Crowd { doomed: 0, slow: 2, ..CROWD }),
                latency: Some(Slowness { share: 0.0, times: 1.0 }),
                ..fine(
                    "heavy-slow",
                    "of fifty users with 1 % of requests each two always wait eight times as long",
                    0.001,
                )
            },
            Self { cluster: 4, ..fine("clusters", "both fail 1 %, four requests at a time", 0.01) },
            Self {
                latency: Some(Slowness { share: 0.0, times: 1.0 }),
                ..fine("same-latency", "both are as fast, and fail 0.1 %", 0.001)
            },
            bad("0.1-to-0.3", "0.1 % against 0.3 %", 0.001, 0.003),
            bad("0.1-to-0.9", "0.1 % against 0.9 %", 0.001, 0.009),
            bad("0.1-to-5", "0.1 % against 5 %", 0.001, 0.05),
            Self {
                crowd: Some(CROWD),
                ..bad("heavy-1-to-5", "the same users, but else 1 % against 5 %", 0.01, 0.05)
            },
            bad("0.1-to-50", "0.1 % against 50 %", 0.001, 0.5),
            bad("0-to-1", "0 against 1 %", 0.0, 0.01),
            Self {
                canary: Shape::Jump { from: 0.001, to: 0.05, at: 200.0 },
                bad_from: Some(200.0),
                ..bad("late", "0.1 %, and 5 % from 200 s on", 0.001, 0.05)
            },
            Self {
                canary: Shape::Jump { from: 0.001, to: 0.2, at: 400.0 },
                bad_from: Some(400.0),
                ..bad("baking", "0.1 %, and 20 % from 400 s on, when it may have everything", 0.001, 0.2)
            },
            Self {
                canary: Shape::Ramp { from: 0.001, to: 0.05, over: 1_200.0 },
                ..bad("leak", "0.1 %, rising to 5 % within twenty minutes", 0.001, 0.05)
            },
            Self { endpoints: 4, ..bad("endpoint", "one of four endpoints fails 20 %", 0.001, 0.051) },
            Self {
                latency: Some(Slowness { share: 1.0, times: 1.5 }),
                ..bad("slower", "every request takes half as long again", 0.001, 0.001)
            },
            Self {
                latency: Some(Slowness { share: 0.05, times: 8.0 }),
                ..bad("slow-tail", "one request in twenty takes eight times as long", 0.001, 0.001)
            },
        ]
    }
}

/// Half of all requests are of fifty clients, two of whom always fail, the other half of two thousand.
const CROWD: Crowd = Crowd { heavy: 50, doomed: 2, slow: 0, light: 2_000 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_what_they_say() {
        let at = |shape: Shape| [0.0, 99.0, 100.0, 150.0, 900.0].map(|time| shape.at(time));
        assert_eq!(at(Shape::Jump { from: 1.0, to: 2.0, at: 100.0 }), [1.0, 1.0, 2.0, 2.0, 2.0]);
        let pulse = Shape::Pulse { usual: 1.0, meanwhile: 2.0, between: (100.0, 150.0) };
        assert_eq!(at(pulse), [1.0, 1.0, 2.0, 1.0, 1.0]);
        assert_eq!(at(Shape::Ramp { from: 0.0, to: 2.0, over: 200.0 }), [0.0, 0.99, 1.0, 1.5, 2.0]);
        assert_eq!(at(Shape::Recorded([3.0, 4.0].into())), [3.0, 4.0, 4.0, 4.0, 4.0]);
        assert!((Shape::Wave { around: 2.0, swing: 0.5, period: 400.0 }.at(100.0) - 3.0).abs() < 1e-12);
    }

    #[test]
    fn names_are_unique_and_harm_belongs_to_the_bad() {
        let all = Scenario::all();
        for (index, scenario) in all.iter().enumerate() {
            assert!(all[..index].iter().all(|other| other.name != scenario.name), "{}", scenario.name);
            let harm = (0..3_600).map(|second| scenario.harm(f64::from(second))).sum::<f64>();
            assert_eq!(harm > 0.0, scenario.bad_from.is_some(), "{}", scenario.name);
        }
    }
}
