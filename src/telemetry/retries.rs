//! What is counted of a service's retries.
//!
//! The attempts themselves are counted like all others, each for the backend that it was made at; this is
//! about what retries were good for.

use super::cells::Counter;

/// What became of a retry, or why there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryResult {
    /// It was answered, and not with a failure.
    Success,
    /// It failed as well.
    Failure,
    /// The client went away.
    ClientAbort,
    /// It was not made: there had been too many already.
    BudgetExhausted,
    /// It was not made: there was no other endpoint, or none that might have a request more.
    NoEndpoint,
    /// It was not made: too much of the request's body had gone to be sent again.
    BodyTooLarge,
    /// It was not made: it could not have been over in time.
    NoTime,
}

impl RetryResult {
    /// Every result, in the order of its index.
    pub const ALL: [Self; 7] = [
        Self::Success,
        Self::Failure,
        Self::ClientAbort,
        Self::BudgetExhausted,
        Self::NoEndpoint,
        Self::BodyTooLarge,
        Self::NoTime,
    ];

    /// The value of the metric label `result`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::ClientAbort => "client_abort",
            Self::BudgetExhausted => "budget_exhausted",
            Self::NoEndpoint => "no_endpoint",
            Self::BodyTooLarge => "body_too_large",
            Self::NoTime => "no_time",
        }
    }
}

/// Retries by result.
type ByResult = [Counter; RetryResult::ALL.len()];

/// What one worker counts of a service's retries.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct RetryCells {
    all: ByResult,
    shielded: ByResult,
}

impl RetryCells {
    /// Counts a retry, `shielded` if it was one of a request that the canary had failed, at stable. Only for
    /// the worker that owns the cells.
    pub fn count(&self, result: RetryResult, shielded: bool) {
        self.all[result as usize].add(1);
        if shielded {
            self.shielded[result as usize].add(1);
        }
    }
}

/// The retries of one service, over all workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryTotals {
    /// By the index of their result.
    pub all: [u64; RetryResult::ALL.len()],
    /// Those of them that were shielded.
    pub shielded: [u64; RetryResult::ALL.len()],
}

impl RetryTotals {
    /// Requests that the canary has failed and whose users got an answer from stable that is no failure.
    pub fn spared(&self) -> u64 {
        self.shielded[RetryResult::Success as usize]
    }

    /// Adds what one worker has counted.
    pub(super) fn add(&mut self, cells: &RetryCells) {
        for result in RetryResult::ALL {
            self.all[result as usize] += cells.all[result as usize].get();
            self.shielded[result as usize] += cells.shielded[result as usize].get();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_have_labels_of_their_own() {
        for (i, result) in RetryResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, i);
        }
        let mut labels: Vec<_> = RetryResult::ALL.iter().map(|result| result.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), RetryResult::ALL.len());
    }

    #[test]
    fn what_is_shielded_is_counted_among_all() {
        let mut sum = RetryTotals::default();
        for _ in 0..2 {
            let cells = RetryCells::default();
            cells.count(RetryResult::Success, true);
            cells.count(RetryResult::Success, false);
            sum.add(&cells);
        }
        assert_eq!((sum.all[0], sum.shielded[0], sum.spared()), (4, 2, 2));
    }
}
