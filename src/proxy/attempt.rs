//! One attempt at a backend, counted once whatever happens to it.

use std::{cell::Cell, error::Error as _, rc::Rc, time::Instant};

use http::StatusCode;

use super::{client::Client, context::Endpoint, log_entry::LogEntry, pair::Half};
use crate::{
    clock, model::outcome::Outcome, net::proxy_protocol::Origin, telemetry::cells::Writer,
    upstream::connect::ConnectError,
};

/// One attempt at a backend.
///
/// It must end in [`Attempt::end`]. One that is dropped before is one whose client went away, which
/// says nothing about the backend.
#[derive(Debug)]
pub(super) struct Attempt {
    cells: Writer,
    /// Of its client, if it is pinned.
    slot: Option<u16>,
    endpoint: Rc<Endpoint>,
    started: Instant,
    /// From when on its client may give it up because it takes too long.
    kept_from: Option<Instant>,
    /// It waits for its time to come, and nothing has been sent.
    waits: bool,
    ended: bool,
    /// Whether the status counts against the backend, where that is written.
    fails: Cell<Option<bool>>,
    /// Whose it is, where the endpoint is told.
    origin: Option<Rc<Origin>>,
    /// What hears of it, if the exchange is logged or sampled.
    entry: Option<Rc<LogEntry>>,
    /// Its part in a pair, if the request is at both backends.
    half: Option<Rc<Half>>,
}

impl Attempt {
    pub(super) fn begin(
        (cells, slot): (Writer, Option<u16>),
        endpoint: Rc<Endpoint>,
        client: &Client,
        started: Instant,
    ) -> Self {
        cells.begin();
        endpoint.enter();
        let origin = endpoint.knows_clients().then(|| Rc::clone(client.origin()));
        let (kept_from, waits, ended, fails) = (None, false, false, Cell::new(None));
        Self {
            cells,
            slot,
            endpoint,
            started,
            kept_from,
            waits,
            ended,
            fails,
            origin,
            entry: None,
            half: None,
        }
    }

    /// One that begins later, and takes its place now. Until [`Self::go`], it says nothing.
    pub(super) fn reserve(
        cells: (Writer, Option<u16>),
        endpoint: Rc<Endpoint>,
        client: &Client,
        begins: Instant,
    ) -> Self {
        let mut reserved = Self::begin(cells, endpoint, client, begins);
        reserved.waits = true;
        reserved
    }

    /// Its time has come.
    pub(super) fn go(&mut self) {
        self.waits = false;
    }

    /// Whose it is, where the endpoint is told.
    pub(super) fn origin(&self) -> Option<&Rc<Origin>> {
        self.origin.as_ref()
    }

    /// Tells the access log and tracing of it.
    pub(super) fn log_to(&mut self, entry: &Rc<LogEntry>) {
        entry.attempted(self.endpoint.member().address);
        self.entry = Some(Rc::clone(entry));
    }

    /// What hears of it, if the exchange is logged or sampled.
    pub(super) fn entry(&self) -> Option<&Rc<LogEntry>> {
        self.entry.as_ref()
    }

    /// Has it compared with what the other backend makes of the same request.
    pub(super) fn pair_with(&mut self, half: Half) {
        self.half = Some(Rc::new(half));
    }

    /// Whether it is about a copy, which nobody waits for.
    pub(super) fn is_copy(&self) -> bool {
        self.half.as_ref().is_some_and(|half| half.is_copy())
    }

    /// If its client gives it up from then on, that is the backend's timeout.
    pub(super) fn keep_from(&mut self, kept_from: Option<Instant>) {
        self.kept_from = kept_from;
    }

    /// The same attempt in other hands; this one has ended.
    pub(super) fn hand_over(&mut self) -> Self {
        self.ended = true;
        let Self {
            cells,
            slot,
            endpoint,
            started,
            kept_from,
            waits: _,
            ended: _,
            fails,
            origin,
            entry,
            half,
        } = self;
        let (cells, slot, endpoint, started) = (cells.clone(), *slot, Rc::clone(endpoint), *started);
        let (kept_from, waits, ended, fails) = (*kept_from, false, false, fails.clone());
        let (origin, entry, half) = (origin.take(), entry.take(), half.take());
        Self { cells, slot, endpoint, started, kept_from, waits, ended, fails, origin, entry, half }
    }

    /// Whether it is to end, as the time that its backend had left is over.
    #[inline]
    pub(super) fn is_cut(&self) -> bool {
        self.endpoint.is_cut_since(self.started)
    }

    pub(super) fn endpoint(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }

    /// There was no connection to be had.
    pub(super) fn connect_failed(&self, error: &ConnectError) {
        self.cells.connect_failed();
        let is_new = self.endpoint.refuse();
        let (endpoint, why) = (self.endpoint.address(), error.source().map(ToString::to_string));
        if is_new && error.is_lasting() {
            tracing::warn!(%endpoint, %error, why, "an endpoint cannot be spoken to");
        } else {
            tracing::debug!(%endpoint, %error, why, "no connection");
        }
    }

    /// The response has begun. `fails` says whether its status counts against the backend, where that is
    /// written.
    pub(super) fn answered(&self, status: StatusCode, fails: Option<bool>) {
        self.fails.set(fails);
        if let Some(half) = &self.half {
            half.answered(status);
        }
        if let Some(entry) = &self.entry {
            entry.head_came(status);
        }
        if self.endpoint.weighs_latency() {
            let now = clock::monotonic();
            self.endpoint.answered(now - self.started, now);
        }
    }

    /// The attempt has come to nothing, through nobody's fault but ours: it is not counted.
    pub(super) fn forget(&mut self) {
        if !self.ended {
            self.ended = true;
            self.endpoint.leave();
            self.cells.forget();
        }
    }

    /// The same where there was no place at the backend's endpoints for it.
    pub(super) fn unserved(&mut self) {
        self.cells.unserved();
        self.forget();
    }

    /// The attempt is over; returns when. Later calls change nothing.
    pub(super) fn end(&mut self, outcome: Outcome) -> Instant {
        let now = clock::monotonic();
        if !self.ended {
            self.ended = true;
            let by_status = self.fails.get().filter(|_| outcome.is_status());
            let failed = by_status.unwrap_or_else(|| outcome.is_failure());
            if let Some(entry) = &self.entry {
                entry.ended(outcome, failed);
            }
            if let Some(half) = &self.half {
                half.ended(outcome, failed);
            }
            self.endpoint.leave();
            if !self.is_copy() {
                self.endpoint.judge(outcome, failed, now);
            }
            // How long a tunnel stood says nothing about how fast anything was.
            let answered = !matches!(
                outcome,
                Outcome::ConnectFailure
                    | Outcome::Timeout
                    | Outcome::Reset
                    | Outcome::ClientAbort
                    | Outcome::Cut
                    | Outcome::Informational
            );
            self.cells.end_pinned(self.slot, outcome, failed, answered.then(|| now - self.started));
        }
        now
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.waits {
            self.forget();
        } else if !self.ended {
            let kept = self.kept_from.is_some_and(|from| clock::monotonic() >= from);
            self.end(if kept { Outcome::Timeout } else { Outcome::ClientAbort });
        }
    }
}
