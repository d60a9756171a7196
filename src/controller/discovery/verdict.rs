//! What follows from the results of checks: pure.

use std::{hash::Hasher, net::SocketAddr, time::Duration};

use siphasher::sip::SipHasher13;

use crate::routing::policy::HealthCheck;

/// What is thought of one address.
///
/// It is well until a check says otherwise, so that a start is no outage. The first check decides alone;
/// from then on it takes several in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    healthy: bool,
    first: bool,
    /// Results in a row that speak against what is thought.
    against: u32,
}

impl Verdict {
    pub(super) const fn new() -> Self {
        Self { healthy: true, first: true, against: 0 }
    }

    /// Takes one result into account; says what is thought from now on, if that is something else.
    pub(super) fn observe(&mut self, passes: bool, check: &HealthCheck) -> Option<bool> {
        let first = std::mem::replace(&mut self.first, false);
        if passes == self.healthy {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if passes { check.healthy_threshold } else { check.unhealthy_threshold };
        if !first && self.against < needed {
            return None;
        }
        (self.healthy, self.against) = (passes, 0);
        Some(passes)
    }
}

/// The pause before the next check: the interval, give or take a tenth, so that the checks of many
/// endpoints and replicas do not come all at once. The same for the same address and round.
pub(super) fn pause(interval: Duration, address: SocketAddr, round: u64) -> Duration {
    let mut hasher = SipHasher13::new_with_keys(round, u64::from(std::process::id()));
    hasher.write(address.to_string().as_bytes());
    let share = (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64;
    interval.mul_f64(0.9 + 0.2 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(results: &str) -> Vec<(usize, bool)> {
        let mut verdict = Verdict::new();
        let check = HealthCheck::default();
        let results = results.chars().map(|c| c == '+').enumerate();
        results.filter_map(|(i, passes)| Some((i, verdict.observe(passes, &check)?))).collect()
    }

    #[test]
    fn the_first_check_decides_alone() {
        assert_eq!(changes("-"), [(0, false)]);
        assert_eq!(changes("+--"), []);
    }

    #[test]
    fn then_it_takes_several_in_a_row() {
        assert_eq!(changes("+--+--+---"), [(9, false)]);
        assert_eq!(changes("-+-+-++"), [(0, false), (6, true)]);
        assert_eq!(changes("-++---"), [(0, false), (2, true), (5, false)]);
    }

    #[test]
    fn pauses_are_near_the_interval_and_differ() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let pauses: Vec<_> = (0..100).map(|i| pause(Duration::from_secs(10), address(80), i)).collect();
        assert!(pauses.iter().all(|p| (9.0..=11.0).contains(&p.as_secs_f64())), "{pauses:?}");
        assert!(
            pauses.iter().any(|p| p.as_secs_f64() < 9.5) && pauses.iter().any(|p| p.as_secs_f64() > 10.5)
        );
        assert_ne!(pause(Duration::from_secs(10), address(81), 0), pauses[0]);
    }
}
