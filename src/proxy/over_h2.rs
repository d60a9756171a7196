//! Sending a request to a backend that speaks HTTP/2.
//!
//! hyper drives the connection in a task of its own; here a stream is leased, the request handed over,
//! and its response awaited. A request that the backend says it has not looked at goes to another
//! stream: one that was not sent when the connection ended, one that is refused, and one that a
//! GOAWAY leaves out (RFC 9113, section 8.7).

use std::{error::Error, future::poll_fn, pin::pin, task::Poll, time::Instant};

use h2::Reason;
use http::{Method, Request, Response};
use http_body::Body;
use hyper::body::Incoming;

use super::{
    attempt::Attempt,
    error::ProxyError,
    exchange::{Held, Look, Routed, Wait, copy_head},
    headers,
    upload::RequestBody,
};
use crate::{
    clock,
    upstream::{
        connect::{ConnectError, connect},
        pool::h2::{Lease, NoStream, Place},
    },
};

/// How often a request is handed over. A backend that refuses it so often will not take it.
const MAX_TRIES: u32 = 3;

/// Sends a request and waits for the response's head.
pub(super) async fn send(routed: &mut Routed) -> Result<(Held, Response<Incoming>), ProxyError> {
    let (mut parts, body) = std::mem::take(&mut routed.request).into_parts();
    let (attempt, wait) = (&routed.attempt, &routed.wait);
    headers::for_http2(&mut parts)?;
    let mut request = Request::from_parts(parts, body);
    for _ in 0..MAX_TRIES {
        let lease = lease(attempt, wait).await?;
        if request.method() == Method::CONNECT && !lease.takes_extended_connect(wait.timeouts.connect).await {
            return Err(ProxyError::NoUpgrade);
        }
        if let Some(call) = &wait.call {
            call.forward(request.headers_mut());
        }
        let spare = spare_copy(&request);
        match respond(&lease, request, routed).await {
            Ok(response) => {
                lease.settle();
                return Ok((Held::Http2(lease), response));
            }
            Err(Failure::Unsent(unsent)) => {
                lease.retire();
                request = *unsent;
            }
            Err(Failure::Unseen { leaving }) => {
                if leaving {
                    lease.retire();
                }
                request = *spare.ok_or(ProxyError::Unseen)?;
            }
            Err(Failure::Final(error)) => {
                if matches!(error, ProxyError::ResponseTimeout) {
                    lease.give_up();
                }
                return Err(error);
            }
        }
    }
    Err(ProxyError::Unseen)
}

/// A stream. Where all are taken and there may be no other connection, the request waits for one, as long as
/// for a connection of HTTP/1.1.
async fn lease(attempt: &Attempt, wait: &Wait) -> Result<Lease<RequestBody>, ProxyError> {
    let endpoint = attempt.endpoint();
    if let Some(lease) = endpoint.shared().take() {
        return Ok(lease);
    }
    let mut place: Option<(Place<'_, RequestBody>, Instant)> = None;
    loop {
        let queued = place.as_ref().map(|(place, _)| place);
        match lease_or_connect(attempt, wait, queued).await {
            Ok(lease) => return Ok(lease),
            Err(NoStream::Unconnected { error, tried }) => {
                if tried {
                    attempt.connect_failed(&error);
                }
                return Err(ProxyError::from(&*error));
            }
            Err(NoStream::Full) => {}
        }
        if attempt.is_copy() {
            return Err(ProxyError::Overflow);
        }
        let now = clock::monotonic();
        let (place, until) = match &mut place {
            Some(place) => place,
            none => {
                let (queued, patience) = endpoint.queue_for_stream().ok_or(ProxyError::Overflow)?;
                none.insert((queued, now + patience))
            }
        };
        wait.deadline.arm(until.saturating_duration_since(now));
        let mut turn = pin!(place.turn());
        poll_fn(|cx| match turn.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => wait.poll_patience(attempt, cx).map(Err),
        })
        .await?;
    }
}

async fn lease_or_connect(
    attempt: &Attempt,
    wait: &Wait,
    place: Option<&Place<'_, RequestBody>>,
) -> Result<Lease<RequestBody>, NoStream> {
    let endpoint = attempt.endpoint();
    let timeout = wait.timeouts.connect;
    let connect = || connect(endpoint.member(), endpoint.tls(), None, timeout);
    wait.deadline.arm(timeout);
    let late = async {
        poll_fn(|cx| wait.deadline.poll_expired(cx)).await;
        ConnectError::TimedOut(timeout)
    };
    endpoint.shared().lease(place, connect, late).await
}

/// A copy of a request without a body: a refused one does not come back. One with a body is not kept,
/// since its first part has gone by the time it is refused.
fn spare_copy(request: &Request<RequestBody>) -> Option<Box<Request<RequestBody>>> {
    let plain = request.body().is_end_stream() && request.extensions().is_empty();
    plain.then(|| Box::new(copy_head(request)))
}

enum Failure {
    /// Not a byte was sent; here is the request back.
    Unsent(Box<Request<RequestBody>>),
    /// Sent, and the backend says that it has not looked at it; perhaps because it is `leaving`.
    Unseen { leaving: bool },
    /// It is known who is to blame.
    Final(ProxyError),
}

async fn respond(
    lease: &Lease<RequestBody>,
    request: Request<RequestBody>,
    routed: &Routed,
) -> Result<Response<Incoming>, Failure> {
    // Nothing has been sent yet.
    if routed.attempt.is_cut() {
        return Err(Failure::Final(ProxyError::Cut));
    }
    let mut response = pin!(lease.send(request));
    let mut look = Look::default();
    routed.wait.deadline.arm(routed.wait.timeouts.response);
    poll_fn(|cx| {
        if let Poll::Ready(result) = response.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(|mut error| match error.take_message() {
                Some(unsent) => Failure::Unsent(Box::new(unsent)),
                None => routed.wait.fault().map_or_else(|| failure(error.error()), Failure::Final),
            }));
        }
        routed.poll_over(&mut look, cx).map(|error| Err(Failure::Final(error)))
    })
    .await
}

fn failure(error: &hyper::Error) -> Failure {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    match h2 {
        Some(h2) if h2.is_remote() && h2.reason() == Some(Reason::REFUSED_STREAM) => {
            Failure::Unseen { leaving: h2.is_go_away() }
        }
        // A graceful one: what it includes goes on, so this request is not included.
        Some(h2) if h2.is_remote() && h2.is_go_away() && h2.reason() == Some(Reason::NO_ERROR) => {
            Failure::Unseen { leaving: true }
        }
        _ => Failure::Final(ProxyError::Reset),
    }
}
