//! Waiting for something to change: a request that is answered when it has (a long poll), and a stream of
//! events. Neither counts among the requests that are worked on at a time; they have places of their own.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Json,
    body::Body,
    extract::{FromRef, State},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use http_body::Frame;
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, interval, timeout},
};

use super::{
    access::{Access, Shown},
    actor::{Actor, Named},
    problem::Problem,
    readiness::Readiness,
    revision,
};
use crate::{
    controller::{
        Controller,
        status::{Occurrence, ServiceStatus},
    },
    model::{name::ServiceName, units::parse_duration},
};

/// Those who may wait at a time.
const PLACES: usize = 64;
/// Longest time that a request may wait.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How often a stream looks for events.
const LOOK: Duration = Duration::from_millis(100);
/// How long a stream says nothing at most, so that nobody in between takes it for dead.
const QUIET: Duration = Duration::from_secs(15);
/// How soon a client whose stream has ended may come again, in milliseconds.
const RETRY: &str = "retry: 1000\n\n";

/// What waiting needs.
#[derive(Debug, Clone)]
pub(super) struct Watching {
    controller: Controller,
    readiness: Readiness,
    access: Access,
    free: Arc<Semaphore>,
}

impl FromRef<Watching> for Access {
    fn from_ref(watching: &Watching) -> Self {
        watching.access.clone()
    }
}

impl Watching {
    pub(super) fn new(controller: Controller, readiness: Readiness, access: Access) -> Self {
        Self { controller, readiness, access, free: Arc::new(Semaphore::new(PLACES)) }
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| {
            let detail = format!("{PLACES} are waiting already; try again, or ask now and then");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        })
    }
}

/// A service as it stands, with the tag of its revision.
pub(super) fn answer(status: ServiceStatus) -> Response {
    let tag = revision::tag(status.revision);
    let mut response = Json(&status).into_response();
    response.headers_mut().insert(header::ETAG, tag);
    // For the audit.
    response.extensions_mut().insert(status);
    response
}

/// `GET /api/v1/services/NAME`; with `If-None-Match` only if it is another revision, for which `?wait=30s`
/// waits.
pub(super) async fn service(
    State(watching): State<Watching>,
    Named(name): Named,
    mut shown: Shown,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = wait(uri.query())?;
    let mut status = watching.controller.watch(&name)?;
    let is_known = |status: &ServiceStatus| revision::is_known(&headers, status.revision);
    let known = is_known(&status.borrow());
    // No other could come that `*` does not stand for, too.
    if known && !wait.is_zero() && revision::names_known(&headers) {
        let _place = watching.place()?;
        tokio::select! {
            // Whichever it is, what is there then is the answer.
            _ = timeout(wait, status.wait_for(|status| !is_known(status))) => {}
            () = watching.readiness.draining() => {}
        }
        if !shown.is_valid() {
            let detail = "what you have shown to say who you are is not valid any more";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, detail));
        }
    }
    let status = status.borrow().clone();
    if is_known(&status) {
        return Ok(
            (StatusCode::NOT_MODIFIED, [(header::ETAG, revision::tag(status.revision))]).into_response()
        );
    }
    Ok(answer(status))
}

/// `wait` of a query.
fn wait(query: Option<&str>) -> Result<Duration, Problem> {
    let parameters = query.unwrap_or_default().split('&');
    let written = parameters.filter_map(|parameter| parameter.strip_prefix("wait=")).next_back();
    let Some(written) = written else { return Ok(Duration::ZERO) };
    parse_duration(written).ok().filter(|wait| *wait <= MAX_WAIT).ok_or_else(|| {
        let detail = "`wait` is a time of up to a minute, such as `30s`";
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })
}

/// `GET /api/v1/events`: what happens to all services that the actor may have to do with.
pub(super) async fn events(
    State(watching): State<Watching>,
    actor: Actor,
    shown: Shown,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    stream(watching, shown, &headers, move |name| actor.may_touch(name.as_str()))
}

/// `GET /api/v1/services/NAME/events`.
pub(super) async fn service_events(
    State(watching): State<Watching>,
    Named(name): Named,
    shown: Shown,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wanted = watching.controller.service(&name)?.name;
    stream(watching, shown, &headers, move |name| *name == wanted)
}

/// An event as it is sent.
#[derive(Serialize)]
struct Sent<'e> {
    service: &'e ServiceName,
    #[serde(flatten)]
    event: &'e Occurrence,
}

/// Events from the one that was read last, or else from now on, as server-sent events, for as long as it is valid
/// what whoever reads them has shown.
fn stream(
    watching: Watching,
    mut shown: Shown,
    headers: &HeaderMap,
    wanted: impl Fn(&ServiceName) -> bool + Send + 'static,
) -> Result<Response, Problem> {
    let place = watching.place()?;
    let mut last = match headers.get("last-event-id") {
        Some(id) => id.to_str().ok().and_then(|id| id.parse::<u64>().ok()).ok_or_else(|| {
            let detail = "`Last-Event-ID` is the `id` of an event, or 0 for all that are kept";
            Problem::new(StatusCode::BAD_REQUEST, detail)
        })?,
        None => {
            let kept = watching.controller.events_since(0, |_| true);
            kept.last().map_or(0, |(_, event)| event.id)
        }
    };
    let (feed, fed) = mpsc::channel(8);
    tokio::spawn(async move {
        let _place = place;
        let Watching { controller, readiness, .. } = watching;
        let (mut looks, mut spoken) = (interval(LOOK), Instant::now());
        let mut text = RETRY.to_owned();
        let draining = readiness.draining();
        tokio::pin!(draining);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = &mut draining => return,
                () = feed.closed() => return,
            }
            if !shown.is_valid() {
                return;
            }
            for (service, event) in controller.events_since(last, &wanted) {
                last = event.id;
                let data = Sent { service: &service, event: &event };
                let data = serde_json::to_string(&data).expect("an event has only texts and numbers");
                text += &format!("id: {last}\ndata: {data}\n\n");
            }
            if text.is_empty() && spoken.elapsed() >= QUIET {
                text += ":\n\n";
            }
            if !text.is_empty() {
                spoken = Instant::now();
                if feed.send(Bytes::from(std::mem::take(&mut text))).await.is_err() {
                    return;
                }
            }
        }
    });
    let mut response = Response::new(Body::new(Fed(fed)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

/// A body of what is sent through a channel.
struct Fed(mpsc::Receiver<Bytes>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_time_of_up_to_a_minute() {
        assert_eq!(wait(None).unwrap(), Duration::ZERO);
        assert_eq!(wait(Some("x=1&wait=30s")).unwrap(), Duration::from_secs(30));
        for wrong in ["wait=", "wait=30", "wait=61s", "wait=-1s", "wait=soon"] {
            assert_eq!(wait(Some(wrong)).unwrap_err().status, 400, "{wrong}");
        }
    }
}
