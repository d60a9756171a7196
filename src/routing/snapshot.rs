//! The immutable state that the data plane reads: one pointer, swapped whole.
//!
//! A snapshot has two parts with different lives. The [`Topology`] (routes, services, backends,
//! endpoints) changes with the configuration; the splits change with every weight. A weight change
//! therefore copies a few words per service and shares the rest, and a worker that sees the same
//! topology again need not look at its pools.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    limits::Limits,
    split::Split,
    table::{Rule, Table},
};
use crate::{
    model::name::{BackendName, ServiceName},
    tls::client::Connector,
};

/// A service's place in its topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

/// A backend's place in its topology, among the backends of all services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(pub u32);

/// One address that serves requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Host name, IPv4 address, or IPv6 address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// How long a backend may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Longest time to connect (default 2 s).
    pub connect: Duration,
    /// Longest time from the request sent to the response's head (default 60 s).
    pub response: Duration,
    /// Longest time without a byte of body in either direction (default 60 s).
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            response: Duration::from_secs(60),
            idle: Duration::from_secs(60),
        }
    }
}

/// Keeps a user on the side that they were first given, by a cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    /// The cookie's name.
    pub cookie: String,
    /// How long the cookie lasts (default 24 h).
    pub max_age: Duration,
}

/// A service as the data plane needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// How clients are recognised, if they are.
    pub sticky: Option<Sticky>,
    /// How long its backends may take.
    pub timeouts: Timeouts,
    /// How much of its backends may be asked for.
    pub limits: Limits,
}

/// A backend as the data plane needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The service that it belongs to.
    pub service: ServiceId,
    /// Its name.
    pub name: BackendName,
    /// Where it can be reached.
    pub endpoints: Vec<Endpoint>,
    /// How it speaks TLS, if it does: a handle that is only passed on here.
    pub tls: Option<Arc<Connector>>,
}

/// What changes only with the configuration.
#[derive(Debug)]
pub struct Topology {
    table: Table,
    services: Box<[Service]>,
    backends: Box<[Backend]>,
}

impl Topology {
    /// Compiles the routes over services and backends, whose ids are their places in the lists.
    pub fn new(rules: Vec<Rule>, services: Vec<Service>, backends: Vec<Backend>) -> Self {
        let known = |rule: &Rule| (rule.service.0 as usize) < services.len();
        debug_assert!(rules.iter().all(known), "a route leads to a service that is not there");
        Self { table: Table::new(rules), services: services.into(), backends: backends.into() }
    }

    /// The service for a request, by its authority and its path.
    pub fn route(&self, authority: &str, path: &str) -> Option<ServiceId> {
        self.table.find(authority, path)
    }

    /// The services; [`ServiceId`] is the index.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// The backends of all services; [`BackendId`] is the index.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The service with this id.
    pub fn service(&self, id: ServiceId) -> &Service {
        &self.services[id.0 as usize]
    }

    /// The backend with this id.
    pub fn backend(&self, id: BackendId) -> &Backend {
        &self.backends[id.0 as usize]
    }
}

/// The immutable routing state that one request sees from start to end.
#[derive(Debug)]
pub struct Snapshot {
    topology: Arc<Topology>,
    splits: Box<[Split]>,
}

impl Snapshot {
    /// A snapshot of a topology and one split for each of its services, in their order.
    pub fn new(topology: Arc<Topology>, splits: Vec<Split>) -> Self {
        debug_assert_eq!(topology.services.len(), splits.len(), "one split for each service");
        Self { topology, splits: splits.into() }
    }

    /// What changes only with the configuration.
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// The split of a service.
    pub fn split(&self, service: ServiceId) -> &Split {
        &self.splits[service.0 as usize]
    }

    /// The same topology with another split for one service.
    #[must_use]
    pub fn with_split(&self, service: ServiceId, split: Split) -> Self {
        let mut splits = self.splits.clone();
        splits[service.0 as usize] = split;
        Self { topology: Arc::clone(&self.topology), splits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_may_cross_threads() {
        fn crosses<T: Send + Sync>() {}
        crosses::<Snapshot>();
    }
}
