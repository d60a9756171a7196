//! One request from its head to the last byte of its response. Read this file first.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{self, Poll, Waker, ready},
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, Version, header, request};
use hyper::{body::Incoming, client::conn::TrySendError};

use super::{
    attempt::Attempt,
    body::{Progress, Relay, RequestBody, ResponseBody, Upload},
    client::{Busy, Client},
    context::{Context, View},
    error::ProxyError,
    forwarded, headers, names, reply, sticky,
};
use crate::{
    clock,
    model::outcome::Outcome,
    net::timers::Deadline,
    routing::{
        snapshot::{ServiceId, Timeouts},
        split::Assignment,
    },
    upstream::{connect::connect, connection::Connection, endpoint},
};

type Upstream = Box<Connection<RequestBody>>;

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
    let mut busy = client.begin();
    let version = request.version();
    client.set_unread(!http_body::Body::is_end_stream(request.body()));
    let mut routed = route(&context, client, request, &mut busy);
    let client = Rc::clone(client);
    async move {
        let answered = match &mut routed {
            Ok(routed) => send(routed).await,
            Err(error) => Err(*error),
        };
        let answered = routed.and_then(|routed| relay(routed, answered));
        let (mut response, last) = match answered {
            Ok((head, relay)) => {
                let (parts, ()) = head.into_parts();
                client.set_unread(relay.upload.as_ref().is_some_and(Upload::is_unread));
                (Response::from_parts(parts, ResponseBody::relay(relay, busy)), false)
            }
            Err(error) => {
                context.cells().replied(error.reason());
                (reply::local(error, busy), error.is_last())
            }
        };
        if last || context.is_draining() || client.is_used_up() {
            if version != Version::HTTP_2 {
                headers::ask_to_close(response.headers_mut());
            } else if client.is_used_up() {
                client.close();
            }
        }
        Ok(response)
    }
}

/// A request that knows where it goes.
struct Routed {
    request: Request<RequestBody>,
    attempt: Attempt,
    wait: Wait,
    cookie: Option<HeaderValue>,
}

/// Routes and assigns a request, and makes it ready to be sent.
fn route(
    context: &Context,
    client: &Client,
    request: Request<Incoming>,
    busy: &mut Busy,
) -> Result<Routed, ProxyError> {
    let started = clock::monotonic();
    let (mut parts, body) = request.into_parts();
    headers::check(&parts, client.edge())?;
    names::screen(&mut parts.headers, client.edge())?;
    forwarded::identify(&mut parts.headers, client, || context.random());
    let view = context.view();
    let topology = view.snapshot.topology();
    let path = parts.uri.path();
    let service = topology.route(headers::authority(&parts)?, path).ok_or(ProxyError::NoRoute)?;
    let limits = &topology.service(service).limits;
    if let Some(gate) = view.gate(service) {
        busy.keep(gate.admit(|| client.address(&parts.headers), started)?);
    }
    if limits.max_body_size.is_some_and(|most| http_body::Body::size_hint(&body).lower() > most) {
        return Err(ProxyError::BodyTooLarge);
    }
    let (assignment, cookie) = assign(context, &view, service, &parts);
    let endpoints = view.endpoints(assignment.backend);
    let endpoint = endpoint::choose(endpoints, |e| e.load(), context.random());
    let endpoint = Rc::clone(endpoint.ok_or(ProxyError::NoEndpoint)?);

    headers::prepare_request(&mut parts, client, endpoint.address());
    let (body, progress) = RequestBody::new(body, limits, started);
    let attempt = Attempt::begin(view.writer(assignment.backend, assignment.role), endpoint, started);
    let timeouts = topology.service(service).timeouts;
    let wait = Wait { deadline: context.timers().deadline(), timeouts, progress };
    Ok(Routed { request: Request::from_parts(parts, body), attempt, wait, cookie })
}

/// What has been answered, or why nothing has, once the attempt knows.
fn relay(
    routed: Routed,
    answered: Result<(Upstream, Response<Incoming>), ProxyError>,
) -> Result<(Response<()>, Relay), ProxyError> {
    let Routed { request: _, mut attempt, wait, cookie } = routed;
    let answered = answered.and_then(|(connection, response)| match response.status() {
        // Nobody asked for it, since `Upgrade` does not pass.
        StatusCode::SWITCHING_PROTOCOLS => Err(ProxyError::Reset),
        _ => Ok((connection, response)),
    });
    let (connection, response) = answered.inspect_err(|error| {
        if let Some(outcome) = error.outcome() {
            attempt.end(outcome);
        }
    })?;
    let (mut head, body) = response.into_parts();
    headers::prepare_response(&mut head);
    if let Some(cookie) = cookie {
        head.headers.append(header::SET_COOKIE, cookie);
    }
    let Wait { deadline, timeouts, progress } = wait;
    deadline.disarm();
    let upload = progress.map(Upload::new);
    let outcome = Outcome::of_status(head.status);
    let relay = Relay { body, connection, attempt, outcome, deadline, upload, idle_timeout: timeouts.idle };
    Ok((Response::from_parts(head, ()), relay))
}

/// Chooses the backend: by the client's cookie where the service has one, else by chance. A client
/// that should have a cookie and has none gets one.
fn assign(
    context: &Context,
    view: &View,
    service: ServiceId,
    parts: &request::Parts,
) -> (Assignment, Option<HeaderValue>) {
    let split = view.snapshot.split(service);
    let Some(sticky) = &view.snapshot.topology().service(service).sticky else {
        return (split.by_chance(context.random()), None);
    };
    match sticky::find(&parts.headers, sticky) {
        Some(key) => (split.by_key(key), None),
        None => {
            let key = sticky::key(context.random());
            (split.by_key(&key), sticky::set_cookie(key, sticky))
        }
    }
}

/// Sends a request to an endpoint and waits for the response's head, on a connection that was idle
/// if there is one, else on a new one.
///
/// A connection that turns out to have been closed while it was idle is no failure: another one is
/// taken. This ends, because idle connections do.
async fn send(routed: &mut Routed) -> Result<(Upstream, Response<Incoming>), ProxyError> {
    let Routed { request, attempt, wait, cookie: _ } = routed;
    while let Some(mut connection) = attempt.endpoint().take_idle() {
        let spare = spare_copy(request, &connection);
        let response = pin!(connection.send(std::mem::take(request)));
        match respond(&mut connection, response, wait).await {
            Ok(response) => return Ok((connection, response)),
            Err(Failure::Unsent(unsent)) => *request = *unsent,
            Err(Failure::Broken) => *request = *spare.ok_or(ProxyError::Reset)?,
            Err(Failure::Final(error)) => return Err(error),
        }
    }
    // Seldom, so its size is not carried by every exchange.
    let mut connection = Box::pin(open(attempt, wait.timeouts.connect)).await?;
    let response = pin!(connection.send(std::mem::take(request)));
    match respond(&mut connection, response, wait).await {
        Ok(response) => Ok((connection, response)),
        Err(Failure::Unsent(_) | Failure::Broken) => Err(ProxyError::Reset),
        Err(Failure::Final(error)) => Err(error),
    }
}

async fn open(attempt: &Attempt, timeout: Duration) -> Result<Upstream, ProxyError> {
    let endpoint = attempt.endpoint();
    let connected = connect(endpoint.address(), endpoint.tls().map(|tls| &**tls), timeout).await;
    let stream = connected.map_err(|error| {
        attempt.connect_failed();
        tracing::debug!(endpoint = %attempt.endpoint().address(), ?error, "no connection");
        ProxyError::from(&error)
    })?;
    Ok(Box::new(Connection::new(stream).await.map_err(|_| ProxyError::Reset)?))
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
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(Box::new(copy))
}

/// What an exchange waits for, and for how long.
struct Wait {
    deadline: Deadline,
    timeouts: Timeouts,
    progress: Option<Rc<Progress>>,
}

enum Failure {
    /// Not a byte was sent; here is the request back.
    Unsent(Box<Request<RequestBody>>),
    /// The connection broke, or what came was not HTTP.
    Broken,
    /// It is known who is to blame: the client, or whoever took too long.
    Final(ProxyError),
}

type Unsent = TrySendError<Request<RequestBody>>;

/// Drives a connection until the response's head is there.
async fn respond(
    connection: &mut Upstream,
    mut response: Pin<&mut impl Future<Output = Result<Response<Incoming>, Unsent>>>,
    wait: &Wait,
) -> Result<Response<Incoming>, Failure> {
    let mut chunks = None;
    let mut hurried = false;
    wait.deadline.arm(wait.timeouts.response);
    poll_fn(|cx| {
        let _over = connection.poll_drive(cx);
        // Only driving the connection brings the response, so it need not wake us a second time.
        if let Poll::Ready(result) = response.as_mut().poll(&mut task::Context::from_waker(Waker::noop())) {
            return Poll::Ready(result.map_err(|mut error| match error.take_message() {
                Some(unsent) => Failure::Unsent(Box::new(unsent)),
                None => match wait.progress.as_ref().and_then(|progress| progress.fault()) {
                    Some(fault) => Failure::Final(fault),
                    None => Failure::Broken,
                },
            }));
        }
        // The response is due only once the request is complete; until then, each chunk buys time.
        if let Some(progress) = &wait.progress
            && chunks != Some((progress.chunks.get(), progress.done.get()))
        {
            chunks = Some((progress.chunks.get(), progress.done.get()));
            hurried = !progress.done.get() && progress.is_watched();
            let idle = wait.timeouts.idle;
            let patience = if progress.done.get() { wait.timeouts.response } else { progress.patience(idle) };
            wait.deadline.arm(patience);
        }
        ready!(wait.deadline.poll_expired(cx));
        if wait.progress.as_ref().is_some_and(|progress| progress.is_stalled()) {
            return Poll::Ready(Err(Failure::Final(ProxyError::RequestTimeout)));
        }
        // It was the client's time that ran out, and it is the backend that does not read: that has
        // the time of a backend.
        if std::mem::take(&mut hurried) {
            wait.deadline.arm(wait.timeouts.idle);
            return wait.deadline.poll_expired(cx).map(|()| Err(Failure::Final(ProxyError::ResponseTimeout)));
        }
        Poll::Ready(Err(Failure::Final(ProxyError::ResponseTimeout)))
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
