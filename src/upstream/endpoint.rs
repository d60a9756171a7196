//! One worker's view of an endpoint: its idle connections, and how busy it is.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Payload,
    allowance::{Allowance, Place, Turn},
    backend::millis,
    balance::{ewma::PeakEwma, hash},
    connection::Connection,
    health::outlier,
    pool::h2,
};
use crate::{
    model::{outcome::Outcome, protocol::ProxyProtocol},
    net::proxy_protocol::{self, Origin},
    routing::{
        members::Member,
        policy::{Algorithm, OutlierDetection, Policy},
        snapshot::{self, Endpoint as Address},
    },
    telemetry::{
        endpoints::EndpointCells,
        health::{EndpointHealth, Millis},
    },
    tls::client::Connector,
};

/// One worker's view of an endpoint.
#[derive(Debug)]
pub struct Endpoint<B: Payload> {
    member: Member,
    /// How it speaks TLS, if it does.
    tls: Option<Arc<Connector>>,
    /// In which version it is told whose each connection is, if it is. A connection is one client's then.
    proxy_protocol: Option<ProxyProtocol>,
    /// What it draws with for a key.
    number: u64,
    /// The last one put back is the first one taken: the rest grow old and are closed.
    #[expect(clippy::vec_box, reason = "connections are large and go in and out with every request")]
    idle: RefCell<Vec<Box<Connection<B>>>>,
    shared: h2::Pool<B>,
    in_flight: Cell<u32>,
    refused: Cell<bool>,
    allowance: Rc<Allowance<B>>,
    health: Arc<EndpointHealth>,
    counts: Arc<EndpointCells>,
    warmup: Option<Millis>,
    /// How quick it has been, where that matters.
    latency: Option<Cell<PeakEwma>>,
    /// When it is ejected, if ever.
    outliers: Option<OutlierDetection>,
}

impl<B: Payload> Endpoint<B> {
    /// Takes the idle connection that was put back last, where each is one client's, by this client.
    pub(super) fn take_newest_idle(&self, origin: Option<&Rc<Origin>>) -> Option<Box<Connection<B>>> {
        let mut idle = self.idle.borrow_mut();
        if self.proxy_protocol.is_none() {
            return idle.pop();
        }
        let at = idle.iter().rposition(|connection| connection.is_of(origin))?;
        Some(idle.remove(at))
    }

    /// What is known of its health, by all workers.
    pub(super) fn shared_health(&self) -> Arc<EndpointHealth> {
        Arc::clone(&self.health)
    }

    /// Closes the one that would be closed next, or one of HTTP/2 without a stream; whether there was one.
    pub(super) fn close_oldest_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        let oldest = (!idle.is_empty()).then(|| idle.remove(0));
        drop(idle);
        oldest.is_some() || self.shared.close_idle()
    }
}

impl<B: Payload> Endpoint<B> {
    /// An endpoint without connections.
    pub(super) fn new(
        member: Member,
        backend: &snapshot::Backend,
        policy: &Policy,
        allowance: Rc<Allowance<B>>,
        (health, counts): (Arc<EndpointHealth>, Arc<EndpointCells>),
        now: Instant,
    ) -> Self {
        let weighs_latency = policy.balance.algorithm == Algorithm::PeakEwma;
        Self {
            number: hash::number(member.address.to_string().as_bytes()),
            member,
            tls: backend.tls.clone(),
            proxy_protocol: backend.send_proxy_protocol,
            idle: RefCell::default(),
            shared: h2::Pool::new(Rc::clone(&allowance)),
            in_flight: Cell::new(0),
            refused: Cell::new(false),
            allowance,
            health,
            counts,
            warmup: policy.warmup.map(millis),
            latency: weighs_latency.then(|| Cell::new(PeakEwma::new(now))),
            outliers: policy.outlier_detection,
        }
    }

    /// As it is written.
    pub fn address(&self) -> &Address {
        &self.member.endpoint
    }

    /// Its HTTP/2 connections.
    pub fn shared(&self) -> &h2::Pool<B> {
        &self.shared
    }

    /// How it speaks TLS, if it does.
    pub fn tls(&self) -> Option<&Connector> {
        self.tls.as_deref()
    }

    /// As it is written, and where it is.
    pub fn member(&self) -> &Member {
        &self.member
    }

    pub(super) fn health(&self) -> &EndpointHealth {
        &self.health
    }

    /// Whether what began then has been told to end since, by whoever is in control.
    #[inline]
    pub fn is_cut_since(&self, began: Instant) -> bool {
        self.health.cut().is_some_and(|cut| self.allowance.millis(began) <= cut)
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether it is told whose each connection is.
    pub fn knows_clients(&self) -> bool {
        self.proxy_protocol.is_some()
    }

    /// What a connection to it begins with, if anything does; `origin` is whose it is.
    pub fn header(&self, origin: Option<&Rc<Origin>>) -> Option<Vec<u8>> {
        self.proxy_protocol.map(|version| proxy_protocol::header(version, origin.map(|origin| &**origin)))
    }

    /// The way to it: an idle connection if there is one, else the right to open another. Nothing if
    /// one has to wait for either. `origin` is whose connection that is to be, where it is told.
    pub fn turn(&self, origin: Option<&Rc<Origin>>) -> Option<Turn<B>> {
        if self.allowance.has_queue() {
            return None;
        }
        match self.take_newest_idle(origin) {
            Some(idle) => Some(Turn::Idle(idle)),
            None => self.allowance.reserve().map(Turn::Open),
        }
    }

    /// A place in the queue for its backend's connections, and how long one may wait; nothing if the
    /// queue is full.
    pub fn queue(&self) -> Option<(Place<B>, Duration)> {
        Some((self.allowance.queue()?, self.allowance.pool.pending_timeout))
    }

    /// The same for a stream of one of its HTTP/2 connections.
    pub fn queue_for_stream(&self) -> Option<(h2::Place<'_, B>, Duration)> {
        Some((self.shared.queue()?, self.allowance.pool.pending_timeout))
    }

    /// Puts a connection back, unless it cannot take another request, has taken enough, or there are
    /// enough. Where each is one client's, the oldest one makes room: its client has not come for longest.
    pub fn put_idle(&self, mut connection: Box<Connection<B>>, now: Instant) {
        let pool = &self.allowance.pool;
        let most = pool.max_idle as usize;
        let mut idle = self.idle.borrow_mut();
        // The end of a message may have been read without the connection noticing yet that it is free.
        if (idle.len() < most || self.knows_clients() && most > 0)
            && connection.has_life(pool.max_requests_per_connection, pool.max_connection_age, now)
            && (connection.is_ready() || connection.is_alive())
        {
            if idle.len() >= most {
                idle.remove(0);
            }
            connection.unwatch();
            connection.idle_since = Some(now);
            idle.push(connection);
            drop(idle);
            self.allowance.notify();
        }
    }

    /// Closes idle connections that are too old, that the other side has closed, or whose client has gone,
    /// and gives an endpoint that refused one another chance.
    pub(super) fn sweep(&self, now: Instant) {
        self.refused.set(false);
        self.shared.sweep(now);
        let most = self.allowance.pool.idle_timeout;
        self.idle
            .borrow_mut()
            .retain_mut(|idle| idle.idle_for(now) < most && !idle.is_orphaned() && idle.is_alive());
    }

    /// How little one would want to send it another request: the exchanges that this worker has with
    /// it now, or more than any if it has just refused a connection. One that refuses is always the
    /// least busy, and would otherwise get the most requests.
    pub(super) fn load(&self) -> u32 {
        if self.refused.get() { u32::MAX } else { self.in_flight.get() }
    }

    /// The same by how quick it has been.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        match &self.latency {
            Some(latency) if !self.refused.get() => latency.get().load(self.in_flight.get(), now),
            _ => f64::INFINITY,
        }
    }

    /// Whether it has just refused a connection.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.get()
    }

    /// It took no connection; whether that is new.
    pub fn refuse(&self) -> bool {
        !self.refused.replace(true)
    }

    /// An exchange begins, which [`super::backend::Backend::choose`] has let in.
    pub fn enter(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// An exchange ends.
    pub fn leave(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.allowance.leave();
    }

    /// Whether [`Self::answered`] should be told of each response.
    pub fn weighs_latency(&self) -> bool {
        self.latency.is_some()
    }

    /// It began to answer after so long.
    pub fn answered(&self, after: Duration, now: Instant) {
        if let Some(latency) = &self.latency {
            latency.set(latency.get().observed(after, now));
        }
    }

    /// Whether it is so new to its work that what it does is counted apart.
    #[inline]
    pub fn is_warming(&self, now: Instant) -> bool {
        self.warmup.is_some_and(|warmup| {
            let now = self.allowance.millis(now);
            now.saturating_sub(self.health.working_since(now)) < warmup
        })
    }

    /// An exchange said this about it, and whether it counts against it; which may get it ejected.
    pub fn judge(&self, outcome: Outcome, failed: bool, now: Instant) {
        if outcome.counts() {
            self.counts.count(failed);
        }
        let Some(settings) = &self.outliers else { return };
        if !outcome.is_failure() {
            if outcome.counts() {
                self.health.succeeded();
            }
            return;
        }
        let (backend, now) = (self.allowance.health(), self.allowance.millis(now));
        let all = || self.allowance.healths();
        if let Some(lasts) = outlier::failed(settings, backend, &self.health, all, now) {
            let endpoint = self.address();
            tracing::warn!(%endpoint, address = %self.member.address, ?lasts, "an endpoint is ejected");
        }
    }
}
