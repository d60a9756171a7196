//! Which addresses endpoints have, and which of them are well: names are resolved here, and health
//! checks run here, one for each address and process. The data plane reads what comes out and waits for
//! nothing.
//!
//! Names go through the system's resolver, so that /etc/hosts, search domains and whatever else
//! `getaddrinfo` knows mean what they mean elsewhere on the machine. It does not tell how long an answer
//! is good for; so every name is asked for again at a fixed interval, 5 s by default, as Envoy does
//! unless told otherwise. What is cached is for the system's resolver to decide.
//!
//! A lookup that fails changes nothing: yesterday's addresses are better than none.

mod check;
mod probe;
mod verdict;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{AbortHandle, JoinSet},
    time,
};

use super::publish::{Addresses, Publisher};
use crate::{
    clock,
    config::Config,
    model::{
        name::{BackendName, ServiceName},
        protocol::ProxyProtocol,
    },
    routing::{policy::HealthCheck, snapshot::Endpoint},
    telemetry::{
        health::BackendHealth,
        ledger::{Hub, Key},
    },
    tls::client,
};

/// The door for `fuzz/`: what a gRPC health check's answer says.
#[cfg(fuzzing)]
pub fn serving_status(framed: &[u8]) -> Option<u64> {
    super::grpc::serving_status(framed)
}

/// How long one waits for new names; those that take longer have no address for a while.
const PATIENCE: Duration = Duration::from_secs(5);

/// An endpoint as it is written, and where.
type Subject = (ServiceName, BackendName, Endpoint);

/// How an endpoint is watched.
#[derive(Debug, Clone, PartialEq)]
struct How {
    check: Option<HealthCheck>,
    interval: Duration,
    tls: Option<client::Settings>,
    send_proxy_protocol: Option<ProxyProtocol>,
}

/// What watches endpoints, until it is dropped.
#[derive(Debug)]
pub struct Discovery {
    publisher: Arc<Publisher>,
    hub: Arc<Hub>,
    watched: HashMap<Subject, (How, Task)>,
}

impl Discovery {
    /// Watches nothing yet.
    pub fn new(publisher: Arc<Publisher>, hub: Arc<Hub>) -> Self {
        Self { publisher, hub, watched: HashMap::new() }
    }

    /// Resolves the names of endpoints that are not watched yet. Those that cannot be resolved, or not in
    /// time, have no addresses.
    pub async fn resolve_new(&self, config: &Config) -> Addresses {
        let mut lookups = JoinSet::new();
        for (subject, _) in subjects(config) {
            if subject.2.host.parse::<IpAddr>().is_err() && !self.watched.contains_key(&subject) {
                lookups.spawn(async move {
                    let found = time::timeout(PATIENCE, lookup(&subject.2)).await;
                    (subject, found.unwrap_or_else(|late| Err(late.into())))
                });
            }
        }
        let mut addresses = Addresses::new();
        while let Some(looked) = lookups.join_next().await {
            if let Ok((subject, Ok(found))) = looked {
                addresses.insert(subject, found);
            }
        }
        addresses
    }

    /// Watches what a configuration has, once that is in force, and nothing else. Endpoints that are
    /// watched as they should be already are left alone.
    pub fn follow(&mut self, config: &Config, mut addresses: Addresses) {
        let wanted: HashMap<Subject, How> = subjects(config).collect();
        self.watched.retain(|subject, (how, _)| wanted.get(subject) == Some(how));
        for (subject, how) in wanted {
            if let Entry::Vacant(vacant) = self.watched.entry(subject) {
                let (service, backend, endpoint) = vacant.key().clone();
                let key = Key { service: service.clone(), backend: backend.clone() };
                let mut watched = Watched {
                    service,
                    backend,
                    health: self.hub.health().backend(&key),
                    check: how.check.clone().map(Arc::new),
                    send_proxy_protocol: how.send_proxy_protocol,
                    publisher: Arc::clone(&self.publisher),
                    hub: Arc::clone(&self.hub),
                    addresses: Vec::new(),
                    checks: HashMap::new(),
                    fails: false,
                    endpoint,
                };
                let found = match watched.endpoint.host.parse() {
                    Ok(ip) => Some(vec![SocketAddr::new(ip, watched.endpoint.port)]),
                    Err(_) => addresses.remove(vacant.key()),
                };
                let is_found = found.is_some();
                if let Some(found) = found {
                    watched.has(found);
                }
                let task = tokio::spawn(watched.follow(how.interval, is_found)).abort_handle();
                vacant.insert((how, Task(task)));
            }
        }
        let kept: HashSet<_> = self.watched.keys().map(|(s, b, e)| (s, b, e.to_string())).collect();
        self.hub
            .health()
            .retain(|key, endpoint| kept.contains(&(&key.service, &key.backend, endpoint.to_owned())));
    }
}

/// Every endpoint, and how it is to be watched.
fn subjects(config: &Config) -> impl Iterator<Item = (Subject, How)> {
    config.services.iter().flat_map(|service| {
        service.backends.iter().flat_map(|backend| {
            let how = How {
                check: service.policy.health_check.clone(),
                interval: service.policy.resolve_interval,
                tls: backend.tls.clone(),
                send_proxy_protocol: backend.send_proxy_protocol,
            };
            let subject = |e: &Endpoint| (service.name.clone(), backend.name.clone(), e.clone());
            backend.endpoints.iter().map(move |endpoint| (subject(endpoint), how.clone()))
        })
    })
}

async fn lookup(endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
    let Endpoint { host, port, protocol: _ } = endpoint;
    let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
    let found: Vec<_> = found.collect();
    if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
}

/// An endpoint as it is written, and what has become of it.
struct Watched {
    service: ServiceName,
    backend: BackendName,
    endpoint: Endpoint,
    health: Arc<BackendHealth>,
    check: Option<Arc<HealthCheck>>,
    send_proxy_protocol: Option<ProxyProtocol>,
    publisher: Arc<Publisher>,
    hub: Arc<Hub>,
    addresses: Vec<SocketAddr>,
    checks: HashMap<SocketAddr, Task>,
    fails: bool,
}

/// A running task, which ends with this.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watched {
    /// Resolves its name again and again; at once, unless it has been `found`. What is an address stays
    /// for its checks alone.
    async fn follow(mut self, interval: Duration, mut found: bool) {
        if self.endpoint.host.parse::<IpAddr>().is_ok() {
            std::future::pending::<()>().await;
        }
        loop {
            if !std::mem::take(&mut found) {
                let looked = lookup(&self.endpoint).await;
                self.found(looked);
            }
            time::sleep(interval).await;
        }
    }

    /// Takes what a lookup found; where it failed, things stay as they are.
    fn found(&mut self, found: io::Result<Vec<SocketAddr>>) {
        let (service, endpoint) = (&self.service, &self.endpoint);
        match found {
            Ok(addresses) => {
                if std::mem::take(&mut self.fails) {
                    tracing::info!(%service, %endpoint, "the endpoint's name is resolved again");
                }
                self.has(addresses);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.fails, true) {
                    let kept = self.addresses.len();
                    tracing::warn!(%service, %endpoint, %error, kept, "the endpoint's name cannot be resolved");
                }
            }
        }
    }

    /// It has these addresses now.
    fn has(&mut self, mut addresses: Vec<SocketAddr>) {
        addresses.sort_unstable();
        addresses.dedup();
        if addresses == self.addresses {
            return;
        }
        let name = self.endpoint.to_string();
        // What is there from the start is not new, or all would be.
        let now = self.hub.health().millis(clock::monotonic());
        let since = if self.addresses.is_empty() { 0 } else { now };
        for address in &addresses {
            let health = self.health.endpoint(&name, *address, since);
            if let Some(check) = &self.check
                && !self.checks.contains_key(address)
            {
                let subject = check::Subject {
                    endpoint: self.endpoint.clone(),
                    address: *address,
                    tls: self.publisher.connector(&self.service, &self.backend),
                    send_proxy_protocol: self.send_proxy_protocol,
                    health,
                    backend: Arc::clone(&self.health),
                };
                let task = tokio::spawn(check::run(subject, Arc::clone(check), Arc::clone(&self.hub)));
                self.checks.insert(*address, Task(task.abort_handle()));
            }
        }
        self.checks.retain(|address, _| addresses.contains(address));
        if self.publisher.set_addresses(&self.service, &self.backend, &self.endpoint, &addresses) {
            tracing::info!(service = %self.service, endpoint = %name, ?addresses, "an endpoint has new addresses");
        }
        self.health.retain(|other, address| other != name || addresses.contains(&address));
        self.addresses = addresses;
    }
}
