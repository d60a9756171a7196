//! Replies that Tidegate makes itself.
//!
//! They carry `Proxy-Status` (RFC 9209), which no backend's own error does, so that a client or a log
//! can tell one from the other.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::{body::ResponseBody, client::Busy, error::ProxyError};

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The reply to a request that cannot be forwarded.
pub(super) fn local(error: ProxyError, busy: Busy) -> Response<ResponseBody> {
    let (status, proxy_status, text) = wording(error);
    let mut response = Response::new(ResponseBody::local(text, busy));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(PROXY_STATUS, HeaderValue::from_static(proxy_status));
    match error {
        ProxyError::RateLimited { retry_after } => {
            drop(headers.insert(header::RETRY_AFTER, retry_after.into()))
        }
        ProxyError::Overloaded => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"))),
        _ => {}
    }
    response
}

/// Status, `Proxy-Status` and text, all fixed: nothing of what went wrong inside is told outside.
fn wording(error: ProxyError) -> (StatusCode, &'static str, &'static str) {
    match error {
        ProxyError::BadHost => (
            StatusCode::BAD_REQUEST,
            "tidegate; error=http_request_error; details=\"host\"",
            "400: the request needs exactly one valid Host\n",
        ),
        ProxyError::Underscore => (
            StatusCode::BAD_REQUEST,
            "tidegate; error=http_request_error; details=\"underscore\"",
            "400: header names with an underscore are refused\n",
        ),
        ProxyError::UriTooLong => (
            StatusCode::URI_TOO_LONG,
            "tidegate; error=http_request_error; details=\"target\"",
            "414: the request's target is too long\n",
        ),
        ProxyError::TooManyHeaders => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "tidegate; error=http_request_error; details=\"headers\"",
            "431: the request has too many headers\n",
        ),
        ProxyError::BodyTooLarge => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "tidegate; error=http_request_denied; details=\"body\"",
            "413: the request's body is too large\n",
        ),
        ProxyError::RateLimited { .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            "tidegate; error=http_request_denied; details=\"rate\"",
            "429: too many requests\n",
        ),
        ProxyError::Overloaded => (
            StatusCode::SERVICE_UNAVAILABLE,
            "tidegate; error=connection_limit_reached",
            "503: too many requests at a time\n",
        ),
        ProxyError::UnknownTransferCoding => (
            StatusCode::NOT_IMPLEMENTED,
            "tidegate; error=http_request_error; details=\"transfer-encoding\"",
            "501: the only transfer coding understood is chunked\n",
        ),
        ProxyError::ConnectMethod => (
            StatusCode::METHOD_NOT_ALLOWED,
            "tidegate; error=http_request_denied; details=\"connect\"",
            "405: CONNECT is not answered here\n",
        ),
        ProxyError::BrokenBody => (
            StatusCode::BAD_REQUEST,
            "tidegate; error=http_request_error; details=\"body\"",
            "400: the request's body ended early or is malformed\n",
        ),
        ProxyError::RequestTimeout => (
            StatusCode::REQUEST_TIMEOUT,
            "tidegate; error=http_request_error; details=\"timeout\"",
            "408: the request did not arrive in time\n",
        ),
        ProxyError::NoRoute => (
            StatusCode::NOT_FOUND,
            "tidegate; error=destination_not_found",
            "404: no route for this host and path\n",
        ),
        ProxyError::NoEndpoint => (
            StatusCode::SERVICE_UNAVAILABLE,
            "tidegate; error=destination_unavailable",
            "503: the backend has no endpoint\n",
        ),
        ProxyError::ConnectFailure => (
            StatusCode::BAD_GATEWAY,
            "tidegate; error=connection_refused",
            "502: the backend takes no connection\n",
        ),
        ProxyError::ConnectTimeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "tidegate; error=connection_timeout",
            "504: the backend took no connection in time\n",
        ),
        ProxyError::ResponseTimeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "tidegate; error=http_response_timeout",
            "504: the backend did not answer in time\n",
        ),
        ProxyError::Reset => (
            StatusCode::BAD_GATEWAY,
            "tidegate; error=connection_terminated",
            "502: the backend broke the connection\n",
        ),
        ProxyError::TlsProtocol => (
            StatusCode::BAD_GATEWAY,
            "tidegate; error=tls_protocol_error",
            "502: the backend speaks no TLS that is understood\n",
        ),
        ProxyError::TlsCertificate => (
            StatusCode::BAD_GATEWAY,
            "tidegate; error=tls_certificate_error",
            "502: the backend's certificate is not valid\n",
        ),
    }
}
