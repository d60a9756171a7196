//! One attempt at a backend, counted once whatever happens to it.

use std::{rc::Rc, time::Instant};

use super::context::Endpoint;
use crate::{clock, model::outcome::Outcome, telemetry::cells::Writer};

/// One attempt at a backend.
///
/// It must end in [`Attempt::end`]. One that is dropped before is one whose client went away, which
/// says nothing about the backend.
#[derive(Debug)]
pub(super) struct Attempt {
    cells: Writer,
    endpoint: Rc<Endpoint>,
    started: Instant,
    ended: bool,
}

impl Attempt {
    pub(super) fn begin(cells: Writer, endpoint: Rc<Endpoint>, started: Instant) -> Self {
        cells.begin();
        endpoint.enter();
        Self { cells, endpoint, started, ended: false }
    }

    pub(super) fn endpoint(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }

    pub(super) fn connect_failed(&self) {
        self.cells.connect_failed();
        self.endpoint.refuse();
    }

    /// The attempt is over; returns when. Later calls change nothing.
    pub(super) fn end(&mut self, outcome: Outcome) -> Instant {
        let now = clock::monotonic();
        if !self.ended {
            self.ended = true;
            self.endpoint.leave();
            let answered = !matches!(
                outcome,
                Outcome::ConnectFailure | Outcome::Timeout | Outcome::Reset | Outcome::ClientAbort
            );
            self.cells.end(outcome, answered.then(|| now - self.started));
        }
        now
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Outcome::ClientAbort);
        }
    }
}
