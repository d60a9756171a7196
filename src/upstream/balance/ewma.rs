//! Peak EWMA: a moving average of latency that rises at once and falls slowly.
//!
//! After linkerd's, and Finagle's before it: an endpoint that has just been slow is avoided from the
//! next request on, and given another chance as time passes. The load is the average times the
//! requests in flight, so that a quick endpoint gets more of them, but not all.

use std::time::{Duration, Instant};

/// Time constant of the decay (linkerd's).
pub const DECAY: Duration = Duration::from_secs(10);
/// What is assumed of an endpoint that nothing is known of (linkerd's).
pub const INITIAL_RTT: Duration = Duration::from_millis(30);

/// What an endpoint's latency has been.
#[derive(Debug, Clone, Copy)]
pub struct PeakEwma {
    nanos: f64,
    updated: Instant,
}

impl PeakEwma {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self { nanos: nanos(INITIAL_RTT), updated: now }
    }

    /// The endpoint took this long to answer.
    #[must_use]
    pub fn observed(self, latency: Duration, now: Instant) -> Self {
        let latency = nanos(latency);
        let now = now.max(self.updated);
        if latency > self.nanos {
            return Self { nanos: latency, updated: now };
        }
        let kept = self.kept(now);
        Self { nanos: self.nanos * kept + latency * (1.0 - kept), updated: now }
    }

    /// How little one would want to send it another request, where it has `in_flight` already. What is
    /// known of it loses its meaning with time.
    pub fn load(self, in_flight: u32, now: Instant) -> f64 {
        self.nanos * self.kept(now) * (f64::from(in_flight) + 1.0)
    }

    fn kept(self, now: Instant) -> f64 {
        let elapsed = nanos(now.saturating_duration_since(self.updated));
        (-elapsed / nanos(DECAY)).exp()
    }
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_peak_is_believed_at_once_and_forgotten_slowly() {
        let start = clock::monotonic();
        let ewma = PeakEwma::new(start).observed(900 * MS, start);
        assert_eq!(ewma.load(0, start), 900e6);
        let later = start + DECAY;
        // One time constant on, 1/e of the peak is left, and the rest is what has been seen since.
        let load = ewma.observed(10 * MS, later).load(0, later);
        assert!(
            (load - (900e6 / std::f64::consts::E + 10e6 * (1.0 - 1.0 / std::f64::consts::E))).abs() < 1e3
        );
        assert!(ewma.load(0, start + 6 * DECAY) < PeakEwma::new(start).load(0, start));
    }

    #[test]
    fn load_grows_with_what_is_in_flight() {
        let start = clock::monotonic();
        let ewma = PeakEwma::new(start);
        assert_eq!(ewma.load(0, start), 30e6);
        assert_eq!(ewma.load(3, start), 120e6);
    }

    #[test]
    fn a_clock_that_seems_to_go_back_does_no_harm() {
        let start = clock::monotonic() + DECAY;
        let ewma = PeakEwma::new(start).observed(10 * MS, start - DECAY);
        assert!(ewma.load(0, start - DECAY).is_finite());
    }
}
