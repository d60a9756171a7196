//! How many requests at a time a service should have, from how long they take.
//!
//! A backend that has more than it can work on at once makes the rest wait, and then all of them take longer.
//! So what requests take is compared with what they take when there are few: the limit shrinks by the ratio of
//! the two, and grows by a little as long as they are about the same. That is the gradient algorithm of
//! Netflix' concurrency-limits (`Gradient2Limit`) and of Envoy's `adaptive_concurrency`, whose headroom of
//! √limit this has. What differs is the baseline. An average, as in the former, creeps up while the overload
//! lasts, and takes the limit with it. So it is the least of the last minute here; and since there is no calm
//! moment in a minute of overload, one is made, as in the latter, but half the limit is low enough for that.

use std::time::Duration;

/// How many times the baseline requests may take before the limit shrinks: they vary by themselves.
const TOLERANCE: f64 = 1.5;
/// The most by which it shrinks at a time.
const STEEPEST: f64 = 0.5;
/// How long a part of the baseline is gathered. There are two, this one and the last one.
const PART: Duration = Duration::from_secs(30);

/// What was measured since the last decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measured {
    /// What a request took; nothing if too many had no response in time.
    pub(super) latency: Option<Duration>,
    /// Requests at a time, on average or now, whatever is more.
    pub(super) in_flight: f64,
    /// Some were turned away.
    pub(super) rejected: bool,
    /// How long it was measured.
    pub(super) elapsed: Duration,
}

/// What is remembered from one decision to the next.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Gradient {
    /// The least that requests took, in this part of the baseline and in the last one.
    least: [Option<Duration>; 2],
    age: Duration,
    /// The first congestion has been met: from now on it grows slowly.
    met: bool,
    /// A calm moment is being made; to what the limit goes back after it.
    calm: Option<u32>,
}

impl Gradient {
    /// The next limit, within `bounds`.
    pub(super) fn next(&mut self, limit: u32, bounds: (u32, u32), measured: &Measured) -> u32 {
        let (least, most) = bounds;
        let limit = limit.clamp(least, most);
        let is_due = self.remember(measured);
        if let Some(before) = self.calm.take() {
            return before.clamp(least, most);
        }
        // What is not needed says nothing about what can be carried.
        if !measured.rejected && measured.in_flight * 2.0 < f64::from(limit) {
            return limit;
        }
        if is_due {
            self.calm = Some(limit);
            return (limit / 2).max(least);
        }
        let gradient = self.gradient(measured.latency);
        self.met |= gradient < 1.0;
        let headroom = if self.met { f64::from(limit).sqrt() } else { f64::from(limit) };
        // From 1 to 2³² − 1 after all: the cast saturates.
        ((f64::from(limit) * gradient + headroom) as u32).clamp(least, most)
    }

    /// The baseline: what requests take when there are few.
    fn baseline(&self) -> Option<Duration> {
        self.least.iter().flatten().min().copied()
    }

    fn gradient(&self, latency: Option<Duration>) -> f64 {
        let (Some(latency), Some(baseline)) = (latency, self.baseline()) else { return STEEPEST };
        let allowed = baseline.as_secs_f64() * TOLERANCE;
        (allowed / latency.as_secs_f64().max(f64::MIN_POSITIVE)).clamp(STEEPEST, 1.0)
    }

    /// Takes a measurement into the baseline. Whether a new part of it begins, with which the one before the
    /// last is forgotten.
    fn remember(&mut self, measured: &Measured) -> bool {
        let [now, last] = self.least;
        let now = now.into_iter().chain(measured.latency).min();
        self.age = self.age.saturating_add(measured.elapsed);
        let is_due = self.age >= PART;
        self.least = if is_due { [None, now.or(last)] } else { [now, last] };
        if is_due {
            self.age = Duration::ZERO;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const BOUNDS: (u32, u32) = (20, 1000);

    /// Requests at once that a backend can work on, and what one takes then.
    #[derive(Debug, Clone, Copy)]
    struct Backend {
        knee: f64,
        takes: f64,
    }

    impl Backend {
        /// What is measured in a second in which `offered` requests want to be there at a time; `noise` is
        /// from −1 to 1, for a tenth more or less.
        fn measure(self, limit: u32, offered: f64, noise: f64) -> Measured {
            let in_flight = offered.min(limit.into());
            let latency = self.takes * (in_flight / self.knee).max(1.0) * (1.0 + noise / 10.0);
            Measured {
                latency: Some(Duration::from_secs_f64(latency)),
                in_flight,
                rejected: offered > limit.into(),
                elapsed: SECOND,
            }
        }
    }

    /// The limits of so many seconds under more load than can be carried.
    fn limits(backend: Backend, seconds: usize, noise: &[f64]) -> Vec<u32> {
        let (mut gradient, mut limit) = (Gradient::default(), BOUNDS.0);
        let one = |noise: &f64| {
            limit = gradient.next(limit, BOUNDS, &backend.measure(limit, 5000.0, *noise));
            limit
        };
        noise.iter().cycle().take(seconds).map(one).collect()
    }

    proptest! {
        #[test]
        fn it_converges_near_the_knee_and_stays_there(
            knee in 50.0..500.0, takes in 0.001..1.0, noise in prop::collection::vec(-1.0..1.0, 7..50),
        ) {
            let limits = limits(Backend { knee, takes }, 600, &noise);
            let calm = limits.iter().filter(|limit| f64::from(**limit) < knee).count();
            // Half the limit for one second of every thirty; and the way up at the start.
            prop_assert!(calm <= 40, "{calm} {limits:?}");
            for limit in &limits[20..] {
                let ratio = f64::from(*limit) / knee;
                prop_assert!((0.5..2.2).contains(&ratio), "{ratio} {limits:?}");
            }
        }

        #[test]
        fn it_grows_to_the_most_where_requests_take_no_longer(noise in prop::collection::vec(-1.0..1.0, 7..50)) {
            let backend = Backend { knee: f64::INFINITY, takes: 0.01 };
            let limits = limits(backend, 100, &noise);
            prop_assert_eq!(limits[9], BOUNDS.1);
            prop_assert!(limits[9..].iter().all(|limit| *limit >= BOUNDS.1 / 2));
        }

        #[test]
        fn it_stays_within_its_bounds_and_longer_is_never_more(
            steps in prop::collection::vec((0u64..10_000_000, 0.0..2000.0, any::<bool>(), any::<bool>()), 1..80),
            least in 1u32..1000, wide in 1u32..1000,
        ) {
            let (mut gradient, mut limit, bounds) = (Gradient::default(), 0, (least, least + wide));
            for (micros, in_flight, rejected, answered) in steps {
                let latency = answered.then(|| Duration::from_micros(micros));
                let measured = Measured { latency, in_flight, rejected, elapsed: 3 * SECOND };
                let longer = Measured { latency: latency.map(|latency| latency * 2), ..measured };
                // Neither is the least, so the baseline is the same for both.
                let known = Gradient { least: [latency.map(|l| l / 2), None], ..gradient.clone() };
                let (a, b) = (known.clone().next(limit, bounds, &longer), known.clone().next(limit, bounds, &measured));
                prop_assert!(a <= b, "{a} {b} {known:?} {measured:?}");
                limit = gradient.next(limit, bounds, &measured);
                prop_assert!((bounds.0..=bounds.1).contains(&limit));
            }
        }
    }

    #[test]
    fn a_limit_that_is_not_needed_stays() {
        let (mut gradient, backend) = (Gradient::default(), Backend { knee: 100.0, takes: 0.1 });
        for _ in 0..100 {
            assert_eq!(gradient.next(300, BOUNDS, &backend.measure(300, 140.0, 0.0)), 300);
        }
    }

    #[test]
    fn requests_that_get_no_response_in_time_halve_it() {
        let mut gradient = Gradient::default();
        let hung = Measured { latency: None, in_flight: 400.0, rejected: true, elapsed: SECOND };
        let limits = (0..8).scan(400, |limit, _| {
            *limit = gradient.next(*limit, BOUNDS, &hung);
            Some(*limit)
        });
        assert_eq!(limits.collect::<Vec<_>>(), [220, 124, 73, 45, 29, 20, 20, 20]);
    }

    #[test]
    fn a_backend_that_has_become_slower_for_good_is_believed_after_a_minute() {
        let mut gradient = Gradient::default();
        let mut limit = BOUNDS.0;
        for second in 0..200 {
            let takes = if second < 60 { 0.01 } else { 0.1 };
            let backend = Backend { knee: f64::INFINITY, takes };
            limit = gradient.next(limit, BOUNDS, &backend.measure(limit, 5000.0, 0.0));
        }
        assert!(limit >= BOUNDS.1 / 2, "{limit}");
    }
}
