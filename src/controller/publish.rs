//! The only writer of the snapshot.

use std::{
    collections::{HashMap, HashSet},
    hash::Hasher,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use siphasher::sip::SipHasher13;

use crate::{
    analysis::users::Unit,
    config::{self, Config, Filters, Lead},
    model::{
        name::{BackendName, ServiceName},
        role::Roles,
        weight::Weight,
    },
    routing::{
        filter::{self, End},
        members::{Member, with_addresses},
        mirror::Mirror,
        snapshot::{Backend, BackendId, Endpoint, RouteId, Service, ServiceId, Snapshot, Topology},
        split::Split,
        table::{PathMatch, Rule, Target},
    },
    store::record::Position,
    tls::{
        client::{CannotConnect, Connector},
        files::Fault,
        reload::Keeper,
    },
};

/// Where services and their backends are in a topology.
type Places = HashMap<ServiceName, (ServiceId, HashMap<BackendName, BackendId>)>;

/// Addresses of endpoints that are names, as far as they are known.
pub type Addresses = HashMap<(ServiceName, BackendName, Endpoint), Vec<SocketAddr>>;

/// Publishes snapshots to the workers.
#[derive(Debug)]
pub struct Publisher {
    snapshots: Arc<ArcSwap<Snapshot>>,
    // Held by whoever publishes, so that places and snapshot belong together.
    places: Mutex<Places>,
}

/// A configuration that can take the place of the one in force.
#[derive(Debug)]
pub struct Compiled {
    topology: Arc<Topology>,
    places: Places,
    /// Roles and weights as they are written.
    splits: Vec<Split>,
}

/// Why a configuration cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is no way to speak TLS to a backend as it should be.
    #[error("cannot speak TLS to a backend")]
    Connector(#[from] CannotConnect),
    /// There is nothing to sign cookies with.
    #[error("cannot sign cookies")]
    Secrets(#[from] Fault),
}

impl Compiled {
    /// Compiles a configuration.
    ///
    /// # Errors
    /// When a file that it needs is not what it should be.
    pub fn new(config: &Config, keeper: &mut Keeper) -> Result<Self, Unusable> {
        let mut backends = Vec::new();
        let mut places = Places::new();
        for (service, id) in config.services.iter().zip(0..) {
            let mut ids = HashMap::new();
            for config::Backend { name, endpoints, tls, send_proxy_protocol } in &service.backends {
                ids.insert(name.clone(), BackendId(backends.len() as u32));
                let endpoints = endpoints.clone();
                let tls = tls.as_ref().map(|settings| keeper.connector(settings)).transpose()?;
                let (service, name, send_proxy_protocol) =
                    (ServiceId(id), name.clone(), *send_proxy_protocol);
                backends.push(Backend { service, name, endpoints, tls, send_proxy_protocol });
            }
            places.insert(service.name.clone(), (ServiceId(id), ids));
        }
        let routes = compile(config, |name| places[name].0);
        let services = config.services.iter().map(|service| of_service(service, keeper));
        let services = services.collect::<Result<_, _>>()?;
        let topology = Arc::new(Topology::new(config.paths, routes, services, backends));
        let splits = config.services.iter().map(|service| {
            let (_, ids) = &places[&service.name];
            split(ids, &service.roles, service.weight, salt(&service.name, 0))
        });
        Ok(Self { splits: splits.collect(), topology, places })
    }

    /// Gives a service other roles and another weight than those that are written, and copies for its
    /// rollout.
    ///
    /// # Panics
    /// When it has no such service, or that no such backend.
    pub(super) fn place(
        &mut self,
        service: &ServiceName,
        (Position { roles, weight }, copies): (&Position, Weight),
        salt: u64,
    ) {
        let (id, backends) = &self.places[service];
        self.splits[id.0 as usize] = Split { copies, ..split(backends, roles, *weight, salt) };
        if copies > Weight::ZERO {
            copy_in_dark_steps(&mut self.topology, *id, &Mirror::of_rollouts());
        }
    }
}

impl Publisher {
    /// Makes a configuration the first snapshot.
    pub fn new(compiled: Compiled) -> Self {
        let Compiled { topology, places, splits } = compiled;
        let snapshot = Snapshot::new(topology, splits);
        Self { snapshots: Arc::new(ArcSwap::from_pointee(snapshot)), places: Mutex::new(places) }
    }

    /// Where workers read.
    pub fn snapshots(&self) -> &Arc<ArcSwap<Snapshot>> {
        &self.snapshots
    }

    /// Makes a configuration the one in force; the next request on every worker sees it. Services of
    /// `kept` keep the roles and weights that they have; endpoints keep their addresses, and new ones
    /// have `addresses`.
    pub fn take_up(&self, compiled: Compiled, kept: &HashSet<ServiceName>, addresses: &Addresses) {
        let mut places = self.places();
        let Compiled { mut topology, places: new, mut splits } = compiled;
        let before = self.snapshots.load_full();
        let mut members_before: HashMap<(&ServiceName, &BackendName), &[Member]> = HashMap::new();
        for (service, (id, backends)) in &*places {
            let names: HashMap<_, _> = backends.iter().map(|(name, id)| (*id, name)).collect();
            for (name, id) in backends {
                members_before.insert((service, name), before.members_of(*id));
            }
            let Some((new_id, new_backends)) = new.get(service).filter(|_| kept.contains(service)) else {
                continue;
            };
            let Split { stable, canary, weight, copies, salt, halves } = *before.split(*id);
            // A rollout keeps its plan, and so its copies, whatever the configuration becomes.
            let rules = before.topology().service(*id).mirror.as_deref();
            if let Some(rules) = rules.filter(|_| copies > Weight::ZERO) {
                copy_in_dark_steps(&mut topology, *new_id, rules);
            }
            let moved = |id: BackendId| new_backends.get(names[&id]).copied();
            match (moved(stable), canary.map(moved)) {
                (Some(stable), canary @ (None | Some(Some(_)))) => {
                    let canary = canary.flatten();
                    splits[new_id.0 as usize] = Split { stable, canary, weight, copies, salt, halves };
                }
                _ => debug_assert!(false, "a kept service has the backends that hold its roles"),
            }
        }
        let snapshot = Snapshot::new(topology, splits);
        let mut members = snapshot.members().to_vec();
        for (service, (_, backends)) in &new {
            for (name, id) in backends {
                let known = members_before.get(&(service, name)).copied().unwrap_or_default();
                let members = &mut members[id.0 as usize];
                for endpoint in &snapshot.topology().backend(*id).endpoints {
                    let had = known.iter().filter(|member| member.endpoint == *endpoint).map(|m| m.address);
                    let had: Vec<_> = had.collect();
                    let found = addresses.get(&(service.clone(), name.clone(), endpoint.clone()));
                    let has = if had.is_empty() { found.cloned().unwrap_or_default() } else { had };
                    // One that is an address has it already.
                    if !has.is_empty()
                        && let Some(more) = with_addresses(members, endpoint, has)
                    {
                        *members = more;
                    }
                }
            }
        }
        let snapshot = snapshot.with_all_members(members);
        self.snapshots.store(Arc::new(snapshot));
        drop(members_before);
        *places = new;
    }

    /// Gives a service new roles, a new weight, and copies for its rollout; the next request on every worker
    /// sees them. One that is not there any more gets nothing.
    ///
    /// # Panics
    /// When a role's backend is not in the configuration.
    pub fn publish(
        &self,
        service: &ServiceName,
        (roles, weight, copies): (&Roles, Weight, Weight),
        salt: u64,
    ) {
        let places = self.places();
        let Some((id, backends)) = places.get(service) else { return };
        let split = Split { copies, ..split(backends, roles, weight, salt) };
        self.snapshots.rcu(|snapshot| snapshot.with_split(*id, split.clone()));
    }

    /// Splits a service's stable against itself by this salt, or no more, until anything else is published.
    pub(super) fn halve(&self, service: &ServiceName, halves: Option<u64>) {
        let places = self.places();
        let Some((id, _)) = places.get(service) else { return };
        self.snapshots.rcu(|snapshot| {
            let split = snapshot.split(*id).clone();
            // Another configuration may be in force already that gives the canary something.
            let halves = halves.filter(|_| split.weight == Weight::ZERO);
            snapshot.with_split(*id, Split { halves, ..split })
        });
    }

    /// How a backend speaks TLS, if it does.
    pub fn connector(&self, service: &ServiceName, backend: &BackendName) -> Option<Arc<Connector>> {
        let id = place(&self.places(), service, backend)?;
        self.snapshots.load().topology().backend(id).tls.clone()
    }

    /// Gives an endpoint of a backend these addresses, each of which becomes one to choose among. Those
    /// that it had before keep their connections and their health. Returns whether anything changed.
    pub fn set_addresses(
        &self,
        service: &ServiceName,
        backend: &BackendName,
        endpoint: &Endpoint,
        addresses: &[SocketAddr],
    ) -> bool {
        let places = self.places();
        let Some(id) = place(&places, service, backend) else { return false };
        let mut changed = false;
        self.snapshots.rcu(|snapshot| {
            let members = snapshot.members_of(id);
            let members = with_addresses(members, endpoint, addresses.iter().copied());
            changed = members.is_some();
            match members {
                Some(members) => Arc::new(snapshot.with_members(id, members)),
                None => Arc::clone(snapshot),
            }
        });
        changed
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a service's requests be copied in a topology that nobody has seen yet.
fn copy_in_dark_steps(topology: &mut Arc<Topology>, service: ServiceId, rules: &Mirror) {
    Arc::get_mut(topology)
        .expect("nobody else has a topology that was just made")
        .copy_in_dark_steps(service, rules);
}

fn place(places: &Places, service: &ServiceName, backend: &BackendName) -> Option<BackendId> {
    places.get(service)?.1.get(backend).copied()
}

/// Routes as rules, one for each host, and those of them that do more than lead to a service.
fn compile(config: &Config, id: impl Fn(&ServiceName) -> ServiceId) -> (Vec<Rule>, Vec<filter::Route>) {
    let (mut rules, mut filtered) = (Vec::new(), Vec::new());
    for config::Route { name, hostnames, path, conditions, lead, filters } in &config.routes {
        let place = |service| config.services[id(service).0 as usize].routes.iter().position(|r| r == name);
        let counted = match lead {
            Lead::Service(service) => place(service).and_then(|place| u16::try_from(place).ok()),
            Lead::Redirect(_) => None,
        };
        let label = config.tracing.is_some().then(|| filter::Label {
            name: Arc::clone(name),
            path: match path {
                PathMatch::Exact(path) | PathMatch::Prefix(path) => path.as_str().into(),
                PathMatch::Regex(pattern) => pattern.as_str().into(),
            },
        });
        let is_plain = *filters == Filters::default() && counted.is_none() && label.is_none();
        let target = match lead {
            Lead::Service(service) if is_plain => Target::Service(id(service)),
            lead => {
                let end = match lead {
                    Lead::Service(service) => End::Service(id(service)),
                    Lead::Redirect(redirect) => End::Redirect(redirect.clone()),
                };
                filtered.push(filter::Route { counted, label, ..with_filters(name, end, filters) });
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

fn with_filters(name: &Arc<str>, end: End, filters: &Filters) -> filter::Route {
    let Filters { request, response, hostname, path, timeouts, limits, failures } = filters.clone();
    let (name, failures) = (Arc::clone(name), failures.map(Box::new));
    let (counted, label) = (None, None);
    filter::Route { name, end, request, response, hostname, path, timeouts, limits, failures, counted, label }
}

fn of_service(service: &config::Service, keeper: &mut Keeper) -> Result<Service, Fault> {
    let config::Service {
        name,
        routes,
        sticky,
        cookie_secrets,
        overrides,
        backend_header,
        timeouts,
        upgrades,
        failures,
        policy,
        limits,
        retry,
        mirror,
        roles,
        weight: _,
        backends: _,
        rollout,
    } = service;
    Ok(Service {
        name: name.clone(),
        routes: Arc::clone(routes),
        counts_users: rollout.analysis.unit == Unit::User && roles.canary().is_some(),
        sticky: sticky.clone(),
        cookie_signer: cookie_secrets.as_ref().map(|secrets| keeper.signer(secrets)).transpose()?,
        overrides: overrides.clone().map(Box::new),
        backend_header: backend_header.clone(),
        timeouts: *timeouts,
        upgrades: upgrades.clone(),
        failures: failures.clone().map(Box::new),
        policy: policy.clone(),
        limits: *limits,
        retry: retry.clone().map(Arc::new),
        mirror: mirror.clone().map(Arc::new),
    })
}

fn split(ids: &HashMap<BackendName, BackendId>, roles: &Roles, weight: Weight, salt: u64) -> Split {
    let (stable, canary) = (ids[roles.stable()], roles.canary().map(|canary| ids[canary]));
    Split { stable, canary, weight, copies: Weight::ZERO, salt, halves: None }
}

/// What decides which users go first: the same on every replica and after a restart, another one for
/// each rollout.
pub fn salt(service: &ServiceName, rollout: u64) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(rollout, 0);
    hasher.write(service.as_str().as_bytes());
    hasher.finish()
}
