//! The immutable state that the data plane reads: one pointer, swapped whole.
//!
//! A snapshot has three parts with different lives. The [`Topology`] (routes, services, backends)
//! changes with the configuration; the members of backends also with DNS; the splits with every weight.
//! A weight change therefore copies a few words per service and shares the rest, and a worker that sees
//! the same topology and members again need not look at its pools.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};

use super::{
    condition::Head,
    filter::{End, Route},
    force::Overrides,
    limits::Limits,
    members::{Member, Members, literal},
    mirror::Mirror,
    path::PathRules,
    policy::Policy,
    retry::Retry,
    split::Split,
    table::{Rule, Table, Target},
};
use crate::{
    model::{
        failure::Failures,
        name::{BackendName, ServiceName},
        protocol::{Protocol, ProxyProtocol},
        weight::Weight,
    },
    tls::{client::Connector, signing::Signer},
};

/// A service's place in its topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

/// A backend's place in its topology, among the backends of all services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(pub u32);

/// The place of a route among those of its topology that do more than lead to a service, or have a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId(pub u32);

/// One address that serves requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Host name, IPv4 address, or IPv6 address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, protocol: _ } = self;
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
    /// Longest time without a byte in a tunnel, such as a WebSocket (default 1 h).
    pub tunnel: Duration,
    /// Longest deadline of a gRPC call that is granted, if its client asks for one (default: none).
    pub grpc_max: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            response: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            tunnel: Duration::from_secs(3600),
            grpc_max: None,
        }
    }
}

/// Keeps a user on the side that they were first given: by what they are recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sticky {
    /// A cookie that we give them.
    Cookie(StickyCookie),
    /// A header field that they bring, such as a user's id. Whoever has none is not recognised.
    Header(HeaderName),
    /// Their address; of an IPv6 address the network of 64 bits, because devices change the rest.
    ClientAddress,
}

/// A cookie that a user is recognised by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StickyCookie {
    /// Its name.
    pub name: String,
    /// How long it lasts (default 24 h).
    pub max_age: Duration,
}

/// A service as the data plane needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// The routes to it whose requests are counted apart.
    pub routes: Arc<[Arc<str>]>,
    /// Whether control wants to know which of those clients failed that are pinned.
    pub counts_users: bool,
    /// How clients are recognised, if they are.
    pub sticky: Option<Sticky>,
    /// What signs their cookies, if anything does: a handle that is only passed on here.
    pub cookie_signer: Option<Arc<Signer>>,
    /// What decides the role of some requests, if anything does.
    pub overrides: Option<Box<Overrides>>,
    /// The response field that names the backend, if one does.
    pub backend_header: Option<HeaderName>,
    /// How long its backends may take.
    pub timeouts: Timeouts,
    /// Protocols that a connection may be switched to, in lower case (default `websocket`).
    pub upgrades: Vec<String>,
    /// What counts against its backends, where it is not the usual.
    pub failures: Option<Box<Failures>>,
    /// How its backends are used.
    pub policy: Policy,
    /// How much of its backends may be asked for.
    pub limits: Limits,
    /// When a request that has failed is tried again, if ever.
    pub retry: Option<Arc<Retry>>,
    /// Which requests to stable are copied to the canary, if any are.
    pub mirror: Option<Arc<Mirror>>,
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
    /// The version of the PROXY protocol in which it is told whose each connection is, if it is.
    pub send_proxy_protocol: Option<ProxyProtocol>,
}

/// What changes only with the configuration.
#[derive(Debug)]
pub struct Topology {
    table: Table,
    paths: PathRules,
    routes: Box<[Route]>,
    services: Box<[Service]>,
    backends: Box<[Backend]>,
    /// The backends' names as values of a field.
    labels: Box<[HeaderValue]>,
    /// Some backend is told whose each connection is.
    introduces_clients: bool,
}

impl Topology {
    /// Compiles the routes over services and backends, whose ids are their places in the lists; so are
    /// those of routes with filters.
    pub fn new(
        paths: PathRules,
        (rules, routes): (Vec<Rule>, Vec<Route>),
        services: Vec<Service>,
        backends: Vec<Backend>,
    ) -> Self {
        let known = |service: ServiceId| (service.0 as usize) < services.len();
        let leads_somewhere = |rule: &Rule| match rule.target {
            Target::Service(service) => known(service),
            Target::Route(route) => routes.get(route.0 as usize).is_some_and(|route| match route.end {
                End::Service(service) => known(service),
                End::Redirect(_) => true,
            }),
        };
        debug_assert!(rules.iter().all(leads_somewhere), "a route leads to something that is not there");
        let label = |backend: &Backend| HeaderValue::from_str(backend.name.as_str()).ok();
        let labels = backends.iter().map(|backend| label(backend).expect("a name is ASCII")).collect();
        let introduces_clients = backends.iter().any(|backend| backend.send_proxy_protocol.is_some());
        let (routes, services, backends) = (routes.into(), services.into(), backends.into());
        Self { table: Table::new(rules), paths, routes, services, backends, labels, introduces_clients }
    }

    /// Lets a service's requests be copied in dark steps, with `rules` if it has none of its own.
    pub fn copy_in_dark_steps(&mut self, service: ServiceId, rules: &Mirror) {
        let own = &mut self.services[service.0 as usize].mirror;
        own.get_or_insert_with(|| Arc::new(Mirror { percent: Weight::ZERO, ..rules.clone() }));
    }

    /// What is done to a path before a route is looked for.
    pub fn paths(&self) -> PathRules {
        self.paths
    }

    /// Where a request goes.
    pub fn find(&self, head: &Head<'_>) -> Option<Target> {
        self.table.find(head)
    }

    /// The route with filters with this id.
    pub fn route(&self, id: RouteId) -> &Route {
        &self.routes[id.0 as usize]
    }

    /// The routes with filters; [`RouteId`] is the index.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// A backend's name as the value of a field.
    pub fn label(&self, id: BackendId) -> &HeaderValue {
        &self.labels[id.0 as usize]
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

    /// Whether some backend is told whose each connection is.
    pub fn introduces_clients(&self) -> bool {
        self.introduces_clients
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
    members: Arc<[Members]>,
    splits: Box<[Split]>,
}

impl Snapshot {
    /// A snapshot of a topology and one split for each of its services, in their order. Of the backends'
    /// endpoints, those that are addresses are there from the start.
    pub fn new(topology: Arc<Topology>, splits: Vec<Split>) -> Self {
        debug_assert_eq!(topology.services.len(), splits.len(), "one split for each service");
        let members = topology.backends.iter().map(|backend| literal(&backend.endpoints)).collect();
        Self { topology, members, splits: splits.into() }
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
        Self { topology: Arc::clone(&self.topology), members: Arc::clone(&self.members), splits }
    }

    /// The members of all backends; [`BackendId`] is the index. The same pointer means that nothing has
    /// changed.
    pub fn members(&self) -> &Arc<[Members]> {
        &self.members
    }

    /// The addresses of one backend.
    pub fn members_of(&self, backend: BackendId) -> &[Member] {
        &self.members[backend.0 as usize]
    }

    /// The same with other addresses for one backend.
    #[must_use]
    pub fn with_members(&self, backend: BackendId, members: Members) -> Self {
        let mut all = self.members.to_vec();
        all[backend.0 as usize] = members;
        self.with_all_members(all)
    }

    /// The same with other addresses for all backends, in the order of their ids.
    #[must_use]
    pub fn with_all_members(&self, all: Vec<Members>) -> Self {
        debug_assert_eq!(all.len(), self.topology.backends.len(), "members of each backend");
        Self { topology: Arc::clone(&self.topology), members: all.into(), splits: self.splits.clone() }
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
