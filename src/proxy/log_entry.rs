//! What one exchange has to say to the access log and to tracing, gathered on its way.
//!
//! There is one only where the exchange is logged or sampled. Whoever has a part in the exchange holds it: the
//! client's connection while it is busy, the attempt at the backend, which outlives that in a tunnel.
//! When the last of them lets go, however that comes about, the exchange has ended and the record is
//! handed on.

use std::{
    cell::{Cell, OnceCell, RefCell},
    io::Write as _,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Request, StatusCode, Version, header};

use super::{
    client::Client,
    context::{Context, Witnesses},
    grpc,
    trace::Trace,
    upload::Progress,
};
use crate::{
    access_log::record::{Record, Text, Texts},
    clock,
    model::{outcome::Outcome, role::Role, time::Timestamp},
    routing::{
        filter::Route,
        snapshot::{Service, Topology},
        split::{Assignment, Reason},
    },
    telemetry::local_reason::LocalReason,
};

/// An exchange that will be logged or has spans.
#[derive(Debug)]
pub(super) struct LogEntry {
    witnesses: Rc<Witnesses>,
    is_logged: bool,
    trace: Option<Box<Trace>>,
    at: Timestamp,
    started: Instant,
    client: IpAddr,
    version: Version,
    texts: RefCell<Texts>,
    status: Cell<Option<StatusCode>>,
    /// Bytes from the client that `upload` does not count.
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    upload: OnceCell<Rc<Progress>>,
    head_at: Cell<Option<Instant>>,
    assigned: Cell<Option<(Role, Reason)>>,
    attempts: Cell<u32>,
    local_reply: Cell<Option<LocalReason>>,
    outcome: Cell<Option<Outcome>>,
}

impl LogEntry {
    /// Notes a request as it came, if there is a log or tracing and the request is in its sample.
    #[inline]
    pub(super) fn begin<B>(context: &Context, client: &Client, request: &Request<B>) -> Option<Rc<Self>> {
        let witnesses = context.witnesses()?;
        let is_logged = witnesses.access_log.as_ref().is_some_and(|log| log.takes(|| context.random()));
        let spans = witnesses.spans.as_ref();
        let trace = spans.and_then(|spans| Trace::begin(spans, context, client, request.headers()));
        let is_told = is_logged || trace.is_some();
        is_told.then(|| Rc::new(Self::new(witnesses, (is_logged, trace), client, request)))
    }

    fn new<B>(
        witnesses: &Rc<Witnesses>,
        (is_logged, trace): (bool, Option<Box<Trace>>),
        client: &Client,
        request: &Request<B>,
    ) -> Self {
        let (uri, headers) = (request.uri(), request.headers());
        let mut texts = Texts::default();
        texts.set(Text::Method, request.method().as_str().as_bytes());
        if let Some(target) = uri.path_and_query() {
            texts.set(Text::Path, target.as_str().as_bytes());
        }
        if let Some(authority) = uri.authority() {
            texts.set(Text::Host, authority.as_str().as_bytes());
        }
        let fields = [
            (Text::Host, header::HOST),
            (Text::UserAgent, header::USER_AGENT),
            (Text::Referer, header::REFERER),
        ];
        for (text, name) in fields {
            if let Some(value) = headers.get(name) {
                texts.set(text, value.as_bytes());
            }
        }
        Self {
            witnesses: Rc::clone(witnesses),
            is_logged,
            trace,
            at: clock::now(),
            started: clock::monotonic(),
            client: client.address(headers),
            version: request.version(),
            texts: RefCell::new(texts),
            status: Cell::default(),
            bytes_in: Cell::default(),
            bytes_out: Cell::default(),
            upload: OnceCell::default(),
            head_at: Cell::default(),
            assigned: Cell::default(),
            attempts: Cell::default(),
            local_reply: Cell::default(),
            outcome: Cell::default(),
        }
    }

    /// What is recorded for tracing, if it is.
    pub(super) fn trace(&self) -> Option<&Trace> {
        self.trace.as_deref()
    }

    /// It takes this route, if it is one with a name.
    pub(super) fn takes(&self, route: Option<&Route>) {
        if let (Some(trace), Some(label)) = (&self.trace, route.and_then(|route| route.label.as_ref())) {
            trace.takes(label);
        }
    }

    /// It has been given a backend, in the place of another if it has had one.
    pub(super) fn assigned(&self, topology: &Topology, service: &Service, assignment: Assignment) {
        let mut texts = self.texts.borrow_mut();
        texts.set(Text::Service, service.name.as_str().as_bytes());
        texts.replace(Text::Backend, topology.backend(assignment.backend).name.as_str().as_bytes());
        self.assigned.set(Some((assignment.role, assignment.reason)));
    }

    /// An attempt at this endpoint begins.
    pub(super) fn attempted(&self, endpoint: SocketAddr) {
        // An address of IPv6 with a scope and a port has 58 characters at most.
        let mut text = [0; 64];
        let mut left = &mut text[..];
        if write!(left, "{endpoint}").is_ok() {
            let length = 64 - left.len();
            self.texts.borrow_mut().replace(Text::Endpoint, &text[..length]);
        }
        self.attempts.set(self.attempts.get() + 1);
        if let (Some(trace), Some((role, _))) = (&self.trace, self.assigned.get()) {
            let texts = self.texts.borrow();
            let backend = String::from_utf8_lossy(texts.get(Text::Backend).unwrap_or_default());
            trace.attempted((backend.into(), role), endpoint, self.elapsed());
        }
        // What came of the one before is not what is told.
        self.head_at.set(None);
        self.outcome.set(None);
    }

    /// The request has a body, which is watched.
    pub(super) fn uploads(&self, progress: &Rc<Progress>) {
        // It has one body, so this is the first.
        let _first = self.upload.set(Rc::clone(progress));
    }

    /// The head of the backend's response has come.
    pub(super) fn head_came(&self, status: StatusCode) {
        self.head_at.set(Some(clock::monotonic()));
        if let Some(trace) = &self.trace {
            trace.head_came(status.as_u16());
        }
    }

    /// These fields of a gRPC call's response may say how it ended.
    pub(super) fn called(&self, fields: &HeaderMap) {
        if let (Some(trace), Some(status)) = (&self.trace, grpc::name_of_status(fields)) {
            trace.called(status);
        }
    }

    /// What became of the attempt, and whether that counts against the backend.
    pub(super) fn ended(&self, outcome: Outcome, failed: bool) {
        self.outcome.set(Some(outcome));
        if let Some(trace) = &self.trace {
            trace.ended(self.elapsed(), outcome, failed);
        }
    }

    fn elapsed(&self) -> Duration {
        clock::monotonic() - self.started
    }

    /// Tidegate answers itself.
    pub(super) fn replied(&self, reason: LocalReason) {
        self.local_reply.set(Some(reason));
    }

    /// The client is answered with this.
    pub(super) fn answered(&self, status: StatusCode) {
        self.status.set(Some(status));
    }

    /// More bytes from the client.
    pub(super) fn add_in(&self, bytes: usize) {
        self.bytes_in.set(self.bytes_in.get() + bytes as u64);
    }

    /// More bytes to the client.
    pub(super) fn add_out(&self, bytes: usize) {
        self.bytes_out.set(self.bytes_out.get() + bytes as u64);
    }
}

impl Drop for LogEntry {
    fn drop(&mut self) {
        let uploaded = self.upload.get().map_or(0, |progress| progress.bytes.get());
        let assigned = self.assigned.get();
        let record = Record {
            at: self.at,
            client: self.client,
            protocol: protocol(self.version),
            status: self.status.get().map(|status| status.as_u16()),
            bytes_in: self.bytes_in.get() + uploaded,
            bytes_out: self.bytes_out.get(),
            duration: self.elapsed(),
            head_after: self.head_at.get().map(|at| at - self.started),
            role: assigned.map(|(role, _)| role.as_str()),
            assignment: assigned.map(|(_, reason)| reason.as_str()),
            attempts: self.attempts.get(),
            local_reply: self.local_reply.get().map(LocalReason::label),
            outcome: self.outcome.get().map(Outcome::label),
            trace_id: self.trace.as_ref().map(|trace| trace.trace_id()),
            texts: self.texts.take(),
        };
        let Witnesses { access_log, spans } = &*self.witnesses;
        let trace = self.trace.take().zip(spans.as_ref());
        let Some(log) = access_log.as_ref().filter(|_| self.is_logged) else {
            return trace.map_or((), |(trace, spans)| spans.push(trace.into_exchange(record)));
        };
        if let Some((trace, spans)) = trace {
            spans.push(trace.into_exchange(record.clone()));
        }
        log.push(record);
    }
}

/// The protocol in the words of its standard.
fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        // Nothing else is spoken here.
        _ => "HTTP/1.1",
    }
}
