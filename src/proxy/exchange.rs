//! One request from its head to the last byte of its response. Read this file first.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{self, Poll, Waker},
    time::Duration,
};

use http::{HeaderMap, Request, Response, StatusCode, Version};
use hyper::{body::Incoming, client::conn::TrySendError};

use super::{
    attempt::Attempt,
    body::{Relay, ResponseBody},
    client::{Busy, Client},
    context::Context,
    error::ProxyError,
    forwarded,
    grpc::{self, CallDeadline},
    hash_key, headers,
    log_entry::LogEntry,
    mirror, names, over_h2,
    reply::Local,
    retry::{self, Retry},
    trace,
    upgrade::{self, Offer, Opened},
    upload::{Progress, RequestBody, Upload},
    way::Way,
};
use crate::{
    clock,
    model::{failure::GrpcStatuses, outcome::Outcome, protocol::Protocol},
    net::timers::Deadline,
    routing::snapshot::Timeouts,
    upstream::{
        allowance::{Slot, Turn},
        connect::connect,
        connection::Connection,
        pool,
    },
};

type Connected = Box<Connection<RequestBody>>;

/// What an exchange holds of its backend's connections.
pub(super) type Held = pool::Held<RequestBody>;

/// How long a connection must have been idle for a request on it to be worth a spare copy.
///
/// The server may close it just as the request is on its way, which is nobody's failure; servers
/// close what has been idle for seconds. In steady load, connections are not idle that long, and
/// nothing is copied.
const SPARE_AFTER: Duration = Duration::from_millis(500);

/// Answers one request: with the backend's response, or with one of our own.
///
/// A future keeps all that it is given to its end, and hyper moves it once for each request. So what
/// needs no waiting is done before it is made, and what it waits with is moved no further.
pub fn exchange(
    context: Rc<Context>,
    client: &Rc<Client>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + use<> {
    let mut busy = client.begin().logged(LogEntry::begin(&context, client, &request));
    let version = request.version();
    client.set_unread(!http_body::Body::is_end_stream(request.body()));
    let is_call = grpc::is_call(&request);
    let mut routed = route(&context, client, request, is_call, &mut busy);
    async move {
        let answered = match &mut routed {
            // Seldom, so its size is not carried by every exchange.
            Ok(routed) if routed.offer.is_some() => match Box::pin(upgrade::open(routed, &mut busy)).await {
                Ok(Opened::Switched(head)) => {
                    if let Some(entry) = busy.entry() {
                        entry.answered(head.status);
                    }
                    return Ok(Response::from_parts(head, ResponseBody::local("", busy)));
                }
                Ok(Opened::Declined(held, response)) => Ok((held, response)),
                Err(error) => Err(error),
            },
            Ok(routed) if routed.retry.is_some() => Box::pin(retry::send(routed, &context)).await,
            Ok(routed) => send(routed).await,
            // It is answered already, so this is not looked at.
            Err(_) => Err(ProxyError::NoRoute),
        };
        let client = Rc::clone(busy.client());
        let answered = routed.and_then(|routed| Ok(relay(routed, answered)?));
        let (mut response, last) = match answered {
            Ok((head, relay)) => {
                let (parts, ()) = head.into_parts();
                client.set_unread(relay.upload.as_ref().is_some_and(Upload::is_unread));
                (Response::from_parts(parts, ResponseBody::relay(relay, busy)), false)
            }
            Err(local) => {
                context.cells().replied(local.reason());
                if let Some(entry) = busy.entry() {
                    entry.replied(local.reason());
                }
                let last = local.is_last();
                (local.into_response(is_call, busy), last)
            }
        };
        if last || context.is_draining() || client.is_used_up() {
            if version != Version::HTTP_2 {
                headers::ask_to_close(response.headers_mut());
            } else if client.is_used_up() {
                client.close();
            }
        }
        if let Some(entry) = response.body().entry() {
            entry.answered(response.status());
        }
        Ok(response)
    }
}

/// A request that knows where it goes.
pub(super) struct Routed {
    pub(super) request: Request<RequestBody>,
    pub(super) attempt: Attempt,
    pub(super) wait: Wait,
    pub(super) way: Way,
    /// What its connection may be switched to.
    pub(super) offer: Option<Box<Offer>>,
    /// What it is tried again with, if its service has retries.
    pub(super) retry: Option<Box<Retry>>,
}

impl Routed {
    /// Ready when the response's head has been waited for long enough, or is not to be waited for any more.
    pub(super) fn poll_over(&self, look: &mut Look, cx: &task::Context<'_>) -> Poll<ProxyError> {
        if self.attempt.is_cut() {
            return Poll::Ready(ProxyError::Cut);
        }
        self.wait.poll_over(look, cx)
    }
}

/// Routes and assigns a request, and makes it ready to be sent.
fn route(
    context: &Rc<Context>,
    client: &Rc<Client>,
    request: Request<Incoming>,
    is_call: bool,
    busy: &mut Busy,
) -> Result<Routed, Local> {
    let started = clock::monotonic();
    let entry = busy.entry().cloned();
    let entry = entry.as_ref();
    let (mut parts, body) = request.into_parts();
    headers::check(&parts, client.edge())?;
    names::screen(&mut parts.headers, client.edge())?;
    forwarded::identify(&mut parts.headers, client, || context.random());
    let way = Way::find(context, client, &mut parts)?;
    way.admit(busy, client, &parts, started)?;
    let limits = way.limits();
    if limits.max_body_size.is_some_and(|most| http_body::Body::size_hint(&body).lower() > most) {
        return Err(ProxyError::BodyTooLarge.into());
    }
    let (view, assignment) = (way.view(), way.assignment());
    if let Some(entry) = entry {
        entry.takes(way.route());
        entry.assigned(view.snapshot.topology(), way.service(), assignment);
    }
    let key = hash_key::find(&way.service().policy, client, &parts);
    let endpoint = view.backend(assignment.backend).choose(key, started, || context.random());
    let endpoint = endpoint.inspect_err(|_| way.unserved()).map_err(ProxyError::from)?;
    let writer = way.writer(assignment, &endpoint, started);
    let mut attempt = Attempt::begin(writer, endpoint, client, started);
    if let Some(entry) = entry {
        attempt.log_to(entry);
    }

    let version = parts.version;
    let upgrade = headers::prepare_request(&mut parts, client, attempt.endpoint().address());
    // Before the route's changes, which may be to take it away.
    trace::pass_on(context, client, entry.map(|entry| &**entry), &mut parts.headers);
    way.change_request(&mut parts).inspect_err(|_| attempt.forget())?;
    let (body, progress) = RequestBody::new(body, client, &limits, started);
    if let (Some(entry), Some(progress)) = (entry, &progress) {
        entry.uploads(progress);
    }
    let allowed = &way.service().upgrades;
    let offer = if version == Version::HTTP_2 {
        Offer::of_connect(&mut parts, allowed, context, client).inspect_err(|_| attempt.forget())?
    } else {
        let fits = version == Version::HTTP_11 && progress.is_none();
        upgrade.filter(|_| fits).and_then(|offer| Offer::of_upgrade(&parts, offer, allowed, context, client))
    };
    let timeouts = way.timeouts();
    let call =
        is_call.then(|| CallDeadline::of(&parts.headers, started, timeouts.grpc_max, context.timers()));
    let call = call.flatten().map(Box::new);
    attempt.keep_from(call.as_deref().map(CallDeadline::kept_from));
    let (deadline, switches) = (context.timers().looking_deadline(), offer.is_some());
    let wait = Wait { deadline, timeouts, progress, switches, is_call, call };
    let request = Request::from_parts(parts, body);
    let mut routed = Routed { request, attempt, wait, way, offer, retry: None };
    mirror::begin(context, client, key, &mut routed);
    if let Some(retries) = routed.way.retries().cloned().filter(|_| !switches) {
        routed.retry = Retry::prepare(&retries, client, &mut routed, key, started);
    }
    Ok(routed)
}

/// What has been answered, or why nothing has, once the attempt knows.
fn relay(
    routed: Routed,
    answered: Result<(Held, Response<Incoming>), ProxyError>,
) -> Result<(Response<()>, Relay), ProxyError> {
    let Routed { request: _, mut attempt, wait, mut way, offer: _, retry: _ } = routed;
    let answered = answered.and_then(|(held, response)| match response.status() {
        // Nobody asked for it.
        StatusCode::SWITCHING_PROTOCOLS => Err(ProxyError::Reset),
        _ => Ok((held, response)),
    });
    let (held, response) = answered.inspect_err(|error| match error.outcome() {
        Some(outcome) => _ = attempt.end(outcome),
        None if error.is_limit() => attempt.unserved(),
        None => {}
    })?;
    attempt.answered(response.status(), way.fails(response.status(), wait.is_call));
    let (mut head, body) = response.into_parts();
    headers::prepare_response(&mut head);
    way.change_response(&mut head.headers);
    let Wait { deadline, timeouts, progress, switches: _, is_call, call } = wait;
    deadline.disarm();
    let upload = progress.map(Upload::new);
    let outcome = outcome_of_head(head.status, &head.headers, is_call.then(|| way.grpc_failures()));
    if let Some(entry) = attempt.entry().filter(|_| is_call) {
        entry.called(&head.headers);
    }
    let trailers = grpc::awaits_trailers(outcome, &head.headers).then(|| way.grpc_failures());
    let (idle_timeout, is_ending) = (timeouts.idle, false);
    let relay =
        Relay { body, held, attempt, outcome, trailers, call, deadline, upload, idle_timeout, is_ending };
    Ok((Response::from_parts(head, ()), relay))
}

/// What an attempt has come to, as its response's head says; a call by which statuses are failures.
pub(super) fn outcome_of_head(
    status: StatusCode,
    headers: &HeaderMap,
    call: Option<GrpcStatuses>,
) -> Outcome {
    match call {
        Some(failures) => grpc::outcome_of_head(status, headers, failures),
        None => Outcome::of_status(status),
    }
}

/// Sends a request to an endpoint and waits for the response's head, on a connection that was idle
/// if there is one, else on a new one.
///
/// A connection that turns out to have been closed while it was idle is no failure: another one is
/// taken. This ends, because idle connections do. Where the backend has all the connections that it may
/// have, the request waits for one.
pub(super) async fn send(routed: &mut Routed) -> Result<(Held, Response<Incoming>), ProxyError> {
    if routed.attempt.endpoint().address().protocol == Protocol::Http2 {
        return Box::pin(over_h2::send(routed)).await;
    }
    let slot = loop {
        let turn = match routed.attempt.endpoint().turn(routed.attempt.origin()) {
            Some(turn) => turn,
            // Seldom, so its size is not carried by every exchange.
            None => Box::pin(queue(&routed.attempt, &routed.wait)).await?,
        };
        let mut connection = match turn {
            Turn::Idle(connection) => connection,
            Turn::Open(slot) => break slot,
        };
        let spare = spare_copy(&routed.request, &connection);
        routed.wait.goes_to(&connection);
        let response = pin!(connection.send(std::mem::take(&mut routed.request)));
        match respond(&mut connection, response, routed).await {
            Ok(response) => return Ok((Held::Http1(connection), response)),
            Err(Failure::Unsent(unsent)) => routed.request = *unsent,
            Err(Failure::Broken) => routed.request = *spare.ok_or(ProxyError::Reset)?,
            Err(Failure::Final(error)) => return Err(error),
        }
    };
    let mut connection = Box::pin(open(&routed.attempt, slot, routed.wait.timeouts.connect)).await?;
    routed.wait.goes_to(&connection);
    let response = pin!(connection.send(std::mem::take(&mut routed.request)));
    match respond(&mut connection, response, routed).await {
        Ok(response) => Ok((Held::Http1(connection), response)),
        Err(Failure::Unsent(_)) => Err(ProxyError::Unseen),
        Err(Failure::Broken) => Err(ProxyError::Reset),
        Err(Failure::Final(error)) => Err(error),
    }
}

/// Waits until a connection is free or may be opened.
async fn queue(attempt: &Attempt, wait: &Wait) -> Result<Turn<RequestBody>, ProxyError> {
    if attempt.is_copy() {
        return Err(ProxyError::Overflow);
    }
    let (place, patience) = attempt.endpoint().queue().ok_or(ProxyError::Overflow)?;
    wait.deadline.arm(patience);
    poll_fn(|cx| match place.poll_turn(attempt.endpoint(), attempt.origin(), cx) {
        Some(turn) => Poll::Ready(Ok(turn)),
        None => wait.poll_patience(attempt, cx).map(Err),
    })
    .await
}

async fn open(
    attempt: &Attempt,
    slot: Slot<RequestBody>,
    timeout: Duration,
) -> Result<Connected, ProxyError> {
    let endpoint = attempt.endpoint();
    let (origin, header) = (attempt.origin(), endpoint.header(attempt.origin()));
    let connected = connect(endpoint.member(), endpoint.tls(), header, timeout).await;
    let stream = connected.map_err(|error| {
        attempt.connect_failed(&error);
        ProxyError::from(&error)
    })?;
    let connection = Connection::new(stream, origin, slot, clock::monotonic()).await;
    Ok(Box::new(connection.map_err(|_| ProxyError::Reset)?))
}

/// A copy of a request that may be sent twice (safe methods without a body), where the connection
/// has been idle for so long that it may be needed.
fn spare_copy(
    request: &Request<RequestBody>,
    connection: &Connection<RequestBody>,
) -> Option<Box<Request<RequestBody>>> {
    let idle = connection.idle_for(clock::monotonic());
    if idle < SPARE_AFTER || !request.method().is_safe() || !http_body::Body::is_end_stream(request.body()) {
        return None;
    }
    Some(Box::new(copy_head(request)))
}

/// A copy of a request that has no body.
pub(super) fn copy_head(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// What an exchange waits for, and for how long.
pub(super) struct Wait {
    pub(super) deadline: Deadline,
    pub(super) timeouts: Timeouts,
    pub(super) progress: Option<Rc<Progress>>,
    /// The connection may be switched to another protocol.
    pub(super) switches: bool,
    /// The request is a gRPC call.
    pub(super) is_call: bool,
    /// When the call has to be over.
    pub(super) call: Option<Box<CallDeadline>>,
}

impl Wait {
    /// The request goes to this connection.
    fn goes_to(&self, connection: &Connection<RequestBody>) {
        if let Some(progress) = &self.progress {
            progress.goes_to(connection.ends());
        }
    }

    /// What is wrong with the client's body, if something is.
    pub(super) fn fault(&self) -> Option<ProxyError> {
        self.progress.as_ref().and_then(|progress| progress.fault())
    }

    /// Ready when a place at the backend has been waited for long enough.
    pub(super) fn poll_patience(&self, attempt: &Attempt, cx: &task::Context<'_>) -> Poll<ProxyError> {
        if attempt.is_cut() {
            return Poll::Ready(ProxyError::Cut);
        }
        self.deadline.poll_expired(cx).map(|()| ProxyError::PendingTimeout)
    }

    /// Ready when the response's head has been waited for long enough.
    fn poll_over(&self, look: &mut Look, cx: &task::Context<'_>) -> Poll<ProxyError> {
        // The response is due only once the request is complete; until then, each chunk buys time.
        if let Some(progress) = &self.progress
            && look.chunks != Some((progress.chunks.get(), progress.done.get()))
        {
            let (done, idle) = (progress.done.get(), self.timeouts.idle);
            look.chunks = Some((progress.chunks.get(), done));
            look.hurried = !done && progress.is_watched();
            self.deadline.arm(if done { self.timeouts.response } else { progress.patience(idle) });
        }
        let over = self.deadline.poll_expired(cx).is_ready();
        let call_over = self.call.as_ref().is_some_and(|call| call.deadline.poll_expired(cx).is_ready());
        if !over && !call_over {
            return Poll::Pending;
        }
        if self.progress.as_ref().is_some_and(|progress| progress.is_stalled()) {
            return Poll::Ready(ProxyError::RequestTimeout);
        }
        // It was the client's time that ran out, and it is the backend that does not read: that has
        // the time of a backend.
        if !call_over && std::mem::take(&mut look.hurried) {
            self.deadline.arm(self.timeouts.idle);
            return self.deadline.poll_expired(cx).map(|()| ProxyError::ResponseTimeout);
        }
        Poll::Ready(ProxyError::ResponseTimeout)
    }
}

/// What has been seen of a request's body while its response is awaited.
#[derive(Default)]
pub(super) struct Look {
    /// How many chunks had been passed on, and whether that was all.
    chunks: Option<(u64, bool)>,
    /// The client has less time than it takes to be idle.
    hurried: bool,
}

enum Failure {
    /// Not a byte was sent; here is the request back.
    Unsent(Box<Request<RequestBody>>),
    /// The connection broke, or what came was not HTTP.
    Broken,
    /// It is known who is to blame: the client, or whoever took too long.
    Final(ProxyError),
}

impl Failure {
    /// Of a connection that broke: the client's, if its body was to blame.
    fn of(routed: &Routed) -> Self {
        routed.wait.fault().map_or(Self::Broken, Self::Final)
    }
}

type Unsent = TrySendError<Request<RequestBody>>;

/// Drives a connection until the response's head is there.
async fn respond(
    connection: &mut Connected,
    mut response: Pin<&mut impl Future<Output = Result<Response<Incoming>, Unsent>>>,
    routed: &Routed,
) -> Result<Response<Incoming>, Failure> {
    // Nothing has been sent yet.
    if routed.attempt.is_cut() {
        return Err(Failure::Final(ProxyError::Cut));
    }
    let mut look = Look::default();
    if routed.wait.switches {
        connection.keep_socket();
    }
    routed.wait.deadline.arm(routed.wait.timeouts.response);
    poll_fn(|cx| {
        let _over = connection.poll_drive(cx);
        // Only driving the connection brings the response, so it need not wake us a second time.
        if let Poll::Ready(result) = response.as_mut().poll(&mut task::Context::from_waker(Waker::noop())) {
            return Poll::Ready(result.map_err(|mut error| match error.take_message() {
                Some(unsent) => Failure::Unsent(Box::new(unsent)),
                None => Failure::of(routed),
            }));
        }
        routed.poll_over(&mut look, cx).map(|error| Err(Failure::Final(error)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_fits_into_one_kilobyte() {
        // Each connection holds one exchange at a time, each HTTP/2 stream another, and hyper moves it
        // once for each request.
        fn size<F>(_: impl FnOnce(Rc<Context>, &Rc<Client>, Request<Incoming>) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(exchange);
        assert!(size <= 1024, "{size}");
    }
}
