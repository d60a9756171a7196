//! The only writer of the snapshot.

use std::{collections::HashMap, hash::Hasher, sync::Arc};

use arc_swap::ArcSwap;
use siphasher::sip::SipHasher13;

use crate::{
    config::{self, Config},
    model::{
        name::{BackendName, ServiceName},
        role::Roles,
        weight::Weight,
    },
    routing::{
        snapshot::{Backend, BackendId, Service, ServiceId, Snapshot, Topology},
        split::Split,
        table::Rule,
    },
    tls::{client::CannotConnect, reload::Keeper},
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
        let rules = config.routes.iter().flat_map(|route| {
            let service = services[&route.service].0;
            let rule = move |host| Rule { host, path_prefix: route.path_prefix.clone(), service };
            let hosts: Vec<Option<String>> = match route.hostnames.is_empty() {
                true => vec![None],
                false => route.hostnames.iter().cloned().map(Some).collect(),
            };
            hosts.into_iter().map(rule)
        });
        let of_service = |service: &config::Service| {
            let config::Service {
                name,
                sticky,
                timeouts,
                limits,
                roles: _,
                weight: _,
                backends: _,
                rollout: _,
            } = service;
            Service { name: name.clone(), sticky: sticky.clone(), timeouts: *timeouts, limits: *limits }
        };
        let topology =
            Topology::new(rules.collect(), config.services.iter().map(of_service).collect(), backends);
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
