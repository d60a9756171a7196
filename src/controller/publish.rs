//! The only writer of the snapshot.

use std::{collections::HashMap, hash::Hasher, net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use siphasher::sip::SipHasher13;

use crate::{
    config::{self, Config, Filters, Lead},
    model::{
        name::{BackendName, ServiceName},
        role::Roles,
        weight::Weight,
    },
    routing::{
        filter::{self, End},
        members::with_addresses,
        snapshot::{Backend, BackendId, Endpoint, RouteId, Service, ServiceId, Snapshot, Topology},
        split::Split,
        table::{Rule, Target},
    },
    tls::{
        client::{CannotConnect, Connector},
        reload::Keeper,
    },
};

/// Publishes snapshots to the workers.
#[derive(Debug)]
pub struct Publisher {
    snapshots: Arc<ArcSwap<Snapshot>>,
    services: HashMap<ServiceName, (ServiceId, HashMap<BackendName, BackendId>)>,
}

impl Publisher {
    /// Compiles a configuration into the first snapshot.
    ///
    /// # Errors
    /// When it is not possible to speak TLS to a backend as it should be.
    pub fn new(config: &Config, keeper: &mut Keeper) -> Result<Self, CannotConnect> {
        let mut backends = Vec::new();
        let mut services = HashMap::new();
        for (service, id) in config.services.iter().zip(0..) {
            let mut ids = HashMap::new();
            for config::Backend { name, endpoints, tls } in &service.backends {
                ids.insert(name.clone(), BackendId(backends.len() as u32));
                let endpoints = endpoints.clone();
                let tls = tls.as_ref().map(|settings| keeper.connector(settings)).transpose()?;
                backends.push(Backend { service: ServiceId(id), name: name.clone(), endpoints, tls });
            }
            services.insert(service.name.clone(), (ServiceId(id), ids));
        }
        let routes = compile(&config.routes, |name| services[name].0);
        let services_of_topology = config.services.iter().map(of_service).collect();
        let topology = Topology::new(config.paths, routes, services_of_topology, backends);
        let splits = config.services.iter().map(|service| {
            let (_, ids) = &services[&service.name];
            split(ids, &service.roles, service.weight, salt(&service.name, 0))
        });
        let snapshot = Snapshot::new(Arc::new(topology), splits.collect());
        Ok(Self { snapshots: Arc::new(ArcSwap::from_pointee(snapshot)), services })
    }

    /// Where workers read.
    pub fn snapshots(&self) -> &Arc<ArcSwap<Snapshot>> {
        &self.snapshots
    }

    /// Gives a service new roles and a new weight; the next request on every worker sees them.
    ///
    /// # Panics
    /// When the service or a backend is not in the configuration.
    pub fn publish(&self, service: &ServiceName, roles: &Roles, weight: Weight, salt: u64) {
        let (id, backends) = &self.services[service];
        let split = split(backends, roles, weight, salt);
        self.snapshots.rcu(|snapshot| snapshot.with_split(*id, split.clone()));
    }

    /// The place of a backend in the topology.
    pub fn backend(&self, service: &ServiceName, backend: &BackendName) -> Option<BackendId> {
        self.services.get(service)?.1.get(backend).copied()
    }

    /// How a backend speaks TLS, if it does.
    pub fn connector(&self, backend: BackendId) -> Option<Arc<Connector>> {
        self.snapshots.load().topology().backend(backend).tls.clone()
    }

    /// Gives an endpoint of a backend these addresses, each of which becomes one to choose among. Those
    /// that it had before keep their connections and their health. Returns whether anything changed.
    pub fn set_addresses(&self, backend: BackendId, endpoint: &Endpoint, addresses: &[SocketAddr]) -> bool {
        let mut changed = false;
        self.snapshots.rcu(|snapshot| {
            let members = snapshot.members_of(backend);
            let members = with_addresses(members, endpoint, addresses.iter().copied());
            changed = members.is_some();
            match members {
                Some(members) => Arc::new(snapshot.with_members(backend, members)),
                None => Arc::clone(snapshot),
            }
        });
        changed
    }
}

/// Routes as rules, one for each host, and those of them that have filters.
fn compile(
    routes: &[config::Route],
    id: impl Fn(&ServiceName) -> ServiceId,
) -> (Vec<Rule>, Vec<filter::Route>) {
    let (mut rules, mut filtered) = (Vec::new(), Vec::new());
    for config::Route { hostnames, path, conditions, lead, filters } in routes {
        let target = match lead {
            Lead::Service(service) if *filters == Filters::default() => Target::Service(id(service)),
            lead => {
                let end = match lead {
                    Lead::Service(service) => End::Service(id(service)),
                    Lead::Redirect(redirect) => End::Redirect(redirect.clone()),
                };
                filtered.push(with_filters(end, filters));
                Target::Route(RouteId(filtered.len() as u32 - 1))
            }
        };
        let rule = |host| Rule { host, path: path.clone(), conditions: conditions.clone(), target };
        match hostnames.is_empty() {
            true => rules.push(rule(None)),
            false => rules.extend(hostnames.iter().cloned().map(Some).map(rule)),
        }
    }
    (rules, filtered)
}

fn with_filters(end: End, filters: &Filters) -> filter::Route {
    let Filters { request, response, hostname, path, timeouts } = filters.clone();
    filter::Route { end, request, response, hostname, path, timeouts }
}

fn of_service(service: &config::Service) -> Service {
    let config::Service {
        name,
        sticky,
        overrides,
        backend_header,
        timeouts,
        upgrades,
        policy,
        limits,
        roles: _,
        weight: _,
        backends: _,
        rollout: _,
    } = service;
    Service {
        name: name.clone(),
        sticky: sticky.clone(),
        overrides: overrides.clone().map(Box::new),
        backend_header: backend_header.clone(),
        timeouts: *timeouts,
        upgrades: upgrades.clone(),
        policy: policy.clone(),
        limits: *limits,
    }
}

fn split(ids: &HashMap<BackendName, BackendId>, roles: &Roles, weight: Weight, salt: u64) -> Split {
    Split { stable: ids[roles.stable()], canary: roles.canary().map(|canary| ids[canary]), weight, salt }
}

/// What decides which users go first: the same on every replica and after a restart, another one for
/// each rollout.
pub fn salt(service: &ServiceName, rollout: u64) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(rollout, 0);
    hasher.write(service.as_str().as_bytes());
    hasher.finish()
}
