//! Counters with one writer and any number of readers.

use std::{
    marker::PhantomData,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::users::UserCells;
use crate::model::{
    histogram::{self, BLOCK, BUCKETS, Histogram},
    outcome::Outcome,
};

/// A number that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the number. Only its one writer may call this: the load and the store are apart.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes one away; for gauges, which begin at zero and come back to it.
    #[inline]
    pub fn sub_one(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(1), Relaxed);
    }

    /// Sets the number to zero. Only its one writer may call this.
    #[inline]
    pub(super) fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    /// The number as of some moment not long ago.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Latencies that one thread counts and others read.
#[derive(Debug)]
pub(super) struct Latencies {
    buckets: Box<[Counter]>,
    /// A bit for each block of buckets that is not empty, so that a reader goes over no others.
    used: Counter,
    nanos: Counter,
}

const _: () = assert!(BUCKETS.div_ceil(BLOCK) <= u64::BITS as usize, "each block has a bit");

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| Counter::default()).collect(), ..Self::none() }
    }
}

impl Latencies {
    /// What counts none.
    fn none() -> Self {
        Self { buckets: Box::default(), used: Counter::default(), nanos: Counter::default() }
    }

    /// Whether it counts none, whatever comes.
    fn is_none(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Counts one. Only for the one writer.
    #[inline]
    pub(super) fn record(&self, latency: Duration) {
        let index = histogram::index(latency);
        let Some(bucket) = self.buckets.get(index) else { return };
        bucket.add(1);
        let block = 1 << (index / BLOCK);
        if self.used.get() & block == 0 {
            self.used.add(block);
        }
        self.nanos.add(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds all of them to `into`.
    pub(super) fn add_to(&self, into: &mut Histogram) {
        let mut left = self.used.get();
        if left != 0 {
            let (first, last) = (left.trailing_zeros() as usize, left.ilog2() as usize);
            into.keep(&(first * BLOCK..((last + 1) * BLOCK).min(BUCKETS)));
        }
        while left != 0 {
            let first = left.trailing_zeros() as usize * BLOCK;
            let counters = &self.buckets[first..(first + BLOCK).min(BUCKETS)];
            into.add_block(first, counters.iter().map(Counter::get));
            left &= left - 1;
        }
        into.add_nanos(self.nanos.get());
    }
}

/// What one worker counts about one backend in one role.
///
/// Aligned to two cache lines (they are fetched in pairs) so that the cells of two workers never
/// share one.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Cells {
    outcomes: [Counter; Outcome::ALL.len()],
    failures: Counter,
    in_flight: Counter,
    connect_failures: Counter,
    /// Requests that were to go there and found no endpoint, or no place at one.
    unserved: Counter,
    latency: Latencies,
    /// Those of answers that failed, once there is one: most never have any.
    failed_latency: OnceLock<Latencies>,
    /// Of the users whose attempts these are, where they are the unit.
    users: Option<Box<UserCells>>,
    /// What these are a part of, which counts the same.
    whole: Option<Arc<Self>>,
}

impl Cells {
    /// Cells for how attempts end, and not for how long they take.
    pub(super) fn without_latency() -> Self {
        Self { latency: Latencies::none(), ..Self::default() }
    }

    /// The same for a part of what `whole` counts.
    pub(super) fn part_of(whole: &Arc<Self>) -> Self {
        Self { whole: Some(Arc::clone(whole)), ..Self::without_latency() }
    }

    /// The same with what is known of users.
    pub(super) fn with_users(self, users: Option<UserCells>) -> Self {
        Self { users: users.map(Box::new), ..self }
    }

    /// What is known of users, where they are the unit.
    pub(super) fn users(&self) -> Option<&UserCells> {
        self.users.as_deref()
    }

    fn whole(&self) -> &Self {
        self.whole.as_deref().unwrap_or(self)
    }

    #[inline]
    fn end(&self, slot: Option<u16>, outcome: Outcome, failed: bool, latency: Option<Duration>) {
        self.outcomes[outcome.index()].add(1);
        if failed {
            self.failures.add(1);
        }
        if let Some(latency) = latency.filter(|_| !self.latency.is_none()) {
            self.latency.record(latency);
            if failed {
                self.failed_latency.get_or_init(Latencies::default).record(latency);
            }
        }
        if let Some(users) = self.users.as_ref().filter(|_| outcome.counts()) {
            users.end(slot, failed, latency);
        }
    }

    /// Attempts that ended with this outcome.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome.index()].get()
    }

    /// Attempts that ended and count against the backend.
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// Attempts that have begun and not ended.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.get()
    }

    /// Connections that could not be made.
    pub fn connect_failures(&self) -> u64 {
        self.connect_failures.get()
    }

    /// Requests that were to go there and found no endpoint, or no place at one.
    pub fn unserved(&self) -> u64 {
        self.unserved.get()
    }

    /// Adds the latencies of all responses to `into`.
    pub fn add_latency(&self, into: &mut Histogram) {
        self.latency.add_to(into);
    }

    /// Adds the latencies of those responses to `into` that failed.
    pub fn add_failed_latency(&self, into: &mut Histogram) {
        if let Some(failed) = self.failed_latency.get() {
            failed.add_to(into);
        }
    }
}

/// The right to write one worker's cells. Cannot leave the worker's thread, so there is one writer.
#[derive(Debug, Clone)]
pub struct Writer {
    cells: Arc<Cells>,
    not_send: PhantomData<*const ()>,
}

impl Writer {
    /// Only what a worker owns hands these out, to that worker.
    pub(super) fn new(cells: Arc<Cells>) -> Self {
        Self { cells, not_send: PhantomData }
    }

    /// An attempt begins.
    #[inline]
    pub fn begin(&self) {
        self.cells.whole().in_flight.add(1);
    }

    /// An attempt ends, and counts against the backend if it `failed`; `latency` from request to the end of
    /// its response, where there was one.
    #[inline]
    pub fn end(&self, outcome: Outcome, failed: bool, latency: Option<Duration>) {
        self.end_pinned(None, outcome, failed, latency);
    }

    /// The same of a client that is pinned by this slot, if it is.
    #[inline]
    pub fn end_pinned(&self, slot: Option<u16>, outcome: Outcome, failed: bool, latency: Option<Duration>) {
        let cells = &*self.cells;
        cells.whole().in_flight.sub_one();
        cells.end(slot, outcome, failed, latency);
        if let Some(whole) = &cells.whole {
            whole.end(slot, outcome, failed, latency);
        }
    }

    /// An attempt ends without having said anything about the backend, and is not counted.
    #[inline]
    pub fn forget(&self) {
        self.cells.whole().in_flight.sub_one();
    }

    /// A request finds no endpoint, or no place at one. Of the backend that is no attempt.
    pub fn unserved(&self) {
        self.cells.whole().unserved.add(1);
    }

    /// A connection could not be made.
    pub fn connect_failed(&self) {
        self.cells.whole().connect_failures.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_in_flight_until_it_ends() {
        let cells = Arc::new(Cells::default());
        let writer = Writer::new(Arc::clone(&cells));
        writer.begin();
        assert_eq!((cells.in_flight(), cells.outcome(Outcome::Success)), (1, 0));
        writer.end(Outcome::Success, true, Some(Duration::from_millis(2)));
        assert_eq!((cells.in_flight(), cells.outcome(Outcome::Success), cells.failures()), (0, 1, 1));
        let mut latency = Histogram::default();
        cells.add_latency(&mut latency);
        assert_eq!((latency.total(), latency.sum_seconds()), (1, 0.002));
    }

    #[test]
    fn what_failed_is_also_told_apart() {
        let cells = Arc::new(Cells::default());
        let writer = Writer::new(Arc::clone(&cells));
        for (millis, failed) in [(1, true), (8, false), (64, false)] {
            writer.begin();
            writer.end(Outcome::Success, failed, Some(Duration::from_millis(millis)));
        }
        let (mut all, mut failed) = (Histogram::default(), Histogram::default());
        cells.add_latency(&mut all);
        cells.add_failed_latency(&mut failed);
        assert_eq!((all.total(), failed.total(), failed.sum_seconds()), (3, 1, 0.001));
    }

    #[test]
    fn what_a_part_counts_the_whole_counts_too() {
        let whole = Arc::new(Cells::default());
        let part = Arc::new(Cells::part_of(&whole));
        let writer = Writer::new(Arc::clone(&part));
        writer.begin();
        assert_eq!((whole.in_flight(), part.in_flight()), (1, 0));
        writer.end(Outcome::ServerError, true, Some(Duration::from_millis(2)));
        writer.begin();
        writer.forget();
        writer.connect_failed();
        writer.unserved();
        let latencies = |cells: &Cells| {
            let mut latency = Histogram::default();
            cells.add_latency(&mut latency);
            latency.total()
        };
        for cells in [&part, &whole] {
            assert_eq!((cells.outcome(Outcome::ServerError), cells.failures()), (1, 1));
        }
        assert_eq!((latencies(&part), latencies(&whole)), (0, 1));
        assert_eq!((part.unserved(), whole.unserved()), (0, 1));
        assert_eq!((part.connect_failures(), whole.connect_failures(), whole.in_flight()), (0, 1, 0));
    }
}
