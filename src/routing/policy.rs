//! How a service's backends are used: by which rule an endpoint is chosen, when one is passed over,
//! and how much a backend is given at a time.
//!
//! A policy belongs to the service and holds for each of its backends alike: two versions that were
//! treated differently could not be compared.

use std::{ops::RangeInclusive, time::Duration};

use http::HeaderName;

/// How a service's backends are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// When an endpoint is ejected for what requests have seen of it, if ever.
    pub outlier_detection: Option<OutlierDetection>,
    /// How endpoints are asked whether they are well, if they are.
    pub health_check: Option<HealthCheck>,
    /// How many connections and requests there may be.
    pub pool: Pool,
    /// How often names of endpoints are resolved anew (default 5 s).
    pub resolve_interval: Duration,
    /// For how long the requests of an endpoint that is new, or well again, are counted apart (default: not
    /// at all).
    pub warmup: Option<Duration>,
}

/// How an endpoint is chosen among those of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// By which rule.
    pub algorithm: Algorithm,
    /// How long an endpoint that is new or well again takes to get its full share (default: it gets it
    /// at once).
    pub slow_start: Option<Duration>,
    /// Percentage of endpoints that have to be healthy for health to be heeded (default 50; 0: always
    /// heeded). With fewer, all get requests: the rest could not carry them.
    pub panic_threshold: u8,
}

/// By which rule an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Algorithm {
    /// Of two drawn at random, the one with fewer requests.
    LeastRequest,
    /// Of two drawn at random, the one that has been quicker for what it has to do.
    PeakEwma,
    /// One after the other.
    RoundRobin,
    /// The same one for the same key.
    ConsistentHash(HashOn),
}

/// What the key of a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// The client's address.
    ClientAddress,
    /// The value of a header field.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(String),
}

/// When an endpoint is ejected for what requests have seen of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Failed requests in a row, over all workers (default 5). A failure is a status of 500 or more, no
    /// connection, no response in time, or a broken one.
    pub consecutive_5xx: u32,
    /// How long the first ejection lasts (default 30 s); the n-th lasts n times as long.
    pub base_ejection_time: Duration,
    /// Longest ejection (default 300 s).
    pub max_ejection_time: Duration,
    /// Percentage of a backend's endpoints that may be ejected at a time (default 10). One may always
    /// be where there are several, the only one never.
    pub max_ejection_percent: u8,
}

/// How endpoints are asked whether they are well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Time between two checks of one endpoint (default 2 s), give or take a tenth.
    pub interval: Duration,
    /// Longest time that a check may take (default 1 s).
    pub timeout: Duration,
    /// Failed checks in a row that make an endpoint unhealthy (default 3).
    pub unhealthy_threshold: u32,
    /// Passed checks in a row that make it healthy again (default 2).
    pub healthy_threshold: u32,
}

/// What an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// To answer a GET.
    Http {
        /// The request's target (default `/`).
        path: String,
        /// The request's `Host` (default: the endpoint as it is written).
        host: Option<String>,
        /// Statuses that pass (default 200 to 399).
        expected_statuses: Vec<RangeInclusive<u16>>,
    },
    /// To take a connection.
    Tcp,
    /// To answer `grpc.health.v1.Health/Check` with `SERVING`.
    Grpc {
        /// The service that is asked about (default: the server as a whole).
        service: String,
    },
}

/// How many connections and requests a backend may have, and how long connections live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Connections to all endpoints of a backend (default: as many as it takes). Shared out equally
    /// between workers, at least one each, and of HTTP/2 at least one to each endpoint.
    pub max_connections: Option<u32>,
    /// Requests at a time on one connection of HTTP/2 (default 100), of which the other side may allow
    /// fewer. One connection is one flow of TCP: a lost packet holds up all of them.
    pub max_concurrent_streams: u32,
    /// Requests that may wait for a connection, or for a stream of one (default 1024). Shared out like
    /// connections.
    pub max_pending_requests: u32,
    /// Longest time that a request may wait for either (default 2 s).
    pub pending_timeout: Duration,
    /// Requests in flight at a backend (default: as many as come), of the whole process.
    pub max_requests: Option<u32>,
    /// Longest time that an idle connection is kept (default 4 s). Shorter than what common servers
    /// allow (nginx: 75 s, Node.js: 5 s), so that it is seldom the server that closes first, just as a
    /// request is on its way.
    pub idle_timeout: Duration,
    /// Idle connections that each worker keeps to one endpoint (default 256).
    pub max_idle: u32,
    /// Requests after which a connection is closed (default: none).
    pub max_requests_per_connection: Option<u32>,
    /// Age from which a connection takes no more requests (default: none).
    pub max_connection_age: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            balance: Balance::default(),
            outlier_detection: None,
            health_check: None,
            pool: Pool::default(),
            resolve_interval: Duration::from_secs(5),
            warmup: None,
        }
    }
}

impl Default for Balance {
    fn default() -> Self {
        Self { algorithm: Algorithm::LeastRequest, slow_start: None, panic_threshold: 50 }
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 10,
        }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        let expected_statuses = vec![200..=399];
        Self {
            probe: Probe::Http { path: "/".to_owned(), host: None, expected_statuses },
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_concurrent_streams: 100,
            max_pending_requests: 1024,
            pending_timeout: Duration::from_secs(2),
            max_requests: None,
            idle_timeout: Duration::from_secs(4),
            max_idle: 256,
            max_requests_per_connection: None,
            max_connection_age: None,
        }
    }
}
