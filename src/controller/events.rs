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

/// A number greater than that of any event before, also of one before a restart: whoever has read up to one
/// of those goes on with what has come since.
fn next(last: u64, at: Timestamp) -> u64 {
    (last + 1).max(at.as_millis().saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

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
