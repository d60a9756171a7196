//! Copies of requests to stable, for the canary: sent aside, and answered to nobody.
//!
//! A copy is a task of its own. What it takes from the request that it is a copy of is its head, and its body
//! as it passes, at the pace at which stable takes it; the copy is sent when that is complete. So nobody
//! waits for it: not for the canary, which may be slow or dead, and not for room, without which there is no
//! copy. A copy never waits for a connection in front of users, and never gets an endpoint ejected.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{self, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use super::{
    attempt::Attempt,
    client::Client,
    context::Context,
    error::ProxyError,
    exchange::{self, Held, Routed, Wait, copy_head, outcome_of_head},
    grpc,
    pair::Pair,
    upload::RequestBody,
    way::Way,
};
use crate::{
    clock,
    model::{outcome::Outcome, role::Role},
    routing::{mirror::Mirror as Rules, snapshot::Timeouts},
    telemetry::mirror::{MirrorCells, MirrorResult},
};

/// Says that a request is a copy. A client cannot say it to a service that has a mirror, or it could have the
/// canary do less than it does for others.
const MARK: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-tidegate-mirrored"), HeaderValue::from_static("true"));

/// What one worker has for the mirror of a service.
#[derive(Debug)]
pub(super) struct Mirror {
    rules: Arc<Rules>,
    /// Copies that there may be at a time, and that there are.
    most: u32,
    in_flight: Cell<u32>,
    cells: Arc<MirrorCells>,
}

impl Mirror {
    /// One worker's share of so many.
    pub(super) fn new(rules: &Arc<Rules>, workers: usize, cells: Arc<MirrorCells>) -> Self {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
        let most = rules.max_in_flight.div_ceil(workers);
        Self { rules: Arc::clone(rules), most, in_flight: Cell::new(0), cells }
    }

    /// Whether these are its rules.
    pub(super) fn follows(&self, rules: &Rules) -> bool {
        *self.rules == *rules
    }

    fn place(self: &Rc<Self>) -> Option<Place> {
        (self.in_flight.get() < self.most).then(|| {
            self.in_flight.set(self.in_flight.get() + 1);
            Place(Rc::clone(self))
        })
    }
}

/// A place among the copies that there may be at a time.
#[derive(Debug)]
struct Place(Rc<Mirror>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

/// A copy that is sent once its request is complete.
#[derive(Debug)]
pub(super) struct Copy {
    context: Rc<Context>,
    client: Rc<Client>,
    /// To the canary.
    way: Way,
    /// What it is hashed on, if it is.
    key: Option<u64>,
    /// Its head.
    request: Request<RequestBody>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    timeouts: Timeouts,
    is_call: bool,
    pair: Rc<Pair>,
    place: Place,
}

/// Has a request that is ready to be sent copied, if it is among those that are. `key` is what it is hashed on.
pub(super) fn begin(context: &Rc<Context>, client: &Rc<Client>, key: Option<u64>, routed: &mut Routed) {
    let Some(mirror) = routed.way.mirror() else { return };
    // Whom a trusted proxy calls a copy is one, and is not copied again.
    if client.is_trusted() && routed.request.headers().contains_key(&MARK.0) {
        return;
    }
    routed.request.headers_mut().remove(&MARK.0);
    let Some(way) = routed.way.aside().filter(|_| routed.offer.is_none()) else { return };
    if !mirror.rules.covers(routed.request.method(), routed.way.copies(), || context.random()) {
        return;
    }
    let pair = Pair::new(Arc::clone(&mirror.cells), &mirror.rules);
    pair.look_at(routed.attempt.endpoint(), clock::monotonic());
    if routed.request.body().size_hint().lower() > mirror.rules.max_body as u64 {
        return pair.give_up(MirrorResult::DroppedBody);
    }
    let Some(place) = mirror.place() else { return pair.give_up(MirrorResult::DroppedInFlight) };
    // Its fields keep the buffer that the request was read into for as long as the copy lasts. There are
    // few copies, and each buffer is small.
    let mut request = copy_head(&routed.request);
    request.headers_mut().insert(MARK.0, MARK.1);
    if let Some(trace) = routed.attempt.entry().and_then(|entry| entry.trace()) {
        trace.pass_aside(request.headers_mut());
    }
    routed.attempt.pair_with(pair.half(Role::Stable));
    let copy = Box::new(Copy {
        context: Rc::clone(context),
        client: Rc::clone(client),
        way,
        key,
        request,
        body: Vec::new(),
        trailers: None,
        timeouts: routed.wait.timeouts,
        is_call: routed.wait.is_call,
        pair,
        place,
    });
    match &routed.wait.progress {
        Some(progress) => progress.copy_to(copy),
        None => copy.send(),
    }
}

impl Copy {
    /// Takes a part of the body, as it passes. Returns itself unless that is too large.
    pub(super) fn with(mut self: Box<Self>, frame: &Frame<Bytes>) -> Option<Box<Self>> {
        if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        let data = frame.data_ref().map_or(&[][..], |data| &data[..]);
        if self.body.len() + data.len() > self.place.0.rules.max_body {
            self.pair.give_up(MirrorResult::DroppedBody);
            return None;
        }
        // Copied, since a part of the buffer that it was read into would keep all of it.
        self.body.extend_from_slice(data);
        Some(self)
    }

    /// Sends it, by itself.
    pub(super) fn send(self: Box<Self>) {
        self.pair.send(clock::monotonic());
        tokio::task::spawn_local(self.run());
    }

    async fn run(self: Box<Self>) {
        let Self {
            context,
            client,
            way,
            key,
            mut request,
            body,
            trailers,
            timeouts,
            is_call,
            pair,
            place: _place,
        } = *self;
        let now = clock::monotonic();
        let assignment = way.assignment();
        let endpoint = way.view().backend(assignment.backend).choose(key, now, || context.random());
        let Ok(endpoint) = endpoint else { return pair.give_up(MirrorResult::DroppedNoEndpoint) };
        pair.begin_copy(now);
        pair.look_at(&endpoint, now);
        let mut attempt = Attempt::begin((way.copies_writer(), None), endpoint, &client, now);
        attempt.pair_with(pair.half(Role::Canary));
        *request.body_mut() = RequestBody::recorded(body, trailers);
        let deadline = context.timers().looking_deadline();
        let wait = Wait { deadline, timeouts, progress: None, switches: false, is_call, call: None };
        let mut routed = Routed { request, attempt, wait, way, offer: None, retry: None };
        match exchange::send(&mut routed).await {
            Ok((held, response)) if response.status() != StatusCode::SWITCHING_PROTOCOLS => {
                finish(routed, held, response).await;
            }
            answered => {
                let error = answered.err().unwrap_or(ProxyError::Reset);
                match error.outcome() {
                    Some(outcome) => _ = routed.attempt.end(outcome),
                    None => {
                        routed.attempt.forget();
                        pair.give_up(MirrorResult::DroppedNoEndpoint);
                    }
                }
            }
        }
    }
}

/// Reads a response to its end, for nobody.
async fn finish(routed: Routed, mut held: Held, response: Response<Incoming>) {
    let Routed { request: _, mut attempt, wait, way, offer: _, retry: _ } = routed;
    attempt.answered(response.status(), way.fails(response.status(), wait.is_call));
    let (head, mut body) = response.into_parts();
    let failures = way.grpc_failures();
    let mut outcome = outcome_of_head(head.status, &head.headers, wait.is_call.then_some(failures));
    let awaits_trailers = grpc::awaits_trailers(outcome, &head.headers);
    let since = clock::monotonic();
    match read((&mut held, &attempt), &mut body, &wait, since).await {
        Read::Whole(trailers) => {
            if let Some(trailers) = trailers.filter(|_| awaits_trailers) {
                outcome = grpc::outcome(&trailers, failures);
            }
            let now = attempt.end(outcome);
            held.release(attempt.endpoint(), now);
        }
        Read::Enough => _ = attempt.end(outcome),
        Read::Broken(outcome) => _ = attempt.end(outcome),
    }
}

/// How far a body has been read.
enum Read {
    /// To its end.
    Whole(Option<HeaderMap>),
    /// For as long as is worth it: it may be a stream without an end.
    Enough,
    /// It broke off.
    Broken(Outcome),
}

async fn read(
    (held, attempt): (&mut Held, &Attempt),
    body: &mut Incoming,
    wait: &Wait,
    since: Instant,
) -> Read {
    let Wait { deadline, timeouts, .. } = wait;
    let mut trailers = None;
    deadline.arm(timeouts.idle);
    poll_fn(|cx| {
        loop {
            match poll_body(held, body, cx) {
                Poll::Ready(None) => return Poll::Ready(Read::Whole(trailers.take())),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Read::Broken(Outcome::Reset)),
                _ if attempt.is_cut() => return Poll::Ready(Read::Broken(Outcome::Cut)),
                Poll::Ready(Some(Ok(_))) if clock::monotonic() - since >= timeouts.response => {
                    return Poll::Ready(Read::Enough);
                }
                Poll::Ready(Some(Ok(frame))) => {
                    deadline.arm(timeouts.idle);
                    trailers = frame.into_trailers().ok();
                }
                Poll::Pending => {
                    return deadline.poll_expired(cx).map(|()| Read::Broken(Outcome::Timeout));
                }
            }
        }
    })
    .await
}

/// What comes next of a body; see [`super::body::Relay`] for how a connection is driven.
fn poll_body(
    held: &mut Held,
    body: &mut Incoming,
    cx: &mut task::Context<'_>,
) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
    let Held::Http1(connection) = held else { return Pin::new(body).poll_frame(cx) };
    let quiet = &mut task::Context::from_waker(Waker::noop());
    let polled = Pin::new(&mut *body).poll_frame(quiet);
    if polled.is_ready() {
        return polled;
    }
    let _over = connection.poll_drive(cx);
    Pin::new(body).poll_frame(quiet)
}
