//! What spans are made of, once an exchange has ended.

use std::{net::SocketAddr, time::Duration};

use crate::{
    access_log::record::Record,
    model::{outcome::Outcome, role::Role},
    routing::filter::Label,
};

/// A sampled exchange that has ended: a span, and one more for each attempt at a backend.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// What it was.
    pub record: Record,
    /// The trace that it belongs to, which the record names as well.
    pub trace_id: u128,
    /// Its own span.
    pub span_id: u64,
    /// The span that it was made in, if its client has named one that is believed.
    pub parent: Option<u64>,
    /// When it began, in nanoseconds since the Unix epoch.
    pub began: u64,
    /// Whether the client's connection speaks TLS.
    pub is_https: bool,
    /// The route that it took, if it took one to a service.
    pub route: Option<Label>,
    /// Its attempts, in the order in which they were made.
    pub attempts: Vec<Attempt>,
}

impl Exchange {
    /// How many spans it makes.
    pub fn spans(&self) -> u64 {
        1 + self.attempts.len() as u64
    }
}

/// An attempt at a backend.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Its span.
    pub span_id: u64,
    /// The backend's name.
    pub backend: Box<str>,
    /// The role that the backend held.
    pub role: Role,
    /// Where it was made.
    pub endpoint: SocketAddr,
    /// When it began, after the exchange did.
    pub began: Duration,
    /// When it ended, after the exchange began.
    pub ended: Duration,
    /// The response's status, if its head came.
    pub status: Option<u16>,
    /// The name of how the call ended, if it was one of gRPC and that was said.
    pub grpc_status: Option<&'static str>,
    /// What became of it.
    pub outcome: Outcome,
    /// Whether that counts against the backend.
    pub failed: bool,
}

#[cfg(test)]
pub(super) mod samples {
    //! Exchanges for tests.

    use super::*;
    use crate::{
        access_log::record::{Text, Texts},
        model::time::Timestamp,
    };

    /// One with attempts that ended so, counted against the backend or not, with these statuses of HTTP and gRPC.
    pub(in crate::spans) fn exchange(
        attempts: &[(Outcome, bool, Option<u16>, Option<&'static str>)],
    ) -> Exchange {
        let mut texts = Texts::default();
        for (of, bytes) in [
            (Text::Method, "GET"),
            (Text::Host, "[::1]:8080"),
            (Text::Path, "/a?token=secret"),
            (Text::Service, "web"),
        ] {
            texts.set(of, bytes.as_bytes());
        }
        let (ms, last) = (Duration::from_millis, attempts.last());
        let record = Record {
            at: Timestamp::from_millis(0),
            client: [192, 0, 2, 1].into(),
            protocol: "HTTP/2",
            status: last.and_then(|(_, _, status, _)| *status),
            bytes_in: 0,
            bytes_out: 5,
            duration: ms(9),
            head_after: None,
            role: None,
            assignment: Some("weight"),
            attempts: attempts.len() as u32,
            local_reply: None,
            outcome: None,
            trace_id: Some(1),
            texts,
        };
        let attempt = |(&(outcome, failed, status, grpc_status), span_id)| Attempt {
            span_id,
            backend: "v1".into(),
            role: Role::Stable,
            endpoint: ([127, 0, 0, 1], 9001).into(),
            began: ms(span_id),
            ended: ms(span_id + 2),
            status,
            grpc_status,
            outcome,
            failed,
        };
        Exchange {
            record,
            trace_id: 1,
            span_id: 2,
            parent: Some(3),
            began: 1_000_000_000,
            is_https: true,
            route: Some(Label { name: "GET /a (2)".into(), path: "/a".into() }),
            attempts: attempts.iter().zip(4..).map(attempt).collect(),
        }
    }
}
