//! Replies that Tidegate makes itself.
//!
//! They carry `Proxy-Status` (RFC 9209), which no backend's own error does, so that a client or a log
//! can tell one from the other.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::{body::ResponseBody, client::Busy, error::ProxyError, grpc};
use crate::telemetry::local_reason::LocalReason;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// What Tidegate answers itself.
#[derive(Debug)]
pub(super) enum Local {
    /// The request cannot be forwarded.
    Error(ProxyError),
    /// The client is to ask elsewhere.
    Redirect(StatusCode, HeaderValue),
}

impl From<ProxyError> for Local {
    fn from(error: ProxyError) -> Self {
        Self::Error(error)
    }
}

impl Local {
    /// Under which reason it is counted.
    pub(super) fn reason(&self) -> LocalReason {
        match self {
            Self::Error(error) => error.reason(),
            Self::Redirect(..) => LocalReason::Redirect,
        }
    }

    /// Whether the client's connection has to end after it.
    pub(super) fn is_last(&self) -> bool {
        match self {
            Self::Error(error) => error.is_last(),
            Self::Redirect(..) => false,
        }
    }

    /// The reply, in gRPC's form if an error answers a call.
    pub(super) fn into_response(self, is_call: bool, busy: Busy) -> Response<ResponseBody> {
        match self {
            Self::Error(error) => refusal(error, is_call, busy),
            Self::Redirect(status, location) => {
                let text = "this is at the address in Location\n";
                let mut response = plain(status, "tidegate; details=\"redirect\"", text, busy);
                response.headers_mut().insert(header::LOCATION, location);
                response
            }
        }
    }
}

fn refusal(error: ProxyError, is_call: bool, busy: Busy) -> Response<ResponseBody> {
    let (status, proxy_status, text) = wording(error);
    let mut response = plain(status, proxy_status, if is_call { "" } else { text }, busy);
    let retry_after = match error {
        ProxyError::RateLimited { retry_after } => Some(retry_after.into()),
        // It has room again as soon as one request ends.
        ProxyError::Overloaded => Some(HeaderValue::from_static("1")),
        error => error.is_limit().then_some(HeaderValue::from_static("1")),
    };
    if let Some(retry_after) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after);
    }
    if is_call {
        // The text without its status and its end of line, which no field may have.
        grpc::dress(&mut response, text[STATUS_LENGTH..].trim_end());
    }
    response
}

fn plain(
    status: StatusCode,
    proxy_status: &'static str,
    text: &'static str,
    busy: Busy,
) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::local(text, busy));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(PROXY_STATUS, HeaderValue::from_static(proxy_status));
    response
}

/// What each text begins with, such as `502: `.
const STATUS_LENGTH: usize = 5;

/// Status, `Proxy-Status` and text, all fixed: nothing of what went wrong inside is told outside.
fn wording(error: ProxyError) -> (StatusCode, &'static str, &'static str) {
    match error {
        ProxyError::BadHost => (
            StatusCode::BAD_REQUEST,
            "tidegate; error=http_request_error; details=\"host\"",
            "400: the request needs exactly one valid Host\n",
        ),
        ProxyError::BadPath => (
            StatusCode::BAD_REQUEST,
            "tidegate; error=http_request_error; details=\"path\"",
            "400: the path can be read in more than one way\n",
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
            "404: no route for this request\n",
        ),
        ProxyError::NoCanary => (
            StatusCode::SERVICE_UNAVAILABLE,
            "tidegate; error=destination_unavailable; details=\"no canary\"",
            "503: there is no canary to be previewed\n",
        ),
        ProxyError::NoEndpoint => (
            StatusCode::SERVICE_UNAVAILABLE,
            "tidegate; error=destination_unavailable",
            "503: the backend has no endpoint\n",
        ),
        ProxyError::NoHealthyEndpoint => (
            StatusCode::SERVICE_UNAVAILABLE,
            "tidegate; error=destination_unavailable; details=\"unhealthy\"",
            "503: no endpoint of the backend is healthy\n",
        ),
        ProxyError::Overflow => (
            StatusCode::SERVICE_UNAVAILABLE,
            "tidegate; error=connection_limit_reached",
            "503: the backend has as many requests as it may have\n",
        ),
        ProxyError::PendingTimeout => (
            StatusCode::SERVICE_UNAVAILABLE,
            "tidegate; error=connection_limit_reached; details=\"timeout\"",
            "503: no connection to the backend became free in time\n",
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
        ProxyError::Reset | ProxyError::Unseen => (
            StatusCode::BAD_GATEWAY,
            "tidegate; error=connection_terminated",
            "502: the backend broke the connection\n",
        ),
        ProxyError::Cut => (
            StatusCode::BAD_GATEWAY,
            "tidegate; error=connection_terminated; details=\"rolled back\"",
            "502: the version that had this request was rolled back\n",
        ),
        ProxyError::NoUpgrade => (
            StatusCode::BAD_GATEWAY,
            "tidegate; error=http_upgrade_failed",
            "502: the backend does not switch protocols\n",
        ),
        ProxyError::TlsProtocol => (
            StatusCode::BAD_GATEWAY,
            "tidegate; error=tls_protocol_error",
            "502: the backend speaks no TLS that is understood\n",
        ),
        ProxyError::TlsAlpn => (
            StatusCode::BAD_GATEWAY,
            "tidegate; error=tls_protocol_error; details=\"alpn\"",
            "502: the backend speaks another protocol with TLS than it should\n",
        ),
        ProxyError::TlsCertificate => (
            StatusCode::BAD_GATEWAY,
            "tidegate; error=tls_certificate_error",
            "502: the backend's certificate is not valid\n",
        ),
    }
}
