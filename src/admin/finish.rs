//! What has been asked for is seen through, whether or not whoever asked is still there.
//!
//! A write goes into a queue and is done from there, so that it cannot be taken back by going away, or by an end of
//! patience. With its client it would only lose what comes after it: its line in the audit, and the answer that is
//! kept for those who ask again. So it has a task of its own, which ends when it is known what has come of it.

use std::{
    error::Error as _,
    sync::{Arc, Weak},
};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::StatusCode;
use http_body_util::LengthLimitError;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    problem::Problem,
    server::{MAX_BODY, TIMEOUT},
};

/// Somebody who waits for what comes of a write: it can be upgraded for as long as they do.
#[derive(Debug, Clone)]
pub(super) struct Asker(pub(super) Weak<()>);

/// The middleware.
pub(super) async fn finish(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let end = Instant::now() + TIMEOUT;
    let (mut parts, body) = request.into_parts();
    // First, since that is up to the client: the task could be kept for ever.
    let body = match timeout_at(end, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) if error.source().is_some_and(|source| source.is::<LengthLimitError>()) => {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large: 64 KiB is the most");
        }
        Ok(Err(_)) => return refuse(StatusCode::BAD_REQUEST, "the body did not arrive whole"),
        Err(_) => {
            let detail = format!("the body did not arrive within {} s", TIMEOUT.as_secs());
            return refuse(StatusCode::REQUEST_TIMEOUT, detail);
        }
    };
    let waits = Arc::new(());
    parts.extensions.insert(Asker(Arc::downgrade(&waits)));
    let done = tokio::spawn(next.run(Request::from_parts(parts, Body::from(body))));
    match timeout_at(end, done).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be worked on"),
        Err(_) => {
            let seconds = TIMEOUT.as_secs();
            let detail = format!(
                "no answer within {seconds} s, and it may still be done: look how it stands, or ask again with the same `Idempotency-Key`"
            );
            refuse(StatusCode::GATEWAY_TIMEOUT, detail)
        }
    }
}

/// The middleware for what takes nothing with it when it is given up.
pub(super) async fn read_in_time(request: Request, next: Next) -> Response {
    if !request.method().is_safe() {
        return next.run(request).await;
    }
    timeout(TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
        refuse(StatusCode::GATEWAY_TIMEOUT, format!("no answer within {} s", TIMEOUT.as_secs()))
    })
}

fn refuse(status: StatusCode, detail: impl Into<String>) -> Response {
    Problem::new(status, detail).into_response()
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        sync::atomic::{AtomicUsize, Ordering},
        task::{Context, Poll},
    };

    use axum::{Extension, Router, middleware, routing::post};
    use bytes::Bytes;
    use http_body::Frame;
    use tokio::sync::Notify;
    use tower::ServiceExt as _;

    use super::*;
    use crate::admin::{
        actor::{Actor, Who},
        idempotency::{self, KEY, Memory, UNDER_WAY},
    };

    /// Something that is done once `goes_on` is told so.
    #[derive(Default)]
    struct Slow {
        goes_on: Notify,
        begun: AtomicUsize,
        /// How often somebody still waited at the end.
        waited: AtomicUsize,
    }

    impl Slow {
        async fn work(&self, Asker(asker): Asker) -> &'static str {
            self.begun.fetch_add(1, Ordering::Relaxed);
            self.goes_on.notified().await;
            self.waited.fetch_add(asker.strong_count(), Ordering::Relaxed);
            "done"
        }

        fn router(self: &Arc<Self>) -> Router {
            let slow = Arc::clone(self);
            let work = async move |Extension(asker): Extension<Asker>| slow.work(asker).await;
            let actor = Actor::with_all(Who::Named("ci".to_owned()));
            Router::new()
                .route("/", post(work).get(std::future::pending::<()>))
                .layer(middleware::from_fn(read_in_time))
                .layer(middleware::from_fn_with_state(Memory::default(), idempotency::once))
                .layer(middleware::from_fn(finish))
                .layer(Extension(actor))
        }
    }

    /// A body of which nothing comes.
    struct Never;

    impl http_body::Body for Never {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    async fn ask(router: &Router, request: http::request::Builder, body: Body) -> (StatusCode, String) {
        let response = router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    fn write() -> http::request::Builder {
        Request::post("/").header(KEY, "k")
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_being_done_is_not_done_again() {
        let slow = Arc::new(Slow::default());
        let router = slow.router();
        let (status, said) = ask(&router, write(), Body::empty()).await;
        assert!(status == 504 && said.contains("it may still be done"), "{status} {said}");
        let (status, said) = ask(&router, write(), Body::empty()).await;
        assert!(status == 409 && said.contains(UNDER_WAY), "{status} {said}");
        slow.goes_on.notify_one();
        let mut answer = ask(&router, write(), Body::empty()).await;
        while answer.0 == 409 {
            tokio::task::yield_now().await;
            answer = ask(&router, write(), Body::empty()).await;
        }
        assert_eq!(answer, (StatusCode::OK, "done".to_owned()));
        assert_eq!(slow.begun.load(Ordering::Relaxed), 1);
        assert_eq!(slow.waited.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_known_to() {
        let slow = Arc::new(Slow::default());
        slow.goes_on.notify_one();
        assert_eq!(ask(&slow.router(), write(), Body::empty()).await.0, 200);
        assert_eq!(slow.waited.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_ends_is_given_up() {
        let router = Arc::new(Slow::default()).router();
        assert_eq!(ask(&router, Request::get("/"), Body::empty()).await.0, 504);
        let (status, said) = ask(&router, write(), Body::new(Never)).await;
        assert!(status == 408 && said.contains("within 10 s"), "{status} {said}");
    }
}
