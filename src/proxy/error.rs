//! Why a request cannot be forwarded, and who is to blame.

use crate::{
    model::outcome::Outcome,
    routing::retry::Failure,
    telemetry::local_reason::LocalReason,
    upstream::{backend::Unavailable, connect::ConnectError},
};

/// Why a request cannot be forwarded, or its response not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyError {
    /// HTTP/1.1 wants exactly one `Host`, and it must be readable.
    BadHost,
    /// A path that two readers could read in two ways.
    BadPath,
    /// A header name with an underscore, where the listener refuses them.
    Underscore,
    /// The target is too long.
    UriTooLong,
    /// The head has too many fields.
    TooManyHeaders,
    /// The body is larger than the service takes.
    BodyTooLarge,
    /// The service, or the client, has had its share of requests for now.
    RateLimited {
        /// Seconds after which there is room again.
        retry_after: u16,
    },
    /// The service has as many requests as it takes at a time.
    Overloaded,
    /// A transfer coding other than `chunked`.
    UnknownTransferCoding,
    /// CONNECT, which only a forward proxy answers.
    ConnectMethod,
    /// The client's body ended early, or what came was not a body.
    BrokenBody,
    /// The client stopped in the middle of its request.
    RequestTimeout,
    /// No route matched.
    NoRoute,
    /// The preview was asked for, and no backend is on trial.
    NoCanary,
    /// The backend has no endpoint.
    NoEndpoint,
    /// None of the backend's endpoints is healthy.
    NoHealthyEndpoint,
    /// The backend has all the requests that it may have, or too many wait for a connection already.
    Overflow,
    /// No connection became free in time.
    PendingTimeout,
    /// The endpoint refused the connection.
    ConnectFailure,
    /// The endpoint took no connection in time.
    ConnectTimeout,
    /// The response did not begin in time.
    ResponseTimeout,
    /// The connection broke before the response began, or what came was not HTTP.
    Reset,
    /// The backend has not looked at the request: it refused the stream, or closed the connection before a
    /// byte was sent.
    Unseen,
    /// The backend was rolled back before the response began, and the time that it had left is over.
    Cut,
    /// The backend cannot switch to another protocol over HTTP/2, or answers as if it had.
    NoUpgrade,
    /// The endpoint speaks no TLS that we do.
    TlsProtocol,
    /// The endpoint speaks another protocol in TLS than the one that it is written with.
    TlsAlpn,
    /// The endpoint's certificate is not to be believed.
    TlsCertificate,
}

impl ProxyError {
    /// Under which reason the reply is counted.
    pub fn reason(self) -> LocalReason {
        match self {
            Self::BadHost
            | Self::BadPath
            | Self::Underscore
            | Self::UnknownTransferCoding
            | Self::ConnectMethod
            | Self::BrokenBody => LocalReason::BadRequest,
            Self::UriTooLong => LocalReason::UriTooLong,
            Self::TooManyHeaders => LocalReason::HeadTooLarge,
            Self::BodyTooLarge => LocalReason::BodyTooLarge,
            Self::RateLimited { .. } => LocalReason::RateLimited,
            Self::Overloaded => LocalReason::Overloaded,
            Self::RequestTimeout => LocalReason::RequestTimeout,
            Self::NoRoute => LocalReason::NoRoute,
            Self::NoCanary => LocalReason::NoCanary,
            Self::NoEndpoint => LocalReason::NoEndpoint,
            Self::NoHealthyEndpoint => LocalReason::NoHealthyEndpoint,
            Self::Overflow => LocalReason::UpstreamOverflow,
            Self::PendingTimeout => LocalReason::PendingTimeout,
            Self::ConnectFailure => LocalReason::ConnectFailure,
            Self::ConnectTimeout => LocalReason::ConnectTimeout,
            Self::ResponseTimeout => LocalReason::ResponseTimeout,
            Self::Reset | Self::Unseen => LocalReason::Reset,
            Self::Cut => LocalReason::Cut,
            Self::NoUpgrade => LocalReason::NoUpgrade,
            Self::TlsProtocol | Self::TlsAlpn => LocalReason::TlsProtocolError,
            Self::TlsCertificate => LocalReason::TlsCertificateError,
        }
    }

    /// Whether the client's connection has to end, because it is not certain where the next request
    /// begins: somebody in front may have seen other bounds.
    pub fn is_last(self) -> bool {
        matches!(
            self.reason(),
            LocalReason::BadRequest | LocalReason::RequestTimeout | LocalReason::BodyTooLarge
        )
    }

    /// Whether it is our own limits that kept the request from the backend: the attempt then says
    /// nothing at all, not even that the client went away.
    pub fn is_limit(self) -> bool {
        matches!(self, Self::Overflow | Self::PendingTimeout)
    }

    /// How the attempt at the backend ended, if it is the backend that is to blame, or the rollback of it.
    pub fn outcome(self) -> Option<Outcome> {
        match self {
            Self::BadHost
            | Self::BadPath
            | Self::Underscore
            | Self::UriTooLong
            | Self::TooManyHeaders
            | Self::BodyTooLarge
            | Self::RateLimited { .. }
            | Self::Overloaded
            | Self::UnknownTransferCoding
            | Self::ConnectMethod
            | Self::BrokenBody
            | Self::RequestTimeout
            | Self::NoRoute
            | Self::NoCanary
            | Self::NoEndpoint
            | Self::NoHealthyEndpoint
            | Self::Overflow
            | Self::PendingTimeout => None,
            Self::ConnectFailure
            | Self::ConnectTimeout
            | Self::TlsProtocol
            | Self::TlsAlpn
            | Self::TlsCertificate => Some(Outcome::ConnectFailure),
            Self::ResponseTimeout => Some(Outcome::Timeout),
            Self::Reset | Self::Unseen | Self::NoUpgrade => Some(Outcome::Reset),
            Self::Cut => Some(Outcome::Cut),
        }
    }

    /// How the try has failed, if it is one that might be made again.
    pub fn failure(self) -> Option<Failure> {
        match self {
            Self::Unseen => Some(Failure::Unseen),
            _ => match self.outcome()? {
                Outcome::ConnectFailure => Some(Failure::Connect),
                _ => Some(Failure::Reset),
            },
        }
    }
}

impl From<Unavailable> for ProxyError {
    fn from(why: Unavailable) -> Self {
        match why {
            Unavailable::NoEndpoint => Self::NoEndpoint,
            Unavailable::NoneHealthy => Self::NoHealthyEndpoint,
            Unavailable::Overflow => Self::Overflow,
        }
    }
}

impl From<&ConnectError> for ProxyError {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Tcp(_) => Self::ConnectFailure,
            ConnectError::TimedOut(_) => Self::ConnectTimeout,
            ConnectError::Tls(_) => Self::TlsProtocol,
            ConnectError::Alpn(_) => Self::TlsAlpn,
            ConnectError::Certificate(_) => Self::TlsCertificate,
        }
    }
}
