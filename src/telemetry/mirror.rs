//! What is counted of requests that were copied to the canary.
//!
//! Copies are not drawn like requests are, so what becomes of them stands here and never beside the counts
//! of requests: nobody may take them for evidence about users.

use std::time::Duration;

use super::cells::{Counter, Latencies};
use crate::model::{histogram::Histogram, role::Role};

/// What became of a request that was to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MirrorResult {
    /// Both have answered, with the same status.
    Match,
    /// Both have answered, with another status each; or stable did not answer, and the canary did.
    Mismatch,
    /// The canary has not answered, or not to the end.
    Failed,
    /// The canary has answered, and stable's client went away before that could be compared.
    Unpaired,
    /// Not sent: its body was too large.
    DroppedBody,
    /// Not sent: there were as many copies as there may be at a time.
    DroppedInFlight,
    /// Not sent: the canary had no endpoint for it, or no room.
    DroppedNoEndpoint,
    /// Not sent, because the request did not come to its end; or cut when Tidegate ended.
    DroppedIncomplete,
}

impl MirrorResult {
    /// Every result, in the order of its index.
    pub const ALL: [Self; 8] = [
        Self::Match,
        Self::Mismatch,
        Self::Failed,
        Self::Unpaired,
        Self::DroppedBody,
        Self::DroppedInFlight,
        Self::DroppedNoEndpoint,
        Self::DroppedIncomplete,
    ];

    /// The value of the metric label `result`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Mismatch => "mismatch",
            Self::Failed => "failed",
            Self::Unpaired => "unpaired",
            Self::DroppedBody => "dropped_body",
            Self::DroppedInFlight => "dropped_in_flight",
            Self::DroppedNoEndpoint => "dropped_no_endpoint",
            Self::DroppedIncomplete => "dropped_incomplete",
        }
    }
}

/// Which of the two has failed a request that both have had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailedBy {
    /// Neither.
    None,
    /// Stable alone.
    Stable,
    /// The canary alone.
    Canary,
    /// Both.
    Both,
}

impl FailedBy {
    /// Each of them, in the order of its index.
    pub const ALL: [Self; 4] = [Self::None, Self::Stable, Self::Canary, Self::Both];

    /// Who it was.
    pub const fn of(stable: bool, canary: bool) -> Self {
        match (stable, canary) {
            (false, false) => Self::None,
            (true, false) => Self::Stable,
            (false, true) => Self::Canary,
            (true, true) => Self::Both,
        }
    }

    /// The value of the metric label `failed_by`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Stable => "stable",
            Self::Canary => "canary",
            Self::Both => "both",
        }
    }
}

/// What one worker counts of a service's mirror.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct MirrorCells {
    results: [Counter; MirrorResult::ALL.len()],
    pairs: [Counter; FailedBy::ALL.len()],
    latency: [Latencies; Role::ALL.len()],
    /// Pairs in which the canary was not slower than it may be, and in which it was.
    compared: [Counter; 2],
}

impl MirrorCells {
    /// Counts what became of a request that was to be copied. Only for the worker that owns the cells, and so
    /// are the others that write.
    pub fn count(&self, result: MirrorResult) {
        self.results[result as usize].add(1);
    }

    /// Counts a request that both have had.
    pub fn count_pair(&self, failed_by: FailedBy) {
        self.pairs[failed_by as usize].add(1);
    }

    /// Counts how long each of the two took to begin to answer a request that both have answered.
    pub fn record(&self, stable: Duration, canary: Duration) {
        self.latency[Role::Stable.index()].record(stable);
        self.latency[Role::Canary.index()].record(canary);
    }

    /// Counts a request for which it could be said whether the canary took longer than it may.
    pub fn compare(&self, slower: bool) {
        self.compared[usize::from(slower)].add(1);
    }
}

/// The mirror of one service, over all workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MirrorTotals {
    /// Requests that were to be copied, by the index of what became of them.
    pub results: [u64; MirrorResult::ALL.len()],
    /// Requests that both have had, by the index of who failed them.
    pub pairs: [u64; FailedBy::ALL.len()],
    /// Of requests that both have answered: how long each took to begin, by the index of its role.
    pub latency: [Histogram; Role::ALL.len()],
    /// Those for which it could be said, by whether the canary took longer than it may.
    pub compared: [u64; 2],
    /// Copies that have been sent and not been answered to the end, which the ledgers know.
    pub in_flight: u64,
}

impl MirrorTotals {
    /// Adds what one worker has counted.
    pub(super) fn add(&mut self, cells: &MirrorCells) {
        for (sum, counter) in self.results.iter_mut().zip(&cells.results) {
            *sum += counter.get();
        }
        for (sum, counter) in self.pairs.iter_mut().zip(&cells.pairs) {
            *sum += counter.get();
        }
        for (sum, counter) in self.compared.iter_mut().zip(&cells.compared) {
            *sum += counter.get();
        }
        for (sum, latencies) in self.latency.iter_mut().zip(&cells.latency) {
            latencies.add_to(sum);
        }
    }
}

/// How requests have ended that both have had: what is evidence of a mirror.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Neither has failed them.
    pub none: u64,
    /// Stable alone has.
    pub stable: u64,
    /// The canary alone has.
    pub canary: u64,
    /// Both have.
    pub both: u64,
    /// Those of which both times are known.
    pub compared: u64,
    /// Those of them for which the canary took longer than it may.
    pub slower: u64,
}

impl Pairs {
    /// Adds what one worker has counted.
    pub(super) fn add(&mut self, cells: &MirrorCells) {
        let Self { none, stable, canary, both, compared, slower } = self;
        let pairs = |failed_by: FailedBy| cells.pairs[failed_by as usize].get();
        let [not_slower, was_slower] = cells.compared.each_ref().map(Counter::get);
        *none += pairs(FailedBy::None);
        *stable += pairs(FailedBy::Stable);
        *canary += pairs(FailedBy::Canary);
        *both += pairs(FailedBy::Both);
        *compared += not_slower + was_slower;
        *slower += was_slower;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense() {
        for (i, result) in MirrorResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, i);
        }
        for (i, failed_by) in FailedBy::ALL.into_iter().enumerate() {
            assert_eq!(failed_by as usize, i);
        }
    }

    #[test]
    fn workers_are_summed() {
        let mut sum = MirrorTotals::default();
        for _ in 0..2 {
            let cells = MirrorCells::default();
            cells.count(MirrorResult::Mismatch);
            cells.count_pair(FailedBy::of(false, true));
            cells.record(Duration::from_millis(1), Duration::from_millis(3));
            sum.add(&cells);
        }
        assert_eq!(sum.results[MirrorResult::Mismatch as usize], 2);
        assert_eq!(sum.pairs, [0, 0, 2, 0]);
        let mut pairs = Pairs::default();
        let cells = MirrorCells::default();
        cells.count_pair(FailedBy::Canary);
        cells.count_pair(FailedBy::None);
        [true, false, true].into_iter().for_each(|slower| cells.compare(slower));
        pairs.add(&cells);
        assert_eq!(pairs, Pairs { none: 1, canary: 1, compared: 3, slower: 2, ..Pairs::default() });
        let [stable, canary] = &sum.latency;
        assert_eq!((stable.total(), stable.sum_seconds(), canary.sum_seconds()), (2, 0.002, 0.006));
    }
}
