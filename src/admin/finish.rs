//! What has been asked for is seen through, whether or not whoever asked is still there.
//!
//! A write goes into a queue and is done from there, so that it cannot be taken back by going away. With its client
//! it would only lose what comes after it: its line in the audit, and the answer that is kept for those who ask
//! again. So it has a task of its own.

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::StatusCode;

use super::problem::Problem;

/// The middleware.
pub(super) async fn finish(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    tokio::spawn(next.run(request)).await.unwrap_or_else(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be worked on").into_response()
    })
}
