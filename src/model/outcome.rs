//! How one attempt at a backend ended, and whether the backend is to blame.

use http::StatusCode;

/// How one attempt at a backend ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A whole response with a status of 100 to 199 (an accepted upgrade).
    Informational,
    /// A whole response with a status of 200 to 299.
    Success,
    /// A whole response with a status of 300 to 399.
    Redirect,
    /// A whole response with a status of 400 to 499.
    ClientError,
    /// A whole response with a status of 500 or more.
    ServerError,
    /// No connection could be made.
    ConnectFailure,
    /// Connected, but the response did not come, or not all of it, in time.
    Timeout,
    /// The connection broke, or what came was not HTTP.
    Reset,
    /// The client went away first. Counts neither for nor against the backend.
    ClientAbort,
    /// A whole response with status 200 whose gRPC status says that the server failed, or that has none.
    GrpcFailure,
    /// Tidegate has ended it, as the backend was rolled back and the time that it had left is over. Counts neither
    /// for nor against the backend.
    Cut,
}

impl Outcome {
    /// Every outcome, in the order of its index.
    pub const ALL: [Self; 11] = [
        Self::Informational,
        Self::Success,
        Self::Redirect,
        Self::ClientError,
        Self::ServerError,
        Self::ConnectFailure,
        Self::Timeout,
        Self::Reset,
        Self::ClientAbort,
        Self::GrpcFailure,
        Self::Cut,
    ];

    /// The outcome of a whole response with this status.
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            ..=199 => Self::Informational,
            200..=299 => Self::Success,
            300..=399 => Self::Redirect,
            400..=499 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }

    /// A dense number for tables, 0 to 10.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the metric label `status`: a status class, or what happened instead of one.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Informational => "1xx",
            Self::Success => "2xx",
            Self::Redirect => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::ConnectFailure => "connect_failure",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::ClientAbort => "client_abort",
            Self::GrpcFailure => "grpc_failure",
            Self::Cut => "cut",
        }
    }

    /// Whether the backend failed, unless it is written for its service or route which statuses do.
    pub const fn is_failure(self) -> bool {
        matches!(
            self,
            Self::ServerError | Self::ConnectFailure | Self::Timeout | Self::Reset | Self::GrpcFailure
        )
    }

    /// Whether it is that of a whole response with a status, and of no call that says more in a 200.
    pub const fn is_status(self) -> bool {
        use Outcome::{ClientError, Informational, Redirect, ServerError, Success};
        matches!(self, Informational | Success | Redirect | ClientError | ServerError)
    }

    /// Whether the attempt says anything about the backend.
    pub const fn counts(self) -> bool {
        !matches!(self, Self::ClientAbort | Self::Cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense_and_labels_differ() {
        for (i, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.index(), i);
        }
        let mut labels: Vec<_> = Outcome::ALL.iter().map(|o| o.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Outcome::ALL.len());
    }

    #[test]
    fn five_hundreds_and_broken_connections_are_failures() {
        assert!(Outcome::of_status(StatusCode::BAD_GATEWAY).is_failure());
        assert!(Outcome::Reset.is_failure());
        assert!(!Outcome::of_status(StatusCode::NOT_FOUND).is_failure());
        assert!(!Outcome::ClientAbort.is_failure() && !Outcome::ClientAbort.counts());
        assert!(!Outcome::Cut.is_failure() && !Outcome::Cut.counts());
    }
}
