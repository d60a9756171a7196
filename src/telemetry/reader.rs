//! The control half's side of the counts: sums over workers, and what came in since the last look.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use super::{
    cells::Cells,
    ledger::{Hub, Key, Part},
};
pub use super::{
    endpoints::{Counted, Endpoints},
    mirror::Pairs,
    retries::RetryTotals,
    users::{Mark, Marked, Others, Rules},
};
use crate::model::{
    histogram::Histogram,
    name::{BackendName, ServiceName},
    outcome::Outcome,
    role::Role,
};

/// One backend's counts in one role, summed over the workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attempts by outcome, in the order of [`Outcome::ALL`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// Those of them that count against the backend.
    pub failures: u64,
    /// Attempts that have begun and not ended.
    pub in_flight: u64,
    /// Connections that could not be made.
    pub connect_failures: u64,
    /// Requests that found no endpoint, or no place at one: attempts that never began, in none of the above.
    pub unserved: u64,
    /// Time from request to the end of the response.
    pub latency: Histogram,
    /// The same of those responses that failed.
    pub failed_latency: Histogram,
    /// Those of them that endpoints served while they were warming up, if any did.
    pub warming: Option<Box<Share>>,
    /// Those of them in each half, if the backend was split against itself.
    pub halves: [Option<Box<Share>>; 2],
    /// Those of them that were sent to the role, whatever chance would have had it.
    pub sent: Option<Box<Share>>,
    /// Those of them on each route that is counted apart and has had any, without those that were sent.
    pub routes: BTreeMap<Arc<str>, Counted>,
    /// Those of such routes that were sent.
    pub sent_routes: BTreeMap<Arc<str>, Counted>,
}

/// A part of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// How many requests.
    pub counted: Counted,
    /// How long they took.
    pub latency: Histogram,
    /// The same of those that failed.
    pub failed_latency: Histogram,
}

impl Share {
    fn since(now: Option<&Self>, earlier: Option<&Self>) -> Option<Box<Self>> {
        let now = now?;
        Some(Box::new(match earlier {
            Some(earlier) => Self {
                counted: now.counted.since(earlier.counted),
                latency: now.latency.since(&earlier.latency),
                failed_latency: now.failed_latency.since(&earlier.failed_latency),
            },
            None => now.clone(),
        }))
    }

    fn merge(mine: &mut Option<Box<Self>>, other: Option<&Self>) {
        if let Some(other) = other {
            let mine = mine.get_or_insert_default();
            mine.counted.add(other.counted);
            mine.latency.merge(&other.latency);
            mine.failed_latency.merge(&other.failed_latency);
        }
    }

    /// Counts in what was read of a worker's cells.
    fn add(&mut self, seen: &Totals) {
        self.counted.add(Counted { requests: seen.requests(), failures: seen.failures });
        self.latency.merge(&seen.latency);
        self.failed_latency.merge(&seen.failed_latency);
    }
}

impl Share {
    /// How long those took that did not fail.
    pub fn answered(&self) -> Cow<'_, Histogram> {
        less(&self.latency, &self.failed_latency)
    }
}

fn less<'h>(all: &'h Histogram, part: &Histogram) -> Cow<'h, Histogram> {
    if part.is_empty() { Cow::Borrowed(all) } else { Cow::Owned(all.since(part)) }
}

impl Totals {
    /// How long those took that did not fail.
    pub fn answered(&self) -> Cow<'_, Histogram> {
        less(&self.latency, &self.failed_latency)
    }

    /// Attempts that ended and say something about the backend.
    pub fn requests(&self) -> u64 {
        let counting = Outcome::ALL.into_iter().filter(|outcome| outcome.counts());
        counting.map(|outcome| self.outcomes[outcome.index()]).sum()
    }

    /// What came in since `earlier`, an older reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let outcomes = std::array::from_fn(|i| self.outcomes[i].saturating_sub(earlier.outcomes[i]));
        Self {
            outcomes,
            failures: self.failures.saturating_sub(earlier.failures),
            in_flight: self.in_flight,
            connect_failures: self.connect_failures.saturating_sub(earlier.connect_failures),
            unserved: self.unserved.saturating_sub(earlier.unserved),
            latency: self.latency.since(&earlier.latency),
            failed_latency: self.failed_latency.since(&earlier.failed_latency),
            warming: Share::since(self.warming.as_deref(), earlier.warming.as_deref()),
            halves: std::array::from_fn(|i| {
                Share::since(self.halves[i].as_deref(), earlier.halves[i].as_deref())
            }),
            sent: Share::since(self.sent.as_deref(), earlier.sent.as_deref()),
            routes: by_route_since(&self.routes, &earlier.routes),
            sent_routes: by_route_since(&self.sent_routes, &earlier.sent_routes),
        }
    }

    /// Adds every count of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.outcomes.iter_mut().zip(&other.outcomes) {
            *mine += theirs;
        }
        self.failures += other.failures;
        self.in_flight += other.in_flight;
        self.connect_failures += other.connect_failures;
        self.unserved += other.unserved;
        self.latency.merge(&other.latency);
        self.failed_latency.merge(&other.failed_latency);
        Share::merge(&mut self.warming, other.warming.as_deref());
        for (mine, theirs) in self.halves.iter_mut().zip(&other.halves) {
            Share::merge(mine, theirs.as_deref());
        }
        Share::merge(&mut self.sent, other.sent.as_deref());
        let routes = [(&mut self.routes, &other.routes), (&mut self.sent_routes, &other.sent_routes)];
        for (mine, theirs) in routes {
            for (name, counted) in theirs {
                mine.entry(Arc::clone(name)).or_default().add(*counted);
            }
        }
    }

    /// Counts a worker's cells in.
    fn add(&mut self, cells: &Cells) {
        for outcome in Outcome::ALL {
            self.outcomes[outcome.index()] += cells.outcome(outcome);
        }
        self.failures += cells.failures();
        self.in_flight += cells.in_flight();
        self.connect_failures += cells.connect_failures();
        self.unserved += cells.unserved();
        // First, so that each of these is known as one of all.
        cells.add_failed_latency(&mut self.failed_latency);
        cells.add_latency(&mut self.latency);
    }
}

fn by_route_since(
    now: &BTreeMap<Arc<str>, Counted>,
    earlier: &BTreeMap<Arc<str>, Counted>,
) -> BTreeMap<Arc<str>, Counted> {
    let since = |(name, now): (&Arc<str>, &Counted)| {
        (Arc::clone(name), now.since(earlier.get(name).copied().unwrap_or_default()))
    };
    now.iter().map(since).collect()
}

/// What a reading is by.
pub type Series = (ServiceName, BackendName, Role);

/// Reads every worker's counts and sums them.
///
/// The workers go on meanwhile, so the parts of one reading may be some microseconds apart; a
/// request is never missed, it is in this reading or in the next.
pub fn read(hub: &Hub) -> BTreeMap<Series, Totals> {
    let mut sums: BTreeMap<Series, Totals> = BTreeMap::new();
    for (ledger, _) in hub.workers() {
        // Copies are none of its requests.
        for (entry, role, part, cells) in ledger.cells().filter(|(.., part, _)| *part != Part::Copies) {
            let key = &entry.key;
            let sum = sums.entry((key.service.clone(), key.backend.clone(), role)).or_default();
            let apart = match part {
                Part::Rest => {
                    sum.add(cells);
                    continue;
                }
                Part::Route(place) | Part::SentRoute(place) => {
                    let is_sent = matches!(part, Part::SentRoute(_));
                    let routes = if is_sent { &mut sum.sent_routes } else { &mut sum.routes };
                    let name = Arc::clone(&entry.routes[usize::from(place)]);
                    routes.entry(name).or_default().add(counted(cells));
                    continue;
                }
                Part::Warming => &mut sum.warming,
                Part::Half(half) => &mut sum.halves[usize::from(half)],
                Part::Sent => &mut sum.sent,
                Part::Copies => continue,
            };
            // Read once, so that the sum less a part is what is left, whatever is counted meanwhile.
            let mut seen = Totals::default();
            seen.add(cells);
            apart.get_or_insert_default().add(&seen);
            sum.merge(&seen);
        }
    }
    sums
}

/// What is known of the users of one backend in one role, where they are the unit.
#[derive(Debug, Clone, Default)]
pub struct UserTotals {
    /// Of requests in none of the halves.
    whole: (Marked, Others),
    /// Of those in each half, if the backend was split against itself.
    pub halves: [(Marked, Others); 2],
    /// Of those on each route that is counted apart, which are in the whole as well; only failures.
    pub routes: BTreeMap<Arc<str>, (Marked, Others)>,
}

impl UserTotals {
    /// Of all requests.
    pub fn all(&self) -> (Marked, Others) {
        let (mut marked, mut others) = self.whole.clone();
        for (half, more) in &self.halves {
            marked.merge(half);
            others.add(more);
        }
        (marked, others)
    }
}

/// Reads what every worker knows of users, where they are the unit.
pub fn read_users(hub: &Hub) -> BTreeMap<Series, UserTotals> {
    let mut sums: BTreeMap<Series, UserTotals> = BTreeMap::new();
    for (ledger, _) in hub.workers() {
        for (entry, role, part, cells) in ledger.cells() {
            let Some(users) = cells.users() else { continue };
            let key = &entry.key;
            let sum = sums.entry((key.service.clone(), key.backend.clone(), role)).or_default();
            users.add_to(match part {
                Part::Half(half) => &mut sum.halves[usize::from(half)],
                Part::Route(place) => {
                    sum.routes.entry(Arc::clone(&entry.routes[usize::from(place)])).or_default()
                }
                Part::Rest | Part::Warming | Part::Sent | Part::Copies | Part::SentRoute(_) => &mut sum.whole,
            });
        }
    }
    sums
}

/// Copies of requests that a backend gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copies {
    /// Those that have been sent and not been answered to the end.
    pub in_flight: u64,
    /// Those that have ended.
    pub ended: u64,
}

/// Reads what every worker has counted of copies at each backend, and sums it.
pub fn read_copies(hub: &Hub) -> BTreeMap<Key, Copies> {
    let mut sums: BTreeMap<Key, Copies> = BTreeMap::new();
    for (ledger, _) in hub.workers() {
        for (entry, _, _, cells) in ledger.cells().filter(|(.., part, _)| *part == Part::Copies) {
            let sum = sums.entry(entry.key.clone()).or_default();
            sum.in_flight += cells.in_flight();
            sum.ended += counted(cells).requests;
        }
    }
    sums
}

/// Reads what every worker has counted of each endpoint, and sums it.
pub fn read_endpoints(hub: &Hub) -> Endpoints<Counted> {
    let mut sums = Endpoints::default();
    (0..hub.worker_count()).for_each(|worker| hub.endpoints(worker).sum(&mut sums));
    sums
}

fn counted(cells: &Cells) -> Counted {
    let counting = Outcome::ALL.into_iter().filter(|outcome| outcome.counts());
    let requests = counting.map(|outcome| cells.outcome(outcome)).sum();
    Counted { requests, failures: cells.failures() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::ledger::Entry;

    #[test]
    fn workers_are_summed_and_aborts_do_not_count() {
        let hub = Hub::new(2);
        let key = Key { service: "web".parse().unwrap(), backend: "v1".parse().unwrap() };
        for worker in 0..2 {
            let ledger = hub.open_ledger(worker, Arc::new([key.clone().into()]));
            let writer = ledger.writer(0, Role::Stable, Part::Rest);
            for outcome in [Outcome::Success, Outcome::Timeout, Outcome::ClientAbort] {
                writer.begin();
                writer.end(outcome, outcome == Outcome::Timeout, None);
            }
        }
        let readings = read(&hub);
        let totals = &readings[&(key.service, key.backend, Role::Stable)];
        assert_eq!((totals.requests(), totals.failures, totals.in_flight), (4, 2, 0));
    }

    #[test]
    fn copies_are_known_by_backend_and_are_none_of_its_requests() {
        let hub = Hub::new(2);
        let key = Key { service: "web".parse().unwrap(), backend: "v2".parse().unwrap() };
        for worker in 0..2 {
            let writer =
                hub.open_ledger(worker, Arc::new([key.clone().into()])).writer(0, Role::Canary, Part::Copies);
            writer.begin();
            writer.end(Outcome::Success, false, Some(Duration::from_secs(1)));
            writer.begin();
        }
        assert_eq!(read_copies(&hub), BTreeMap::from([(key, Copies { in_flight: 2, ended: 2 })]));
        assert!(read(&hub).is_empty());
    }

    #[test]
    fn users_are_told_apart_by_slots_over_all_workers() {
        let hub = Hub::new(2);
        let key = Key { service: "web".parse().unwrap(), backend: "v1".parse().unwrap() };
        let rules = hub.users().of(&key.service);
        let users = Some(Arc::clone(&rules));
        let entry = Entry { key: key.clone(), routes: Arc::new(["/a".into()]), users };
        let parts =
            [Part::Rest, Part::Route(0), Part::Half(true), Part::Warming, Part::Sent, Part::SentRoute(0)];
        for worker in 0..2 {
            let ledger = hub.open_ledger(worker, Arc::new([entry.clone()]));
            for (slot, part) in (0..).zip(parts) {
                let writer = ledger.writer(0, Role::Stable, part);
                // One of each part is both workers'.
                for slot in [10 * slot, 10 * slot + 1 + worker as u16] {
                    writer.begin();
                    writer.end_pinned(Some(slot), Outcome::ServerError, true, None);
                }
                writer.begin();
                writer.end_pinned(Some(9_000), Outcome::ClientAbort, false, None);
            }
        }
        let totals = read_users(&hub).remove(&(key.service, key.backend, Role::Stable)).unwrap();
        let count = |(marked, _): &(Marked, Others), mark| rules.slots(marked, mark).count();
        // Three of the rest, of the route and of the half; what is warming up or was sent says nothing.
        assert_eq!((count(&totals.all(), Mark::Seen), count(&totals.all(), Mark::Failed)), (9, 9));
        assert_eq!(count(&totals.halves[1], Mark::Failed), 3);
        let route = &totals.routes["/a"];
        assert_eq!((count(route, Mark::Seen), count(route, Mark::Failed)), (0, 3));
    }

    #[test]
    fn parts_are_told_apart_and_are_in_the_whole() {
        let hub = Hub::new(2);
        let key = Key { service: "web".parse().unwrap(), backend: "v1".parse().unwrap() };
        let entry = Entry { key: key.clone(), routes: Arc::new(["/a".into(), "/b".into()]), users: None };
        let serve = |part| {
            for worker in 0..2 {
                let ledger = hub.open_ledger(worker, Arc::new([entry.clone()]));
                let writer = ledger.writer(0, Role::Stable, part);
                writer.begin();
                let outcome = if part == Part::Rest { Outcome::Success } else { Outcome::ServerError };
                writer.end(outcome, outcome.is_failure(), Some(Duration::from_millis(1)));
            }
        };
        let read = || read(&hub).remove(&(key.service.clone(), key.backend.clone(), Role::Stable)).unwrap();
        serve(Part::Route(0));
        let before = read();
        let parts = [
            Part::Rest,
            Part::Warming,
            Part::Half(true),
            Part::Sent,
            Part::SentRoute(1),
            Part::Route(0),
            Part::Route(1),
        ];
        parts.into_iter().for_each(serve);
        let gained = read().since(&before);
        let two = Counted { requests: 2, failures: 2 };
        assert_eq!((gained.requests(), gained.failures, gained.latency.total()), (14, 12, 14));
        assert_eq!((gained.failed_latency.total(), gained.answered().total()), (12, 2));
        let [one, other] = &gained.halves;
        let other = other.as_ref().unwrap();
        assert_eq!((one, other.counted, other.latency.total()), (&None, two, 2));
        let warming = gained.warming.unwrap();
        assert_eq!((warming.counted, warming.latency.total()), (two, 2));
        assert_eq!(gained.routes, BTreeMap::from([("/a".into(), two), ("/b".into(), two)]));
        let sent = gained.sent.unwrap();
        assert_eq!((sent.counted, sent.latency.total()), (Counted { requests: 4, failures: 4 }, 4));
        assert_eq!(gained.sent_routes, BTreeMap::from([("/b".into(), two)]));
    }
}
