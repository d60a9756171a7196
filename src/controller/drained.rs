//! Which backends may be taken away: none of the service's requests go there, and nothing has been under way
//! there for a while. So nobody who removes pods has to guess how long that takes.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::service::ServiceTask;
use crate::{
    clock,
    model::{name::BackendName, role::Role, units::format_duration, weight::Weight},
    rollout::{event::Event, phase::Phase},
    store::record::{Kind, Rollout},
    telemetry::{ledger::Key, reader::Copies},
};

/// How a backend stands at a look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Whether anybody may be sent there, now or as the rollout goes on.
    pub(super) is_in_use: bool,
    /// Attempts that are under way there: requests, streams, tunnels and copies.
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

    /// Somebody may be sent to a backend from now on, or could be until now: whatever was seen before is over, also
    /// where nobody looks meanwhile.
    pub(super) fn is_used(&mut self, backend: &BackendName) {
        let ended = self.0.get(backend).map_or(0, |rest| rest.ended);
        self.0.insert(backend.clone(), Rest { since: Instant::now(), ended, was_used: true, is_long: false });
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

impl ServiceTask {
    /// A rollback is over once nothing is under way at the backend that it took traffic from. A worker takes
    /// up a snapshot with its next request, so counts of the same moment prove nothing yet.
    pub(super) fn notice_drained(&mut self) {
        let Some(Rollout { phase: Phase::RollingBack { since, .. }, .. }) = &self.record else { return };
        let in_flight = self.roles.canary().map_or(0, |canary| self.under_way(canary));
        if clock::now().since(*since) >= self.tick && in_flight == 0 {
            self.happen(Event::Drained);
        }
    }

    /// Tells who may be taken away, and who not any more.
    pub(super) fn look_who_is_drained(&mut self) {
        let mut drained = std::mem::take(&mut self.drained);
        // A worker takes up a snapshot with its next request: a time without a tick in it proves nothing.
        let after = self.config.rollout.drained_after.max(self.tick);
        let mut news = Vec::new();
        for backend in self.config.backends.iter().map(|backend| &backend.name) {
            let (in_flight, ended) = self.attempts(backend);
            let look = Look { is_in_use: self.is_in_use(backend), in_flight, ended };
            if drained.look(backend, look, after) {
                let what = format!(
                    "{backend} is drained: nothing was under way there for {}",
                    format_duration(after)
                );
                news.push((backend.clone(), what));
            }
            self.metrics.drained(&self.config.name, backend, drained.is(backend));
        }
        self.drained = drained;
        for (backend, what) in news {
            self.tell_of_drained(&backend, &what);
            self.note(Kind::Drained, what);
        }
    }

    /// Takes note of backends that somebody may be sent to.
    pub(super) fn use_backends(&mut self) {
        let backends = self.config.backends.iter().map(|backend| &backend.name);
        for backend in backends.filter(|backend| self.is_in_use(backend)).cloned().collect::<Vec<_>>() {
            self.drained.is_used(&backend);
            self.metrics.drained(&self.config.name, &backend, false);
        }
    }

    /// Whether anybody, or a copy, may be sent to a backend, now or as the rollout goes on.
    pub(super) fn is_in_use(&self, backend: &BackendName) -> bool {
        let goes_on = |phase: &Phase| phase.is_running() && !matches!(phase, Phase::RollingBack { .. });
        match self.roles.role_of(backend) {
            Some(Role::Stable) => true,
            Some(Role::Canary) => {
                self.weight > Weight::ZERO
                    || self.is_mirrored()
                    || self.record.as_ref().is_some_and(|record| goes_on(&record.phase))
            }
            None => false,
        }
    }

    /// Whether the canary gets copies whether there is a rollout or not.
    pub(super) fn is_mirrored(&self) -> bool {
        self.config.mirror.as_ref().is_some_and(|mirror| mirror.percent > Weight::ZERO)
    }

    /// What is under way at a canary that is taken back. Where copies go on, they are not waited for: there is
    /// always one.
    pub(super) fn under_way(&self, canary: &BackendName) -> u64 {
        let copies = if self.is_mirrored() { 0 } else { self.copies_at(canary).in_flight };
        self.requests_at(canary).0 + copies
    }

    /// Attempts at a backend, copies too: those that are under way, and those that have ended.
    fn attempts(&self, backend: &BackendName) -> (u64, u64) {
        let (copies, (in_flight, ended)) = (self.copies_at(backend), self.requests_at(backend));
        (in_flight + copies.in_flight, ended + copies.ended)
    }

    /// The same without copies, in whatever role.
    fn requests_at(&self, backend: &BackendName) -> (u64, u64) {
        let of = |role| self.now.totals.get(&(self.config.name.clone(), backend.clone(), role));
        let each = Role::ALL.into_iter().filter_map(of);
        each.fold((0, 0), |(in_flight, ended), of| (in_flight + of.in_flight, ended + of.requests()))
    }

    fn copies_at(&self, backend: &BackendName) -> Copies {
        let key = Key { service: self.config.name.clone(), backend: backend.clone() };
        self.now.copies.get(&key).copied().unwrap_or_default()
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
    async fn a_use_that_no_look_has_seen_is_one() {
        let (mut drained, v2) = (Drained::default(), "v2".parse().unwrap());
        let rest = Look { is_in_use: false, in_flight: 0, ended: 5 };
        assert!(!drained.look(&v2, rest, AFTER));
        advance(AFTER).await;
        // Nobody has anything to say of one that has never been used.
        assert!(!drained.look(&v2, rest, AFTER) && drained.is(&v2));
        drained.is_used(&v2);
        assert!(!drained.is(&v2));
        assert!(!drained.look(&v2, rest, AFTER));
        advance(AFTER).await;
        assert!(drained.look(&v2, rest, AFTER) && drained.is(&v2));
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
