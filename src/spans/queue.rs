//! One worker's queue of exchanges, and which exchanges get there.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
    mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
};

use prometheus::IntCounter;

use super::{context::TraceContext, record::Exchange};
use crate::model::weight::Weight;

/// The worker's end of its queue.
#[derive(Debug)]
pub struct Queue {
    exchanges: SyncSender<Box<Exchange>>,
    sampling: Sampling,
    dropped: IntCounter,
}

/// The end at which exchanges are taken from a worker's queue.
#[derive(Debug)]
pub struct Source(Receiver<Box<Exchange>>);

/// A queue that holds so many exchanges.
pub fn bounded(capacity: usize, sampling: Sampling, dropped: IntCounter) -> (Queue, Source) {
    // As that of the access log: whoever reads looks by himself, so there is nobody to be woken.
    let (exchanges, source) = sync_channel(capacity);
    (Queue { exchanges, sampling, dropped }, Source(source))
}

impl Queue {
    /// What becomes of a request; `parent` is what its client says, where that is believed, and `random` draws
    /// a uniformly distributed number.
    pub fn decide(&self, parent: Option<TraceContext>, random: impl FnOnce() -> u128) -> Decision {
        self.sampling.rules().decide(parent, random)
    }

    /// Puts an exchange there, or drops it if there is no room.
    pub fn push(&self, exchange: Exchange) {
        let spans = exchange.spans();
        if self.exchanges.try_send(Box::new(exchange)).is_err() {
            self.dropped.inc_by(spans);
        }
    }
}

impl Source {
    /// The oldest exchange.
    ///
    /// # Errors
    /// When there is none, or will be none ever again.
    pub fn take(&self) -> Result<Box<Exchange>, TryRecvError> {
        self.0.try_recv()
    }
}

/// Which exchanges are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The share of traces.
    pub sample: Weight,
    /// Whether a trace that somebody in front has begun is sampled if they say so, and only then.
    pub parent_based: bool,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is recorded.
    Sampled {
        /// In this trace.
        trace_id: u128,
        /// As a child of this span, if any.
        parent: Option<u64>,
    },
    /// It is not.
    Unsampled,
}

impl Rules {
    /// Decides as OpenTelemetry's samplers do: by the trace's id, so that whoever else decides by that and
    /// takes as many decides the same.
    fn decide(self, parent: Option<TraceContext>, random: impl FnOnce() -> u128) -> Decision {
        let (trace_id, span_id) = match parent {
            Some(TraceContext { sampled: false, .. }) if self.parent_based => return Decision::Unsampled,
            Some(TraceContext { trace_id, span_id, .. }) => (trace_id, Some(span_id)),
            None => (random().max(1), None),
        };
        let follows = self.parent_based && parent.is_some();
        if follows || self.sample.admits(trace_id as u64) {
            Decision::Sampled { trace_id, parent: span_id }
        } else {
            Decision::Unsampled
        }
    }
}

/// Rules that all workers read, and that may change while they do.
#[derive(Debug, Clone)]
pub struct Sampling(Arc<AtomicU32>);

impl Sampling {
    /// The bit above the share.
    const PARENT_BASED: u32 = 1 << 16;

    /// These rules.
    pub fn new(rules: Rules) -> Self {
        Self(Arc::new(AtomicU32::new(Self::word(rules))))
    }

    /// Others, for the requests that come from now on.
    pub fn set(&self, rules: Rules) {
        self.0.store(Self::word(rules), Relaxed);
    }

    fn word(Rules { sample, parent_based }: Rules) -> u32 {
        u32::from(sample.hundredths()) | if parent_based { Self::PARENT_BASED } else { 0 }
    }

    #[inline]
    fn rules(&self) -> Rules {
        let word = self.0.load(Relaxed);
        let sample = Weight::from_hundredths(word as u16).unwrap_or(Weight::ZERO);
        Rules { sample, parent_based: word & Self::PARENT_BASED != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::outcome::Outcome, spans::record::samples::exchange};

    const HALF: u16 = 5000;
    const LOW: u128 = 1 << 100 | 7;
    const HIGH: u128 = 1 << 100 | u64::MAX as u128;

    fn rules(hundredths: u16, parent_based: bool) -> Rules {
        Rules { sample: Weight::from_hundredths(hundredths).unwrap(), parent_based }
    }

    fn parent(trace_id: u128, sampled: bool) -> Option<TraceContext> {
        Some(TraceContext { trace_id, span_id: 3, sampled })
    }

    #[test]
    fn a_trace_that_begins_here_is_drawn_by_its_id() {
        for parent_based in [true, false] {
            let rules = rules(HALF, parent_based);
            assert_eq!(rules.decide(None, || LOW), Decision::Sampled { trace_id: LOW, parent: None });
            assert_eq!(rules.decide(None, || HIGH), Decision::Unsampled);
        }
        assert_eq!(rules(0, true).decide(None, || 1), Decision::Unsampled);
        let never_zero = rules(10_000, true).decide(None, || 0);
        assert_eq!(never_zero, Decision::Sampled { trace_id: 1, parent: None });
    }

    #[test]
    fn one_that_began_in_front_is_as_they_say_or_as_its_id_says() {
        let none = || panic!("no number is needed");
        let taken = |trace_id| Decision::Sampled { trace_id, parent: Some(3) };
        assert_eq!(rules(0, true).decide(parent(HIGH, true), none), taken(HIGH));
        assert_eq!(rules(10_000, true).decide(parent(LOW, false), none), Decision::Unsampled);
        for sampled in [true, false] {
            assert_eq!(rules(HALF, false).decide(parent(LOW, sampled), none), taken(LOW));
            assert_eq!(rules(HALF, false).decide(parent(HIGH, sampled), none), Decision::Unsampled);
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_its_spans_are_counted() {
        let dropped = IntCounter::new("x", "x").unwrap();
        let (queue, source) = bounded(2, Sampling::new(rules(1, true)), dropped.clone());
        for _ in 0..4 {
            queue.push(exchange(&[(Outcome::Success, false, Some(200), None)]));
        }
        assert_eq!(dropped.get(), 4, "two exchanges, each with an attempt");
        drop(queue);
        assert!(source.take().is_ok() && source.take().is_ok());
        assert_eq!(source.take().unwrap_err(), TryRecvError::Disconnected);
    }

    #[test]
    fn rules_change_for_everybody_at_once() {
        let sampling = Sampling::new(rules(1, false));
        let other = sampling.clone();
        assert_eq!(other.rules(), rules(1, false));
        for changed in [rules(10_000, true), rules(0, false), rules(0, true)] {
            sampling.set(changed);
            assert_eq!(other.rules(), changed);
        }
    }
}
