//! Keeps web pages from using a browser to move traffic.
//!
//! A page that somebody opens can make their browser send requests to loopback addresses, and, by
//! answering its own name with such an address, even read the replies. Browsers put `Origin` on
//! every request of a page that may change something, and people's tools do not; so a write that has
//! one is refused, whatever it says.

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};

use super::problem::Problem;

pub(super) async fn refuse_browsers(request: Request, next: Next) -> Response {
    if !request.method().is_safe() && request.headers().contains_key(header::ORIGIN) {
        let detail =
            "this request comes from a web page (it has an `Origin`); only tools may change anything";
        return Problem::new(StatusCode::FORBIDDEN, detail).into_response();
    }
    next.run(request).await
}
