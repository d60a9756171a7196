//! What a configuration means. Every value here has been checked: whoever holds a [`Config`] need
//! not doubt it. How it is written, and what is said about a wrong one, is in the submodules.

pub mod diagnostic;
pub mod load;

mod address;
mod admin;
mod analysis;
mod backend;
mod backend_tls;
mod document;
mod edge;
mod files;
mod host;
mod limits;
mod listener;
mod proxy_protocol;
mod report;
mod rollout;
mod route;
mod service;
mod shutdown;
mod sticky;
mod structure;
mod suggest;
mod timeouts;
mod tls;
mod written;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    num::{NonZeroU16, NonZeroUsize},
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    analysis::settings::Settings,
    model::{
        name::{BackendName, ServiceName},
        role::Roles,
        weight::Weight,
    },
    rollout::plan::Plan,
    routing::{
        edge::Edge,
        limits::Limits,
        snapshot::{Endpoint, Sticky, Timeouts},
    },
    tls::{client, server},
};

/// A whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of data plane threads; nothing means one for each CPU that the process may use.
    pub workers: Option<NonZeroUsize>,
    /// Where requests come in; at least one.
    pub listeners: Vec<Listener>,
    /// Where people, pipelines and Prometheus come in, if anywhere.
    pub admin: Option<Admin>,
    /// How the process ends.
    pub shutdown: Shutdown,
    /// Which requests lead to which service; at least one.
    pub routes: Vec<Route>,
    /// The services, by name.
    pub services: Vec<Service>,
}

/// Where requests come in.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// Address to listen on.
    pub address: SocketAddr,
    /// Longest time that a request's head may take (default 10 s).
    pub header_timeout: Duration,
    /// Longest time that a connection may be idle between requests (default 75 s).
    pub idle_timeout: Duration,
    /// What is let in, and whose word is taken.
    pub edge: Edge,
    /// How it speaks TLS, if it does.
    pub tls: Option<ListenerTls>,
    /// Who says whose connections it passes on, if anybody does.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// If it only sends clients to HTTPS: the port that they are sent to.
    pub redirect_to_https: Option<NonZeroU16>,
}

/// How a listener speaks TLS.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerTls {
    /// Certificates, versions, and what clients have to show.
    pub settings: server::Settings,
    /// Longest time that a handshake may take (default 10 s).
    pub handshake_timeout: Duration,
}

/// Who says, in the PROXY protocol, whose connections it passes on.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyProtocol {
    /// Those who must say it; nobody else may.
    pub from: Vec<IpNet>,
    /// Longest time that they may take over it (default 5 s).
    pub timeout: Duration,
}

/// Where people, pipelines and Prometheus come in.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// Address to listen on.
    pub address: SocketAddr,
}

/// How the process ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Shutdown {
    /// How long new connections are still taken after SIGTERM, so that whoever balances load in
    /// front can notice (default 10 s).
    pub delay: Duration,
    /// How long requests in flight may take after that (default 25 s).
    pub deadline: Duration,
}

/// Which requests lead to a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Exact host names, lower case, without port; empty means any host.
    pub hostnames: Vec<String>,
    /// Path prefix by whole segments (`/api` matches `/api` and `/api/x`, not `/apis`); begins with
    /// `/` and ends without one unless it is `/`.
    pub path_prefix: String,
    /// The service.
    pub service: ServiceName,
}

/// The backends of one application, their weights and their roles.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Which backend is stable and which, if any, is on trial, at the start.
    pub roles: Roles,
    /// The canary's share at the start.
    pub weight: Weight,
    /// The backends; each with at least one endpoint.
    pub backends: Vec<Backend>,
    /// Keeps a user on the side that they were first given.
    pub sticky: Option<Sticky>,
    /// How long a backend may take.
    pub timeouts: Timeouts,
    /// How much may be asked for.
    pub limits: Limits,
    /// How a rollout of this service goes.
    pub rollout: Rollout,
}

/// A set of endpoints that run one version.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// Its name.
    pub name: BackendName,
    /// Its endpoints; at least one.
    pub endpoints: Vec<Endpoint>,
    /// How they speak TLS, if they do.
    pub tls: Option<client::Settings>,
}

/// How a rollout goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Strategy and steps.
    pub plan: Plan,
    /// What is watched, and how sure it has to be.
    pub analysis: Settings,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { delay: Duration::from_secs(10), deadline: Duration::from_secs(25) }
    }
}
