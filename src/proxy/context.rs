//! What one worker has at hand for its requests.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use arc_swap::{ArcSwap, Cache};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    admission::{Gate, Gates, RouteGate},
    mirror::Mirror,
    retry::Retries,
    upload::RequestBody,
};
use crate::{
    access_log, clock,
    model::{name::ServiceName, role::Role},
    net::timers::Timers,
    routing::{
        members::Members,
        snapshot::{BackendId, RouteId, Service, ServiceId, Snapshot, Topology},
    },
    spans,
    telemetry::{
        cells::Writer,
        ledger::{Entry, Hub, Key, Ledger, Part, WorkerCells},
    },
    upstream,
};

/// This worker's view of an endpoint.
pub(super) type Endpoint = upstream::endpoint::Endpoint<RequestBody>;

/// This worker's view of a backend.
pub(super) type Backend = upstream::backend::Backend<RequestBody>;

/// What all workers share, because it holds for the process.
#[derive(Debug, Default)]
pub struct Shared {
    gates: Gates,
}

/// Where one worker tells of exchanges, beside counting them.
#[derive(Debug, Default)]
pub struct Witnesses {
    /// Where they are logged, if they are.
    pub access_log: Option<access_log::queue::Queue>,
    /// Where their spans go, if there is tracing.
    pub spans: Option<spans::queue::Queue>,
}

/// What one worker has at hand for its requests. Lives and dies on its thread.
#[derive(Debug)]
pub struct Context {
    worker: usize,
    hub: Arc<Hub>,
    cells: Arc<WorkerCells>,
    shared: Arc<Shared>,
    snapshots: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    view: RefCell<Rc<View>>,
    rng: RefCell<SmallRng>,
    timers: Rc<Timers>,
    draining: Cell<bool>,
    /// Nothing where there are none, so that this is all that is looked at.
    witnesses: Option<Rc<Witnesses>>,
    pulse: Rc<Cell<u64>>,
    /// How often something under way had been told to end when this worker last looked.
    cuts: Cell<u64>,
}

impl Context {
    /// The context of worker number `worker`; `seed` starts its random numbers.
    pub fn new(
        worker: usize,
        hub: Arc<Hub>,
        snapshots: Arc<ArcSwap<Snapshot>>,
        shared: Arc<Shared>,
        seed: u64,
    ) -> Self {
        let mut snapshots = Cache::new(snapshots);
        let view = View::new(Arc::clone(snapshots.load()), &hub, &shared.gates, worker, None);
        Self {
            worker,
            cells: hub.worker_cells(worker),
            hub,
            shared,
            snapshots: RefCell::new(snapshots),
            view: RefCell::new(Rc::new(view)),
            rng: RefCell::new(SmallRng::seed_from_u64(seed)),
            timers: Rc::default(),
            draining: Cell::new(false),
            witnesses: None,
            pulse: Rc::default(),
            cuts: Cell::default(),
        }
    }

    /// The same with somebody to tell.
    #[must_use]
    pub fn telling(self, witnesses: Witnesses) -> Self {
        let anybody = witnesses.access_log.is_some() || witnesses.spans.is_some();
        Self { witnesses: anybody.then(|| Rc::new(witnesses)), ..self }
    }

    /// Whom exchanges are told to, if to anybody.
    #[inline]
    pub(super) fn witnesses(&self) -> Option<&Rc<Witnesses>> {
        self.witnesses.as_ref()
    }

    /// Whether there is tracing.
    #[inline]
    pub(super) fn traces(&self) -> bool {
        self.witnesses.as_ref().is_some_and(|witnesses| witnesses.spans.is_some())
    }

    /// The newest snapshot and what this worker has for it. A request asks once and keeps the answer; only before
    /// another try does it look whether its backend still gets anybody.
    pub(super) fn view(&self) -> Rc<View> {
        let mut snapshots = self.snapshots.borrow_mut();
        let newest = snapshots.load();
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(newest, &view.snapshot) {
            *view = Rc::new(View::new(
                Arc::clone(newest),
                &self.hub,
                &self.shared.gates,
                self.worker,
                Some(&view),
            ));
        }
        Rc::clone(&view)
    }

    /// A uniformly distributed number.
    pub(super) fn random<T>(&self) -> T
    where
        rand::distr::StandardUniform: rand::distr::Distribution<T>,
    {
        self.rng.borrow_mut().random()
    }

    /// Whether some backend is told whose each connection is.
    pub fn introduces_clients(&self) -> bool {
        self.view().snapshot.topology().introduces_clients()
    }

    /// The deadlines of this worker.
    pub fn timers(&self) -> &Rc<Timers> {
        &self.timers
    }

    /// Counts up whenever this worker gets something done.
    pub fn pulse(&self) -> &Rc<Cell<u64>> {
        &self.pulse
    }

    /// What this worker counts beside its backends.
    pub fn cells(&self) -> &WorkerCells {
        &self.cells
    }

    /// From now on, clients are asked to go elsewhere after each response.
    pub fn start_draining(&self) {
        self.draining.set(true);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Closes upstream connections that have been idle for too long or are closed already, and takes
    /// up a new topology even where no request asks for it. Wakes what may have been told to end: whoever moves
    /// bytes looks by itself, and nothing else wakes what is silent.
    pub fn sweep(&self) {
        let now = clock::monotonic();
        self.view().backends.iter().for_each(|backend| backend.sweep(now));
        let cuts = self.hub.health().cuts();
        if self.cuts.replace(cuts) != cuts {
            self.timers.wake();
        }
    }
}

/// A snapshot, and what this worker has for it.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) snapshot: Arc<Snapshot>,
    ledger: Arc<Ledger>,
    backends: Rc<[Rc<Backend>]>,
    gates: Rc<[Option<Arc<Gate>>]>,
    /// Empty where no route has one.
    route_gates: Rc<[Option<Arc<RouteGate>>]>,
    retries: Rc<[Option<Rc<Retries>>]>,
    mirrors: Rc<[Option<Rc<Mirror>>]>,
}

impl View {
    fn new(
        snapshot: Arc<Snapshot>,
        hub: &Arc<Hub>,
        gates: &Gates,
        worker: usize,
        before: Option<&Self>,
    ) -> Self {
        let topology = snapshot.topology();
        let before_same = before.filter(|before| Arc::ptr_eq(before.snapshot.topology(), topology));
        if let Some(before) = before_same
            && Arc::ptr_eq(before.snapshot.members(), snapshot.members())
        {
            return Self { snapshot, ..before.clone() };
        }
        let keys = keys(topology);
        let backends = backends(&snapshot, &keys, (hub, worker), before);
        if let Some(before) = before_same {
            return Self { snapshot, backends, ..before.clone() };
        }
        let route_gates = gates.of_routes(topology);
        let gates = topology.services().iter().map(|service| gates.of(service, hub.in_flight())).collect();
        let retries = retries(topology, hub, worker, before);
        let mirrors = mirrors(topology, hub, worker, before);
        Self {
            ledger: hub.open_ledger(worker, entries(topology, keys, hub)),
            snapshot,
            backends,
            gates,
            route_gates,
            retries,
            mirrors,
        }
    }

    pub(super) fn writer(&self, backend: BackendId, role: Role, part: Part) -> Writer {
        self.ledger.writer(backend.0 as usize, role, part)
    }

    pub(super) fn backend(&self, backend: BackendId) -> &Backend {
        &self.backends[backend.0 as usize]
    }

    /// The gate of a service, if its requests are limited.
    pub(super) fn gate(&self, service: ServiceId) -> Option<&Arc<Gate>> {
        self.gates[service.0 as usize].as_ref()
    }

    /// The gate of a route, if its requests are limited.
    pub(super) fn route_gate(&self, route: RouteId) -> Option<&RouteGate> {
        self.route_gates.get(route.0 as usize)?.as_deref()
    }

    /// What a service's requests are tried again with, if they are.
    pub(super) fn retries(&self, service: ServiceId) -> Option<&Rc<Retries>> {
        self.retries[service.0 as usize].as_ref()
    }

    /// What a service's requests are copied with, if they are.
    pub(super) fn mirror(&self, service: ServiceId) -> Option<&Rc<Mirror>> {
        self.mirrors[service.0 as usize].as_ref()
    }
}

/// What each service's requests are tried again with; those whose rules are the same go on with what they
/// have.
fn retries(
    topology: &Topology,
    hub: &Hub,
    worker: usize,
    before: Option<&View>,
) -> Rc<[Option<Rc<Retries>>]> {
    let services = topology.services();
    let known = before.map(|before| known(before, &before.retries)).unwrap_or_default();
    let one = |service: &Service| {
        let rules = service.retry.as_ref()?;
        Some(match known.get(&service.name).filter(|before| before.follow(rules)) {
            Some(before) => Rc::clone(before),
            None => Rc::new(Retries::new(rules, hub.worker_count(), hub.retry_cells(worker, &service.name))),
        })
    };
    let with_retries = services.iter().filter(|service| service.retry.is_some());
    hub.retain_retries(worker, &with_retries.map(|service| &service.name).collect());
    services.iter().map(one).collect()
}

/// The same for what they are copied with.
fn mirrors(topology: &Topology, hub: &Hub, worker: usize, before: Option<&View>) -> Rc<[Option<Rc<Mirror>>]> {
    let services = topology.services();
    let known = before.map(|before| known(before, &before.mirrors)).unwrap_or_default();
    let one = |service: &Service| {
        let rules = service.mirror.as_ref()?;
        Some(match known.get(&service.name).filter(|before| before.follows(rules)) {
            Some(before) => Rc::clone(before),
            None => Rc::new(Mirror::new(rules, hub.worker_count(), hub.mirror_cells(worker, &service.name))),
        })
    };
    let with_mirror = services.iter().filter(|service| service.mirror.is_some());
    hub.retain_mirrors(worker, &with_mirror.map(|service| &service.name).collect());
    services.iter().map(one).collect()
}

/// What services had before, by their names.
fn known<'v, T>(before: &'v View, had: &'v [Option<T>]) -> HashMap<&'v ServiceName, &'v T> {
    let names = before.snapshot.topology().services().iter().map(|service| &service.name);
    names.zip(had).filter_map(|(name, had)| Some((name, had.as_ref()?))).collect()
}

fn keys(topology: &Topology) -> Vec<Key> {
    let key = |backend: &crate::routing::snapshot::Backend| Key {
        service: topology.service(backend.service).name.clone(),
        backend: backend.name.clone(),
    };
    topology.backends().iter().map(key).collect()
}

fn entries(topology: &Topology, keys: Vec<Key>, hub: &Hub) -> Arc<[Entry]> {
    let services = topology.backends().iter().map(|backend| topology.service(backend.service));
    let entry = |(key, service): (Key, &Service)| {
        let users = service.counts_users.then(|| hub.users().of(&key.service));
        Entry { key, routes: Arc::clone(&service.routes), users }
    };
    keys.into_iter().zip(services).map(entry).collect()
}

/// Each backend's endpoints; those that were there before keep their connections.
fn backends(
    snapshot: &Snapshot,
    keys: &[Key],
    (hub, worker): (&Arc<Hub>, usize),
    before: Option<&View>,
) -> Rc<[Rc<Backend>]> {
    let topology = snapshot.topology();
    let now = clock::monotonic();
    let mut known: HashMap<Key, Rc<Backend>> = HashMap::new();
    if let Some(before) = before {
        let keys = self::keys(before.snapshot.topology());
        known.extend(keys.iter().cloned().zip(before.backends.iter().cloned()));
    }
    let one = |((backend, members), key): ((&crate::routing::snapshot::Backend, &Members), &Key)| {
        let policy = &topology.service(backend.service).policy;
        let before = known.get(key).map(|before| &**before);
        Rc::new(Backend::new((hub, worker), key, policy, backend, members, before, now))
    };
    let backends = topology.backends().iter().zip(snapshot.members().iter()).zip(keys).map(one).collect();
    let members: HashMap<_, _> = keys.iter().zip(snapshot.members().iter()).collect();
    hub.endpoints(worker).retain(|key, address| {
        members.get(key).is_some_and(|members| members.iter().any(|member| member.address == address))
    });
    backends
}
