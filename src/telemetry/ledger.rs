//! One worker's cells, and where the control half finds them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use super::{
    by_service::ByService,
    cells::{Cells, Counter, Writer},
    health::Board,
    mirror::{MirrorCells, MirrorTotals},
    retries::{RetryCells, RetryTotals},
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

/// Why Tidegate answered a request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalReason {
    /// The request was not acceptable HTTP.
    BadRequest,
    /// The target was too long.
    UriTooLong,
    /// The head had too many fields, or was too long.
    HeadTooLarge,
    /// The body was larger than the service takes.
    BodyTooLarge,
    /// The service or the client had had its share of requests.
    RateLimited,
    /// The service had as many requests as it takes at a time.
    Overloaded,
    /// The client stopped in the middle of its request.
    RequestTimeout,
    /// No route matched.
    NoRoute,
    /// The route sends clients elsewhere.
    Redirect,
    /// The preview was asked for, and there is no canary.
    NoCanary,
    /// The backend has no endpoint.
    NoEndpoint,
    /// None of the backend's endpoints is healthy.
    NoHealthyEndpoint,
    /// The backend has all the requests that it may have, or too many wait for a connection already.
    UpstreamOverflow,
    /// No connection became free in time.
    PendingTimeout,
    /// No connection could be made.
    ConnectFailure,
    /// No connection could be made in time.
    ConnectTimeout,
    /// The response did not begin in time.
    ResponseTimeout,
    /// The connection broke before the response began, or what came was not HTTP.
    Reset,
    /// The backend does not switch protocols as it was asked to.
    NoUpgrade,
    /// The backend speaks no TLS that we do.
    TlsProtocolError,
    /// The backend's certificate is not to be believed.
    TlsCertificateError,
    /// The listener only sends clients to HTTPS.
    RedirectToHttps,
}

impl LocalReason {
    /// Every reason, in the order of its index.
    pub const ALL: [Self; 22] = [
        Self::BadRequest,
        Self::UriTooLong,
        Self::HeadTooLarge,
        Self::BodyTooLarge,
        Self::RateLimited,
        Self::Overloaded,
        Self::RequestTimeout,
        Self::NoRoute,
        Self::Redirect,
        Self::NoCanary,
        Self::NoEndpoint,
        Self::NoHealthyEndpoint,
        Self::UpstreamOverflow,
        Self::PendingTimeout,
        Self::ConnectFailure,
        Self::ConnectTimeout,
        Self::ResponseTimeout,
        Self::Reset,
        Self::NoUpgrade,
        Self::TlsProtocolError,
        Self::TlsCertificateError,
        Self::RedirectToHttps,
    ];

    /// The value of the metric label `reason`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UriTooLong => "uri_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::BodyTooLarge => "body_too_large",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::RequestTimeout => "request_timeout",
            Self::NoRoute => "no_route",
            Self::Redirect => "redirect",
            Self::NoCanary => "no_canary",
            Self::NoEndpoint => "no_endpoint",
            Self::NoHealthyEndpoint => "no_healthy_endpoint",
            Self::UpstreamOverflow => "upstream_overflow",
            Self::PendingTimeout => "pending_timeout",
            Self::ConnectFailure => "connect_failure",
            Self::ConnectTimeout => "connect_timeout",
            Self::ResponseTimeout => "response_timeout",
            Self::Reset => "reset",
            Self::NoUpgrade => "no_upgrade",
            Self::TlsProtocolError => "tls_protocol_error",
            Self::TlsCertificateError => "tls_certificate_error",
            Self::RedirectToHttps => "redirect_to_https",
        }
    }
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

/// One worker's cells for one topology. Cells are made when first written: a backend that never
/// plays a role costs nothing.
#[derive(Debug)]
pub struct Ledger {
    keys: Arc<[Key]>,
    slots: Box<[OnceLock<Arc<Cells>>]>,
}

impl Ledger {
    /// Cells for these backends, in the order of their ids; those that `before` has are kept.
    pub fn new(keys: Arc<[Key]>, before: Option<&Self>) -> Self {
        let slots = keys.iter().flat_map(|key| Role::ALL.map(|role| (key, role))).map(|(key, role)| {
            match before.and_then(|ledger| ledger.existing(key, role)) {
                Some(cells) => OnceLock::from(cells),
                None => OnceLock::new(),
            }
        });
        Self { slots: slots.collect(), keys }
    }

    /// The right to write the cells of the backend with this id in this role. For the worker that
    /// owns the ledger, and for nobody else.
    #[inline]
    pub fn writer(&self, backend: usize, role: Role) -> Writer {
        let slot = &self.slots[backend * Role::ALL.len() + role.index()];
        Writer::new(Arc::clone(slot.get_or_init(Arc::default)))
    }

    /// The cells that have been written so far, with what they are about.
    pub fn cells(&self) -> impl Iterator<Item = (&Key, Role, &Cells)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| {
            let roles = Role::ALL.len();
            slot.get().map(|cells| (&self.keys[i / roles], Role::ALL[i % roles], &**cells))
        })
    }

    fn existing(&self, key: &Key, role: Role) -> Option<Arc<Cells>> {
        let backend = self.keys.iter().position(|k| k == key)?;
        self.slots[backend * Role::ALL.len() + role.index()].get().cloned()
    }
}

/// Where workers leave their ledgers for the control half to find.
#[derive(Debug)]
pub struct Hub {
    workers: Box<[Shelf]>,
    health: Board,
}

#[derive(Debug)]
struct Shelf {
    cells: Arc<WorkerCells>,
    // Locked when a topology changes and when counts are read; never for a request.
    ledger: Mutex<Arc<Ledger>>,
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
            retries: ByService::default(),
            mirrors: ByService::default(),
        };
        let health = Board::new(clock::monotonic());
        Self { workers: (0..workers).map(|_| shelf()).collect(), health }
    }

    /// The health of all endpoints.
    pub fn health(&self) -> &Board {
        &self.health
    }

    /// How many workers there are.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// Replaces a worker's ledger by one for these backends, keeping what has been counted.
    pub fn open_ledger(&self, worker: usize, keys: Arc<[Key]>) -> Arc<Ledger> {
        let mut shelf = self.workers[worker].ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let ledger = Arc::new(Ledger::new(keys, Some(&shelf)));
        *shelf = Arc::clone(&ledger);
        ledger
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

    fn keys(backends: &[&str]) -> Arc<[Key]> {
        let service: ServiceName = "web".parse().unwrap();
        backends.iter().map(|b| Key { service: service.clone(), backend: b.parse().unwrap() }).collect()
    }

    #[test]
    fn counts_outlive_a_change_of_topology() {
        let hub = Hub::new(1);
        let ledger = hub.open_ledger(0, keys(&["v1", "v2"]));
        let writer = ledger.writer(1, Role::Canary);
        writer.begin();
        writer.end(Outcome::Success, false, None);
        let ledger = hub.open_ledger(0, keys(&["v0", "v2"]));
        let counted: Vec<_> = ledger
            .cells()
            .map(|(k, role, c)| (k.backend.to_string(), role, c.outcome(Outcome::Success)))
            .collect();
        assert_eq!(counted, [("v2".to_owned(), Role::Canary, 1)]);
    }

    #[test]
    fn local_reasons_have_labels_of_their_own() {
        for (i, reason) in LocalReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
        for (i, failure) in HandshakeFailure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, i);
        }
    }
}
