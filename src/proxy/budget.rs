//! How many retries there may be: a share of the requests of the last seconds, and a few in any case.
//!
//! Each worker has its own, for the requests that it sees. What fails for everybody is then tried again
//! for a few only, and a backend in trouble gets little more than it would without retries.

use crate::routing::retry;

/// Seconds that count.
const WINDOW: usize = 10;

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    requests: u32,
    retries: u32,
}

/// How many retries one worker may make for a service.
#[derive(Debug)]
pub(super) struct Budget {
    percent: u64,
    /// Retries that there may be however few requests came.
    least: u64,
    /// The last seconds, each at its number modulo their count.
    seconds: [Second; WINDOW],
    /// The newest of them.
    now: u64,
}

impl Budget {
    /// One worker's part of a budget.
    pub(super) fn new(budget: retry::Budget, workers: usize) -> Self {
        let least = u64::from(budget.min_per_second) * WINDOW as u64;
        Self {
            percent: budget.percent.into(),
            least: least.div_ceil(workers.max(1) as u64),
            seconds: Default::default(),
            now: 0,
        }
    }

    /// A request has come in this second.
    pub(super) fn earn(&mut self, second: u64) {
        self.go_on(second).requests += 1;
    }

    /// Whether there may be a retry in this second.
    pub(super) fn allows(&mut self, second: u64) -> bool {
        self.go_on(second);
        let sum = |of: fn(&Second) -> u32| self.seconds.iter().map(|s| u64::from(of(s))).sum::<u64>();
        sum(|s| s.retries) < sum(|s| s.requests) * self.percent / 100 + self.least
    }

    /// There is one.
    pub(super) fn spend(&mut self, second: u64) {
        self.go_on(second).retries += 1;
    }

    /// Forgets what is too long ago; the second that it is now.
    fn go_on(&mut self, second: u64) -> &mut Second {
        let passed = second.saturating_sub(self.now);
        for n in 1..=passed.min(WINDOW as u64) {
            self.seconds[place(self.now + n)] = Second::default();
        }
        self.now = self.now.max(second);
        &mut self.seconds[place(self.now)]
    }
}

fn place(second: u64) -> usize {
    (second % WINDOW as u64) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(percent: u8, min_per_second: u32, workers: usize) -> Budget {
        Budget::new(retry::Budget { percent, min_per_second }, workers)
    }

    fn try_to_spend(budget: &mut Budget, second: u64) -> bool {
        let allowed = budget.allows(second);
        if allowed {
            budget.spend(second);
        }
        allowed
    }

    #[test]
    fn a_quiet_service_may_retry_too() {
        let mut budget = budget(20, 1, 2);
        let made = (0..100).filter(|_| try_to_spend(&mut budget, 7)).count();
        assert_eq!(made, 5, "half of ten seconds' worth");
        assert!(!try_to_spend(&mut budget, 16));
        assert!(try_to_spend(&mut budget, 17));
    }

    #[test]
    fn a_share_of_what_came_may_be_tried_again() {
        let mut budget = budget(20, 0, 1);
        (0..1000).for_each(|i| budget.earn(i / 100));
        assert_eq!((0..1000).filter(|_| try_to_spend(&mut budget, 9)).count(), 200);
    }

    #[test]
    fn a_pause_longer_than_the_window_forgets_everything() {
        let mut budget = budget(100, 0, 1);
        budget.earn(3);
        assert!(budget.allows(12));
        assert!(!budget.allows(13));
        assert!(!budget.allows(1_000_000));
        budget.earn(1_000_000);
        assert!(budget.allows(1_000_000));
    }

    proptest! {
        #[test]
        fn a_retry_is_allowed_as_long_as_the_last_ten_seconds_have_room(
            percent in 0u8..=100,
            least in 0u32..3,
            steps in prop::collection::vec((0u64..4, any::<bool>()), 1..400),
        ) {
            let mut budget = budget(percent, least, 1);
            let (mut second, mut requests, mut retries) = (0, Vec::new(), Vec::<u64>::new());
            for (pause, fails) in steps {
                // Most steps in the same second.
                second += pause / 3;
                budget.earn(second);
                requests.push(second);
                let last = |all: &[u64]| all.iter().filter(|s| **s + 10 > second).count() as u64;
                let most = last(&requests) * u64::from(percent) / 100 + 10 * u64::from(least);
                let allowed = budget.allows(second);
                prop_assert_eq!(allowed, last(&retries) < most);
                if fails && allowed {
                    budget.spend(second);
                    retries.push(second);
                }
            }
        }
    }
}
