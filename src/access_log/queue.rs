//! One worker's queue of records.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use prometheus::IntCounter;

use super::record::Record;
use crate::model::weight::Weight;

/// The worker's end of its queue.
#[derive(Debug)]
pub struct Queue {
    records: SyncSender<Box<Record>>,
    sample: Weight,
    dropped: IntCounter,
}

/// The writer's end of a worker's queue.
#[derive(Debug)]
pub(super) struct Source(Receiver<Box<Record>>);

/// A queue that holds so many records, for a share of all exchanges.
pub(super) fn bounded(capacity: usize, sample: Weight, dropped: IntCounter) -> (Queue, Source) {
    // A ring of pointers. Its reader only ever looks and never waits, so there is nobody whom a record
    // would have to wake, and what would do that costs one load.
    let (records, source) = sync_channel(capacity);
    (Queue { records, sample, dropped }, Source(source))
}

impl Queue {
    /// Whether the next exchange is logged. `random` draws a uniformly distributed number.
    #[inline]
    pub fn takes(&self, random: impl FnOnce() -> u64) -> bool {
        self.sample == Weight::FULL || self.sample.admits(random())
    }

    /// Puts a record there, or drops it if there is no room.
    pub fn push(&self, record: Record) {
        if self.records.try_send(Box::new(record)).is_err() {
            self.dropped.inc();
        }
    }
}

impl Source {
    /// The oldest record.
    ///
    /// # Errors
    /// When there is none, or will be none ever again.
    pub(super) fn take(&self) -> Result<Box<Record>, TryRecvError> {
        self.0.try_recv()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_log::format::samples::record;

    fn queue(capacity: usize, sample: Weight) -> (Queue, Source, IntCounter) {
        let dropped = IntCounter::new("x", "x").unwrap();
        let (queue, source) = bounded(capacity, sample, dropped.clone());
        (queue, source, dropped)
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (queue, source, dropped) = queue(3, Weight::FULL);
        for status in 200..205 {
            queue.push(Record { status: Some(status), ..record() });
        }
        assert_eq!(dropped.get(), 2);
        drop(queue);
        let statuses: Vec<_> = std::iter::from_fn(|| source.take().ok()?.status).collect();
        assert_eq!(statuses, [200, 201, 202]);
        assert_eq!(source.take().unwrap_err(), TryRecvError::Disconnected);
    }

    #[test]
    fn a_sample_takes_its_share_and_all_draws_nothing() {
        let (all, ..) = queue(1, Weight::FULL);
        assert!(all.takes(|| panic!("no number is needed")));
        let (quarter, ..) = queue(1, Weight::from_percent(25.0).unwrap());
        assert!(quarter.takes(|| u64::MAX / 4 - 1) && !quarter.takes(|| u64::MAX / 4 + 2));
    }
}
