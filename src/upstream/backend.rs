//! One worker's view of a backend: its endpoints, and which of them gets the next request.
//!
//! Which endpoints may get requests is worked out when something has changed, not for each request: a
//! request only looks whether something has.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Payload,
    allowance::Allowance,
    balance::{hash, p2c, slow_start},
    endpoint::Endpoint,
};
use crate::{
    model::protocol::ProxyProtocol,
    routing::{
        members::Member,
        policy::{Algorithm, Policy},
        snapshot,
    },
    telemetry::{
        health::{BackendHealth, Board, EndpointHealth, Millis},
        ledger::{Hub, Key},
    },
    tls::client::Connector,
};

/// Why no endpoint can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// There is none.
    NoEndpoint,
    /// None is healthy, and health is always heeded.
    NoneHealthy,
    /// The backend has all the requests that it may have.
    Overflow,
}

/// One worker's view of a backend.
#[derive(Debug)]
pub struct Backend<B: Payload> {
    hub: Arc<Hub>,
    policy: Policy,
    tls: Option<Arc<Connector>>,
    proxy_protocol: Option<ProxyProtocol>,
    health: Arc<BackendHealth>,
    allowance: Rc<Allowance<B>>,
    endpoints: Box<[Rc<Endpoint<B>>]>,
    /// Those that requests may go to.
    usable: RefCell<Vec<Rc<Endpoint<B>>>>,
    /// The change of health that `usable` takes into account.
    seen: Cell<u64>,
    /// When time alone changes it.
    until: Cell<Millis>,
    /// Whose turn it is, where they take turns.
    next: Cell<usize>,
}

impl<B: Payload> Backend<B> {
    /// The view of these members. Those that `before` has keep their connections, as long as policy, TLS and
    /// what is said before it are the same.
    pub fn new(
        (hub, worker): (&Arc<Hub>, usize),
        key: &Key,
        policy: &Policy,
        backend: &snapshot::Backend,
        members: &[Member],
        before: Option<&Self>,
        now: Instant,
    ) -> Self {
        // Whose certificate is verified in another way is another endpoint.
        let before = before.filter(|before| {
            let spoken_to = (&before.tls, before.proxy_protocol);
            before.policy == *policy && spoken_to == (&backend.tls, backend.send_proxy_protocol)
        });
        let health = hub.health().backend(key);
        let allowance = match before {
            Some(before) => Rc::clone(&before.allowance),
            None => Rc::new(Allowance::new(policy.pool, hub, Arc::clone(&health))),
        };
        let endpoints = before.into_iter().flat_map(|before| &before.endpoints);
        let known: HashMap<_, _> = endpoints.map(|endpoint| (endpoint.member(), endpoint)).collect();
        // What is there from the start is not new, or all would be.
        let since = if known.is_empty() { 0 } else { hub.health().millis(now) };
        let one = |member: &Member| match known.get(member) {
            Some(endpoint) => Rc::clone(endpoint),
            None => {
                let health = health.endpoint(&member.endpoint.to_string(), member.address, since);
                Rc::new(Endpoint::new(
                    member.clone(),
                    backend,
                    policy,
                    Rc::clone(&allowance),
                    (health, hub.endpoints(worker).of(key, member.address)),
                    now,
                ))
            }
        };
        let endpoints: Box<[_]> = members.iter().map(one).collect();
        allowance.share_among(&endpoints);
        let backend = Self {
            hub: Arc::clone(hub),
            policy: policy.clone(),
            tls: backend.tls.clone(),
            proxy_protocol: backend.send_proxy_protocol,
            // Not yet worked out.
            seen: Cell::new(health.changes().wrapping_sub(1)),
            health,
            allowance,
            endpoints,
            usable: RefCell::default(),
            until: Cell::new(0),
            next: Cell::new(0),
        };
        backend.look(now);
        backend
    }

    /// Its endpoints, healthy or not.
    pub fn endpoints(&self) -> &[Rc<Endpoint<B>>] {
        &self.endpoints
    }

    /// Chooses an endpoint for a request, which begins with that. `key` is what it is hashed on, if it
    /// is; `random` draws numbers.
    ///
    /// # Errors
    /// When there is none, none is healthy, or the backend has all the requests that it may have.
    pub fn choose(
        &self,
        key: Option<u64>,
        now: Instant,
        random: impl Fn() -> u64,
    ) -> Result<Rc<Endpoint<B>>, Unavailable> {
        self.look(now);
        let usable = self.usable.borrow();
        let endpoint = match usable.as_slice() {
            [] if self.endpoints.is_empty() => return Err(Unavailable::NoEndpoint),
            [] => return Err(Unavailable::NoneHealthy),
            [only] => only,
            several => self.choose_among(several, key, now, random),
        };
        if !self.allowance.enter() {
            return Err(Unavailable::Overflow);
        }
        Ok(Rc::clone(endpoint))
    }

    /// The same for a request that has failed at `tried` and does not go there again.
    pub fn choose_other(
        &self,
        tried: &[Rc<Endpoint<B>>],
        key: Option<u64>,
        now: Instant,
        random: impl Fn() -> u64,
    ) -> Option<Rc<Endpoint<B>>> {
        self.look(now);
        let is_new = |endpoint: &&Rc<Endpoint<B>>| !tried.iter().any(|tried| Rc::ptr_eq(tried, endpoint));
        let others: Vec<_> = self.usable.borrow().iter().filter(is_new).cloned().collect();
        let endpoint = match others.as_slice() {
            [] => return None,
            [only] => only,
            several => self.choose_among(several, key, now, random),
        };
        self.allowance.enter().then(|| Rc::clone(endpoint))
    }

    /// Closes connections that have been idle for too long, and lets others have what is not used.
    pub fn sweep(&self, now: Instant) {
        self.look(now);
        self.endpoints.iter().for_each(|endpoint| endpoint.sweep(now));
        self.allowance.settle();
    }

    fn choose_among<'e>(
        &self,
        several: &'e [Rc<Endpoint<B>>],
        key: Option<u64>,
        now: Instant,
        random: impl Fn() -> u64,
    ) -> &'e Rc<Endpoint<B>> {
        let (first, second) = match (&self.policy.balance.algorithm, key) {
            (Algorithm::ConsistentHash(_), Some(key)) => return by_key(several, key),
            (Algorithm::RoundRobin, _) => {
                let next = self.next.get();
                self.next.set(next.wrapping_add(1));
                (next % several.len(), (next + 1) % several.len())
            }
            (algorithm, _) => {
                let (first, second) = p2c::draw(several.len(), random());
                let less = match algorithm {
                    Algorithm::PeakEwma => several[second].cost(now) < several[first].cost(now),
                    _ => several[second].load() < several[first].load(),
                };
                if less { (second, first) } else { (first, second) }
            }
        };
        let (first, second) = (&several[first], &several[second]);
        let takes = !first.has_refused() && self.is_warm(first, now, random);
        if takes || second.has_refused() { first } else { second }
    }

    /// Whether an endpoint takes a request, new as it may be.
    fn is_warm(&self, endpoint: &Endpoint<B>, now: Instant, random: impl Fn() -> u64) -> bool {
        let Some(window) = self.policy.balance.slow_start else { return true };
        let since = endpoint.health().usable_since();
        let (age, window) = (self.board().millis(now).saturating_sub(since), millis(window));
        // 0 is not when the process began, but always.
        since == 0 || age >= window || slow_start::takes(age, window, random())
    }

    /// Works out which endpoints may get requests, if that may have changed.
    #[inline]
    fn look(&self, now: Instant) {
        let until = self.until.get();
        let changes = self.health.changes();
        if changes == self.seen.get() && (until == Millis::MAX || self.board().millis(now) < until) {
            return;
        }
        self.seen.set(changes);
        self.look_anew(self.board().millis(now));
    }

    fn look_anew(&self, now: Millis) {
        let healths = || self.endpoints.iter().map(|endpoint| endpoint.health());
        let ends = healths().map(|health| health.ejection().0).filter(|until| *until > now);
        self.until.set(ends.min().unwrap_or(Millis::MAX));
        let usable = healths().filter(|health| health.is_usable(now)).count();
        let wanted = self.endpoints.len() * usize::from(self.policy.balance.panic_threshold);
        let panics = usable * 100 < wanted;
        let may = |health: &EndpointHealth| panics || health.is_usable(now);
        let endpoints = self.endpoints.iter().filter(|endpoint| may(endpoint.health()));
        *self.usable.borrow_mut() = endpoints.cloned().collect();
    }

    fn board(&self) -> &Board {
        self.hub.health()
    }
}

/// The endpoint that a key belongs to, among those that have not just refused a connection.
fn by_key<B>(several: &[Rc<Endpoint<B>>], key: u64) -> &Rc<Endpoint<B>>
where
    B: Payload,
{
    let numbers = |refused: bool| {
        let endpoints = several.iter().enumerate().filter(move |(_, e)| e.has_refused() == refused);
        endpoints.map(|(place, endpoint)| (place, endpoint.number()))
    };
    let place = hash::choose(key, numbers(false)).or_else(|| hash::choose(key, numbers(true)));
    &several[place.unwrap_or_default()]
}

pub(super) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}
