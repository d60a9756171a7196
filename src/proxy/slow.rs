//! How long a client may take over a body: in all, and for what it has sent of it.
//!
//! Only the time counts in which the backend would have taken more and the client had not sent it:
//! a client is not to blame for a backend that reads slowly.

use std::{
    cell::Cell,
    num::NonZeroU64,
    time::{Duration, Instant},
};

use crate::routing::limits::Limits;

/// What a client may take before its rate is looked at: connections begin slowly.
const GRACE: Duration = Duration::from_secs(5);

/// Watches one body.
#[derive(Debug)]
pub(super) struct Watch {
    min_rate: Option<NonZeroU64>,
    timeout: Option<Duration>,
    started: Instant,
    waiting_since: Cell<Option<Instant>>,
    waited: Cell<Duration>,
}

impl Watch {
    /// A body that begins `now`; nothing if it may take as long as it likes.
    pub(super) fn new(limits: &Limits, now: Instant) -> Option<Self> {
        let Limits { min_body_rate: min_rate, body_timeout: timeout, .. } = *limits;
        (min_rate.is_some() || timeout.is_some()).then(|| Self {
            min_rate,
            timeout,
            started: now,
            waiting_since: Cell::new(None),
            waited: Cell::default(),
        })
    }

    /// From `now` on it is the client that is waited for, or no longer.
    pub(super) fn set_waiting(&self, waiting: bool, now: Instant) {
        match self.waiting_since.get() {
            None if waiting => self.waiting_since.set(Some(now)),
            Some(since) if !waiting => {
                self.waiting_since.set(None);
                self.waited.set(self.waited.get() + now.saturating_duration_since(since));
            }
            _ => {}
        }
    }

    /// How much longer it may take, `bytes` of it having come.
    pub(super) fn left(&self, bytes: u64, now: Instant) -> Duration {
        let in_all =
            self.timeout.map(|timeout| timeout.saturating_sub(now.saturating_duration_since(self.started)));
        let by_rate = self.min_rate.map(|rate| {
            let since = self.waiting_since.get();
            let waited = self.waited.get()
                + since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            let earned = Duration::from_millis(bytes.saturating_mul(1000) / rate);
            GRACE.saturating_add(earned).saturating_sub(waited)
        });
        in_all.into_iter().chain(by_rate).min().unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_body_that_may_take_its_time_is_not_watched() {
        assert!(Watch::new(&Limits::default(), clock::monotonic()).is_none());
    }

    #[test]
    fn bytes_buy_time_and_a_slow_backend_costs_none() {
        let now = clock::monotonic();
        let limits = Limits { min_body_rate: NonZeroU64::new(1000), ..Limits::default() };
        let watch = Watch::new(&limits, now).unwrap();
        assert_eq!(watch.left(0, now + 60 * SECOND), GRACE, "nobody waited for the client");
        watch.set_waiting(true, now + 60 * SECOND);
        assert_eq!(watch.left(0, now + 63 * SECOND), GRACE - 3 * SECOND);
        watch.set_waiting(true, now + 63 * SECOND);
        watch.set_waiting(false, now + 64 * SECOND);
        assert_eq!(watch.left(2000, now + 99 * SECOND), GRACE - 4 * SECOND + 2 * SECOND);
        watch.set_waiting(true, now + 99 * SECOND);
        assert_eq!(watch.left(2000, now + 120 * SECOND), Duration::ZERO);
    }

    #[test]
    fn the_whole_body_has_a_time_too() {
        let now = clock::monotonic();
        let limits = Limits { body_timeout: Some(10 * SECOND), ..Limits::default() };
        let watch = Watch::new(&limits, now).unwrap();
        assert_eq!(watch.left(u64::MAX, now + 4 * SECOND), 6 * SECOND);
        assert_eq!(watch.left(u64::MAX, now + 40 * SECOND), Duration::ZERO);
    }
}
