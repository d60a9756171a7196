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
mod grpc;
mod probe;
mod verdict;

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    task::{AbortHandle, JoinSet},
    time,
};

use super::publish::Publisher;
use crate::{
    clock,
    config::Config,
    model::name::ServiceName,
    routing::{
        policy::HealthCheck,
        snapshot::{BackendId, Endpoint},
    },
    telemetry::{
        health::BackendHealth,
        ledger::{Hub, Key},
    },
};

/// How long the start waits for names; those that take longer have no address for a while.
const PATIENCE: Duration = Duration::from_secs(5);

/// Resolves every name once and publishes what it finds, then goes on resolving and checking for as long
/// as the current runtime lives.
pub async fn start(config: &Config, publisher: &Arc<Publisher>, hub: &Arc<Hub>) {
    let mut first = JoinSet::new();
    for service in &config.services {
        for backend in &service.backends {
            let Some(id) = publisher.backend(&service.name, &backend.name) else { continue };
            let key = Key { service: service.name.clone(), backend: backend.name.clone() };
            let health = hub.health().backend(&key);
            for endpoint in &backend.endpoints {
                let watched = Watched {
                    service: service.name.clone(),
                    backend: id,
                    endpoint: endpoint.clone(),
                    health: Arc::clone(&health),
                    check: service.policy.health_check.clone().map(Arc::new),
                    publisher: Arc::clone(publisher),
                    hub: Arc::clone(hub),
                    addresses: Vec::new(),
                    checks: HashMap::new(),
                    fails: false,
                };
                let interval = service.policy.resolve_interval;
                first.spawn(time::timeout(PATIENCE, begin(watched, interval)));
            }
        }
    }
    while first.join_next().await.is_some() {}
}

/// Looks for the first time, and leaves the rest to a task of its own.
async fn begin(mut watched: Watched, interval: Duration) {
    match watched.endpoint.host.parse() {
        Ok(ip) => {
            watched.has(vec![SocketAddr::new(ip, watched.endpoint.port)]);
            // Nothing more will come: it stays for its checks alone.
            tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(watched);
            });
        }
        Err(_) => {
            let (told, first) = tokio::sync::oneshot::channel();
            tokio::spawn(watched.follow(interval, told));
            // Gone only with the runtime.
            let _looked = first.await;
        }
    }
}

/// An endpoint as it is written, and what has become of it.
struct Watched {
    service: ServiceName,
    backend: BackendId,
    endpoint: Endpoint,
    health: Arc<BackendHealth>,
    check: Option<Arc<HealthCheck>>,
    publisher: Arc<Publisher>,
    hub: Arc<Hub>,
    addresses: Vec<SocketAddr>,
    checks: HashMap<SocketAddr, Check>,
    fails: bool,
}

/// A running check, which ends with this.
struct Check(AbortHandle);

impl Drop for Check {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watched {
    /// Resolves its name again and again.
    async fn follow(mut self, interval: Duration, told: tokio::sync::oneshot::Sender<()>) {
        let mut told = Some(told);
        loop {
            let found = self.lookup().await;
            self.found(found);
            if let Some(told) = told.take() {
                // Whoever waited may have lost patience.
                let _late = told.send(());
            }
            time::sleep(interval).await;
        }
    }

    async fn lookup(&self) -> io::Result<Vec<SocketAddr>> {
        let Endpoint { host, port, protocol: _ } = &self.endpoint;
        let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
        let found: Vec<_> = found.collect();
        if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
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
                    tls: self.publisher.connector(self.backend),
                    health,
                    backend: Arc::clone(&self.health),
                };
                let task = tokio::spawn(check::run(subject, Arc::clone(check), Arc::clone(&self.hub)));
                self.checks.insert(*address, Check(task.abort_handle()));
            }
        }
        self.checks.retain(|address, _| addresses.contains(address));
        if self.publisher.set_addresses(self.backend, &self.endpoint, &addresses) {
            tracing::info!(service = %self.service, endpoint = %name, ?addresses, "an endpoint has new addresses");
        }
        self.health.retain(|other, address| other != name || addresses.contains(&address));
        self.addresses = addresses;
    }
}
