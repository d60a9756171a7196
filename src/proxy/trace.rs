//! The trace that a request belongs to: whom that is believed from, what is recorded of it, and what the
//! backend is told.
//!
//! Without tracing, `traceparent` and `tracestate` pass as they came. With it, only a trusted proxy's word is
//! taken on them; anybody else's request begins a trace of our own. What is sampled names its attempt as the
//! parent. What is not says so if the trace begins here, and else passes as it came.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::SocketAddr,
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{client::Client, context::Context, log_entry::LogEntry};
use crate::{
    access_log::record::Record,
    clock,
    model::{outcome::Outcome, role::Role},
    routing::filter::Label,
    spans::{
        context::TraceContext,
        queue::{Decision, Queue},
        record::{Attempt, Exchange},
    },
};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What is recorded of a sampled exchange beside what the access log would be told.
#[derive(Debug)]
pub(super) struct Trace {
    trace_id: u128,
    span_id: u64,
    parent: Option<u64>,
    /// What the next span's id is made of.
    next_id: Cell<u64>,
    began: u64,
    is_https: bool,
    route: OnceCell<Label>,
    attempts: RefCell<Vec<Tried>>,
}

/// An attempt that may still be on.
#[derive(Debug)]
struct Tried {
    span_id: u64,
    backend: Box<str>,
    role: Role,
    endpoint: SocketAddr,
    began: Duration,
    status: Option<u16>,
    grpc_status: Option<&'static str>,
    /// When it ended, how, and whether that counts against the backend.
    ended: Option<(Duration, Outcome, bool)>,
}

impl Trace {
    /// Begins to record a request, if it is sampled.
    pub(super) fn begin(
        queue: &Queue,
        context: &Context,
        client: &Client,
        headers: &HeaderMap,
    ) -> Option<Box<Self>> {
        let decision = queue.decide(parent(client, headers), || context.random());
        let Decision::Sampled { trace_id, parent } = decision else { return None };
        let seed = Cell::new(context.random());
        Some(Box::new(Self {
            trace_id,
            span_id: draw(&seed),
            parent,
            next_id: seed,
            began: clock::nanos(),
            is_https: client.is_secure(),
            route: OnceCell::new(),
            attempts: RefCell::default(),
        }))
    }

    /// The trace that it belongs to.
    pub(super) fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// It takes this route.
    pub(super) fn takes(&self, route: &Label) {
        // It takes one.
        let _first = self.route.set(route.clone());
    }

    /// An attempt begins.
    pub(super) fn attempted(&self, (backend, role): (Box<str>, Role), endpoint: SocketAddr, began: Duration) {
        let span_id = draw(&self.next_id);
        let (status, grpc_status, ended) = (None, None, None);
        let tried = Tried { span_id, backend, role, endpoint, began, status, grpc_status, ended };
        self.attempts.borrow_mut().push(tried);
    }

    /// The head of its response has come.
    pub(super) fn head_came(&self, status: u16) {
        self.alter(|attempt| attempt.status = Some(status));
    }

    /// So the call ended, in gRPC's words.
    pub(super) fn called(&self, status: &'static str) {
        self.alter(|attempt| attempt.grpc_status = Some(status));
    }

    /// The attempt is over.
    pub(super) fn ended(&self, at: Duration, outcome: Outcome, failed: bool) {
        self.alter(|attempt| attempt.ended = Some((at, outcome, failed)));
    }

    /// Does so with the attempt that is on.
    fn alter(&self, change: impl FnOnce(&mut Tried)) {
        self.attempts.borrow_mut().last_mut().map(change);
    }

    /// What the backend is told by the attempt that is on.
    fn of_attempt(&self) -> Option<TraceContext> {
        let span_id = self.attempts.borrow().last()?.span_id;
        Some(TraceContext { trace_id: self.trace_id, span_id, sampled: true })
    }

    /// What it has come to. An attempt without an end came to nothing: nothing was sent.
    pub(super) fn into_exchange(self, record: Record) -> Exchange {
        let Self { trace_id, span_id, parent, next_id: _, began, is_https, route, attempts } = self;
        let attempts = attempts.into_inner().into_iter().filter_map(|tried| {
            let Tried { span_id, backend, role, endpoint, began, status, grpc_status, ended } = tried;
            let (ended, outcome, failed) = ended?;
            Some(Attempt {
                span_id,
                backend,
                role,
                endpoint,
                began,
                ended,
                status,
                grpc_status,
                outcome,
                failed,
            })
        });
        let attempts = attempts.collect();
        let route = route.into_inner();
        Exchange { record, trace_id, span_id, parent, began, is_https, route, attempts }
    }

    /// Tells a backend of the attempt that is on, if its route has left the field there.
    pub(super) fn pass_again(&self, headers: &mut HeaderMap) {
        if headers.contains_key(TRACEPARENT)
            && let Some(context) = self.of_attempt()
        {
            headers.insert(TRACEPARENT, field(context));
        }
    }

    /// The same for a copy of the request, which is no attempt: its parent is the exchange.
    pub(super) fn pass_aside(&self, headers: &mut HeaderMap) {
        if headers.contains_key(TRACEPARENT) {
            let (trace_id, span_id) = (self.trace_id, self.span_id);
            headers.insert(TRACEPARENT, field(TraceContext { trace_id, span_id, sampled: true }));
        }
    }
}

/// Tells the backend which trace a request belongs to, if there is tracing.
#[inline]
pub(super) fn pass_on(context: &Context, client: &Client, entry: Option<&LogEntry>, headers: &mut HeaderMap) {
    if context.traces() {
        pass(context, client, entry.and_then(LogEntry::trace), headers);
    }
}

fn pass(context: &Context, client: &Client, trace: Option<&Trace>, headers: &mut HeaderMap) {
    let (told, begins_here) = match trace {
        Some(trace) => match trace.of_attempt() {
            Some(told) => (told, trace.parent.is_none()),
            None => return,
        },
        None if parent(client, headers).is_some() => return,
        None => {
            let (trace_id, span_id) = (context.random::<u128>().max(1), context.random::<u64>().max(1));
            (TraceContext { trace_id, span_id, sampled: false }, true)
        }
    };
    headers.insert(TRACEPARENT, field(told));
    if begins_here {
        // It is about another trace.
        headers.remove(TRACESTATE);
    }
}

/// What a trusted proxy says about the trace that a request belongs to.
fn parent(client: &Client, headers: &HeaderMap) -> Option<TraceContext> {
    if !client.is_trusted() {
        return None;
    }
    let mut said = headers.get_all(TRACEPARENT).iter();
    let (Some(one), None) = (said.next(), said.next()) else { return None };
    TraceContext::parse(one.as_bytes())
}

fn field(context: TraceContext) -> HeaderValue {
    HeaderValue::from_bytes(&context.to_bytes()).expect("digits and hyphens are visible ASCII")
}

/// The next of a row of ids that are all different: SplitMix64 (Steele, Lea and Flood, 2014).
fn draw(next: &Cell<u64>) -> u64 {
    let state = next.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    next.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_differ_and_none_is_zero() {
        let next = Cell::new(0_u64.wrapping_sub(0x9e37_79b9_7f4a_7c15));
        let ids: HashSet<_> = (0..1000).map(|_| draw(&next)).collect();
        assert!(ids.len() == 1000 && !ids.contains(&0));
    }
}
