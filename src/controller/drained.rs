//! Which backends may be taken away: none of the service's requests go there, and nothing has been under way
//! there for a while. So nobody who removes pods has to guess how long that takes.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::model::name::BackendName;

/// How a backend stands at a look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Whether anybody may be sent there, now or as the rollout goes on.
    pub(super) is_in_use: bool,
    /// Attempts that are under way there: requests, streams and tunnels.
    pub(super) in_flight: u64,
    /// Attempts that have ended there. A rule or a preview may bring some that are over before the next look.
    pub(super) ended: u64,
}

/// What has been seen of each backend of a service.
#[derive(Debug, Default)]
pub(super) struct Drained(BTreeMap<BackendName, Rest>);

/// Since when a backend has had nothing to do.
#[derive(Debug)]
struct Rest {
    since: Instant,
    ended: u64,
    /// Whether it had something to do before, that anybody saw.
    was_used: bool,
    is_long: bool,
}

impl Drained {
    /// Takes a look at a backend. Returns whether it is news that it is drained: it was in use before, and has had
    /// nothing to do for so long.
    pub(super) fn look(&mut self, backend: &BackendName, look: Look, after: Duration) -> bool {
        let now = Instant::now();
        let Look { is_in_use, in_flight, ended } = look;
        let fresh = |was_used| Rest { since: now, ended, was_used, is_long: false };
        let rest = self.0.entry(backend.clone()).or_insert_with(|| fresh(false));
        if is_in_use || in_flight > 0 || ended != rest.ended {
            *rest = fresh(true);
            return false;
        }
        let was_long = std::mem::replace(&mut rest.is_long, now - rest.since >= after);
        rest.is_long && !was_long && rest.was_used
    }

    /// Whether a backend was drained at the last look.
    pub(super) fn is(&self, backend: &BackendName) -> bool {
        self.0.get(backend).is_some_and(|rest| rest.is_long)
    }

    /// Forgets backends that are gone.
    pub(super) fn keep(&mut self, is_there: impl Fn(&BackendName) -> bool) {
        self.0.retain(|backend, _| is_there(backend));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const AFTER: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn it_takes_a_while_with_nothing_to_do() {
        let (mut drained, v2) = (Drained::default(), "v2".parse().unwrap());
        let rest = Look { is_in_use: false, in_flight: 0, ended: 5 };
        assert!(!drained.look(&v2, Look { is_in_use: true, ..rest }, AFTER));
        assert!(!drained.look(&v2, Look { in_flight: 1, ..rest }, AFTER));
        advance(AFTER * 2).await;
        assert!(!drained.look(&v2, Look { in_flight: 1, ..rest }, AFTER));
        advance(Duration::from_secs(9)).await;
        assert!(!drained.look(&v2, rest, AFTER));
        advance(Duration::from_secs(1)).await;
        assert!(drained.look(&v2, rest, AFTER) && drained.is(&v2));
        // It is said once.
        assert!(!drained.look(&v2, rest, AFTER) && drained.is(&v2));
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_comes_begins_it_anew() {
        let (mut drained, v2) = (Drained::default(), "v2".parse().unwrap());
        let rest = Look { is_in_use: false, in_flight: 0, ended: 5 };
        for other in
            [Look { is_in_use: true, ..rest }, Look { in_flight: 1, ..rest }, Look { ended: 6, ..rest }]
        {
            drained.look(&v2, other, AFTER);
            drained.look(&v2, Look { ended: other.ended, ..rest }, AFTER);
            advance(AFTER).await;
            assert!(drained.look(&v2, Look { ended: other.ended, ..rest }, AFTER), "{other:?}");
            drained.look(&v2, Look { ended: other.ended + 1, ..other }, AFTER);
            assert!(!drained.is(&v2), "{other:?}");
        }
        drained.keep(|_| false);
        assert!(drained.0.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_never_used_is_drained_without_a_word() {
        let (mut drained, v2) = (Drained::default(), "v2".parse().unwrap());
        let rest = Look { is_in_use: false, in_flight: 0, ended: 0 };
        drained.look(&v2, rest, AFTER);
        advance(AFTER).await;
        assert!(!drained.look(&v2, rest, AFTER) && drained.is(&v2));
    }
}
