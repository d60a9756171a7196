//! Why a request was answered by Tidegate and not by a backend.

/// Why Tidegate answered a request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalReason {
    /// The request was not acceptable HTTP.
    BadRequest,
    /// The target was too long.
    UriTooLong,
    /// The head had too many fields, or was too long.
    HeadTooLarge,
    /// The body was larger than the service takes.
    BodyTooLarge,
    /// The service or the client had had its share of requests.
    RateLimited,
    /// The service had as many requests as it takes at a time.
    Overloaded,
    /// The client stopped in the middle of its request.
    RequestTimeout,
    /// No route matched.
    NoRoute,
    /// The route sends clients elsewhere.
    Redirect,
    /// The preview was asked for, and there is no canary.
    NoCanary,
    /// The backend has no endpoint.
    NoEndpoint,
    /// None of the backend's endpoints is healthy.
    NoHealthyEndpoint,
    /// The backend has all the requests that it may have, or too many wait for a connection already.
    UpstreamOverflow,
    /// No connection became free in time.
    PendingTimeout,
    /// No connection could be made.
    ConnectFailure,
    /// No connection could be made in time.
    ConnectTimeout,
    /// The response did not begin in time.
    ResponseTimeout,
    /// The connection broke before the response began, or what came was not HTTP.
    Reset,
    /// The backend was rolled back before the response began, and the time that it had left was over.
    Cut,
    /// The backend does not switch protocols as it was asked to.
    NoUpgrade,
    /// The backend speaks no TLS that we do.
    TlsProtocolError,
    /// The backend's certificate is not to be believed.
    TlsCertificateError,
    /// The listener only sends clients to HTTPS.
    RedirectToHttps,
}

impl LocalReason {
    /// Every reason, in the order of its index.
    pub const ALL: [Self; 23] = [
        Self::BadRequest,
        Self::UriTooLong,
        Self::HeadTooLarge,
        Self::BodyTooLarge,
        Self::RateLimited,
        Self::Overloaded,
        Self::RequestTimeout,
        Self::NoRoute,
        Self::Redirect,
        Self::NoCanary,
        Self::NoEndpoint,
        Self::NoHealthyEndpoint,
        Self::UpstreamOverflow,
        Self::PendingTimeout,
        Self::ConnectFailure,
        Self::ConnectTimeout,
        Self::ResponseTimeout,
        Self::Reset,
        Self::Cut,
        Self::NoUpgrade,
        Self::TlsProtocolError,
        Self::TlsCertificateError,
        Self::RedirectToHttps,
    ];

    /// The value of the metric label `reason`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UriTooLong => "uri_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::BodyTooLarge => "body_too_large",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::RequestTimeout => "request_timeout",
            Self::NoRoute => "no_route",
            Self::Redirect => "redirect",
            Self::NoCanary => "no_canary",
            Self::NoEndpoint => "no_endpoint",
            Self::NoHealthyEndpoint => "no_healthy_endpoint",
            Self::UpstreamOverflow => "upstream_overflow",
            Self::PendingTimeout => "pending_timeout",
            Self::ConnectFailure => "connect_failure",
            Self::ConnectTimeout => "connect_timeout",
            Self::ResponseTimeout => "response_timeout",
            Self::Reset => "reset",
            Self::Cut => "cut",
            Self::NoUpgrade => "no_upgrade",
            Self::TlsProtocolError => "tls_protocol_error",
            Self::TlsCertificateError => "tls_certificate_error",
            Self::RedirectToHttps => "redirect_to_https",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense() {
        for (i, reason) in LocalReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
    }
}
