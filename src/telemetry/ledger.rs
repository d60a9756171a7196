//! One worker's cells, and where the control half finds them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use super::{
    by_service::ByService,
    cells::{Cells, Counter, Writer},
    endpoints::ByEndpoint,
    health::Board,
    in_flight::Limits,
    local_reason::LocalReason,
    mirror::{MirrorCells, MirrorTotals, Pairs},
    reader,
    retries::{RetryCells, RetryTotals},
    users::{ByService as UsersByService, Rules, UserCells},
};
use crate::{
    clock,
    model::{
        name::{BackendName, ServiceName},
        role::Role,
    },
};

/// What a set of cells is about, but for the role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The service.
    pub service: ServiceName,
    /// The backend.
    pub backend: BackendName,
}

/// Why a client's connection ended before its first request could come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// It took too long.
    Timeout,
    /// The client went away.
    Closed,
    /// What came was not TLS; plain HTTP, most often.
    NotTls,
    /// The client speaks no version that is spoken here.
    Version,
    /// The client knows no cipher, key exchange or signature that is known here.
    NoSharedCipher,
    /// The client speaks neither HTTP/2 nor HTTP/1.1.
    Alpn,
    /// The client has shown no certificate, and has to.
    ClientCertificateMissing,
    /// The client's certificate is not to be believed.
    ClientCertificateInvalid,
    /// The client does not believe our certificate.
    CertificateRejected,
    /// The client gave up for another reason.
    Alert,
    /// The client broke the rules of TLS.
    Protocol,
    /// A load balancer took too long over its PROXY header.
    ProxyTimeout,
    /// A load balancer did not begin with a PROXY header.
    ProxyMissing,
    /// A load balancer's PROXY header is malformed.
    ProxyMalformed,
}

impl HandshakeFailure {
    /// Every failure, in the order of its index.
    pub const ALL: [Self; 14] = [
        Self::Timeout,
        Self::Closed,
        Self::NotTls,
        Self::Version,
        Self::NoSharedCipher,
        Self::Alpn,
        Self::ClientCertificateMissing,
        Self::ClientCertificateInvalid,
        Self::CertificateRejected,
        Self::Alert,
        Self::Protocol,
        Self::ProxyTimeout,
        Self::ProxyMissing,
        Self::ProxyMalformed,
    ];

    /// The value of the metric label `reason`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::NotTls => "not_tls",
            Self::Version => "version",
            Self::NoSharedCipher => "no_shared_cipher",
            Self::Alpn => "alpn",
            Self::ClientCertificateMissing => "client_certificate_missing",
            Self::ClientCertificateInvalid => "client_certificate_invalid",
            Self::CertificateRejected => "certificate_rejected",
            Self::Alert => "alert",
            Self::Protocol => "protocol",
            Self::ProxyTimeout => "proxy_timeout",
            Self::ProxyMissing => "proxy_missing",
            Self::ProxyMalformed => "proxy_malformed",
        }
    }
}

/// What one worker counts beside its backends.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCells {
    /// Connections accepted.
    pub connections_accepted: Counter,
    /// Connections open.
    pub connections_open: Counter,
    /// Connections that were switched to another protocol and are open.
    pub tunnels_open: Counter,
    /// Connections closed at once because their client's address had too many.
    pub connections_refused: Counter,
    /// Connections that could not be accepted (descriptors exhausted, say).
    pub accept_errors: Counter,
    local_replies: [Counter; LocalReason::ALL.len()],
    handshake_failures: [Counter; HandshakeFailure::ALL.len()],
}

impl WorkerCells {
    /// Counts a reply that Tidegate made itself.
    pub fn replied(&self, reason: LocalReason) {
        self.local_replies[reason as usize].add(1);
    }

    /// Replies that Tidegate made itself for this reason.
    pub fn local_replies(&self, reason: LocalReason) -> u64 {
        self.local_replies[reason as usize].get()
    }

    /// Counts a connection that ended before its first request could come.
    pub fn handshake_failed(&self, failure: HandshakeFailure) {
        self.handshake_failures[failure as usize].add(1);
    }

    /// Connections that ended so before their first request could come.
    pub fn handshake_failures(&self, failure: HandshakeFailure) -> u64 {
        self.handshake_failures[failure as usize].get()
    }
}

/// A part of a backend's requests in a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Those of no other part, and of routes.
    Rest,
    /// Those of endpoints that are warming up.
    Warming,
    /// Those of one half, where a backend is split against itself.
    Half(bool),
    /// Those that were sent to the role, whatever chance would have had it.
    Sent,
    /// Copies, which are none of its requests.
    Copies,
    /// Those of one of the routes that are counted apart, by its place among them.
    Route(u16),
    /// Those that were sent, of such a route.
    SentRoute(u16),
}

impl Part {
    /// Those that every backend has.
    const FIXED: usize = 6;

    const fn index(self) -> usize {
        match self {
            Self::Rest => 0,
            Self::Warming => 1,
            Self::Half(half) => 2 + half as usize,
            Self::Sent => 4,
            Self::Copies => 5,
            Self::Route(place) => Self::FIXED + 2 * place as usize,
            Self::SentRoute(place) => Self::FIXED + 2 * place as usize + 1,
        }
    }

    fn of_index(index: usize) -> Self {
        match index {
            0 => Self::Rest,
            1 => Self::Warming,
            2 | 3 => Self::Half(index == 3),
            4 => Self::Sent,
            5 => Self::Copies,
            _ => {
                let (place, is_sent) = ((index - Self::FIXED) / 2, (index - Self::FIXED) % 2 == 1);
                // There are no more routes than that.
                let place = place as u16;
                if is_sent { Self::SentRoute(place) } else { Self::Route(place) }
            }
        }
    }

    /// Where its requests are counted as well. The others are added up by whoever reads them.
    const fn whole(self) -> Option<Self> {
        match self {
            Self::Route(_) => Some(Self::Rest),
            Self::SentRoute(_) => Some(Self::Sent),
            Self::Rest | Self::Warming | Self::Half(_) | Self::Sent | Self::Copies => None,
        }
    }
}

/// What a ledger has of a backend.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The backend.
    pub key: Key,
    /// The routes that are counted apart.
    pub routes: Arc<[Arc<str>]>,
    /// What goes for users, where they are the unit.
    pub users: Option<Arc<Rules>>,
}

impl From<Key> for Entry {
    fn from(key: Key) -> Self {
        Self { key, routes: Arc::new([]), users: None }
    }
}

impl Entry {
    /// How many slots it has for one role.
    fn parts(&self) -> usize {
        Part::FIXED + 2 * self.routes.len()
    }

    /// Cells of what users do in a part, where that is compared.
    fn user_cells(&self, role: Role, part: Part) -> Option<UserCells> {
        let (role, is_route) = match part {
            Part::Rest => (role, false),
            Part::Route(_) => (role, true),
            // It plays the canary.
            Part::Half(true) => (Role::Canary, false),
            Part::Half(false) => (Role::Stable, false),
            Part::Warming | Part::Sent | Part::Copies | Part::SentRoute(_) => return None,
        };
        Some(UserCells::new(Arc::clone(self.users.as_ref()?), role, is_route))
    }

    /// The same part in another ledger.
    fn part_in(&self, part: Part, other: &Self) -> Option<Part> {
        let place = |place: u16| {
            let name = &self.routes[usize::from(place)];
            other.routes.iter().position(|route| route == name).map(|place| place as u16)
        };
        match part {
            Part::Route(at) => place(at).map(Part::Route),
            Part::SentRoute(at) => place(at).map(Part::SentRoute),
            Part::Rest | Part::Warming | Part::Half(_) | Part::Sent | Part::Copies => Some(part),
        }
    }
}

/// One worker's cells for one topology. Cells are made when first written: a backend that never
/// plays a role costs nothing.
#[derive(Debug)]
pub struct Ledger {
    entries: Arc<[Entry]>,
    /// Where the slots of each entry begin.
    starts: Box<[usize]>,
    slots: Box<[OnceLock<Arc<Cells>>]>,
}

impl Ledger {
    /// Cells for these backends, in the order of their ids; those that `before` has are kept.
    pub fn new(entries: Arc<[Entry]>, before: Option<&Self>) -> Self {
        let (mut starts, mut slots) = (Vec::new(), Vec::new());
        for entry in &*entries {
            starts.push(slots.len());
            for role in Role::ALL {
                let parts = (0..entry.parts()).map(Part::of_index);
                slots.extend(parts.map(|part| {
                    let existing = before.and_then(|ledger| ledger.existing(entry, role, part));
                    existing.map_or_else(OnceLock::new, OnceLock::from)
                }));
            }
        }
        Self { entries, starts: starts.into(), slots: slots.into() }
    }

    /// The right to write the cells of a part of what the backend with this id does in this role. For the
    /// worker that owns the ledger, and for nobody else.
    #[inline]
    pub fn writer(&self, backend: usize, role: Role, part: Part) -> Writer {
        Writer::new(Arc::clone(self.made(backend, role, part)))
    }

    /// The cells of a part, which are made with those that they are a part of.
    fn made(&self, backend: usize, role: Role, part: Part) -> &Arc<Cells> {
        self.slot(backend, role, part).get_or_init(|| {
            let cells = match part.whole() {
                Some(whole) => Cells::part_of(self.made(backend, role, whole)),
                None if part == Part::Copies => Cells::without_latency(),
                None => Cells::default(),
            };
            Arc::new(cells.with_users(self.entries[backend].user_cells(role, part)))
        })
    }

    /// The cells that have been written so far, with what they are about.
    pub fn cells(&self) -> impl Iterator<Item = (&Entry, Role, Part, &Cells)> {
        let (entries, starts) = (self.entries.iter(), self.starts.iter());
        let roles = entries.zip(starts).flat_map(|entry| Role::ALL.map(|role| (entry, role)));
        roles.flat_map(|((entry, start), role)| {
            let first = start + role.index() * entry.parts();
            let slots = self.slots[first..].iter().take(entry.parts()).enumerate();
            slots.filter_map(move |(index, slot)| Some((entry, role, Part::of_index(index), &**slot.get()?)))
        })
    }

    fn slot(&self, backend: usize, role: Role, part: Part) -> &OnceLock<Arc<Cells>> {
        &self.slots[self.starts[backend] + role.index() * self.entries[backend].parts() + part.index()]
    }

    fn existing(&self, entry: &Entry, role: Role, part: Part) -> Option<Arc<Cells>> {
        let same = |known: &Entry| known.key == entry.key && known.users.is_some() == entry.users.is_some();
        let backend = self.entries.iter().position(same)?;
        let part = entry.part_in(part, &self.entries[backend])?;
        self.slot(backend, role, part).get().cloned()
    }
}

/// Where workers leave their ledgers for the control half to find.
#[derive(Debug)]
pub struct Hub {
    workers: Box<[Shelf]>,
    health: Board,
    in_flight: Limits,
    users: UsersByService,
}

#[derive(Debug)]
struct Shelf {
    cells: Arc<WorkerCells>,
    // Locked when a topology changes and when counts are read; never for a request.
    ledger: Mutex<Arc<Ledger>>,
    endpoints: ByEndpoint,
    retries: ByService<RetryCells>,
    mirrors: ByService<MirrorCells>,
}

impl Hub {
    /// A hub for this many workers, whose ledgers are empty at first.
    pub fn new(workers: usize) -> Self {
        let empty = || Ledger::new(Arc::new([]), None);
        let shelf = || Shelf {
            cells: Arc::default(),
            ledger: Mutex::new(Arc::new(empty())),
            endpoints: ByEndpoint::default(),
            retries: ByService::default(),
            mirrors: ByService::default(),
        };
        let health = Board::new(clock::monotonic());
        let workers = (0..workers).map(|_| shelf()).collect();
        Self { workers, health, in_flight: Limits::default(), users: UsersByService::default() }
    }

    /// The health of all endpoints.
    pub fn health(&self) -> &Board {
        &self.health
    }

    /// How many requests at a time services may have.
    pub fn in_flight(&self) -> &Limits {
        &self.in_flight
    }

    /// What goes for the users of services whose unit they are.
    pub fn users(&self) -> &UsersByService {
        &self.users
    }

    /// How many workers there are.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// Replaces a worker's ledger by one for these backends, keeping what has been counted.
    pub fn open_ledger(&self, worker: usize, entries: Arc<[Entry]>) -> Arc<Ledger> {
        let mut shelf = self.workers[worker].ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let ledger = Arc::new(Ledger::new(entries, Some(&shelf)));
        *shelf = Arc::clone(&ledger);
        ledger
    }

    /// What a worker counts of each endpoint. To be written by that worker, and by nobody else.
    pub fn endpoints(&self, worker: usize) -> &ByEndpoint {
        &self.workers[worker].endpoints
    }

    /// What a worker counts beside its backends.
    pub fn worker_cells(&self, worker: usize) -> Arc<WorkerCells> {
        Arc::clone(&self.workers[worker].cells)
    }

    /// What a worker counts of a service's retries. For that worker, and for nobody else.
    pub fn retry_cells(&self, worker: usize, service: &ServiceName) -> Arc<RetryCells> {
        self.workers[worker].retries.of(service)
    }

    /// Forgets what a worker has counted of the retries of all services but these.
    pub fn retain_retries(&self, worker: usize, services: &BTreeSet<&ServiceName>) {
        self.workers[worker].retries.retain(services);
    }

    /// The retries of the services that have any, over all workers.
    pub fn retries(&self) -> BTreeMap<ServiceName, RetryTotals> {
        let mut sums = BTreeMap::new();
        self.workers.iter().for_each(|shelf| shelf.retries.sum(&mut sums, RetryTotals::add));
        sums
    }

    /// What a worker counts of a service's mirror. For that worker, and for nobody else.
    pub fn mirror_cells(&self, worker: usize, service: &ServiceName) -> Arc<MirrorCells> {
        self.workers[worker].mirrors.of(service)
    }

    /// Forgets what a worker has counted of the mirrors of all services but these.
    pub fn retain_mirrors(&self, worker: usize, services: &BTreeSet<&ServiceName>) {
        self.workers[worker].mirrors.retain(services);
    }

    /// The mirrors of the services that have one, over all workers.
    pub fn mirrors(&self) -> BTreeMap<ServiceName, MirrorTotals> {
        let mut sums = BTreeMap::new();
        self.workers.iter().for_each(|shelf| shelf.mirrors.sum(&mut sums, MirrorTotals::add));
        for (key, copies) in reader::read_copies(self) {
            if let Some(sum) = sums.get_mut(&key.service) {
                sum.in_flight += copies.in_flight;
            }
        }
        sums
    }

    /// How their pairs have ended, without all that costs more to sum.
    pub fn pairs(&self) -> BTreeMap<ServiceName, Pairs> {
        let mut sums = BTreeMap::new();
        self.workers.iter().for_each(|shelf| shelf.mirrors.sum(&mut sums, Pairs::add));
        sums
    }

    /// Every worker's counts, in the workers' order.
    pub fn workers(&self) -> impl Iterator<Item = (Arc<Ledger>, &WorkerCells)> {
        self.workers.iter().map(|shelf| {
            let ledger = shelf.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            (Arc::clone(&ledger), &*shelf.cells)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::outcome::Outcome;

    fn entries(backends: &[&str], routes: &[&str]) -> Arc<[Entry]> {
        let service: ServiceName = "web".parse().unwrap();
        let routes: Arc<[Arc<str>]> = routes.iter().map(|route| (*route).into()).collect();
        let key = |backend: &&str| Key { service: service.clone(), backend: backend.parse().unwrap() };
        backends.iter().map(|b| Entry { key: key(b), routes: Arc::clone(&routes), users: None }).collect()
    }

    #[test]
    fn counts_outlive_a_change_of_topology() {
        let hub = Hub::new(1);
        let ledger = hub.open_ledger(0, entries(&["v1", "v2"], &["/a", "/b"]));
        for part in
            [Part::Rest, Part::Route(0), Part::Route(1), Part::Route(1), Part::Warming, Part::SentRoute(1)]
        {
            let writer = ledger.writer(1, Role::Canary, part);
            writer.begin();
            writer.end(Outcome::Success, false, None);
        }
        // Another backend before it, and other routes.
        let ledger = hub.open_ledger(0, entries(&["v0", "v2"], &["/c", "/b"]));
        let counted: Vec<_> = ledger
            .cells()
            .map(|(entry, role, part, c)| {
                (entry.key.backend.to_string(), role, part, c.outcome(Outcome::Success))
            })
            .collect();
        let of_canary = |part, count| ("v2".to_owned(), Role::Canary, part, count);
        let wanted = [
            (Part::Rest, 4),
            (Part::Warming, 1),
            (Part::Sent, 1),
            (Part::Route(1), 2),
            (Part::SentRoute(1), 1),
        ];
        assert_eq!(counted, wanted.map(|(part, count)| of_canary(part, count)));
    }

    #[test]
    fn handshake_failures_are_dense() {
        for (i, failure) in HandshakeFailure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, i);
        }
    }
}
