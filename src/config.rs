//! What a configuration means. Every value here has been checked: whoever holds a [`Config`] need
//! not doubt it. How it is written, and what is said about a wrong one, is in the submodules.

pub mod diagnostic;
pub mod load;

mod access_log;
mod address;
mod admin;
mod analysis;
mod backend;
mod backend_tls;
mod balance;
mod checks;
mod condition;
mod credentials;
mod document;
mod edge;
mod failures;
mod files;
mod filter;
mod force;
mod freeze;
mod health_check;
mod hidden;
pub mod hook;
mod host;
mod limits;
mod listener;
mod matching;
mod mirror;
pub mod notification;
mod outlier_detection;
mod paths;
mod pool;
pub mod probe;
mod proxy_protocol;
mod report;
mod retry;
mod rollout;
mod route;
mod schedule;
mod service;
mod shutdown;
mod steps;
mod sticky;
mod store;
mod structure;
mod suggest;
pub mod target;
mod template;
mod timeouts;
mod tls;
pub mod tracing;
mod upgrades;
mod written;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use self::credentials::{Credential, Credentials, Proof, Scope, TOKEN_PREFIX};

use std::{
    net::SocketAddr,
    num::{NonZeroU16, NonZeroUsize},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use http::{HeaderName, HeaderValue};

use self::{hook::Hook, notification::Notification, probe::Probe, tracing::Tracing};
use crate::{
    analysis::settings::Settings,
    model::{
        failure::Failures,
        name::{BackendName, ServiceName},
        protocol,
        role::Roles,
        weight::Weight,
    },
    rollout::{
        check::{Rule, Source},
        freeze::Freeze,
        plan::{Draft, Plan},
    },
    routing::{
        condition::Conditions,
        edge::Edge,
        filter::{HeaderModifier, PathRewrite, Redirect, RouteTimeouts},
        force::Overrides,
        limits::{Limits, RouteLimits},
        mirror::Mirror,
        path::PathRules,
        policy::Policy,
        retry::Retry,
        snapshot::{Endpoint, Sticky, Timeouts},
        table::PathMatch,
    },
    tls::{client, server, signing::Secrets},
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
    /// Where that is kept which outlives the process, if anything does.
    pub store: Option<Store>,
    /// What is written about each exchange, if anything.
    pub access_log: Option<AccessLog>,
    /// Which exchanges have spans and where these go, if any have.
    pub tracing: Option<Tracing>,
    /// What is done to paths before a route is looked for.
    pub paths: PathRules,
    /// Which requests lead to which service; at least one.
    pub routes: Vec<Route>,
    /// The services, by name.
    pub services: Vec<Service>,
    /// Who is told what happens to rollouts.
    pub notifications: Vec<Notification>,
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
    /// How it speaks TLS, if it does.
    pub tls: Option<ListenerTls>,
    /// Who may use it. Where nobody is asked, that is whoever reaches it.
    pub credentials: Option<Credentials>,
    /// Names that it is reached by, beside addresses and `localhost`.
    pub hosts: Vec<String>,
    /// The file that the audit is written to, if any.
    pub audit_log: Option<PathBuf>,
    /// What is open to those who do not say who they are.
    pub open: OpenPaths,
}

/// Which paths of the admin side need no credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenPaths {
    /// `/livez` (default yes).
    pub livez: bool,
    /// `/readyz` (default yes).
    pub readyz: bool,
    /// `/metrics` (default only on a loopback address).
    pub metrics: bool,
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

/// Where that is kept which outlives the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// A directory, which is this process's alone.
    pub path: PathBuf,
    /// Bytes that the history of one service may have (default 16 MiB).
    pub max_history: u64,
}

impl Store {
    /// Some ten thousand entries, and the ticks of a rollout of an hour.
    pub const MAX_HISTORY: u64 = 16 << 20;
}

/// What is written about each exchange.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLog {
    /// What a line looks like (default JSON).
    pub format: LogFormat,
    /// Where lines go (default stdout).
    pub output: LogOutput,
    /// The share of exchanges that are logged; more than none (default all).
    pub sample: Weight,
}

/// What a line of the access log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// A JSON object.
    Json,
    /// Keys and values, as `key=value`.
    Text,
}

/// Where lines of the access log go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOutput {
    /// To the standard output.
    Stdout,
    /// To the end of a file, which is made if there is none.
    File(PathBuf),
}

/// Which requests lead to a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// What it is called where it is told apart from others: what it matches on.
    pub name: Arc<str>,
    /// Host names, lower case, without port, with `*.` before those that stand for all below them;
    /// empty means any host.
    pub hostnames: Vec<String>,
    /// What the path must be; the prefix `/` is any path.
    pub path: PathMatch,
    /// What the request must have beside these.
    pub conditions: Conditions,
    /// Where it leads.
    pub lead: Lead,
    /// What it changes.
    pub filters: Filters,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq)]
pub enum Lead {
    /// To a service.
    Service(ServiceName),
    /// Back to the client, which is to ask elsewhere.
    Redirect(Redirect),
}

/// What a route changes in requests and responses.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filters {
    /// In the request's fields.
    pub request: HeaderModifier,
    /// In the response's fields.
    pub response: HeaderModifier,
    /// The `Host` that the backend gets.
    pub hostname: Option<HeaderValue>,
    /// The path that the backend gets.
    pub path: Option<PathRewrite>,
    /// Times that take the place of the service's.
    pub timeouts: RouteTimeouts,
    /// How much it lets in.
    pub limits: RouteLimits,
    /// What counts against a backend, in the place of what does for the service.
    pub failures: Option<Failures>,
}

/// The backends of one application, their weights and their roles.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// The routes to it whose requests are counted apart.
    pub routes: Arc<[Arc<str>]>,
    /// Which backend is stable and which, if any, is on trial, at the start.
    pub roles: Roles,
    /// The canary's share at the start.
    pub weight: Weight,
    /// The backends; each with at least one endpoint.
    pub backends: Vec<Backend>,
    /// Keeps a user on the side that they were first given.
    pub sticky: Option<Sticky>,
    /// What signs the cookie by which users are recognised, if they are by one that is signed.
    pub cookie_secrets: Option<Secrets>,
    /// Gives some requests a role whatever the weight.
    pub overrides: Option<Overrides>,
    /// The response field that names the backend, if one does.
    pub backend_header: Option<HeaderName>,
    /// How long a backend may take.
    pub timeouts: Timeouts,
    /// Protocols that a connection may be switched to, in lower case (default `websocket`).
    pub upgrades: Vec<String>,
    /// What counts against its backends, where it is not the usual.
    pub failures: Option<Failures>,
    /// How its backends are used.
    pub policy: Policy,
    /// How much may be asked for.
    pub limits: Limits,
    /// When a request that has failed is tried again, if ever.
    pub retry: Option<Retry>,
    /// Which requests to stable are copied to the canary, if any are.
    pub mirror: Option<Mirror>,
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
    /// The version of the PROXY protocol in which they are told whose each connection is, if they are.
    pub send_proxy_protocol: Option<protocol::ProxyProtocol>,
}

/// A check of what is measured elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Its name, unique among those of its service.
    pub name: Arc<str>,
    /// Where its numbers come from.
    pub source: Source,
    /// How a provider with `https://` is spoken to.
    pub tls: client::Settings,
    /// What they have to be.
    pub rule: Rule,
    /// How often it is measured (default 15 s).
    pub interval: Duration,
    /// How long measuring may take (default 5 s).
    pub timeout: Duration,
}

/// How a rollout goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Strategy and steps.
    pub plan: Plan,
    /// What is watched, and how sure it has to be.
    pub analysis: Settings,
    /// Checks of what is measured elsewhere.
    pub checks: Vec<Check>,
    /// Whether stable is tested against itself while no rollout runs.
    pub aa_test: bool,
    /// When it does not move forward.
    pub freezes: Vec<Freeze>,
    /// For how long an endpoint's requests are counted apart after it has begun to serve; nothing means for
    /// as long as it takes to get its full share.
    pub warmup: Option<Duration>,
    /// What the canary's endpoints are asked before anybody is sent there.
    pub probes: Vec<Probe>,
    /// Longest time that they may take to accept connections and answer well (default 1 min).
    pub prepare_deadline: Duration,
    /// How long nothing has been under way at a backend without weight until it counts as drained (default 10 s).
    pub drained_after: Duration,
    /// Who is asked before it goes on, and who is told.
    pub hooks: Vec<Hook>,
    /// Where what it is judged by is written down, if it is.
    pub recordings: Option<Recordings>,
}

/// Where what rollouts are judged by is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recordings {
    /// A directory, which may be made and may be that of other services too.
    pub directory: PathBuf,
    /// How many of the service's newest are kept; at least 1 (default 20).
    pub keep: u32,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            plan: Plan::new(Draft::default()).expect("a test says that it is a plan"),
            analysis: Settings::default(),
            checks: Vec::new(),
            aa_test: true,
            freezes: Vec::new(),
            warmup: None,
            probes: Vec::new(),
            prepare_deadline: Duration::from_secs(60),
            drained_after: Duration::from_secs(10),
            hooks: Vec::new(),
            recordings: None,
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { delay: Duration::from_secs(10), deadline: Duration::from_secs(25) }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { format: LogFormat::Json, output: LogOutput::Stdout, sample: Weight::FULL }
    }
}
