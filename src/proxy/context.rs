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
    admission::{Gate, Gates},
    body::RequestBody,
};
use crate::{
    clock,
    model::role::Role,
    net::timers::Timers,
    routing::snapshot::{BackendId, Endpoint as Address, ServiceId, Snapshot, Topology},
    telemetry::{
        cells::Writer,
        ledger::{Hub, Key, Ledger, WorkerCells},
    },
    tls::client::Connector,
    upstream,
};

/// This worker's view of an endpoint.
pub(super) type Endpoint = upstream::endpoint::Endpoint<RequestBody>;

/// What all workers share, because it holds for the process.
#[derive(Debug, Default)]
pub struct Shared {
    gates: Gates,
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
    pulse: Rc<Cell<u64>>,
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
            pulse: Rc::default(),
        }
    }

    /// The newest snapshot and what this worker has for it. A request asks once and keeps the answer.
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
    /// up a new topology even where no request asks for it.
    pub fn sweep(&self) {
        let now = clock::monotonic();
        for endpoint in self.view().endpoints.iter().flatten() {
            endpoint.sweep(now);
        }
    }
}

/// A snapshot, and what this worker has for it.
#[derive(Debug)]
pub(super) struct View {
    pub(super) snapshot: Arc<Snapshot>,
    ledger: Arc<Ledger>,
    endpoints: Rc<[Vec<Rc<Endpoint>>]>,
    gates: Rc<[Option<Arc<Gate>>]>,
}

impl View {
    fn new(snapshot: Arc<Snapshot>, hub: &Hub, gates: &Gates, worker: usize, before: Option<&Self>) -> Self {
        let topology = snapshot.topology();
        if let Some(before) = before
            && Arc::ptr_eq(before.snapshot.topology(), topology)
        {
            let (ledger, endpoints) = (Arc::clone(&before.ledger), Rc::clone(&before.endpoints));
            return Self { snapshot, ledger, endpoints, gates: Rc::clone(&before.gates) };
        }
        let ledger = hub.open_ledger(worker, keys(topology));
        let endpoints = endpoints(topology, before);
        let gates = topology.services().iter().map(|service| gates.of(service)).collect();
        Self { ledger, endpoints, gates, snapshot }
    }

    pub(super) fn writer(&self, backend: BackendId, role: Role) -> Writer {
        self.ledger.writer(backend.0 as usize, role)
    }

    /// The gate of a service, if its requests are limited.
    pub(super) fn gate(&self, service: ServiceId) -> Option<&Arc<Gate>> {
        self.gates[service.0 as usize].as_ref()
    }

    pub(super) fn endpoints(&self, backend: BackendId) -> &[Rc<Endpoint>] {
        &self.endpoints[backend.0 as usize]
    }
}

fn keys(topology: &Topology) -> Arc<[Key]> {
    let key = |backend: &crate::routing::snapshot::Backend| Key {
        service: topology.service(backend.service).name.clone(),
        backend: backend.name.clone(),
    };
    topology.backends().iter().map(key).collect()
}

/// Each backend's endpoints; those that were there before keep their connections. Whose certificate is
/// verified in another way is another endpoint.
fn endpoints(topology: &Topology, before: Option<&View>) -> Rc<[Vec<Rc<Endpoint>>]> {
    let way = |address: &Address, tls: Option<&Arc<Connector>>| {
        (address.clone(), tls.map(|connector| connector.settings().clone()))
    };
    let mut known: HashMap<_, Rc<Endpoint>> = before
        .into_iter()
        .flat_map(|view| view.endpoints.iter().flatten())
        .map(|endpoint| (way(endpoint.address(), endpoint.tls()), Rc::clone(endpoint)))
        .collect();
    let mut one = |address: &Address, tls: &Option<Arc<Connector>>| {
        let new = || Rc::new(Endpoint::new(address.clone(), tls.clone()));
        Rc::clone(known.entry(way(address, tls.as_ref())).or_insert_with(new))
    };
    let backends = topology.backends().iter();
    backends.map(|b| b.endpoints.iter().map(|address| one(address, &b.tls)).collect()).collect()
}
