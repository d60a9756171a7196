//! The last things that happened to a service.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use super::status::Occurrence;
use crate::model::time::Timestamp;

/// Events that are kept to be shown.
const KEPT: usize = 50;

/// The last number that an event got.
static LAST: AtomicU64 = AtomicU64::new(0);

/// The last events, the newest last.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<Occurrence>);

impl Events {
    /// Those that were kept over a restart, numbered anew as they most probably were.
    pub(super) fn of(found: Vec<Occurrence>) -> Self {
        let mut last = 0;
        let numbered = found.into_iter().map(|event| {
            last = next(last, event.at);
            Occurrence { id: last, ..event }
        });
        Self(numbered.collect())
    }

    /// Something has happened.
    pub(super) fn push(&mut self, at: Timestamp, what: String, by: Option<String>, reason: Option<String>) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        let number = |last: u64| Some(next(last, at));
        let (Ok(last) | Err(last)) = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, number);
        self.0.push_back(Occurrence { id: next(last, at), at, what, by, reason });
    }

    pub(super) fn to_vec(&self) -> Vec<Occurrence> {
        self.0.iter().cloned().collect()
    }
}

/// Has whatever happens from now on get a greater number than what was kept of these moments, also where the clock has
/// been set back since.
pub(super) fn go_on_after(kept: impl Iterator<Item = Timestamp>) {
    LAST.fetch_max(kept.fold(0, next), Ordering::Relaxed);
}

/// A number greater than that of any event before, also of one before a restart: whoever has read up to one
/// of those goes on with what has come since.
fn next(last: u64, at: Timestamp) -> u64 {
    (last + 1).max(at.as_millis().saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_sets_no_numbers_back() {
        let at = Timestamp::from_millis;
        // Later than that of any other test in this process, which have their numbers of the same count.
        let kept = Occurrence { id: 0, at: at(1 << 45), what: "before".to_owned(), by: None, reason: None };
        go_on_after([kept.at].into_iter());
        let mut events = Events::of(vec![kept]);
        events.push(at(1000), "after".to_owned(), None, None);
        assert!(events.to_vec().is_sorted_by(|a, b| a.id < b.id));
    }

    #[test]
    fn events_are_numbered_over_a_restart() {
        let mut events = Events::default();
        let at = Timestamp::from_millis;
        for n in 0..60 {
            events.push(at(1000 + n / 10), n.to_string(), None, None);
        }
        let kept = events.to_vec();
        assert!(kept.len() == KEPT && kept.is_sorted_by(|a, b| a.id < b.id));
        let restored = Events::of(kept.clone()).to_vec();
        assert!(restored.iter().zip(&kept).all(|(restored, kept)| restored.id <= kept.id));
        let mut restored = Events::of(kept.clone());
        restored.push(at(2000), "later".to_owned(), Some("ci".to_owned()), Some("why".to_owned()));
        let last = restored.to_vec().pop().unwrap();
        assert!(last.id > kept.last().unwrap().id);
        assert_eq!((last.by.as_deref(), last.reason.as_deref()), (Some("ci"), Some("why")));
    }
}
